"""`publish.py` as a person runs it, against a small Hub on this machine: from a run to repositories that load.

The round trip: train -> publish -> plain transformers and PEFT -> the same replies -> the chat.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file

import train
from bnft.config import REPOSITORY, resolve
from bnft.errors import UserError
from bnft.publishing import Publication
from bnft.records import RunDirectory
from bnft.wishes import Wishes
from tests.hub_server import running_hub, wait_for
from tests.test_hub import hub, told  # noqa: F401 (fixtures)

REPO = "user/bn-empathy"
PROMPT = "আজ মনটা ভালো নেই।"


@pytest.fixture(scope="module")
def cache(tiny):
    """The cache folder that holds the tiny model."""
    return Path(tiny.base).parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A finished smoke run."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNFT_CACHE", str(cache))
        assert train.main(["--recipe", "smoke", "--output-dir", str(folder), "--run-name", "one"]) == 0
    return folder / "one"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run: staging writes into it."""
    return Path(shutil.copytree(finished, tmp_path / "outputs" / "one", ignore=shutil.ignore_patterns("publish")))


@pytest.fixture
def server():
    with running_hub() as running:
        yield running


class Person:
    """Somebody at a terminal, with a token and a home of their own."""

    def __init__(self, server, cache, home):
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment |= {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": server.write_token,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # the small Hub speaks plain LFS
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "BNFT_CACHE": str(cache),
        }

    def start(self, *words, cwd=REPOSITORY):
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a job in a shell's background ignores Ctrl+C, and what it starts would inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def does(self, *words, code=0, **options):
        process = self.start(*words, **options)
        output, _ = process.communicate(timeout=540)
        assert process.returncode == code, output
        assert "hf_" + "w" * 34 not in output
        return output

    def publishes(self, run, *words, code=0):
        output = self.does("publish.py", "--repo", REPO, "--run", run, *words, code=code)
        assert code == 0 or "Traceback" not in output
        return output


@pytest.fixture
def person(server, cache, tmp_path):
    return Person(server, cache, tmp_path / "home")


@pytest.fixture(scope="module")
def published(finished, cache, tmp_path_factory):
    """A run that was published once: the server, the person, the run and what was printed."""
    home = tmp_path_factory.mktemp("publisher")
    copy = shutil.copytree(finished, home / "outputs" / "one")
    with running_hub() as server:
        person = Person(server, cache, home / "home")
        yield server, person, copy, person.publishes(copy)


def test_the_repositories_are_there_public_and_linked(published):
    server, _, _, output = published
    for name, kind in (
        (REPO, "model"),
        (f"{REPO}-lora", "model"),
        (f"{REPO}-base", "model"),
        (f"{REPO}-chat", "space"),
    ):
        repo = server.repo(name, kind)
        assert not repo.private
        assert f"{server.url}/{'spaces/' if kind == 'space' else ''}{name}\n" in output
    (collection,) = server.collections.values()
    assert not collection["private"]
    assert {item["id"] for item in collection["items"]} == {name for _, name in server.repos}
    assert f"/collections/{collection['slug']}" in output


def card_of(server, name, kind="model"):
    text = server.content(server.repo(name, kind).files()["README.md"]).decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def test_the_cards_refer_to_one_another(published):
    server, _, _, _ = published
    merged, text = card_of(server, REPO)
    adapter, _ = card_of(server, f"{REPO}-lora")
    base, _ = card_of(server, f"{REPO}-base")
    space, _ = card_of(server, f"{REPO}-chat", "space")
    assert (merged["base_model"], merged["base_model_relation"]) == (f"{REPO}-base", "finetune")
    assert (adapter["base_model"], adapter["base_model_relation"]) == (f"{REPO}-base", "adapter")
    assert "base_model" not in base
    assert space["models"] == [REPO]
    for name in ("-lora", "-chat"):
        assert f"{REPO}{name}](" in text


def test_no_folder_of_this_machine_and_no_training_text_was_sent(published, finished):
    server, _, run, _ = published
    splits = [
        json.loads(line) for line in (finished / "splits" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    trained = [message["content"] for row in splits for message in row["messages"]]
    for (kind, _), repo in server.repos.items():
        for path, entry in repo.files().items():
            if path.endswith((".safetensors", ".png", ".ttf", ".woff2")):
                continue
            text = server.content(entry).decode()
            assert str(run) not in text, path
            assert str(Path.home()) not in text, path
            if kind == "model":
                assert not [line for line in trained if len(line) > 40 and line in text], path


LOADS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM, PeftModel

def reply(model, where):
    tokenizer = AutoTokenizer.from_pretrained(where)
    messages = [{"role": "system", "content": "শুনুন।"}, {"role": "user", "content": sys.argv[1]}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=24, temperature=None, top_p=None)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1]:])

