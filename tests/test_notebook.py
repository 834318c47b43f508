"""The notebook, executed as it stands; only its settings cell has other values, so that it takes a minute."""

import os
import shutil
from pathlib import Path

import pytest

from bnft.config import REPOSITORY
from tests.hub_server import running_hub

NOTEBOOK = REPOSITORY / "notebooks" / "fine_tune_and_publish.ipynb"
SETTINGS = {"NAME": "'tried'", "REPO": "'user/bn-notebook'", "FLAGS": "'--recipe smoke --max-steps 2'"}


def read():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_valid_and_its_outputs_are_cleared():
    import nbformat

    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_every_setting_that_the_test_changes_is_in_the_settings_cell():
    (cell,) = [cell for cell in read().cells if "parameters" in cell.metadata.get("tags", [])]
    for name in SETTINGS:
        assert f"{name} = " in cell.source


@pytest.mark.slow
def test_it_trains_measures_and_publishes(tmp_path, tiny, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    program = tmp_path / "program"
    ignored = shutil.ignore_patterns(".git", ".hypothesis", "outputs", "__pycache__", ".*_cache")
    shutil.copytree(REPOSITORY, program, ignore=ignored)
    notebook = read()
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
        # what is installed here is what the tests are about; pip would ask the network
        cell.source = cell.source.replace("!pip install", "!pip --version # pip install")
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.write_token)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("BNFT_CACHE", str(Path(tiny.base).parent.parent))
        monkeypatch.setenv("PATH", f"{Path(os.sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        nbclient.NotebookClient(
            notebook, timeout=540, resources={"metadata": {"path": program / "notebooks"}}
        ).execute()
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "bits_per_byte" in printed
    assert server.write_token not in printed
    assert not server.repo("user/bn-notebook").private
    assert (program / "outputs" / "tried" / "metrics.json").is_file()
