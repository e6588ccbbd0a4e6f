"""The worked examples: what OpenAI's clients send and get, beside what Ollama gets and sends."""

import json
from typing import Any

import pytest
from ollama_support import EXAMPLES, call, data_lines, decoded, events, ndjson, provider

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Endpoint, ReplyHead
from sentinel_proxy.wire.ndjson import LineSplitter

Example = dict[str, Any]

CALLER_STATUS = {
    FailureKind.CALLER: 400,
    FailureKind.UNSUPPORTED: 400,
    FailureKind.CONTEXT_OVERFLOW: 400,
    FailureKind.MODEL_NOT_FOUND: 404,
    FailureKind.BAD_OUTPUT: 502,
}
FAULTS = {
    "client": {FailureKind.CALLER, FailureKind.UNSUPPORTED, FailureKind.CONTEXT_OVERFLOW},
    "model": {FailureKind.MODEL_NOT_FOUND},
    "provider": {FailureKind.OVERLOADED, FailureKind.TRUNCATED, FailureKind.PROTOCOL},
}


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    chosen = [example for example in EXAMPLES if example["kind"] in kinds]
    return pytest.mark.parametrize("example", chosen, ids=lambda example: example["id"])


def alike(expected: Any, actual: Any, names: dict[str, str] | None = None) -> bool:
    """Whether JSON values are equal; "~prefix" stands for one id, the same wherever it is repeated."""
    names = {} if names is None else names
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            alike(expected[key], actual[key], names) for key in expected
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(
            alike(left, right, names) for left, right in zip(expected, actual, strict=True)
        )
    if isinstance(expected, str) and expected.startswith("~") and isinstance(actual, str):
        prefix = expected[1:].partition("#")[0]
        return bool(actual) and actual.startswith(prefix) and names.setdefault(expected, actual) == actual
    return bool(expected == actual)


def caller_view(error: UpstreamError) -> tuple[int, Any]:
    """What a caller is told if this was the last provider."""
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return CALLER_STATUS.get(error.kind, error.status or 502), {"error": body}


def assert_encodes(example: Example, endpoint: Endpoint) -> None:
    given = example.get("given", {})
    ollama = provider(**given.get("config", {}))
    request = call(example["openai"], endpoint)
    if "version" in given:
        ollama.learn_version(json.dumps({"version": given["version"]}).encode())
    if "model_info" in given:
        ollama.learn_show(ollama.model_for(request.model), json.dumps(given["model_info"]).encode())

    if "refuse" in example:
        with pytest.raises(UpstreamError) as refused:
            ollama.encode(request)
        status, body = caller_view(refused.value)
        assert status == example["refuse"]["status"]
        assert alike(example["refuse"]["body"], body), body
        assert refused.value.kind in FAULTS[example["refuse"]["fault"]]
        return

    sent = ollama.encode(request)
    assert isinstance(sent.body, bytes)
    assert (sent.method, sent.target) == ("POST", example["ollama"]["path"])
    assert json.loads(sent.body) == example["ollama"]["body"]
    assert list(sent.lossy) == example.get("lossy", [])


@of_kind("chat_request")
def test_a_chat_completion_is_encoded(example: Example) -> None:
    assert_encodes(example, Endpoint.CHAT)


@of_kind("responses_request")
def test_a_responses_call_is_encoded(example: Example) -> None:
    assert_encodes(example, Endpoint.RESPONSES)


@of_kind("embed_request")
def test_an_embeddings_call_is_encoded(example: Example) -> None:
    assert_encodes(example, Endpoint.EMBEDDINGS)


@of_kind("chat_response")
def test_an_answer_becomes_a_chat_completion(example: Example) -> None:
    decoder, output = decoded(example["request"], json.dumps(example["ollama"]).encode())

    assert alike(example["openai"], json.loads(output)), json.loads(output)
    assert (decoder.began, decoder.finished, decoder.complete, decoder.failure) == (True, True, True, None)


@of_kind("chat_stream")
def test_lines_become_chunks(example: Example) -> None:
    decoder, output = decoded(example["request"], ndjson(example["ollama_lines"]))

    told = events(output)
    if decoder.failure is not None:
        told.append(caller_view(decoder.failure)[1])
        assert decoder.failure.kind in FAULTS[example["fault"]]
    assert alike(example["sse"], told), told
    assert decoder.complete == ("fault" not in example)


@of_kind("framing")
def test_reads_become_lines(example: Example) -> None:
    splitter = LineSplitter()

    lines = [line for read in example["reads_hex"] for line in splitter.feed(bytes.fromhex(read))]
    lines.append(splitter.close())

    assert [json.loads(line) for line in lines] == example["lines"]


@of_kind("error")
def test_an_error_is_named(example: Example) -> None:
    head = ReplyHead(example["ollama"]["status"], ())
    error = provider().failure(call({}), head, json.dumps(example["ollama"]["body"]).encode())

    status, body = caller_view(error)
    assert (status, body) == (example["openai"]["status"], example["openai"]["body"])
    assert error.kind in FAULTS[example["fault"]]


@of_kind("completion", "embedding")
def test_a_legacy_call_goes_out_and_comes_back(example: Example) -> None:
    endpoint = Endpoint.COMPLETIONS if example["kind"] == "completion" else Endpoint.EMBEDDINGS
    assert_encodes({"openai": example["openai_request"], "ollama": example["ollama_request"]}, endpoint)

    _, output = decoded(example["openai_request"], json.dumps(example["ollama"]).encode(), endpoint)

    assert alike(example["openai"], json.loads(output)), json.loads(output)


@of_kind("completion_stream")
def test_lines_become_completions(example: Example) -> None:
    decoder, output = decoded(example["request"], ndjson(example["ollama_lines"]), Endpoint.COMPLETIONS)

    assert alike(example["sse"], events(output)), events(output)
    assert decoder.complete


@of_kind("models")
def test_the_tags_become_the_catalogue(example: Example) -> None:
    entries = provider().catalogue(json.dumps(example["ollama"]).encode())

    listed = [
        {"id": entry.id, "object": "model", "created": entry.created, "owned_by": entry.owned_by}
        for entry in entries
    ]
    assert {"object": "list", "data": listed} == example["openai"]


@of_kind("responses_items")
def test_an_answer_becomes_output_items(example: Example) -> None:
    _, output = decoded({}, json.dumps(example["ollama"]).encode(), Endpoint.RESPONSES)

    response = json.loads(output)
    assert alike(example["items"], response["output"]), response["output"]
    assert response["usage"] == example["usage"]


@of_kind("responses_stream")
def test_lines_become_response_events(example: Example) -> None:
    request = example["request"] | {"stream": True}

    decoder, output = decoded(request, ndjson(example["ollama_lines"]), Endpoint.RESPONSES)

    told = [json.loads(data) for data in data_lines(output)]
    assert [reduced(event, to) for event, to in zip(told, example["events"], strict=True)] == example[
        "events"
    ]
    assert decoder.complete


def reduced(event: Example, to: Example) -> Example:
    """Reduce an event to the keys that the example shows; an item is its type, and its keys follow it."""
    item = event.get("item", {})
    flat = {**item, **event} | ({"item": item["type"]} if item else {})
    return {key: flat[key] for key in to}


def test_every_example_has_a_test() -> None:
    tested = {
        example["id"]
        for test in (value for name, value in globals().items() if name.startswith("test_"))
        for mark in getattr(test, "pytestmark", ())
        for example in mark.args[1]
    }

    assert tested == {f"A{number:02d}" for number in range(1, 50)}
