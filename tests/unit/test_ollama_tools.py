"""Schemas of tools, made safe."""

import json
from typing import Any

import pytest

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.providers.ollama.schema import MAX_DEPTH, safe_parameters

Schema = dict[str, Any]


def safe(**properties: Any) -> Schema:
    """Return what becomes of *properties*."""
    found: Schema = safe_parameters({"type": "object", "properties": properties}, "tools")["properties"]
    return found


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({}, id="empty"),
        pytest.param({"type": ["object", "null"]}, id="a list of types"),
        pytest.param({"type": "object", "properties": None}, id="null properties"),
        pytest.param({"type": "object", "properties": []}, id="properties as a list"),
        pytest.param({"properties": {}, "required": "all"}, id="required no list"),
        pytest.param({"properties": {}, "required": [1]}, id="required of numbers"),
        pytest.param({"properties": {}, "description": 7}, id="description no string"),
        pytest.param({"properties": {}, "$defs": {"A": {}}, "definitions": {}}, id="definitions"),
        pytest.param({"$ref": "#"}, id="nothing but itself"),
    ],
)
def test_the_root_is_always_an_object_schema(parameters: Schema) -> None:
    assert safe_parameters(parameters, "tools") == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("given", "native"),
    [
        pytest.param(False, {}, id="a boolean schema"),
        pytest.param(
            {"anyOf": [True, {"type": "string"}]}, {"anyOf": [{}, {"type": "string"}]}, id="in anyOf"
        ),
        pytest.param({"oneOf": [{"const": 1}]}, {"anyOf": [{"enum": [1]}]}, id="oneOf and const"),
        pytest.param({"oneOf": [{}], "anyOf": [True]}, {"anyOf": [{}]}, id="oneOf beside anyOf"),
        pytest.param(
            {"allOf": [{"type": "string"}], "title": "t"}, {"type": "string", "title": "t"}, id="allOf of one"
        ),
        pytest.param({"allOf": [{"const": 1}, {}]}, {"allOf": [{"enum": [1]}, {}]}, id="allOf of two"),
        pytest.param({"type": {"a": 1}, "enum": 3}, {}, id="types and values of no known shape"),
        pytest.param(
            {"properties": {"properties": True}}, {"properties": {"properties": {}}}, id="odd names"
        ),
        pytest.param({"items": {"oneOf": []}}, {"items": {"anyOf": []}}, id="in items"),
        pytest.param({"default": {"oneOf": 1}}, {"default": {"oneOf": 1}}, id="data is left alone"),
        pytest.param({"minimum": 0, "pattern": "^a"}, {"minimum": 0, "pattern": "^a"}, id="the rest is kept"),
        pytest.param(
            {"$ref": "https://example.com/a"}, {"$ref": "https://example.com/a"}, id="a remote reference"
        ),
        pytest.param({"$ref": "#/$defs/gone", "title": "t"}, {"title": "t"}, id="a dangling reference"),
    ],
)
def test_a_keyword_is_rewritten_for_ollama(given: object, native: Schema) -> None:
    assert safe(a=given) == {"a": native}


def test_a_reference_is_resolved_and_its_siblings_win() -> None:
    parameters = {
        "properties": {"a": {"$ref": "#/$defs/x~1y%20z", "description": "mine"}},
        "$defs": {"x/y z": {"type": "string", "description": "theirs"}},
    }

    assert safe_parameters(parameters, "tools")["properties"] == {
        "a": {"type": "string", "description": "mine"}
    }


def test_a_cycle_ends_in_a_schema_that_allows_anything() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}

    resolved = safe_parameters(
        {"properties": {"head": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}, "tools"
    )

    assert resolved["properties"]["head"] == {"type": "object", "properties": {"next": {}}}


def test_references_that_multiply_are_refused() -> None:
    doubling = {
        f"L{level}": {"properties": {side: {"$ref": f"#/$defs/L{level + 1}"} for side in "ab"}}
        for level in range(40)
    }

    with pytest.raises(UpstreamError) as refused:
        safe_parameters({"$ref": "#/$defs/L0", "$defs": doubling}, "tools")

    assert (refused.value.kind, refused.value.param) == (FailureKind.UNSUPPORTED, "tools")


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: Schema = {}
    for _ in range(MAX_DEPTH + 1):
        schema = {"items": schema}

    with pytest.raises(UpstreamError):
        safe_parameters(schema, "tools")


def test_the_schema_given_is_not_written_to() -> None:
    parameters = {"properties": {"a": {"oneOf": [True]}}, "required": 1, "$defs": {}}
    before = json.dumps(parameters)

    safe_parameters(parameters, "tools")

    assert json.dumps(parameters) == before
