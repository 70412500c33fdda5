"""Which sequence of an engine holds what, and for whom: a prefix is shared within one owner, never between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgeqwen.backends.base import Backend
from edgeqwen.generation import common_prefix
from edgeqwen.memory_need import SWAP_TOKENS
from edgeqwen.server.shelf import OPENING, Shelf


@dataclass(slots=True)
class _Slot:
    owner: str = ""
    busy: bool = False  # a request computes in it
    prompt_tokens: int = 0  # of the last request that ran in it, or runs
    shelved: int = 0  # tokens of it that were put on the shelf, or found no room there
    used: int = 0  # tick of its last use


class PrefixCache:
    """The sequences of a backend. `take` one for a prompt, `release` it; what it holds stays until room is needed.

    Where kept sequences slow the engine down they are copied to a shelf piece by piece, cut when others run, and come
    back on use.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._shelf = Shelf(backend, backend.swap) if backend.swap is not None else None
        self._capacity = backend.room()
        self._slots = [_Slot() for _ in range(backend.sequences)]
        self._tick = 0

    def take(self, owner: str, ids: Sequence[int], headroom: int) -> tuple[int, int] | None:
        """A sequence for a prompt and how many of its ids it holds already, all but the last one at most.

        None where no sequence is free or the pool cannot take the rest of the prompt and `headroom` tokens more.
        """
        idle = [number for number, slot in enumerate(self._slots) if not slot.busy]
        if not idle:
            return None
        source, shared = self._longest(owner, ids[:-1], range(len(self._slots)))
        self._cut_shelved(keep={source})
        target = self._target(idle, source, shared)
        needed = len(ids) - shared + headroom
        if target != source:
            self._put_away(target)
        self._backend.truncate(target, shared if target == source else 0)
        if not self.make_room(needed, keep={source, target}):
            if source not in idle:
                return None
            target = source  # the tail of what it holds is worth less than this prompt
            self._backend.truncate(target, shared)
            if not self.make_room(needed, keep={target}):
                return None
        if target != source and shared:
            self._backend.copy(source, target, shared)
            self._touch(source)
        held = self._slots[target].shelved if target == source else 0
        self._slots[target] = _Slot(owner, busy=True, prompt_tokens=len(ids), shelved=min(held, shared))
        self._touch(target)
        return target, shared

    def extend(self, sequence: int, ids: Sequence[int]) -> None:
        """Let a busy sequence have what others of its owner, or the shelf, hold of `ids`."""
        self._from_others(sequence, ids)
        self._from_shelf(sequence, ids)

    def _from_shelf(self, sequence: int, ids: Sequence[int]) -> None:
        if self._shelf is None:
            return
        owner, held = self._slots[sequence].owner, self._backend.length(sequence)
        kept, shared = self._shelf.longest(owner, ids)
        if kept is None or shared <= held:
            return
        if self._backend.room() < shared - held:
            self.make_room(shared - held)  # which may put something in its place
            kept, shared = self._shelf.longest(owner, ids)
        if kept is not None:
            self._shelf.give_back(kept, sequence, shared)

    def _from_others(self, sequence: int, ids: Sequence[int]) -> None:
        others = [number for number in range(len(self._slots)) if number != sequence]
        source, shared = self._longest(self._slots[sequence].owner, ids, others)
        if shared > self._backend.length(sequence):
            self._backend.copy(source, sequence, shared)

    def release(self, sequence: int, prompt_tokens: int) -> None:
        """The request in `sequence` has ended, or gives way; `prompt_tokens` were its prompt's."""
        self._slots[sequence].busy = False
        self._slots[sequence].prompt_tokens = prompt_tokens
        self._touch(sequence)

    def make_room(self, tokens: int, keep: Collection[int] = ()) -> bool:
        """Drop what is idle, the least recently used first, until the pool can take `tokens`; False if it cannot.

        Of several owners the one that holds most loses first: none can push out what all the others have.
        """
        while self._backend.room() < tokens:
            if not self.drop(keep):
                return False
        return True

    def drop(self, keep: Collection[int] = ()) -> bool:
        """Empty one idle sequence; False where there is none."""
        idle = [number for number in self._idle() if number not in keep]
        if idle:
            least = self._least(idle)
            self._put_away(least)
            self._empty(least)
        return bool(idle)

    def tidy(self, pieces: int) -> None:
        """Before a step: copy so many pieces to the shelf, and cut idle sequences that are there whole."""
        while pieces and self.copy_one():
            pieces -= 1
        self._cut_shelved()

    def copy_one(self) -> bool:
        """Copy a piece to the shelf, of what is idle first; False where nothing is left to copy, or no room for it."""
        if self._shelf is None:
            return False
        held = [self._backend.length(number) for number in range(len(self._slots))]
        left = [length - slot.shelved for length, slot in zip(held, self._slots, strict=True)]
        idle = [number for number in self._idle() if left[number] > 0]
        running = (n for n, slot in enumerate(self._slots) if slot.busy and left[n] >= SWAP_TOKENS)
        number = self._least(idle) if idle else next(running, None)
        if number is None:
            return False
        too_much = self._shelf.tokens + sum(held) > self._capacity  # more than is kept without a shelf
        return self._put(number, replace=too_much) is not None

    def _cut_shelved(self, keep: Collection[int] = ()) -> None:
        """Empty the idle sequences that the shelf has whole."""
        for number in self._idle():
            length = self._backend.length(number)
            if number not in keep and self._slots[number].shelved == length and self._put(number, replace=False) == 0:
                self._empty(number)

    def _idle(self) -> list[int]:
        """Sequences that hold something for nobody who runs."""
        return [n for n, slot in enumerate(self._slots) if not slot.busy and self._backend.length(n)]

    def _put_away(self, number: int) -> None:
        """Keep all of a sequence that is about to be cut, if there is a place for it."""
        while self._backend.length(number) and self._put(number, replace=True):
            pass

    def _put(self, number: int, *, replace: bool) -> int | None:
        """Put the next piece of a sequence on the shelf: how many tokens are still to come, None where none can."""
        slot = self._slots[number]
        if self._shelf is None:
            return None
        left = self._shelf.put(number, slot.owner, slot.prompt_tokens, replace=replace)
        if left is not None or slot.busy:  # a running one tries again when it is a piece longer
            slot.shelved = self._backend.length(number) - (left or 0)
        return left

    def _empty(self, number: int) -> None:
        self._backend.truncate(number, 0)
        self._slots[number].shelved = 0

    def _longest(self, owner: str, ids: Sequence[int], sequences: Collection[int]) -> tuple[int, int]:
        """The sequence of this owner that shares most with `ids`, and how much; of equals the last used."""
        best, shared = -1, 0
        for number in sorted(sequences, key=lambda number: -self._slots[number].used):
            if self._slots[number].owner == owner:
                common = common_prefix(self._backend.ids(number), ids)
                if common > shared:
                    best, shared = number, common
        return best, shared

    def _target(self, idle: list[int], source: int, shared: int) -> int:
        """Where a prompt is computed: behind the talk it continues, else in an empty sequence, else in the oldest."""
        if source in idle and shared >= self._slots[source].prompt_tokens - OPENING:
            return source
        empty = [number for number in idle if not self._backend.length(number)]
        others = [number for number in idle if number != source]
        return empty[0] if empty else self._least(others) if others else source

    def _least(self, idle: list[int]) -> int:
        held = Counter[str]()
        for number, slot in enumerate(self._slots):
            if not slot.busy:
                held[slot.owner] += self._backend.length(number)
        return min(idle, key=lambda number: (-held[self._slots[number].owner], self._slots[number].used))

    def _touch(self, sequence: int) -> None:
        self._tick += 1
        self._slots[sequence].used = self._tick
