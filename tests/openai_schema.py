"""
OpenAI's own schemas, for every test that emits something that an OpenAI client will read.

`assert_valid("CreateChatCompletionResponse", body)`; the names are those of `$defs` in
`fixtures/openai-openapi.json`. One name is ours, because reality differs from the description:
`CreateCompletionStreamResponse` is a legacy completion whose finish reason may still be null.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

FIXTURE = Path(__file__).parent / "fixtures" / "openai-openapi.json"


def assert_valid(schema: str, instance: Any) -> None:
    """Fail, saying where, unless *instance* is what OpenAI's *schema* allows."""
    error = best_match(_validator(_narrowed(schema, instance)).iter_errors(instance))
    assert error is None, f"not a {schema}: {error.json_path}: {error.message[:300]}"


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FIXTURE.read_bytes())
    streamed = copy.deepcopy(document["$defs"]["CreateCompletionResponse"])
    reason = streamed["properties"]["choices"]["items"]["properties"]["finish_reason"]
    reason["enum"].append(None)
    reason["type"] = [reason["type"], "null"]
    document["$defs"]["CreateCompletionStreamResponse"] = streamed
    return document


@cache
def _validator(schema: str) -> Draft202012Validator:
    document = _document()
    assert schema in document["$defs"], f"no schema is called {schema}"
    return Draft202012Validator({**document, "$ref": f"#/$defs/{schema}"})


@cache
def _events() -> dict[str, str]:
    """Return which schema describes the event of the Responses API that has a given `type`."""
    definitions = _document()["$defs"]
    names = [choice["$ref"].rpartition("/")[2] for choice in definitions["ResponseStreamEvent"]["anyOf"]]
    return {definitions[name]["properties"]["type"]["enum"][0]: name for name in names}


def _narrowed(schema: str, instance: Any) -> str:
    """An event is judged by its own type's schema: faster, and the error then says what is wrong."""
    if schema != "ResponseStreamEvent":
        return schema
    type = instance.get("type")
    assert type in _events(), f"no event is called {type}"
    return _events()[type]
