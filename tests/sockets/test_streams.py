"""
Every fault in mid-stream has one right consequence: what the caller sees of each.

The ids are those of docs/catalogue.md: C before the first token, D after it, E05 the caller. What
a rescue makes of a break is in test_rescue.py; cuts at every byte are in test_truncation.py.
"""

import asyncio
import gzip
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import openai
import pytest
from harness import CHAT, Harness, Start, chain
from openai_schema import assert_valid
from raw_caller import Answer, ask, judged, request

from sentinel_proxy import reply
from sentinel_proxy.api import relay
from sentinel_proxy.config import TimeoutsConfig
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import AttemptFailed, StreamRescued
from sentinel_proxy.testing import (
    HOST,
    Close,
    FaultyUpstream,
    Framing,
    Hang,
    Pause,
    Received,
    Reset,
    Script,
    Send,
    Step,
    answer,
    ollama_stream,
    openai_chunks,
    openai_completion,
    openai_stream,
    sse,
    sse_stream,
    stream,
)
from sentinel_proxy.wire.sse import MAX_EVENT_BYTES

pytestmark = pytest.mark.anyio

TOKENS = ["One", " two", " three", " four", " five"]
TEXT = "".join(TOKENS)
SAID = openai_chunks(TOKENS, finish_reason=None, done=False)
FINISH, DONE = openai_chunks([], role=False)
JSON = {"content-type": "application/json"}
EVENT_STREAM = {"content-type": "text/event-stream"}
MOMENT = Pause(0.02)
"""So that what comes before it is read before what comes after it."""

ERROR = sse({"error": {"message": "the engine died", "type": "server_error", "code": None}})
ROLE = SAID[0]
EMPTY = sse({"id": "c", "created": 1, "choices": [{"index": 0, "delta": {"content": ""}}]})
QUICK = TimeoutsConfig(connect=0.5, first_token=0.3, idle=0.15, progress=0.3, answer=1, total=60)


def breaks_off(*events: bytes, by: Step | None = None) -> Script:
    """Return a stream that says *events* and then breaks off: by a reset unless said otherwise."""
    return [*sse_stream(events)[:-1], by if by is not None else Reset()]


def goes_wrong(*events: bytes, framing: Framing = "chunked") -> Script:
    """Return a stream that says `SAID` and, a moment later, *events*; then it ends cleanly."""
    head, *said = sse_stream(SAID, framing=framing)[:-1]
    return [head, *said, MOMENT, *sse_stream(events, framing=framing)[1:]]


def for_ever(*events: bytes, pause: float, after: tuple[bytes, ...] = ()) -> Any:
    """Return an act that says *after*, and then *events* again and again until the caller goes."""

    def act(_: Received) -> Iterator[Step]:
        yield from sse_stream(after)[:-1]
        while True:
            yield Pause(pause)
            for event in events:
                yield Send(b"%x\r\n%b\r\n" % (len(event), event))

    return act


async def streamed(harness: Harness, headers: str = "", **fields: Any) -> Answer:
    return judged(await ask(harness.url, CHAT | {"stream": True} | fields, headers))


def compressed(*events: bytes) -> list[bytes]:
    """Return *events* as a gateway compresses them: each can be read when it is there."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    parts = [packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in events]
    return [*parts, packer.flush()]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until *holds* is true: for what only another process, or the kernel, can tell."""
    for _ in range(300):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come true")


def kinds(harness: Harness) -> set[FailureKind]:
    return {event.kind for event in harness.events if isinstance(event, AttemptFailed)}


def assert_interrupted(answer: Answer, text: str = TEXT) -> None:
    """The caller has *text*, then an error that SDKs raise on, then the proper end of a response."""
    assert (answer.status, answer.whole, answer.text) == (200, True, text)
    assert answer.error["code"] == "stream_interrupted"
    assert_valid("ErrorResponse", {"error": answer.error})
    assert not answer.done
    assert answer.finishes == []
    assert b"[DONE]" not in answer.body


BREAKS = [
    pytest.param(breaks_off(*SAID), id="D01 a reset"),
    pytest.param(goes_wrong(), id="D02 a clean end"),
    pytest.param(goes_wrong(framing="close"), id="D02 the end of the connection"),
    pytest.param(goes_wrong(ERROR, DONE), id="D03 an error, then [DONE]"),
    pytest.param(goes_wrong(b"event: error\n" + ERROR), id="D03 an error by name"),
    pytest.param(goes_wrong(b'event: error\ndata: {"message": "no"}\n\n'), id="D03 a bare error"),
    pytest.param(goes_wrong(b'error: {"code": 500}\n\n', DONE), id="D03 an error in a field"),
    pytest.param(breaks_off(*SAID, by=Hang()), id="D04 a stall"),
    pytest.param(goes_wrong(b"data: {nonsense\n\n", FINISH, DONE), id="D05 a malformed event"),
    pytest.param(goes_wrong(b"data: [1, 2]\n\n", FINISH, DONE), id="D05 JSON of the wrong shape"),
    pytest.param(
        goes_wrong(*openai_chunks([], finish_reason="error", role=False)),
        id="D18 finish_reason error",
    ),
    pytest.param(
        goes_wrong(*openai_chunks([], finish_reason="abort", role=False)),
        id="D18 another bad reason",
    ),
    pytest.param(
        [*sse_stream(SAID)[:-1], MOMENT, Send(b"no chunk at all"), Close()], id="garbage for a chunk"
    ),
]


