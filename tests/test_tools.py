"""Tool calls against a literal reading of their rule, however the text is cut, and back through the template."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_data import cuts, examples
from text_templates import sources

from edgeqwen import tools
from edgeqwen.segments import plain_text
from edgeqwen.template import find_template
from edgeqwen.tools import ToolCallParser
from edgeqwen.types import Message, ToolCall


def run(pieces, seed=0):
    parser = ToolCallParser(seed)
    texts = [*map(parser.push, pieces), parser.flush()]
    content = "".join(text.content for text in texts)
    calls = [call for text in texts for call in text.calls]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert parser.calls_seen == len(calls)
    return content, [(call.name, call.arguments) for call in calls]


def tag(text, gap="\n"):
    return f"<tool_call>{gap}{text}{gap}</tool_call>"


F = tag('{"name": "f", "arguments": {"x": 1}}')
ONE = ("f", '{"x": 1}')
CASES = {
    "plain": ("Hello.\n", ("Hello.\n", [])),
    "empty": ("", ("", [])),
    "one": (F, ("", [ONE])),
    "content before": (f"I look.\n{F}", ("I look.", [ONE])),
    "only one newline belongs to the call": (f"I look.\n\n{F}", ("I look.\n", [ONE])),
    "no newline": (f"I look.{F}", ("I look.", [ONE])),
    "newline alone": (f"\n{F}", ("", [ONE])),
    "several": (f"{F}\n{F}{F} \n\t {F}\n", ("", [ONE] * 4)),
    "content after": (f"{F}\nDone.\n", ("\nDone.\n", [ONE])),
    "content between": (f"{F} and\n{F}", (" and", [ONE, ONE])),
    "compact": (tag('{"name":"f","arguments":{}}', ""), ("", [("f", "{}")])),
    "arguments first": (tag('{"arguments": {"a": [1, {}]} , "name": "g"}'), ("", [("g", '{"a": [1, {}]}')])),
    "arguments as they were written": (
        tag('{"name": "f", "arguments": {"b" :1.50,  "a":"\\u00e9\\n",\n"a":2}}'),
        ("", [("f", '{"b" :1.50,  "a":"\\u00e9\\n",\n"a":2}')]),
    ),
    "no arguments at all": (tag('{"name": "now"}'), ("", [("now", "{}")])),
    "more keys": (tag('{"id": 7, "name": "f", "arguments": {}, "why": "x"}'), ("", [("f", "{}")])),
    "closing tag in a string": (
        tag('{"name": "f", "arguments": {"x": "a </tool_call> b \\" c"}}'),
        ("", [("f", '{"x": "a </tool_call> b \\" c"}')]),
    ),
    "opening tag in a string": (
        tag('{"name": "f", "arguments": {"x": "<tool_call>"}}'),
        ("", [("f", '{"x": "<tool_call>"}')]),
    ),
    "unicode": (tag('{"name": "天气", "arguments": {"城": "東京 💥"}}'), ("", [("天气", '{"城": "東京 💥"}')])),
    "giant number": (
        tag('{"name": "f", "arguments": {"x": %s}}' % ("9" * 5000)),
        ("", [("f", '{"x": %s}' % ("9" * 5000))]),
    ),
}
FAULTY = [
    '{"name": "f", "arguments": {"x": 1}',  # JSON that does not close
    '{"name": "f", "arguments": {"x": 1}}}',
    '{"name": "f", "arguments": {"x": }}',
    '{"name": "f", "arguments": {"x": NaN}}',
    '{"name": "f", "arguments": {"x": "}}',  # a string that does not close
    '{"name": "f", "arguments": {"x": "a\nb"}}',  # a raw newline in a string
    "{'name': 'f', 'arguments': {}}",
    '{"name": "f", "arguments": {},}',
    '{"name": "f", "arguments": "{}"}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": null}',
    '{"name": "f", "parameters": {}}',
    '{"name": "f", "name": "g", "arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": 5, "arguments": {}}',
    '{"name": "a\\ud800", "arguments": {}}',
    '{"name": "a\\nb", "arguments": {}}',
    '{"arguments": {}}',
    "{}",
    "[]",
    '"name"',
    "",
    "get_weather(city=1)",
    "[" * 1100,
    '{"name": "f", "arguments": ' + '{"x":' * 1100 + "1" + "}" * 1101,
    "<tool_call>",
]
for number, text in enumerate(FAULTY):
    CASES[f"fault {number}"] = (f"a\n{tag(text)}\n b", (f"a\n{tag(text)}\n b", []))
    CASES[f"fault {number} between calls"] = (f"{F}\n{tag(text)}\n{F}", (f"\n{tag(text)}", [ONE, ONE]))
for text in ("<tool_call>", "<tool_call>\n{", F[:-1], "x <tool", "<", "\n<tool_call", f"{F}\n<tool_call>\n{{"):
    rest = text.removeprefix(F)
    CASES[f"unclosed {text}"] = (text, (rest, [ONE] if rest != text else []))
del CASES["fault 25"], CASES["fault 25 between calls"]  # an opening tag alone pairs with the next closing one
CASES["restarted"] = (f"<tool_call>\n{F}", (f"<tool_call>\n{F}", []))
CASES["only blanks after a call"] = (f"{F}\n\n  \t", ("", [ONE]))


@pytest.mark.parametrize("name", CASES)
def test_cases_however_they_are_cut(name):
    text, wanted = CASES[name]
    assert run([text]) == wanted
    assert run(list(text)) == wanted
    step = max(1, len(text) // 60)  # every place of a short text
    for at in range(0, len(text), step):
        assert run([text[:at], text[at:]]) == wanted
        for later in range(at, len(text), 7 * step):
            assert run([text[:at], text[at:later], text[later:]]) == wanted


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool_", "call>", "\n", " ", "x", '"', "\\", "{", "}", F, "<",
     '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {"x": "', '"}}'],
)  # fmt: skip


def naive(text):
    """The rule over a whole text, by trying every closing tag that is not inside a JSON string."""
    content, calls, after = "", [], False
    while True:
        start = text.find("<tool_call>")
        if start < 0:
            return content + ("" if after and not text.strip(" \t\n\r") else text), calls
        end = closing(text, start + 11)
        if end is None:
            return content + text, calls
        call = parsed(text[start + 11 : end - 12])
        before = text[:start]
        if call is None:
            content, after = content + text[:end], False
        else:
            calls.append(call)
            content += "" if after and not before.strip() else before.removesuffix("\n")
            after = True
        text = text[end:]


def closing(text, at):
    """End of the first closing tag that no complete JSON string covers."""
    for found in re.finditer(r'"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*"|"|</tool_call>', text[at:]):
        if found[0] == '"':
            end = text.find("</tool_call>", at + found.start())
            return None if end < 0 else end + 12
        if found[0] == "</tool_call>":
            return at + found.end()
    return None


def parsed(text):
    try:
        call = json.loads(text)
        return (call["name"], json.dumps(call["arguments"])) if isinstance(call["arguments"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


@given(st.lists(PIECES, max_size=8).map("".join))
@examples(600)
def test_random_texts_equal_the_rule_however_they_are_cut(text):
    content, calls = naive(text)
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(len(text)))):
        found, made = run(pieces)
        assert found == content
        assert [(name, json.dumps(json.loads(arguments))) for name, arguments in made] == calls


@given(st.text("<tol_ca>/\n {}x", max_size=10))
@examples(300)
def test_texts_without_calls_come_back_whole(text):
    for pieces in cuts(text):
        assert run(pieces) == (text, [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["</tool_call>", "<tool_call>", '"', "\\", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


@given(st.text("ab \n中", max_size=6), st.lists(ARGUMENTS, min_size=1, max_size=3), st.booleans(), st.integers(1, 9))
@examples(150)
def test_what_the_template_writes_is_what_the_parser_reads(content, arguments, ascii_only, step):
    texts = [json.dumps(item, ensure_ascii=ascii_only) for item in arguments]
    message = Message("assistant", content, tool_calls=tuple(ToolCall("f", text) for text in texts))
    template = find_template(sources()["qwen3-instruct-2507"])
    written = plain_text(template.render([Message("user", "q"), message], generation_prompt=False))
    answer = written.split("<|im_start|>assistant\n")[1].removesuffix("<|im_end|>\n")
    pieces = [answer[at : at + step] for at in range(0, len(answer), step)]
    assert run(pieces) == (content, [("f", text) for text in texts])


def test_ids_are_made_from_the_seed():
    def ids(seed):
        return [call.id for call in ToolCallParser(seed).push(F + F).calls]

    assert ids(1) == ids(1)
    assert len({*ids(1), *ids(2), *ids(-1)}) == 6
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", name) for name in ids(1))


def test_content_is_shown_as_soon_as_it_is_certain():
    parser = ToolCallParser()
    shown = [
        parser.push(text).content for text in ("a", "b\n", "c", " <", "tool", "ed ", "\n", "\n", "<tool_call>", "{")
    ]
    assert shown == ["a", "b", "\nc", " ", "", "<tooled ", "", "\n", "", ""]


def test_a_call_comes_whole_with_its_last_character():
    parser = ToolCallParser()
    assert parser.push(F[:-1]).calls == ()
    assert [(call.name, call.arguments) for call in parser.push(">").calls] == [ONE]


def test_bounds_on_length(monkeypatch):
    monkeypatch.setattr(tools, "MAX_CALL_CHARS", 63)
    fits = tag('{"name": "f", "arguments": {"x": "%s"}}' % ("a" * 12))
    assert len(fits) - len("<tool_call>") == 63
    long = fits.replace("aa", "aaa" * 30, 1)
    for text, wanted in ((fits, ("", 1)), (long, (long, 0)), (long + F, (long, 1)), (F + " " * 70 + F, (" " * 70, 2))):
        for pieces in ([text], list(text), [text[:50], text[50:]], [text[:80], text[80:]]):
            content, calls = run(pieces)
            assert (content, len(calls)) == wanted
    assert ToolCallParser().push(long).content == long  # nothing is held beyond the bound


def test_bounds_on_the_number_of_calls(monkeypatch):
    monkeypatch.setattr(tools, "MAX_CALLS", 2)
    for pieces in ([F * 3], list(F * 3)):
        assert run(pieces) == (F, [ONE, ONE])
