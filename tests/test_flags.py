"""Command lines -> settings by dotted name, with errors that name the nearest flag."""

import pytest

import app
import publish
from bnft import rate, report
from bnft.errors import UserError
from bnft.flags import SHORT, as_typed, parse
from bnft.settings import FIELD_NAMES, iterate_fields
from train import build_parser


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("", {}),
        ("--lora.r 32", {"lora.r": "32"}),
        ("--lora.r=32", {"lora.r": "32"}),
        ("--lora.r 8 --lora.r 32", {"lora.r": "32"}),
        ("--max-steps 5 --seed=7", {"train.max_steps": "5", "seed": "7"}),
        ("--plan --train.learning_rate 1e-4 --run-name x --model smoke", {"train.learning_rate": "1e-4"}),
        ("--data.path=a=b.csv", {"data.path": "a=b.csv"}),
        ("--data.system_prompt=", {"data.system_prompt": ""}),
        ("--train.weight_decay -1", {"train.weight_decay": "-1"}),
        ("--data.system_prompt=--plan", {"data.system_prompt": "--plan"}),
    ],
)
def test_settings(line, settings):
    found = parse(build_parser(), line.split())
    assert {name: found.settings[name] for name in settings} == settings
    if not line:
        assert found.settings == {}


def test_own_flags_and_settings_are_kept_apart():
    found = parse(build_parser(), ["--run-name", "প্রথম রান", "--lora.r", "4", "--plan", "--model", "smoke"])
    assert found.own.run_name == "প্রথম রান"
    assert found.own.plan
    assert found.settings == {"lora.r": "4", "model.name": "smoke"}
    assert not [name for name in vars(found.own) if name in FIELD_NAMES]


def test_a_value_with_blanks_and_bengali_stays_whole():
    found = parse(build_parser(), ["--data.system_prompt", "- আপনি একজন বন্ধু = ভালো।"])
    assert found.settings == {"data.system_prompt": "- আপনি একজন বন্ধু = ভালো।"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lora.rr 3", "unknown argument '--lora.rr'; nearest: --lora.r"),
        ("--max-step 3", "unknown argument '--max-step'; nearest: --max-steps"),
        ("--train.lr 3", "unknown argument '--train.lr'"),
        ("--pla", "unknown argument '--pla'; nearest: --plan"),
        ("corpus.csv", "unknown argument 'corpus.csv'"),
        ("--lora.r", "--lora.r needs a value"),
        ("--lora.r --plan", "--lora.r needs a value"),
        # Once: --lora.r took "--data.path" as its value, and the complaint was about x.csv.
        ("--lora.r --data.path x.csv", "--lora.r needs a value"),
        ("--seed", "argument --seed: expected one argument"),
        ("--resume a --eval-only b", "not allowed with argument"),
    ],
)
def test_a_wrong_line_is_a_user_error(line, message):
    with pytest.raises(UserError) as caught:
        parse(build_parser(), line.split())
    assert message in caught.value.message
    assert "train.py --help" in caught.value.hint
    assert caught.value.exit_code == 2


def test_help_tells_every_setting_with_description_and_default():
    text = build_parser().format_help()
    for name, description, default in iterate_fields():
        assert f"--{name} " in text
        assert f"{description} [{as_typed(default)}]" in text
    for flag in SHORT:
        assert flag in text


def test_help_tells_the_choices_and_defaults_as_they_are_typed():
    """A newcomer reads in --help what --strategy takes, not in the complaint about another value."""
    text = build_parser().format_help()
    for told in ("back end (auto|unsloth|peft) [auto]", "(QLoRA) [false]", "a Hub id [none]", "[q_proj,k_proj,"):
        assert told in text


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        (publish, "--repo a/b --dryrun", "unknown argument '--dryrun'; nearest: --dry-run"),
        (app, "--models x", "unknown argument '--models'; nearest: --model"),
        (app, "--port abc", "--port abc is no port"),
        (app, "--port 0", "--port 0 is no port"),
        (report, "outputs other", "unknown argument 'other'"),
        (rate, "--sumary RUN", "unknown argument '--sumary'; nearest: --summary"),
    ],
)
def test_every_command_names_the_nearest_flag(program, line, message):
    with pytest.raises(UserError) as caught:
        program.build_parser().parse_args(line.split())
    assert message in caught.value.message


@pytest.mark.parametrize(("program", "command"), [(publish, "publish.py"), (report, "-m bnft.report")])
def test_help_shows_the_command_as_it_is_typed(program, command):
    assert program.build_parser().format_help().startswith(f"usage: python {command} ")
