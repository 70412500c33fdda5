"""A caller's JSON Schema -> one that may be compiled: bounded, what is not supported is named; it knows no tokens.

Everything it changes makes the schema narrower, so what is written under it is valid under the caller's. High upper
bounds are lowered, and an object that lists its properties gets no others unless the schema speaks of them: a small
model that is free to invent keys does so without end. `format`s that nobody checks are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from edgeqwen.errors import RequestError
from edgeqwen.messages import json_text
from edgeqwen.strict_json import shown

MAX_SCHEMA_BYTES = 1 << 16
MAX_DEPTH = 32  # of schemas inside schemas
MAX_SCHEMAS = 1000  # 800 properties compile for 0.4 s, 1,500 for 1.7
MAX_ENUM = 2000  # values
MAX_PARTS = 200  # objects and lists in all const and enum: 800 compile for 1.8 s
MAX_NAME_PATTERNS = 32  # of patternProperties: each is compared with each; 300 compile for 19 s
MAX_PATTERNS_MIXED = 8  # where allOf may bring them together: 19 compile for 8 s
MAX_PATTERN_CHARS = 1024
MIN_COUNT_MAX = 1000  # of minLength, minItems, minProperties; the longest answers have a few thousand tokens
COUNT_MAX = 10_000  # what maxLength, maxItems and maxProperties are lowered to
MAX_DIVISOR = 1000  # multipleOf without its zeros: as many states of a regex; 999,983 compiled for 18 s
BOUND_MAX = 1 << 53  # of numbers: beyond it JSON's readers disagree

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})  # name -> schema
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLE = frozenset({"items", "additionalItems", "additionalProperties"})
_MINIMA = frozenset({"minLength", "minItems", "minProperties"})
_MAXIMA = frozenset({"maxLength", "maxItems", "maxProperties"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_VERBATIM = frozenset({"type", "required", "const", *_BOUNDS})
_UNSUPPORTED = frozenset({
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames", "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
})  # fmt: skip
_FORMATS = frozenset({
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
})  # fmt: skip
_MIXING = ("properties", "anyOf", "oneOf", "$ref")  # two of them, or allOf, speak of the same object


def bounded_schema(schema: Any, where: str, *, lenient: bool = False) -> dict[str, Any]:
    """The schema as plain JSON data, made narrower where that is needed; RequestError names the place of a fault.

    `lenient`: keywords that are not supported are left out instead.
    """
    if not isinstance(schema, Mapping):
        raise RequestError(f"{where} must be a JSON Schema, an object, not {shown(schema)}")
    text = json_text(schema, where)
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise RequestError(f"{where} has {size} bytes as JSON: at most {MAX_SCHEMA_BYTES} are taken")
    walk = _Walk(_parsed(text, where), lenient=lenient)
    plain: dict[str, Any] = walk.schema(walk.root, where, 0)
    mixed = any(map(_mixes, walk.seen))
    if mixed and walk.patterns > MAX_PATTERNS_MIXED:
        raise RequestError(
            f"{where} mixes schemas (allOf) and has {walk.patterns} patterns: at most {MAX_PATTERNS_MIXED} then"
        )
    for node in walk.seen if not mixed else ():
        _close(node)
    return plain


def _parsed(text: str, where: str) -> Any:
    def refuse(name: str) -> Any:
        raise RequestError(f"{where} holds {name}, which is no JSON number")

    return json.loads(text, parse_constant=refuse)


class _Walk:
    """One pass over one schema."""

    def __init__(self, root: Any, *, lenient: bool) -> None:
        self.root = root
        self.seen: list[dict[str, Any]] = []  # every object that is a schema, as it was rewritten
        self.patterns = 0  # pattern, format and the names of patternProperties
        self._lenient = lenient
        self._divisor = 1
        self._parts = 0

    def schema(self, data: Any, where: str, depth: int) -> Any:
        """One schema and those inside it, rewritten."""
        if isinstance(data, bool):
            return data
        if not isinstance(data, dict):
            raise RequestError(f"{where} must be a schema, an object, not {shown(data)}")
        if depth >= MAX_DEPTH:
            raise RequestError(f"{where[:200]}: schemas are nested more than {MAX_DEPTH} deep")
        if len(self.seen) >= MAX_SCHEMAS:
            raise RequestError(f"{where[:200]}: there are more than {MAX_SCHEMAS} schemas in one")
        out: dict[str, Any] = {}
        self.seen.append(out)
        for key, value in data.items():
            out.update(self._keyword(key, value, f"{where}.{key}", depth + 1))
        return self._settled(out, where)

    def _settled(self, out: dict[str, Any], where: str) -> dict[str, Any]:
        """Draft 7's names of lists' parts, and oneOf where it is anyOf; what nothing could be written for."""
        if isinstance(out.get("items"), list):
            others = out.pop("additionalItems", True)
            out["prefixItems"], out["items"] = out["items"], others
        out.pop("additionalItems", None)
        if "oneOf" in out and "anyOf" not in out and exclusive(out["oneOf"], self.root):
            out["anyOf"] = out.pop("oneOf")
        names = out.get("required")
        if out.get("minProperties", 0) > max(1, len(names) if isinstance(names, list) else 0):  # a key may come twice
            if not self._lenient:
                raise RequestError(f"{where}.minProperties is {out['minProperties']}: only 1 can be kept to")
            del out["minProperties"]
        return out

    def _keyword(self, key: str, value: Any, where: str, depth: int) -> dict[str, Any]:
        """What becomes of one keyword; nothing of annotations."""
        if key in _UNSUPPORTED or (key == "uniqueItems" and value is not False):
            if self._lenient:
                return {}
            raise RequestError(f"{where} is not supported: {key!r} cannot be kept to while an answer is being written")
        if key in _MAPS:
            items = _of_type(value, dict, where).items()
            if key == "patternProperties":
                self._name_patterns(value, where)
            return {key: {name: self.schema(inner, f"{where}.{name}", depth) for name, inner in items}}
        if key in _LISTS or (key == "items" and isinstance(value, list)):
            items = enumerate(_of_type(value, list, where))
            return {key: [self.schema(inner, f"{where}[{index}]", depth) for index, inner in items]}
        if key in _SINGLE:
            return {key: self.schema(value, where, depth)}
        return self._assertion(key, value, where)

    def _assertion(self, key: str, value: Any, where: str) -> dict[str, Any]:
        if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise RequestError(f"{where} is {shown(value)}: only places inside the schema, '#/...', can be referred to")
        if key in {"enum", "const"}:
            self._check_values(key, value, where)
        if key == "pattern":
            _check_pattern(value, where)
        if key == "multipleOf":
            self._check_divisor(value, where)
        if key in _BOUNDS and (
            isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= BOUND_MAX
        ):
            raise RequestError(f"{where} is {shown(value)}: it must be a number from -2**53 to 2**53")
        if key in _MINIMA or key in _MAXIMA:
            return {key: _count(key, value, where)}
        known_format = key == "format" and isinstance(value, str) and value in _FORMATS
        self.patterns += known_format or key == "pattern"
        known = key in _VERBATIM or key in {"$ref", "enum", "pattern", "multipleOf"} or known_format
        return {key: value} if known else {}

    def _name_patterns(self, value: Any, where: str) -> None:
        for name in value:
            _check_pattern(name, where)
        self.patterns += len(value)
        if self.patterns > MAX_NAME_PATTERNS:
            raise RequestError(f"{where}: there are more than {MAX_NAME_PATTERNS} patterns beside names of properties")

    def _check_values(self, key: str, value: Any, where: str) -> None:
        if key == "enum" and len(_of_type(value, list, where)) > MAX_ENUM:
            raise RequestError(f"{where} has {len(value)} values: at most {MAX_ENUM} are taken")
        open_parts = [value] if key == "const" else list(value)
        while open_parts:
            part = open_parts.pop()
            if isinstance(part, dict | list):
                self._parts += 1
                open_parts.extend(part.values() if isinstance(part, dict) else part)
            if self._parts > MAX_PARTS:
                raise RequestError(f"{where}: there are more than {MAX_PARTS} objects and lists in enum and const")

    def _check_divisor(self, value: Any, where: str) -> None:
        """Bound the least common multiple of all divisors in the schema: allOf may bring any of them together."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise RequestError(f"{where} must be a number above 0, not {shown(value)}")
        digits = "".join(map(str, Decimal(str(value)).as_tuple().digits)).strip("0")
        self._divisor = math.lcm(self._divisor, int(digits[:20] or "1"))
        if self._divisor > MAX_DIVISOR:
            raise RequestError(
                f"{where} is {shown(value)}: it takes too long to compile; up to {MAX_DIVISOR} it is quick"
            )


