"""The README against the program: its commands are taken, its map is true, the files that it names are there."""

import re
import shlex

import pytest

import app
import publish
import train
from bnft.config import REPOSITORY, recipe_names
from bnft.flags import parse

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}(.*python .*|make .*)$", README, re.M)
MAP = README.split("## The house", 1)[1].split("\n## ", 1)[0]


PARSERS = {"train.py": train.build_parser, "publish.py": publish.build_parser, "app.py": app.build_parser}


def entries():
    for line in COMMANDS:
        for command in line.split("#")[0].split("&&"):
            words = shlex.split(command)
            if words[:1] == ["python"] and words[1] in PARSERS and "--help" not in words:
                yield pytest.param(words[1], words[2:], id=" ".join(words[1:]))


@pytest.mark.parametrize(("script", "words"), [*entries()])
def test_every_command_is_taken(script, words):
    if script != "train.py":
        PARSERS[script]().parse_args(words)
        return
    recipe = parse(train.build_parser(), words).own.recipe
    assert recipe is None or recipe in recipe_names() or recipe.endswith(".yaml")


def test_the_two_commands_of_a_newcomer_are_there():
    assert "pip install -r requirements.txt && python train.py" in README
    assert "pip install -r requirements-dev.txt && python -m pytest" in README


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.M)
    for line in COMMANDS:
        if line.startswith("make "):
            assert line.split()[1] in targets


def test_every_recipe_is_explained():
    for name in recipe_names():
        assert f"`{name}`" in README


def test_the_map_names_every_room_and_only_rooms():
    rooms = {p.stem for p in (REPOSITORY / "bnft").glob("*.py")} - {"__init__"}
    named = set(re.findall(r"bnft/(\w+)\.py", MAP))
    assert named == rooms


def test_every_path_that_is_named_exists():
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (REPOSITORY / path).exists(), path


def test_every_record_of_a_run_is_explained():
    text = README.split("## What a run leaves", 1)[1].split("\n## ", 1)[0]
    names = ("config.yaml", "run.json", "data_report.json", "splits/", "lora_model/", "checkpoints/", "metrics.json")
    for name in (*names, "GeneratedResponses.csv", "plots/", "LLAMAExperiments.csv", "latest"):
        assert name in text
