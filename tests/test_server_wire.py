"""OpenAI's wire over a real socket: the strict shape of answers and chunks, and that both say the same."""

import itertools
import json
import random

import pytest
from scripted_model import END, QWEN25, THOUGHT, TOKENIZER, TOOLS, segments
from server_kit import CHAT, DONE, HELLO, TEXT, FakeEngine, scripted, serving
from wire_answers import asked, deltas, folded, joined, wholly

from edgeqwen.segments import Special
from edgeqwen.types import Delta, Timings, Usage

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "</tool_call>"}}\n</tool_call>'
TWO_CALLS = f"I add.\n{CALL}\n" + CALL.replace('"add"', '"sub"')


@pytest.fixture(scope="module")
def thinker():
    with serving(scripted(THOUGHT)) as server:
        yield server


@pytest.fixture(scope="module")
def caller():
    with serving(scripted(f"<think>\nHm.\n</think>\n\n{TWO_CALLS}")) as server:
        yield server


def test_a_whole_answer():
    with serving(scripted(THOUGHT)) as server:
        answer = server.chat(model="scripted")
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "scripted"
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "stop"
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", "It is 4.\n")
    assert message["reasoning_content"] == message["reasoning"] == "Two and two."
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert answer["timings"]["predicted_n"] == usage["completion_tokens"]


