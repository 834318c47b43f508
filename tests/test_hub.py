"""Uploading, against a small Hub on this machine: what is sent, refused, and mended by waiting or a rerun."""

import hashlib
import re
import time

import pytest
from huggingface_hub import constants

from bnft import hub as hub_module
from bnft import hub_answers
from bnft.errors import UserError
from bnft.hub import Hub, Repo, check_name
from bnft.hub_files import LocalFile, files_of

MODEL, SPACE = Repo("user/bn-empathy"), Repo("user/bn-empathy-chat", "space")


@pytest.fixture
def told():
    return []


@pytest.fixture
def hub(server, monkeypatch, told):
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", server.write_token)
    monkeypatch.setattr(hub_module, "FIRST_WAIT", 0.01)
    return Hub(announce=told.append)


@pytest.fixture
def folder(tmp_path):
    """Two files that go to LFS, one of them in three parts, and two that do not."""
    made = tmp_path / "staged"
    (made / "plots").mkdir(parents=True)
    (made / "README.md").write_text("---\nlicense: gemma\n---\n# A card, বাংলা\n", encoding="utf-8")
    (made / "config.json").write_text("{}")
    (made / "plots" / "loss.png").write_bytes(bytes(range(256)) * 400)
    (made / "model.safetensors").write_bytes(b"weights" * 40_000)
    return made


def send(hub, folder, repo=MODEL, revision=None):
    hub.create(repo, **({"space_sdk": "gradio"} if repo.kind == "space" else {}))
    if revision:
        hub.create_branch(repo, revision)
    files = files_of(folder)
    changed = hub.upload(repo, files, "a commit", revision)
    hub.verify(repo, files, revision)
    return changed


def test_a_folder_arrives_byte_for_byte_and_stays_private(hub, server, folder):
    server.chunk_size = 100_000
    assert len(send(hub, folder)) == 4
    repo = server.repo(MODEL.id)
    assert repo.private
    for path in ("README.md", "config.json", "plots/loss.png", "model.safetensors"):
        entry = repo.files()[path]
        assert server.content(entry) == (folder / path).read_bytes()
        assert entry["lfs"] == (path in ("plots/loss.png", "model.safetensors"))
    # in parts of 100,000 bytes: the weights of 280,000 in three, the picture of 102,400 in two
    assert sum("/part/" in request for request in server.requests) == 5


def test_a_space_arrives_with_its_variables_and_secrets(hub, server, folder):
    send(hub, folder, SPACE)
    hub.configure_space(SPACE, {"BNFT_MODEL": MODEL.id}, {"HF_TOKEN": "read-only"})
    assert not hub.request_hardware(SPACE, "zero-a10g")
    hub.restart(SPACE)
    repo = server.repo(SPACE.id, "space")
    assert (repo.variables, repo.secrets, repo.restarts) == ({"BNFT_MODEL": MODEL.id}, {"HF_TOKEN": "read-only"}, 1)


def test_a_rerun_sends_what_changed_and_nothing_else(hub, server, folder):
    send(hub, folder)
    commits = len(server.repo(MODEL.id).log)
    assert send(hub, folder) == []
    assert len(server.repo(MODEL.id).log) == commits, "an empty commit was made"
    (folder / "config.json").write_text('{"changed": 1}')
    sent = list(server.uploaded)
    assert send(hub, folder) == ["config.json"]
    assert server.uploaded == sent


def test_shards_of_an_earlier_upload_go(hub, server, folder):
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"old" * 40_000)
    send(hub, folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "config.json").unlink()  # no weights: it may be somebody's, and stays
    send(hub, folder)
    assert set(server.repo(MODEL.id).files()) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "plots/loss.png",
    }


def test_a_branch_is_made_and_main_stays(hub, server, folder):
    send(hub, folder, revision="try/one")
    repo = server.repo(MODEL.id)
    assert "model.safetensors" in repo.files("try/one")
    assert "model.safetensors" not in repo.files("main")
    send(hub, folder, revision="try/one")  # it is there already


