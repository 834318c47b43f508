"""Somebody who publishes at a terminal, and what the tests ask of the result; the fixtures are in conftest.py."""

import json
import os

import yaml

from tests.commands import REPOSITORY, Command

REPO = "user/bn-empathy"


class Person:
    """Somebody at a terminal, with a token and a home of their own."""

    def __init__(self, server, cache, home):
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment |= {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": server.write_token,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # the small Hub speaks plain LFS
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "BNFT_CACHE": str(cache),
        }

    def start(self, *words, cwd=REPOSITORY):
        return Command(*words, cwd=cwd, env=self.environment)

    def does(self, *words, code=0, **options):
        process = self.start(*words, **options)
        output = process.result(timeout=540)
        assert process.returncode == code, output
        assert "hf_" + "w" * 34 not in output
        return output

    def publishes(self, run, *words, code=0):
        output = self.does("publish.py", "--repo", REPO, "--run", run, *words, code=code)
        assert code == 0 or "Traceback" not in output
        return output


def card_of(server, name, kind="model"):
    """A card on the Hub: its front matter, and all of its text."""
    text = server.content(server.repo(name, kind).files()["README.md"]).decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def name_base(run, base):
    """Gives the adapter another base, as somebody does who knows what they do."""
    notes = json.loads((run / "lora_model" / "bnft.json").read_text())
    (run / "lora_model" / "bnft.json").write_text(json.dumps(notes | {"base_model": base}))
    (run / "lora_model" / "manifest.json").unlink()
