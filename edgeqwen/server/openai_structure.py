"""The fields that hold the content to a shape, in all their dialects -> the library's settings; it compiles nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeqwen.schema import bounded_schema
from edgeqwen.server.failures import FieldError

_ANY_OBJECT = {"type": "object"}
_VLLM = {"json": "schema", "regex": "regex", "choice": "choice"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which of GenerationConfig's settings is asked for, by which field."""

    setting: str  # schema, regex or choice
    value: Any
    place: str

    @property
    def checked(self) -> Any:
        """The value as the library takes it."""
        if self.setting == "schema":
            return bounded_schema(self.value, self.place)
        return tuple(self.value) if self.setting == "choice" else self.value


@dataclass(frozen=True, slots=True)
class Structure:
    """GenerationConfig's settings, and the field that they come from; both empty where the content is free."""

    settings: dict[str, Any]
    place: str = ""


def structure_from(body: Mapping[str, Any]) -> Structure:
    """Read a body that has passed the check of its fields; FieldError or RequestError names what cannot be used."""
    asked = [*_response_format(body.get("response_format") or {})]
    for prefix, fields in (("guided_", body), ("structured_outputs.", body.get("structured_outputs") or {})):
        for name, setting in _VLLM.items():
            key = f"{prefix}{name}" if fields is body else name
            if fields.get(key) is not None:
                asked.append(_Asked(setting, _value(setting, fields[key], f"{prefix}{name}"), f"{prefix}{name}"))
    if len(asked) > 1:
        raise FieldError(
            asked[1].place, f"{asked[1].place}: the content is already held to {asked[0].place}; give one of the two"
        )
    return Structure({one.setting: one.checked for one in asked}, asked[0].place if asked else "")


def _response_format(given: Mapping[str, Any]) -> list[_Asked]:
    kind = given.get("type")
    if kind == "json_object":  # with a schema in llama.cpp's dialect
        return [_Asked("schema", given.get("schema") or _ANY_OBJECT, "response_format")]
    if kind != "json_schema":
        return []
    inner = given.get("json_schema") or given  # {"type": "json_schema", "schema": ...} is llama.cpp's
    place = "response_format.json_schema.schema" if inner is not given else "response_format.schema"
    if inner.get("schema") is None:
        raise FieldError(place, f"{place} is missing: it must be a JSON Schema")
    return [_Asked("schema", inner["schema"], place)]


def _value(setting: str, value: Any, place: str) -> Any:
    """A schema may come as its text."""
    if setting != "schema" or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise FieldError(place, f"{place} is no JSON: {error}") from None
