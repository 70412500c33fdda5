"""A loaded model: messages in, a stream of deltas out; the whole answers are folds over the stream."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from edgeqwen.backends.base import Backend, Chunk
from edgeqwen.errors import RequestError
from edgeqwen.event_loop import deltas_in_thread
from edgeqwen.generation import Generation, common_prefix
from edgeqwen.language import Language, ModelCard
from edgeqwen.messages import messages_from
from edgeqwen.sampling import Row, resolve
from edgeqwen.template import ChatTemplate
from edgeqwen.tokenizer import Tokenizer
from edgeqwen.tools import check_tools
from edgeqwen.turns import Halt, Turns
from edgeqwen.types import (
    SAMPLING_PLAIN,
    Completion,
    Delta,
    GenerationConfig,
    Message,
    Options,
    Sampling,
    Timings,
    TokenLogprob,
    Tool,
    ToolCall,
)

logger = logging.getLogger("edgeqwen")
Messages = str | Sequence[Message | Mapping[str, Any]]  # a str is one user message


class Model:
    """A model and its KV cache. Safe to use from several threads and from event loops.

    It gives one answer at a time: another thread's waits until a stream is finished or closed.
    Use as a context manager, or call close().
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer, template: ChatTemplate, card: ModelCard) -> None:
        self.backend = backend
        self.language = Language(tokenizer, template, card)
        self.tokenizer = tokenizer
        self.template = template
        self.card = card
        self._turns = Turns(backend)  # one lasts from a stream's start to its end, also while its reader pauses
        self._computing = threading.Lock()  # held inside the engine only
        self._idle_s = 0.0  # that readers spent between two deltas

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.backend.context_length

    def stream(self, messages: Messages, *, tools: Sequence[Tool] = (), **options: Unpack[Options]) -> Generator[Delta]:
        """Answer `messages` piece by piece; the last Delta carries finish_reason, usage and timings.

        `options` are GenerationConfig's fields. RequestError for what cannot be asked, ContextOverflowError where the
        prompt is too long: both before the first piece is computed. Leaving the loop early stops the answer.
        """
        return self._run(self._generation(messages, tools, options))

    def chat(self, messages: Messages, *, tools: Sequence[Tool] = (), **options: Unpack[Options]) -> Completion:
        """The whole answer; arguments and errors are those of `stream`."""
        return fold(self.stream(messages, tools=tools, **options))

    def astream(
        self, messages: Messages, *, tools: Sequence[Tool] = (), **options: Unpack[Options]
    ) -> AsyncGenerator[Delta]:
        """The deltas of `stream` for an event loop, which is never blocked; errors come with the first of them.

        Leaving the loop early (`aclose()`), or cancelling the task, stops the answer within a step.
        """
        halt = Halt()

        def start() -> Iterator[Delta]:
            return self._run(self._generation(messages, tools, options), halt)

        return deltas_in_thread(start, lambda: self._turns.end(halt))

    async def achat(self, messages: Messages, *, tools: Sequence[Tool] = (), **options: Unpack[Options]) -> Completion:
        """The whole answer for an event loop; cancelling it stops the answer within a step."""
        return fold([delta async for delta in self.astream(messages, tools=tools, **options)])

    def generate(self, text: str, **options: Unpack[Options]) -> str:
        """The content of the answer to one user message."""
        return self.chat(text, **options).content

    def prepare(self, messages: Messages, *, tools: Sequence[Tool] = ()) -> int:
        """Compute the KV cache of a history ahead of the next user turn; returns how many tokens it holds.

        The template drops the thinking of earlier turns, so what stays the same is found by rendering two different
        next turns. Call it while the user reads: the next `stream` then pays for its question alone.
        """
        history = messages_from(_as_list(messages))
        turns = ((*history, Message("user", text)) for text in ("a", "b"))
        probes = [self.language.prompt(turn, tools, thinking=True).ids for turn in turns]
        stable = probes[0][: common_prefix(*probes)]
        if not stable or len(stable) >= self.context_length:
            return 0
        with self._turns.take():
            self._reuse(stable, keep_last=False)
            for _ in self._forward(stable[self.backend.length(0) :], rows=False):
                pass
        return len(stable)

    def count_tokens(self, messages: Messages, *, tools: Sequence[Tool] = (), thinking: bool = True) -> int:
        """How many tokens the rendered prompt has."""
        return len(self.language.prompt(messages_from(_as_list(messages)), tools, thinking=thinking).ids)

    def interrupt(self) -> None:
        """From any thread: end a running answer soon; its stream raises InterruptedForwardError."""
        self.backend.interrupt()

    def close(self) -> None:
        """Stop a running answer and free the weights and the cache; what is asked after it is an EngineError."""
        self.backend.interrupt()
        with self._computing:
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _generation(self, messages: Messages, tools: Sequence[Tool], options: Options) -> Generation:
        config, normalised = config_from(options), messages_from(_as_list(messages))
        return self.language.answer(normalised, check_tools(tools), config, context_length=self.context_length)

    def _run(self, generation: Generation, halt: Halt | None = None) -> Generator[Delta]:
        with self._turns.take(halt):
            native_s, idle_s, started = self.backend.native_s, self._idle_s, time.perf_counter()
            prompt = generation.next_ids
            cached = self._reuse(prompt)
            row: Row | None = None
            for row in self._forward(prompt[cached:]):
                if row is None:
                    yield from self._show(Delta(prompt_progress=(self.backend.length(0), len(prompt))))
            prompt_s = time.perf_counter() - started - (self._idle_s - idle_s)
            while row is not None:
                delta = generation.step(row)
                if generation.finish_reason is not None:
                    break
                if delta != NOTHING:
                    yield from self._show(delta)
                (row,) = self._forward(generation.next_ids)
            decode_s = time.perf_counter() - started - (self._idle_s - idle_s) - prompt_s
            usage = replace(generation.usage, cached_tokens=cached)
            engine_s = self.backend.native_s - native_s
            timings = Timings.of(
                usage, generation.drawn_tokens, prompt_s=prompt_s, decode_s=decode_s, engine_s=engine_s
            )
        yield replace(delta, usage=usage, timings=timings)

    def _show(self, delta: Delta) -> Iterator[Delta]:
        """Hand a delta over: the reader's time is not the model's, and another thread may go on with the stream."""
        left = time.perf_counter()
        try:
            yield delta
        finally:
            self._idle_s += time.perf_counter() - left
            self._turns.drive()

    def _reuse(self, prompt: Sequence[int], *, keep_last: bool = True) -> int:
        """Cut the cache to what it shares with `prompt` (less its last id, whose logits are wanted); its length."""
        shared = common_prefix(prompt, self.backend.ids(0))
        shared = min(shared, len(prompt) - 1) if keep_last else shared
        with self._computing:
            self.backend.truncate(0, shared)
        return shared

    def _forward(self, ids: Sequence[int], *, rows: bool = True) -> Iterator[Row | None]:
        """Append ids in steps; None after each, and the last row of logits at the end if it is wanted."""
        size = self.backend.step_tokens
        for start in range(0, len(ids), size):
            last = start + size >= len(ids)
            chunk = Chunk(0, ids[start : start + size], "last" if last and rows else "none")
            with self._computing:
                (logits,) = self.backend.forward([chunk])
            yield logits[-1] if last and rows else None


