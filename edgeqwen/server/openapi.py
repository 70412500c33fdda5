"""The API's description: an OpenAPI 3.1 document made of the fields that are checked, and a page that needs no net."""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgeqwen.server.json_check import Schema, words
from edgeqwen.server.openai_fields import CHAT, TEXT

_NULL: Schema = {"type": "null"}
_NAMED = {"type": "string"}
_WORDS = {
    "model": "One of /v1/models, an alias, or what clients write for it; may be left out where there is one model.",
    "messages": "The conversation, in OpenAI's shape: text only.",
    "prompt": "A text or ids of tokens to continue, or a list of either. No template is put around it.",
    "stream": "Server-sent events instead of one object.",
    "n": "So many answers to the same prompt.",
    "seed": "Equal seeds give equal answers; -1 is no seed.",
    "stop": "Ends the answer where it appears in the content; it is not shown itself.",
    "max_tokens": "Of the whole answer, thinking included.",
    "max_completion_tokens": "The same as max_tokens; it wins.",
    "tools": "Functions that the model may call.",
    "tool_choice": "none: no call; required, or a function's name: nothing but a call; auto: as the model likes.",
    "parallel_tool_calls": "false: the first call ends the answer.",
    "response_format": "Holds the content, not the thinking, to JSON, or to JSON of a schema.",
    "guided_json": "The same, in vLLM's dialect: a JSON Schema, or its text.",
    "guided_regex": "The content matches this as a whole.",
    "guided_choice": "The content is one of these.",
    "structured_outputs": "The three above, in vLLM's later dialect.",
    "enable_thinking": "Turns thinking on or off; all other dialects are understood as well.",
    "thinking_budget": "Tokens of thinking; then the answer is forced. 0 turns it off.",
    "return_reasoning": "false: think, but do not show it.",
    "reasoning_effort": "none turns thinking off; minimal, low and medium are budgets of 128, 512 and 2048 tokens.",
    "logprobs": "Of the content's tokens.",
}
_ERRORS = {
    "400": "Something in the body cannot be used; `param` names it",
    "401": "No token, or a wrong one",
    "403": "Host or Origin is not allowed",
    "404": "No such model or path",
    "408": "The request did not come in time",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "The queue is full; Retry-After says for how long",
    "500": "The engine failed",
    "503": "The model is being loaded or started again; Retry-After says for how long",
}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeqwen", "version": _version(),
            "description": "An OpenAI-compatible server for Qwen models on small devices.",
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/v1/chat/completions": _post("Answer a conversation", "ChatRequest", "ChatCompletion"),
            "/v1/completions": _post("Continue a text", "TextRequest", "TextCompletion"),
            "/v1/models": _get("List the models", "Models", "400", "401", "403"),
            "/v1/models/{name}": {
                "get": {
                    **_get("Show one model", "Model", "400", "401", "403", "404")["get"],
                    "parameters": [{"name": "name", "in": "path", "required": True, "schema": _NAMED}],
                }
            },
            "/health": _get("Whether the server is well", "Status", "400", "403", "503"),
            "/ready": _get("Whether it takes requests", "Status", "400", "403", "503"),
            "/metrics": _metrics(),
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "ChatRequest": _request(CHAT, "messages"),
                "TextRequest": _request(TEXT, "prompt"),
                **_answers(),
            },
        },
    }  # fmt: skip


def docs_page() -> str:
    """The document as one page of HTML, with its style in it and without any script."""
    parts = []
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{operation['summary']}.</p>")
            if "requestBody" in operation:
                parts.append(_table(TEXT if path == "/v1/completions" else CHAT))
    return _PAGE.format(version=html.escape(_version()), body="\n".join(parts))


def _table(fields: Mapping[str, Schema]) -> str:
    rows = [
        f"<tr><td><code>{name}</code></td><td>{html.escape(words(schema))}</td>"
        f"<td>{html.escape(_WORDS.get(name, ''))}</td></tr>"
        for name, schema in fields.items()
    ]
    return "<table><tr><th>Field</th><th>Value</th><th></th></tr>" + "".join(rows) + "</table>"


