"""What the wire asks of an engine, and what an engine promises the wire; neither knows how the other works."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edgeqwen.types import Delta, GenerationConfig, Message, Tool

State = Literal["loading", "ready", "draining", "broken"]  # broken: it died and is being started again


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Which model is served and how it is loaded: `edgeqwen.load`'s arguments; and how many may ask at a time."""

    model: str
    type: str | None = None
    context_length: int | None = None
    threads: int | None = None
    kv_type: str | None = None
    gpu_layers: int | None = None
    engine: str = "auto"
    offline: bool = False
    trust_template: bool = False
    force: bool = False  # load what does not fit
    parallel: int = 4  # answers side by side
    waiting_max: int = 64  # requests beyond these; more get BusyError


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is asked for: a chat (`messages`, `tools`) or the continuation of a `prompt`.

    `owner` says whose cached prefixes it may share: requests of two owners never meet in the cache. After `seconds`,
    the time in the queue included, the answer ends where it is, with "length".
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    config: GenerationConfig = field(default_factory=GenerationConfig)
    owner: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is being served, known once it is loaded."""

    name: str  # the model's, from its manifest
    engine: str  # llamacpp, ort, ...
    context_length: int
    vocab_size: int
    sequences: int  # answers that run side by side
    thinks: bool


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is; counts since it started where nothing else is said."""

    running: int = 0  # now
    queued: int = 0  # now
    kv_tokens: int = 0  # cells of the KV pool that are taken, now
    kv_capacity: int = 0
    prompt_tokens: int = 0  # that had to be computed
    cached_tokens: int = 0  # of prompts, found in the cache
    answer_tokens: int = 0
    cancelled: int = 0
    restarts: int = 0


class Engine(Protocol):
    """One model behind a bounded queue; all methods are for one event loop."""

    state: State
    info: EngineInfo | None

    async def start(self) -> None:
        """Load; returns when `state` is ready, raises EdgeqwenError when it cannot be."""
        ...

    def answer(self, request: Request) -> AsyncGenerator[Delta]:
        """Stream one answer; its last Delta carries finish_reason, usage and timings.

        Before the first delta: RequestError and its children for what cannot be asked, BusyError where the queue is
        full, EngineDownError while the engine is not there. After it: EngineDownError when the engine died or was
        stopped. Closing the generator (or cancelling its task) cancels the answer within a step or a prompt chunk.
        """
        ...

    def load(self) -> EngineLoad: ...

    async def drain(self, seconds: float) -> None:
        """Take nothing new and wait until what runs has ended, `seconds` at most."""
        ...

    async def close(self) -> None:
        """End everything; running answers get EngineDownError."""
        ...
