"""An engine without weights, for tests here and elsewhere: the next id is a pure function of the ids so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeqwen.backends.base import Aside, Chunk, Ledger, Logits, Swap, check_chunks, check_load
from edgeqwen.backends.session_file import check_session, new_session
from edgeqwen.errors import EngineError, InterruptedForwardError, NoRoomError

Script = Callable[[Sequence[int]], int | np.ndarray]  # ids so far -> the next id, or a whole row of logits


class ScriptedBackend:
    """Answers by `script`; the logit of the id it names is 10 and all others are 0."""

    def __init__(
        self,
        script: Script,
        *,
        vocab_size: int,
        context_length: int = 4096,
        sequences: int = 1,
        pool_tokens: int | None = None,  # None: context_length for each sequence
        step_tokens: int = 512,
        swap_tokens: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.sequences = sequences
        self.step_tokens = self.step_rows = step_tokens
        self.native_s = 0.0
        self.forwarded: list[tuple[int, int]] = []  # (sequence, tokens) of every chunk that was computed
        self.aside: Aside | None = None
        self.swap: Swap | None = ScriptedSwap(self, swap_tokens) if swap_tokens else None
        self._script = script
        self._pool_tokens = pool_tokens or context_length * sequences
        self._ledger = Ledger(sequences)
        self._interrupted = False
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the model is closed")

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        self._check_open()
        check_chunks(chunks, self)
        if self._interrupted:
            self._interrupted = False
            raise InterruptedForwardError("the step was interrupted")
        return [self._append(chunk) for chunk in chunks]

    def _append(self, chunk: Chunk) -> Logits:
        held = self.length(chunk.sequence)
        self._ledger.append(chunk.sequence, chunk.ids)
        self.forwarded.append((chunk.sequence, len(chunk.ids)))
        ids = self._ledger.ids[chunk.sequence]
        ends = range(held + 1, len(ids) + 1)
        wanted = {"none": (), "last": ends[-1:], "all": ends}[chunk.rows]
        rows = [self._row(ids[:end]) for end in wanted]
        return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

    def _row(self, ids: Sequence[int]) -> np.ndarray:
        answer = self._script(ids)
        if isinstance(answer, np.ndarray):
            return answer
        row = np.zeros(self.vocab_size, np.float32)
        row[answer] = 10
        return row

    def length(self, sequence: int) -> int:
        return len(self._ledger.ids[sequence])

    def ids(self, sequence: int) -> Sequence[int]:
        return self._ledger.ids[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self._check_open()
        self._ledger.truncate(sequence, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self._check_open()
        self._ledger.copy(source, target, length)

    def pass_on(self, sequence: int, target: ScriptedBackend, into: int, start: int, end: int) -> None:
        """Of second_engine.Twin."""
        if end - start > target.room():
            raise NoRoomError(f"there is room for {target.room()} tokens, not for {end - start}")
        target._ledger.append(into, self._ledger.ids[sequence][start:end])

    def use_threads(self, count: int) -> None:
        """Of second_engine.Twin: there is nothing to share out."""

    def room(self) -> int:
        return self._pool_tokens - self._ledger.used

    def save(self, sequence: int, path: Path) -> None:
        self._check_open()
        with new_session(path):
            path.write_text(json.dumps(self._ledger.ids[sequence]), encoding="utf-8")

    def load(self, sequence: int, path: Path, ids: Sequence[int]) -> None:
        self._check_open()
        check_load(self, sequence, ids)
        size = check_session(path)
        saved = json.loads(path.read_bytes()[:size])
        if saved != list(ids):
            raise EngineError(f"{path}: is not a session of these {len(ids)} tokens")
        self._ledger.append(sequence, saved)

    def interrupt(self) -> None:
        self._interrupted = True

    def resume(self) -> None:
        self._interrupted = False

    def close(self) -> None:
        self._closed = True


class ScriptedSwap:
    """Cells that hold the ids themselves, so that what comes back can be seen to be what went out."""

    def __init__(self, backend: ScriptedBackend, tokens: int) -> None:
        self._backend = backend
        self.tokens = tokens

    def take_out(self, sequence: int, start: int, end: int) -> npt.NDArray[np.uint8]:
        return np.array([start, *self._backend.ids(sequence)[start:end]], np.int32).view(np.uint8)

    def put_back(self, sequence: int, cells: npt.NDArray[np.uint8], ids: Sequence[int]) -> None:
        start, *held = (int(value) for value in cells.view(np.int32))
        if len(held) > self._backend.room():
            raise NoRoomError(f"there is room for {self._backend.room()} tokens, not for {len(held)}")
        begin = self._backend.length(sequence) - start
        if held[begin : begin + len(ids)] != list(ids):
            raise EngineError("these cells hold other tokens")
        self._backend._ledger.append(sequence, ids)  # noqa: SLF001

    def recycle(self, cells: npt.NDArray[np.uint8]) -> None:
        cells[:] = 255  # whoever still reads them gets other tokens
