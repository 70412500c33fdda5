"""Prefixes that are kept outside of an engine's pool: in the pool they slow down every step of the others.

llama.cpp's attention goes over every cell of its pool up to the last one in use, whoever uses it: of Qwen3-0.6B on
two cores each 1,000 kept tokens cost 0.4 to 0.7 ms of each answer's token. To move them takes 20 ms (130 ms where
memory is touched for the first time), to compute them anew some 6 seconds.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeqwen.backends.base import Backend, Swap
from edgeqwen.errors import EngineError
from edgeqwen.memory_need import SWAP_TOKENS

# A prompt ends in the opening of the answer's turn, with thinking off an empty block in it; the next turn's history
# writes that place differently (Qwen3: the 4 ids of the block). What shares all but so much goes on with that talk.
OPENING = 8
TALKS_MAX = 64  # every prompt is compared with all of them, and each has its ids beside its pieces

logger = logging.getLogger("edgeqwen")


@dataclass(slots=True, eq=False)
class Kept:
    """What a sequence held, for whom, and the length of the last prompt in it."""

    owner: str
    ids: npt.NDArray[np.int32]
    pieces: list[npt.NDArray[np.uint8]]  # of SWAP_TOKENS tokens each, the last of what remains
    prompt_tokens: int


class Shelf:
    """Pieces of sequences; those of a common start are there once.

    The least recently used goes when there is no room; of several owners the one that has most loses first.
    """

    def __init__(self, backend: Backend, swap: Swap) -> None:
        self._backend = backend
        self._swap = swap
        self._capacity = swap.tokens // SWAP_TOKENS
        self._kept: list[Kept] = []  # the last used last
        self._uses = Counter[int]()  # how many hold a piece, by its id()

    @property
    def tokens(self) -> int:
        """How many it has taken room for."""
        return SWAP_TOKENS * len(self._uses)

    def put(self, sequence: int, owner: str, prompt_tokens: int, *, replace: bool) -> int | None:
        """Take over one piece of what a sequence holds: how many tokens are still to come, 0 when it can be cut.

        None where there is no room, or the engine does not give it; without `replace` nothing goes to make some.
        """
        ids = np.array(self._backend.ids(sequence), np.int32)
        like, shared = self.longest(owner, ids)
        if shared == len(ids):
            return 0
        here = like.pieces[: shared // SWAP_TOKENS] if like is not None else []
        old = like if like is not None and shared >= min(len(like.ids), like.prompt_tokens - OPENING) else None
        start = SWAP_TOKENS * len(here)
        end = min(start + SWAP_TOKENS, len(ids))
        new = Kept(owner, ids[:end], [*here], prompt_tokens)
        if not self._make_room(-(-len(ids) // SWAP_TOKENS) - len(here), new, old, replace=replace):
            return None
        try:
            new.pieces.append(self._swap.take_out(sequence, start, end))
        except EngineError as error:
            logger.warning("a kept prefix stays in the engine's pool: %s", error)
            self._remove(new)
            return None
        self._uses[id(new.pieces[-1])] += 1
        return len(ids) - end

    def longest(self, owner: str, ids: Sequence[int] | npt.NDArray[np.int32]) -> tuple[Kept | None, int]:
        """What shares most with `ids` of this owner's, and how much; of equals the last used."""
        wanted = np.asarray(ids, np.int32)
        best, shared = None, 0
        for kept in reversed(self._kept):
            if kept.owner == owner and (common := _common(kept.ids, wanted)) > shared:
                best, shared = kept, common
        return best, shared

    def give_back(self, kept: Kept, sequence: int, length: int) -> None:
        """Append the tokens up to `length` of what is kept to a sequence that holds those before, or some of them."""
        while (start := self._backend.length(sequence)) < length:
            number = start // SWAP_TOKENS
            first = number * SWAP_TOKENS
            piece_tokens = min(SWAP_TOKENS, len(kept.ids) - first)
            if self._backend.room() < piece_tokens:  # it is put back whole, and cut then
                break
            ids = kept.ids[start : min(first + piece_tokens, length)].tolist()
            try:
                self._swap.put_back(sequence, kept.pieces[number], ids)
            except EngineError as error:  # the rest is computed
                logger.warning("a kept prefix does not come back: %s", error)
                self._remove(kept)
                return
        self._kept.remove(kept)
        self._kept.append(kept)

    def _make_room(self, pieces: int, new: Kept, old: Kept | None, *, replace: bool) -> bool:
        """Let `new` in for `old`; with `replace` others go, too, until there is room for so many pieces more."""
        gone = sum(self._uses[id(piece)] == 1 for piece in old.pieces[len(new.pieces) :]) if old is not None else 0
        free = self._capacity - len(self._uses) + gone
        full = free < pieces or len(self._kept) - (old is not None) >= TALKS_MAX
        if len(new.pieces) + pieces > self._capacity or (full and not replace):
            return False
        self._kept.append(new)
        self._uses.update(map(id, new.pieces))
        if old is not None:
            self._remove(old)
        while self._capacity - len(self._uses) < pieces or len(self._kept) > TALKS_MAX:
            self._remove(self._least(new))
        return True

    def _least(self, new: Kept) -> Kept:
        held = Counter[str]()
        for kept in self._kept:
            held[kept.owner] += len(kept.ids)
        others = (kept for kept in self._kept if kept is not new)
        return max(others, key=lambda kept: held[kept.owner])  # of equals the first: least recent

    def _remove(self, kept: Kept) -> None:
        self._kept.remove(kept)
        for piece in kept.pieces:
            self._uses[id(piece)] -= 1
            if not self._uses[id(piece)]:
                del self._uses[id(piece)]
                self._swap.recycle(piece)


def _common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """How many ids two prompts share from their start."""
    end = min(len(a), len(b))
    if not end or a[0] != b[0]:
        return 0
    differ = a[:end] != b[:end]
    first = int(differ.argmax())
    return first if differ[first] else end
