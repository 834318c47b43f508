"""The report of real records: real scores, real splits; what is damaged or belongs to another split is told by name."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from matplotlib import image

from bnft.config import REPOSITORY, resolve, to_yaml
from bnft.errors import UserError
from bnft.evaluation import Evaluation, rows_of
from bnft.generation import Generated
from bnft.judge import summary
from bnft.judge_form import SIDES, Item, Ratings, Verdict
from bnft.metrics import Likelihood, Reply, compare, score_likelihood, score_replies
from bnft.rating_form import QUESTIONS
from bnft.rating_store import SYSTEMS
from bnft.rating_summary import record_summary
from bnft.records import RunDirectory
from bnft.report import main
from bnft.report_figures import plot_learning_rates, plot_losses, plot_runs
from bnft.report_page import write_report
from bnft.report_runs import Difference, Value, read_experiments, read_runs
from bnft.report_tables import data_of, groups_of, metrics_of, notes_of, opinions_of, samples_of, table_of, verdict
from bnft.results import Outcome, write_results
from bnft.whole_files import write_atomically, write_json
from tests.test_rating_summary import rate_all

EVIL = "ভালো <script>alert(1)</script></style><img src=https://evil.example/a.png onerror=alert(2)> {{ 7 * 7 }}"
KEPT = ("smoke-a", "smoke-b", "smoke-other")


def write_run(outputs, name, test, replies, seed=3407, flags=None):
    """A run as train.py leaves it, but for the weights; `replies` are the tuned model's, the base's are all one."""
    config, sources = resolve("smoke", {"seed": str(seed), "data.path": "/home/somebody/corpus.csv"} | (flags or {}))
    measured_before = (outputs / name).exists()
    directory = RunDirectory(outputs / name) if measured_before else RunDirectory.create(outputs, name)
    write_atomically(directory.path("config.yaml"), to_yaml(config, sources))
    directory.write_splits({"train": [], "validation": [], "test": test})
    rows = rows_of(test)

    def evaluated(texts, nats):
        made = [Generated(text, 9, text.endswith("?"), 0.5) for text in texts]
        judged = [Reply(reply.text, reply.tokens, reply.ended) for reply in made]
        likelihoods = [Likelihood.of_reply(row.reference, nats=nats, tokens=9) for row in rows]
        how = {"bootstrap": 100, "seed": seed}
        scores = score_likelihood(likelihoods, **how) | score_replies(judged, [row.reference for row in rows], **how)
        return Evaluation(scores, made)

    base = evaluated(["কী"] * len(rows), 60.0)
    tuned = evaluated([replies[i % len(replies)] for i in range(len(rows))], 40.0)
    report = {
        "source": "/home/somebody/corpus.csv", "sha256": "ab" * 32, "rows_read": 40, "rows_kept": 30,
        "conversations": 24, "talks": 4, "repaired": {"odd_spaces": 12}, "dropped": {"empty_answer": 7, "too_long": 3},
        "duplicates": {"exact": 2, "near": 1}, "groups": 24,
        "splits": {"train": {"conversations": 12, "exchanges": 14, "groups": 12}},
    }  # fmt: skip
    history = [{"step": n, "loss": 5 / n, "learning_rate": 1e-3 / n} for n in range(1, 5)]
    record = {
        "recipe": "smoke", "started": f"2026-11-22T0{len(os.listdir(outputs))}:00:00+00:00",
        "seconds": {"evaluation": 3.6}, "dtype": "float32", "strategy": "peft", "gpus": [], "cpu_cores": 2,
        "versions": {"torch": "2.13.0"}, "git_commit": "abc", "parameters": {"all": 307520, "trained": 8192},
        "data": {"fingerprint": "ab" * 32, "exchanges": {"test": len(rows)}},
        "training": {
            "steps": 4, "seconds": 5.9, "best_step": 4, "best_eval_loss": 1.5, "stopped_by": "",
            "history": [*history, {"step": 4, "eval_loss": 1.5}], "token_lengths": {"train": {"40": 3, "90": 2}},
        },
    }  # fmt: skip
    write_json(directory.path("data_report.json"), report)
    write_json(directory.path("run.json"), record)
    outcome = Outcome(test, rows, base, tuned, compare(base.scores, tuned.scores))
    write_results(directory, config, record, outcome)
    return directory.folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, conversations):
    """Two runs on one test split, one on another."""
    outputs = tmp_path_factory.mktemp("made")
    write_run(outputs, "smoke-a", conversations, ["কেমন আছেন?", EVIL])
    write_run(outputs, "smoke-b", conversations, ["বলুন, শুনছি।"], flags={"lora.r": "8"})
    write_run(outputs, "smoke-other", conversations[:6], ["তাই?"], seed=7)
    return outputs


@pytest.fixture
def outputs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "outputs", symlinks=True)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    """The page of all of it, with people's and a judge's summaries in one run."""
    outputs = shutil.copytree(made, tmp_path_factory.mktemp("page") / "outputs", symlinks=True)
    add_opinions(outputs / "smoke-b")
    path, problems = write_report(outputs)
    assert problems == []
    return path


def add_opinions(run):
    rate_all(run, ["রিনা", "মিতা"], 12)
    record_summary(run, 100, 1)
    low, high = ({q.key: value(q) for q in QUESTIONS} for value in (lambda q: q.low, lambda q: q.high))
    said = {
        "base": Verdict(A=Ratings(**low), B=Ratings(**high), preference="B"),
        "tuned": Verdict(A=Ratings(**high), B=Ratings(**low), preference="A"),
    }
    items = [Item(f"row-{n}", (), "ক", "খ") for n in range(4)]
    answered = {(item.id, side): (said[side], "judge-1 *x*", "temperature 0") for item in items for side in SIDES}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics["judge"] = summary(items, answered, "judge-1 *x*", {}, bootstrap=100, seed=1)
    write_json(run / "metrics.json", metrics)


def edit(path, change):
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


# -- what it says ------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_asks_nobody(page):
    text = page.read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    live = re.findall(r'(?:src|href|action|url)\s*[=(]\s*"?([^"\s>)]{0,30})', re.sub(r"&lt;.*?&gt;", "", text))
    assert live
    assert all(target.startswith(("data:image/png", "data:font/woff2", "#run-")) for target in live), set(live)
    assert "@import" not in style
    assert "<script" not in text
    assert "<link" not in text
    assert "default-src 'none'" in text
    assert page.stat().st_size < 5_000_000


def test_the_page_says_what_the_records_say(page):
    text = page.read_text(encoding="utf-8")
    for words in (*KEPT, "কেমন আছেন?", "odd spaces: 12", "empty answer: 7", "corpus.csv", "8,192 of 307,520", "no GPU"):
        assert words in text
    assert "judged on 2 different test splits" in text
    assert "/home/somebody" not in text
    for picture in ("loss.png", "learning_rate.png", *(f"runs/{run}/token_lengths.png" for run in KEPT)):
        assert (page.parent / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list(page.parent.glob("test_*.png"))) == 1, "a picture of runs only where two can be compared"
    assert not [name for name in os.listdir(page.parent) if name.startswith(".")]


def test_texts_of_models_stay_texts(page):
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;/style&gt;&lt;img" in text
    assert "{{ 7 * 7 }}" in text
    assert text.count("</style>") == 1
    assert "<img src=https" not in text


def test_people_and_the_judge_are_told_apart(page):
    text = page.read_text(encoding="utf-8")
    people, judge = text.index("Judged by people"), text.index("A language model's opinion, no person's")
    assert people < judge
    assert "2 raters" in text[people:judge]
    assert "tuned preferred to base" in text[people:judge]
    caveat = text.index("A language model (judge-1 *x*), not a person, judged these replies.")
    assert judge < caveat < text.index("4 of 4 rows"), "before its numbers, and without the card's Markdown"


def test_runs_stand_in_groups_by_their_test_split(outputs):
    found = read_runs(outputs)
    both, other = groups_of(found.runs, found.lines)
    assert [run.name for run in both.runs] == ["smoke-a", "smoke-b"]
    assert [run.name for run in other.runs] == ["smoke-other"]
    assert both.test != other.test
    assert notes_of(both) == notes_of(other) == []
    line = table_of(both)[0]
    assert (line["recipe"], line["model"], line["steps"], line["time"], line["data"]) == (
        "smoke", "smoke in 4 bit", "4", "6 s", "abababab"
    )  # fmt: skip
    assert line["values"]["bits_per_byte"]["verdict"] == "better"  # 40 nats a reply and not 60, on every row
    assert [part["runs"] for part in data_of(found.runs)] == [["smoke-a", "smoke-b"], ["smoke-other"]]


def test_unlike_decoding_rows_and_signatures_are_said(outputs):
    metrics = outputs / "smoke-b" / "metrics.json"
    edit(metrics, lambda value: value["decoding"].update(max_new_tokens=99))
    edit(metrics, lambda value: value["tuned"]["bleu"].update(signature="tok:13a|bs:100"))
    edit(
        metrics,
        lambda value: value["tuned"]["chrf++"].update(signature=value["tuned"]["chrf++"]["signature"] + "|bs:7"),
    )
    lines = (outputs / "smoke-b" / "GeneratedResponses.csv").read_text(encoding="utf-8").splitlines(True)
    edit(metrics, lambda value: value["test"].update(rows_generated=len(lines) - 2))
    (outputs / "smoke-b" / "GeneratedResponses.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    decoding, rows, ways = notes_of(groups_of(read_runs(outputs).runs, [])[0])
    assert "smoke-b: greedy, at most 99 tokens" in decoding
    assert "different rows" in rows
    assert "smoke-a 17, smoke-b 16" in rows
    assert ways == "Computed in more than one way: BLEU (intl).", "the bootstrap's part makes no other way"


@pytest.mark.parametrize(
    ("low", "high", "p", "better", "improved", "said"),
    [
        (0.1, 0.3, 0.01, True, True, "better"),
        (-0.3, -0.1, 0.01, True, False, "worse"),
        (-0.1, 0.3, 0.01, True, True, "unclear"),
        (0.1, 0.3, 0.07, True, True, "unclear"),  # bootstrap interval and p need not agree
        (0.0, 0.0, 1.0, True, None, "unclear"),
        (0.1, 0.3, 0.01, None, None, ""),
        (None, None, None, True, True, ""),
    ],
)
def test_verdicts(outputs, low, high, p, better, improved, said):
    (run, *_) = read_runs(outputs).runs
    run.metrics.tuned["bleu"] = Value(value=1, signature="", n=9, unit="0-100", higher_is_better=better)
    run.metrics.comparison["bleu"] = Difference(difference=0.2, low=low, high=high, p=p, improved=improved)
    assert verdict(run, "bleu") == said


def test_metrics_have_intervals_and_points(outputs):
    lines = {line["label"]: line for line in metrics_of(read_runs(outputs).runs[1])}
    ended = lines["replies that end by themselves"]
    assert (ended["base"], ended["tuned"], ended["difference"]) == ("0.0 %", "0.0 %", "+0.0 pp")
    bits = lines["bits per byte (lower is better)"]
    assert re.fullmatch(r"\[\d\.\d{3}, \d\.\d{3}\]", bits["tuned_interval"])
    assert re.fullmatch(r"\[-\d\.\d{3}, -\d\.\d{3}\]", bits["difference_interval"])
    assert bits["p"] == "0.010"  # one of 101 is the least that 100 resamples can say


def test_samples_are_drawn_by_the_seed_and_equal_replies_stand_once(outputs):
    group = groups_of(read_runs(outputs).runs, [])[0]
    samples = samples_of(group, 1)
    assert len(samples) == 10
    assert samples == samples_of(group, 1)
    assert [s["id"] for s in samples] != [s["id"] for s in samples_of(group, 2)]
    first = samples[0]["replies"]
    assert [(reply["system"], reply["runs"]) for reply in first] == [
        ("base", "smoke-a, smoke-b"), ("tuned", "smoke-a"), ("tuned", "smoke-b")
    ]  # fmt: skip
    assert first[0]["cut"]
    assert {s["later_turn"] for s in samples_of(group, 1)} == {True, False}


def test_a_single_run(outputs):
    # half of a surrogate pair, which JSON may hold and no encoding takes
    edit(outputs / "smoke-other" / "run.json", lambda record: record.update(strategy="\ud800"))
    path, problems = write_report(outputs / "latest")
    assert path == outputs / "smoke-other" / "report" / "report.html"
    assert problems == []
    text = path.read_text(encoding="utf-8")
    assert "different test splits" not in text
    assert "Training, all runs" not in text


# -- bad input ---------------------------------------------------------------------------------------------------


def doubled(run):
    with (run / "GeneratedResponses.csv").open("a", encoding="utf-8") as file:
        file.write((run / "GeneratedResponses.csv").read_text(encoding="utf-8").splitlines()[1] + "\n")


def shortened(run):
    lines = (run / "GeneratedResponses.csv").read_text(encoding="utf-8").splitlines(True)
    (run / "GeneratedResponses.csv").write_text("".join(lines[:-3]), encoding="utf-8")


def of_another_split(run):
    shutil.copy(run.parent / "smoke-other" / "metrics.json", run / "metrics.json")


@pytest.mark.parametrize(
    ("damage", "said", "measured", "replies"),
    [
        (doubled, "1 ids are there more than once", True, False),
        (shortened, "14 rows, where the metrics were made of 17", True, False),
        (lambda run: (run / "GeneratedResponses.csv").unlink(), "cannot read GeneratedResponses.csv", True, False),
        (of_another_split, "metrics.json was measured on another test split", False, False),
        (lambda run: (run / "splits" / "test.jsonl").write_text("{"), "splits is not as it was", False, False),
        (lambda run: (run / "metrics.json").write_text("[]"), "metrics.json: it holds no values", False, False),
        (lambda run: (run / "metrics.json").write_text("{"), "cannot read metrics.json", False, False),
        (lambda run: (run / "metrics.json").unlink(), "not measured yet: python train.py --eval-only", False, False),
        (lambda run: (run / "data_report.json").unlink(), "cannot read data_report.json", True, True),
    ],
)
def test_what_cannot_be_trusted_is_not_shown_and_named(outputs, damage, said, measured, replies):
    damage(outputs / "smoke-a")
    run = next(run for run in read_runs(outputs).runs if run.name == "smoke-a")
    assert (run.metrics is not None, bool(run.responses)) == (measured, replies)
    assert said in run.problems[0]
    assert str(outputs) not in run.problems[0]
    groups = groups_of([run], [])
    assert bool(groups[0].test) == measured
    assert table_of(groups[0])[0]["run"] == "smoke-a"
    assert bool(samples_of(groups[0], 1)) == replies


def test_a_run_without_numbers_is_still_told_of(outputs):
    (outputs / "smoke-other" / "metrics.json").unlink()
    path, problems = write_report(outputs / "smoke-other")
    assert "not measured yet" in problems[0]
    assert "Runs without numbers" in path.read_text(encoding="utf-8")
    assert (path.parent / "runs" / "smoke-other" / "loss.png").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", '{"recipe": '),
        ("run.json", '{"recipe": 5}'),
        ("config.yaml", "lora: {rank: 3}"),
        ("config.yaml", ":"),
    ],
)
def test_a_damaged_run_is_left_out_with_a_word(outputs, name, content):
    (outputs / "smoke-a" / name).write_text(content)
    found = read_runs(outputs)
    assert [run.name for run in found.runs] == ["smoke-b", "smoke-other"]
    assert found.left_out[0].startswith("smoke-a is left out: ")
    assert found.lines == [], "a damaged run is not told from LLAMAExperiments.csv instead"
    with pytest.raises(UserError):
        write_report(outputs / "smoke-a")


def test_no_run_and_only_damaged_runs_exit_with_2(outputs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert "there is no run in" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "No such file" in capsys.readouterr().err
    (outputs / "LLAMAExperiments.csv").unlink()
    for name in KEPT:
        (outputs / name / "run.json").unlink()
    assert main([str(outputs)]) == 2
    told = capsys.readouterr().err
    assert all(f"{name} is left out" in told for name in KEPT)
    assert "Traceback" not in told


def test_a_place_that_cannot_be_written(outputs):
    (outputs / "smoke-other" / "report").write_text("a file")
    with pytest.raises(UserError, match="cannot write to"):
        write_report(outputs / "smoke-other")


def test_runs_whose_folder_is_gone_come_from_the_table(outputs):
    shutil.rmtree(outputs / "smoke-b")
    with (outputs / "LLAMAExperiments.csv").open("a", encoding="utf-8") as file:
        file.write("torn,2026\n")
    found = read_runs(outputs)
    assert [line["run"] for line in found.lines] == ["smoke-b"]
    assert "line 4 of LLAMAExperiments.csv is passed over" in found.left_out[0]
    both = groups_of(found.runs, found.lines)[0]
    gone = table_of(both)[1]
    assert (gone["run"], gone["gone"], gone["recipe"], gone["steps"]) == ("smoke-b", True, "smoke", "4")
    assert gone["values"]["bits_per_byte"]["verdict"] == ""
    assert "run folder is gone" in notes_of(both)[0]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00run", b"", b"a,b\n1,2\n", b"run,base_bleu\nx,1,2,3\n"])
def test_a_table_that_something_else_has_saved(tmp_path, content):
    (tmp_path / "LLAMAExperiments.csv").write_bytes(content)
    assert read_experiments(tmp_path / "LLAMAExperiments.csv", set())[0] == []


def test_numbers_that_a_spreadsheet_has_changed_are_left_empty(tmp_path):
    (tmp_path / "LLAMAExperiments.csv").write_text('run,base_bleu,tuned_bleu\nx,"0,5",1\ny,nan,2\nz,1,2\n')
    lines, problems = read_experiments(tmp_path / "LLAMAExperiments.csv", set())
    assert problems == []
    told = [line["values"] for line in table_of(groups_of([], lines)[0])]
    assert told == [{}, {}, {"bleu": {"base": "1.00", "tuned": "2.00", "verdict": ""}}]


def test_damaged_opinions_are_named(outputs):
    edit(outputs / "smoke-a" / "metrics.json", lambda m: m.update(human={"raters": 1}, judge={"what": 5, "rows": {}}))
    human, _, problems = opinions_of(read_runs(outputs).runs[0])
    assert human is None
    assert "people's ratings in metrics.json is damaged" in problems[0]


def test_an_opinion_that_lacks_what_the_page_tells_is_named(outputs):
    table = {"alpha": None}
    human = {
        "scores": {system: {q.key: None for q in QUESTIONS} for system in SYSTEMS},
        "agreement": dict.fromkeys((*(q.key for q in QUESTIONS), "preference"), table),
        "self_agreement": {"pairs": 0},
        "preferences": [],
    }
    edit(outputs / "smoke-a" / "metrics.json", lambda m: m.update(human=human, judge={"what": "x", "rows": {}}))
    *opinions, problems = opinions_of(read_runs(outputs).runs[0])
    assert opinions == [None, None]
    assert ["'raters'" in problems[0], "'answered'" in problems[1]] == [True, True]


# -- pictures ----------------------------------------------------------------------------------------------------

LOG = [{"step": n, "loss": 5 / n, "learning_rate": n * 1e-4} for n in range(1, 5)]
MANY = {f"একটি দীর্ঘ নামের রান {n} " + "x" * 40: [*LOG, {"step": 4, "eval_loss": 2.0}] for n in range(30)}
SCORE = {"base": {"value": 0.5, "low": 0.4, "high": 0.6, "unit": "share"}, "tuned": {"value": 0.7, "unit": "share"}}


@pytest.mark.filterwarnings("error")  # "Glyph missing", a legend without names, a layout that does not fit
@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_losses({"$a$_b^": LOG, "_hidden": LOG}, path),
        lambda path: plot_losses(MANY, path),
        lambda path: plot_learning_rates({"a": LOG, "b": []}, path),
        lambda path: plot_runs(
            {"$a$": {"ended_rate": SCORE}, "b": {}, "_c": {"new": SCORE}}, ["ended_rate", "new"], path
        ),
    ],
)
def test_pictures_of_several_runs(draw, tmp_path):
    picture = image.imread(draw(tmp_path / "runs" / "picture.png"))
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    assert all((edge == 1).all() for edge in edges), "something runs out of the picture"
    assert (picture != 1).any()


def test_nothing_to_draw_makes_no_picture(tmp_path):
    assert plot_losses({"a": [], "b": [{"step": 1, "loss": float("nan")}]}, tmp_path / "loss.png") is None
    assert list(tmp_path.iterdir()) == []


# -- the command and the browser ---------------------------------------------------------------------------------


def test_the_command(outputs):
    shutil.rmtree(outputs / "smoke-a")
    (outputs / "smoke-b" / "run.json").write_text("[]")
    code = (
        "import sys; from bnft.report import main; e = main(sys.argv[1:]); sys.exit(e or 9 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(outputs)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"report: {outputs}/report/report.html" in done.stdout
    assert "note: smoke-b is left out: cannot read run.json" in done.stderr


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(page, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if not binary:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        requests, complaints = [], []
        shown.on("request", lambda request: requests.append(request.url))
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        shown.goto(page.as_uri())
        shown.evaluate("document.fonts.ready")
        assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
        assert complaints == []
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate("[...document.images].every(picture => picture.naturalWidth > 0)")
        assert fonts_of(shown, ".question") == {"Hind Siliguri"}
        light = sum(map(int, re.findall(r"\d+", shown.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))
        assert light > 600 if scheme == "light" else light < 200
        shown.emulate_media(media="print")
        shown.set_viewport_size({"width": 688, "height": 1000})  # A4 between its margins
        assert shown.evaluate("document.documentElement.scrollWidth") <= 688
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        browser.close()


def fonts_of(shown, selector):
    """The fonts whose glyphs Chromium drew; a fallback for a single letter would be among them."""
    tools = shown.context.new_cdp_session(shown)
    tools.send("DOM.enable")
    tools.send("CSS.enable")
    root = tools.send("DOM.getDocument")["root"]["nodeId"]
    node = tools.send("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
    fonts = tools.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
    assert all(font["isCustomFont"] for font in fonts)
    return {font["familyName"] for font in fonts}
