"""Which sequence of an engine holds what, and for whom: a prefix is shared within one owner, never between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgeqwen.backends.base import Backend
from edgeqwen.generation import common_prefix

# A prompt ends in the opening of the answer's turn, with thinking off an empty block in it; the next turn's history
# writes that place differently (Qwen3: the 4 ids of the block). What shares all but so much goes on with that talk.
OPENING = 8


@dataclass(slots=True)
class _Slot:
    owner: str = ""
    busy: bool = False  # a request computes in it
    prompt_tokens: int = 0  # of the last request that ran in it
    used: int = 0  # tick of its last use


class PrefixCache:
    """The sequences of a backend. `take` one for a prompt, `release` it; what it holds stays until room is needed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
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
        target = self._target(idle, source, shared)
        needed = len(ids) - shared + headroom
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
        self._slots[target] = _Slot(owner, busy=True)
        self._touch(target)
        return target, shared

    def extend(self, sequence: int, ids: Sequence[int]) -> int:
        """Let a busy sequence have what another one of its owner has computed of `ids` meanwhile: so many tokens."""
        others = [number for number in range(len(self._slots)) if number != sequence]
        source, shared = self._longest(self._slots[sequence].owner, ids, others)
        gained = shared - self._backend.length(sequence)
        if gained > 0:
            self._backend.copy(source, sequence, shared)
        return max(0, gained)

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
        """Drop one idle sequence; False where there is none."""
        idle = [
            number
            for number, slot in enumerate(self._slots)
            if not slot.busy and number not in keep and self._backend.length(number)
        ]
        if idle:
            self._backend.truncate(self._least(idle), 0)
        return bool(idle)

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
