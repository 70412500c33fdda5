"""Answers held to a shape, whatever the logits say. Oracles: jsonschema, re.fullmatch, json."""

import json
import lzma
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from scripted_model import END, QWEN25, TOKENIZER, model_saying, script
from test_schema import SCHEMAS, modern

from edgeqwen import RequestError, load
from edgeqwen.grammar import Grammars
from edgeqwen.model import fold
from edgeqwen.sampling import Sampler
from edgeqwen.tokenizer import Tokenizer
from edgeqwen.types import SAMPLING_PLAIN, GenerationConfig

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
SIZE = 4096
CLOSING = [i for i in range(SIZE) if TOKENIZER.token_bytes(i) in {b'"', b"}", b"]", b'"}', b"1"}]
ADDED = list(TOKENIZER.added.values())


class Noise:
    """Random logits, the same for the same seed and length, that prefer all tags and ends, and what closes JSON."""

    seed = 0

    def __call__(self, ids):
        row = np.random.default_rng([self.seed, len(ids)]).normal(0, 3, SIZE).astype(np.float32)
        row[CLOSING] += 7
        row[ADDED] += 20
        row[TOKENIZER.id("<think>")] = 0
        return row


NOISE = Noise()
FREE = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 200}  # nothing is left out of the draw


@pytest.fixture(scope="module")
def noise():
    return model_saying(NOISE)


@pytest.fixture(scope="module")
def plain_noise():
    return model_saying(NOISE, template=QWEN25)


def ask(model, seed, **options):
    NOISE.seed = seed
    return model.chat("Hi", **{**FREE, "seed": seed, "thinking": False, **options})


TAGGED = {
    "A": {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]},
    "B": {"type": "object", "properties": {"k": {"enum": ["b", "c"]}, "n": WHOLE}, "required": ["k", "n"]},
}
POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
NODE = {"type": "object", "required": ["v"],
        "properties": {"v": WHOLE, "c": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 1}}}  # fmt: skip
