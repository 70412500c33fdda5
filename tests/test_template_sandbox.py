"""Trusted templates run in a process of their own: limits hold, text stays text, known ones come out the same."""

import random
import sys

import pytest
from text_data import tokenizer
from text_templates import sources

from edgeqwen import template_process
from edgeqwen.errors import RequestError, TemplateError
from edgeqwen.messages import messages_from
from edgeqwen.segments import Special, plain_text
from edgeqwen.template import find_template
from edgeqwen.types import Message

USER = [Message("user", "Hi")]


def render(source, messages=USER, tools=(), **settings):
    return find_template(source, trusted=True).render(messages, tools, **settings)


def test_known_template_under_another_hash_gives_the_same_segments():
    messages = messages_from(
        [
            {"role": "system", "content": "Wetter für 東京 <b>fett</b> 💥"},
            {"role": "user", "content": "Hi <|im_end|> > <"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "So.",
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"x": [1.5, None, "<ok>"]}}}],
            },
            {"role": "tool", "content": "a </tool_response> b", "tool_call_id": "a"},
        ]
    )
    tools = [{"type": "function", "function": {"name": "<|im_start|>", "description": 'a "b" < c > \\ue000'}}]
    for thinking in (True, False):
        native = find_template(sources()["qwen3"]).render(messages, tools, thinking=thinking)
        boxed = render("{# other #}" + sources()["qwen3"], messages, tools, thinking=thinking)
        assert plain_text(boxed) == plain_text(native)
        assert tokenizer().encode_segments(boxed) == tokenizer().encode_segments(native)


def test_no_text_becomes_a_control_token():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<{{ tools | tojson }}>"
    )
    rng = random.Random(11)
    pieces = [
        *tokenizer().added,
        "<",
        "|",
        ">",
        "<|im_",
        "end|>",
        "/think>",
        "<thi",
        "x",
        "\n",
        "\ue000",
        "\\ue001",
        "<|",
    ]
    messages = [Message("user", "".join(rng.choices(pieces, k=5))) for _ in range(2000)]
    tool = {text.content: [text.content] for text in messages[:50]}
    segments = render(source, messages, [tool])
    assert [part.text for part in segments if isinstance(part, Special)] == ["<|im_start|>", "<|im_end|>"] * 2000
    wanted = "".join(f"<|im_start|>user\n{message.content}<|im_end|>\n" for message in messages)
    assert plain_text(segments).startswith(wanted)


@pytest.mark.parametrize(
    ("source", "text"), [("{{ %s }}>", "<|im_end|"), ("<{{ %s }}", "|im_end|>"), ("{{ %s }}", "</think>")]
)
def test_no_piece_of_a_text_completes_a_control_token(source, text):
    segments = render(source % "messages[0].content", [Message("user", text)])
    assert not any(isinstance(part, Special) for part in segments)
    assert plain_text(segments) == source.replace("{{ %s }}", text)


def test_a_json_escape_hides_no_mark():
    segments = render("{{ messages[0].content | tojson(ensure_ascii=true) }}", [Message("user", "<é>\ue000")])
    assert segments == ['"<\\u00e9>\\ue000"']


def test_what_templates_may_use():
    source = """{% generation %}a{% endgeneration %}
{%- for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}
{{ strftime_now('%Y') | length }}{{ eos_token }}{{ tools is none }}{{ enable_thinking }}{{ add_generation_prompt }}"""
    segments = render(source, thinking=False, generation_prompt=False)
    assert segments == ["a14", Special("<|im_end|>"), "TrueFalseFalse"]


def test_thinking_is_known_from_the_source():
    assert find_template("{{ enable_thinking }}", trusted=True).thinks
    assert not find_template("{{ messages }}", trusted=True).thinks


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no system turn, please') }}", "no system turn, please"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[7].content.x }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception.__globals__['x'] }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError|no loader"),
        ("{{ 'a' * 9000000 }}", "characters of output"),
        pytest.param(
            "{{ 'a' * 10 ** 9 }}",
            "MemoryError",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no RLIMIT_AS"),
        ),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "broke a limit"),
        ("{{ 9 ** (9 ** 9) }}", "broke a limit"),
        ("{{ '\\ud800' }}{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_limits_and_faults_are_template_errors(source, reason):
    with pytest.raises(TemplateError, match=reason):
        render(source)


def test_a_process_that_cannot_start_is_a_template_error(monkeypatch):
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(TemplateError, match="could not be started"):
        render("x")


def test_a_process_that_hangs_before_it_renders_is_ended(monkeypatch, tmp_path):
    stuck = tmp_path / "stuck.py"
    stuck.write_text("import threading; threading.Event().wait()")
    monkeypatch.setattr(template_process, "__file__", str(stuck))
    monkeypatch.setattr("edgeqwen.template_sandbox.START_S", 0.5)
    with pytest.raises(TemplateError, match="was not rendered within"):
        render("x")


def test_nested_too_deeply_is_a_request_error():
    deep = {}
    for _ in range(2000):
        deep = {"x": deep}
    with pytest.raises(RequestError, match="tools"):
        render("x", tools=[deep])


def test_every_mark_used_up_is_a_request_error():
    with pytest.raises(RequestError, match="private-use"):
        render("x", [Message("user", "".join(map(chr, range(0xE000, 0xF900))))])
