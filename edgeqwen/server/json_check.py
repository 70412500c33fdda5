"""Checks a value against a small part of JSON Schema, the part our own API needs; one error, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeqwen.server.failures import FieldError
from edgeqwen.strict_json import shown

Schema = Mapping[str, Any]
# Words known: type, enum, minimum, maximum, minLength, maxLength, minItems, maxItems, items, properties, required,
# additionalProperties, maxProperties, anyOf. Everything else is a description.
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "number": (int, float), "integer": (int, float),
    "array": (list,), "object": (dict,), "null": (type(None),),
}  # fmt: skip
_WORDS = {"boolean": "true or false", "object": "an object", "array": "a list", "string": "a string", "null": "null"}
_UNITS = {"string": "texts", "integer": "whole numbers", "number": "numbers", "array": "lists", "object": "objects"}


def check(value: Any, schema: Schema, place: str) -> None:
    """FieldError, with the place of the fault, unless the value is what the schema says."""
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], place)
        return
    if "enum" in schema:
        if value not in schema["enum"] or isinstance(value, bool) != isinstance(schema["enum"][0], bool):
            raise _wrong(value, schema, place)
        return
    kind = schema.get("type")
    if kind is None:
        return
    if not _is_kind(value, kind) or not _in_range(value, schema):
        raise _wrong(value, schema, place)
    if kind == "array":
        _check_items(value, schema, place)
    if kind == "object":
        _check_object(value, schema, place)


def words(schema: Schema) -> str:
    """What a schema wants, for a person."""
    if "anyOf" in schema:
        return " or ".join(words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", "anything"))
    if kind in {"integer", "number"}:
        whole = "a whole number" if kind == "integer" else "a number"
        return f"{whole} from {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else whole
    low, high = _lengths(schema)
    items = _UNITS.get(str(schema.get("items", {}).get("type")), "entries")
    unit = {"string": "characters", "array": items, "object": "keys"}.get(kind)
    text = _WORDS.get(kind, kind)
    if unit is None or high is None:
        return text
    return f"{text} of {low} to {high} {unit}" if low else f"{text} of at most {high} {unit}"


def _check_any(value: Any, choices: list[Schema], place: str) -> None:
    inner: list[FieldError] = []
    for choice in choices:
        try:
            check(value, choice, place)
        except FieldError as error:
            inner.append(error)
        else:
            return
    deepest = max(inner, key=lambda error: len(error.param))  # the choice that fits best
    raise deepest if deepest.param != place else _wrong(value, {"anyOf": choices}, place)


def _check_items(value: list[Any], schema: Schema, place: str) -> None:
    if "items" in schema:
        for index, item in enumerate(value):
            check(item, schema["items"], f"{place}[{index}]")


def _check_object(value: dict[str, Any], schema: Schema, place: str) -> None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if value.get(name) is None:
            raise FieldError(f"{place}.{name}", f"{place}.{name} is missing: it must be {words(known[name])}")
    for name, held in value.items():
        inner = f"{place}.{name:.60}"
        if name in known:
            if held is not None:  # null: not given
                check(held, known[name], inner)
        elif others is False:
            raise FieldError(inner, f"{inner} is not known here; {place} may have {', '.join(known)}")
        elif others is not True:
            check(held, others, inner)


def _is_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()  # JSON has one kind of number
    return isinstance(value, _KINDS[kind])


def _in_range(value: Any, schema: Schema) -> bool:
    if isinstance(value, int | float):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    low, high = _lengths(schema)
    return value is None or low <= len(value) <= (len(value) if high is None else high)


def _lengths(schema: Schema) -> tuple[int, int | None]:
    for unit in ("Length", "Items", "Properties"):
        if f"max{unit}" in schema or f"min{unit}" in schema:
            return schema.get(f"min{unit}", 0), schema.get(f"max{unit}")
    return 0, None


def _wrong(value: Any, schema: Schema, place: str) -> FieldError:
    return FieldError(place, f"{place}={shown(value)} must be {words(schema)}")
