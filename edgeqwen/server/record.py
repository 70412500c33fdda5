"""What is known of one HTTP request while it is answered: its log line and its metrics are made of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from edgeqwen.types import Delta, Timings, Usage

RECORD = "edgeqwen.record"  # key of an ASGI scope
MAX_SHOWN = 120


@dataclass(slots=True)
class Record:
    """Nothing in it was said by a user: no prompt, no answer, no token."""

    id: str
    method: str
    path: str
    route: str = "other"  # one of ours: what a client invents is no label of a metric
    model: str = ""
    stream: bool = False
    status: int = 0  # 0: nothing was sent
    error: str = ""  # the code of a failure, in a stream too
    gone: bool = False  # the client left first
    closed: bool = False  # it was counted
    started: float = field(default_factory=time.perf_counter)
    first_s: float | None = None  # until the first piece of an answer
    ends: list[tuple[str, Usage, Timings]] = field(default_factory=list)  # finish reasons

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def saw(self, delta: Delta) -> None:
        """Take what a delta tells of times and counts."""
        said = delta.content or delta.thinking or delta.tool_calls or delta.finish_reason
        if self.first_s is None and said:
            self.first_s = self.seconds
        if delta.finish_reason is not None and delta.usage is not None and delta.timings is not None:
            self.ends.append((delta.finish_reason, delta.usage, delta.timings))

    @property
    def outcome(self) -> str:
        """Ok, gone, or the code of what failed."""
        if self.gone:
            return "gone"
        return self.error or ("ok" if self.status < 400 else f"status_{self.status}")

    def facts(self) -> dict[str, Any]:
        """One line of a log, as data."""
        facts: dict[str, Any] = {
            "id": self.id, "method": _shown(self.method), "path": _shown(self.path), "status": self.status,
            "outcome": self.outcome, "seconds": round(self.seconds, 4),
        }  # fmt: skip
        if self.model:
            facts |= {"model": self.model, "stream": self.stream}
        if self.first_s is not None:
            facts["first_token_s"] = round(self.first_s, 4)
        if self.ends:
            usages = [usage for _, usage, _ in self.ends]
            facts |= {
                "finish": ",".join(reason for reason, _, _ in self.ends),
                "prompt_tokens": usages[0].prompt_tokens,
                "cached_tokens": usages[0].cached_tokens,
                "completion_tokens": sum(usage.completion_tokens for usage in usages),
                "tokens_per_s": round(self.ends[0][2].decode_tokens_per_s, 2),
            }
        return facts


def _shown(text: str) -> str:
    """A client's text on one line of a log."""
    return text[:MAX_SHOWN].encode("unicode_escape").decode("ascii")
