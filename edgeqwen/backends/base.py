"""What every engine does: token ids in, logits out; below this line there is no text, no template and no tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeqwen.errors import EngineError, NoRoomError

Logits = npt.NDArray[np.float32]  # [rows, vocab_size]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Ids that go to the end of one sequence, and the positions whose logits are wanted."""

    sequence: int
    ids: Sequence[int]
    rows: Literal["last", "all", "none"] = "last"


class Aside(Protocol):
    """A place where one prompt at a time is computed piece by piece while its backend's steps go on.

    `start` a piece, take steps as long as it is `running`, then `finish` it. Pieces stay aside, for every token that is
    added to a pool slows its steps down, until `hand_over` appends them; or `drop`. Till then the sequence must not
    change.
    """

    step_tokens: int  # the most that a piece has

    def start(self, chunk: Chunk, owner: str = "") -> None:
        """Begin to compute what follows in its sequence, behind what is still aside; `rows` are "last" or "none".

        What is left there of an earlier prompt is of use for the same owner alone, lest its time tells another of it.
        """
        ...

    @property
    def running(self) -> bool: ...

    def wait(self, seconds: float) -> None:
        """Wait for the piece, `seconds` at most."""
        ...

    def finish(self) -> Logits:
        """The logits of the piece, a view that the next `start` overwrites. EngineError where it failed."""
        ...

    @property
    def ahead(self) -> int:
        """Tokens of finished pieces that the sequence does not hold yet."""
        ...

    def hand_over(self, tokens: int) -> None:
        """Append so many of them to the sequence; NoRoomError where the pool is full."""
        ...

    def drop(self) -> None:
        """Stop the piece, append what finished ones have computed as far as there is room, and forget the rest."""
        ...

    def close(self) -> None: ...


class Swap(Protocol):
    """A way out of a pool whose every token slows each step down, whosever it is; and back."""

    tokens: int  # that memory was planned for outside

    def take_out(self, sequence: int, start: int, end: int) -> npt.NDArray[np.uint8]:
        """A copy of what the cells of these tokens hold, SWAP_TOKENS at most; the sequence stays as it is."""
        ...

    def put_back(self, sequence: int, cells: npt.NDArray[np.uint8], ids: Sequence[int]) -> None:
        """Append those of the tokens taken out that stand behind the sequence's end: `ids`, and none behind them.

        NoRoomError where the pool cannot take all of `cells` for a moment.
        """
        ...

    def recycle(self, cells: npt.NDArray[np.uint8]) -> None:
        """Nobody needs them any more."""
        ...


class Backend(Protocol):
    """An engine with its weights and `sequences` KV caches, numbered from 0, over one pool of tokens.

    Not thread-safe: one caller at a time. Every error is one of edgeqwen.errors; after an error in `forward` the
    chunks' sequences are as long as before it.
    """

    vocab_size: int
    context_length: int  # tokens that one sequence can hold
    sequences: int
    step_tokens: int  # the most tokens that one `forward` takes
    step_rows: int  # the most rows of logits that one `forward` gives: a row of Qwen3 is 608 KB
    native_s: float  # seconds spent inside the engine's own code so far
    aside: Aside | None
    swap: Swap | None  # None: what is kept slows nothing down, or there is no memory for it elsewhere

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """Append the chunks, at most one for a sequence; one [rows, vocab_size] array a chunk, in order.

        The arrays are views that the next call overwrites: who keeps, copies.
        """
        ...

    def length(self, sequence: int) -> int: ...

    def ids(self, sequence: int) -> Sequence[int]:
        """The tokens that a sequence holds; a view, valid until the sequence changes."""
        ...

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first `length` tokens of a sequence."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` the first `length` tokens of `source`; what it held before is dropped."""
        ...

    def room(self) -> int:
        """Tokens that the pool can still take, over all sequences."""
        ...

    def save(self, sequence: int, path: Path) -> None:
        """Write a sequence's KV cache to a new file; EngineError where there is one."""
        ...

    def load(self, sequence: int, path: Path, ids: Sequence[int]) -> None:
        """Read what `save` wrote into an empty sequence; `ids` are the tokens it must hold. EngineError if not.

        That it was saved with the same weights is for the caller to know: another model of the same shape is not seen.
        """
        ...

    def interrupt(self) -> None:
        """From any thread: make the running `forward`, or the next one, stop with InterruptedForwardError."""
        ...

    def resume(self) -> None:
        """Forget an `interrupt` that found nothing to stop."""
        ...

    def close(self) -> None:
        """Free everything; calls after it are EngineErrors, but for another close."""
        ...


