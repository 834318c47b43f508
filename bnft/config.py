"""Settings of a run (bnft/settings.py), read from a recipe and from flags, each with where it came from.

The only reader of the environment. Knows nothing about models, data or GPUs: what those decide reaches the settings
through `RunConfig.replace`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bnft.errors import UserError
from bnft.settings import DEFAULTS, FIELD_NAMES, RunConfig, assign

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = REPOSITORY / "recipes"
_HELP = "Every setting with its meaning: python train.py --help"

# Libraries that report on their users read these when they are imported; the package imports this room before any.
for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL's trainer sends some, too
    "GRADIO_ANALYTICS_ENABLED": "False",
    "UNSLOTH_DISABLE_STATISTICS": "1",
}.items():
    os.environ.setdefault(_name, _value)


def cache_dir() -> Path:
    """Where converted models are kept: `BNFT_CACHE`, or `bnft` in the user's cache folder."""
    named = os.environ.get("BNFT_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/bnft"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:  # ~nobody, or a user without a home
        raise UserError(f"no cache at {named}: {error}", "Set BNFT_CACHE to a folder that can be written.") from error


def path_of(written: str | Path) -> Path:
    """A path as people write it, `~` for their home folder; one that no file can have is refused."""
    try:
        path = Path(written).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no access; ~nobody; a NUL in it
        raise UserError(f"{str(written)[:200]!r} is no path that can be used: {error}", "Give another one.") from error
    return path


def default_environment(name: str, value: str) -> None:
    """Sets an environment variable that a library reads at its import, unless the user has set it."""
    os.environ.setdefault(name, value)


def from_environment(name: str, absent: str | None = "") -> str | None:
    """A value that only the environment gives, or what stands for its absence."""
    return os.environ.get(name, absent)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def resolve(recipe: str, flags: dict[str, Any]) -> tuple[RunConfig, dict[str, str]]:
    """Recipe, then flags over it.

    Args:
        recipe: name of a recipe of this repository, or path of a YAML file.
        flags: dotted field name to value (text is converted).

    Returns:
        The settings, and for every dotted field where its value came from.

    Raises:
        UserError: with every unknown key and every bad value at once.
    """
    tree = _read_recipe(recipe)
    sources = dict.fromkeys(FIELD_NAMES, "default")
    unknown = []
    given = dict(_flatten(tree))
    merged: dict[str, Any] = {}
    for name, value in given.items():
        if name in sources:
            sources[name] = f"recipe {Path(recipe).stem}"
            assign(merged, name, value)
        else:
            unknown.append((name, f"recipe {recipe}"))
    for name, value in flags.items():
        if name in sources:
            sources[name] = f"flag --{name}"
            assign(merged, name, _from_flag(name, value))
        else:
            unknown.append((name, "flag"))
    problems = [f"unknown setting {name!r} ({where}){_nearest(name)}" for name, where in unknown]
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        problems += [_describe(item) for item in error.errors()]
    if problems:
        raise UserError("\n  ".join(problems), _HELP)
    return config, sources


def check_values(flags: dict[str, Any]) -> None:
    """Refuses values that are wrong whatever the recipe says, as `resolve` will once there is one."""
    given: dict[str, Any] = {}
    for name, value in flags.items():
        assign(given, name, _from_flag(name, value))
    try:
        RunConfig.model_validate(given)
    except ValidationError as error:
        # a "value_error" is about several settings, of which a recipe may change the others
        problems = [_describe(item) for item in error.errors() if item["type"] != "value_error"]
        if problems:
            raise UserError("\n  ".join(problems), _HELP) from error


def _from_flag(name: str, value: Any) -> Any:
    """A flag's text as the field takes it: "none" where None is allowed, "a,b" for a list; pydantic does the rest."""
    default = DEFAULTS[name]
    if default is None and value in ("none", "null"):
        return None
    if isinstance(default, tuple) and isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value


class _RecipeLoader(yaml.SafeLoader):
    """Refuses a key that stands twice; PyYAML takes the last one, and the settings of the first are lost unseen."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Node] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if first.setdefault(key.value, key) is not key:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark)
        return node


def _read_recipe(recipe: str) -> dict:
    path = RECIPES / f"{recipe}.yaml"
    if recipe not in recipe_names():
        path = path_of(recipe)
    if not path.is_file():
        raise UserError(
            f"no recipe {recipe!r}{_nearest(recipe, recipe_names())}",
            f"Take one of {', '.join(recipe_names())}, or the path of a YAML file.",
        )
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)
    except (yaml.YAMLError, OSError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML stumbles in its own ways over a 31st of February, an empty !!int, thousands of brackets
        raise UserError(f"recipe {path} is no valid YAML: {error}", "Compare it with recipes/laptop.yaml.") from error
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} holds no settings", "Compare it with recipes/laptop.yaml.")
    return tree


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if value is None and name in RunConfig.model_fields:
            continue  # a section without settings, as "train:" alone
        if isinstance(value, dict) and name in RunConfig.model_fields:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _nearest(name: str, known: tuple[str, ...] | list[str] = FIELD_NAMES) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # "rank" is nearer to "lora.r" by its last part than as a whole
        tails = {field.rsplit(".", 1)[-1]: field for field in known}
        close = [tails[tail] for tail in difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1)]
    return f"; nearest: {close[0]!r}" if close else ""


def _describe(item: dict) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    # pydantic's location goes on into the members of a union, a field's name does not
    parts = [str(part) for part in item["loc"]]
    name = next((".".join(parts[:n]) for n in (1, 2) if ".".join(parts[:n]) in FIELD_NAMES), ".".join(parts))
    got = repr(item["input"])
    return f"{name}: got {got[:200]}{'...' * (len(got) > 200)}: {message[0].lower()}{message[1:]}"


def to_yaml(config: RunConfig, sources: dict[str, str]) -> str:
    """The settings as a recipe file that can be used again, each line with its source as a comment."""
    lines = []
    section = None
    for name in FIELD_NAMES:
        head, _, tail = name.rpartition(".")
        if head and head != section:
            lines.append(f"{head}:")
            section = head
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        value = list(value) if isinstance(value, tuple) else value
        # Only double quotes hold line breaks, U+0085 and their like on one line.
        style = None if "".join(value if isinstance(value, list) else str(value)).isprintable() else '"'
        text = yaml.safe_dump(
            value, allow_unicode=True, default_flow_style=True, default_style=style, width=float("inf")
        )
        text = text.removesuffix("\n").removesuffix("\n...")
        lines.append(f"{'  ' if head else ''}{tail}: {text}  # {sources[name]}")
    return "\n".join(lines) + "\n"
