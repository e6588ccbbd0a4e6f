"""
Callers that leave: their upstream connection is closed at once, and nobody is blamed.

E of the catalogue of failures. The callers here are raw sockets, so that they leave exactly when
they should.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness import CHAT, Harness, Start, chain, eventually, unfinished

from sentinel_proxy.api import relay
from sentinel_proxy.config import BreakerConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.testing import (
    Act,
    FaultyUpstream,
    Hang,
    Reset,
    Script,
    Send,
    cut,
    openai_chunks,
    openai_completion,
    openai_error,
    openai_stream,
    sse_stream,
)

pytestmark = pytest.mark.anyio

TIMEOUTS = TimeoutsConfig(connect=20, first_token=20, idle=20, progress=20, answer=20, total=60)
HALF_A_STREAM: Script = unfinished(["Once"], Hang())
ONLY_A_ROLE: Script = unfinished([], Hang())


def request(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    fields = {"host": "proxy", "content-type": "application/json", "content-length": str(len(body))}
    lines = [
        f"POST {path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in (fields | dict(headers or {})).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chat(**fields: Any) -> bytes:
    return request("/v1/chat/completions", json.dumps(CHAT | fields).encode())


@asynccontextmanager
async def caller(harness: Harness, sends: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A caller that has sent *sends*; it hangs up on leaving the context."""
    port = int(harness.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sends)
        await writer.drain()
        yield reader
    finally:
        writer.transport.abort()


def assert_nobody_is_blamed(harness: Harness) -> None:
    assert all(event.outcome == "hung_up" and event.status == 499 for event in harness.finished())
    for upstream in harness.proxy.upstreams:
        assert upstream.breakers.own.failures == 0
        assert not upstream.breakers.models_view()


@pytest.mark.parametrize(
    ("act", "sends"),
    [
        ([Hang()], chat()),
        ([Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), Hang()], chat()),
        ([Hang()], chat(stream=True)),
        (ONLY_A_ROLE, chat(stream=True)),
        (HALF_A_STREAM, chat(stream=True)),
        ([Hang()], request("/v1/embeddings", b'{"model":"m","input":"x"}')),
        ([Hang()], request("/v1/files", b"some bytes of a file")),
        (
            [Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"), Hang()],
            request("/v1/audio/speech", b"{}"),
        ),
        ([Hang()], b"GET /v1/files HTTP/1.1\r\nhost: proxy\r\n\r\n"),
    ],
    ids=[
        "E01 whole answer, before its head",
        "E01 whole answer, inside it",
        "E03 stream, before its head",
        "E03 stream, before its first token",
        "E02 stream, after its first token",
        "embeddings",
        "streamed through, after the upload",
        "streamed through, inside the answer",
        "streamed through, without a body",
    ],
)
async def test_a_caller_that_leaves_closes_the_upstream_connection(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, act: Act, sends: bytes
) -> None:
    primary.always(act)
    harness = await start(chain(primary, backup, timeouts=TIMEOUTS))

    async with caller(harness, sends):
        await eventually(lambda: primary.requests)
        await asyncio.sleep(0.01)
    await eventually(lambda: primary.open_connections == 0, seconds=1)

    await eventually(harness.idle)
    await eventually(harness.finished)
    assert_nobody_is_blamed(harness)
    assert backup.requests == []


async def test_a_caller_that_leaves_during_a_pause_ends_the_retries(
    start: Start, primary: FaultyUpstream
) -> None:
    """E04, G12."""
    primary.always(openai_error(500))
    harness = await start(
        chain(primary, retry=RetryConfig(backoff=4, max_backoff=4)), uniform=lambda low, high: 1.0
    )

    async with caller(harness, chat()):
        await eventually(lambda: primary.requests)
        await asyncio.sleep(0.01)
    await eventually(harness.finished, seconds=0.8)
    await asyncio.sleep(1.0)

    assert [event.outcome for event in harness.finished()] == ["hung_up"]
    assert len(primary.requests) == 1
    assert harness.idle()


