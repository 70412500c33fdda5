"""A chat template, found by the hash of its source: known ones are rendered natively, others only when trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from edgeqwen.errors import TemplateError
from edgeqwen.segments import Segment, Special
from edgeqwen.template_qwen import QWEN2_5, QWEN3
from edgeqwen.template_sandbox import SandboxedTemplate
from edgeqwen.types import Message, Tool

__all__ = ["ChatTemplate", "Segment", "Special", "find_template", "is_known"]

MAX_SOURCE_CHARS = 1 << 18  # Qwen3's has 4,116


class ChatTemplate(Protocol):
    """Messages -> segments. `thinks`: it knows the thinking switch (`enable_thinking`)."""

    @property
    def name(self) -> str: ...
    @property
    def thinks(self) -> bool: ...

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        thinking: bool = True,
        generation_prompt: bool = True,
    ) -> list[Segment]:
        """Render a prompt. RequestError for messages that cannot be rendered, TemplateError where it fails itself."""


# sha256 of the source without one newline at its end, which Jinja drops as well.
_KNOWN: dict[str, ChatTemplate] = {
    "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5": QWEN3,
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": QWEN2_5,
}


def find_template(source: str, *, trusted: bool = False) -> ChatTemplate:
    """Find the template of a model by its source.

    Raises TemplateError for an unknown one, unless it is trusted: then it runs in a sandboxed process of its own.
    """
    if not source.strip():
        raise TemplateError("the model has no chat template: convert a chat model (Instruct), not a base model")
    digest = _digest(source)
    if digest in _KNOWN:
        return _KNOWN[digest]
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateError(f"the chat template has {len(source)} characters: at most {MAX_SOURCE_CHARS} are rendered")
    if not trusted:
        raise TemplateError(
            f"the chat template (sha256 {digest}) is not one of Qwen's that are known here: a template can change what "
            "the model is told. Read it, then allow it with --trust-template; it is rendered in a sandbox"
        )
    return SandboxedTemplate(source, name=f"sandboxed-{digest[:12]}")


def is_known(source: str) -> bool:
    """Tell whether a template is rendered natively."""
    return _digest(source) in _KNOWN


def _digest(source: str) -> str:
    return hashlib.sha256(source.removesuffix("\n").encode("utf-8", "surrogatepass")).hexdigest()
