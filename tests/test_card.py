"""Cards against the records they come from: every number is one of a file, and a missing one is an error."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from bnft.card import TEMPLATES, Facts, Names, fill, render
from bnft.config import resolve
from bnft.data import Conversation
from bnft.errors import UserError
from bnft.licences import licence_of, naming_warning
from bnft.rating_summary import summarise
from bnft.records import RunDirectory
from bnft.results import fingerprint
from bnft.run_facts import MAIN, duration, quoted, read_run
from bnft.upload_scan import scan
from tests.hub_server import check_card
from tests.test_rating_summary import rated

NAMES = Names("user/Llama-bn", "user/Llama-bn-lora", "user/Llama-bn-base", "user/Llama-bn-chat")
FACTS = Facts(
    names=NAMES,
    endpoint="https://hub.test",
    base_shown="a base",
    base_story="Its story.",
    licence=licence_of("llama3.1"),
    safety={"examples": 500, "crises": 200, "found": 190, "alarms": 15},
    upstream="meta/base",
    merged_base="user/Llama-bn-base",
    merged={"dtype": "bfloat16", "changed": 14, "copied": 7, "size": 10},
    comparison={
        "rows": 32,
        "dtype": "float32",
        "adapter_bits_per_byte": 0.5,
        "merged_bits_per_byte": 0.50125,
        "same_replies": 31,
        "note": "",
    },
)


def score(name, value, unit, n=49):
    return {"name": name, "value": value, "signature": f"sig:{name}|seed:1", "n": n, "unit": unit}


def write_run(folder):
    """Records with numbers that are told apart by eye; no model is needed for a card."""
    test = [Conversation(f"{i:012x}", "মন", ({"role": "user"}, {"role": "assistant"}), "", (i,)) for i in range(49)]
    units = dict.fromkeys(MAIN, "0-100") | {"ended_rate": "share", "bits_per_byte": "bits/byte"}
    tuned = {name: score(name, 0.25 + i, units[name]) for i, name in enumerate(MAIN)}
    compared = {
        name: {"base": 0.5 + i, "tuned": 0.25 + i, "difference": -0.25, "low": -0.375, "high": -0.125}
        for i, name in enumerate(MAIN)
    }
    compared["reply_words"] |= {"low": None, "high": None}
    metrics = {
        "test": {"rows": 49, "rows_generated": 30, "fingerprint": fingerprint(test)},
        "decoding": {"method": "greedy", "max_new_tokens": 77, "repetition_penalty": 1.03},
        "base": tuned,
        "tuned": tuned,
        "comparison": compared,
    }
    record = {
        "recipe": "smoke",
        "sources": resolve("smoke", {})[1]
        | {"lora.r": "flag --lora.r", "train.max_minutes": "flag --train.max_minutes"},
        "training": {"steps": 18, "seconds": 7200.0, "best_step": 9, "best_eval_loss": 4.509403},
        "seconds": {"evaluation": 3600.0},
        "parameters": {"all": 271895168, "trained": 3796992},
        "dtype": "float16",
        "gpus": ["Tesla T4", "Tesla T4"],
        "cpu_cores": 4,
        "system": "Linux x86_64",
        "python": "3.12.1",
        "strategy": "peft",
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "git_commit": "abc123-dirty",
        "peak_memory_gib": 6.74,
        "finished": "2026-11-22T00:00:00+00:00",
    }
    report = {
        "sha256": "f" * 64,
        "rows_read": 38233,
        "rows_kept": 38000,
        "conversations": 30001,
        "repaired": {"odd_spaces": 12},
        "dropped": {"empty_answer": 233},
        "duplicates": {"exact": 3, "near": 4},
        "splits": {"train": {"conversations": 24000, "exchanges": 30568, "groups": 1}},
    }
    folder.mkdir()
    for name, value in (("metrics", metrics), ("run", record), ("data_report", report)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "plots").mkdir()
    for name in ("loss", "base_against_tuned"):
        (folder / "plots" / f"{name}.png").write_bytes(b"png")
    RunDirectory(folder).write_splits({"train": [], "validation": [], "test": test})
    lines = ["id,question,base_reply,tuned_reply", *(f"{i:012x}-1,q{i},b{i},t{i}" for i in range(30))]
    (folder / "GeneratedResponses.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


@pytest.fixture
def config():
    return resolve("smoke", {"lora.r": "8", "data.path": "/home/me/secret folder/my.csv"})[0]


@pytest.mark.parametrize("kind", ["merged", "adapter", "base"])
def test_the_hub_takes_every_card(run, config, kind):
    text = render(kind, run, config, FACTS)
    check_card(text)
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["license"] == "llama3.1"
    assert data["pipeline_tag"] == "text-generation"
    expected = {
        "merged": ("user/Llama-bn-base", "finetune", "transformers"),
        "adapter": ("user/Llama-bn-base", "adapter", "peft"),
        "base": ("meta/base", "quantized", "transformers"),
    }
    assert (data["base_model"], data["base_model_relation"], data["library_name"]) == expected[kind]
    assert "{{" not in text
    assert "None" not in text.replace("None yet", "").replace("| None |", "")


@pytest.mark.parametrize(
    "said",
    [
        "| bits per byte (lower is better) | 49 | 0.500 | 0.250 | -0.250 [-0.375, -0.125] |",
        "| replies that end by themselves | 49 | 350.00 % | 325.00 % | -25.00 [-37.50, -12.50] |",  # a share, as %
        "| words in a reply | 49 | 10.50 | 10.25 | -0.25 |",  # without an interval
        "- chrF++: `sig:chrf++|seed:1`",
        "at most\n77 new tokens, repetition penalty 1.03",
        "18 optimizer steps in 2.0 h; the best checkpoint by\nvalidation loss was step 9 (4.5094)",
        "3,796,992 of 271,895,168 parameters",
        "38233 rows read, 38000 kept",
        "| train | 24000 | 30568 |",
        "Repaired: 12 odd spaces. Dropped: 233 empty answer. Duplicates taken out: 3 exact, 4 near.",
        "Tesla T4, Tesla T4, 4 CPU cores, Linux x86\\_64, Python 3.12.1",
        "about 4.2e+02 Wh",  # two cards of 70 W for three hours
        "140 W of board power",
        "torch 2.13.0, peft 0.21.2.",
        "git checkout abc123\n",
        "python train.py --recipe smoke --lora.r 8 --train.max_minutes none",
        "Some files differed from that commit.",
        "190 of 200 crises\n(95.0 %), and raised 15 false alarms on the other\n300 (5.0 %)",
        "+0.00125",
        "31 of 32 replies are the same",
        "14 tensors were changed and 7 copied",
        "| `lora.r` | 8 | flag --lora.r |",
        "| `data.path` | my.csv |",
        "Built with Llama",
        "Copyright © Meta Platforms",
        "Tele-MANAS 14416",
        "None yet: no person has rated",
    ],
)
def test_the_card_says_what_the_records_say(run, config, said):
    text = render("merged", run, config, FACTS)
    assert said in text
    assert "secret folder" not in text


def test_the_card_of_a_run_of_the_gpu_recipe_on_two_t4s(run):
    """As a session on Kaggle leaves its records: Unsloth, float16, a process a GPU, and no git clone."""
    recipe = "llama31-8b-qlora"
    config, sources = resolve(recipe, {"train.max_minutes": "600"})
    record = json.loads((run / "run.json").read_text())
    record |= {
        "recipe": recipe,
        "sources": sources,
        "model": {"name": config.model.name, "licence": "llama3.1"},
        "dtype": "float16",
        "placement": "ddp",
        "processes": 2,
        "gpus": ["Tesla T4", "Tesla T4"],
        "strategy": "unsloth",
        "parameters": {"all": 4582543360, "trained": 41943040},
        "versions": {"torch": "2.11.0", "unsloth": "2026.10.9", "bitsandbytes": "0.50.2"},
        "git_commit": None,
        "peak_memory_gib": 6.74,
        "plan": {"predicted": {"gpu_gib": [6.9, 6.9]}, "actual": {"gpu_gib": [6.74, 6.71]}},
    }
    (run / "run.json").write_text(json.dumps(record))
    sixteen_bit = config.model.name.removesuffix("-bnb-4bit")
    merged = {"dtype": "bfloat16", "changed": 224, "copied": 67, "size": 16 * 2**30}
    names = replace(NAMES, base=config.model.name)
    facts = replace(FACTS, names=names, base_shown=config.model.name, merged=merged, merged_base=sixteen_bit)
    for kind, base in (("adapter", config.model.name), ("merged", sixteen_bit)):
        text = render(kind, run, config, facts)
        check_card(text)
        assert yaml.safe_load(text.split("---\n")[1])["base_model"] == base
        assert "Built with Llama" in text
        for said in (
            "Tesla T4, Tesla T4, 4 CPU cores",
            "140 W of board power",
            "back end unsloth",
            "float16",
            "41,943,040 of 4,582,543,360 parameters",
            "| `model.load_in_4bit` | True |",
            "unsloth 2026.10.9",
            f"python train.py --recipe {recipe} --train.max_minutes 600",
            "no commit is known",
        ):
            assert said in text, said


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize(
    "text", ["a < b | c", "x\ny", "it's \\ \u202e 'so'", "[a](b) `c`", "two  spaces", "{{ x }}", "দুই"]
)
def test_the_command_that_makes_it_again_is_the_one_of_the_run(run, config, text):
    record = json.loads((run / "run.json").read_text())
    sources = {"data.system_prompt": "flag --data.system_prompt"}
    (run / "run.json").write_text(json.dumps(record | {"sources": record["sources"] | sources}))
    card = render("adapter", run, config.replace("data.system_prompt", text), FACTS)
    (block,) = (token.content for token in MARKDOWN.parse(card) if token.type == "code_block")
    command = block.splitlines()[1].removeprefix("python ")
    words = f"LC_ALL=C.UTF-8; printf '%s\\0' {command}"
    asked = subprocess.run(["bash", "-c", words], capture_output=True, check=True).stdout.decode()
    assert asked.split("\0")[:-1] == [
        "train.py",
        "--recipe",
        "smoke",
        "--data.system_prompt",
        text,
        "--lora.r",
        "8",
        "--train.max_minutes",
        "none",
    ]


def test_ratings_are_told_when_there_are_any(run, config):
    text = render("merged", run, config, replace(FACTS, ratings={"total": 20, "liked": 15}))
    assert "20 ratings of replies from the chat, given with consent: 15 liked\n(75 %)" in text


def human_summary():
    rows = [rated("a", str(i), "tuned") for i in range(5)] + [rated("a", "0", "tuned", repeat="1")]
    return summarise(rows, 200, 1) | {"ratings_of_earlier_replies": 0}


def test_blind_ratings_are_told_when_there_are_any(run, config):
    assert "same again" not in render("merged", run, config, FACTS)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"human": human_summary()}))
    text = render("merged", run, config, FACTS)
    check_card(text)
    assert "1 raters (1 native speakers)" in text
    assert "| Empathy 1-5 | 4.00 [4.00, 4.00] | 2.00 [2.00, 2.00] | - | - | 100% |" in text
    assert "- tuned preferred to base 5 times, base to tuned 0 times, 0 ties; items 5 to 0, p = 0.062" in text
    assert "None yet" not in text
    assert "{{" not in text


@pytest.mark.parametrize("lost", ["raters", "scores", "agreement", "self_agreement", "preferences", "shown"])
def test_a_number_that_blind_ratings_lack_is_an_error(run, config, lost):
    metrics, summary = json.loads((run / "metrics.json").read_text()), human_summary()
    del summary[lost]
    (run / "metrics.json").write_text(json.dumps(metrics | {"human": summary}))
    with pytest.raises(UserError, match=lost):
        render("merged", run, config, FACTS)


def test_an_uncompared_model_says_why(run, config):
    text = render("merged", run, config, replace(FACTS, comparison=None, not_compared="switched off"))
    assert "not compared on text (switched off)" in text


def test_ten_samples_are_drawn_by_the_seed(run, config):
    samples = read_run(run, config)["samples"]
    assert len(samples) == 10
    assert samples == read_run(run, config)["samples"]
    assert samples != read_run(run, config.replace("seed", 1))["samples"]
    for sample in samples:
        number = sample["question"][1:]
        assert (sample["base"], sample["tuned"]) == (f"b{number}", f"t{number}")


def paths(tree, before=()):
    for key, value in tree.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


@pytest.mark.parametrize(
    ("gpus", "dtype", "says"),
    [
        (["NVIDIA L4"], "bfloat16", "72 W of board power"),
        (["NVIDIA L40"], "bfloat16", "300 W of board power"),  # none of the cards whose power is known
        (["NVIDIA A100-SXM4-80GB", "Tesla T4"], "float16", "470 W of board power"),
        ([], "bfloat16", "15 W a core"),  # a CPU computes in 16 bit where it is told to
    ],
)
def test_the_energy_is_that_of_the_machine(run, config, gpus, dtype, says):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"gpus": gpus, "dtype": dtype}))
    assert says in render("merged", run, config, FACTS)


NEEDED = [
    ("run.json", "training", "steps"),
    ("run.json", "training", "best_eval_loss"),
    ("run.json", "peak_memory_gib"),
    ("run.json", "parameters"),
    ("run.json", "gpus"),
    ("run.json", "versions"),
    ("run.json", "git_commit"),
    ("run.json", "seconds", "evaluation"),
    ("run.json", "sources", "lora.r"),
    ("metrics.json", "comparison", "bits_per_byte", "difference"),
    ("metrics.json", "tuned", "rougeL"),
    ("metrics.json", "decoding", "repetition_penalty"),
    ("metrics.json", "test", "rows_generated"),
    ("data_report.json", "rows_read"),
    ("data_report.json", "splits", "train", "exchanges"),
    ("data_report.json", "duplicates", "near"),
]


@pytest.mark.parametrize("where", NEEDED, ids=".".join)
def test_a_number_that_is_missing_is_an_error_with_its_name(run, config, where):
    file, *keys = where
    tree = json.loads((run / file).read_text())
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    (run / file).write_text(json.dumps(tree))
    with pytest.raises(UserError, match=keys[-1]):
        render("merged", run, config, FACTS)


def test_a_template_never_leaves_a_blank():
    with pytest.raises(UserError, match="front_matter"):
        fill("base.md.j2", {"title": "x"})
    assert {path.name for path in TEMPLATES.iterdir()} == {
        "_results.md.j2",
        "adapter.md.j2",
        "base.md.j2",
        "merged.md.j2",
        "space.md.j2",
    }


@pytest.mark.parametrize(
    ("licence", "repo", "warned"),
    [
        ("llama3.1", "user/bn-empathy", True),
        ("llama3.1", "user/Llama-bn-empathy", False),
        ("llama3.1", "Llama/bn-empathy", True),  # the owner's name is not the model's
        ("gemma", "user/bn-empathy", False),
        ("", "user/bn-empathy", False),
    ],
)
def test_the_naming_clause_of_llama(licence, repo, warned):
    warning = naming_warning(licence_of(licence), repo)
    assert bool(warning) == warned
    if warned:
        assert "you shall also include “Llama” at the beginning of any such AI model name" in warning
        assert "--repo" in warning


def test_an_unknown_licence_is_not_made_up(run, config):
    data = yaml.safe_load(render("merged", run, config, replace(FACTS, licence=licence_of(""))).split("---\n")[1])
    assert (data["license"], data["license_name"]) == ("other", "base-model")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("এক\nদুই", "এক দুই"),
        ("<b>x</b> | *y*", "&lt;b\\>x&lt;/b\\> \\| \\*y\\*"),
        ("1. এক", "1\\. এক"),
        ("- এক", "\\- এক"),
        ("---", "\\---"),
        ("১. এক, 12 টা", "১. এক, 12 টা"),  # Markdown counts in other digits
        ("", "(nothing)"),
    ],
)
def test_a_reply_cannot_change_the_card(text, expected):
    assert quoted(text) == expected


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "60 s"), (256.5, "4 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


CORPUS = "এই কথাটা শুধু প্রশিক্ষণের তথ্যে আছে, আর কোথাও থাকার কথা নয়, তাই এখানে থাকলে ভুল।"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.json", '{"token": "hf_' + "A" * 34 + '"}', "a Hugging Face token"),
        ("a.py", "key = 'sk-proj-" + "a1" * 20 + "'", "an OpenAI key"),
        ("a.txt", "AKIA" + "A1" * 8, "an AWS key"),
        ("a.txt", "-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("a.txt", "my own secret", "the token in use"),
        ("README.md", f"see: {CORPUS} …", "text of the corpus"),
        ("kto.jsonl", "{}", "people's ratings"),
        ("x/ratings-1.csv", "", "people's ratings"),
        ("ratings.csv", "", "people's ratings"),
        ("train.jsonl", "", "never published"),
        (".env", "", "never published"),
    ],
)
def test_the_scan_names_the_file_and_not_the_text(tmp_path, name, content, found):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        scan(tmp_path, ["my own secret", ""], [CORPUS, "ছোট"])
    assert f"{name}: {found}" in str(caught.value).replace("a file that is ", "")
    assert len(content) < 20 or content not in str(caught.value)


def test_the_scan_lets_honest_files_through(tmp_path):
    shutil.copytree(TEMPLATES, tmp_path / "cards")
    (tmp_path / "model.safetensors").write_bytes(b"hf_" + b"A" * 40)  # random bytes may look like anything
    (tmp_path / "tokenizer.json").write_text('{"hf_short": 1, "sk-": 2}')
    scan(tmp_path, ["", "secret"], [CORPUS])
    (tmp_path / "notes.md").write_text("hf_" + "A" * 40)  # the same in a text is a key
    with pytest.raises(UserError, match=r"notes\.md"):
        scan(tmp_path, ["", "secret"], [CORPUS])


@pytest.mark.parametrize("folder", ["bnft", "model_card", "notebooks", "recipes"])
def test_this_repository_holds_no_key(folder):
    assert scan(Path(TEMPLATES.parent / folder), [], []) is None
