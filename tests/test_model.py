"""One answer from messages to deltas, on an engine whose words are known: split, budget, stops, tools, cache, locks."""

import json
import logging
import threading
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_model import (
    END,
    QWEN3,
    QWEN25,
    SHAPE,
    THOUGHT,
    TOKENIZER,
    TOOLS,
    TURN,
    TURN_START,
    model_saying,
    script,
    segments,
)

import edgeqwen
from edgeqwen import ContextOverflowError, EngineError, InterruptedForwardError, Message, RequestError
from edgeqwen.generation import BUDGET_SENTENCE, common_prefix
from edgeqwen.model import Model, ModelCard, fold
from edgeqwen.segments import Special
from edgeqwen.types import Delta, GenerationConfig, Options, ToolCall


def test_thinking_and_content_are_split_and_counted():
    answer = model_saying(THOUGHT).chat("What is 2+2?", temperature=0.6, seed=1)
    assert (answer.thinking, answer.content, answer.finish_reason) == ("Two and two.", "It is 4.\n", "stop")
    written = len(TOKENIZER.encode_segments(segments(THOUGHT)))
    thought = len(TOKENIZER.encode_segments(segments("<think>\nTwo and two.\n\n</think>")))
    assert (answer.usage.completion_tokens, answer.usage.thinking_tokens) == (written + 1, thought)
    assert answer.message == Message("assistant", "It is 4.\n", "Two and two.")
    assert answer.timings.decode_tokens_per_s > 0


def test_without_thinking_the_template_closes_the_block():
    model = model_saying("It is 4.")
    answer = model.chat("What is 2+2?", thinking=False)
    assert (answer.thinking, answer.content, answer.usage.thinking_tokens) == ("", "It is 4.", 0)
    assert model.chat("What is 2+2?", thinking_budget=0).content == "It is 4."  # a budget of 0 is the hard switch


def test_a_soft_switch_leaves_no_empty_block():
    answer = model_saying("<think>\n\n</think>\n\nIt is 4.").chat("2+2? /no_think", seed=1)
    assert (answer.thinking, answer.content) == ("", "It is 4.")


def test_no_closing_tag_is_unfinished_thinking():
    answer = model_saying("<think>\nI wonder").chat("Why?", seed=1)
    assert (answer.thinking, answer.content, answer.finish_reason) == ("I wonder", "", "stop")


@pytest.mark.parametrize("limit", range(1, 30))
def test_a_cut_by_length_keeps_the_parts_apart(limit):
    answer = model_saying(THOUGHT).chat("What is 2+2?", max_tokens=limit, seed=1)
    assert "Two and two.".startswith(answer.thinking)
    assert "It is 4.\n".startswith(answer.content)
    assert answer.usage.completion_tokens <= limit
    whole = len(TOKENIZER.encode_segments(segments(THOUGHT))) + 1  # and the end token
    assert answer.finish_reason == ("stop" if limit >= whole else "length")
    if answer.content:
        assert answer.thinking == "Two and two."


