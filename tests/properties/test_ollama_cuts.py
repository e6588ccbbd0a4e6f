"""
Laws of the Ollama translation: where the network cuts does not matter, whatever comes is
answered or refused in our own words, and what goes out adds up in OpenAI's SDK.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama_support import call, data_lines, decoded, events, ndjson, provider
from openai import omit
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from openai_schema import assert_valid
from pydantic import TypeAdapter

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Endpoint, ReplyHead
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.wire.json import loads

Json = dict[str, Any]

SERVED = [Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RESPONSES]
TOOLS = [{"type": "function", "name": name, "function": {"name": name}} for name in ("f", "g")]

# The machine may be busy: how long one example takes says nothing.
patient = settings(deadline=None, max_examples=60)

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
calls = st.builds(
    lambda name, arguments, id: {"id": id, "function": {"index": 0, "name": name, "arguments": arguments}},
    st.sampled_from(["f", "g"]),
    st.dictionaries(texts, values, max_size=2),
    st.sampled_from(["", "same", "call_1", "x" * 50]),
)
logprobs = st.builds(lambda token, logprob: {"token": token, "logprob": logprob}, texts, st.floats(-9, 0))
lines = st.builds(
    lambda text, thinking, calls, logprobs: {
        "model": "m",
        "message": {"role": "assistant", "content": text, "thinking": thinking, "tool_calls": calls},
        "response": text,
        "logprobs": logprobs,
        "done": False,
    },
    texts,
    texts,
    st.lists(calls, max_size=2),
    st.lists(logprobs, max_size=2),
)


@st.composite
def streams(draw: st.DrawFn) -> list[Json]:
    """Good streams: they say something and end as they should."""
    said = [*draw(st.lists(lines, max_size=4)), {**draw(lines), "message": {"content": "!"}, "response": "!"}]
    reason = draw(st.sampled_from(["stop", "length", "", "unload"]))
    return [*said, {**draw(lines), "done": True, "done_reason": reason, "eval_count": 7}]


payloads = st.fixed_dictionaries(
    {"stream": st.just(True), "prompt": st.just("p"), "tools": st.just(TOOLS)},
    optional={
        "stream_options": st.just({"include_usage": True}),
        "logprobs": st.just(True),
        "parallel_tool_calls": st.just(False),
        "echo": st.just(True),
    },
)
cuts_of = st.lists(st.integers(0, 2000), max_size=12)
streamed = st.sampled_from([Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES])


def assert_settled(decoder: Decoder) -> None:
    """Exactly one of complete and failed, and no answer without a beginning."""
    assert decoder.complete == (decoder.failure is None)
    assert decoder.began or not decoder.complete
    assert decoder.finished == decoder.complete


def assert_refusal(error: UpstreamError) -> None:
    """It says all that a caller is told."""
    assert error.kind in (FailureKind.CALLER, FailureKind.UNSUPPORTED)
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert error.code
    assert error.param


def outcome(payload: Json, body: bytes, endpoint: Endpoint, cuts: list[int]) -> tuple[object, ...]:
    """Everything a decoder says about *body*."""
    inside = [min(cut, len(body)) for cut in cuts]
    decoder, output = decoded(payload, body, endpoint, inside)
    failure = decoder.failure
    words = failure and (failure.kind, failure.message, failure.code, failure.type, failure.param)
    state = (
        decoder.began,
        decoder.progress,
        decoder.finished,
        decoder.complete,
        decoder.model,
        decoder.usage,
    )
    return output, state, words


@patient
@given(payload=payloads, stream=streams(), endpoint=streamed, cuts=cuts_of, keep=st.integers(0, 5000))
def test_where_the_network_cuts_does_not_matter(
    payload: Json, stream: list[Json], endpoint: Endpoint, cuts: list[int], keep: int
) -> None:
    body = ndjson(stream)[:keep]

    assert outcome(payload, body, endpoint, cuts) == outcome(payload, body, endpoint, [])


@patient
@given(
    payload=payloads,
    stream=streams(),
    endpoint=st.sampled_from(SERVED),
    cuts=cuts_of,
    noise=st.lists(
        st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=3)), min_size=1, max_size=5
    ),
)
def test_corrupt_bytes_are_a_failure_or_harmless_at_any_cut(
    payload: Json, stream: list[Json], endpoint: Endpoint, cuts: list[int], noise: list[tuple[int, bytes]]
) -> None:
    body = bytearray(ndjson(stream))
    for at, bytes_ in noise:
        body[at : at + len(bytes_)] = bytes_
    asked = {**payload, "input": "a"}

    assert_settled(decoded(asked, bytes(body), endpoint)[0])
    assert outcome(asked, bytes(body), endpoint, cuts) == outcome(asked, bytes(body), endpoint, [])


@patient
@given(
    answer=st.dictionaries(st.sampled_from(["message", "response", "embeddings", "done", "error"]), values)
)
@pytest.mark.parametrize("endpoint", SERVED)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_any_json_is_an_answer_or_a_failure(endpoint: Endpoint, stream: bool, answer: Json) -> None:
    asked = {"stream": stream, "prompt": "p", "input": "a", "tools": TOOLS}

    assert_settled(decoded(asked, ndjson([answer]), endpoint)[0])


@patient
@given(
    status=st.integers(300, 599),
    body=st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()),
)
@pytest.mark.parametrize("endpoint", SERVED)
def test_any_error_is_named(endpoint: Endpoint, status: int, body: bytes) -> None:
    error = provider().failure(call({}, endpoint), ReplyHead(status, ()), body)

    assert error.kind in FailureKind
    assert error.message
    assert error.status == status


@patient
@given(stream=streams(), endpoint=streamed, keep=st.integers(0, 100))
def test_a_stream_without_its_end_is_never_complete(
    stream: list[Json], endpoint: Endpoint, keep: int
) -> None:
    body = ndjson(stream)
    shorter = body[: len(body) * keep // 101].removesuffix(b"\n")

    decoder, output = decoded({"stream": True, "prompt": "p", "tools": TOOLS}, shorter, endpoint)

    assert (decoder.complete, decoder.finished) == (False, False)
    assert decoder.failure is not None
    assert b"[DONE]" not in output
    assert b"response.completed" not in output


@patient
@given(payload=payloads, stream=streams())
def test_chunks_add_up_in_the_official_sdk(payload: Json, stream: list[Json]) -> None:
    _, output = decoded(payload, ndjson(stream))
    *chunks, done = events(output)
    state = ChatCompletionStreamState()

    for chunk in chunks:
        assert_valid("CreateChatCompletionStreamResponse", chunk)
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))

    message = state.current_completion_snapshot.choices[0].message
    sent = [call for line in stream for call in line["message"].get("tool_calls", ())]
    wanted = sent[:1] if payload.get("parallel_tool_calls") is False else sent
    assert done == "[DONE]"
    assert message.role == "assistant"
    assert message.content == "".join(line["message"]["content"] for line in stream)
    told = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    assert told == [(call["function"]["name"], reread(call["function"]["arguments"])) for call in wanted]
    assert len({call.id for call in message.tool_calls or ()}) == len(wanted)


def reread(arguments: Json) -> Json:
    """Return *arguments* as a reader with 64-bit numbers sees them."""
    read: Json = loads(json.dumps(arguments).encode())
    return read


@patient
@given(payload=payloads, stream=streams())
def test_response_events_add_up_in_the_official_sdk(payload: Json, stream: list[Json]) -> None:
    _, output = decoded(payload, ndjson(stream), Endpoint.RESPONSES)
    read: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    told = [json.loads(data) for data in data_lines(output)]

    for event in told:
        assert_valid("ResponseStreamEvent", event)
        state.handle_event(read.validate_python(event))

    output_text = "".join(
        part["text"]
        for item in told[-1]["response"]["output"]
        if item["type"] == "message"
        for part in item["content"]
    )
    assert output_text == "".join(line["message"]["content"] for line in stream)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))


names = st.sampled_from(
    [
        "messages",
        "stream",
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "parallel_tool_calls",
        "stop",
        "seed",
        "n",
        "best_of",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "response_format",
        "reasoning_effort",
        "reasoning",
        "modalities",
        "stream_options",
        "prompt",
        "suffix",
        "echo",
        "input",
        "instructions",
        "encoding_format",
        "dimensions",
        "text",
        "truncation",
        "previous_response_id",
        "metadata",
    ]
)
schemas = st.recursive(
    st.fixed_dictionaries(
        {}, optional={"type": values, "$ref": st.sampled_from(["#", "#/$defs/A"]), "enum": values}
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(["properties", "items", "anyOf", "oneOf", "allOf", "$defs"]),
        inner
        | st.lists(inner | st.booleans(), max_size=2)
        | st.dictionaries(st.sampled_from("AB"), inner, max_size=2),
    ),
    max_leaves=6,
)
tools = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom", 1]), "name": st.just("f")},
    optional={"function": st.fixed_dictionaries({"name": st.just("f")}, optional={"parameters": schemas})},
)
parts = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text", "input_text", "refusal", "image_url", "input_image", "input_audio", "file"]
        )
    },
    optional={
        "text": values,
        "image_url": st.just({"url": "data:image/png;base64,QUJD"}) | values,
        "input_audio": st.just({"data": "QUJD"}) | values,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "?"])
        | values,
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | values,
        "content": texts | st.lists(parts, max_size=2) | values,
        "tool_calls": st.lists(calls, max_size=2) | values,
        "function_call": st.just({"name": "f", "arguments": "{"}) | values,
        "tool_call_id": st.just("call_1") | values,
        "call_id": values,
        "name": st.just("f") | values,
        "output": texts | st.lists(parts, max_size=2) | values,
        "summary": values,
        "arguments": texts | values,
    },
)
requests = st.builds(
    lambda odd, usual: {**usual, **odd},
    st.dictionaries(names, values, max_size=3),
    st.fixed_dictionaries(
        {"model": st.just("m"), "messages": st.lists(messages, min_size=1, max_size=4)},
        optional={"tools": st.lists(tools, max_size=2), "input": st.lists(messages, max_size=4) | texts},
    ),
)


@patient
@given(payload=requests)
@pytest.mark.parametrize("endpoint", SERVED)
def test_any_request_is_encoded_or_refused(endpoint: Endpoint, payload: Json) -> None:
    ollama = provider(models={"*": "m"})
    before = json.dumps(payload)

    try:
        request = ollama.encode(call(payload, endpoint))
    except UpstreamError as error:
        assert_refusal(error)
    else:
        assert isinstance(request.body, bytes)
        assert json.loads(request.body)["model"] == "m"
        ollama.decoder(call(payload, endpoint), ReplyHead(200, ())).close()
    assert json.dumps(payload) == before