def test_the_chunks_have_the_strict_shape(thinker):
    chunks = thinker.stream(stream_options={"include_usage": True})
    for name in ("id", "created", "model"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    *shown, last = chunks
    assert all([c["index"] for c in chunk["choices"]] == [0] for chunk in shown)
    assert all(chunk["usage"] is None for chunk in shown)
    assert deltas(chunks)[0] == {"role": "assistant", "content": ""}
    assert not any("role" in delta for delta in deltas(chunks)[1:])
    assert deltas(chunks)[-1] == {}
    assert [c["finish_reason"] for chunk in shown for c in chunk["choices"]] == [None] * (len(shown) - 1) + ["stop"]
    kinds = [next(iter(delta)) for delta in deltas(chunks)[1:-1]]
    assert [kind for kind, _ in itertools.groupby(kinds)] == ["reasoning_content", "content"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_usage_comes_only_where_it_is_asked_for(thinker):
    chunks = thinker.stream()
    assert not any("usage" in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


def test_calls_are_streamed_in_the_strict_shape(caller):
    chunks = caller.stream(tools=TOOLS)
    pieces = [call for delta in deltas(chunks) for call in delta.get("tool_calls", ())]
    assert len(pieces) == 4
    for index, (opening, rest) in enumerate(itertools.batched(pieces, 2) if hasattr(itertools, "batched") else
                                            zip(pieces[::2], pieces[1::2], strict=True)):  # fmt: skip
        assert opening["index"] == rest["index"] == index
        assert opening["type"] == "function"
        assert opening["id"].startswith("call_")
        assert opening["function"] == {"name": ["add", "sub"][index], "arguments": ""}
        assert set(rest) == {"index", "function"}
        assert json.loads(rest["function"]["arguments"]) == {"a": 1, "b": "</tool_call>"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    whole = caller.chat(tools=TOOLS)["choices"][0]["message"]
    assert whole["content"] == joined(chunks, "content") == "I add."
    assert [call["function"]["name"] for call in whole["tool_calls"]] == ["add", "sub"]


def test_one_call_alone_where_parallel_ones_are_not_wanted(caller):
    message = caller.chat(tools=TOOLS, parallel_tool_calls=False)["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["add"]
    assert len([1 for d in deltas(caller.stream(tools=TOOLS, parallel_tool_calls=False)) if "tool_calls" in d]) == 2


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_tools_a_call_stays_in_the_content(caller, fields):
    choice = caller.chat(**fields)["choices"][0]
    assert choice["message"]["content"] == TWO_CALLS
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_content_is_null_beside_calls_alone():
    with serving(scripted(CALL)) as server:
        message = server.chat(tools=TOOLS, enable_thinking=False)["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["name"] == "add"


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": True, "return_reasoning": False},
        {"include_reasoning": False},
        {"reasoning": {"exclude": True}},
        {"reasoning_format": "hidden", "logprobs": True},
    ],
)
def test_hidden_thinking_is_nowhere_but_in_the_usage(thinker, fields):
    answer = thinker.chat(**fields)
    chunks = thinker.stream(**fields)
    assert "Two" not in json.dumps(answer) + json.dumps(chunks)
    assert answer["choices"][0]["message"]["content"] == joined(chunks, "content") == "It is 4.\n"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_inline_thinking_is_in_the_content(thinker):
    answer = thinker.chat(reasoning_format="none")
    message = answer["choices"][0]["message"]
    assert message["content"] == "<think>\nTwo and two.\n</think>\n\nIt is 4.\n"
    assert "reasoning_content" not in message
    assert joined(thinker.stream(separate_reasoning=False), "content") == message["content"]


def test_thinking_that_was_cut_is_no_content(thinker):
    choice = thinker.chat(max_tokens=3)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"]


def test_logprobs_are_those_of_the_content(thinker):
    answer = thinker.chat(logprobs=True, top_logprobs=2)["choices"][0]
    tokens = answer["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == "It is 4.\n"
    assert all(bytes(token["bytes"]).decode() == token["token"] and token["logprob"] <= 0 for token in tokens)
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    assert tokens[0]["top_logprobs"][0] == {k: tokens[0][k] for k in ("token", "logprob", "bytes")}
    chunks = thinker.stream(logprobs=True, top_logprobs=2)
    streamed = [
        t for c in chunks for choice in c["choices"] if choice["logprobs"] for t in choice["logprobs"]["content"]
    ]
    assert streamed == tokens
    assert thinker.chat(logprobs=False)["choices"][0]["logprobs"] is None


def test_logprobs_of_an_answer_whose_thinking_was_cut():
    """The tag was put in, not drawn, and has no logprob itself."""
    closing = TOKENIZER.id("</think>")
    wonder, *words = [*(TOKENIZER.encode_segments([letter])[0] for letter in "abc"), END]

    def next_id(ids):
        if closing not in ids:
            return wonder
        return words[sum(i in words for i in ids[ids.index(closing) :])]

    fields = {"logprobs": True, "thinking_budget": 2}
    with serving(scripted(next_id)) as server:
        choice, chunks = server.chat(**fields)["choices"][0], server.stream(**fields)
    assert choice["message"]["content"] == "bc"
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["b", "c"]
    streamed = [t for c in chunks for one in c["choices"] if one["logprobs"] for t in one["logprobs"]["content"]]
    assert streamed == choice["logprobs"]["content"]


def test_several_choices(thinker):
    answer = thinker.chat(n=3, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    one = thinker.chat(seed=1)["usage"]
    assert answer["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 3 * one["completion_tokens"]
    chunks = thinker.stream(n=3, seed=1, stream_options={"include_usage": True})
    for index in range(3):
        assert joined(chunks, "content", index) == "It is 4.\n"
        assert deltas(chunks, index)[0]["role"] == "assistant"
        assert deltas(chunks, index)[-1] == {}
    assert chunks[-1]["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]


def test_choices_have_seeds_of_their_own():
    with serving() as server:
        server.chat(n=3, seed=2**64 - 2)
        assert [request.config.seed for request in server.engine.asked] == [2**64 - 2, 2**64 - 1, 0]


def test_completions_continue_a_text():
    body = {"prompt": "<|im_start|>\n", "max_tokens": 4, "echo": True}
    with serving(scripted(lambda _ids: TOKENIZER.encode("\n")[0])) as server:
        whole = server.post(body, TEXT).json()
        chunks = server.stream(TEXT, **body)
    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")
    assert whole["choices"][0]["text"] == "<|im_start|>\n" + "\n" * 4
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"


def test_completions_take_ids_and_several_prompts(thinker):
    ids = [TOKENIZER.id("<|im_start|>"), *TOKENIZER.encode("assistant\n")]
    answer = thinker.post({"prompt": [ids, ids], "n": 2, "max_tokens": 30}, TEXT).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [texts[0]] * 4
    assert texts[0].startswith("<think>\nTwo and two.")
    assert answer["usage"]["prompt_tokens"] == 2 * len(ids)
    assert thinker.post({"prompt": ids, "max_tokens": 30}, TEXT).json()["choices"][0]["text"] == texts[0]


def test_a_completion_has_16_tokens_unless_told_otherwise():
    with serving() as server:
        server.post({"prompt": "a"}, TEXT)
        server.post({"prompt": "a", "max_tokens": 10**17}, TEXT)
        assert [request.config.max_tokens for request in server.engine.asked] == [16, 2**31]


def test_logprobs_of_a_completion(thinker):
    ids = [TOKENIZER.id("<|im_start|>"), *TOKENIZER.encode("assistant\n")]
    body = {"prompt": ids, "max_tokens": 9, "logprobs": 2}
    choice = thinker.post(body, TEXT).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [0, *itertools.accumulate(map(len, logprobs["tokens"]))][:-1]
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    chunks = thinker.stream(TEXT, **body)
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        streamed = [v for c in chunks if c["choices"][0]["logprobs"] for v in c["choices"][0]["logprobs"][name]]
        assert streamed == logprobs[name]


def test_a_loop_ends_with_length():
    async def answer(_request):
        yield Delta(content="a")
        yield Delta(finish_reason="loop", usage=Usage(1, 1), timings=Timings())

    with serving(FakeEngine(answer)) as server:
        assert server.chat()["choices"][0]["finish_reason"] == "length"
        assert server.stream()[-1]["choices"][0]["finish_reason"] == "length"


def test_comments_tell_of_a_long_prompt():
    async def answer(_request):
        yield Delta(prompt_progress=(512, 2000))
        yield DONE

    with serving(FakeEngine(answer)) as server:
        text = server.post({"messages": HELLO, "stream": True}).text
    assert text.startswith(": prompt 512/2000\n\ndata: {")


def test_models_by_name(thinker):
    listed = thinker.client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"]) == ("scripted", "model")
    assert thinker.client.get("/v1/models/scripted").json() == model
    missing = thinker.client.get("/v1/models/nope")
    assert missing.status_code == 404
    assert "scripted" in missing.json()["error"]["message"]


@pytest.mark.parametrize("name", ["Qwen-0.6B", "Qwen3-0.6B", "Qwen/Qwen3-0.6B", "qwen3:0.6b", "Qwen3-0.6B-GGUF", None])
def test_what_clients_call_the_one_model(name):
    with serving() as server:
        assert server.chat(model=name)["model"] == "Qwen3-0.6B"
        assert server.post({"model": "gpt-4o", "messages": HELLO}).status_code == 404


def test_histories_as_clients_send_them():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    with serving() as server:
        server.chat(messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Hm."},
            {"role": "tool", "id": "c1", "name": "add", "extra": {}, "content": [{"type": "text", "text": "2"}]},
            {"role": "assistant", "tool_calls": [call]},
        ])  # fmt: skip
        messages = server.engine.asked[0].messages
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert (messages[2].content, messages[2].thinking, messages[3].content) == ("", "Hm.", "2")
    assert messages[3].tool_call_id == "c1"


# Stream and whole answer say the same, whatever the model writes


CALL_IDS = TOKENIZER.encode_segments(segments('<tool_call>\n{"name": "add", "arguments": {"a": "é<"}}\n</tool_call>'))
WORDS = [
    *(TOKENIZER.id(tag) for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    *(i for text in ("\n", "\n\n", "4 ", "天", "🙂", "stop", "ab", ".") for i in TOKENIZER.encode(text)),
]


def babble(ids):
    """Tags, whole and broken calls and half characters in any order, as a function of what is there so far."""
    chance = random.Random(",".join(map(str, ids)))
    begun = max(n for n in range(len(CALL_IDS)) if n == 0 or list(ids[-n:]) == CALL_IDS[:n])
    if begun and chance.random() < 0.99:
        return CALL_IDS[begun]
    return END if chance.random() < 0.03 else chance.choice(WORDS)


def test_stream_and_whole_answer_are_the_same_to_the_byte():
    with serving(scripted(babble, parallel=3)) as server:
        kinds = set()
        for seed in range(200):
            body = asked(seed)
            answer = server.chat(**body)
            chunks = server.stream(**body, stream_options={"include_usage": True})
            assert folded(chunks, len(answer["choices"])) == wholly(answer), body
            usage, again = answer["usage"], chunks[-1]["usage"]
            usage.pop("prompt_tokens_details"), again.pop("prompt_tokens_details")
            assert usage == again
            kinds |= {choice["finish_reason"] for choice in answer["choices"]}
    assert kinds == {"stop", "length", "tool_calls"}


def test_a_model_that_cannot_think():
    with serving(scripted("Hi.", template=QWEN25)) as server:
        assert server.chat()["choices"][0]["message"]["content"] == "Hi."
        refused = server.post({"messages": HELLO, "enable_thinking": True})
        assert refused.status_code == 400
        assert server.post({"messages": HELLO, "reasoning_effort": "low"}).status_code == 200


def test_special_tokens_that_a_user_types_stay_text():
    with serving(scripted("Hi.")) as server:
        tokens = server.chat(messages=[{"role": "user", "content": "<|im_end|>"}])["usage"]["prompt_tokens"]
        ids = TOKENIZER.encode("<|im_end|>")
        assert len(ids) > 1
        assert tokens == server.chat(messages=[{"role": "user", "content": "a"}])["usage"]["prompt_tokens"] - 1 + len(
            ids
        )


def test_the_id_of_a_response_is_in_its_header(thinker):
    response = thinker.post({"messages": HELLO}, CHAT)
    assert response.headers["x-request-id"] == response.json()["id"]
    assert Special("<|im_end|>").text not in response.text


# Held to a shape


POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
SAYS = '<think>\nHm.\n</think>\n\n{"x": 12} and more'
FORMAT = {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": POINT}}


@pytest.fixture(scope="module")
def shaped():
    with serving(scripted(SAYS)) as server:
        yield server


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": FORMAT},
        {"response_format": {"type": "json_schema", "schema": POINT}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_object", "schema": POINT}},
        {"guided_json": POINT},
        {"guided_json": json.dumps(POINT)},
        {"guided_regex": r'\{"x": [0-9]{1,2}\}'},
        {"guided_choice": ['{"x": 12}', "no"]},
        {"structured_outputs": {"json": POINT}},
        {"structured_outputs": {"regex": "[^a-z]*x.{6}"}},
        {"structured_outputs": {"choice": ['{"x": 12}']}},
    ],
)
def test_every_dialect_of_a_shape_holds_behind_the_thinking(shaped, fields):
    fields = {**fields, "temperature": 0.1, "seed": 1}
    (choice,) = shaped.chat(**fields)["choices"]
    assert choice["message"]["content"] == '{"x": 12}'
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["finish_reason"] == "stop"
    chunks = shaped.stream(**fields)
    assert joined(chunks, "content") == '{"x": 12}'
    assert joined(chunks, "reasoning_content") == "Hm."
    budget = shaped.chat(**fields, thinking_budget=1)["choices"][0]["message"]
    assert "limited time" in budget["reasoning_content"]


def test_no_shape_is_no_shape(shaped):
    for fields in ({}, {"response_format": {"type": "text"}}, {"response_format": None, "guided_json": None}):
        assert shaped.chat(**fields)["choices"][0]["message"]["content"] == '{"x": 12} and more'


def test_a_completion_may_have_a_shape():
    with serving(scripted(lambda _ids: TOKENIZER.encode("4")[0])) as server:
        answer = server.post({"prompt": "2+2=", "guided_regex": "[0-9]{2}", "max_tokens": 9}, TEXT).json()
    assert [(c["text"], c["finish_reason"]) for c in answer["choices"]] == [("44", "stop")]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "3"}, "guided_json"),
        ({"guided_json": {"properties": {"a": {"not": {}}}}}, "guided_json.properties.a.not"),
        ({"guided_json": {"$ref": "#"}}, "guided_json"),
        ({"guided_json": {"type": "string", "pattern": "("}}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex"),
        ({"guided_json": POINT, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": POINT, "response_format": {"type": "json_object"}}, "guided_json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"if": {}}}}},
         "response_format.json_schema.schema.if"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {"not": {}}}}]},
         "tools[0].function.parameters.not"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_shape_that_cannot_be_kept_to_is_a_400_that_names_it(shaped, fields, param, stream):
    response = shaped.post({"messages": HELLO, "stream": stream, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(param.split(".")[0])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call(shaped, choice):
    fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "seed": 1, "max_tokens": 900}
    (answer,) = shaped.chat(**fields)["choices"]
    assert answer["finish_reason"] == "tool_calls"
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert folded(shaped.stream(**fields), 1) == wholly({"choices": [answer]})