repo, run, base = sys.argv[2:]
merged = AutoModelForCausalLM.from_pretrained(repo)
local = AutoModelForCausalLM.from_pretrained(f"{run}/publish/merged")
assert merged.dtype == torch.bfloat16
assert reply(merged, repo) == reply(local, f"{run}/publish/merged") != ""
adapter = AutoPeftModelForCausalLM.from_pretrained(f"{repo}-lora")
here = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{run}/lora_model")
assert reply(adapter, f"{repo}-lora") == reply(here, f"{run}/lora_model") != ""
assert adapter.peft_config["default"].base_model_name_or_path == f"{repo}-base"
again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), f"{run}/lora_model")
weights = again.merge_and_unload().state_dict()
assert all(torch.equal(weights[name], value) for name, value in merged.state_dict().items())
print("the same")
"""


@pytest.mark.slow
def test_what_is_on_the_hub_loads_with_plain_libraries_and_replies_the_same(published, tiny, tmp_path):
    _, person, run, _ = published
    assert "the same" in person.does("-c", LOADS, PROMPT, REPO, run, tiny.base, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [REPO, f"{REPO}-lora"])
def test_the_card_s_own_lines_run(published, tmp_path, name):
    server, person, _, _ = published
    _, text = card_of(server, name)
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == (2 if name == REPO else 1)
    for number, block in enumerate(blocks):
        script = tmp_path / f"{number}.py"
        script.write_text("import torch; torch.manual_seed(0)\n" + block, encoding="utf-8")
        assert person.does(script, cwd=tmp_path).strip()


@pytest.mark.slow
def test_publishing_again_sends_nothing(published):
    server, person, run, _ = published
    commits = {key: len(repo.log) for key, repo in server.repos.items()}
    output = person.publishes(run)
    assert "not made again" in output
    assert len(re.findall(r": 0 of \d+ files were new or changed", output)) == 4
    assert {key: len(repo.log) for key, repo in server.repos.items()} == commits


@pytest.mark.slow
def test_a_dry_run_asks_no_network_and_lists_the_files(run, person, server):
    person.environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""}
    output = person.publishes(run, "--dry-run", "--compare-rows", "0")
    assert server.requests == []
    for name in ("merged/model.safetensors", "adapter/adapter_model.safetensors", "space/app.py", "merged/README.md"):
        path = run / "publish" / name
        assert f"{path.stat().st_size:>14,}  {Path(name).name}\n" in output
    assert "nothing was sent" in output
    assert "switched off" in (run / "publish" / "merged" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_on_a_small_disk_no_merged_shard_stays(run, person, server):
    person.publishes(run, "--low-disk", "--only", "merged")
    assert not list((run / "publish" / "merged").glob("*.safetensors"))
    assert "model.safetensors" in server.repo(REPO).files()
    assert "small disk" in card_of(server, REPO)[1]


def name_base(run, base):
    """Gives the adapter another base, as somebody does who knows what they do."""
    notes = json.loads((run / "lora_model" / "bnft.json").read_text())
    (run / "lora_model" / "bnft.json").write_text(json.dumps(notes | {"base_model": base}))
    (run / "lora_model" / "manifest.json").unlink()


@pytest.mark.slow
def test_a_four_bit_base_on_the_hub_is_merged_through_its_16_bit_twin(run, person, server, tiny, tmp_path):
    """As for unsloth's Llama: trained on NAME-bnb-4bit, merged into NAME, one downloaded shard at a time."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny.base).save_pretrained(tmp_path / "twin", max_shard_size="300KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "twin").iterdir()}
    server.add("somebody/Llama-3.1-tiny", files)
    settings = json.loads(files["config.json"]) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    server.add("somebody/Llama-3.1-tiny-bnb-4bit", {"config.json": json.dumps(settings).encode()})
    name_base(run, "somebody/Llama-3.1-tiny-bnb-4bit")
    output = person.publishes(run, "--low-disk", "--only", "adapter,merged")
    assert "base: somebody/Llama-3.1-tiny, the 16-bit weights behind somebody/Llama-3.1-tiny-bnb-4bit" in output
    assert "you shall also include “Llama” at the beginning" in output
    assert set(server.repos) >= {("model", REPO), ("model", f"{REPO}-lora")}
    assert ("model", f"{REPO}-base") not in server.repos
    adapter, merged = (card_of(server, name)[0] for name in (f"{REPO}-lora", REPO))
    assert adapter["base_model"] == "somebody/Llama-3.1-tiny-bnb-4bit"
    assert merged["base_model"] == "somebody/Llama-3.1-tiny"
    assert adapter["license"] == merged["license"] == "llama3.1"
    sent = server.repo(REPO).files()
    shards = [name for name in sent if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert "model.safetensors.index.json" in sent
    assert b"quantization_config" not in server.content(sent["config.json"])
    assert not list((run / "publish" / "merged").glob("*.safetensors"))
    assert not list(Path(person.environment["HF_HOME"]).rglob("*.safetensors")), "a downloaded shard stayed"


@pytest.mark.slow
def test_a_part_of_it_privately_on_a_branch(run, person, server):
    output = person.publishes(run, "--only", "adapter", "--private", "--revision", "try")
    assert set(server.repos) == {("model", f"{REPO}-lora"), ("model", f"{REPO}-base")}
    repo = server.repo(f"{REPO}-lora")
    assert repo.private
    assert "adapter_model.safetensors" in repo.files("try")
    assert "adapter_model.safetensors" not in repo.files("main")
    assert f"{server.url}/{REPO}-lora/tree/try" in output
    assert "the card of the merged model" in person.publishes(run, "--only", "card", code=2)


@pytest.mark.slow
def test_only_the_cards_change_with_only_card(published):
    server, person, run, _ = published
    files = {name: dict(server.repo(name).files()) for name in (REPO, f"{REPO}-lora")}
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"decoding": metrics["decoding"] | {"method": "greedy!"}}))
    try:
        person.publishes(run, "--only", "card")
        for name, before in files.items():
            after = server.repo(name).files()
            assert [path for path in before if before[path] != after[path]] == ["README.md"]
    finally:
        (run / "metrics.json").write_text(json.dumps(metrics))
        person.publishes(run, "--only", "card")


