"""Token ids -> text that only ever grows, by whole characters as a reader sees them, for one reply at a time.

A token is often half a character (in Llama 3.1 four of five Bengali tokens are), so tokens are joined as bytes, and
a grapheme cluster is shown when the next one has begun: until then a hasanta or a vowel sign may still change it.
Only a danda or a sentence mark is shown at once (a mark that a broken reply puts on top of one comes after it).
Leading and trailing whitespace is never shown. Knows nothing about models or threads.
"""

from __future__ import annotations

import codecs
import json
import re

import regex

from bnft.errors import UserError
from bnft.text import grapheme_clusters

_TIES = "\u09cd\u200c\u200d"  # hasanta and joiners: what follows them decides how they look
_FLUSH = frozenset("।॥.,;:?!…")
_WORDY = regex.compile(r"[\p{L}\p{M}]")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTable:
    """The bytes of each token of one tokenizer, each looked up once; control tokens have none.

    Attributes:
        byte_level: all tokens are bytes (Llama 3), not text with single bytes as the last resort (Gemma).
    """

    def __init__(self, tokenizer) -> None:
        self._backend = tokenizer.backend_tokenizer
        control = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._known = dict.fromkeys(control.union(tokenizer.all_special_ids), (b"", False))
        self.byte_level = _is_byte_level(self._backend)
        self._letters = _byte_letters() if self.byte_level else {}

    def __getitem__(self, token: int) -> tuple[bytes, bool]:
        """The token's bytes, and whether it is a single byte of a character that has no token of its own."""
        if token not in self._known:
            self._known[token] = self._look_up(token)
        return self._known[token]

    def _look_up(self, token: int) -> tuple[bytes, bool]:
        name = self._backend.id_to_token(token)
        if name is None:  # models have more rows than their tokenizer has tokens
            return b"", False
        if self.byte_level:
            letters = [self._letters.get(letter) for letter in name]
            return (name.encode() if None in letters else bytes(letters)), False
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)]), True
        return name.replace("▁", " ").encode(), False


def _is_byte_level(backend) -> bool:
    """Whether the tokenizer is a byte-level one; the other kind is SentencePiece with byte fallback."""
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": "none"}
    kinds = {part["type"] for part in state.get("decoders", [state])}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
        return True
    if "ByteFallback" in kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return False
    raise UserError(
        f"replies of this tokenizer cannot be streamed: its decoder is {', '.join(sorted(kinds))}",
        "Use a model with a byte-level tokenizer (Llama 3) or SentencePiece with byte fallback (Gemma).",
    )


def _byte_letters() -> dict[str, int]:
    """Byte-level BPE writes every byte as one visible letter: see gpt-2's src/encoder.py."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class _Utf8:
    """Bytes -> text as far as it is certain, equal to what the tokenizer's own decode says of the whole.

    That decode turns a run of single-byte tokens into U+FFFD, one a byte, unless the whole run is valid; so a run is
    waited for. Other invalid bytes become U+FFFD as they come.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._run = b""

    def push(self, data: bytes, lone: bool) -> str:
        if lone:
            self._run += data
            return ""
        return self._end_run() + self._decoder.decode(data) if data else ""

    def end(self) -> str:
        return self._end_run() + self._decoder.decode(b"", final=True)

    def cut(self) -> str:
        """What can be saved of a text that ends anywhere: a run's whole characters, without its torn end."""
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(self._run)
        except UnicodeDecodeError:
            return ""

    def _end_run(self) -> str:
        run, self._run = self._run, b""
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)


class Emitter:
    """The text of one reply so far.

    Every text is a prefix of the next. After `end` it is the tokenizer's decode of all tokens without control tokens,
    stripped; after `cut` it is that without half a character, hasanta or joiner at the end.
    """

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._utf8 = _Utf8()
        self._settled = ""  # begins with something visible
        self._open = ""  # what the next token may still change

    def push(self, token: int) -> str:
        new = self._utf8.push(*self._table[token])
        if new:
            self._open += new
            self._settle()
        return self._settled.rstrip()

    def end(self) -> str:
        """The whole text of a reply that the model ended."""
        return (self._settled + self._open + self._utf8.end()).strip()

    def cut(self) -> str:
        """The text of a reply that was stopped from outside: at the token limit or by its reader."""
        return (self._settled + self._open + self._utf8.cut()).rstrip(_TIES).strip()

    def _settle(self) -> None:
        *sure, last = grapheme_clusters(self._open)
        while sure and sure[-1][-1] in _TIES and _WORDY.match(last):
            last = sure.pop() + last
        if last in _FLUSH:
            sure, last = [*sure, last], ""
        self._settled += "".join(sure)
        self._open = last
        if self._settled[:1].isspace():
            self._settled = self._settled.lstrip()
