"""Open the chat in which people write Bengali and read Bengali as it is being written.

    python app.py                              the newest run of train.py; without one, the embedded base model
    python app.py --model outputs/RUN          a run, an adapter or model folder, a GGUF file, a Hub id
    python app.py --endpoint http://HOST:8000  in front of any OpenAI-compatible server (vLLM, TGI, transformers serve)
    python app.py --host 0.0.0.0 --port 7860   for other machines

Model -> Chat -> page. The same file is the entry of a Space on Hugging Face.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from bnft.config import REPOSITORY, default_environment, from_environment, path_of
from bnft.errors import UserError, run_command
from bnft.flags import Parser, add_address_flags
from bnft.settings import ModelConfig


def build_parser() -> Parser:
    parser = Parser("app.py", __doc__)
    parser.add_argument("--model", metavar="RUN|DIR|HUB_ID", help="what replies [newest run, else the embedded base]")
    parser.add_argument("--load-in-4bit", action="store_true", help="quantise the weights: an 8B model in about 5 GB")
    parser.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible server replies; --model is its name there"
    )
    add_address_flags(parser)
    parser.add_argument("--output-dir", default="outputs", help="where runs are found and feedback is kept [outputs]")
    return parser


def read_flags(argv: list[str] | None) -> Namespace:
    flags = build_parser().parse_args(argv)
    if flags.endpoint and flags.load_in_4bit:
        raise UserError("--load-in-4bit cannot change a model behind --endpoint", "Leave one of them out.")
    return flags


def open_source(flags: Namespace):
    """The source of replies, and what is known about it; the model is loaded when this returns."""
    from bnft.serving import Served, describe, newest_run, open_model

    if flags.endpoint:
        from bnft.endpoint import EndpointSource

        remote = EndpointSource(flags.endpoint, flags.model)
        print(f"model: {remote.model} at {remote.url}")
        return remote, Served(remote.model.rsplit("/", 1)[-1])
    chosen = flags.model or from_environment("BNFT_MODEL")  # a Space is told so
    run = chosen or newest_run(path_of(flags.output_dir))
    why = "as set" if chosen else "the newest run" if run else "no run found; python train.py makes one"
    print(f"model: {run or 'embedded'} ({why})")
    config = ModelConfig(name=run or "embedded", load_in_4bit=flags.load_in_4bit)
    found = open_model(config.name)
    served = describe(found)
    from bnft.chat import LocalSource
    from bnft.models import load_model, load_tokenizer, resolve_dtype
    from bnft.zero_gpu import first_device

    source = LocalSource(load_model(found, config, first_device()), load_tokenizer(found))
    print("dtype: {} ({})".format(*resolve_dtype(config.dtype)))
    return source, served


def open_page(source, served, feedback: Path, detector):
    """The page and the counts of its chat's decisions."""
    from bnft.chat import Chat
    from bnft.feedback import FeedbackStore
    from bnft.serving import TRAIN_COMMAND
    from bnft.turns import Settings
    from bnft.ui import build_demo
    from bnft.ui_parts import About

    chat = Chat(source, detector, served.system_prompt)
    demo = build_demo(
        chat.reply,
        chat.is_sensitive,
        About(served.name, served.base, served.licence, served.metrics, "" if served.trained else TRAIN_COMMAND),
        Settings.from_defaults(served.generation),
        served.system_prompt,
        FeedbackStore(feedback, served.name),
        can_compare=source.can_compare,
    )
    return demo, chat.counts


def run(argv: list[str] | None) -> int:
    flags = read_flags(argv)
    default_environment("GRADIO_ANALYTICS_MAX_EVENTS", "1")  # or it sums up ten thousand calls after each of them
    feedback = REPOSITORY / path_of(flags.output_dir) / "feedback"
    from bnft.allocator import share_freed_memory
    from bnft.startup import collector_paused, fit_aside

    share_freed_memory()
    with collector_paused():
        fitted = fit_aside()
        source, served = open_source(flags)
        print("opening the page")
        from bnft.crisis_reader import CrisisReader
        from bnft.safety import CrisisDetector

        reader = CrisisReader()
        fitted()
        demo, counts = open_page(source, served, feedback, CrisisDetector.from_repository(reader))
    from bnft.ui_look import serve, stay_open

    print(f"open {serve(demo, flags.host, flags.port, flags.share)} (Ctrl+C ends it)", flush=True)
    reader.prepare()
    try:
        stay_open(demo)
    finally:
        if told := str(counts):
            print(f"messages by risk: {told}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