def load(  # noqa: PLR0913 - what one may say of loading
    name: str | Path,
    *,
    type: str | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    kv_type: str | None = None,
    gpu_layers: int | None = None,
    engine: str = "auto",
    parallel: int | None = None,
    offline: bool = False,
    verify: bool = False,
    trust_template: bool = False,
    force: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Model:
    """Open a model: an artifact's folder, a GGUF file, `nano`, or a hub id, which is converted on first use.

    `type` is what a hub id or `nano` is converted to, `context_length` counts tokens of prompt and answer (default
    4,096), `threads` defaults to the fast physical cores, `gpu_layers` -1 puts all layers on a GPU and None as many as
    fit there. `engine` is auto, llamacpp or ort, `kv_type` the type of its cache (default f16, of ort f32, and q8_0
    where nothing else fits), `parallel` the number of answers that a server runs side by side. `verify` checks every
    hash first; `trust_template` accepts a chat template that is not known and renders it in a sandbox. Raises
    EdgeqwenError's children; MemoryShortError comes before anything is loaded that would not fit, unless `force` takes
    that risk.
    """
    from edgeqwen.backends import open_backend  # noqa: PLC0415 - what converts and what runs is loaded on use
    from edgeqwen.catalog import find, locate  # noqa: PLC0415
    from edgeqwen.choice import choose  # noqa: PLC0415
    from edgeqwen.engines import ENGINES  # noqa: PLC0415
    from edgeqwen.outline import outline  # noqa: PLC0415

    path = locate(name, type=type, engine=engine, offline=offline, trust_template=trust_template, progress=progress)
    chosen = choose(
        outline(path), engine=engine,
        context_length=context_length, threads=threads, kv_type=kv_type, gpu_layers=gpu_layers,
        parallel=parallel, force=force,
    )  # fmt: skip
    found = find(path, format=ENGINES[chosen.engine].format, verify=verify, trust_template=trust_template)
    for reason in chosen.reasons:
        logger.debug("%s", reason)
    loading = (lambda done: progress(int(100 * done), 100, f"loading {found.name}")) if progress else None
    backend = open_backend(found.weights_path, chosen, loading)
    card = ModelCard(found.name, found.shape, found.end_ids, recommended(found.sampling), chosen)
    return Model(backend, found.tokenizer, found.template, card)


def recommended(values: Mapping[str, float]) -> GenerationConfig:
    """A file's own sampling values, those that Sampling knows; RequestError where one makes no sense."""
    known = {f.name for f in fields(Sampling)} - {"logit_bias", "seed"}
    chosen: dict[str, Any] = {k: int(v) if k == "top_k" else v for k, v in values.items() if k in known}
    config = GenerationConfig(**chosen)
    resolve(config, SAMPLING_PLAIN)
    return config


NOTHING = Delta()


def config_from(options: Options) -> GenerationConfig:
    """RequestError for a name that GenerationConfig does not have."""
    known = {f.name for f in fields(GenerationConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise RequestError(f"{unknown[0]!r} is not an option; there are {', '.join(sorted(known))}")
    chosen: dict[str, Any] = dict(options)
    stop, bias = chosen.get("stop"), chosen.get("logit_bias")
    chosen["stop"] = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if isinstance(bias, Mapping):  # JSON has no numbers as keys
        bias = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in bias.items()}
    chosen["logit_bias"] = {} if bias is None else bias
    for name, nothing in {"choice": (), "tool_choice": "auto", "parallel_tool_calls": True}.items():
        if chosen.get(name, nothing) is None:
            chosen[name] = nothing
    return GenerationConfig(**chosen)


def fold(deltas: Iterable[Delta]) -> Completion:
    """The whole answer of a stream that ran to its end."""
    thinking: list[str] = []
    content: list[str] = []
    logprobs: list[TokenLogprob] = []
    calls: dict[int, ToolCall] = {}
    last = NOTHING
    for last in deltas:
        thinking.append(last.thinking)
        content.append(last.content)
        logprobs.extend(last.logprobs)
        for piece in last.tool_calls:
            so_far = calls.get(piece.index, ToolCall("", ""))
            calls[piece.index] = ToolCall(
                so_far.name + piece.name, so_far.arguments + piece.arguments, so_far.id + piece.id
            )
    if last.finish_reason is None or last.usage is None or last.timings is None:
        raise RequestError("the stream did not run to its end")
    return Completion(
        "".join(thinking), "".join(content), tuple(calls[i] for i in sorted(calls)),
        last.finish_reason, last.usage, last.timings, tuple(logprobs),
    )  # fmt: skip


def _as_list(messages: Messages) -> Sequence[Message | Mapping[str, Any]]:
    return [Message("user", messages)] if isinstance(messages, str) else messages
