"""The plan of the house, held to: who may import whom, how large a room is, what starts fast, what nobody writes."""

import ast
import subprocess
import sys

import pytest

from bnft.config import REPOSITORY

# Imports point down, or sideways within L0 to L2. The pipeline composes the L3 rooms, as the entry scripts do.
LAYERS = {
    0: {
        "errors",
        "config",
        "settings",
        "text",
        "flags",
        "allocator",
        "licences",
        "wishes",
        "line",
        "visits",
        "ui_strings",
        "rating_form",
    },
    1: {"prompts", "whole_files", "records", "data", "cleaning", "corpus_files", "splitting", "talks"}
    | {
        "metrics",
        "metric_modules",
        "plan",
        "memory_plan",
        "speed_plan",
        "cpu_speed",
        "progress",
        "plots",
    }
    | {"room", "fitting", "world", "placement", "launch", "model_code"}
    | {"manifest", "kept_folders", "data_cache", "token_cache", "checkpoints", "steps"}
    | {"crisis_words", "crisis_columns", "crisis_classifier", "safety", "crisis_cards", "counts", "emitter"}
    | {"turns", "conversation", "feedback", "api", "http_guard", "http_limits", "ui_parts", "csv_files"}
    | {"rating_store", "rating_items", "rating_summary"}
    | {"startup", "results", "judge_form", "run_facts", "chat_figures", "hub_answers", "upload_scan"}
    | {"report_runs", "report_tables", "report_figures"},
    2: {"models", "model_cache", "gguf_files", "smoke_model", "strategies", "generation", "head", "reply_loss"}
    | {"packing", "stops", "trainer"}
    | {"device_maps", "sharding", "planning"}
    | {"adapters", "cpu_weights", "gpu_weights", "streaming", "row_sampling", "rows", "batching", "endpoint"}
    | {"zero_gpu"}
    | {"batch_rows", "batch_generation", "gpu_memory", "generated_rows"}
    | {"crisis_reader", "crisis_training"}
    | {"judge_client", "judge", "opinions"}
    | {"ui_look", "ui_layout"}
    | {"tensor_files", "merge", "base_weights", "staging", "space", "hub_files", "merged_folder"},
    3: {"training", "evaluation", "chat", "serving", "ui", "rating_page", "card", "report_page", "hub"},
    4: {"pipeline", "calibration", "rate", "report", "publishing", "merged_check"},
}
LAYER = {room: layer for layer, rooms in LAYERS.items() for room in rooms}
HEAVY = ("torch", "transformers", "gradio", "peft", "trl", "datasets", "bitsandbytes")

FILES = sorted([*REPOSITORY.glob("*.py"), *(REPOSITORY / "bnft").rglob("*.py")])
ROOMS = [file for file in FILES if file.parent.name == "bnft" and file.stem != "__init__"]
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
every_room = pytest.mark.parametrize("file", ROOMS, ids=lambda file: file.stem)


def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def rooms_imported(tree):
    """Rooms of this package that a module imports, at its top or inside a function."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"bnft.{alias.name}" for alias in node.names] if node.module == "bnft" else [node.module]
        for name in names:
            package, _, room = name.partition(".")
            if package == "bnft" and room and not room.startswith("__"):
                yield room.split(".")[0]


@every_room
def test_a_room_has_its_place(file):
    assert file.stem in LAYER, "say in LAYERS, and in the map of README, on which floor this room is"


@every_room
def test_imports_point_down(file):
    own = LAYER[file.stem]
    for room in rooms_imported(tree_of(file)):
        other = LAYER[room]
        assert other < own or (other == own and own <= 2), f"{file.stem} (L{own}) imports {room} (L{other})"


def test_the_parts_below_a_room_import_nothing_above_it():
    for file in FILES:
        if "metric_modules" in file.parts:
            for room in rooms_imported(tree_of(file)):
                assert LAYER[room] <= LAYER["metric_modules"]


def test_imports_are_absolute():
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}:{node.lineno}"


@every_file
def test_a_room_and_a_function_stay_small(file):
    limit = 150 if file.parent == REPOSITORY else 300
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} at line {node.lineno} has {length} lines"


@every_room
def test_a_room_says_what_it_does(file):
    assert ast.get_docstring(tree_of(file))


@every_file
def test_no_net_that_catches_everything(file):
    """A handler for everything hides bugs; `except BaseException` is for cleaning up, and raises again."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {getattr(one, "id", None) for one in caught}
            assert node.type is not None, f"bare except at line {node.lineno}"
            assert "Exception" not in names, f"except Exception at line {node.lineno}"
            if "BaseException" in names:
                last = node.body[-1]
                assert isinstance(last, ast.Raise), f"line {node.lineno}"
                assert last.exc is None, f"line {node.lineno}"


@every_file
def test_no_code_of_a_model_and_no_pickle(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant), node.value.lineno
            assert node.value.value is False, node.value.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = f"{getattr(node.func.value, 'id', '')}.{node.func.attr}"
            assert called not in ("torch.load", "pickle.load", "pickle.loads"), f"{called} at line {node.lineno}"
            if called.startswith("Auto") and called.endswith(".from_pretrained"):  # unsaid, the user would be asked
                assert "trust_remote_code" in [keyword.arg for keyword in node.keywords], f"line {node.lineno}"
            if called in ("np.load", "numpy.load"):
                assert "allow_pickle" in [keyword.arg for keyword in node.keywords], f"line {node.lineno}"


def imported_by(code):
    """Names in sys.modules after `code` in a fresh interpreter."""
    code = f"import sys\n{code}\nprint(chr(10) + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("\n", 2)[-2].split())


def test_the_lower_floors_import_no_heavy_library():
    rooms = [file.stem for file in ROOMS if LAYER[file.stem] <= 1]
    assert len(rooms) > 10
    loaded = imported_by("\n".join(f"import bnft.{room}" for room in rooms))
    assert loaded.isdisjoint(HEAVY)


COMMANDS = [*(file.stem for file in FILES if file.parent == REPOSITORY), "bnft.rate", "bnft.report"]
SLOW = (*HEAVY, "numpy", "scipy", "matplotlib", "pandas", "huggingface_hub", "httpx")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_flags_are_answered_before_a_slow_library_is_imported(command):
    wrong = [["--no-such-flag", "1"], *([["--lora.r", "many"]] if command == "train" else [])]
    code = (
        f"from {command} import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert not end.code\n"
        f"assert [main(flags) for flags in {wrong!r}] == {[2] * len(wrong)!r}"
    )
    assert imported_by(code).isdisjoint(SLOW)


def test_every_script_of_the_top_level_is_one_of_the_three_doors():
    assert {file.name for file in FILES if file.parent == REPOSITORY} <= {"train.py", "publish.py", "app.py"}
