"""What the licences of base models ask of whoever publishes a model made from them.

Knows nothing about files or the Hub; a licence is known by the id that the Hub gives it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml


@dataclass(frozen=True)
class Licence:
    """One licence.

    Attributes:
        id: as in a card's front matter; "other" for one that the Hub has no id for.
        label: the short name of such a one, "" where nobody told.
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
    label: str = ""

    def front_matter(self) -> dict[str, str]:
        """What a card's front matter says about it."""
        if self.id != "other":
            return {"license": self.id}
        link = {"license_link": self.link} if self.link else {}
        return {"license": self.id, "license_name": self.label or "base-model"} | link

    @property
    def shown(self) -> str:
        """Its id or short name; "" where it is not known."""
        return self.label if self.id == "other" else self.id


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
KNOWN = {licence.id: licence for licence in (LLAMA_31, GEMMA)}


def licence_of(licence_id: str, page: str = "", label: str = "", link: str = "") -> Licence:
    """The licence by its id; one without duties that are known here for any other, and "other" where there is none.

    Args:
        page: the base model's address, where a licence without an id is to be read.
        label: its short name as the base model's card has it.
        link: its text as that card has it: an address, or a file of the base model's repository.
    """
    if licence_id in KNOWN:
        return KNOWN[licence_id]
    if licence_id not in ("", "other"):
        if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence_id):  # else it is none of the Hub's, which would refuse it
            return Licence(id=licence_id, name=licence_id)
        label = label or licence_id
    if page and link and ":" not in link:
        link = f"{page}/blob/main/{link}"
    if not re.fullmatch(r"https?://[^\s<>\"'`()\[\]\\|]+", link):
        link = ""
    told = "" if label else "; this program could not tell which one that is"
    return Licence(
        id="other",
        name=label or "that of the base model",
        link=link or page,
        card=f"The licence of the base model applies{told}.",
        label=label,
    )


def licence_declared(card: str, page: str) -> Licence | None:
    """What the card of a base model says in its front matter, or None where it says nothing.

    Args:
        page: the base model's address, or "".
    """
    _, fence, rest = card.partition("---\n")
    try:
        values = yaml.safe_load(rest.partition("\n---")[0]) if fence else None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        return None  # PyYAML stumbles in its own ways over a 31st of February, an empty !!int, thousands of brackets
    if not isinstance(values, dict) or not isinstance(values.get("license"), str):
        return None
    label, link = (str(values.get(key) or "") for key in ("license_name", "license_link"))
    return licence_of(values["license"], page, label, link)


def naming_warning(licence: Licence, repo: str) -> str:
    """A warning with the clause when a repository's name breaks a licence's naming rule, else ""."""
    name = repo.rpartition("/")[2]
    if not licence.name_begins or name.startswith(licence.name_begins):
        return ""
    return (
        f"{licence.name}: the name {name!r} does not begin with {licence.name_begins!r}. The clause: {licence.clause}\n"
        f"  For example: --repo {repo.rpartition('/')[0]}/{licence.name_begins}-{name}"
    )