def test_the_budget_closes_thinking_with_qwens_sentence():
    endless = "<think>\n" + "round and round we go; " * 200

    def follow(ids):
        closing = TOKENIZER.id("</think>")
        if closing in ids:
            return script("4")(list(TURN) + list(ids)[list(ids).index(closing) + 2 :])
        return script(endless)(ids)

    model = model_saying(follow)
    answer = model.chat("2+2?", thinking_budget=16, seed=1, loop_guard=False)
    sentence = (
        "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    )
    free = answer.thinking.removesuffix(sentence)
    assert free != answer.thinking
    assert free
    assert endless.removeprefix("<think>\n").startswith(free)
    assert (answer.content, answer.finish_reason) == ("4", "stop")
    forced = TOKENIZER.encode_segments(BUDGET_SENTENCE)
    assert answer.usage.thinking_tokens == 16 + len(forced) - 1  # all of it but the last newlines is thinking
    ids = list(model.backend.ids(0))
    at = ids.index(TOKENIZER.id("</think>"))
    assert ids[at - len(forced) + 2 : at + 2] == forced
    drawn = answer.usage.completion_tokens - len(forced)  # what stands there undrawn took no step
    assert answer.timings.decode_tokens_per_s == pytest.approx((drawn - 1) / answer.timings.decode_s)


def test_the_forced_text_is_qwens_to_the_byte():
    text = "".join(part.text if isinstance(part, Special) else part for part in BUDGET_SENTENCE)
    assert text == (
        "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
        "\n</think>\n\n"
    )


def test_a_budget_that_is_not_used_changes_nothing():
    free, bounded = (model_saying(THOUGHT).chat("2+2?", seed=1, thinking_budget=b) for b in (None, 500))
    assert (free.thinking, free.content, free.usage) == (bounded.thinking, bounded.content, bounded.usage)


def test_the_forced_sentence_stops_at_the_limits():
    for limit in range(17, 60):
        answer = model_saying("<think>\n" + "no end " * 300).chat(
            "?", thinking_budget=16, max_tokens=limit, seed=1, loop_guard=False
        )
        assert answer.usage.completion_tokens <= limit
        assert answer.finish_reason == "length"


def test_stop_strings_end_the_content_and_spare_the_thinking():
    answer = model_saying("<think>\nSTOP here\n</think>\n\nOne. STOP Two.").chat("?", stop=("STOP",), seed=1)
    assert (answer.thinking, answer.content, answer.finish_reason) == ("STOP here", "One. ", "stop")
    assert model_saying("a b c").chat("?", thinking=False, stop="b", seed=1).content == "a "


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": [1]}}\n</tool_call>'


def test_tool_calls_are_parsed_when_tools_were_offered_and_text_when_not():
    answer = model_saying("Let me add.\n" + CALL + "\n" + CALL).chat("2+2?", tools=TOOLS, thinking=False)
    assert (answer.content, answer.finish_reason) == ("Let me add.", "tool_calls")
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == [("add", {"a": 2, "b": [1]})] * 2
    assert len({call.id for call in answer.tool_calls}) == 2
    plain = model_saying(CALL).chat("2+2?", thinking=False)
    assert (plain.content, plain.tool_calls, plain.finish_reason) == (CALL, (), "stop")


def test_a_malformed_call_is_content():
    broken = '<tool_call>\n{"name": "add", "arguments": {"a": 2\n</tool_call>'
    answer = model_saying(broken).chat("2+2?", tools=TOOLS, thinking=False)
    assert (answer.content, answer.tool_calls, answer.finish_reason) == (broken, (), "stop")


def test_ids_of_calls_differ_from_turn_to_turn():
    model = model_saying(CALL)
    first, second = (model.chat(text, tools=TOOLS, thinking=False).tool_calls[0].id for text in ("one", "two"))
    assert first != second


def test_an_endless_repetition_is_cut_with_its_reason():
    model = model_saying(lambda ids: TOKENIZER.encode("again and ")[len(ids) % 2])
    assert model.chat("?", thinking=False, seed=1).finish_reason == "loop"
    assert model.chat("?", thinking=False, seed=1, loop_guard=False).finish_reason == "length"


def test_greedy_thinking_warns_and_other_modes_do_not(caplog):
    with caplog.at_level(logging.WARNING, "edgeqwen"):
        model_saying(THOUGHT).chat("?", temperature=0)
    assert "greedy" in caplog.text
    caplog.clear()
    model_saying("4").chat("?", temperature=0, thinking=False)
    model_saying(THOUGHT).chat("?", seed=1)
    assert not caplog.records


def test_a_prompt_that_is_too_long_is_refused_with_both_counts():
    model = model_saying("ok", context_length=64)
    with pytest.raises(ContextOverflowError, match="64") as caught:
        model.stream("word " * 100)  # before the first delta is asked for
    assert caught.value.context_length == 64
    assert caught.value.prompt_tokens == model.count_tokens("word " * 100)
    fits = model.count_tokens("a", thinking=False)
    tight = model_saying("one two three", context_length=fits + 2)
    answer = tight.chat("a", thinking=False)
    assert (answer.usage.completion_tokens, answer.finish_reason) == (2, "length")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"temperature": -1}, "temperature"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {4096: 1.0}}, "4096"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("a",) * 17}, "stop"),
        ({"tempratur": 1}, "tempratur"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"thinking": "yes"}, "thinking"),
        ({"thinking_budget": 1.5}, "thinking_budget"),
        ({"logprobs": 2.0}, "logprobs"),
        ({"loop_guard": "no"}, "loop_guard"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {5: "x"}}, "logit_bias"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias"),
        ({"logit_bias": {5: 1e40}}, "logit_bias"),
        ({"tools": "x"}, "tools"),
        ({"tools": [1]}, "tools"),
        ({"tools": {"a": 1}}, "tools"),
        ({"tools": [{}]}, "tools"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_computed(options, words):
    model = model_saying("ok")
    with pytest.raises(RequestError, match=words):
        model.stream("?", **options)
    assert not model.backend.forwarded


def test_what_openai_clients_send_for_nothing_is_nothing():
    options = {"stop": None, "logit_bias": None, "tools": None, "max_tokens": None}
    assert model_saying("ok").chat("?", thinking=False, **options).content == "ok"
    biased = model_saying("ok").chat("?", thinking=False, logit_bias={"7": 100, str(END): -100}, max_tokens=2)
    assert biased.content == TOKENIZER.token_bytes(7).decode() * 2


def test_a_model_without_a_thinking_mode_says_so():
    model = model_saying("Hello.", template=QWEN25)
    assert model.chat("Hi").content == "Hello."
    assert model.chat("Hi", thinking_budget=50).content == "Hello."
    with pytest.raises(RequestError, match="no thinking mode"):
        model.stream("Hi", thinking=True)


def test_a_model_that_always_thinks_says_so():
    class AlwaysThinks:
        name, thinks = "always", True

        def render(self, messages, tools=(), *, thinking=True, generation_prompt=True):
            del thinking
            return [*QWEN3.render(messages, tools, generation_prompt=generation_prompt), Special("<think>"), "\n"]

    def follow(ids):
        opened = list(ids)[: -len(ids) + max(i for i, x in enumerate(ids) if x == TOKENIZER.id("<think>"))]
        return script("hm\n</think>\n\nBlue.")([*opened, *list(ids)[len(opened) + 2 :]])

    model = model_saying(follow, template=AlwaysThinks())
    answer = model.chat("Why?", seed=1)
    assert (answer.thinking, answer.content) == ("hm", "Blue.")
    with pytest.raises(RequestError, match="always thinks"):
        model.stream("Why?", thinking=False)


def test_options_are_the_fields_of_the_config():
    assert Options.__optional_keys__ == {field.name for field in fields(GenerationConfig)}


def test_logprobs_come_with_their_tokens():
    answer = model_saying("It is 4.").chat("?", thinking=False, logprobs=3)
    assert b"".join(p.token_bytes for p in answer.logprobs[:-1]).decode() == "It is 4."
    assert answer.logprobs[0].logprob == pytest.approx(10 - 10.1702, abs=1e-3)  # log(e^10 / (e^10 + 4095))
    assert [len(p.top) for p in answer.logprobs] == [3] * len(answer.logprobs)
    assert answer.logprobs[0].top[0] == (answer.logprobs[0].token, answer.logprobs[0].logprob)


WORDS = st.text(alphabet='ab <>/\n{}"étool_call思🙂', max_size=40)


@given(
    WORDS, WORDS, st.booleans(), st.booleans(), st.sampled_from([None, 3, 9]), st.sampled_from([(), ("b",), ("\n\n",)])
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_stream_and_fold_are_equal(thought, said, calls, tools, limit, stop):
    text = f"<think>\n{thought}\n</think>\n\n{said}" + (CALL if calls else "")
    options = {"tools": TOOLS if tools else (), "seed": 3, "max_tokens": limit, "stop": stop}
    deltas = list(model_saying(text).stream("?", **options))
    whole = model_saying(text).chat("?", **options)
    assert "".join(d.thinking for d in deltas) == whole.thinking
    assert "".join(d.content for d in deltas) == whole.content
    assert [d.finish_reason for d in deltas if d.finish_reason] == [whole.finish_reason]
    assert deltas[-1].usage == whole.usage
    assert all(d != Delta() for d in deltas)
    pieces = [p for d in deltas for p in d.tool_calls]
    assert [ToolCall(p.name, p.arguments, p.id) for p in pieces] == list(whole.tool_calls)


def test_a_stream_left_early_cannot_be_folded():
    deltas = list(model_saying(THOUGHT).stream("?", seed=1))
    with pytest.raises(RequestError, match="end"):
        fold(deltas[:-1])


def computed(model):
    """Tokens that went through the engine since the last call."""
    total = sum(count for _, count in model.backend.forwarded)
    model.backend.forwarded.clear()
    return total


def test_the_second_turn_pays_for_what_is_new():
    model = model_saying("<think>\nhm\n</think>\n\nBlue.")
    history = [Message("user", "Why? " * 50)]
    first = model.chat(history, seed=1)
    computed(model)
    history += [first.message, Message("user", "And?")]
    second = model.chat(history, seed=1)
    end_of_turn = (Special("<|im_end|>"), "\n")
    new = TOKENIZER.encode_segments(
        [*segments("Blue."), *end_of_turn, Special("<|im_start|>"), "user\nAnd?", *end_of_turn, *TURN_START]
    )
    assert computed(model) == len(new) + second.usage.completion_tokens - 1
    assert second.usage.cached_tokens == second.usage.prompt_tokens - len(new)


def test_prepare_leaves_only_the_question():
    model = model_saying("<think>\nhm\n</think>\n\nBlue.")
    history = [Message("user", "Why? " * 50)]
    history.append(model.chat(history, seed=1).message)
    held = model.prepare(history)
    assert held == model.backend.length(0)
    second = model.chat([*history, Message("user", "And?")], seed=1)
    assert second.usage.cached_tokens == held
    question = TOKENIZER.encode_segments(["And?", Special("<|im_end|>"), "\n", *TURN_START])
    assert second.usage.prompt_tokens - held == len(question)
    assert second.content == "Blue."


def test_the_same_question_again_costs_one_token():
    model = model_saying("Blue.")
    first = model.chat("Why?", thinking=False)
    second = model.chat("Why?", thinking=False)
    assert (second.content, second.usage.cached_tokens) == (first.content, second.usage.prompt_tokens - 1)


def test_long_prompts_report_their_progress():
    model = model_saying("ok", step_tokens=32)
    deltas = list(model.stream("word " * 100, thinking=False))
    progress = [d.prompt_progress for d in deltas if d.prompt_progress]
    total = deltas[-1].usage.prompt_tokens
    assert [done for done, _ in progress] == list(range(32, total, 32))
    assert {whole for _, whole in progress} == {total}


def test_a_second_stream_of_one_thread_is_refused_and_of_another_waits():
    model = model_saying("one two three")
    stream = model.stream("?", thinking=False)
    next(stream)
    with pytest.raises(RequestError, match="still running"):
        model.chat("?", thinking=False)
    done = []
    waiting = threading.Thread(target=lambda: done.append(model.chat("?", thinking=False).content))
    waiting.start()
    assert not done
    stream.close()
    waiting.join(10)
    assert done == ["one two three"]


def test_a_stream_may_change_threads():
    model = model_saying("one two three")
    stream = model.stream("?", thinking=False)
    beginner = threading.Thread(target=lambda: next(stream))
    beginner.start()
    beginner.join()
    next(stream)
    with pytest.raises(RequestError, match="still running"):  # it is this thread that drives it now
        model.chat("?", thinking=False)
    stream.close()
    assert model.chat("?", thinking=False).content == "one two three"


def test_the_readers_time_is_not_the_models():
    slow = threading.Event()
    deltas = []
    for delta in model_saying("one two three").stream("?", thinking=False):
        slow.wait(0.05)
        deltas.append(delta)
    assert deltas[-1].timings.decode_s < 0.05


def test_a_closed_model_says_so():
    model = model_saying("one two three")
    stream = model.stream("?", thinking=False)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)
    with pytest.raises(EngineError, match="closed"):
        model.chat("?", thinking=False)


def test_closing_stops_an_answer_of_another_thread():
    computing, results = threading.Event(), []

    def endless(ids):
        computing.set()
        return TOKENIZER.encode("word ")[0] if len(ids) < 2000 else END

    model = model_saying(endless)

    def work():
        try:
            model.chat("?", thinking=False, loop_guard=False)
        except EngineError as error:
            results.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    computing.wait(10)
    model.close()
    worker.join(10)
    assert len(results) == 1


def test_the_greedy_warning_comes_once(caplog):
    model = model_saying(THOUGHT)
    with caplog.at_level(logging.WARNING, "edgeqwen"):
        model.chat("?", temperature=0)
        model.chat("?", temperature=0)
    assert len(caplog.records) == 1


def test_interrupt_ends_the_stream_and_the_model_stays_usable():
    model = model_saying("one two three four")
    stream = model.stream("?", thinking=False)
    next(stream)
    model.interrupt()
    with pytest.raises(InterruptedForwardError):
        list(stream)
    assert model.chat("?", thinking=False).content == "one two three four"


def test_presets_follow_the_mode_and_the_file():
    model = model_saying("ok")
    config = GenerationConfig()
    assert model.language.sampling(config, thinking=True).temperature == 0.6
    assert model.language.sampling(config, thinking=False).temperature == 0.7
    own = Model(
        model.backend,
        TOKENIZER,
        QWEN25,
        ModelCard("own", SHAPE, frozenset({END}), edgeqwen.GenerationConfig(temperature=0.3)),
    )
    assert own.language.sampling(config, thinking=False).temperature == 0.3
    assert own.language.sampling(GenerationConfig(temperature=1.0), thinking=False).temperature == 1.0


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2], [1, 2, 3]) == 2
