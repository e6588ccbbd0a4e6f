"""Whatever an OpenAI-compatible server sends, and however the network cuts it."""

import json
import re
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.model import PATHS, Call, Endpoint, Headers, ReplyHead
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.providers.openai import OpenAIProvider, streams
from sentinel_proxy.wire import sse

provider = OpenAIProvider(base_url="http://upstream/v1")

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.sampled_from(["", "a", "stop", "error", "length"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("choices", "delta", "content", "finish_reason", "index", "error", "message", "code"),
                    *("type", "usage", "model", "object", "text", "response", "item", "output", "data"),
                    *("detail", "loc", "msg", "innererror", "metadata", "status", "tool_calls"),
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def line(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode()


def chunk(said: Any, reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": said, "text": "", "finish_reason": reason}
    return line({"model": "m", "choices": [choice], "usage": {"prompt_tokens": 1}})


def step(kind: str) -> bytes:
    payload = {"type": kind, "delta": "a", "response": {"model": "m", "output": [1]}}
    return b"event: %b\n%b" % (kind.encode(), line(payload))


oddities = st.sampled_from(
    [b"data: ", b": c", b"event: error\ndata: {}", b"event: ping", b"id: 1\ndata: {}", b"error: {}", b""]
) | values.map(line)
stop, done = chunk({}, "stop"), b"data: [DONE]"
chunks = st.sampled_from(
    [chunk({"role": "assistant"}), chunk({"content": "a"}), chunk({"content": "b"}), b": c"]
)
last_chunks = st.sampled_from(
    [
        *([stop, done], [stop], [done], [done, done], [stop, done, chunk({"content": "a"})], []),
        *([chunk({}, "length")], [chunk({"tool_calls": [{}]}, index=1), stop], [chunk({}, "error"), done]),
    ]
)
steps = st.sampled_from(
    [step("response.created"), step("response.output_text.delta"), step("response.output_text.done")]
)
last_steps = st.sampled_from(
    [
        *([step("response.completed")], [step("response.failed"), done], [step("response.incomplete")]),
        *([step("error")], [step("response.completed"), done], [done], []),
    ]
)
ends = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"])


def joined(first: list[bytes], odd: bytes | None, last: list[bytes], end: bytes) -> bytes:
    return b"".join(event + end for event in [*first, *([] if odd is None else [odd]), *last])


def streams_of(
    first: st.SearchStrategy[bytes], last: st.SearchStrategy[list[bytes]]
) -> st.SearchStrategy[bytes]:
    """Usual events, perhaps an odd one, and an end of some kind."""
    return st.builds(joined, st.lists(first, max_size=5), st.none() | oddities, last, ends)


completions = st.sampled_from(["a", "", None]).map(
    lambda said: json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
)
soup = st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode())
bodies = st.one_of(streams_of(chunks, last_chunks), streams_of(steps, last_steps), completions, soup)

Answer = tuple[Call, ReplyHead, bytes]


def call_of(endpoint: Endpoint, stream: bool, payload: dict[str, Any]) -> Call:
    return Call("t", endpoint, b"", payload, "m", stream, 0, 1)


def head_of(content_type: bytes) -> ReplyHead:
    return ReplyHead(200, [(b"content-type", content_type)])


asked = st.fixed_dictionaries({}, optional={"n": st.integers(0, 2), "stop": st.just("x")})
types = st.sampled_from([b"text/event-stream", b"application/json", b"text/html", b"", b"text/plain"])
answers: st.SearchStrategy[Answer] = st.one_of(
    st.tuples(
        st.builds(call_of, st.just(Endpoint.CHAT), st.just(True), asked),
        st.sampled_from([b"text/event-stream", b""]).map(head_of),
        streams_of(chunks, last_chunks),
    ),
    st.tuples(
        st.builds(call_of, st.just(Endpoint.RESPONSES), st.just(True), asked),
        st.just(head_of(b"text/event-stream")),
        streams_of(steps, last_steps),
    ),
    st.tuples(
        st.builds(call_of, st.sampled_from(list(PATHS)), st.booleans(), asked), types.map(head_of), bodies
    ),
)


def pieces_of(stream: bytes, data: st.DataObject) -> list[bytes]:
    """Cut *stream* wherever hypothesis likes."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def judged(call: Call, head: ReplyHead, pieces: list[bytes]) -> tuple[bytes, Decoder]:
    """Read *pieces* as failover and relay do: nothing is fed after the end."""
    decoder = provider.decoder(call, head)
    output = b""
    for piece in pieces:
        output += decoder.feed(piece)
        if decoder.complete or decoder.failure is not None:
            return output, decoder
    return output + decoder.close(), decoder


def state(decoder: Decoder) -> dict[str, Any]:
    failure = decoder.failure
    return {
        "began": decoder.began,
        "progress": decoder.progress,
        "finished": decoder.finished,
        "complete": decoder.complete,
        "failure": failure and (failure.kind, failure.code, failure.message, failure.status),
        "model": decoder.model,
        "usage": decoder.usage,
        "opened_as": decoder.opened_as,
        "plain": decoder.plain,
    }


@given(answer=answers, data=st.data())
def test_where_the_network_cuts_an_answer_does_not_matter(answer: Answer, data: st.DataObject) -> None:
    call, head, body = answer

    output, decoder = judged(call, head, pieces_of(body, data))
    expected, reference = judged(call, head, [body])

    assert output == expected
    assert state(decoder) == state(reference)


@given(answer=answers)
def test_every_answer_ends_in_one_verdict(answer: Answer) -> None:
    call, head, body = answer

    output, decoder = judged(call, head, [body])

    assert decoder.complete is (decoder.failure is None)
    assert decoder.began or not decoder.complete
    assert decoder.feed(b"data: {}\n\n") == decoder.close() == b""
    if call.stream and call.endpoint is not Endpoint.EMBEDDINGS:
        datas = [frame.data for frame in sse.frames(output)]
        expected = int(decoder.complete and call.endpoint is not Endpoint.RESPONSES)
        assert datas.count(b"[DONE]") == expected
        assert b"[DONE]" not in datas[:-1]


# Many events alike, which are soon not parsed any more, and some that look alike and are not.
texts = st.text(max_size=3) | st.sampled_from(["", '"', "\\", "\n\n", '"}', " word", "\ud83d", "\u00fc"])
alike = st.builds(
    lambda text, key, padding: line(
        {
            **{
                "id": "c",
                "created": 1,
                "choices": [{"index": 0, "delta": {key: text}, "finish_reason": None}],
            },
            **({"obfuscation": padding} if padding is not None else {}),
        }
    ),
    texts,
    st.sampled_from(["content"] * 6 + ["reasoning", "refusal", "text"]),
    st.none() | texts,
)
tampered = st.builds(
    lambda event, odd, at: event[: -at or None] + odd + event[len(event) - at :],
    alike,
    st.sampled_from([b" ", b"\n", b"\r", b'"', b"\\", b"5", b",", b"}", b"\x00", b"\xff", b"\ndata: "]),
    st.integers(0, 60),
)
long_streams = st.builds(
    joined, st.lists(alike, max_size=40), st.none() | tampered | oddities, last_chunks, ends
)


def reads_of(stream: bytes, data: st.DataObject) -> list[bytes]:
    """Cut *stream* between events, as servers write them: mostly one a read."""
    events = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", stream)
    sizes = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=len(events), max_size=len(events)))
    return [
        b"".join(events[at : at + size])
        for at, size in zip(accumulate(sizes, initial=0), sizes, strict=False)
    ]


@given(stream=long_streams, asked=asked, data=st.data())
def test_events_that_are_known_already_mean_what_they_mean_when_parsed(
    stream: bytes, asked: dict[str, Any], data: st.DataObject
) -> None:
    call, head = call_of(Endpoint.CHAT, True, asked), head_of(b"text/event-stream")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "TEMPLATE_EVERY", 1)
        output, decoder = judged(call, head, reads_of(stream, data))
        patch.setattr(streams, "template_of", lambda event: (None, False))
        expected, reference = judged(call, head, [stream])

    assert output == expected
    assert state(decoder) == state(reference)
    assert "".join(decoder.said) == "".join(reference.said)


@given(
    status=st.integers(300, 599),
    body=values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60),
    callers_key=st.booleans(),
)
def test_every_error_has_a_name(status: int, body: bytes, callers_key: bool) -> None:
    headers: Headers = [(b"retry-after", body[:9])]
    sender = OpenAIProvider(base_url="http://upstream/v1", passes_caller_key=callers_key)
    call = Call("t", Endpoint.CHAT, b"", {}, "m", False, 0, 1)

    failure = sender.failure(call, ReplyHead(status, headers), body)

    assert failure.status == status
    assert failure.message
