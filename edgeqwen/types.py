"""The words of the API: messages in, deltas out, settings between; each default is written once, here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

DEFAULT_TYPE = "q4_k_m"  # what a model is converted to unless a type is named

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "loop"]  # loop: the guard cut an endless repetition
Tool = Mapping[str, Any]  # OpenAI's shape: {"type": "function", "function": {"name", "description", "parameters"}}
# Whether the answer may, may not or must call a tool; a mapping names it: {"type": "function", "function": {"name"}}
ToolChoice = Literal["auto", "none", "required"] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; `arguments` is the JSON text of an object, as the model wrote it."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `thinking` is what an assistant thought before its content."""

    role: Role
    content: str = ""
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the tool call number `index`: id and name come with its first piece, arguments are appended."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a drawn token's probability, before penalties and temperature. Forced ones have none."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, float], ...] = ()  # the likeliest tokens here, best first
    thinking: bool = False  # drawn before the thinking was closed


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` of the prompt were still in the KV cache; forced tokens count as completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall time of one request in seconds; `engine_s` is the part inside the engine's native calls."""

    prompt_s: float = 0.0
    decode_s: float = 0.0
    engine_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0

    @classmethod
    def of(cls, usage: Usage, drawn_tokens: int, *, prompt_s: float, decode_s: float, engine_s: float) -> Timings:
        """With the speeds: of the prompt's tokens that were computed, and of those that were drawn but the first."""
        computed, behind_first = usage.prompt_tokens - usage.cached_tokens, max(0, drawn_tokens - 1)
        return cls(
            prompt_s=prompt_s,
            decode_s=decode_s,
            engine_s=engine_s,
            prompt_tokens_per_s=computed / prompt_s if prompt_s else 0.0,
            decode_tokens_per_s=behind_first / decode_s if decode_s else 0.0,  # the first came with the prompt
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step made visible. The last delta of a stream carries finish_reason, usage and timings."""

    thinking: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_progress: tuple[int, int] | None = None  # tokens of a long prompt: computed so far, in all
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: the fold of a stream."""

    thinking: str
    content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def message(self) -> Message:
        """The answer as a turn of the history."""
        return Message("assistant", self.content, self.thinking or None, self.tool_calls)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an id is drawn from logits, in the names and meanings of transformers and vLLM; temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int  # 0: no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


# Qwen3's own recommendations (its model card); the checkpoint's generation_config.json knows only the first.
SAMPLING_THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20)
SAMPLING_PLAIN = Sampling(temperature=0.7, top_p=0.8, top_k=20)


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What a caller may ask of one answer. None means the model's own default for the mode."""

    thinking: bool | None = None  # None: on, where the model can
    thinking_budget: int | None = None  # tokens; 0 turns thinking off
    max_tokens: int | None = None  # of the whole answer; None: what the context still holds
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()  # matched in the content, never in the thinking or inside a tool call
    logprobs: int | None = None  # how many of the likeliest tokens to report; 0: the sampled one alone
    loop_guard: bool = True
    # What the content must be, at most one of the three; the thinking before it is free. A call of a tool that was
    # offered may stand in its place.
    schema: Mapping[str, Any] | None = None  # JSON of this JSON Schema; {"type": "object"}: any object
    regex: str | None = None  # text that matches as a whole
    choice: tuple[str, ...] = ()  # one of these texts
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True  # false: the first call ends the answer


class Options(TypedDict, total=False):
    """GenerationConfig's fields as keyword arguments; a test holds the two together."""

    thinking: bool | None
    thinking_budget: int | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    loop_guard: bool
    schema: Mapping[str, Any] | None
    regex: str | None
    choice: tuple[str, ...]
    tool_choice: ToolChoice
    parallel_tool_calls: bool


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The figures of a dense Qwen, under the keys of its config.json; `architecture` is GGUF's name for it."""

    architecture: str  # "qwen3" or "qwen2"; of a traced ONNX graph what config.json calls it, such as "llama"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding, padding included
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    rope_scaling: Mapping[str, Any] | None = None  # YaRN: rope_type, factor, original_max_position_embeddings
