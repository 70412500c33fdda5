"""One answer under way in the scheduler: its Generation, its sequence and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeqwen.errors import EdgeqwenError
from edgeqwen.generation import Generation
from edgeqwen.types import Delta

Event = tuple[int, Delta | EdgeqwenError]  # the number of an answer and what it is given


@dataclass(eq=False, slots=True)
class Job:
    """One answer under way. `ids` are all that its sequence must hold before the next row: prompt and answer so far."""

    number: int  # in the order of arrival
    generation: Generation
    owner: str = ""
    deadline: float = float("inf")  # of the scheduler's clock
    ids: list[int] = field(init=False)
    prompt_tokens: int = field(init=False)
    sequence: int = -1  # while it runs
    turn: int = 0  # when it last had a share of a step for its prompt
    cached_tokens: int | None = None  # of the prompt; None: it has not run yet
    reached: int = 0  # the most tokens that its sequences have held: what it gets of them again is no gain
    started: float = 0.0
    prompt_s: float | None = None  # until its first token
    engine_s: float = 0.0
    reported: float = 0.0  # when its progress was last told

    def __post_init__(self) -> None:
        self.ids = list(self.generation.next_ids)
        self.prompt_tokens = len(self.ids)
