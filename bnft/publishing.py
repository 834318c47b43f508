"""From a run to the Hub: stage what is published, look it over, upload it, compare it, make it public.

Composes the rooms; holds no rule of its own about weights, cards or requests.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container
from functools import cached_property
from pathlib import Path
from typing import Any

from bnft.base_weights import HubBase, LocalBase, open_base, sixteen_bit_base
from bnft.card import Facts, Names, fill, read_run, render, shared
from bnft.chat_figures import ratings_of, safety_figures
from bnft.config import from_environment
from bnft.errors import UserError
from bnft.hub import Hub, Repo, token_in_use
from bnft.hub_files import LocalFile, files_of
from bnft.licences import Licence, licence_declared, licence_of, naming_warning
from bnft.merge import ADAPTER_WEIGHTS
from bnft.merged_folder import MergedFolder
from bnft.models import ModelSource, adapter_base, find_model, load_tokenizer
from bnft.prompts import end_token_ids
from bnft.records import RunDirectory
from bnft.settings import RunConfig
from bnft.space import LARGEST_ON_CPU, front_matter, stage_space
from bnft.staging import clear, generation_defaults, stage_adapter, stage_base, stage_common
from bnft.upload_scan import scan
from bnft.whole_files import file_sha256
from bnft.wishes import Wishes

HUB = "https://huggingface.co"
CARD, WEIGHTS, SHARDS = "README.md", ".safetensors", "shards"
SPACE_TOKEN = "BNFT_SPACE_TOKEN"  # of the environment: may only read, for a Space whose model is private
# This program's own models: name for people, what they are called on the Hub, licence, story.
OWN = {
    "embedded": (
        "Gemma 3 270M",
        "google/gemma-3-270m",
        "gemma",
        "They are Gemma 3 270M's, quantised by others to GGUF (Q4_K_M) and de-quantised again to bfloat16, with the "
        "chat template of Gemma 3.",
    ),
    "smoke": (
        "a tiny random Llama",
        "",
        "mit",
        "They are random numbers in the shape of a tiny Llama, for trying the tools; they know no language.",
    ),
}


class Publication:
    """One run on its way to the Hub: `stage`, then `publish`.

    Args:
        hub: None for a dry run, which asks no network where the base is on this machine.
        compare: as `compare_merged`.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: RunConfig,
        wishes: Wishes,
        hub: Hub | None,
        compare: Callable[..., dict[str, Any]],
        announce: Callable[[str], None] = print,
    ):
        self.directory, self.config, self.wishes, self.hub = directory, config, wishes, hub
        self.compare, self.announce = compare, announce
        self.run = directory.folder
        self.lora = self.run / "lora_model"
        self.folder = self.run / "publish"
        self.merged = MergedFolder(self.folder, self.lora, announce)
        self.ahead: list[LocalFile] = []  # uploaded shard by shard, and no longer on this disk

    @cached_property
    def source(self) -> ModelSource:
        """The base that the adapter was trained on."""
        return find_model(adapter_base(self.lora), announce=self.announce)

    @cached_property
    def base(self) -> tuple[str, LocalBase | HubBase]:
        """Name and weights of the 16-bit base."""
        scratch = self.folder / SHARDS if self.wishes.low_disk else None
        return sixteen_bit_base(self.source, self.wishes.base, self.announce, scratch)

    @cached_property
    def names(self) -> Names:
        """The four repositories; the base has one of its own where it is on this machine only."""
        repo, asked, base = self.wishes.repo, self.wishes.base, self.source.base
        if self.source.is_local:
            base = asked if asked and not Path(asked).is_dir() else f"{repo}-base"
        return Names(repo, f"{repo}-lora", base, self.wishes.space or f"{repo}-chat")

    @cached_property
    def licence(self) -> Licence:
        """The base's: as its own card says, else as its name or settings tell, else an unknown one."""
        if self.source.name in OWN:
            return licence_of(OWN[self.source.name][2])
        page = "" if self.source.is_local else f"{HUB}/{self.source.base}"
        card = open_base(self.source.base, self.source.revision).side_file("README.md")
        declared = licence_declared(card.read_text(encoding="utf-8", errors="replace"), page) if card else None
        return declared or licence_of(self.source.licence, page)

    def stage(self) -> dict[Repo, Path]:
        """Writes every folder and looks it over; says which repository each is for."""
        read_run(self.run, self.config)  # what the card lacks is told before the work
        if warning := naming_warning(self.licence, self.wishes.repo):
            self.announce(f"warning: {warning}")
        parts, names = set(self.wishes.parts), self.names
        staged: dict[Repo, Path] = {}
        if "merged" in parts:
            self._weights()
        elif "card" in parts:
            self.merged.check_belongs()
        if {"merged", "card"} & parts:
            kept = self.merged.record()["files"]
            staged[Repo(names.merged)] = self._common("merged", self._merged_base(), self.base[1], kept)
        if "merged" in parts:
            self._compare()
        if {"adapter", "card"} & parts:
            staged[Repo(names.adapter)] = self._common("adapter", names.base, open_base(self.source.base), ())
            stage_adapter(self.folder / "adapter", self.lora, names.base)
        if {"adapter", "merged"} & parts and names.base == f"{self.wishes.repo}-base":
            staged[Repo(names.base)] = self.folder / "base"
            stage_base(self.folder / "base", open_base(self.source.base), self.lora, self.licence)
        facts = self._facts()
        for folder in staged.values():
            (folder / CARD).write_text(render(folder.name, self.run, self.config, facts), encoding="utf-8")
        if "space" in parts:
            staged[Repo(names.space, "space")] = self.folder / "space"
            stage_space(self.folder / "space", self._space_card(facts), self.wishes.hardware)
        self._look_over(list(staged.values()))
        return staged

    def publish(self, staged: dict[Repo, Path]) -> list[str]:
        """Uploads, compares, links, makes public; returns the addresses.

        Raises:
            UserError: something stayed wrong; then nothing new is public.
        """
        hub, wishes = self._online(), self.wishes
        for repo, folder in staged.items():
            hub.check_card(repo, (folder / CARD).read_text(encoding="utf-8"))
            if self._is_card_alone(folder):
                self._check_weights_there(hub, repo, folder)
        sent = {repo: self._upload(hub, repo, folder) for repo, folder in staged.items()}
        for repo, files in sent.items():
            hub.verify(repo, files, wishes.revision)
            self.announce(f"{repo.id}: size and hash of {len(files)} files are the same on the Hub as here")
        owner, _, name = wishes.repo.partition("/")
        collection = hub.collect(name, owner, list(sent))
        if not wishes.private:
            hub.make_public(list(sent), collection)
        for repo in sent:
            if repo.kind == "space":  # it may have started before its model could be read
                hub.restart(repo)
        return [*(hub.address(repo, wishes.revision) for repo in sent), hub.collection_address(collection)]

    def _online(self) -> Hub:
        if self.hub is None:
            raise ValueError("a dry run has no Hub")
        return self.hub

    def _upload(self, hub: Hub, repo: Repo, folder: Path) -> list[LocalFile]:
        only_card = self._is_card_alone(folder)
        self._create(hub, repo)
        files = [LocalFile.of(folder / CARD, CARD)] if only_card else files_of(folder)
        if folder.name == "merged":
            files += self.ahead
        message = f"Publish {self.run.name}"
        changed = hub.upload(repo, files, message, self.wishes.revision, whole=not only_card)
        self.announce(f"{repo.id}: {len(changed)} of {len(files)} files were new or changed")
        return files

    def _is_card_alone(self, folder: Path) -> bool:
        """Whether no part that is asked for sends the weights of this folder."""
        without = {"merged": {"adapter", "card", "space"}, "adapter": {"card", "space"}}.get(folder.name, set())
        return without.issuperset(self.wishes.parts)

    def _check_weights_there(self, hub: Hub, repo: Repo, folder: Path) -> None:
        """A card never goes to weights that it does not tell of.

        Raises:
            UserError: the repository holds other ones.
        """
        told = {ADAPTER_WEIGHTS: file_sha256(self.lora / ADAPTER_WEIGHTS)}
        if folder.name == "merged":
            told = self.merged.record()["files"]
        there = hub.checksums(repo, self.wishes.revision)
        if wrong := [name for name, sha256 in told.items() if name.endswith(WEIGHTS) and there.get(name) != sha256]:
            raise UserError(
                f"the card tells of other weights than those in {repo.id} on the Hub: {', '.join(wrong)}",
                f"Publish them with it: --only {folder.name},card",
            )

    def _create(self, hub: Hub, repo: Repo) -> None:
        hub.create(repo, **({"space_sdk": "gradio"} if repo.kind == "space" else {}))
        if self.wishes.revision:
            hub.create_branch(repo, self.wishes.revision)
        if repo.kind != "space":
            return
        secrets = {"HF_TOKEN": token} if (token := from_environment(SPACE_TOKEN)) else {}
        hub.configure_space(repo, {"BNFT_MODEL": self.names.merged}, secrets)
        if self.wishes.private and not secrets:
            self.announce(f"the Space cannot read a private model: give it a token that may read, in {SPACE_TOKEN}")
        if self.wishes.hardware:
            hub.request_hardware(repo, self.wishes.hardware)
        elif self._merged_size() > LARGEST_ON_CPU:
            self.announce(
                f"the Space has no GPU, too little for this model: choose one in {hub.address(repo)}/settings"
            )

    def _weights(self) -> None:
        shutil.rmtree(self.folder / SHARDS, ignore_errors=True)  # of a publication that was killed
        name, base = self.base
        if self.wishes.low_disk:
            self.merged.make_anew(name, base, finished=self._send_ahead)
        else:
            self.merged.make(name, base)

    def _compare(self) -> None:
        rows = self.wishes.compare_rows
        if rows and not self.wishes.low_disk:
            test = self.directory.read_splits()["test"]
            self.merged.compare(lambda adapter, merged: self.compare(self.config, adapter, merged, test, rows))

    def _send_ahead(self, shard: Path) -> None:
        hub, repo = self._online(), Repo(self.names.merged)
        if not self.ahead:
            self._create(hub, repo)
        self.ahead.append(hub.send_ahead(repo, shard, shard.name, self.wishes.revision))
        shard.unlink()

    def _merged_size(self) -> int:
        return self.merged.record().get("size", 0)

    def _merged_base(self) -> str:
        """The repository of the weights that were merged into."""
        name = self.wishes.base or self.source.base
        if Path(name).is_dir():
            return self.names.base
        return self.base[0]

    def _common(self, part: str, base: str, weights: LocalBase | HubBase, keep: Container[str]) -> Path:
        """Everything of a model's folder but weights and card; its base by name, and for its settings."""
        clear(self.folder / part, keep)
        tokenizer = load_tokenizer(ModelSource("", self.source.base, str(self.lora), self.source.revision))
        generation = generation_defaults(weights, self.config, end_token_ids(tokenizer), tokenizer.pad_token_id)
        notes = {
            "base_model": base,
            "licence": self.licence.shown,
            "system_prompt": self.config.data.system_prompt,
            "generation": self.config.generation.model_dump(),
        }
        stage_common(self.folder / part, self.run, generation, notes, self.licence)
        return self.folder / part

    def _facts(self) -> Facts:
        record = self.merged.record()
        shown, upstream, _, story = OWN.get(self.source.name, (self.names.base, "", "", ""))
        return Facts(
            names=self.names,
            endpoint=self.hub.api.endpoint if self.hub else HUB,
            base_shown=shown,
            base_story=story,
            licence=self.licence,
            safety=safety_figures(),
            upstream=upstream,
            merged_base=self._merged_base() if record else "",
            merged=record or None,
            comparison=record.get("comparison"),
            not_compared="made shard by shard on a small disk" if self.wishes.low_disk else "switched off",
            ratings=ratings_of(self.run.name, self.run.parent / "feedback"),
        )

    def _space_card(self, facts: Facts) -> str:
        title = self.wishes.repo.partition("/")[2]
        context = shared(facts, self.config)
        matter = front_matter(title, self.names.merged, self.licence, self.wishes.hardware)
        context |= {"title": title, "front_matter": matter}
        return fill("space.md.j2", context)

    def _look_over(self, folders: list[Path]) -> None:
        splits = self.directory.read_splits()
        kept_back = [m["content"] for part in ("train", "validation") for c in splits[part] for m in c.messages]
        for folder in folders:
            # The Space holds nothing of the run: its texts are this program's own files, published with it.
            texts = kept_back if folder.name != "space" else ()
            scan(folder, [token_in_use(), from_environment(SPACE_TOKEN)], texts)