VALID = [
    {}, {"type": "object"}, {"type": "array"}, TEXT, WHOLE, {"type": "number"}, {"type": "boolean"}, {"type": "null"},
    {"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 3},
    {"type": "object", "properties": {"a": WHOLE, "b": TEXT}, "required": ["a", "b"]},
    {"type": "object", "properties": {"a": WHOLE}, "required": ["a"], "additionalProperties": {"type": "boolean"}},
    {"type": "object", "properties": {"a": WHOLE}, "additionalProperties": False},
    {"type": "object", "patternProperties": {"^x[0-9]$": WHOLE}, "additionalProperties": False},
    {"type": "object", "properties": {"x1": {"type": "integer", "minimum": 5}},
     "patternProperties": {"^x[0-9]$": {"type": "integer", "maximum": 7}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": WHOLE, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "required": ["z"]},
    {"type": "object", "properties": {"a": WHOLE}, "required": ["z"]},
    {"type": "object", "properties": {'a b"c': WHOLE, "é": TEXT, "/": WHOLE}, "required": ['a b"c', "é", "/"]},
    {"type": "object", "properties": {"a": True}, "required": ["a"], "title": "T", "default": {}, "$schema": "x"},
    {"enum": ["a", 1, None, True, {"b": [1]}]}, {"const": {"a": [1, "x"]}},
    {"enum": ["<tool_call>", "</think>", "<|im_end|>", "a\nb", "\u2028"]},
    {"type": "string", "minLength": 2, "maxLength": 4}, {"type": "string", "pattern": "^[a-z]{2,5}$"},
    {"type": "string", "pattern": "ab"}, {"type": "string", "pattern": r"^\d{3}-\w+$"},
    {"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}, {"type": "string", "format": "ipv4"},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "multipleOf": 7}, {"type": "number", "multipleOf": 0.5},
    {"type": ["string", "null"]}, {"type": ["integer", "boolean", "array"], "items": TEXT, "maxItems": 2},
    {"anyOf": [WHOLE, {"type": "object", "properties": {"k": {"const": "v"}}, "required": ["k"]}]},
    {"oneOf": [TEXT, WHOLE]},
    {"oneOf": [TAGGED["A"], TAGGED["B"]]},
    {"$defs": TAGGED, "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]},
    {"allOf": [{"type": "object", "properties": {"a": WHOLE}, "required": ["a"]}, POINT]},
    {"$ref": "#/$defs/n", "$defs": {"n": NODE}},
    {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2},
    {"type": "array", "items": [WHOLE, TEXT], "additionalItems": False},
    {"type": "array", "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
    {"definitions": {"p": POINT}, "type": "object", "required": ["a", "b"],
     "properties": {"a": {"$ref": "#/definitions/p"}, "b": {"anyOf": [{"$ref": "#/definitions/p"}, {"type": "null"}]}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", VALID, ids=str)
def test_the_content_is_valid_whatever_the_logits_say(noise, schema):
    whole = 0
    for seed in range(3):
        answer = ask(noise, seed, schema=schema)
        assert answer.finish_reason in {"stop", "length"}
        if answer.finish_reason == "stop":
            whole += 1
            Draft202012Validator(modern(schema)).validate(json.loads(answer.content))
    assert whole


@given(SCHEMAS, st.integers(0, 99))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_content_is_valid_under_schemas_of_any_kind(noise, schema, seed):
    started = time.thread_time()
    try:
        answer = ask(noise, seed, schema=schema, max_tokens=40)
    except RequestError as error:  # what llguidance cannot bring together
        assert str(error).startswith("schema")  # noqa: PT017
        assert time.thread_time() - started < 1
        return
    if answer.finish_reason == "stop":
        Draft202012Validator(modern(schema)).validate(json.loads(answer.content))


REGEXES = [
    "[a-z]{3,8}", "^yes|no$", r"\d{4}-\d{2}-\d{2}", r"\n\n?x", "(ab)*", r"[^/]/\$", "a|é+|天🙂",
    r"price: \$[0-9]+\.[0-9]{2}", r"<tool_call>|</think>|<\|im_end\|>", r"\w+@\w+\.com", "(?i:abc)",
    r"\"[^\"]*\"", r"a\\$",
]  # fmt: skip


@pytest.mark.parametrize("regex", REGEXES)
def test_the_content_matches_as_a_whole(noise, regex):
    for seed in range(4):
        answer = ask(noise, seed, regex=regex)
        if answer.finish_reason == "stop":
            assert re.fullmatch(regex, answer.content), answer.content
        thoughtful = ask(noise, seed, regex=regex, thinking=True, thinking_budget=4, max_tokens=400)
        if thoughtful.finish_reason == "stop":
            assert re.fullmatch(regex, thoughtful.content), thoughtful.content
            assert thoughtful.usage.thinking_tokens


CHOICES = ("yes", "yes, no", "no\n", "<tool_call>", "</think>", 'a"\\b/c', "天 🙂", "\n", "\x7f\t")


def test_the_content_is_one_of_the_choices(noise, plain_noise):
    seen = {ask(model, seed, choice=CHOICES).content for seed in range(25) for model in (noise, plain_noise)}
    assert seen <= set(CHOICES)
    assert len(seen) > 4
    assert ask(noise, 1, choice=["only"]).content == "only"


def test_an_answer_that_is_complete_ends_without_the_end_token():
    model = model_saying(lambda ids: TOKENIZER.encode("{")[0])
    answer = model.chat("?", thinking=False, regex="[{]{3}", max_tokens=50)
    assert (answer.content, answer.finish_reason) == ("{{{", "stop")
    assert answer.usage.completion_tokens == len(TOKENIZER.encode("{{{"))
    assert model.backend.ids(0)[-1] != END
    open_ended = model_saying("4").chat(
        "?", thinking=False, regex="[0-9]+", max_tokens=50
    )  # what may go on ends itself
    assert (open_ended.content, open_ended.finish_reason) == ("4", "stop")


@pytest.mark.parametrize("limit", range(1, 8))
def test_what_is_cut_says_so(limit):
    answer = model_saying("[1, 2, 3]").chat("?", thinking=False, schema={"type": "array"}, max_tokens=limit)
    assert "[1, 2, 3]".startswith(answer.content)
    assert answer.finish_reason == ("stop" if answer.content == "[1, 2, 3]" else "length")


def test_thinking_is_free_and_the_grammar_starts_behind_it():
    said = '<think>\nIs {"a": 1} right?\n\n</think>\n\n{"a": 1}'
    schema = {"properties": {"a": WHOLE}, "type": "object", "required": ["a"]}
    answer = model_saying(said).chat("?", schema=schema, temperature=0.1, seed=1)
    assert (answer.thinking, answer.content, answer.finish_reason) == ('Is {"a": 1} right?', '{"a": 1}', "stop")


def test_an_answer_that_must_be_something_does_not_end_within_its_thinking():
    def thinker(ids):
        row = np.zeros(SIZE, np.float32)
        row[END], row[TOKENIZER.id("</think>")] = 30, 20
        return row

    answer = model_saying(thinker).chat("?", regex="\n?abc", temperature=0.1, seed=1)
    assert (answer.content.strip(), answer.finish_reason) == ("abc", "stop")
    assert model_saying(thinker).chat("?", temperature=0.1, seed=1).content == ""


def test_every_cut_of_forced_tokens_is_safe(noise):
    for limit in range(1, 40):
        answer = ask(noise, 5, choice=["yes"], thinking=True, thinking_budget=3, max_tokens=limit)
        assert answer.usage.completion_tokens <= limit
        assert "yes".startswith(answer.content)
        assert answer.finish_reason == ("stop" if answer.content == "yes" else "length")


def test_what_is_forced_costs_no_step_of_its_own(noise):
    named = {"tools": TOOLS[:1], "tool_choice": "required", "parallel_tool_calls": False, "loop_guard": False}
    for seed in range(4):
        NOISE.seed = seed
        noise.backend.forwarded.clear()
        answer = ask(noise, seed, **named, frequency_penalty=0.5)
        steps = len(noise.backend.forwarded)
        assert steps < answer.usage.completion_tokens - 8
        seen = ask(noise, seed, **named, frequency_penalty=0.5, logprobs=0)  # each token has one: nothing is skipped
        assert (seen.content, seen.usage.completion_tokens) == (answer.content, answer.usage.completion_tokens)
        assert [c.arguments for c in seen.tool_calls] == [c.arguments for c in answer.tool_calls]
        assert len(seen.logprobs) == seen.usage.completion_tokens


def test_logprobs_and_bias_are_those_before_the_mask(noise):
    answer = ask(noise, 1, choice=["yes"], logprobs=2)
    assert b"".join(p.token_bytes for p in answer.logprobs) == b"yes"
    assert all(p.top[0][1] > p.logprob for p in answer.logprobs)  # the tags, which the mask takes away
    biased = model_saying("no").chat(
        "?", thinking=False, choice=["no", "yes"], logit_bias={TOKENIZER.encode("y")[0]: 99}
    )
    assert biased.content == "yes"


# Calls


PARAMETERS = {"type": "object", "properties": {"a": WHOLE, "t": {"enum": ["</tool_call>", "x"]}}, "required": ["a"]}
TREE = {"$defs": {"n": NODE}, "$ref": "#/$defs/n"}


def tool(name, parameters=None, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}, **more}}


TOOLS = [tool("add", PARAMETERS), tool('sag "é"', {"type": "object", "properties": {}}), tool("tree", TREE)]


def check_calls(answer, tools=TOOLS):
    parameters = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
    assert answer.finish_reason == "tool_calls"
    assert answer.tool_calls
    for call in answer.tool_calls:
        Draft202012Validator(parameters[call.name]).validate(json.loads(call.arguments))


@pytest.mark.parametrize("thinking", [False, True])
def test_a_call_that_is_required_comes_and_is_valid(noise, plain_noise, thinking):
    names, counts = set(), set()
    for seed in range(12):
        options = {
            "tools": TOOLS,
            "tool_choice": "required",
            "thinking_budget": 4,
            "max_tokens": 600,
            "logit_bias": {END: -18},
        }
        model = noise if thinking or seed % 2 else plain_noise
        answer = ask(model, seed, thinking=thinking, loop_guard=False, **options)
        if answer.finish_reason != "length":
            assert answer.content == ""
            check_calls(answer)
            names |= {call.name for call in answer.tool_calls}
            counts.add(len(answer.tool_calls))
    assert len(names) > 1
    assert max(counts) > 1


def test_the_named_function_is_called_once():
    model = model_saying("I would rather not.")
    for index, named in enumerate(TOOLS[:2]):
        choice = {"type": "function", "function": {"name": named["function"]["name"]}}
        answer = model.chat(
            "?", thinking=False, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=1, max_tokens=900,
            temperature=1.0, loop_guard=False,
        )  # fmt: skip
        check_calls(answer, TOOLS[index : index + 1])
        assert len(answer.tool_calls) == 1


def test_no_tools_are_told_of_with_none():
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    model = model_saying(call)
    answer = model.chat("?", thinking=False, tools=TOOLS, tool_choice="none")
    assert (answer.content, answer.tool_calls) == (call, ())
    assert answer.usage.prompt_tokens == model.count_tokens("?", thinking=False)


def test_the_first_call_ends_the_answer_where_no_other_may_come():
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    model = model_saying(f"I add.\n{call}\n{call} and more")
    answer = model.chat("?", thinking=False, tools=TOOLS, parallel_tool_calls=False, stop=("zz",))
    assert (answer.content, len(answer.tool_calls), answer.finish_reason) == ("I add.", 1, "tool_calls")
    assert len(model.chat("?", thinking=False, tools=TOOLS).tool_calls) == 2


def test_a_call_may_stand_in_place_of_the_content(noise):
    kinds = set()
    for seed in range(12):
        answer = ask(noise, seed, tools=TOOLS, choice=["Yes", "No"], parallel_tool_calls=False, max_tokens=300)
        if answer.finish_reason == "tool_calls":
            check_calls(answer)
        elif answer.finish_reason == "stop":
            assert answer.content in {"Yes", "No"}
        kinds.add(answer.finish_reason)
    assert "tool_calls" in kinds
    assert model_saying("Yes").chat("?", thinking=False, tools=TOOLS, choice=["Yes", "No"]).content == "Yes"


def test_what_looks_like_a_call_inside_the_content_is_text():
    text = json.dumps('<tool_call>{"name": "add"}</tool_call>')
    answer = model_saying(plain_script(text)).chat("?", thinking=False, tools=TOOLS, schema=TEXT, temperature=0.0)
    assert (answer.content, answer.tool_calls, answer.finish_reason) == (text, (), "stop")


def plain_script(text):
    """Like `script`, with every tag as text."""
    words = TOKENIZER.encode(text)

    def next_id(ids):
        begun = max(n for n in range(len(words) + 1) if n == 0 or list(ids[-n:]) == words[:n])
        return words[begun] if begun < len(words) else END

    return next_id


def test_strict_functions_are_held_to_their_parameters_in_auto(noise):
    wrong = '<tool_call>\n{"name": "add", "arguments": {"a": "much", "b": 2}}\n</tool_call>'
    said = f"I add. {wrong}"
    strict = [tool("add", PARAMETERS, strict=True)]
    free = model_saying(said).chat("?", thinking=False, tools=TOOLS)
    assert json.loads(free.tool_calls[0].arguments) == {"a": "much", "b": 2}

    def stubborn(ids):
        row = np.zeros(SIZE, np.float32)
        row[script(said)(ids)] = 30
        row[CLOSING] += 1
        return row

    for seed in range(5):
        held = model_saying(stubborn).chat("?", thinking=False, tools=strict, seed=seed, max_tokens=400)
        if held.tool_calls:
            check_calls(held, strict)
            assert held.content.startswith("I add.")
            break
    else:
        pytest.fail("no call was ended")
    assert model_saying("Just text.").chat("?", thinking=False, tools=strict).content == "Just text."


def test_a_stream_says_what_the_whole_answer_says(noise):
    for seed, options in enumerate([
        {"schema": VALID[9]}, {"regex": "\n?[a-c]{1,5}"}, {"choice": CHOICES},
        {"tools": TOOLS, "tool_choice": "required"}, {"schema": VALID[9], "tools": TOOLS},
        {"schema": VALID[9], "stop": ('"b',)},
    ]):  # fmt: skip
        NOISE.seed = seed
        config = {**FREE, "seed": seed, "thinking_budget": 6, **options}
        deltas, again = list(noise.stream("Hi", **config)), noise.chat("Hi", **config)
        streamed = fold(deltas)
        assert (streamed.thinking, streamed.content, streamed.tool_calls, streamed.finish_reason) == (
            again.thinking, again.content, again.tool_calls, again.finish_reason,
        )  # fmt: skip


# What is refused


LAUGHS = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 10} for i in range(12)} | {"a12": {"type": "object"}}
HOSTILE = [
    {"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"allOf": [{"$ref": "#"}], "type": "object"}, {"$ref": "#/nowhere"}, {"type": "frob"},
    {"type": "integer", "minimum": 5, "maximum": 4}, {"type": "string", "enum": [1, 2]},
    {"type": "object", "properties": {"a": False}, "required": ["a"]}, {"type": "object", "required": "a"},
    {"type": "string", "pattern": "("}, {"type": "string", "pattern": r"^(a)\1$"},
    {"type": "string", "pattern": "^(?=a)b$"}, {"oneOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]},
    {"allOf": [{"anyOf": [{"properties": {f"p{i}_{j}": TEXT}} for j in range(8)]} for i in range(6)]},
    {"type": "string", "pattern": "^(foo|bar)*[a-z]{3,900}$", "minLength": 1000},
]  # fmt: skip
HEAVY = [
    {"enum": ["x" * 20 + str(i) for i in range(2000)]}, {"enum": [{f"k{i}": {"z": i}} for i in range(100)]},
    {"$defs": LAUGHS, "$ref": "#/$defs/a0"}, {"type": "string", "minLength": 1000, "maxLength": 10**9},
    {"type": "array", "items": {"type": "array", "items": TEXT, "minItems": 1000}, "minItems": 1000},
    {"type": "object", "properties": {f"p{i}": WHOLE for i in range(900)}},
    {"type": "object", "patternProperties": {f"^a{i}x[a-z]*$": TEXT for i in range(32)}},
    {"type": "string", "pattern": "^(a|b)*a(a|b){200}$"}, {"type": "string", "pattern": "^((a{1,99}){1,99}){1,99}$"},
    {"allOf": [{"type": "string", "pattern": f"[a-z]{{{i}}}x.*y{i}"} for i in range(1, 9)]},
    {"type": "number", "minimum": -1.5, "maximum": 2**53, "multipleOf": 0.01}, {"type": "integer", "multipleOf": 997},
    {"type": "object", "additionalProperties": TEXT, "maxProperties": 9999},
    {"type": "object", "properties": {f"p{i}": {"type": "string", "minLength": i} for i in range(300)}},
]  # fmt: skip


@pytest.mark.parametrize("schema", [*HOSTILE, *HEAVY], ids=lambda schema: str(schema)[:60])
def test_a_hostile_schema_is_refused_or_compiled_in_time(noise, schema):
    noise.chat("Hi", thinking=False, choice=["a"])  # the vocabulary is there
    started = time.thread_time()
    refused = ""
    try:
        noise.stream("Hi", schema=schema, thinking=False)
    except RequestError as error:
        refused = str(error)
    assert time.thread_time() - started < 1.5
    assert refused.startswith("schema") == bool(refused)
    assert len(refused) < 600
    assert "\n" not in refused
    if schema in HOSTILE:
        assert refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schema": {"properties": {"a": {"not": {}}}}}, r"^schema\.properties\.a\.not"),
        ({"schema": []}, "^schema must be"),
        ({"schema": {}, "regex": "a"}, "^regex"),
        ({"regex": "a", "choice": ["a"]}, "^choice"),
        ({"regex": "("}, "^regex cannot be kept to"),
        ({"regex": ""}, "^regex must be"),
        ({"regex": 3}, "^regex must be"),
        ({"regex": "a" * 5000}, "^regex must be"),
        ({"regex": "\ud800"}, "^regex"),
        ({"regex": "[^\\s\\S]"}, "^regex"),
        ({"choice": "yes"}, "^choice must be"),
        ({"choice": [""]}, r"^choice\[0\]"),
        ({"choice": ["a", 3]}, r"^choice\[1\]"),
        ({"choice": ["a"] * 300}, "^choice must be"),
        ({"tool_choice": "required"}, "^tool_choice='required' needs tools"),
        ({"tool_choice": "any", "tools": TOOLS}, "^tool_choice='any' must be"),
        ({"tool_choice": {"function": {"name": "mul"}}, "tools": TOOLS}, "^tool_choice=.*'mul', which is none"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": [tool("a", {"not": {}}, strict=True)]}, r"^tools\[0\]\.function\.parameters\.not"),
        ({"tools": [tool("a\n")], "tool_choice": "required"}, r"^tools\[0\]\.function\.name"),
    ],
)
def test_what_cannot_be_asked_is_named_before_anything_is_computed(options, words):
    model = model_saying("ok")
    with pytest.raises(RequestError, match=words):
        model.stream("?", **options)
    assert not model.backend.forwarded


def test_a_function_that_is_not_strict_may_ask_for_what_cannot_be_kept_to(noise):
    loose = [tool("add", {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})]
    answer = ask(noise, 3, tools=loose, tool_choice="required", parallel_tool_calls=False, max_tokens=900)
    assert answer.finish_reason in {"tool_calls", "length"}


def test_nothing_is_nothing():
    answer = model_saying("ok").chat(
        "?", thinking=False, schema=None, regex=None, choice=None, tool_choice=None, parallel_tool_calls=None
    )
    assert answer.content == "ok"


def test_without_the_package_the_error_carries_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    model = model_saying("ok")
    assert model.chat("?", thinking=False).content == "ok"
    for options in ({"schema": {}}, {"regex": "a"}, {"choice": ["a"]}, {"tools": TOOLS, "tool_choice": "required"}):
        with pytest.raises(RequestError, match=r"pip install 'edgeqwen\[structure\]'"):
            model.stream("?", **options)


def test_a_grammar_too_complex_to_follow_is_an_error_and_not_a_wrong_answer():
    model = model_saying(lambda ids: TOKENIZER.encode("a")[0])
    with pytest.raises(RequestError, match=r"^regex cannot be kept to"):
        model.chat("?", thinking=False, regex="((a{1,100}){1,100}){1,100}b", loop_guard=False)


def test_grammars_are_compiled_once(noise, monkeypatch):
    compiled = []
    compile_ = type(noise.language._grammars._loaded()).compile
    monkeypatch.setattr("edgeqwen.grammar.Vocabulary.compile", lambda self, s: compiled.append(s) or compile_(self, s))
    for _ in range(3):
        ask(noise, 1, regex="[x-z]{2}")
    assert len(compiled) == 1


# A real vocabulary, a real model


def test_the_mask_of_qwens_whole_vocabulary():
    tokenizer = Tokenizer.from_json(
        lzma.decompress((Path(__file__).parent / "data" / "qwen3-tokenizer.json.xz").read_bytes())
    )
    ends, size = frozenset({tokenizer.id("<|im_end|>"), tokenizer.id("<|endoftext|>")}), 151_936
    grammars, sampler = Grammars(tokenizer, size, ends), Sampler(SAMPLING_PLAIN)
    config = GenerationConfig(schema={"type": "array", "items": POINT | {"properties": {"x": {}, "s": TEXT}}})
    text = json.dumps([{"x": 1, "s": "a text that goes on for a while, as texts do, <think>"}] * 3)
    logits = np.random.default_rng(0).normal(0, 3, size).astype(np.float32)
    guide, masks_s = grammars.guide(config, ()), []
    for token_id in tokenizer.encode(text):
        started = time.thread_time()
        allowed = guide.allowed()
        masks_s.append(time.thread_time() - started)
        assert allowed.shape == (size,)
        assert allowed[token_id]
        assert not allowed[tokenizer.vocab_size :].any()
        assert not allowed[[*tokenizer.added.values()]].any()  # neither an end: the list is open
        assert allowed[sampler.sample(logits, allowed)]
        guide.push(token_id)
    assert guide.complete
    assert np.median(masks_s[1:]) < 0.0003
    number = grammars.guide(GenerationConfig(schema=WHOLE), ())
    number.push(tokenizer.encode("4")[0])
    assert number.allowed()[[*ends]].all()


def test_nano_thinks_and_answers_in_json(nano_artifact):
    schema = {"type": "object", "properties": {"capital": {"type": "string", "maxLength": 40}}, "required": ["capital"]}
    with load(nano_artifact("q8_0"), threads=1, context_length=1024) as model:
        question = "What is the capital of France?"
        for options in ({"thinking": True}, {"thinking_budget": 8}, {"thinking": False}):
            answer = model.chat(question, schema=schema, temperature=0.0, max_tokens=500, **options)
            assert answer.finish_reason == "stop"
            Draft202012Validator(schema).validate(json.loads(answer.content))
            assert bool(answer.thinking) == (options != {"thinking": False})
        named = model.chat(
            question, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "add"}},
            parallel_tool_calls=False, temperature=0.0, thinking=False, max_tokens=500,
        )  # fmt: skip
        check_calls(named, TOOLS[:1])
        assert model.chat(question, choice=["Paris", "Rome"], temperature=0.0, thinking=False).content == "Paris"