def tells(server, name):
    """Weights and card of a repository."""
    files = server.repo(name).files()
    return {path: entry["oid"] for path, entry in files.items() if path.endswith((".safetensors", "README.md"))}


@pytest.mark.slow
def test_no_card_goes_to_weights_that_it_does_not_tell_of(run, server, hub, tiny, monkeypatch):  # noqa: F811
    """In this process, with its own publications: the command's flags are tried above."""
    monkeypatch.setenv("BNFT_CACHE", str(Path(tiny.base).parent.parent))
    directory, config = RunDirectory(run), resolve(str(run / "config.yaml"), {})[0]

    def publish(*parts, low_disk=False):
        wishes = Wishes(REPO, parts, low_disk=low_disk, compare_rows=0)
        publication = Publication(directory, config, wishes, hub, None, lambda text: None)
        publication.publish(publication.stage())

    publish("merged", "adapter", "card", low_disk=True)
    before = tells(server, REPO)
    publish("adapter", "card")
    assert tells(server, REPO).keys() == before.keys(), "weights that are on no disk any more stay on the Hub"
    # somebody else's weights
    repo = server.repo(f"{REPO}-lora")
    repo.commit("main", repo.files() | {"adapter_model.safetensors": server._entry(b"other", True)}, "by hand")
    before = tells(server, REPO), tells(server, f"{REPO}-lora")
    with pytest.raises(UserError, match=f"other weights than those in {REPO}-lora"):
        publish("card")
    # another adapter in the run's place, measured, but not merged
    weights = run / "lora_model" / "adapter_model.safetensors"
    save_file({name: 5 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    metrics = json.loads((run / "metrics.json").read_text())
    with pytest.raises(UserError, match="measured with other weights"):
        publish("card")
    del metrics["adapter"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    for parts in (("card",), ("adapter", "card"), ("card", "space")):
        with pytest.raises(UserError, match="was not merged yet"):
            publish(*parts)
    assert (tells(server, REPO), tells(server, f"{REPO}-lora")) == before
    publish("merged", "card")
    assert tells(server, REPO)["model.safetensors"] != before[0]["model.safetensors"]
    assert tells(server, f"{REPO}-lora")["adapter_model.safetensors"] != before[1]["adapter_model.safetensors"]


@pytest.mark.slow
def test_one_publication_of_a_run_at_a_time(run, person, server):
    with RunDirectory(run).held():
        assert "another process is at work in the run" in person.publishes(run, "--dry-run", code=2)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_in_mid_upload_leaves_nothing_public_and_a_rerun_completes(run, person, server, number, code):
    server.fail("POST", "/commit/", 503, times=10_000)
    process = person.start("publish.py", "--repo", REPO, "--run", run, "--compare-rows", "0")
    wait_for(lambda: any("/commit/" in request for request in list(server.requests)), 240)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert all(repo.private for repo in server.repos.values())
    assert all(set(repo.files()) == {".gitattributes"} for repo in server.repos.values())
    server.faults.clear()
    sent = list(server.uploaded)
    (run / "publish" / "merged" / ".bnft.json.part").write_text("{")  # as a process leaves it that is killed in writing
    assert "not made again" in person.publishes(run, "--compare-rows", "0")
    assert not any(repo.private for repo in server.repos.values())
    assert len(set(server.uploaded)) == len(server.uploaded) > len(sent), "bytes were sent twice"
    assert not [path for repo in server.repos.values() for path in repo.files() if path.endswith(".part")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(("PUT", "/lfs/", 0), id="cut-connection-in-mid-file"),
        pytest.param(("POST", f"/api/models/{REPO}-lora/commit", 500), id="server-errors"),
    ],
)
def test_a_lasting_fault_leaves_nothing_public_and_a_rerun_completes(run, person, server, fault):
    server.fail(*fault, times=10_000)
    output = person.publishes(run, "--compare-rows", "0", code=1)
    assert "Run the same command again" in output
    assert all(repo.private for repo in server.repos.values())
    server.faults.clear()
    person.publishes(run, "--compare-rows", "0")
    assert not any(repo.private for repo in server.repos.values())


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, and what changes its size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(disk)], capture_output=True).returncode == 0

    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=200m", "none"):
        pytest.skip("this machine lets nobody mount a tmpfs")
    yield disk, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_before_anything_is_sent_and_a_rerun_completes(finished, person, server, small_disk):
    disk, resize = small_disk
    run = shutil.copytree(finished, disk / "one", ignore=shutil.ignore_patterns("publish"))
    used = shutil.disk_usage(disk).used
    for room, words, said in (
        (2**17, ["--only", "adapter"], "the disk is full"),
        (2**22, [], "the merged weights need"),
    ):
        assert resize(used + room)
        output = person.publishes(run, *words, code=1)
        assert said in output
        assert server.repos == {}
    assert resize("200m")
    person.publishes(run, "--compare-rows", "0")
    assert len(server.repos) == 4
    assert not any(repo.private for repo in server.repos.values())


