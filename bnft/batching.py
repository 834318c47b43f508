"""Many replies at the same time on one GPU: a thread writes one token of each in turn, readers come and go.

A reader's prompt is read in parts between two tokens of the others, so nobody waits long; who stops, leaves or fails
gives the row to the next within one token's time. What goes wrong in one reply reaches its reader alone; what goes
wrong in a step reaches all who were in it, and the thread goes on.
Knows nothing about prompts' contents, people or pages, and leaves tensors to bnft/rows.py.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from bnft.adapters import AdapterSwitch, is_adapted, switched_copy
from bnft.emitter import Emitter, TokenTable
from bnft.gpu_memory import free_bytes
from bnft.gpu_weights import unpack, unpacked_bytes
from bnft.rows import CHUNK, Flight, Rows, bytes_per_row
from bnft.streaming import Engine, Piece, Sampling, causal_part, score_cap

MOST_SEATS = 16
_WORKING_MEMORY = 2 << 30  # bytes of a GPU left free: a prompt's activations, recorded steps, the libraries' own
FAILURES = (RuntimeError, OSError, ValueError, LookupError, TypeError, MemoryError, ArithmeticError)


class _Reply:
    """One reader's reply, as the thread sees it.

    Attributes:
        items: what the reader is told: tokens, then a finish reason or an error.
        left: set when nobody reads any more.
        length: prompt and reply so far, with tokens that are still being computed.
    """

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, limit: int, stop: threading.Event, base: bool
    ) -> None:
        self.prompt, self.sampling, self.limit, self.stop, self.base = list(prompt), sampling, limit, stop, base
        self.items: queue.SimpleQueue[int | str | BaseException] = queue.SimpleQueue()
        self.left = threading.Event()
        self.read = self.drawn = 0
        self.length = len(self.prompt)
        self.over = False

    def end(self, item: str | BaseException) -> None:
        if not self.over:
            self.over = True
            self.items.put(item)

    @property
    def unwanted(self) -> bool:
        return self.left.is_set() or self.stop.is_set()


class BatchEngine:
    """Streams replies of one model to many readers at once; may be called from any thread.

    Args:
        model: a causal language model on one device, with or without a plain LoRA adapter on it. Its weights must not
            change afterwards.
        end_ids: the tokens at which a reply ends.
        context: the most tokens of a prompt and its reply together.
        seats: replies at the same time; more wait, first come, first served.
        unpacked: read 4-bit weights from a 16-bit copy, which is faster and takes four times their memory.

    Raises:
        ValueError: the adapter is of a kind that cannot be switched by the row.
    """

    @torch.inference_mode()
    def __init__(
        self, model, tokenizer, end_ids: Sequence[int], context: int, seats: int = MOST_SEATS, unpacked: bool = False
    ) -> None:
        causal = causal_part(model)
        switch = AdapterSwitch()
        head, body = causal.get_output_embeddings(), switched_copy(causal.get_decoder(), switch)
        if body is None or is_adapted(head):
            raise ValueError("this kind of adapter cannot be switched on and off by the row")
        if unpacked:
            unpack(body)
        self.seats, self._context = seats, context
        self.note = f"{seats} replies at a time" + (", 4-bit weights unpacked to 16 bit" if unpacked else "")
        self._vocabulary = causal.get_input_embeddings().num_embeddings
        self._table, self._end_ids = TokenTable(tokenizer), frozenset(end_ids)
        self._rows = Rows(body, head, switch, score_cap(causal), seats, context)
        self._rows.record()
        self._inbox: queue.SimpleQueue[_Reply | None] = queue.SimpleQueue()
        self._waiting: deque[_Reply] = deque()
        self._written: list[_Reply] = []  # the reply in each row, from row 0 on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replies", daemon=True)
        self._thread.start()

    def stream(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        stop: threading.Event | None = None,
        base: bool = False,
    ) -> Iterator[Piece]:
        """As `Engine.stream`; tokens are written whether or not the reader draws them at once."""
        if not prompt_ids:
            raise ValueError("the prompt is empty")
        if len(prompt_ids) >= self._context:
            raise ValueError(f"the prompt has {len(prompt_ids)} tokens, and prompt and reply must fit {self._context}")
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self._vocabulary:  # a GPU would end the whole process' work
            raise IndexError("the prompt holds a token that the model does not have")
        stop = stop or threading.Event()
        limit = min(sampling.max_new_tokens, self._context - len(prompt_ids))
        reply = _Reply(prompt_ids, sampling, limit, stop, base)
        self._inbox.put(reply)
        if self._ended.is_set():  # the thread may have looked for the last time before
            reply.end(RuntimeError("the engine is closed"))
        try:
            yield from self._pieces(reply)
        finally:
            reply.left.set()

    def _pieces(self, reply: _Reply) -> Iterator[Piece]:
        emitter = Emitter(self._table)
        for count in range(reply.limit + 1):
            item = reply.items.get()
            if isinstance(item, BaseException):
                raise item
            if item == "stopped" or reply.stop.is_set():
                yield Piece(emitter.cut(), count, "stopped")
                return
            if item == "stop":
                yield Piece(emitter.end(), count, "stop")
                return
            text = emitter.push(item)
            if count + 1 == reply.limit:
                yield Piece(emitter.cut(), reply.limit, "length")
                return
            yield Piece(text, count + 1, None)

    def close(self) -> None:
        """Ends the thread; replies that are being written end with an error."""
        self._inbox.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        flight: tuple[Flight, list[_Reply]] | None = None
        try:
            while self._take_in(wait=not (self._written or self._waiting or flight)):
                self._drop_unwanted()
                self._read_on()
                ahead = self._launch()
                if flight:  # told while the device computes the next tokens
                    self._tell(*flight)
                flight = ahead
        finally:
            self._ended.set()
            while not self._inbox.empty():
                if reply := self._inbox.get():
                    self._waiting.append(reply)
            for reply in (*self._written, *self._waiting):
                reply.end(RuntimeError("the engine is closed"))

    def _take_in(self, wait: bool) -> bool:
        """New replies join the line; False when the engine is to end."""
        while True:
            try:
                reply = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if reply is None:
                return False
            self._waiting.append(reply)
            wait = False

    def _drop_unwanted(self) -> None:
        for reply in [reply for reply in (*self._written, *self._waiting) if reply.unwanted]:
            reply.end("stopped")
            if reply in self._waiting:
                self._waiting.remove(reply)
        self._close_up()

    def _close_up(self) -> None:
        """Rows of replies that are over are filled from the end, so that those in use stay side by side."""
        for row in reversed(range(len(self._written))):
            if self._written[row].over:
                last = len(self._written) - 1
                if row == last:
                    self._rows.leave(row)
                else:
                    self._rows.move(last, row)
                    self._written[row] = self._written[last]
                self._written.pop()

    def _read_on(self) -> None:
        """The next part of the prompt of the reply whose turn it is; with all of it read, it gets a row.

        The prompt's last token is left to the step in which the first new token is drawn.
        """
        if not self._waiting or len(self._written) == self.seats:
            return
        reply = self._waiting[0]
        try:
            if reply.read == 0:
                self._rows.open(reply.prompt, reply.sampling, reply.base)
            part = reply.prompt[reply.read : -1][:CHUNK]
            if part:
                self._rows.read(part, reply.read)
                reply.read += len(part)
            if reply.read == len(reply.prompt) - 1:
                self._rows.move(self._rows.staging, len(self._written))
                self._written.append(self._waiting.popleft())
        except FAILURES as error:
            self._waiting.popleft()
            self._fail([reply], error)

    def _launch(self) -> tuple[Flight, list[_Reply]] | None:
        if not self._written:
            return None
        replies = list(self._written)
        try:
            flight = self._rows.step(len(replies), max(reply.length for reply in replies))
        except FAILURES as error:
            self._fail(replies, error)
            return None
        for reply in replies:
            reply.length += 1
        return flight, replies

    def _tell(self, flight: Flight, replies: list[_Reply]) -> None:
        try:
            tokens = flight.tokens()
        except FAILURES as error:
            self._fail(replies, error)
            return
        for reply, token in zip(replies, tokens, strict=False):
            if reply.over:
                continue
            if token in self._end_ids:
                reply.end("stop")
                continue
            reply.items.put(token)
            reply.drawn += 1
            reply.over = reply.drawn == reply.limit
        self._close_up()

    def _fail(self, replies: list[_Reply], error: BaseException) -> None:
        """Tells the readers, and gives back what the failed work holds on the device."""
        traceback.clear_frames(error.__traceback__)
        for reply in replies:
            reply.end(error)
        self._close_up()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_engine(model, tokenizer, end_ids: Sequence[int], context: int) -> Engine | BatchEngine:
    """The engine that suits the model's place: many seats where the whole model is on one GPU and memory allows."""
    causal = causal_part(model)
    devices = {parameter.device for parameter in causal.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return Engine(model, tokenizer, end_ids)
    if switched_copy(causal.get_decoder(), AdapterSwitch()) is None or is_adapted(causal.get_output_embeddings()):
        return Engine(model, tokenizer, end_ids)
    seats, unpacked = room_for(causal, context)
    if not seats:
        return Engine(model, tokenizer, end_ids)
    return BatchEngine(model, tokenizer, end_ids, context, seats, unpacked)


def room_for(causal, context: int, memory: int | None = None) -> tuple[int, bool]:
    """How many replies have room on the model's GPU beside the model, at most `MOST_SEATS`, and whether unpacked
    weights have room beside those.

    Args:
        memory: bytes that may be taken; the GPU's free memory where none is given.
    """
    if memory is None:
        memory = free_bytes(causal.device)
    body = causal.get_decoder()
    row = bytes_per_row(body, context)
    left = memory - _WORKING_MEMORY - row  # one row more than seats, in which prompts are read
    seats = max(0, min(MOST_SEATS, left // row))
    return seats, 0 < unpacked_bytes(body) <= left - seats * row