def exclusive(choices: Any, root: Any) -> bool:
    """Whether no value can be valid under two of these: a property that all require has another value in each."""
    branches = [_resolved(choice, root) for choice in choices]
    if not all(
        isinstance(b, dict) and b.get("type") == "object" and isinstance(b.get("required"), list) for b in branches
    ):
        return False
    names = [name for name in branches[0]["required"] if all(name in branch["required"] for branch in branches)]
    return any(_all_differ([_values(branch, name) for branch in branches]) for name in names)


def _values(branch: Mapping[str, Any], name: Any) -> list[str] | None:
    """The texts that a property may be; None where it may be something else."""
    listed = branch.get("properties")
    held = listed.get(name) if isinstance(listed, dict) and isinstance(name, str) else None
    if not isinstance(held, dict):
        return None
    values = [held["const"]] if "const" in held else held.get("enum")
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else None


def _all_differ(values: list[list[str] | None]) -> bool:
    texts = [text for texts in values for text in set(texts or ())]
    return None not in values and len(texts) == len(set(texts))


def _resolved(schema: Any, root: Any) -> Any:
    """What a schema that is a `$ref` and nothing else refers to."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or schema.keys() - {"$ref", "title", "description"}:
            break
        schema = root
        for part in reference.removeprefix("#").split("/")[1:]:
            schema = schema.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return schema


def _count(key: str, value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise RequestError(f"{where} must be a whole number of at least 0, not {shown(value)}")
    if key in _MINIMA and value > MIN_COUNT_MAX:
        raise RequestError(f"{where} is {shown(value)}: at most {MIN_COUNT_MAX} are taken")
    return min(int(value), COUNT_MAX)


def _check_pattern(value: Any, where: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_PATTERN_CHARS:
        raise RequestError(f"{where} must be a regular expression of at most {MAX_PATTERN_CHARS} characters")


def _of_type(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise RequestError(f"{where} must be {'an object' if kind is dict else 'a list'}, not {shown(value)}")
    return value


def _mixes(node: Mapping[str, Any]) -> bool:
    """Whether several schemas speak of the same object: then closing one would forbid what another asks for."""
    return "allOf" in node or sum(key in node for key in _MIXING) > 1


def _close(node: dict[str, Any]) -> None:
    listed = node.get("properties")
    open_to_others = any(key in node for key in ("additionalProperties", "patternProperties", *_of_properties()))
    required = node.get("required", [])
    if listed is not None and not open_to_others and isinstance(required, list) and set(required) <= set(listed):
        node["additionalProperties"] = False


def _of_properties() -> Iterator[str]:
    return (key for key in (*_MINIMA, *_MAXIMA) if key.endswith("Properties"))
