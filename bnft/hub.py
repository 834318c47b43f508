"""Repositories on the Hub: created private, filled with what changed, compared file by file, then made public.

The only caller of `HfApi`. Every failure comes out as a `UserError` with the next step, and no message holds a token.
Knows nothing about what the files mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from bnft.errors import ENVIRONMENT, UserError, is_full_disk
from bnft.hub_answers import LOGIN, explain, is_passing, limit_waiting, reason_of, response_of
from bnft.hub_files import LocalFile

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 300.0  # of a request that the Hub cannot answer now, in seconds
PATIENCE = 60.0  # seconds after which a Hub that gives no answer at all is not asked again
OURS = (".safetensors", ".safetensors.index.json", ".py")  # what is taken away when a newer upload has no such file
T = TypeVar("T")


@dataclass(frozen=True)
class Repo:
    """A repository by name; `kind` is "model" or "space"."""

    id: str
    kind: str = "model"


class Hub:
    """The Hub as one account sees it; the endpoint is `HF_ENDPOINT`'s.

    Args:
        announce: told what is waited for.
    """

    def __init__(self, announce: Callable[[str], None] = print):
        limit_waiting()
        self.api = HfApi()
        self.announce = announce
        self.account: dict[str, Any] = {}

    def sign_in(self, namespaces: Iterable[str]) -> None:
        """Checks the token before any work is done.

        Raises:
            UserError: there is none, it cannot write, or a namespace is not this account's.
        """
        if not get_token():
            raise UserError("publishing needs a Hugging Face token", LOGIN.format(url=self.api.endpoint))
        self.account = self._do("asking who you are", self.api.whoami)
        token = self.account.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise UserError(
                f"the token {token.get('displayName', '')!r} may only read", LOGIN.format(url=self.api.endpoint)
            )
        own = [self.account["name"], *(org["name"] for org in self.account.get("orgs", []))]
        for namespace in namespaces:
            if namespace not in own:
                raise UserError(
                    f"{namespace!r} is not yours: the token belongs to {self.account['name']!r}",
                    f"Publish under {', '.join(own)}, or sign in as {namespace!r}: hf auth login",
                )

    def create(self, repo: Repo, **options: Any) -> str:
        """The repository's address; a new one is private, an existing one is left as it is."""
        return str(
            self._do(
                f"creating {repo.id}",
                lambda: self.api.create_repo(repo.id, repo_type=repo.kind, private=True, exist_ok=True, **options),
            )
        )

    def create_branch(self, repo: Repo, branch: str) -> None:
        self._do(
            f"creating branch {branch} of {repo.id}",
            lambda: self.api.create_branch(repo.id, repo_type=repo.kind, branch=branch, exist_ok=True),
        )

    def send_ahead(self, repo: Repo, source: Path, path: str, revision: str | None = None) -> LocalFile:
        """Uploads the bytes of a large file now, to be committed later; the file may be deleted after this."""
        local = LocalFile.of(source, path)
        if local.equals(self._listed(repo, revision).get(path)):
            return local
        addition = CommitOperationAdd(path, source)
        self._do(
            f"uploading {path}",
            lambda: self.api.preupload_lfs_files(repo.id, [addition], repo_type=repo.kind, revision=revision),
        )
        return LocalFile(path, local.size, local.sha256, local.blob_id, addition)

    def upload(
        self, repo: Repo, files: Sequence[LocalFile], message: str, revision: str | None = None, whole: bool = True
    ) -> list[str]:
        """Commits what differs from the Hub, in one commit, and returns its paths.

        Args:
            whole: `files` are all of the repository, so that shards of an earlier upload can go.
        """
        local = {file.path: file for file in files}

        def commit() -> list[str]:
            remote = self._remote(repo, revision)
            changed = [file for file in files if not file.equals(remote.get(file.path))]
            gone = [path for path in remote if whole and path not in local and path.endswith(OURS)]
            if changed or gone:
                operations: list[Any] = [CommitOperationDelete(path) for path in gone]
                operations += [
                    file.source
                    if isinstance(file.source, CommitOperationAdd)
                    else CommitOperationAdd(path, file.source)
                    for path, file in local.items()
                    if file in changed
                ]
                self.api.create_commit(
                    repo.id, operations, commit_message=message, repo_type=repo.kind, revision=revision
                )
            return [file.path for file in changed]

        return self._do(f"uploading to {repo.id}", commit)

    def verify(self, repo: Repo, files: Sequence[LocalFile], revision: str | None = None) -> None:
        """Compares size and hash of every file on the Hub with the local one.

        Raises:
            UserError: one is missing or differs.
        """
        remote = self._listed(repo, revision)
        wrong = [file.path for file in files if not file.equals(remote.get(file.path))]
        if wrong:
            raise UserError(
                f"{repo.id} on the Hub differs from the local files: {', '.join(wrong)}",
                "Run the same command again; only what differs is sent.",
                exit_code=ENVIRONMENT,
            )

    def checksums(self, repo: Repo, revision: str | None = None) -> dict[str, str]:
        """sha256 of every large file in a repository."""
        remote = self._listed(repo, revision)
        return {path: entry.lfs.sha256 for path, entry in remote.items() if entry.lfs}

    def check_card(self, repo: Repo, content: str) -> None:
        """Asks the Hub whether it takes a card's front matter; its own client asks one fixed address only.

        Raises:
            UserError: it does not.
        """

        def ask() -> None:
            from huggingface_hub.utils import get_session, hf_raise_for_status

            body = {"repoType": repo.kind, "content": content}
            hf_raise_for_status(get_session().post(f"{self.api.endpoint}/api/validate-yaml", json=body))

        self._do(f"checking the card of {repo.id}", ask)

    def collect(self, title: str, namespace: str, repos: Sequence[Repo]) -> str:
        """One collection with these repositories, private for now; returns its slug."""
        made = self._do(
            "making the collection",
            lambda: self.api.create_collection(title, namespace=namespace, private=True, exists_ok=True),
        )
        for repo in repos:
            self._do(
                f"adding {repo.id} to the collection",
                lambda repo=repo: self.api.add_collection_item(made.slug, repo.id, repo.kind, exists_ok=True),
            )
        return made.slug

    def make_public(self, repos: Sequence[Repo], collection: str) -> None:
        """All of them, or none that was not public before."""
        opened: list[Repo] = []
        try:
            for repo in repos:
                about = self._do(f"asking for {repo.id}", lambda r=repo: self.api.repo_info(r.id, repo_type=r.kind))
                if about.private:
                    opened.append(repo)  # before the request: its answer may be lost
                    self._set_private(repo, False)
            self._do(
                "making the collection public",
                lambda: self.api.update_collection_metadata(collection, private=False),
            )
        except BaseException:
            self._close(opened)
            raise

    def _close(self, repos: Sequence[Repo]) -> None:
        """Makes all of them private again; one that cannot be is told of and keeps none of the others open."""
        for repo in repos:
            try:
                self._set_private(repo, True)
            except UserError as error:
                place = f"{self.address(repo)}/settings"
                self.announce(f"{repo.id} may have stayed public; make it private in {place}: {error.message}")

    def _set_private(self, repo: Repo, private: bool) -> None:
        self._do(
            f"making {repo.id} {'private' if private else 'public'}",
            lambda: self.api.update_repo_settings(repo.id, repo_type=repo.kind, private=private),
        )

    def configure_space(self, repo: Repo, variables: dict[str, str], secrets: dict[str, str]) -> None:
        for key, value in variables.items():
            self._do(f"setting {key}", lambda k=key, v=value: self.api.add_space_variable(repo.id, k, v))
        for key, value in secrets.items():
            self._do(f"setting the secret {key}", lambda k=key, v=value: self.api.add_space_secret(repo.id, k, v))

    def request_hardware(self, repo: Repo, hardware: str) -> bool:
        """Whether the Hub gives the Space this machine; it wants a paying account for most."""
        try:
            self._do(f"asking for {hardware}", lambda: self.api.request_space_hardware(repo.id, hardware))
        except UserError as error:
            self.announce(f"the Space stays on its machine: {error.message}")
            return False
        return True

    def restart(self, repo: Repo) -> None:
        self._do(f"restarting {repo.id}", lambda: self.api.restart_space(repo.id))

    def address(self, repo: Repo, revision: str | None = None) -> str:
        place = f"{self.api.endpoint}/{'spaces/' if repo.kind == 'space' else ''}{repo.id}"
        return f"{place}/tree/{revision}" if revision else place

    def collection_address(self, slug: str) -> str:
        return f"{self.api.endpoint}/collections/{slug}"

    def _listed(self, repo: Repo, revision: str | None) -> dict[str, Any]:
        return self._do(f"listing {repo.id}", lambda: self._remote(repo, revision))

    def _remote(self, repo: Repo, revision: str | None) -> dict[str, Any]:
        listed = self.api.list_repo_tree(repo.id, recursive=True, repo_type=repo.kind, revision=revision)
        return {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}

    def _do(self, what: str, work: Callable[[], T]) -> T:
        """Runs one request, again after a while when the Hub says "later" or breaks off; explains what stays wrong."""
        wait, started = FIRST_WAIT, time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work()
            except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
                if is_full_disk(error):
                    raise
                answer = response_of(error)
                heard = answer is not None or time.monotonic() - started < PATIENCE
                again = heard and is_passing(error, answer)
                if not again or attempt == ATTEMPTS:
                    raise explain(what, error, answer, self.api.endpoint) from None  # requests hold the token
                asked = answer.headers.get("Retry-After", "") if answer is not None else ""
                pause = min(float(asked), LONGEST_WAIT) if asked.isdigit() else wait
                self.announce(
                    f"{what}: {reason_of(error, answer)}; trying again in {pause:.0f} s ({attempt}/{ATTEMPTS})"
                )
                time.sleep(pause)
                wait = min(wait * 2, LONGEST_WAIT)
        raise AssertionError("the last attempt returns or raises")


def token_in_use() -> str:
    """The token that requests carry, or ""."""
    return get_token() or ""


def check_name(name: str, flag: str = "--repo") -> Repo:
    """A repository's full name as the Hub takes it.

    Raises:
        UserError: it is not owner and name, or the Hub would refuse it.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{flag} {name!r} is not USER/NAME", "USER is your user name on the Hub; no address in front.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"the Hub takes no repository named {name!r}: {error}", f"Choose another {flag}.") from error
    return Repo(name)