@pytest.mark.parametrize("script", BREAKS)
async def test_a_break_is_told_or_repaired_as_the_caller_wishes(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, script: Script
) -> None:
    """Told, it is an error that SDKs raise; repaired, it is one stream like any other."""
    primary.always(script)
    backup.always(ollama_stream([" six", " seven"]))
    harness = await start(chain(primary, backup, timeouts=QUICK))

    told = await streamed(harness, "x-sentinel-rescue: error\r\n")
    asked_for_the_first = list(backup.requests)
    repaired = await streamed(harness)

    assert_interrupted(told)
    assert asked_for_the_first == []
    assert repaired.success
    assert (repaired.text, repaired.finishes, repaired.roles) == (f"{TEXT} six seven", ["stop"], 1)
    assert repaired.done
    for event in repaired.events:
        assert_valid("CreateChatCompletionStreamResponse", event)
    assert [event.outcome for event in harness.finished()] == ["truncated", "rescued"]
    assert harness.idle()


async def test_the_sdk_raises_and_the_application_has_what_was_said(
    start: Start, primary: FaultyUpstream
) -> None:
    """D01: code `stream_interrupted`, five tokens."""
    primary.always(breaks_off(*SAID))
    harness = await start(chain(primary))
    said: list[str] = []

    async def listen(client: openai.AsyncOpenAI) -> None:
        async for chunk in await client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], stream=True
        ):
            said.append(chunk.choices[0].delta.content or "")

    async with openai.AsyncOpenAI(base_url=f"{harness.url}/v1", api_key="sk-x", max_retries=2) as client:
        with pytest.raises(openai.APIError) as raised:
            await listen(client)

    assert raised.value.code == "stream_interrupted"
    assert "".join(said) == TEXT
    assert len(primary.requests) == 1


