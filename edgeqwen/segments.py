"""The pieces of a prompt: text, and control tokens that only a template may write; it knows no tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What Qwen's templates write as control tokens. A tokenizer that lacks one (Qwen2.5: the last four) reads it as text.
_LITERAL_TAGS = (
    "<|im_start|>",
    "<|im_end|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_TAG = re.compile("(" + "|".join(map(re.escape, _LITERAL_TAGS)) + ")")


@dataclass(frozen=True, slots=True)
class Special:
    """A control token by its text, e.g. `Special("<|im_start|>")`; text alone never becomes one."""

    text: str


Segment = str | Special


def literal(text: str) -> tuple[Segment, ...]:
    """Cut a template's own literal into text and control tokens; never for what a user wrote."""
    parts = enumerate(_TAG.split(text))
    return tuple(Special(part) if index % 2 else part for index, part in parts if part)


def plain_text(segments: list[Segment]) -> str:
    """Join the segments to the string that the model's own Jinja template renders."""
    return "".join(part.text if isinstance(part, Special) else part for part in segments)