def test_a_shard_sent_ahead_may_be_deleted_before_the_commit(hub, server, folder):
    hub.create(MODEL)
    shard = folder / "model.safetensors"
    content = shard.read_bytes()
    ahead = hub.send_ahead(MODEL, shard, shard.name)
    shard.unlink()
    assert "model.safetensors" not in server.repo(MODEL.id).files()
    files = [*files_of(folder), ahead]
    hub.upload(MODEL, files, "a commit")
    hub.verify(MODEL, files)
    assert server.content(server.repo(MODEL.id).files()["model.safetensors"]) == content
    shard.write_bytes(content)
    before = list(server.uploaded)
    server.fail("GET", "/tree/", 503)
    again = hub.send_ahead(MODEL, shard, shard.name)
    assert hub.upload(MODEL, [*files_of(folder), again], "again") == []
    assert server.uploaded == before


def test_everything_becomes_public_together(hub, server, folder):
    send(hub, folder)
    send(hub, folder, SPACE)
    slug = hub.collect("bn-empathy", "user", [MODEL, SPACE])
    assert hub.collect("bn-empathy", "user", [MODEL, SPACE]) == slug
    assert server.collections[slug]["private"]
    assert [item["id"] for item in server.collections[slug]["items"]] == [MODEL.id, SPACE.id]
    hub.make_public([MODEL, SPACE], slug)
    assert not server.repo(MODEL.id).private
    assert not server.repo(SPACE.id, "space").private
    assert not server.collections[slug]["private"]


def test_nothing_is_left_half_public(hub, server, folder):
    send(hub, folder)
    send(hub, folder, SPACE)
    old = Repo("user/public-before")
    server.add(old.id, {"README.md": b"x"})
    slug = hub.collect("bn-empathy", "user", [MODEL, SPACE])
    server.fail("PUT", "/spaces/.*/settings", 500, times=hub_module.ATTEMPTS)
    with pytest.raises(UserError, match="Run the same command again"):
        hub.make_public([old, MODEL, SPACE], slug)
    assert server.repo(MODEL.id).private
    assert server.repo(SPACE.id, "space").private
    assert server.collections[slug]["private"]
    assert not server.repo(old.id).private
    hub.make_public([old, MODEL, SPACE], slug)
    assert not server.repo(SPACE.id, "space").private


def test_one_that_cannot_be_closed_again_keeps_no_other_open(hub, server, folder, told):
    """The token is taken back in the middle: one repository opens, but cannot be closed, nor the next one opened."""
    send(hub, folder)
    send(hub, folder, SPACE)
    other = Repo("user/other")
    send(hub, folder, other)
    slug = hub.collect("bn-empathy", "user", [MODEL, other, SPACE])
    server.fail("PUT", "/spaces/.*/settings", 401, times=10)
    opened = hub._set_private

    def first_cannot_be_closed(repo, private):
        if (repo, private) == (MODEL, True):
            server.fail("PUT", f"/{MODEL.id}/settings", 401)
        opened(repo, private)

    hub._set_private = first_cannot_be_closed
    with pytest.raises(UserError, match="hf auth login"):
        hub.make_public([MODEL, other, SPACE], slug)
    assert server.repo(other.id).private
    assert [line.partition(" may have stayed public")[0] for line in told] == [MODEL.id, SPACE.id]


def test_a_file_that_differs_on_the_hub_is_named(hub, server, folder):
    send(hub, folder)
    files = files_of(folder)
    repo = server.repo(MODEL.id)
    repo.commit("main", {**repo.files(), "model.safetensors": server._entry(b"other" * 40_000)}, "by somebody else")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        hub.verify(MODEL, files)


def test_hashes_are_those_of_git_and_lfs(tmp_path):
    (tmp_path / "hello").write_bytes(b"hello\n")
    file = LocalFile.of(tmp_path / "hello", "hello")
    assert file.blob_id == "ce013625030ba8dba906f756967f9e9ca394464a"  # printf 'hello\n' | git hash-object --stdin
    assert file.sha256 == hashlib.sha256(b"hello\n").hexdigest()


@pytest.mark.parametrize(
    "name", ["bn-empathy", "user/", "/x", "a/b/c", "user/bn--empathy", "user/x.git", "user/বাংলা", "user/-x"]
)
def test_names_that_the_hub_refuses(name):
    with pytest.raises(UserError, match=re.escape(repr(name))) as caught:
        check_name(name, "--space")
    assert "--space" in str(caught.value)


