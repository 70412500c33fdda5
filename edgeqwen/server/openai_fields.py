"""The fields of OpenAI's requests, as data: what is read, what is ignored and what is refused; also the API's docs.

Known fields are checked strictly. Of the others, three kinds:
IGNORED   say nothing about the answer, or how it is to be sent: clients send them, nothing reads them;
REFUSED   would change the answer and are not offered: 400, unless their value says "leave it";
the rest  400 where the name is nearly that of a known field (a typo), ignored otherwise, and named in the response's
          header X-Edgeqwen-Ignored.
null is always: not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeqwen.generation import TOP_LOGPROBS_MAX
from edgeqwen.messages import MAX_MESSAGES
from edgeqwen.sampling import LIMITS
from edgeqwen.server.json_check import Schema
from edgeqwen.stops import MAX_STOP_CHARS, MAX_STOPS
from edgeqwen.tools import MAX_CALLS

CHOICES_MAX = 8  # n, and answers of one request to /v1/completions
BATCH_MAX = 8
TOKENS_MAX = 1 << 31  # more is the same as no limit
BIASES_MAX = 300
COMPLETION_TOKENS = 16  # max_tokens of /v1/completions where it is not given: OpenAI's
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
TOKENS: Schema = {"type": "integer", "minimum": 1, "maximum": 10**18}
BUDGET: Schema = {"type": "integer", "minimum": -1, "maximum": 10**18}  # -1: no limit, 0: no thinking
EFFORT: Schema = {"enum": list(EFFORTS)}
LIST_MAX = 1 << 17
IDS: Schema = {"type": "array", "minItems": 1, "maxItems": LIST_MAX, "items": {"type": "integer"}}


def _text(high: int, low: int = 0) -> Schema:
    return {"type": "string", "minLength": low, "maxLength": high}


def _list(items: Schema, high: int, low: int = 0) -> Schema:
    return {"type": "array", "minItems": low, "maxItems": high, "items": items}


def _either(*choices: Schema) -> Schema:
    return {"anyOf": list(choices)}


def _object(properties: Mapping[str, Schema], *required: str, others: bool = True) -> Schema:
    return {
        "type": "object", "properties": properties, "additionalProperties": others,
        **({"required": list(required)} if required else {}),
    }  # fmt: skip


def _sampling(name: str, low: float | None = None) -> Schema:
    least, most = LIMITS[name]
    kind = "integer" if name == "top_k" else "number"
    return {"type": kind, "minimum": least if low is None else low, "maximum": most}


_STOP = _text(MAX_STOP_CHARS, 1)
COMMON: dict[str, Schema] = {
    "model": _text(256),
    "stream": BOOLEAN,
    "stream_options": _object({"include_usage": BOOLEAN}),
    "max_tokens": TOKENS,
    "n": {"type": "integer", "minimum": 1, "maximum": CHOICES_MAX},
    "seed": {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1},  # -1: none, as llama.cpp has it
    "stop": _either(_STOP, _list(_STOP, MAX_STOPS)),
    "temperature": _sampling("temperature"),
    "top_p": _sampling("top_p"),
    "top_k": _sampling("top_k", -1),  # -1: no limit, as vLLM has it
    "min_p": _sampling("min_p"),
    "presence_penalty": _sampling("presence_penalty"),
    "frequency_penalty": _sampling("frequency_penalty"),
    "repetition_penalty": _sampling("repetition_penalty"),
    "repeat_penalty": _sampling("repetition_penalty"),  # llama.cpp's and Ollama's name
    "logit_bias": {
        "type": "object", "maxProperties": BIASES_MAX,
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
}  # fmt: skip

_FUNCTION = _object(
    {"name": _text(64, 1), "description": _text(1 << 16), "parameters": OBJECT, "strict": BOOLEAN}, "name"
)
_NAMED_TOOL = _object({"type": {"enum": ["function"]}, "function": _object({"name": _text(64, 1)}, "name")}, "function")
_FORMATS: Schema = {"enum": ["text", "json_object", "json_schema"]}
_REGEX = _text(1 << 12, 1)
_JSON = _either(OBJECT, _text(1 << 18))
_JSON_SCHEMA = _object({"name": _text(64), "schema": OBJECT, "strict": BOOLEAN, "description": _text(1 << 16)})
_CHOICE = _list(_text(1024, 1), 256, 1)
STRUCTURE: dict[str, Schema] = {
    "response_format": _object({"type": _FORMATS, "json_schema": _JSON_SCHEMA, "schema": OBJECT}, "type"),
    "guided_json": _JSON,
    "guided_regex": _REGEX,
    "guided_choice": _CHOICE,
    # vLLM's later form of the three above
    "structured_outputs": _object({"json": _JSON, "regex": _REGEX, "choice": _CHOICE}),
}  # fmt: skip
TOOLS: dict[str, Schema] = {
    "tools": _list(_object({"type": {"enum": ["function"]}, "function": _FUNCTION}, "type", "function"), MAX_CALLS),
    "tool_choice": _either({"enum": ["auto", "none", "required"]}, _NAMED_TOOL),
    "parallel_tool_calls": BOOLEAN,
}
# notes on who sends which: edgeqwen.server.dialects
THINKING: dict[str, Schema] = {
    "enable_thinking": BOOLEAN,
    "chat_template_kwargs": _object(
        {"enable_thinking": BOOLEAN, "thinking": BOOLEAN, "thinking_budget": BUDGET, "reasoning_effort": EFFORT},
        others=False,
    ),
    "think": _either(BOOLEAN, {"enum": ["low", "medium", "high", "max"]}),
    "thinking": _object(
        {"type": {"enum": ["enabled", "disabled", "adaptive", "auto"]}, "budget_tokens": BUDGET}, "type"
    ),
    "reasoning": _object({"enabled": BOOLEAN, "effort": EFFORT, "max_tokens": BUDGET, "exclude": BOOLEAN}),
    "reasoning_effort": EFFORT,
    "thinking_budget": BUDGET,
    "thinking_token_budget": BUDGET,
    "thinking_budget_tokens": BUDGET,
    "reasoning_budget_tokens": BUDGET,
    "reasoning_budget": BUDGET,
    "custom_params": _object({"thinking_budget": BUDGET}),
    "return_reasoning": BOOLEAN,
    "include_reasoning": BOOLEAN,
    "separate_reasoning": BOOLEAN,
    "reasoning_format": {"enum": ["auto", "none", "raw", "deepseek", "parsed", "hidden"]},
}  # fmt: skip
CHAT: dict[str, Schema] = {
    **COMMON,
    "messages": {"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": OBJECT},
    "max_completion_tokens": TOKENS,
    "logprobs": BOOLEAN,
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX},
    **TOOLS,
    **STRUCTURE,
    **THINKING,
}
_PROMPT = _text(2 << 20, 1)
TEXT: dict[str, Schema] = {
    **COMMON,
    "prompt": _either(_PROMPT, _list(_PROMPT, LIST_MAX, 1), IDS, _list(IDS, LIST_MAX, 1)),  # at most BATCH_MAX
    "logprobs": {"type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX},
    "echo": BOOLEAN,
    **STRUCTURE,
}

IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity", "prediction", "modalities", "stream_reasoning", "reasoning_budget_message", "cache_prompt", "id_slot",
    "keep_alive", "priority", "request_id", "timings_per_token", "return_progress", "return_tokens", "n_keep",
    "skip_special_tokens", "spaces_between_special_tokens", "guided_decoding_backend", "guided_whitespace_pattern",
    "mirostat_tau", "mirostat_eta", "xtc_threshold", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
    "dynatemp_exponent", "repeat_last_n", "samplers", "min_keep", "post_sampling_probs", "provider", "transforms",
})  # fmt: skip
# name -> a value, besides null, false, 0 and empty ones, that asks for nothing
REFUSED: dict[str, Any] = {
    "audio": None, "functions": None, "function_call": "none", "web_search_options": None, "best_of": 1, "suffix": None,
    "grammar": None, "guided_grammar": None, "logits_processors": None, "chat_template": None, "documents": None,
    "mirostat": 0, "typical_p": 1, "typ_p": 1, "tfs_z": 1, "xtc_probability": 0, "dry_multiplier": 0,
    "dynatemp_range": 0, "n_discard": 0, "ignore_eos": False, "min_tokens": 0, "length_penalty": 1,
    "use_beam_search": False, "prompt_embeds": None, "lora": None, "continue_final_message": False,
    "prompt_logprobs": None, "truncate_prompt_tokens": None, "stop_token_ids": None, "bad_words": None,
    "include_stop_str_in_output": False, "images": None, "suppress_tokens": None, "top_a": 0,
    # What other servers call their limits, stops and shapes.
    "n_predict": -1, "max_output_tokens": None, "max_new_tokens": None, "min_new_tokens": 0, "max_length": None,
    "stop_sequences": None, "stop_strings": None, "json_schema": None, "regex": None, "ebnf": None, "format": None,
    "guided_decoding": None, "max_thinking_tokens": None, "thinking_config": None, "options": None,
}  # fmt: skip
