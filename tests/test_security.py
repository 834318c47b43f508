"""What belongs to no single room: nobody is asked for anything, and no secret and no markup is left anywhere."""

import json
import os
import re
import subprocess
import sys

import pytest

from bnft.card import fill
from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.run_facts import quoted
from bnft.staging import copy_files
from bnft.upload_scan import scan

TOKEN = "hf_" + "c" * 34

# -- what is published -------------------------------------------------------------------------------------------


def test_a_link_in_a_run_publishes_no_other_file_of_its_owner(tmp_path):
    """A run folder that somebody sent: `plots/loss.png` may be a link to a token."""
    secret, run, staged = tmp_path / "token", tmp_path / "run", tmp_path / "staged"
    run.mkdir()
    staged.mkdir()
    secret.write_text(TOKEN)
    (run / "loss.png").symlink_to(secret)
    with pytest.raises(UserError, match="is a link to"):
        copy_files(run, staged, ["loss.png"])
    assert not list(staged.iterdir())
    (run / "whole.png").write_bytes(b"png")
    (run / "again.png").symlink_to("whole.png")
    copy_files(run, staged, ["again.png"])
    assert (staged / "again.png").read_bytes() == b"png"


def weights(note):
    header = json.dumps({"__metadata__": {"note": note}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 64


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("loss.png", b"\x89PNG\r\n" + TOKEN.encode()),
        ("model.safetensors", weights(TOKEN)),
        ("NOTICE", TOKEN.encode()),
        ("font.woff2", TOKEN.encode()),
    ],
)
def test_a_key_is_found_in_every_kind_of_file(tmp_path, name, content):
    scan(tmp_path, [TOKEN], [])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)) as refused:
        scan(tmp_path, [], [])
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    "written",
    [
        "<img src=x onerror=alert(1)>",
        "![](http://third.example/a.png)",
        "[খুলুন](javascript:alert(1))",
        "`code` </textarea><script>alert(1)</script>",
        "https://third.example/x www.third.example me@third.example",
        "HTTPS://third.example",
        "$$\\href{javascript:alert(1)}{x}$$",
        "\n\n# শিরোনাম\n\n| a | b |",
        "[x]: http://third.example",
    ],
)
def test_a_quoted_text_is_plain_text_in_markdown(written):
    shown = quoted(f"আজ {written}")
    assert "\n" not in shown
    signs = re.sub(r"&#\d+;|&lt;|\\.", "", shown)
    assert not re.search(r"[<\[\]`|#$@]|https?:|www\.", signs, re.IGNORECASE)


def test_what_records_hold_is_no_markup_on_a_card():
    evil = "x<script>alert(1)</script> ![](http://third.example/a.png)\n# শিরোনাম"
    names = dict.fromkeys(("merged", "adapter", "base", "space"), evil)
    licence = {"id": "other", "name": evil, "link": evil, "card": evil, "notice": evil}
    values = {"title": evil, "names": names, "links": names, "licence": licence, "base": {"shown": evil, "story": evil}}
    card = fill("base.md.j2", values | {"front_matter": "license: other\ntags:\n- a"})
    assert card.startswith("---\nlicense: other\ntags:\n- a\n---\n")
    assert "<script" not in card
    assert "](http://third.example" not in card
    assert "\n# শিরোনাম" not in card


# -- a whole run -------------------------------------------------------------------------------------------------

# Every name that is looked up and every address that is spoken to is told by Python itself, whoever asks.
WATCHED = """
import runpy, sys
own = ("127.0.0.1", "localhost", "::1", "", None)
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        asked = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        asked = arguments[1][0]
    else:
        return
    if asked not in own:
        print("\\nASKED", asked, flush=True)
sys.addaudithook(watch)
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, ".")
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
SECRETS = {
    "HF_TOKEN": "hf_" + "e" * 34,
    "BNFT_JUDGE_KEY": "sk-" + "j" * 40,
    "BNFT_SPACE_TOKEN": "hf_" + "s" * 34,
    "WANDB_API_KEY": "d" * 40,
}


@pytest.mark.slow
def test_a_run_asks_nobody_and_leaves_no_secret_behind(tiny, tmp_path):
    kept = "hf_" + "f" * 34
    home = tmp_path / "hf"
    home.mkdir()
    (home / "token").write_text(kept)
    quiet = ("HF_", "GRADIO_", "UNSLOTH_", "DO_NOT_TRACK")  # as set by nobody but this program
    environment = {name: value for name, value in os.environ.items() if not name.startswith(quiet)}
    environment |= SECRETS | {"HF_HOME": str(home), "BNFT_CACHE": os.path.dirname(os.path.dirname(tiny.base))}

    def does(*words, code=0):
        command = [sys.executable, "-c", WATCHED, *map(str, words)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400)
        told = done.stdout + done.stderr
        assert done.returncode == code, told
        assert "\nASKED" not in told
        return told

    run = tmp_path / "outputs" / "one"
    small = ["--train.max_steps", "2", "--eval.samples", "2", "--eval.bootstrap", "100"]
    told = does("train.py", "--recipe", "smoke", "--output-dir", run.parent, "--run-name", "one", *small)
    told += does("-m", "bnft.report", run.parent)
    told += does("publish.py", "--repo", "user/name", "--run", run, "--only", "adapter,space", "--dry-run")
    told += does("app.py", "--endpoint", "http://name:secretword@127.0.0.1:9/v1", code=2)
    files = [path for path in run.parent.rglob("*") if path.is_file()]
    assert {"report.html", "run.json", "README.md"} <= {path.name for path in files}
    for secret in (*SECRETS.values(), kept, "secretword"):
        assert secret not in told
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
