"""The split of thinking and answer against a literal reading of its rule, however the ids are cut."""

import codecs
import random
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_data import cuts, examples, library, tokenizer
from text_templates import sources

from edgeqwen.messages import messages_from
from edgeqwen.segments import Special
from edgeqwen.template import find_template
from edgeqwen.thinking import Split, ThinkSplitter, think_start

OURS = tokenizer()
OPEN, CLOSE, END = OURS.id("<think>"), OURS.id("</think>"), OURS.id("<|im_end|>")
BYTES = {OURS.token_bytes(number): number for number in range(OURS.vocab_size)}
HALF = [BYTES[bytes([byte])] for byte in "💥".encode()[:2]]  # half a character


def ids_of(*parts):
    ids = []
    for part in parts:
        ids += part if isinstance(part, list) else [part] if isinstance(part, int) else OURS.encode(part)
    return ids


def text_of(ids):
    return b"".join(OURS.token_bytes(i) for i in ids if i not in OURS.control).decode("utf-8", "replace")


def naive(ids, start):
    """The rule, read literally, over the whole answer."""
    if start == "content":
        return Split("", text_of(ids).lstrip("\n"))
    cut = ids.index(CLOSE) if CLOSE in ids else len(ids)
    thinking, content = ids[:cut], ids[cut + 1 :]
    if OPEN in thinking:
        before, after = thinking[: thinking.index(OPEN)], thinking[thinking.index(OPEN) + 1 :]
        if not shown_so_far(before).strip("\n"):
            thinking = before + after
    return Split(text_of(thinking).strip("\n"), text_of(content).lstrip("\n"))


def shown_so_far(ids):
    """Half a character is not shown yet."""
    data = b"".join(OURS.token_bytes(i) for i in ids if i not in OURS.control)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def run(pieces, start):
    splitter = ThinkSplitter(OURS, start)
    splits = [*map(splitter.push, pieces), splitter.flush()]
    return Split("".join(s.thinking for s in splits), "".join(s.content for s in splits)), splitter


ANSWERS = [
    ids_of(),
    ids_of(OPEN),
    ids_of(CLOSE),
    ids_of(OPEN, "\n\n", CLOSE, "\n\n", "Hi"),
    ids_of(OPEN, "\n", "a b", "\n", CLOSE, "\n\n", "c\n"),
    ids_of("\n", OPEN, "\n", "x", "\n\n", "y", "\n", CLOSE, "z"),
    ids_of("no tag at all\n"),
    ids_of(OPEN, "cut\n\n"),
    ids_of("first", OPEN, "then", CLOSE, "c"),
    ids_of(OPEN, OPEN, "x", CLOSE, CLOSE, "y"),
    ids_of(OPEN, "a", CLOSE, "b", OPEN, "c", CLOSE, "d"),
    ids_of(OPEN, HALF, CLOSE, HALF, "x"),
    ids_of(HALF, OPEN, "a", CLOSE, "\n", HALF),
    ids_of(OPEN, "a", CLOSE, "\n\n", "b", END),
    ids_of("\n\n", "plain answer"),
]


@pytest.mark.parametrize("start", ["expected", "open", "content"])
@pytest.mark.parametrize("ids", ANSWERS)
def test_answers_equal_the_rule_however_they_are_cut(ids, start):
    for pieces in cuts(ids):
        assert run(pieces, start)[0] == naive(ids, start)


PIECES = st.sampled_from(
    [[OPEN], [CLOSE], [END], HALF, HALF[:1], *map(OURS.encode, ("\n", "\n\n", "a", " b", "é\n", "中"))]
)


@given(
    st.lists(PIECES, max_size=7).map(lambda parts: list(chain(*parts))),
    st.sampled_from(["expected", "open", "content"]),
)
@examples(500)
def test_random_answers_equal_the_rule_however_they_are_cut(ids, start):
    wanted = naive(ids, start)
    for pieces in cuts(ids):
        found, splitter = run(pieces, start)
        assert found == wanted
        assert splitter.closed == (start != "content" and CLOSE in ids)
        assert splitter.state == ("content" if start == "content" or CLOSE in ids else "thinking")
        counted = ids.index(CLOSE) + 1 if CLOSE in ids else len(ids)
        assert splitter.thinking_tokens == (0 if start == "content" else counted)


def test_one_closing_tag_splits_as_the_model_card_does():
    """Qwen3's card: everything up to the last </think>, stripped of newlines; the same where there is one."""
    rng = random.Random(10)
    for _ in range(300):
        texts = ["".join(rng.choices(["\n", "a", " ", "中", "é"], k=rng.randint(0, 6))) for _ in range(2)]
        ids = ids_of(OPEN, "\n" + texts[0] + "\n", CLOSE, "\n\n" + texts[1])
        index = len(ids) - ids[::-1].index(CLOSE)
        card_thinking = library().decode(ids[:index], skip_special_tokens=True).strip("\n")
        card_content = library().decode(ids[index:], skip_special_tokens=True).strip("\n")
        found, _ = run([ids], "expected")
        inner = card_thinking.removeprefix("<think>").removesuffix("</think>").strip("\n")
        assert found.thinking == inner
        assert found.content.rstrip("\n") == card_content


QUESTION = messages_from([{"role": "user", "content": "<think> </think> <think>"}])


@pytest.mark.parametrize(
    ("name", "thinking", "wanted"),
    [
        ("qwen3", True, "expected"),
        ("qwen3", False, "content"),
        ("qwen3-gguf", True, "expected"),
        ("qwen3-gguf", False, "content"),
        ("qwen3-thinking-2507", True, "open"),
        ("qwen3-thinking-2507", False, "open"),
        ("qwen3-instruct-2507", True, "content"),
        ("qwen2.5", True, "content"),
        ("qwen2.5-coder", False, "content"),
    ],
)
def test_start_comes_from_the_rendered_prompt(name, thinking, wanted):
    template = find_template(sources()[name])
    history = [*QUESTION, *messages_from([{"role": "assistant", "content": "A", "reasoning_content": "T"}]), *QUESTION]
    call = {"role": "assistant", "reasoning_content": "T", "tool_calls": [{"name": "f"}]}
    steps = [*QUESTION, *messages_from([call, {"role": "tool", "content": "x"}])]  # the template keeps this thinking
    for messages in (QUESTION, history, steps):
        ids = OURS.encode_segments(template.render(messages, thinking=thinking))
        assert think_start(ids, OURS, thinks=template.thinks, thinking=thinking) == wanted


def test_start_without_any_turn_or_tag():
    assert think_start([], OURS, thinks=True, thinking=True) == "expected"
    assert think_start(OURS.encode("<think>"), OURS, thinks=False, thinking=True) == "content"
    assert think_start(OURS.encode_segments([Special("<think>")]), OURS, thinks=False, thinking=False) == "open"


def test_model_without_think_tags_gives_content():
    class Plain:
        control = OURS.control
        token_bytes = staticmethod(OURS.token_bytes)
        decoder = staticmethod(OURS.decoder)

        @staticmethod
        def id(token):
            return None

    assert think_start([OPEN], Plain, thinks=True, thinking=True) == "content"
    assert ThinkSplitter(Plain, "content").push(OURS.encode("hi")) == Split("", "hi")
