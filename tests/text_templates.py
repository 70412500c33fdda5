"""The Jinja sources of the known templates, and the environment that transformers renders them in: the oracle."""

import json
from functools import lru_cache

from jinja2.sandbox import ImmutableSandboxedEnvironment
from text_data import DATA

# Qwen's revisions differ by these edits only; the hashes in the package prove the results.
_GGUF = [
    (
        """{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
""",
        """{%- for index in range(ns.last_query_index, -1, -1) %}
    {%- set message = messages[index] %}
""",
    ),
    (
        "not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>'))",
        "not('<tool_response>' in message.content and '</tool_response>' in message.content)",
    ),
]
_THINKING_2507 = [
    ('message.role == "user" and not(', 'message.role == "user" and message.content is string and not('),
    (
        "{%- for message in messages %}\n",
        """{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
""",
    ),
    ("'\\n' + message.content + '<|im_end|>' + '\\n'", "'\\n' + content + '<|im_end|>' + '\\n'"),
    (
        """        {%- set content = message.content %}
        {%- set reasoning_content = '' %}""",
        "        {%- set reasoning_content = '' %}",
    ),
    (
        "message.reasoning_content is defined and message.reasoning_content is not none",
        "message.reasoning_content is string",
    ),
    ("'</think>' in message.content", "'</think>' in content"),
    (
        """                {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
                {%- set reasoning_content = message.content.split('</think>')[0]""",
        "                {%- set reasoning_content = content.split('</think>')[0]",
    ),
    (
        """.split('<think>')[-1].lstrip('\\n') %}
""",
        """.split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
""",
    ),
    ("{{- message.content }}", "{{- content }}"),
    (
        """    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
""",
        "    {{- '<|im_start|>assistant\\n<think>\\n' }}\n",
    ),
]


def _edited(source, edits):
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


def _without(source, first, last):
    start = source.index(first)
    return source[:start] + source[source.index(last, start) :]


@lru_cache
def sources():
    """name -> Jinja source, for every template that the package knows."""
    qwen3 = (DATA / "qwen3.jinja").read_text(encoding="utf-8")
    qwen2 = (DATA / "qwen2.5.jinja").read_text(encoding="utf-8")
    thinking = _edited(qwen3, _THINKING_2507)
    instruct = _without(
        thinking, "{%- set ns =", "{%- for message in messages %}\n    {%- if message.content is string"
    )
    instruct = _without(instruct, "        {%- set reasoning_content = '' %}", "        {%- if message.tool_calls %}")
    call = '{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}'
    return {
        "qwen3": qwen3,
        "qwen3-gguf": _edited(qwen3, _GGUF),
        "qwen3-thinking-2507": thinking,
        "qwen3-instruct-2507": _edited(
            instruct,
            [
                (
                    "        {%- if message.tool_calls %}",
                    """        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- if message.tool_calls %}""",
                ),
                ("assistant\\n<think>\\n' }}", "assistant\\n' }}"),
            ],
        ),
        "qwen2.5": qwen2,
        "qwen2.5-coder": _edited(qwen2, [(call, "{" + call + "}")]),
    }


@lru_cache
def _compiled(name):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(sources()[name])


def reference(name, messages, tools, *, thinking, generation_prompt):
    """What transformers' apply_chat_template renders."""
    return _compiled(name).render(
        messages=messages, tools=tools or None, enable_thinking=thinking, add_generation_prompt=generation_prompt
    )
