"""A body of OpenAI's wire -> what is asked of an engine; nothing but known, checked fields gets through."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeqwen.messages import messages_from
from edgeqwen.server.dialects import Shown, thinking_of
from edgeqwen.server.failures import FieldError
from edgeqwen.server.json_check import Schema, check
from edgeqwen.server.openai_fields import (
    BATCH_MAX,
    CHAT,
    COMPLETION_TOKENS,
    IGNORED,
    REFUSED,
    TEXT,
    THINKING,
    TOKENS_MAX,
)
from edgeqwen.server.openai_structure import structure_from
from edgeqwen.server.request import Request
from edgeqwen.tools import offered
from edgeqwen.types import GenerationConfig, ToolChoice

MAX_FIELDS = 200
_NAME = re.compile(r"[\w-]{1,60}", re.ASCII)  # what a header can carry
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the wire: one to the engine for each choice, and how the answers are to be shown."""

    model: str | None
    requests: tuple[Request, ...]
    prompts: int = 1  # that the requests share: as many requests for each
    stream: bool = False
    include_usage: bool = False
    shown: Shown = "apart"
    echoes: tuple[str, ...] = ()  # of a completion, for each choice
    structure: str = ""  # the field that holds the content to a shape
    ignored: tuple[str, ...] = ()  # fields that nobody knows


def chat_from(body: Mapping[str, Any], owner: str = "") -> Asked:
    """Read a body of /v1/chat/completions; FieldError or RequestError names what cannot be used."""
    body, ignored = _checked(body, CHAT, IGNORED)
    messages = messages_from(body.get("messages") or ())
    thinking = thinking_of(body, messages)
    tools = tuple(body.get("tools") or ())
    choice: ToolChoice = body.get("tool_choice") or "auto"
    offered(tools, choice)  # names what is wrong before the engine is asked
    structure = structure_from(body)
    config = replace(
        _config(body, body.get("max_completion_tokens") or body.get("max_tokens")),
        **structure.settings,
        thinking=thinking.enabled,
        thinking_budget=thinking.budget,
        logprobs=_top_logprobs(body),
        tool_choice=choice,
        parallel_tool_calls=body.get("parallel_tool_calls") is not False,
    )
    request = Request(messages, tools, config=config, owner=owner)
    return Asked(
        body.get("model"),
        _choices(request, int(body.get("n") or 1)),
        stream=bool(body.get("stream")),
        include_usage=_include_usage(body),
        shown=thinking.shown,
        structure=structure.place,
        ignored=ignored,
    )


def text_from(body: Mapping[str, Any], owner: str = "") -> Asked:
    """Read a body of /v1/completions."""
    body, ignored = _checked(body, TEXT, IGNORED | THINKING.keys())
    prompts, n = _prompts(body.get("prompt")), int(body.get("n") or 1)
    if len(prompts) * n > BATCH_MAX:
        raise FieldError("prompt", f"{len(prompts)} prompts with {n} answers each: at most {BATCH_MAX} answers in all")
    logprobs = body.get("logprobs")
    structure = structure_from(body)
    config = replace(
        _config(body, body.get("max_tokens", COMPLETION_TOKENS)),
        **structure.settings,
        logprobs=None if logprobs is None else int(logprobs),
    )
    requests = [
        choice for prompt in prompts for choice in _choices(Request(prompt=prompt, config=config, owner=owner), n)
    ]
    return Asked(
        body.get("model"),
        tuple(requests),
        prompts=len(prompts),
        stream=bool(body.get("stream")),
        include_usage=_include_usage(body),
        echoes=_echoes(body, requests),
        structure=structure.place,
        ignored=ignored,
    )


def _checked(
    body: Mapping[str, Any], known: Mapping[str, Schema], ignored: frozenset[str]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Check what is known, refuse what would change the answer and what is a typo; what is given, names of the rest."""
    if len(body) > MAX_FIELDS:
        raise FieldError("", f"the body has {len(body)} fields: at most {MAX_FIELDS} are read")
    rest = []
    for name, value in body.items():
        if name in known:
            if value is not None:
                check(value, known[name], name)
        elif name in REFUSED:
            if value not in _NOTHING and value != REFUSED[name]:
                raise FieldError(name, f"{name} is not supported here: leave it out")
        elif name not in ignored:
            _check_typo(name, value, known)
            rest.append(name)
    given = {name: value for name, value in body.items() if value is not None}
    return given, tuple(name for name in rest if _NAME.fullmatch(name))[:10]


def _check_typo(name: str, value: Any, known: Mapping[str, Schema]) -> None:
    close = difflib.get_close_matches(name[:60].lower(), known, n=1, cutoff=0.8)
    if close and value is not None:
        raise FieldError(name[:60], f"{name[:60]} is not a field of this API: did you mean {close[0]}?")


def _config(body: Mapping[str, Any], max_tokens: Any) -> GenerationConfig:
    """The sampling fields and limits that both endpoints have."""
    stop = body.get("stop")
    top_k, seed = body.get("top_k"), body.get("seed")
    return GenerationConfig(
        max_tokens=None if max_tokens is None else min(int(max_tokens), TOKENS_MAX),
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        top_k=None if top_k is None else max(0, int(top_k)),
        min_p=body.get("min_p"),
        presence_penalty=body.get("presence_penalty"),
        frequency_penalty=body.get("frequency_penalty"),
        repetition_penalty=body.get("repetition_penalty", body.get("repeat_penalty")),
        logit_bias=_logit_bias(body.get("logit_bias") or {}),
        seed=None if seed in (None, -1) else int(seed) % 2**64,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
    )


def _logit_bias(biases: Mapping[str, float]) -> dict[int, float]:
    for name in biases:
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise FieldError("logit_bias", f"logit_bias maps ids of tokens to numbers, and {name[:40]!r} is no id")
    return {int(name): bias for name, bias in biases.items()}


def _choices(request: Request, n: int) -> tuple[Request, ...]:
    """The same request n times; with a seed, each choice has the next one."""
    seed = request.config.seed
    if n == 1 or seed is None:
        return (request,) * n
    return tuple(replace(request, config=replace(request.config, seed=(seed + index) % 2**64)) for index in range(n))


def _include_usage(body: Mapping[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _top_logprobs(body: Mapping[str, Any]) -> int | None:
    top = body.get("top_logprobs")
    if not body.get("logprobs"):
        if top:
            raise FieldError("top_logprobs", f"top_logprobs={top} needs logprobs: true")
        return None
    return int(top or 0)


def _prompts(prompt: Any) -> list[str | tuple[int, ...]]:
    """Each prompt: a text or its ids."""
    if prompt is None:
        raise FieldError("prompt", "prompt is missing: give a text, ids of tokens, or a list of either")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], str | list):
        return [inner if isinstance(inner, str) else tuple(map(int, inner)) for inner in prompt]
    return [tuple(map(int, prompt))]


def _echoes(body: Mapping[str, Any], requests: Sequence[Request]) -> tuple[str, ...]:
    if not body.get("echo"):
        return ()
    if body.get("logprobs") is not None:
        raise FieldError("echo", "echo with logprobs is not supported: the prompt's own logprobs are not computed")
    texts = [request.prompt for request in requests if isinstance(request.prompt, str)]
    if len(texts) < len(requests):
        raise FieldError("echo", "echo needs the prompt as text, not as ids")
    return tuple(texts)
