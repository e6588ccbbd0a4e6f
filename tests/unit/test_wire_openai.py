import json
from typing import Any

import httpx
import pytest
from openai import APIError, OpenAI
from openai.types.chat import ChatCompletionChunk

from sentinel_proxy.model import Endpoint
from sentinel_proxy.wire import openai as wire
from sentinel_proxy.wire import sse

CALLS = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def payloads(stream: bytes) -> list[Any]:
    """Return the JSON of every event but `[DONE]`, which must come last."""
    *events, done = [frame.data for frame in sse.frames(stream)]
    assert done == b"[DONE]"
    return [json.loads(data or b"") for data in events]


def chat(**changes: Any) -> dict[str, Any]:
    message = {"content": "hello"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return wire.completion(
        id="chatcmpl-1", created=7, model="m", message=message, finish_reason="stop", usage=usage, **changes
    )


def test_identifiers_are_new_each_time_and_keep_their_prefix() -> None:
    ids = {wire.new_id("chatcmpl-") for _ in range(100)}

    assert len(ids) == 100
    assert all(id.startswith("chatcmpl-") and len(id) == len("chatcmpl-") + 28 for id in ids)


def test_a_chunk_has_one_choice() -> None:
    built = wire.chunk(id="chatcmpl-1", created=7, model="m", delta={"content": "a"}, system_fingerprint="fp")

    assert built == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "system_fingerprint": "fp",
        "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
    }


def test_the_last_chunk_of_a_choice_has_an_empty_delta() -> None:
    built = wire.chunk(id="chatcmpl-1", created=7, model="m", finish_reason="stop", index=2)

    assert built["choices"] == [{"index": 2, "delta": {}, "finish_reason": "stop"}]


def test_a_usage_chunk_has_no_choices() -> None:
    built = wire.chunk(id="chatcmpl-1", created=7, model="m", usage={"prompt_tokens": 1})

    assert (built["choices"], built["usage"]) == ([], {"prompt_tokens": 1})


def test_a_completion_has_every_key_that_a_message_needs() -> None:
    choice = chat()["choices"][0]

    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)


def test_metadata_is_in_an_error_only_if_there_is_some() -> None:
    plain = wire.error_body("m", "server_error")
    told = wire.error_body("m", "server_error", "p", "c", {"attempts": []})

    assert plain == {"error": {"message": "m", "type": "server_error", "param": None, "code": None}}
    assert told["error"] == {
        "message": "m",
        "type": "server_error",
        "param": "p",
        "code": "c",
        "metadata": {"attempts": []},
    }


def test_an_error_in_a_stream_is_an_event_without_a_name() -> None:
    event = wire.error_event(Endpoint.CHAT, "broke", "server_error", None, "stream_interrupted")
    frame = next(sse.frames(event))

    assert (frame.name, event.count(b"[DONE]")) == (b"", 0)
    assert json.loads(frame.data or b"") == wire.error_body(
        "broke", "server_error", None, "stream_interrupted"
    )


def test_an_error_in_a_stream_of_responses_is_flat_and_nested_at_once() -> None:
    event = wire.error_event(Endpoint.RESPONSES, "broke", "server_error", "p", "c", sequence_number=4)
    frame = next(sse.frames(event))

    assert frame.name == b"error"
    assert json.loads(frame.data or b"") == {
        "type": "error",
        "code": "c",
        "message": "broke",
        "param": "p",
        "sequence_number": 4,
        "error": {"message": "broke", "type": "server_error", "param": "p", "code": "c"},
    }


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.RESPONSES])
def test_the_official_sdk_raises_on_an_error_in_a_stream(endpoint: Endpoint) -> None:
    event = wire.error_event(endpoint, "broke", "server_error", None, "stream_interrupted")
    answer = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, content=event)
    )
    sender: Any = httpx.Client(transport=answer)  # which client the SDK's types name differs by version
    with OpenAI(base_url="http://test/v1", api_key="k", http_client=sender) as client:
        stream: Any = (
            client.chat.completions.create(model="m", messages=[], stream=True)
            if endpoint is Endpoint.CHAT
            else client.responses.create(model="m", input="", stream=True)
        )

        with pytest.raises(APIError) as caught:
            list(stream)

    assert (caught.value.code, caught.value.message) == ("stream_interrupted", "broke")


def test_a_completion_becomes_a_stream() -> None:
    said, end = payloads(wire.completion_to_stream(chat(system_fingerprint="fp")))

    assert said["choices"][0]["delta"] == {"role": "assistant", "content": "hello"}
    assert (said["choices"][0]["finish_reason"], end["choices"][0]["finish_reason"]) == (None, "stop")
    assert (end["choices"][0]["delta"], end["system_fingerprint"]) == ({}, "fp")
    assert "usage" not in end


def test_every_chunk_of_a_completion_is_one_to_the_official_sdk() -> None:
    for payload in payloads(wire.completion_to_stream(chat(), include_usage=True)):
        assert ChatCompletionChunk.model_validate(payload).object == "chat.completion.chunk"


def test_usage_has_a_chunk_of_its_own_if_it_was_asked_for() -> None:
    *_, last = payloads(wire.completion_to_stream(chat(), include_usage=True))

    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 4)


def test_tool_calls_are_numbered_in_a_stream() -> None:
    answer = wire.completion(
        id="c", created=1, model="m", message={"tool_calls": CALLS}, finish_reason="tool_calls"
    )

    said, _ = payloads(wire.completion_to_stream(answer))

    assert said["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **CALLS[0]}]


def test_every_choice_is_told_and_ended() -> None:
    answer = chat()
    answer["choices"] = [{**answer["choices"][0], "index": index} for index in (0, 1)]

    events = payloads(wire.completion_to_stream(answer))

    told = [(event["choices"][0]["index"], event["choices"][0]["finish_reason"]) for event in events]
    assert told == [(0, None), (0, "stop"), (1, None), (1, "stop")]


def test_a_text_completion_is_its_own_stream() -> None:
    answer = {
        "id": "c",
        "object": "text_completion",
        "choices": [{"text": "a", "index": 0, "finish_reason": "stop"}],
    }

    assert payloads(wire.completion_to_stream(answer)) == [answer]


@pytest.mark.parametrize(
    "answer", [{}, {"choices": 1}, {"choices": [1]}, {"choices": [{"finish_reason": "stop"}]}], ids=str
)
def test_what_is_no_completion_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a completion"):
        wire.completion_to_stream(answer)


@pytest.mark.parametrize("constant", [wire.DONE, wire.COMMENT], ids=["done", "comment"])
def test_what_is_always_the_same_is_a_whole_event(constant: bytes) -> None:
    assert b"".join(frame.raw for frame in sse.frames(constant)) == constant