class TestOtherEndpoints:
    """Streams that are no chats are judged by their own rules, and never carried on."""

    async def test_a_broken_legacy_completion_ends_in_an_error(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        event = sse({"id": "c", "choices": [{"index": 0, "text": "One", "finish_reason": None}]})
        primary.always(breaks_off(event))
        harness = await start(chain(primary))

        answer = judged(
            await ask(harness.url, {"model": "m", "prompt": "Hi", "stream": True}, path="/v1/completions")
        )

        assert answer.error["code"] == "stream_interrupted"
        assert not answer.done

    async def test_a_broken_response_ends_in_an_error_in_both_forms(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """Some SDKs look for the flat fields, some for the object."""
        created = {"type": "response.created", "response": {"id": "r", "model": "m"}}
        delta = {"type": "response.output_text.delta", "delta": "One", "output_index": 0}
        primary.always(breaks_off(sse(created), sse(delta)))
        harness = await start(chain(primary))

        answer = judged(
            await ask(harness.url, {"model": "m", "input": "Hi", "stream": True}, path="/v1/responses")
        )

        last = answer.body.split(b"\n\n")[-2]
        assert answer.error["code"] == "stream_interrupted"
        assert last.startswith(b"event: error\n")
        assert b'"type":"error"' in last
        assert not answer.done


class TestTime:
    """What means nothing keeps nothing alive."""

    @pytest.mark.parametrize(
        "noise", [b": ping\n\n", EMPTY, ROLE], ids=["comments", "empty deltas", "roles alone"]
    )
    async def test_noise_is_no_progress(self, start: Start, primary: FaultyUpstream, noise: bytes) -> None:
        """The wire is alive, and still the stream is given up after `progress`."""
        primary.always(for_ever(noise, pause=0.05, after=tuple(SAID)))
        harness = await start(chain(primary, timeouts=QUICK))
        began = asyncio.get_running_loop().time()

        answer = await streamed(harness)

        assert_interrupted(answer)
        assert 0.25 < asyncio.get_running_loop().time() - began < 1.5

    @pytest.mark.parametrize(
        "noise", [b": ping\n\n", EMPTY, ROLE], ids=["comments", "empty deltas", "roles alone"]
    )
    async def test_noise_is_no_first_token(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream, noise: bytes
    ) -> None:
        """C01, C04: nothing of it reaches the caller, and nothing of it buys time."""
        primary.always(for_ever(noise, pause=0.05))
        backup.always(ollama_stream(TOKENS))
        harness = await start(chain(primary, backup, timeouts=QUICK))
        began = asyncio.get_running_loop().time()

        answer = await streamed(harness)

        assert (answer.text, answer.roles, answer.done) == (TEXT, 1, True)
        assert b"ping" not in answer.body
        assert answer.headers["x-sentinel-trail"] == "openai:timeout,ollama:200"
        assert 0.25 < asyncio.get_running_loop().time() - began < 1.5

    async def test_a_stream_has_a_deadline_too(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """D15: it makes progress, and is still over in time."""
        primary.always(for_ever(SAID[1], pause=0.03, after=(ROLE,)))
        harness = await start(chain(primary, backup, timeouts=QUICK))
        began = asyncio.get_running_loop().time()

        answer = await streamed(harness, "x-sentinel-timeout: 0.3\r\n")

        assert answer.error["code"] == "stream_interrupted"
        assert not answer.done
        assert 0.25 < asyncio.get_running_loop().time() - began < 1.5
        assert backup.requests == []

    async def test_the_caller_is_kept_warm_while_the_upstream_is_silent(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """C07, after the first token: a comment for every `heartbeat` of silence."""
        primary.always(
            [*sse_stream(SAID)[:-1], Pause(0.35), *sse_stream([FINISH, DONE])[1:]],
        )
        timeouts = QUICK.model_copy(update={"idle": 1, "progress": 1, "heartbeat": 0.1})
        harness = await start(chain(primary, timeouts=timeouts))

        answer = await streamed(harness)

        assert answer.success
        assert (answer.text, answer.finishes) == (TEXT, ["stop"])
        assert answer.body.count(b": keep-alive\n\n") in (2, 3)

    async def test_the_caller_is_kept_warm_while_the_rescue_looks_for_somebody(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always(breaks_off(*SAID))
        backup.always([Pause(0.35), *ollama_stream([" six"])])
        timeouts = QUICK.model_copy(update={"first_token": 1, "heartbeat": 0.1})
        harness = await start(chain(primary, backup, timeouts=timeouts))

        answer = await streamed(harness)

        assert answer.success
        assert answer.text == f"{TEXT} six"
        assert answer.body.count(b": keep-alive\n\n") in (2, 3)

    @pytest.mark.parametrize("usage", [True, False], ids=["usage comes late", "nothing comes"])
    async def test_after_the_last_word_only_a_grace_is_given(
        self, start: Start, primary: FaultyUpstream, monkeypatch: pytest.MonkeyPatch, usage: bool
    ) -> None:
        """All was said, and the socket stays open: a success, with the terminator that is missing."""
        monkeypatch.setattr(reply, "FINISH_GRACE_SECONDS", 0.2)
        late = sse(
            {"id": "c", "created": 1, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 5}}
        )
        rest = [Pause(0.05), *sse_stream([late])[1:-1]] if usage else []
        primary.always([*sse_stream([*SAID, FINISH])[:-1], *rest, Hang()])
        harness = await start(chain(primary, timeouts=QUICK))

        answer = await streamed(harness)

        assert answer.success
        assert (answer.text, answer.finishes, answer.done) == (TEXT, ["stop"], True)
        assert [bool(event.get("usage")) for event in answer.events][-1] is usage
        assert [event.outcome for event in harness.finished()] == ["success"]
        assert kinds(harness) == set()


class TestShape:
    async def test_what_follows_the_end_is_nobodys_business(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """D16: nothing of it is relayed, and the connection is not used again."""
        events = [*SAID, FINISH, DONE, *SAID, FINISH, DONE]
        primary.plays([*sse_stream([b"".join(events)])[:-1], Hang()])
        primary.always(openai_completion("on a connection of its own"))
        harness = await start(chain(primary))

        answer = await streamed(harness)
        second = await harness.chat()

        assert answer.body == b"".join([*SAID, FINISH, DONE])
        assert second.status_code == 200
        assert [received.connection for received in primary.requests] == [1, 2]

    async def test_a_large_event_passes(self, start: Start, primary: FaultyUpstream) -> None:
        """D17."""
        text = "x" * 1_000_000
        primary.always(openai_stream([text]))
        harness = await start(chain(primary))

        answer = await streamed(harness)

        assert answer.text == text
        assert answer.success

    async def test_an_event_larger_than_any_honest_one_is_a_break(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """D17."""
        endless = [b"data: " + b"x" * 1_000_000, *[b"x" * 1_000_000] * (MAX_EVENT_BYTES // 1_000_000 + 1)]
        primary.always(stream([*SAID, *endless], headers=EVENT_STREAM))
        harness = await start(chain(primary))

        answer = await streamed(harness)

        assert_interrupted(answer)
        assert harness.idle()

    async def test_a_rescue_that_is_answered_with_nonsense_ends_honestly(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """D08, D12: the continuation begins again from the start and goes another way."""
        said = [f"word{number} " for number in range(30)]
        primary.always(breaks_off(*openai_chunks(said, finish_reason=None, done=False)))
        backup.always(ollama_stream([*said[:20], "and", " now", " for", " something", " else"]))
        harness = await start(chain(primary, backup, timeouts=QUICK))

        answer = await streamed(harness)

        assert_interrupted(answer, "".join(said))
        assert [e.result for e in harness.events if isinstance(e, StreamRescued)] == ["failed"]
        assert harness.idle()

    async def test_a_continuation_that_says_nothing_is_no_end(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """An empty answer proves no more here than anywhere else: the next way to ask is tried."""
        primary.always(breaks_off(*SAID))
        backup.plays(ollama_stream([]))
        backup.always(ollama_stream([" six"]))
        harness = await start(chain(primary, backup, timeouts=QUICK))

        answer = await streamed(harness)

        assert answer.text == f"{TEXT} six"
        assert [e.method for e in harness.events if isinstance(e, StreamRescued)] == ["instruct"]


class TestCompression:
    """K08: we ask for plain bytes, and some gateways compress all the same."""

    async def test_a_compressed_answer_arrives_plain(self, start: Start, primary: FaultyUpstream) -> None:
        """K08: whole, streamed, and as an error; no header tells of it."""
        body = b'{"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}'
        refusal = b'{"error": {"message": "too hot", "type": "invalid_request_error", "code": "hot"}}'
        packed = {"content-encoding": "gzip"}
        primary.plays(
            answer(200, gzip.compress(body), JSON | packed),
            stream(compressed(*SAID, FINISH, DONE), headers=EVENT_STREAM | packed),
            answer(400, gzip.compress(refusal), JSON | packed),
        )
        harness = await start(chain(primary))

        asked = (CHAT, CHAT | {"stream": True}, CHAT)
        whole, events, refused = [judged(await ask(harness.url, payload)) for payload in asked]

        assert whole.body == body
        assert (events.text, events.done) == (TEXT, True)
        assert refused.error["code"] == "hot"
        assert not any("content-encoding" in each.headers for each in (whole, events, refused))

    async def test_a_compressed_stream_that_is_cut_is_a_break(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """K08, D02: its framing is whole, what is in it is not."""
        parts = compressed(*SAID, FINISH, DONE)[: len(SAID)]
        primary.always(stream(parts, headers=EVENT_STREAM | {"content-encoding": "gzip"}))
        harness = await start(chain(primary))

        answer = await streamed(harness)

        assert not answer.success
        assert TEXT.startswith(answer.text)


class TestSlowCallers:
    async def test_a_caller_that_never_reads_is_dropped(
        self, start: Start, primary: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """E05: what is held for it is bounded, and nobody is blamed."""
        monkeypatch.setattr(relay, "WRITE_SECONDS", 0.3)
        written = 0

        def endless(_: Received) -> Iterator[Step]:
            nonlocal written
            yield from sse_stream(SAID)[:-1]
            event = openai_chunks(["x" * 10_000], role=False, finish_reason=None, done=False)[0]
            while True:
                written += len(event)
                yield Send(b"%x\r\n%b\r\n" % (len(event), event))

        primary.always(endless)
        harness = await start(chain(primary))
        with closing(socket.socket()) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller, (HOST, int(harness.url.rpartition(":")[2])))
            await loop.sock_sendall(caller, request(CHAT | {"stream": True}))

            await until(lambda: bool(harness.finished()) and not primary.open_connections)

        assert [event.outcome for event in harness.finished()] == ["hung_up"]
        assert written < 32 * 1024 * 1024  # the kernel's buffers; ours hold less than one of them
        assert kinds(harness) == set()
        assert harness.idle()

    async def test_a_slow_reader_is_no_reason_to_blame_the_upstream(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """Its pauses are longer than `idle` and `progress`; all of the answer arrives."""
        text = "x" * 100_000
        primary.always(openai_stream([text] * 100))
        harness = await start(chain(primary, timeouts=QUICK))
        with closing(socket.socket()) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            caller.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller, (HOST, int(harness.url.rpartition(":")[2])))
            await loop.sock_sendall(caller, request(CHAT | {"stream": True}))
            parts = [await loop.sock_recv(caller, 65_536)]
            await asyncio.sleep(0.5)
            while part := await loop.sock_recv(caller, 1 << 20):
                parts.append(part)

        answer = judged(b"".join(parts))
        assert answer.success
        assert answer.text == text * 100
        assert [event.outcome for event in harness.finished()] == ["success"]