def test_no_token_says_how_to_get_one(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf auth login") as caught:
        hub.sign_in(["user"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("token", "namespace", "said"),
    [
        ("r", "user", "may only read"),
        ("w", "somebody", "'somebody' is not yours"),
        ("x", "user", "401"),
    ],
)
def test_a_token_that_will_not_do_is_refused_before_any_work(hub, server, monkeypatch, token, namespace, said):
    secret = "hf_" + token * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    with pytest.raises(UserError, match=said) as caught:
        hub.sign_in([namespace])
    assert secret not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_organisation_of_ones_own_is_fine(hub):
    hub.sign_in(["user", "team"])
    assert "team" in [org["name"] for org in hub.account["orgs"]]


def test_the_hub_s_pause_is_kept(hub, server, told, folder):
    server.fail("POST", "/api/repos/create", 429, **{"Retry-After": "1"})
    send(hub, folder)
    assert "trying again in 1 s" in told[0]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/commit/", 500),
        ("GET", "/tree/", 503),
        ("POST", "/commit/", 0),
        ("PUT", "/lfs/", 0),
        ("POST", "/preupload/", 502),
    ],
)
def test_a_passing_fault_is_passed_over(hub, server, folder, method, path, status):
    server.fail(method, path, status, times=2)
    send(hub, folder)
    assert server.content(server.repo(MODEL.id).files()["config.json"]) == b"{}"


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/commit/", 500), ("POST", "/commit/", 0)])
def test_a_lasting_fault_is_one_message_and_a_rerun_completes_it(hub, server, folder, method, path, status):
    server.fail(method, path, status, times=hub_module.ATTEMPTS)
    with pytest.raises(UserError, match="Run the same command again") as caught:
        send(hub, folder)
    assert caught.value.exit_code == 1
    assert server.repo(MODEL.id).private
    uploaded = list(server.uploaded)
    assert len(uploaded) == 2
    assert len(send(hub, folder)) == 4
    assert server.uploaded == uploaded, "bytes that were up already were sent again"


@pytest.mark.parametrize(("method", "path"), [("POST", "/commit/"), ("PUT", "/lfs/")])
def test_a_hub_that_falls_silent_is_waited_for_a_while_and_given_up(hub, server, folder, monkeypatch, method, path):
    monkeypatch.setattr(hub_answers, "SILENCE", 0.5)
    monkeypatch.setattr(hub_module, "PATIENCE", 0.5)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # its own pauses
    impatient = Hub(announce=hub.announce)
    server.fail(method, path, -1, times=1000)
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached: ") as caught:
        send(impatient, folder)
    assert time.monotonic() - started < 30
    assert "Run the same command again" in str(caught.value)
    assert caught.value.exit_code == 1
    assert server.repo(MODEL.id).private
    server.faults.clear()
    monkeypatch.setattr(hub_answers, "SILENCE", 60.0)
    assert len(send(Hub(announce=hub.announce), folder)) == 4


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, server, folder, monkeypatch):
    send(hub, folder)
    (folder / "config.json").write_text('{"changed": 1}')
    work = type(hub.api).create_commit
    calls = []

    def commit_and_lose(self, *arguments, **options):
        made = work(self, *arguments, **options)
        calls.append(made)
        import httpx

        raise httpx.ReadError("the connection broke after the commit")

    monkeypatch.setattr(type(hub.api), "create_commit", commit_and_lose)
    hub.upload(MODEL, files_of(folder), "a commit")
    assert len(calls) == 1
    hub.verify(MODEL, files_of(folder))


def test_a_card_that_the_hub_refuses_is_told_in_its_words(hub):
    with pytest.raises(UserError, match="license"):
        hub.check_card(MODEL, "---\nlicense: whatever\n---\n# x\n")
    hub.check_card(MODEL, "---\nlicense: gemma\n---\n# x\n")


def test_what_costs_money_is_told_as_that(hub, server, folder):
    server.fail("POST", "/api/repos/create", 402)
    with pytest.raises(UserError, match="paying account") as caught:
        send(hub, folder, SPACE)
    assert "--only adapter,merged,card" in str(caught.value)


def test_no_network_is_told_as_that(server, monkeypatch, told):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("HF_TOKEN", server.write_token)
    with pytest.raises(UserError, match="cannot be reached") as caught:
        Hub(announce=told.append).sign_in(["user"])
    assert caught.value.exit_code == 1


def test_offline_mode_is_told_at_once(server, monkeypatch, told):
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", server.write_token)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        Hub(announce=told.append).sign_in(["user"])
    assert told == []