@pytest.mark.slow
def test_a_disk_that_fills_up_between_two_shards(run, person, server, tiny, small_disk, tmp_path):
    """Shards of the base come onto it one by one; there is room for the first one only."""
    from safetensors import torch as safetensors

    disk, resize = small_disk
    weights = safetensors.load_file(Path(tiny.base) / "model.safetensors")
    small = {name: value for name, value in weights.items() if ".layers." in name}  # 148 KB; the others 525 KB
    large = {name: value for name, value in weights.items() if name not in small}
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files = {name: safetensors.save(part) for name, part in zip(names, (small, large), strict=True)}
    places = dict.fromkeys(small, names[0]) | dict.fromkeys(large, names[1])
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    files["config.json"] = (Path(tiny.base) / "config.json").read_bytes()
    server.add("somebody/tiny", files)
    name_base(run, "somebody/tiny")
    shards = run / "publish" / "shards"
    shards.mkdir(parents=True)
    subprocess.run(["mount", "--bind", disk, shards], check=True)
    assert resize("400k")
    try:
        output = person.publishes(run, "--low-disk", "--only", "merged", code=1)
    finally:
        subprocess.run(["umount", shards], check=True)
    assert "the disk is full" in output
    assert len(server.uploaded) == 1
    assert server.repo(REPO).private
    assert not list(disk.iterdir()), "what was downloaded in part keeps the disk full"
    sent = list(server.uploaded)
    person.publishes(run, "--low-disk", "--only", "merged")
    assert not server.repo(REPO).private
    assert len(set(server.uploaded)) == len(server.uploaded) > len(sent), "bytes were sent twice"
    card, text = card_of(server, REPO)
    assert (card["license"], card["license_name"]) == ("other", "base-model")
    assert card["license_link"] == "https://huggingface.co/somebody/tiny"
    assert "could not tell which one that is" in text


