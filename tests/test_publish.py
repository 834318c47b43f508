"""`publish.py` as a person runs it, against a small Hub on this machine: from a run to repositories that load.

The round trip: train -> publish -> plain transformers and PEFT -> the same replies -> the chat.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file

from bnft.config import REPOSITORY, resolve
from bnft.errors import UserError
from bnft.publishing import Publication
from bnft.records import RunDirectory
from bnft.wishes import Wishes
from tests.hub_server import running_hub, wait_for
from tests.publisher import REPO, Person, card_of, name_base
from tests.test_hub import hub, told  # noqa: F401 (fixtures)

PROMPT = "আজ মনটা ভালো নেই।"


def in_a_new_python(person, *words, cwd=REPOSITORY):
    """As in a shell; everything else is forked from a Python that has its libraries imported already."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=person.environment, capture_output=True, text=True, timeout=540)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "hf_" + "w" * 34 not in output
    return output


@pytest.fixture(scope="module")
def published(finished, tiny, tmp_path_factory):
    """A run that was published once: the server, the person, the run and what was printed."""
    home = tmp_path_factory.mktemp("publisher")
    copy = shutil.copytree(finished, home / "outputs" / "one")
    with running_hub() as server:
        person = Person(server, Path(tiny.base).parent.parent, home / "home")
        yield server, person, copy, in_a_new_python(person, "publish.py", "--repo", REPO, "--run", copy)


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
    assert "the same" in in_a_new_python(person, "-c", LOADS, PROMPT, REPO, run, tiny.base, cwd=tmp_path)


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
        assert in_a_new_python(person, script, cwd=tmp_path).strip()


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
