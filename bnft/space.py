"""The folder of the chat Space: `app.py`, the rooms that it imports, their data, pinned libraries, front matter.

What is needed is read from the imports, so that nothing has to be listed by hand. Knows nothing about the Hub's API.
"""

from __future__ import annotations

import ast
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.licences import GEMMA, Licence

# Asked for by the libraries at run time, without an import in this program.
ALSO = ("accelerate",)
WITHOUT = ("bitsandbytes", "unsloth", "spaces")
PRIVATE_DATA = ("corpus.csv",)  # the training texts
ZERO_GPU = "zero-a10g"  # hardware with a GPU that is lent by the call
# The library of the lending is not pinned, for the Hub's side moves; of the two Pythons there, 3.10 is too old.
LENDING, LENDING_PYTHON = "spaces>=0.51", "3.12.12"
LARGEST_ON_CPU = 4 * 2**30  # bytes of weights that a Space without a GPU (16 GiB, 2 cores) answers with in time


def stage_space(folder: Path, readme: str, hardware: str = "") -> None:
    """Writes the whole folder anew.

    Args:
        readme: the finished README.md, with front matter.
        hardware: the machine that is asked for, by the Hub's name; "" for its free CPU.
    """
    shutil.rmtree(folder, ignore_errors=True)
    rooms = rooms_behind(REPOSITORY / "app.py")
    data = data_named_in(rooms)
    for path in (REPOSITORY / "app.py", REPOSITORY / "LICENSE", *rooms, *data):
        target = folder / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    libraries = [*requirements(rooms), *([LENDING] if hardware == ZERO_GPU else [])]
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in libraries), encoding="utf-8")
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / "NOTICE").write_text(f"{GEMMA.notice}\n", encoding="utf-8")  # the crisis reader stands on Gemma


def rooms_behind(entry: Path) -> list[Path]:
    """The modules of this package that a script needs, directly or through others; lazy imports count too."""
    found: dict[Path, None] = {REPOSITORY / "bnft" / "__init__.py": None}
    waiting = [entry]
    while waiting:
        for name in _imports(waiting.pop()):
            package, _, rest = name.partition(".")
            path = REPOSITORY / "bnft" / f"{rest.partition('.')[0]}.py"
            if package == "bnft" and path.is_file() and path not in found:
                found[path] = None
                waiting.append(path)
    return sorted(found)


def data_named_in(rooms: list[Path]) -> list[Path]:
    """Files of data/ that a room names, and what lies beside the rooms: fonts, styles, chat templates."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in rooms)
    data = [p for p in sorted((REPOSITORY / "data").iterdir()) if p.name in text and p.name not in PRIVATE_DATA]
    beside = [p for name in ("assets", "chat_templates") for p in sorted((REPOSITORY / "bnft" / name).rglob("*"))]
    return data + [path for path in beside if path.is_file() and "__pycache__" not in path.parts]


def requirements(rooms: list[Path]) -> list[str]:
    """Every library that the rooms import, at exactly the version that is installed here."""
    names = {name.partition(".")[0] for path in (REPOSITORY / "app.py", *rooms) for name in _imports(path)}
    known = metadata.packages_distributions()
    wanted = {*ALSO}
    for name in names - set(sys.stdlib_module_names) - {"bnft", *WITHOUT}:
        if name not in known:
            raise UserError(f"the Space needs {name}, which is not installed", "pip install -r requirements.txt")
        wanted.add(known[name][0])
    # A version such as 2.13.0+cpu is one machine's build; the number before the plus is what can be installed.
    return sorted(f"{name}=={metadata.version(name).partition('+')[0]}" for name in wanted)


def front_matter(title: str, model: str, licence: Licence, hardware: str = "") -> str:
    """The Space's settings, as the Hub reads them from README.md."""
    own_python = ".".join(platform.python_version_tuple()[:2])
    values: dict[str, Any] = {
        "title": title,
        "emoji": "🌿",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "python_version": LENDING_PYTHON if hardware == ZERO_GPU else own_python,
        "app_file": "app.py",
        "short_description": "বাংলায় মন খুলে কথা বলুন",
        "models": [model],
        **licence.front_matter(),
    }
    if hardware:
        values["suggested_hardware"] = hardware
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False).strip()


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "bnft":
                yield from (f"bnft.{alias.name}" for alias in node.names)
