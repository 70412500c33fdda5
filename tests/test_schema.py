"""A caller's JSON Schema, bounded and narrowed before anything compiles it."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgeqwen import RequestError
from edgeqwen.schema import MAX_DEPTH, MAX_ENUM, MAX_PATTERN_CHARS, MAX_SCHEMA_BYTES, MAX_SCHEMAS, bounded_schema

TEXT = {"type": "string"}


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


REFUSED = {
    "s": ("x", [], None, 3, True, nested(MAX_DEPTH + 1), nested(500), {"title": "x" * MAX_SCHEMA_BYTES},
          {"allOf": [{"pattern": "a"}] * 9}),
    "s.properties.a.not": ({"properties": {"a": {"not": {}}}},),
    "s.if": ({"if": {}},),
    "s.uniqueItems": ({"uniqueItems": True},),
    "s.$ref": ({"$ref": "http://example.org/x"}, {"$ref": "other.json#/a"}, {"$ref": 3}),
    "s.enum": ({"enum": list(range(MAX_ENUM + 1))}, {"enum": "ab"}, {"enum": [{"a": [i]} for i in range(150)]}),
    "s.const": ({"const": [[i] for i in range(300)]},),
    "s.pattern": ({"pattern": "a" * (MAX_PATTERN_CHARS + 1)}, {"pattern": 3}),
    "s.patternProperties": ({"patternProperties": {f"{i}": {} for i in range(40)}},),
    "s.properties": ({"properties": []}, {"properties": {f"p{i}": {} for i in range(MAX_SCHEMAS)}}),
    "s.properties.a": ({"properties": {"a": 3}},),
    "s.anyOf": ({"anyOf": {}},),
    "s.anyOf[1]": ({"anyOf": [{}, "x"]},),
    "s.minLength": ({"minLength": 10**6}, {"minLength": -1}, {"minLength": "3"}, {"minLength": True}),
    "s.minProperties": ({"minProperties": 2}, {"minProperties": 3, "required": ["a", "b"]}),
    "s.multipleOf": ({"multipleOf": 0}, {"multipleOf": 999_983}, {"multipleOf": "2"}, {"multipleOf": True}),
    "s.minimum": ({"minimum": 1e300}, {"minimum": "3"}),
    "s.exclusiveMaximum": ({"exclusiveMaximum": True},),
}  # fmt: skip


@pytest.mark.parametrize(("place", "schema"), [(place, schema) for place, all_ in REFUSED.items() for schema in all_])
def test_what_cannot_be_kept_to_is_named(place, schema):
    started = time.thread_time()
    with pytest.raises(RequestError) as caught:
        bounded_schema(schema, "s")
    assert re.match(re.escape(place) + r"[^\w]", str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.thread_time() - started < 1


def test_numbers_that_are_none_are_refused():
    with pytest.raises(RequestError, match="NaN"):
        bounded_schema({"const": float("nan")}, "s")


def test_annotations_and_formats_that_nobody_checks_are_left_out():
    schema = {"$schema": "x", "title": "T", "description": "d", "default": 1, "format": "binary", "x-guidance": {}}
    assert bounded_schema({**schema, "type": "string"}, "s") == {"type": "string"}
    assert bounded_schema({"format": "date"}, "s") == {"format": "date"}


def test_what_is_listed_is_all_there_is():
    closed = bounded_schema({"type": "object", "properties": {"a": TEXT}}, "s")
    assert closed["additionalProperties"] is False
    for still_open in (
        {"type": "object"},
        {"properties": {"a": TEXT}, "additionalProperties": TEXT},
        {"properties": {"a": TEXT}, "required": ["b"]},
        {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}]},
        {"properties": {"a": TEXT}, "maxProperties": 3},
    ):
        assert bounded_schema(still_open, "s") == still_open


def test_counts_are_lowered():
    assert bounded_schema({"maxLength": 10**9, "maxItems": 3.0}, "s") == {"maxLength": 10_000, "maxItems": 3}


def test_the_lists_of_draft_7_are_those_of_today():
    old = bounded_schema({"items": [TEXT, {}], "additionalItems": False}, "s")
    assert old == {"prefixItems": [TEXT, {}], "items": False}


def test_lenient_leaves_out_what_it_cannot_keep_to():
    schema = {"type": "array", "uniqueItems": True, "not": {}, "items": {"minProperties": 4}}
    assert bounded_schema(schema, "s", lenient=True) == {"type": "array", "items": {}}


def branch(value, name="k", **more):
    return {"type": "object", "properties": {name: value}, "required": [name], **more}


@pytest.mark.parametrize(
    ("choices", "apart"),
    [
        ([branch({"const": "a"}), branch({"const": "b"})], True),
        ([branch({"const": "a"}), branch({"enum": ["b", "c"]}), branch({"const": "d"})], True),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b~1b"}], True),
        ([branch({"const": "a"}), branch({"enum": ["a", "c"]})], False),
        ([branch({"const": "a"}), branch(TEXT)], False),
        ([branch({"const": "a"}), branch({"const": "b"}, "m")], False),
        ([branch({"const": "a"}), {**branch({"const": "b"}), "required": []}], False),
        ([branch({"const": "a"}), {"properties": {"k": {"const": "b"}}, "required": ["k"]}], False),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/none"}], False),
        ([{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/a"}], False),
    ],
)
def test_one_of_is_any_of_where_no_two_can_hold(choices, apart):
    definitions = {"a": branch({"const": "a"}), "b/b": branch({"const": "b"}), "loop": {"$ref": "#/$defs/loop"}}
    assert ("anyOf" in bounded_schema({"$defs": definitions, "oneOf": choices}, "s")) == apart


LEAVES = st.sampled_from([
    {}, TEXT, {"type": "integer", "minimum": 0}, {"enum": ["a", 1]}, {"const": None},
    {"type": "string", "maxLength": 2},
])  # fmt: skip
VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 1.5, "a", "abc"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=6,
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda p: {"type": "object", "properties": p}, st.dictionaries(st.sampled_from("ab"), inner))
        | st.builds(lambda p: {"properties": p, "required": ["a"]}, st.dictionaries(st.sampled_from("ab"), inner))
        | st.builds(lambda *c: {"anyOf": [*c]}, inner, inner)
        | st.builds(lambda *c: {"allOf": [*c]}, inner, inner)
        | st.builds(lambda i, n: {"type": "array", "items": i, "maxItems": n}, inner, st.integers(0, 3))
        | st.builds(lambda a, b: {"items": [a], "additionalItems": b, "title": "t"}, inner, inner)
    ),
    max_leaves=6,
)


def modern(schema):
    """Draft 7's lists of items as today's, for the oracle."""
    if isinstance(schema, list):
        return [modern(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: modern(inner) for key, inner in schema.items() if key != "additionalItems"}
    if isinstance(schema.get("items"), list):
        out |= {"prefixItems": out["items"], "items": modern(schema.get("additionalItems", True))}
    return out


@given(SCHEMAS, VALUES)
@settings(max_examples=300, deadline=None)
def test_what_is_valid_under_the_narrowed_schema_is_valid_under_the_callers(schema, value):
    narrow = bounded_schema(schema, "s")
    assert bounded_schema(narrow, "s") == narrow
    assert json.loads(json.dumps(narrow)) == narrow
    if Draft202012Validator(narrow).is_valid(value):
        Draft202012Validator(modern(schema)).validate(value)
