"""What leaves the proxy is what OpenAI's own description allows."""

import json
from typing import Any

import pytest
from ollama_support import EXAMPLES, call, decoded, events, ndjson, provider
from openai_schema import assert_valid

from sentinel_proxy.model import Endpoint, ReplyHead

Json = dict[str, Any]

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
LINES: list[Json] = [
    {"model": "m", "message": {"thinking": "hm", "content": ""}, "done": False},
    {"model": "m", "message": {"content": "Hi"}, "logprobs": [{"token": "Hi", "logprob": -1}], "done": False},
    {"model": "m", "message": {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "done": False},
    {"model": "m", "message": {"content": "!"}, "done": True, "done_reason": "length", "eval_count": 3},
]
ERRORS = [example for example in EXAMPLES if example["kind"] == "error"]


def test_a_wrong_object_is_told_from_a_right_one() -> None:
    completion = next(example["openai"] for example in EXAMPLES if example["id"] == "A22")
    assert_valid("CreateChatCompletionResponse", completion)

    with pytest.raises(AssertionError, match="choices"):
        assert_valid("CreateChatCompletionResponse", {**completion, "choices": None})


def test_a_name_that_is_no_schema_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no schema"):
        assert_valid("CreateMiracle", {})
    with pytest.raises(AssertionError, match="no event"):
        assert_valid("ResponseStreamEvent", {"type": "response.miracle"})


@pytest.mark.parametrize(
    "example",
    [example for example in EXAMPLES if example["kind"] == "chat_response"],
    ids=lambda example: example["id"],
)
def test_chat_completions(example: Json) -> None:
    _, output = decoded(example["request"], json.dumps(example["ollama"]).encode())

    assert_valid("CreateChatCompletionResponse", json.loads(output))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({}, id="plain"),
        pytest.param({"stream_options": {"include_usage": True}}, id="with counts"),
        pytest.param({"logprobs": True}, id="with log probabilities"),
        pytest.param({"tools": [{"type": "function", "function": {"name": "f"}}]}, id="with tools"),
        pytest.param({"functions": [{"name": "f"}]}, id="with legacy functions"),
    ],
)
def test_chat_completion_chunks(payload: Json) -> None:
    _, output = decoded({"stream": True, **payload}, ndjson(LINES))

    *chunks, done = events(output)
    assert done == "[DONE]"
    for chunk in chunks:
        assert_valid("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("payload", [{}, {"echo": True, "logprobs": 1}], ids=["plain", "with all extras"])
def test_legacy_completions(payload: Json) -> None:
    asked = {"prompt": "a", "stream_options": {"include_usage": True}, **payload}
    lines = [{**line, "response": "x"} for line in LINES]

    _, whole = decoded(asked, json.dumps(lines[-1]).encode(), Endpoint.COMPLETIONS)
    _, streamed = decoded({**asked, "stream": True}, ndjson(lines), Endpoint.COMPLETIONS)

    assert_valid("CreateCompletionResponse", json.loads(whole))
    for chunk in events(streamed)[:-1]:
        # An empty count, which tells that one will follow, is not in the description.
        present = {key: value for key, value in chunk.items() if (key, value) != ("usage", None)}
        assert_valid("CreateCompletionStreamResponse", present)


def test_embeddings() -> None:
    answer = {"embeddings": [[0.6, 0.8]], "prompt_eval_count": 2}

    _, output = decoded({"input": "a"}, json.dumps(answer).encode(), Endpoint.EMBEDDINGS)

    assert_valid("CreateEmbeddingResponse", json.loads(output))


def test_models() -> None:
    tags = next(example["ollama"] for example in EXAMPLES if example["id"] == "A44")

    entries = provider().catalogue(json.dumps(tags).encode())

    data = [
        {"id": entry.id, "object": "model", "created": entry.created, "owned_by": entry.owned_by}
        for entry in entries
    ]
    assert_valid("ListModelsResponse", {"object": "list", "data": data})


@pytest.mark.parametrize("tools", [[], [TOOL], [{"type": "function", "name": "f"}]])
@pytest.mark.parametrize("line", LINES[-2:], ids=["a call", "a text"])
def test_responses(line: Json, tools: list[Json]) -> None:
    native = {**line, "done": True, "done_reason": "stop"}

    _, output = decoded({"tools": tools}, json.dumps(native).encode(), Endpoint.RESPONSES)

    assert_valid("Response", json.loads(output))


@pytest.mark.parametrize("done_reason", ["stop", "length"])
def test_response_events(done_reason: str) -> None:
    lines = [*LINES[:-1], {**LINES[-1], "done_reason": done_reason}]

    _, output = decoded({"stream": True, "tools": [TOOL]}, ndjson(lines), Endpoint.RESPONSES)

    told = events(output)
    assert told[-1]["type"] == {"stop": "response.completed", "length": "response.incomplete"}[done_reason]
    for event in told:
        assert_valid("ResponseStreamEvent", event)


@pytest.mark.parametrize("example", ERRORS, ids=lambda example: example["id"])
def test_error_envelopes(example: Json) -> None:
    head = ReplyHead(example["ollama"]["status"], ())

    error = provider().failure(call({}), head, json.dumps(example["ollama"]["body"]).encode())

    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    assert_valid("ErrorResponse", {"error": body})
