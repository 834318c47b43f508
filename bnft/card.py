"""The cards of what is published, rendered from a run's records through model_card/*.md.j2.

Nothing is typed by hand: a value that the records lack is an error with its name, never a blank. Knows nothing about
the Hub's API or about weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bnft.config import REPOSITORY
from bnft.corpus_files import is_hub_id
from bnft.crisis_cards import help_lines
from bnft.errors import UserError
from bnft.licences import Licence
from bnft.run_facts import MAIN, code, one_line, quoted, read_run
from bnft.settings import RunConfig
from bnft.text import drop_unseen

TEMPLATES = REPOSITORY / "model_card"


@dataclass(frozen=True)
class Names:
    """The repositories that refer to one another; `base` is where the adapter's base is."""

    merged: str
    adapter: str
    base: str
    space: str


@dataclass(frozen=True)
class Facts:
    """What a card says beyond the run's own records.

    Attributes:
        endpoint: the Hub's address, for links.
        base_shown: the base's name for people.
        merged: what `merge` did, or None where nothing was merged.
        merged_base: repository of the weights that were merged into.
        comparison: merged against adapter, or None, and then `not_compared` says why.
        safety: counts of the chat's crisis detection on held-out messages.
        ratings: counts of people's ratings, or None.
    """

    names: Names
    endpoint: str
    base_shown: str
    base_story: str
    licence: Licence
    safety: dict
    upstream: str = ""
    merged_base: str = ""
    merged: dict | None = None
    comparison: dict | None = None
    not_compared: str = ""
    ratings: dict | None = None


def render(kind: str, folder: Path, config: RunConfig, facts: Facts) -> str:
    """The text of README.md for "merged", "adapter" or "base".

    Raises:
        UserError: the records of the run lack something that the card has to say.
    """
    context = {} if kind == "base" else read_run(folder, config)
    context |= shared(facts, config)
    name = getattr(facts.names, kind)
    context |= {"title": name.partition("/")[2], "front_matter": _front_matter(kind, facts, config, context)}
    return fill(f"{kind}.md.j2", context)


def shared(facts: Facts, config: RunConfig) -> dict[str, Any]:
    """What every card may use."""
    links = {key: f"{facts.endpoint}/{name}" for key, name in asdict(facts.names).items()}
    links["space"] = f"{facts.endpoint}/spaces/{facts.names.space}"
    return {
        "names": facts.names,
        "links": links,
        "licence": facts.licence,
        "base": {"shown": facts.base_shown, "story": facts.base_story},
        "merged": facts.merged,
        "comparison": facts.comparison,
        "not_compared": facts.not_compared,
        "safety": facts.safety,
        "ratings": facts.ratings,
        "system_prompt": config.data.system_prompt,
        "generation": config.generation,
        "max_seq_length": config.model.max_seq_length,
        "help_lines": [f"{line.name_en} {line.tel}, {line.hours_en}" for line in help_lines(None)],
    }


def fill(template: str, context: Mapping[str, Any]) -> str:
    """A template with its values; one that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; texts of models and people pass through `quoted`
        finalize=_tame,
    )
    environment.filters |= {"code": code, "quoted": quoted, "as_is": _as_is, "python_text": _python_text}
    matter = {name: Markup(text) for name, text in context.items() if name == "front_matter"}  # YAML has its own quotes
    try:
        return environment.get_template(template).render({**context, **matter})
    except UndefinedError as error:
        raise UserError(f"the card {template} lacks a value: {error}", "The run's records are not whole.") from error
    except (TypeError, ValueError, ArithmeticError) as error:  # words where a number is told, a share of nothing
        raise UserError(
            f"the card {template} cannot tell a value: {error}", "The run's records are damaged."
        ) from error


def _tame(value: Any) -> Any:
    """A value of a record, which may have come from anywhere, without what would load, link or lay out something."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return one_line(value).replace("<", "&lt;").replace("](", "]&#40;").replace("|", "&#124;")


def _as_is(value: str) -> Markup:
    """A line of a code block, where Markdown reads nothing."""
    return Markup(one_line(value))


def _python_text(value: str) -> Markup:
    """A string as Python reads it, with Bengali as it is and every character that nobody sees told by its number."""
    written = json.dumps(value, ensure_ascii=False)
    return Markup("".join(sign if drop_unseen(sign) else f"\\U{ord(sign):08x}" for sign in written))


def _front_matter(kind: str, facts: Facts, config: RunConfig, context: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    options: dict[str, Any] = {
        "language": ["bn"] if kind != "base" else None,
        **facts.licence.front_matter(),
        "pipeline_tag": "text-generation",
    }
    options["library_name"] = "peft" if kind == "adapter" else "transformers"
    options["tags"] = ["bengali", "bangla", "empathetic-dialogue", "conversational", "bnft"]
    base = {"base": facts.upstream, "merged": facts.merged_base, "adapter": facts.names.base}[kind]
    if base:
        options["base_model"] = base
        options["base_model_relation"] = {"adapter": "adapter", "merged": "finetune", "base": "quantized"}[kind]
    if kind == "adapter":
        options["tags"].append("lora")
    if kind != "base":
        options |= _evaluation(config, context)
    return ModelCardData(**options).to_yaml().strip()


def _evaluation(config: RunConfig, context: Mapping[str, Any]) -> dict[str, Any]:
    """The data set and the numbers, as `model-index` has them."""
    from huggingface_hub import EvalResult

    path, on_hub = config.data.path.partition(":")[0], is_hub_id(config.data.path)
    corpus = path if on_hub else "the corpus of the program" if config.data.path == "bundled" else "a corpus of its own"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=path if on_hub else "bengali-empathetic-conversations",
            dataset_name=f"held-out rows of {corpus}",
            dataset_split="test",
            metric_type=name.replace("+", "p"),
            metric_name=label,
            metric_value=context["figures"][name],
        )
        for name, label in MAIN.items()
    ]
    model_name = context["names"].merged.partition("/")[2]
    return {"datasets": [path] if on_hub else None, "model_name": model_name, "eval_results": results}
