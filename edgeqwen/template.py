"""A chat template, found by the hash of its source: known ones are rendered natively, others only when trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from edgeqwen.errors import TemplateError
from edgeqwen.segments import Segment, Special
from edgeqwen.template_qwen import TEMPLATES
from edgeqwen.template_sandbox import SandboxedTemplate
from edgeqwen.types import Message, Tool

__all__ = ["ChatTemplate", "Segment", "Special", "find_template", "is_known"]

MAX_SOURCE_CHARS = 1 << 18  # Qwen3's has 4,116


class ChatTemplate(Protocol):
    """Messages -> segments. `thinks`: its model can think, and `thinking` switches it where the template can."""

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


def find_template(source: str, *, trusted: bool = False) -> ChatTemplate:
    """Find the template of a model by its source.

    Raises TemplateError for an unknown one, unless it is trusted: then it runs in a sandboxed process of its own.
    """
    if not source.strip():
        raise TemplateError("the model has no chat template: convert a chat model (Instruct), not a base model")
    digest = _digest(source)
    if digest in TEMPLATES:
        return TEMPLATES[digest]
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
    return _digest(source) in TEMPLATES


def _digest(source: str) -> str:
    return hashlib.sha256(source.removesuffix("\n").encode("utf-8", "surrogatepass")).hexdigest()
