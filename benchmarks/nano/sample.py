"""One exercise: a chat, what a thinking answer thinks, and the exact answer; knows no tokens."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

Chat = tuple[dict[str, Any], ...]
HELD_OUT_SHARE = 8  # one key in eight is never trained on


@dataclass(frozen=True)
class Sample:
    """An exercise of one skill.

    `key` names what must not be seen in training (the two summands, the word, the arguments).
    `guess` is the answer without thinking where it differs (addition only).
    `history` says whether the assistant turns inside `messages` are trained on as well.
    """

    skill: str
    messages: Chat
    thinking: str
    content: str
    key: str
    tools: tuple[dict[str, Any], ...] = ()
    call: dict[str, Any] | None = None
    guess: str | None = None
    history: bool = True

    @property
    def held_out(self) -> bool:
        """Return whether this exercise belongs to the evaluation, not to the training."""
        return zlib.crc32(self.key.encode()) % HELD_OUT_SHARE == 0


def user(text: str) -> dict[str, Any]:
    """Return a user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """Return an assistant turn."""
    return {"role": "assistant", "content": text}


def call_text(call: dict[str, Any]) -> str:
    """Return a tool call as Qwen3 writes it."""
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