async def test_an_upload_that_its_caller_abandons_ends_upstream_too(
    start: Start, primary: FaultyUpstream
) -> None:
    primary.always([Hang()])
    harness = await start(chain(primary, timeouts=TIMEOUTS))
    whole = request("/v1/files", b"x" * 1000, {"content-length": "5000"})

    async with caller(harness, whole):
        await eventually(lambda: primary.open_connections == 1)
    await eventually(lambda: primary.open_connections == 0, seconds=1)

    await eventually(harness.idle)
    assert primary.requests == []
    assert_nobody_is_blamed(harness)


async def test_a_caller_that_leaves_while_its_body_arrives_was_never_there(
    start: Start, primary: FaultyUpstream
) -> None:
    harness = await start(chain(primary))

    async with caller(harness, chat()[:-5]):
        await eventually(lambda: harness.proxy.load.in_flight == 1)
    await eventually(harness.idle)

    assert [(event.outcome, event.call) for event in harness.finished()] == [("hung_up", None)]
    assert primary.connections == 0


async def test_an_abandoned_trial_gives_its_permit_back(start: Start, primary: FaultyUpstream) -> None:
    """E10."""
    primary.plays([Reset()], [Hang()])
    primary.always(openai_completion("well again"))
    breaker = BreakerConfig(failure_threshold=1, recovery_timeout=0.05)
    harness = await start(chain(primary, breaker=breaker, retry=RetryConfig(attempts=1), timeouts=TIMEOUTS))
    own = harness.proxy.upstreams[0].breakers.own
    await harness.chat()
    await asyncio.sleep(0.06)

    async with caller(harness, chat()):
        await eventually(lambda: len(primary.requests) == 2)
        assert own.state == "half_open"
        await asyncio.sleep(0.06)
    await eventually(harness.idle)

    assert own.state == "half_open"
    assert (await harness.chat()).status_code == 200
    assert own.state == "closed"


async def test_two_hundred_hang_ups_in_a_row_leave_nothing(start: Start, primary: FaultyUpstream) -> None:
    """E09, A17: each at a moment of its own."""
    dice = random.Random(7)
    streams = [[Hang()], HALF_A_STREAM, openai_stream(["a", "b"], pause=0.002)]
    wholes = [[Hang()], cut(openai_completion("never"), 30, Hang(), of="body"), openai_completion("quick")]
    primary.always(lambda request: dice.choice(streams if request.json()["stream"] else wholes))
    harness = await start(chain(primary, timeouts=TIMEOUTS))
    tasks_before = len(asyncio.all_tasks())

    async def leave(after_seconds: float, streaming: bool) -> None:
        async with caller(harness, chat(stream=streaming)):
            await asyncio.sleep(after_seconds)

    for _ in range(20):
        await asyncio.gather(*(leave(dice.uniform(0, 0.08), dice.random() < 0.5) for _ in range(10)))

    await eventually(harness.idle)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before + primary.open_connections)
    assert [event for event in harness.finished() if event.outcome not in ("hung_up", "success")] == []
    assert harness.proxy.upstreams[0].breakers.own.failures == 0
    primary.always(openai_completion("still here"))
    assert (await harness.chat()).status_code == 200


async def test_a_caller_that_does_not_read_is_given_up(
    start: Start, primary: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E05: and until then the upstream waits, so that memory stays bounded."""
    monkeypatch.setattr(relay, "WRITE_SECONDS", 0.2)
    sent = 0

    def endless(_: Any) -> Any:
        nonlocal sent
        head, *_rest = sse_stream([])
        yield head
        for event in openai_chunks(["x" * 60_000] * 2000):
            sent += len(event)
            yield Send(b"%x\r\n%b\r\n" % (len(event), event))

    primary.always(endless)
    harness = await start(chain(primary, timeouts=TIMEOUTS))

    async with caller(harness, chat(stream=True)):
        await eventually(harness.finished, seconds=5)

    await eventually(lambda: primary.open_connections == 0, seconds=1)
    await eventually(harness.idle)
    assert sent < 40_000_000  # of 120 MB; the kernel's socket buffers take their share
    assert_nobody_is_blamed(harness)