class Ledger:
    """Which ids each sequence holds and how many cells of the pool that takes; cells shared by `copy` count once."""

    def __init__(self, sequences: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(sequences)]
        self._cells: list[list[int]] = [[] for _ in range(sequences)]
        self._holders: dict[int, int] = {}  # cell -> how many sequences hold it
        self._next_cell = 0

    @property
    def used(self) -> int:
        return len(self._holders)

    def append(self, sequence: int, ids: Sequence[int]) -> None:
        cells = range(self._next_cell, self._next_cell + len(ids))
        self._next_cell += len(ids)
        self.ids[sequence].extend(ids)
        self._cells[sequence].extend(cells)
        self._holders.update(dict.fromkeys(cells, 1))

    def truncate(self, sequence: int, length: int) -> None:
        for cell in self._cells[sequence][length:]:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                del self._holders[cell]
        del self.ids[sequence][length:], self._cells[sequence][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        if source == target:
            self.truncate(source, length)
            return
        self.truncate(target, 0)
        self.ids[target] = self.ids[source][:length]
        self._cells[target] = self._cells[source][:length]
        for cell in self._cells[target]:
            self._holders[cell] += 1


def check_chunks(chunks: Sequence[Chunk], backend: Backend) -> None:
    """Refuse what no engine could take, before native code sees it."""
    seen: set[int] = set()
    total = rows = 0
    for chunk in chunks:
        if not 0 <= chunk.sequence < backend.sequences or chunk.sequence in seen:
            raise EngineError(f"sequence {chunk.sequence}: there are {backend.sequences}, each once in a step")
        seen.add(chunk.sequence)
        if not chunk.ids:
            raise EngineError(f"sequence {chunk.sequence}: a chunk needs at least one id")
        if not (min(chunk.ids) >= 0 and max(chunk.ids) < backend.vocab_size):
            raise EngineError(f"ids must be 0..{backend.vocab_size - 1}, found {min(chunk.ids)}..{max(chunk.ids)}")
        held = backend.length(chunk.sequence)
        if held + len(chunk.ids) > backend.context_length:
            raise NoRoomError(
                f"sequence {chunk.sequence} holds {held} tokens and cannot take {len(chunk.ids)} "
                f"more: its context is {backend.context_length}"
            )
        total += len(chunk.ids)
        rows += {"none": 0, "last": 1, "all": len(chunk.ids)}[chunk.rows]
    if total > backend.step_tokens or rows > backend.step_rows:
        raise EngineError(
            f"a step takes at most {backend.step_tokens} tokens and {backend.step_rows} rows of logits, "
            f"found {total} and {rows}"
        )
    if total > backend.room():
        raise NoRoomError(f"the KV cache has room for {backend.room()} tokens, the step needs {total}")


def check_load(backend: Backend, sequence: int, ids: Sequence[int]) -> None:
    """Refuse a session of these ids where it has no place, before any of it is read."""
    held = backend.length(sequence)
    if held:
        raise EngineError(f"sequence {sequence} holds {held} tokens; a session needs an empty one")
    room = min(backend.context_length, backend.room())
    if len(ids) > room:
        raise NoRoomError(f"a session of {len(ids)} tokens: there is room for {room}")
