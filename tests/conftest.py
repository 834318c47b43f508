"""What many tests need: the tiny Llama, the embedded Gemma, and a dozen made-up conversations."""

import copy
import os
import shutil
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read at import by huggingface_hub: no test asks the network

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from bnft.data import Conversation
from bnft.errors import UserError
from bnft.models import find_model, load_model, load_tokenizer
from bnft.settings import ModelConfig
from tests.hub_server import running_hub
from tests.publisher import Person

# The short form of every property; benchmarks/fuzz.py runs the same ones with many more inputs. No deadline: a busy
# machine is no failure. Files that a property writes are written anew for each input.
settings.register_profile(
    "short",
    max_examples=int(os.environ.get("BNFT_FUZZ_INPUTS", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("short")

# Tests interrupt themselves and the commands they start: a job in a shell's background would ignore it, and so they.
signal.signal(signal.SIGINT, signal.default_int_handler)

SINGLES = (
    ("কাল পরীক্ষা, খুব ভয় লাগছে।", "পরীক্ষার আগে ভয় লাগাটা স্বাভাবিক। কোন বিষয়টা নিয়ে বেশি ভাবছেন?"),
    ("চাকরিটা চলে গেল আজ।", "এটা বড় একটা ধাক্কা। আজ আপনার মনটা কেমন আছে?"),
    ("মা অসুস্থ, ঘুমাতে পারি না।", "মায়ের চিন্তায় ঘুম না আসা খুব কষ্টের। পাশে কেউ আছেন?"),
    ("বন্ধুরা আর ডাকে না।", "একা হয়ে যাওয়ার কষ্টটা বুঝতে পারছি। কবে থেকে এমন লাগছে?"),
    ("আজ ভর্তি হয়েছি বিশ্ববিদ্যালয়ে!", "কী আনন্দের খবর! এত দিনের পরিশ্রমের ফল পেলেন।"),
    ("টাকার অভাবে সংসার চলছে না।", "প্রতিদিনের এই হিসাব খুব ক্লান্ত করে। কোন খরচটা সবচেয়ে ভারী?"),
    ("রাগ সামলাতে পারি না।", "রাগের পরে খারাপ লাগে, তাই না? শেষ কবে এমন হলো?"),
    ("বিয়ের জন্য সবাই চাপ দিচ্ছে।", "নিজের সিদ্ধান্তে এত চাপ পেলে দম বন্ধ লাগে। আপনি কী চান?"),
)
TALKS = (
    (("মন ভালো নেই।", "কী হয়েছে, বলবেন?"), ("জানি না, এমনিই।", "না জানলেও চলে। আমি শুনছি।")),
    (("দাদু চলে গেলেন।", "খুব দুঃখের কথা। তিনি কেমন মানুষ ছিলেন?"), ("গল্প বলতেন।", "সেই গল্পগুলো আপনার সঙ্গে আছে।")),
    (("বিদেশে একা লাগে।", "দূরে থাকাটা কঠিন।"), ("হ্যাঁ।", "কার কথা বেশি মনে পড়ে?"), ("মায়ের।", "মাকে আজ ফোন করবেন?")),
    (("ami khub tired.", "সারা দিনের ক্লান্তি জমেছে, তাই না?"), ("hmm", "আজ একটু বিশ্রাম নিন।")),
)


def kept_or_refused(read, *arguments):
    """What a reader makes of its input, or None, and then what its `UserError` says; any other error is a fault."""
    try:
        return read(*arguments), ""
    except UserError as error:
        return None, str(error)


def pytest_collection_modifyitems(items):
    for item in items:
        if "embedded" in item.fixturenames:  # loads Gemma 3 270M, and the first time converts it
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)  # the same random weights whichever tests ran before in this process


@pytest.fixture(scope="session")
def conversations():
    """Twelve: eight single questions, then four talks of two or three turns."""
    made = []
    for number, exchanges in enumerate([*((single,) for single in SINGLES), *TALKS]):
        messages = tuple(
            {"role": role, "content": text}
            for exchange in exchanges
            for role, text in zip(("user", "assistant"), exchange, strict=True)
        )
        made.append(Conversation(f"{number:012x}", "মন", messages, f"{number:012x}", (number + 1,)))
    return made


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny random Llama as a `ModelSource`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNFT_CACHE", str(tmp_path_factory.mktemp("cache")))  # made in a second, never an old one
        return find_model("smoke", announce=lambda text: None)


@pytest.fixture(scope="session")
def both_cache(tiny, embedded):
    """The cache of the tiny Llama with the embedded model in it, which a chat asks about crises."""
    models = Path(tiny.base).parent
    (models / Path(embedded.base).name).symlink_to(embedded.base)
    return models.parent


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny):
    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def _loaded_tiny_model(tiny):
    return load_model(tiny, ModelConfig(dtype="float32"))


@pytest.fixture
def tiny_model(_loaded_tiny_model):
    """A fresh copy, in float32: change it as you like."""
    return copy.deepcopy(_loaded_tiny_model)


@pytest.fixture
def tiny_gemma():
    """A random Gemma 3 with the tiny Llama's vocabulary; every second layer sees 16 positions back, no further."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(2)
    config = Gemma3TextConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        initializer_range=0.2,  # or the best token would be nearly the same everywhere
    )
    return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def embedded():
    """Gemma 3 270M as a `ModelSource`, from the user's real cache."""
    return find_model("embedded", announce=lambda text: None)


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded):
    return load_tokenizer(embedded)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny):
    """A finished smoke run, in 4 bit as the recipe has it, for reading only; `run` is a copy to write into."""
    import train

    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNFT_CACHE", str(Path(tiny.base).parent.parent))
        assert train.main(["--recipe", "smoke", "--output-dir", str(folder), "--run-name", "one"]) == 0
    left = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    yield folder / "one"
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == left, "a test wrote into the shared run"


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "outputs" / "one"))


@pytest.fixture
def server():
    """A small Hub on this machine."""
    with running_hub() as running:
        yield running


@pytest.fixture
def person(server, tiny, tmp_path):
    return Person(server, Path(tiny.base).parent.parent, tmp_path / "home")