def _request(fields: Mapping[str, Schema], *required: str) -> Schema:
    schema = _nullable({"type": "object", "required": list(required), "properties": fields})
    properties = {
        name: {**field, **({"description": _WORDS[name]} if name in _WORDS else {})}
        for name, field in schema["properties"].items()
    }
    if "messages" in properties:
        properties["messages"] = {**properties["messages"], "items": _message()}
    return {**schema, "properties": properties}


def _nullable(schema: Schema) -> dict[str, Any]:
    """With null where a property may be left out: null is not given."""
    changed: dict[str, Any] = dict(schema)
    if "items" in schema:
        changed["items"] = _nullable(schema["items"])
    if "anyOf" in schema:
        changed["anyOf"] = [_nullable(choice) for choice in schema["anyOf"]]
    if "properties" in schema:
        changed["properties"] = {
            name: _nullable(inner) if name in schema.get("required", ()) else {"anyOf": [_nullable(inner), _NULL]}
            for name, inner in schema["properties"].items()
        }
    return changed


def _message() -> Schema:
    text = {"anyOf": [_NAMED, {"type": "array", "items": _text_part()}, _NULL]}
    return {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": text,
            "reasoning_content": {"type": ["string", "null"]},
            "tool_call_id": {"type": ["string", "null"]},
        },
    }


def _text_part() -> Schema:
    return {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"enum": ["text"]}, "text": _NAMED},
    }


def _answers() -> dict[str, Schema]:
    """What comes back."""
    whole = {"id": _NAMED, "object": _NAMED, "created": {"type": "integer"}, "model": _NAMED}
    model = {
        "type": "object",
        "required": ["id", "object"],
        "properties": {"id": _NAMED, "object": {"enum": ["model"]}},
    }
    choices = {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason"]}}
    answer = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {**whole, "choices": choices, "usage": {"type": "object"}},
    }
    text = {"anyOf": [_NAMED, _NULL]}
    error = {"type": "object", "required": ["message", "type", "param", "code"],
             "properties": {"message": _NAMED, "type": _NAMED, "param": text, "code": text}}  # fmt: skip
    return {
        "ChatCompletion": answer,
        "TextCompletion": answer,
        "Model": model,
        "Models": {
            "type": "object",
            "required": ["object", "data"],
            "properties": {"object": {"enum": ["list"]}, "data": {"type": "array", "items": _reference("Model")}},
        },
        "Status": {"type": "object", "required": ["status"], "properties": {"status": _NAMED}},
        "Error": {"type": "object", "required": ["error"], "properties": {"error": error}},
    }


def _post(summary: str, request: str, answer: str) -> dict[str, Any]:
    content = {**_json(answer), "text/event-stream": {}}  # chunks, then [DONE]
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {"200": {"description": "The answer", "content": content}, **_errors(*_ERRORS)},
        }
    }


def _get(summary: str, answer: str, *errors: str) -> dict[str, Any]:
    content = {"200": {"description": summary, "content": _json(answer)}}
    failures = _errors(*errors)
    if answer == "Status":  # 503 says why in the same shape
        failures["503"] = {"description": "Not now", "content": _json(answer)}
    return {"get": {"summary": summary, "responses": {**content, **failures}}}


def _metrics() -> dict[str, Any]:
    text = {"200": {"description": "Text", "content": {"text/plain": {"schema": _NAMED}}}}
    return {"get": {"summary": "Figures for Prometheus", "responses": {**text, **_errors("400", "401", "403")}}}


def _errors(*codes: str) -> dict[str, Any]:
    return {code: {"description": _ERRORS[code], "content": _json("Error")} for code in codes}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(name)}}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _version() -> str:
    try:
        return version("edgeqwen")
    except PackageNotFoundError:  # run from its sources
        return "0"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgeqwen {version}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
:root {{ color-scheme: light dark }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884 }}
code {{ font-family: ui-monospace, monospace }}
h2 {{ margin-top: 2.5rem }}
</style>
</head>
<body>
<h1>edgeqwen {version}</h1>
<p>An OpenAI-compatible server: clients' <code>base_url</code> is this address with <code>/v1</code> behind it.
The description for machines is <a href="/openapi.json">/openapi.json</a>.</p>
<p>Fields are checked strictly. A field that would change the answer and is not offered is an error, so is a name that
is nearly one of these; others are ignored, and named in the header <code>X-Edgeqwen-Ignored</code>.</p>
{body}
</body>
</html>
"""