def test_a_key_in_a_file_stops_everything(run, person, server):
    notes = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(notes | {"note": "hf_" + "a" * 34}))
    output = person.publishes(run, "--only", "adapter", code=2)
    assert "metrics.json: a Hugging Face token" in output
    assert "a" * 34 not in output
    assert server.repos == {}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def strip(path, *keys):
    value = json.loads(path.read_text())
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda run: (run / "metrics.json").unlink(), "--eval-only"),
        (lambda run: strip(run / "run.json", "training", "seconds"), "'seconds'"),
        (lambda run: strip(run / "metrics.json", "tuned", "chrf"), "'chrf'"),
        (lambda run: (run / "plots" / "loss.png").unlink(), "plots/loss.png"),
        (lambda run: shutil.rmtree(run / "lora_model"), "no lora_model/"),
        (lambda run: shutil.rmtree(run), "no run folder"),
        (lambda run: flip(run / "lora_model" / "adapter_model.safetensors"), "checksum of adapter_model.safetensors"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(run, person, server, harm, said):
    harm(run)
    assert said in person.publishes(run, code=2)
    assert server.repos == {}


def test_a_base_that_is_gone_is_told(run, person, server):
    name_base(run, "somebody/gone")
    output = person.publishes(run, code=2)
    assert "somebody/gone" in output
    assert server.repos == {}


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        ([], None, "hf auth login"),
        ([], "hf_" + "r" * 34, "may only read"),
        (["--repo", "somebody/x"], None, "hf auth login"),
        (["--repo", "x"], "hf_" + "w" * 34, "no owner"),
        (["--repo", "user/x--y"], "hf_" + "w" * 34, "takes no repository"),
        (["--repo", "somebody/x"], "hf_" + "w" * 34, "not yours"),
        (["--only", "weights"], "hf_" + "w" * 34, "none of the parts"),
        (["--run", "nowhere"], "hf_" + "w" * 34, "no run folder"),
        (["--dry-run", "--low-disk"], "hf_" + "w" * 34, "--low-disk keeps none"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(run, person, server, words, token, said):
    person.environment["HF_TOKEN"] = token or ""
    output = person.publishes(run, *words, code=2)
    assert said in output
    assert server.repos == {}


# -- the chat, as the Space runs it ------------------------------------------------------------------------------


def needed(requirements):
    """The installed distributions that a requirements file asks for, directly or through others."""
    found, waiting = {}, [Requirement(line) for line in requirements.splitlines()]
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        if name in found or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        found[name] = metadata.distribution(name)
        assert asked.specifier.contains(found[name].version.partition("+")[0], prereleases=True), asked
        waiting += [Requirement(line) for line in found[name].requires or ()]
    return found.values()


def fresh_environment(folder, requirements):
    """A virtual environment with what `pip install -r` would put there, linked instead of fetched; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in needed(requirements):
        for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."} - {"__pycache__", "bin"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def space(published, tmp_path_factory):
    """The Space's files as the Hub has them, started as the Hub starts them; yields the address."""
    server, person, _, _ = published
    folder = tmp_path_factory.mktemp("space")
    repo = server.repo(f"{REPO}-chat", "space")
    for path, entry in repo.files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(server.content(entry))
    python = fresh_environment(tmp_path_factory.mktemp("venv"), (folder / "requirements.txt").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in person.environment.items() if name not in ("HF_TOKEN", "BNFT_CACHE")}
    environment |= repo.variables | {"GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    environment |= {"HF_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen([str(python), "app.py"], cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        wait_for(lambda: process.poll() is not None or "open http" in log.read_text(), 300)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_the_space_replies_with_nothing_but_its_own_requirements(space):
    from gradio_client import Client

    address, log = space
    assert f"model: {REPO} (as set)" in log.read_text()
    frames = list(Client(address, verbose=False).submit(PROMPT, max_new_tokens=16, api_name="/chat"))
    assert frames[-1]["finished"]
    assert frames[-1]["text"].strip()


@pytest.mark.slow
@pytest.mark.browser
def test_a_visitor_of_the_space_reads_a_reply_as_it_is_written(space):
    sync_api = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if not binary:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(space[0])
        page.fill("#message textarea", PROMPT)
        page.press("#message textarea", "Enter")
        page.wait_for_selector("#stop", state="visible")
        page.wait_for_selector("#stop", state="hidden")
        page.wait_for_selector("#send", state="visible")
        assert page.inner_text("#chat [data-testid=bot]").strip()
        browser.close()


def test_the_space_is_told_its_model_and_keeps_no_token(published):
    server, _, _, _ = published
    repo = server.repo(f"{REPO}-chat", "space")
    assert repo.variables == {"BNFT_MODEL": REPO}
    assert repo.secrets == {}
    assert "data/corpus.csv" not in repo.files()
    for line in server.content(repo.files()["requirements.txt"]).decode().splitlines():
        assert re.fullmatch(r"[\w.-]+==\d[\w.]*", line)
