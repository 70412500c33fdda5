"""Prefixes that are kept outside of an engine's pool: in the pool they slow down every step of the others.

llama.cpp's attention goes over every cell of its pool up to the last one in use, whoever uses it: of Qwen3-0.6B on
two cores each 1,000 kept tokens cost 0.4 to 0.7 ms of each answer's token, and a tenth of a prompt of 500. To move
them takes 20 ms (130 ms where memory is touched for the first time), to compute them anew some 6 seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeqwen.backends.base import Backend, Swap
from edgeqwen.generation import common_prefix
from edgeqwen.memory_need import SWAP_TOKENS

# A prompt ends in the opening of the answer's turn, with thinking off an empty block in it; the next turn's history
# writes that place differently (Qwen3: the 4 ids of the block). What shares all but so much goes on with that talk.
OPENING = 8


@dataclass(slots=True, eq=False)
class Kept:
    """What a sequence held, for whom, and the length of the last prompt in it."""

    owner: str
    ids: list[int]
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

    @property
    def tokens(self) -> int:
        """How many it has taken room for."""
        return SWAP_TOKENS * len(self._pieces())

    def put(self, sequence: int, owner: str, prompt_tokens: int, *, replace: bool) -> int | None:
        """Take over one piece of what a sequence holds: how many tokens are still to come, 0 when it can be cut.

        None where there is no room; without `replace` nothing goes to make some.
        """
        ids = list(self._backend.ids(sequence))
        like, shared = self.longest(owner, ids)
        if shared == len(ids):
            return 0
        here = like.pieces[: shared // SWAP_TOKENS] if like is not None else []
        old = like if like is not None and shared >= min(len(like.ids), like.prompt_tokens - OPENING) else None
        missing = -(-len(ids) // SWAP_TOKENS) - len(here)
        if not self._make_room(missing, here, old, replace=replace):
            return None
        start = SWAP_TOKENS * len(here)
        end = min(start + SWAP_TOKENS, len(ids))
        self._kept.append(Kept(owner, ids[:end], [*here, self._swap.take_out(sequence, start, end)], prompt_tokens))
        return len(ids) - end

    def longest(self, owner: str, ids: Sequence[int]) -> tuple[Kept | None, int]:
        """What shares most with `ids` of this owner's, and how much; of equals the last used."""
        best, shared = None, 0
        for kept in reversed(self._kept):
            if kept.owner == owner and (common := common_prefix(kept.ids, ids)) > shared:
                best, shared = kept, common
        return best, shared

    def give_back(self, kept: Kept, sequence: int, length: int) -> int:
        """Append the tokens up to `length` of what is kept to a sequence that holds those before; how many it got."""
        held = self._backend.length(sequence)
        while (start := self._backend.length(sequence)) < length:
            number = start // SWAP_TOKENS
            first = number * SWAP_TOKENS
            piece_tokens = min(SWAP_TOKENS, len(kept.ids) - first)
            if self._backend.room() < piece_tokens:  # it is put back whole, and cut then
                break
            self._swap.put_back(sequence, kept.pieces[number], kept.ids[start : min(first + piece_tokens, length)])
        self._kept.remove(kept)
        self._kept.append(kept)
        return self._backend.length(sequence) - held

    def _make_room(self, pieces: int, here: list[npt.NDArray[np.uint8]], old: Kept | None, *, replace: bool) -> bool:
        """Let go of `old`, and with `replace` of others, but not of the pieces that are `here`."""
        stay = {id(piece) for piece in here}
        free = self._capacity - len(self._pieces(without=old) | stay)
        if len(here) + pieces > self._capacity or (free < pieces and not replace):
            return False
        if old is not None:
            self._remove(old, stay)
        while self._capacity - len(self._pieces() | stay) < pieces:
            held = Counter[str]()
            for kept in self._kept:
                held[kept.owner] += len(kept.ids)
            self._remove(max(self._kept, key=lambda kept: held[kept.owner]), stay)  # of equals the first
        return True

    def _remove(self, kept: Kept, stay: Collection[int]) -> None:
        self._kept.remove(kept)
        shared = self._pieces()
        for piece in kept.pieces:
            if id(piece) not in shared and id(piece) not in stay:
                self._swap.recycle(piece)

    def _pieces(self, without: Kept | None = None) -> set[int]:
        """Ids of the objects."""
        return {id(piece) for kept in self._kept if kept is not without for piece in kept.pieces}
