"""What the licences of base models ask of whoever publishes a model made from them.

Knows nothing about files or the Hub; a licence is known by the id that the Hub gives it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """One licence.

    Attributes:
        id: as in a card's front matter.
        notice: has to travel with the weights, as the file NOTICE.
        card: what the card says.
        name_begins: what the name of a derived model has to begin with, or "".
        clause: the clause behind `name_begins`, in the licence's own words.
    """

    id: str
    name: str
    link: str = ""
    notice: str = ""
    card: str = ""
    name_begins: str = ""
    clause: str = ""


LLAMA_31 = Licence(
    id="llama3.1",
    name="Llama 3.1 Community License",
    link="https://www.llama.com/llama3_1/license/",
    notice="Llama 3.1 is licensed under the Llama 3.1 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
    card="**Built with Llama.** Use is subject to the Llama 3.1 Acceptable Use Policy "
    "(https://www.llama.com/llama3_1/use-policy/).",
    name_begins="Llama",
    clause="If you use the Llama Materials or any outputs or results of the Llama Materials to create, train, fine "
    "tune, or otherwise improve an AI model, which is distributed or made available, you shall also include “Llama” "
    "at the beginning of any such AI model name. (Llama 3.1 Community License, 1.b.i)",
)
GEMMA = Licence(
    id="gemma",
    name="Gemma Terms of Use",
    link="https://ai.google.dev/gemma/terms",
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    card="Use is subject to the Gemma Prohibited Use Policy (https://ai.google.dev/gemma/prohibited_use_policy). "
    "The weights were changed from Google's: this model is a derivative.",
)
MIT = Licence(id="mit", name="MIT licence", card="The weights were made from random numbers by this program.")
KNOWN = {licence.id: licence for licence in (LLAMA_31, GEMMA, MIT)}


def licence_of(licence_id: str) -> Licence:
    """The licence by its id; one without duties that are known here for any other."""
    if licence_id in KNOWN:
        return KNOWN[licence_id]
    if licence_id:
        return Licence(id=licence_id, name=licence_id)
    return Licence(
        id="other",
        name="that of the base model",
        card="The licence of the base model applies; this program could not tell which one that is.",
    )


def naming_warning(licence: Licence, repo: str) -> str:
    """A warning with the clause when a repository's name breaks a licence's naming rule, else ""."""
    name = repo.rpartition("/")[2]
    if not licence.name_begins or name.startswith(licence.name_begins):
        return ""
    return (
        f"{licence.name}: the name {name!r} does not begin with {licence.name_begins!r}. The clause: {licence.clause}\n"
        f"  For example: --repo {repo.rpartition('/')[0]}/{licence.name_begins}-{name}"
    )
