"""Recipes and flags -> settings: what is refused, what wins, and that a run's settings can be used again."""

import ast
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from bnft.config import RECIPES, REPOSITORY, cache_dir, check_values, recipe_names, resolve, to_yaml
from bnft.errors import UserError
from bnft.settings import FIELD_NAMES
from tests.conftest import kept_or_refused


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(recipe, flags):
    with pytest.raises(UserError) as caught:
        resolve(recipe, flags)
    assert caught.value.exit_code == 2
    return caught.value.message


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_repository_parses(name):
    config, sources = resolve(name, {})
    assert set(sources) == set(FIELD_NAMES)
    assert (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")  # it says what it is for
    assert config.model.name


def test_the_recipes_of_the_design_are_there():
    assert {"laptop", "smoke", "llama31-8b-qlora", "llama31-8b-lora16"} <= set(recipe_names())


# The numbers are the mission's, row "LoRA r=16, alpha=16, ...".
MISSION = {
    "model.max_seq_length": 2020,
    "lora.r": 16,
    "lora.alpha": 16,
    "lora.dropout": 0,
    "lora.bias": "none",
    "lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "lora.use_rslora": False,
    "train.batch_size": 2,
    "train.accumulation": 8,
    "train.learning_rate": 2e-4,
    "train.scheduler": "cosine",
    "train.warmup_steps": 100,
    "train.weight_decay": 0.01,
    "train.optimizer": "adamw_8bit",
    "train.gradient_checkpointing": "unsloth",
    "train.epochs": 0.5,
    "train.max_steps": None,
    "train.eval_steps": 50,
    "train.save_steps": 100,
    "train.keep_checkpoints": 3,
    "data.test_fraction": 0.1,
    "data.validation_fraction": 0.1,
    "data.system_prompt": "You are a sympathetic and helpful assistant. "
    "You answer people's questions in Bengali language.",
}


@pytest.mark.parametrize(
    ("recipe", "model", "four_bit"),
    [
        ("llama31-8b-qlora", "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", True),
        ("llama31-8b-lora16", "unsloth/Meta-Llama-3.1-8B-Instruct", False),
    ],
)
def test_the_llama_recipes_hold_exactly_the_missions_hyperparameters(recipe, model, four_bit):
    config, _ = resolve(recipe, {})
    assert {name: value_of(config, name) for name in MISSION} == MISSION
    assert config.model.name == model
    assert config.model.load_in_4bit is four_bit


def value_of(config, dotted):
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {rank: 8}", "unknown setting 'lora.rank' (recipe "),
        ("lora: {alhpa: 8}", "nearest: 'lora.alpha'"),
        ("train: {lerning_rate: 1}", "nearest: 'train.learning_rate'"),
        ("batch_size: 8", "unknown setting 'batch_size'"),
        ("trian: {epochs: 1}", "unknown setting 'trian'"),
        ("lora: {r: many}", "lora.r: got 'many': input should be a valid integer"),
        ("lora: {r: 0}", "lora.r: got 0: input should be greater than or equal to 1"),
        ("model: {dtype: fp16}", "model.dtype: got 'fp16': input should be 'auto', 'float32', 'float16' or 'bfloat16'"),
        ("data: {system_prompt: ''}", "data.system_prompt: got ''"),
        ("eval: {samples: 0}", "eval.samples: got 0"),
        ("eval: {samples: -3}", "eval.samples: got -3"),
        ("train: {save_steps: 25, eval_steps: 10}", "train.save_steps 25 is no multiple of train.eval_steps 10"),
        ("- a\n- b", "holds no settings"),
        ("", "holds no settings"),
        ("a: [", "is no valid YAML"),
        ("train: {epochs: 2}\nlora: {r: 8}\ntrain: {max_steps: 5}", "'train' stands there twice"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name_and_value(tmp_path, text, message):
    assert message in refusal(write(tmp_path, text), {})


def test_a_recipe_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00 no utf-8")
    assert "is no valid YAML" in refusal(str(path), {})


@pytest.mark.parametrize(
    ("name", "nearest"), [("laptp", "laptop"), ("llama31-8b", "llama31-8b-"), ("smok.yaml", "smoke")]
)
def test_an_unknown_recipe_names_the_nearest(name, nearest):
    message = refusal(name, {})
    assert f"no recipe {name!r}; nearest: '{nearest}" in message


def test_all_problems_are_told_at_once(tmp_path):
    recipe = write(tmp_path, "lora: {rank: 8, alpha: 0}\ntrain: {save_steps: 7, eval_steps: 2}\nnonsense: 1")
    message = refusal(recipe, {"model.dtype": "int3", "train.epohcs": "1"})
    for part in (
        "lora.rank",
        "lora.alpha: got 0",
        "no multiple",
        "nonsense",
        "model.dtype: got 'int3'",
        "train.epochs",
    ):
        assert part in message


def test_a_flag_beats_the_recipe_and_the_source_is_recorded(tmp_path):
    recipe = write(tmp_path, "lora: {r: 8, alpha: 8}")
    config, sources = resolve(recipe, {"lora.r": "32", "seed": "5"})
    assert (config.lora.r, config.lora.alpha, config.lora.dropout, config.seed) == (32, 8, 0.0, 5)
    assert sources["lora.r"] == "flag --lora.r"
    assert sources["lora.alpha"] == "recipe mine"
    assert sources["lora.dropout"] == "default"
    assert sources["seed"] == "flag --seed"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.max_steps", "none", None),
        ("train.max_minutes", "2.5", 2.5),
        ("train.report_to", "none", "none"),
        ("lora.bias", "none", "none"),  # once became None, and was refused
        ("train.gradient_checkpointing", "none", "none"),
        ("lora.target_modules", "q_proj,v_proj", ("q_proj", "v_proj")),
        ("lora.target_modules", "q_proj", ("q_proj",)),
        ("model.load_in_4bit", "true", True),
        ("model.load_in_4bit", "False", False),
        ("train.learning_rate", "1e-4", 1e-4),
        ("eval.samples", "all", "all"),
        ("eval.samples", "12", 12),
        ("data.system_prompt", "none", "none"),
    ],
)
def test_a_flags_text_becomes_the_settings_value(name, text, value):
    config, _ = resolve("smoke", {name: text})
    assert value_of(config, name) == value


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_every_setting_can_be_set_by_a_flag_to_what_it_is(name):
    config, _ = resolve("smoke", {})
    value = value_of(config, name)
    text = ",".join(value) if isinstance(value, tuple) else str(value).removeprefix("None") or "none"
    assert resolve("smoke", {name: text})[0] == config


def test_settings_cannot_be_changed_in_place():
    config, _ = resolve("smoke", {})
    with pytest.raises(ValueError, match="frozen"):
        config.lora.r = 3
    assert config.replace("lora.r", 3).lora.r == 3
    assert config.lora.r == 4


PROMPTS = st.text(min_size=1) | st.text(
    st.sampled_from("ক্ষ আমি।'\"#:-{}[]%&*!|>\\\t\r\n\u2028\u0085~?,@`0"), min_size=1
)


@given(
    prompt=PROMPTS,
    path=PROMPTS,
    rate=st.floats(0, 1, exclude_min=True, exclude_max=True, allow_subnormal=False),
    steps=st.none() | st.integers(1, 10**9),
    bits=st.booleans(),
    modules=st.lists(st.text(min_size=1), min_size=1, max_size=3),
)
@example("বলুন: \"ভালো\" # 'না'\n  দুই\n\nতিন ", "null", 1e-7, None, True, ["no", "1_0"])
@example("...", "2026-01-01", 0.5, 3, False, ["~"])
@example("a\n...\n", "true", 0.5, 3, False, ["- x"])
def test_what_a_run_writes_is_a_recipe_for_the_same_run(tmp_path_factory, prompt, path, rate, steps, bits, modules):
    config, sources = resolve("laptop", {})
    values = {
        "data.system_prompt": prompt,
        "data.path": path,
        "train.learning_rate": rate,
        "train.max_steps": steps,
        "model.load_in_4bit": bits,
        "lora.target_modules": tuple(modules),
    }
    for name, value in values.items():
        config = config.replace(name, value)
    file = tmp_path_factory.getbasetemp() / "round.yaml"
    file.write_bytes(to_yaml(config, sources).encode("utf-8"))
    assert resolve(str(file), {})[0] == config


LAST_NAMES = [f"{name.rpartition('.')[2]}: " for name in FIELD_NAMES]
YAML_PIECES = ["train:", "data:\n  path: ", "  lora: ", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "? ", "|", "\n"]
YAML_PIECES += [
    "!!int ",
    "!!float ''",
    "!!bool x",
    "!!timestamp",
    "!!binary x",
    "!!python/object:os.system",
    "\0",
    "\t",
]
YAML_PIECES += [
    "2026-02-31",
    "1:99:99",
    '"\\0"',
    '"\\ud800"',
    "9" * 5000,
    ".nan",
    "1e400",
    "~",
    "http://[",
    "---",
    "\ufeff",
]


@given(
    st.lists(st.sampled_from(YAML_PIECES) | st.sampled_from(LAST_NAMES) | st.text(max_size=4), max_size=10).map(
        lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass")
    )
    | st.binary(max_size=30)
)
@example(b"!!int")
@example(b"seed: 2026-02-31")
@example(b"[" * 2_000)
def test_any_bytes_as_a_recipe_are_settings_or_explained(tmp_path, content):
    (tmp_path / "any.yaml").write_bytes(content)
    resolved, said = kept_or_refused(resolve, str(tmp_path / "any.yaml"), {})
    assert said if resolved is None else to_yaml(*resolved).encode("utf-8")


ODD_VALUES = ["", "none", "nan", "inf", "1e400", "9" * 5000, "-1", "a,b", "~", "~nobody/x", "a" * 300, "x/" * 3000]
ODD_VALUES += [
    "\0",
    "\udcff",
    "http://[",
    "http://a:99999",
    "http://u:p@h",
    ".",
    " ",
    "a/b:c",
    "1_0",
    "১২",
    "auto",
    "all",
]


@given(st.sampled_from(FIELD_NAMES), st.sampled_from(ODD_VALUES) | st.text(max_size=8))
def test_any_value_of_a_flag_is_a_setting_or_explained(name, value):
    resolved, said = kept_or_refused(resolve, "smoke", {name: value})
    assert 0 < len(said) < 1500 if resolved is None else to_yaml(*resolved).encode("utf-8")
    with pytest.raises(UserError):
        resolve(f"{value}/no such recipe", {})


def test_a_written_recipe_says_where_each_value_came_from():
    text = to_yaml(*resolve("smoke", {"lora.r": "2"}))
    assert "  r: 2  # flag --lora.r\n" in text
    assert "  alpha: 8  # recipe smoke\n" in text
    assert "  dropout: 0.0  # default\n" in text
    assert list(yaml.safe_load(text)) == list(dict.fromkeys(name.split(".")[0] for name in FIELD_NAMES))


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("BNFT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/bnft")
    monkeypatch.setenv("BNFT_CACHE", "~/models")
    assert cache_dir() == Path.home() / "models"
    monkeypatch.setenv("BNFT_CACHE", "~nobody-of-this-name/models")
    with pytest.raises(UserError, match="Set BNFT_CACHE"):
        cache_dir()


def _environment_reads(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb", "putenv"):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in ("environ", "getenv", "putenv"))


def test_config_is_the_only_reader_of_the_environment():
    files = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "bnft").rglob("*.py")]
    reads = {
        f"{file.relative_to(REPOSITORY)}:{line}"
        for file in files
        for line in _environment_reads(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert [place for place in reads if not place.startswith("bnft/config.py:")] == []
    assert reads  # the search finds the reads that there are


def test_before_there_is_a_recipe_only_what_none_could_mend_is_refused():
    check_values({"train.save_steps": "7"})  # beside a recipe's train.eval_steps of 7 it is right
    with pytest.raises(UserError, match=r"lora\.r: got 'many'"):
        check_values({"train.save_steps": "7", "lora.r": "many"})
