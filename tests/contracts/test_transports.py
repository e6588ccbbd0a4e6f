"""
Every promise of `upstream/base.py`, held against every transport on real sockets.

The subjects are the thin HTTP/1.1 client, under both event loops, and httpx. Where one of them
is built differently on purpose, the test says so by naming its subjects.
"""

import asyncio
import gzip
import os
import random
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import h11
import httpx
import pytest
import respx
import trustme

from sentinel_proxy.errors import ConfigError, FailureKind, UpstreamError
from sentinel_proxy.model import Header, UpstreamRequest, header
from sentinel_proxy.testing import (
    Close,
    FaultyUpstream,
    Hang,
    Pause,
    Received,
    Reset,
    Script,
    Send,
    Step,
    Unread,
    answer,
    cut,
    openai_stream,
    stream,
)
from sentinel_proxy.upstream import http1
from sentinel_proxy.upstream.base import Exchange
from sentinel_proxy.upstream.http1 import Http1Exchange, Http1Transport
from sentinel_proxy.upstream.httpx import HttpxTransport
from sentinel_proxy.wheel import Wheel

pytestmark = pytest.mark.anyio

AnyTransport = Http1Transport | HttpxTransport
Make = Callable[..., AnyTransport]

HTTP1 = pytest.mark.parametrize("kind", ["http1", "http1-uvloop"], indirect=True)
HTTPX = pytest.mark.parametrize("kind", ["httpx"], indirect=True)
SOON = 1.0  # seconds: far more than anything on loopback takes
GET = UpstreamRequest("GET", "/v1/models", [(b"accept", b"*/*")])
POST = UpstreamRequest("POST", "/v1/chat/completions", [(b"content-type", b"application/json")], b'{"a":1}')


@pytest.fixture(params=["http1", "http1-uvloop", "httpx"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(kind: str) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": kind == "http1-uvloop"}


@pytest.fixture
async def up() -> AsyncIterator[FaultyUpstream]:
    async with FaultyUpstream() as upstream:
        yield upstream


@pytest.fixture
async def make(kind: str) -> AsyncIterator[Make]:
    """Make transports of the subject; at the end nothing of theirs may be left."""
    made: list[AnyTransport] = []

    def make_one(url: str, **options: Any) -> AnyTransport:
        transport: AnyTransport
        if kind == "httpx":
            transport = HttpxTransport(url, trust_env=False, **options)
        else:
            transport = Http1Transport(url, Wheel(), **options)
        made.append(transport)
        return transport

    yield make_one
    for transport in made:
        await transport.aclose()
        assert transport.active == 0


@pytest.fixture
def transport(make: Make, up: FaultyUpstream) -> AnyTransport:
    return make(up.url)


def soon(seconds: float = SOON) -> float:
    return asyncio.get_running_loop().time() + seconds


async def begin(
    transport: AnyTransport, request: UpstreamRequest = POST, *, within: float = SOON, connect: float = SOON
) -> Exchange:
    return await transport.open(request, connect_seconds=connect, until=soon(within))


async def rest(exchange: Exchange) -> bytes:
    """Read to the end."""
    body = b""
    while data := await exchange.read(soon()):
        body += data
    return body


async def fetch(transport: AnyTransport, request: UpstreamRequest = POST) -> tuple[int, bytes]:
    exchange = await begin(transport, request)
    try:
        return exchange.head.status, await rest(exchange)
    finally:
        exchange.close()


async def failure_of(awaitable: Coroutine[Any, Any, Any]) -> FailureKind:
    with pytest.raises(UpstreamError) as caught:
        await awaitable
    assert not any(word in caught.value.message for word in ("127.0.0.1", "localhost", "http://"))
    return caught.value.kind


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = soon(2)
    while not condition() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - any condition
        await asyncio.sleep(0.001)
    assert condition()


async def stalled(count: Callable[[], int]) -> int:
    """Return *count* once it has stood still for 40 ms."""
    deadline, seen = soon(5), -1
    while seen != count() and asyncio.get_running_loop().time() < deadline:
        seen = count()
        await asyncio.sleep(0.04)
    assert seen == count(), "it never stalled"
    return seen


def raw(*lines: str, body: bytes = b"") -> Script:
    """Build an answer from its lines as they stand."""
    return [Send("\r\n".join([*lines, "", ""]).encode() + body)]


def bytes_of(script: Script) -> bytes:
    return b"".join(step.data for step in script if isinstance(step, Send))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


# -- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "body"),
    [
        (answer(200, "hello"), b"hello"),
        (answer(200), b""),
        (answer(200, "hello", framing="chunked"), b"hello"),
        (answer(200, framing="chunked"), b""),
        (answer(200, "hello", framing="close"), b"hello"),
        (answer(200, framing="close"), b""),
        (stream([b"he", b"l", b"lo"]), b"hello"),
        ([*raw("HTTP/1.0 200 OK", "content-type: x/y", body=b"hello"), Close()], b"hello"),
        (
            raw("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=b"2;x=y\r\nhi\r\n0\r\nt: 1\r\n\r\n"),
            b"hi",
        ),
        (raw("HTTP/1.1 204 No Content", "x: y"), b""),
        (raw("HTTP/1.1 304 Not Modified", "content-length: 5"), b""),
        (raw("HTTP/1.1 200", "content-length: 2", body=b"no"), b"no"),
        (answer(200, b"x" * 1_000_000), b"x" * 1_000_000),
        (stream([b"y" * 50_000] * 20), b"y" * 1_000_000),
    ],
    ids=[
        "length",
        "length-empty",
        "chunked",
        "chunked-empty",
        "close",
        "close-empty",
        "stream",
        "http-1.0",
        "extension-and-trailer",
        "204",
        "304",
        "no-reason",
        "large",
        "large-chunked",
    ],
)
async def test_a_body_ends_where_its_framing_says(
    transport: AnyTransport, up: FaultyUpstream, script: Script, body: bytes
) -> None:
    up.plays(script)

    exchange = await begin(transport)
    got = await rest(exchange)
    exchange.close()

    assert (got, exchange.complete) == (body, True)


async def test_the_answer_to_head_has_no_body_whatever_its_length(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.always(raw("HTTP/1.1 200 OK", "content-length: 500"))

    for _ in range(2):
        assert await fetch(transport, UpstreamRequest("HEAD", "/", ())) == (200, b"")


async def test_header_names_are_lower_case_and_repetitions_stay(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays(raw("HTTP/1.1 418 Teapot", "X-Two: A", "x-two: b", "Content-Length: 0"))

    exchange = await begin(transport)
    exchange.close()

    assert exchange.head.status == 418
    assert list(exchange.head.headers) == [(b"x-two", b"A"), (b"x-two", b"b"), (b"content-length", b"0")]


async def test_interim_heads_are_skipped(transport: AnyTransport, up: FaultyUpstream) -> None:
    interim = [*raw("HTTP/1.1 100 Continue"), Pause(0.01), *raw("HTTP/1.1 103 Early Hints", "link: x")]
    up.plays([*interim, *answer(200, "at last")])

    exchange = await begin(transport)

    assert (exchange.head.status, await rest(exchange)) == (200, b"at last")
    assert header(exchange.head.headers, b"link") is None
    exchange.close()


async def test_a_redirect_is_an_answer_like_any_other(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(answer(307, "elsewhere", {"location": f"{up.url}/other"}))

    assert await fetch(transport) == (307, b"elsewhere")
    assert len(up.requests) == 1


async def test_bytes_are_handed_out_as_they_come(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(stream([b"one", b"two", b"three"], pause=0.02))

    exchange = await begin(transport)
    got = [await exchange.read(soon()) for _ in range(3)]

    assert got == [b"one", b"two", b"three"]
    assert await exchange.read(soon()) == b""
    assert exchange.complete
    exchange.close()


@HTTP1
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_answer_that_came_in_one_piece_is_complete_after_one_read(
    transport: AnyTransport, up: FaultyUpstream, framing: Any
) -> None:
    up.plays([Send(bytes_of(stream([b"a", b"b", b"c"], framing=framing)))])
    exchange = await begin(transport)

    assert (await exchange.read(soon()), exchange.complete) == (b"abc", True)
    exchange.close()


async def test_each_caller_gets_its_own_answer(transport: AnyTransport, up: FaultyUpstream) -> None:
    def echo(request: Received) -> Script:
        return [Pause(random.random() / 100), *answer(200, request.body)]

    up.always(echo)

    async def ask(number: int) -> bytes:
        return (await fetch(transport, UpstreamRequest("POST", "/", (), b"%d" % number)))[1]

    got = await asyncio.gather(*map(ask, range(50)))

    assert got == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize("seed", range(5))
async def test_where_the_network_cuts_an_answer_does_not_matter(
    transport: AnyTransport, up: FaultyUpstream, seed: int
) -> None:
    wire = bytes_of(openai_stream(["a", "b", "c"]))
    dice = random.Random(seed)
    cuts = sorted(dice.randrange(len(wire)) for _ in range(6))
    parts = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    up.plays([step for part in parts for step in (Send(part), Pause(0.002))], [Send(wire)])

    assert await fetch(transport) == await fetch(transport)


# -- requests --------------------------------------------------------------------------------


def judged(received: bytes) -> tuple[h11.Request, bytes]:
    """Read *received* as a strict server would: exactly one request, nothing behind it."""
    judge = h11.Connection(h11.SERVER)
    judge.receive_data(received)
    request, body = judge.next_event(), b""
    assert isinstance(request, h11.Request)
    while isinstance(event := judge.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert judge.trailing_data == (b"", False)
    return request, body


@pytest.mark.parametrize(
    ("request_sent", "body"),
    [
        (GET, b""),
        (POST, b'{"a":1}'),
        (UpstreamRequest("POST", "/v1/x", ()), b""),
        (UpstreamRequest("DELETE", "/v1/files/a?b=c%20d&e=f", ()), b""),
        (UpstreamRequest("POST", "/", (), b"x" * 300_000), b"x" * 300_000),
    ],
    ids=["get", "post", "post-empty", "delete", "large"],
)
async def test_an_independent_parser_reads_what_was_meant(
    transport: AnyTransport, up: FaultyUpstream, request_sent: UpstreamRequest, body: bytes
) -> None:
    up.plays(answer(200))

    await fetch(transport, request_sent)
    seen, seen_body = judged(up.requests[0].raw)

    assert (seen.method.decode(), seen.target.decode()) == (request_sent.method, request_sent.target)
    assert (b"host", up.url.removeprefix("http://").encode()) in seen.headers
    assert set(request_sent.headers) <= set(seen.headers)
    assert seen_body == body


async def test_nothing_is_added_but_host_and_framing(
    transport: AnyTransport, up: FaultyUpstream, kind: str
) -> None:
    up.plays(answer(200))

    await fetch(transport, POST)

    names = {name.lower() for name, _ in up.requests[0].headers}
    identity = {b"accept-encoding"} if kind == "httpx" else set()  # it would decode, so it asks for none
    assert names == {b"host", b"content-type", b"content-length"} | identity


@pytest.mark.parametrize("bad", ["a\r\nx-evil: 1", "a\nx-evil: 1", "a\rb", "a\0b"], ids=ascii)
async def test_a_header_that_would_break_out_of_its_line_is_left_away(
    transport: AnyTransport, up: FaultyUpstream, bad: str
) -> None:
    up.plays(answer(200))
    headers: list[Header] = [
        (b"x-good", b"1"),
        (b"x-bad", bad.encode()),
        (bad.encode(), b"1"),
        (b"x-also", b"2"),
    ]

    await fetch(transport, UpstreamRequest("GET", "/", headers))

    seen = [pair for pair in judged(up.requests[0].raw)[0].headers if pair[0].startswith((b"x-", b"a"))]
    assert [pair for pair in seen if pair[0] != b"accept-encoding"] == [(b"x-good", b"1"), (b"x-also", b"2")]


async def test_a_second_opinion_about_the_framing_is_left_away(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays(answer(200))
    headers = [(b"content-length", b"3"), (b"transfer-encoding", b"chunked"), (b"host", b"evil")]

    await fetch(transport, UpstreamRequest("POST", "/", headers, b"12345"))

    seen, body = judged(up.requests[0].raw)
    assert body == b"12345"
    assert [value for name, value in seen.headers if name == b"host"] != [b"evil"]


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/a b"), ("GET", "/a\r\nHost: x"), ("GET", "/é"), ("GET", ""), ("G T", "/"), ("GET\r\n", "/")],
    ids=ascii,
)
async def test_a_request_line_that_cannot_be_is_the_callers_fault(
    transport: AnyTransport, up: FaultyUpstream, method: str, target: str
) -> None:
    assert await failure_of(begin(transport, UpstreamRequest(method, target, ()))) is FailureKind.CALLER
    assert up.connections == 0


@pytest.mark.parametrize("length", [None, 10], ids=["chunked", "length"])
async def test_a_body_can_be_streamed(
    transport: AnyTransport, up: FaultyUpstream, length: int | None
) -> None:
    up.plays(answer(200, "thanks"))
    request = UpstreamRequest("POST", "/", (), pieces(b"01234", b"", b"567", b"89"), body_length=length)

    assert await fetch(transport, request) == (200, b"thanks")
    assert judged(up.requests[0].raw)[1] == b"0123456789"


@pytest.mark.parametrize("parts", [(b"0123",), (b"0123", b"456789")], ids=["short", "long"])
async def test_a_body_that_is_not_as_long_as_declared_never_looks_whole(
    transport: AnyTransport, up: FaultyUpstream, parts: tuple[bytes, ...]
) -> None:
    request = UpstreamRequest("POST", "/", (), pieces(*parts), body_length=6)

    assert await failure_of(begin(transport, request)) is FailureKind.CALLER
    await eventually(lambda: up.open_connections == 0)
    assert up.requests == []


async def test_a_body_that_fails_takes_its_error_to_the_caller(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    closed: list[bool] = []

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            raise LookupError("the client hung up")
        finally:
            closed.append(True)

    with pytest.raises(LookupError, match="hung up"):
        await begin(transport, UpstreamRequest("POST", "/", (), body()))

    await eventually(lambda: up.open_connections == 0)
    assert (closed, transport.active, up.requests) == ([True], 0, [])


async def test_a_large_streamed_body_arrives_whole(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(answer(200, "thanks"))
    body = random.Random(3).randbytes(5_000_000)
    request = UpstreamRequest(
        "POST", "/", (), pieces(*(body[at : at + 70_000] for at in range(0, len(body), 70_000)))
    )

    assert (await fetch(transport, request), up.requests[0].body == body) == ((200, b"thanks"), True)


@HTTP1
async def test_an_upload_stops_once_the_answer_is_over(transport: AnyTransport, up: FaultyUpstream) -> None:
    ended: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"more"
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    up.plays([Unread(), *answer(400, "enough"), Pause(0.02)])
    exchange = await begin(transport, UpstreamRequest("POST", "/", (), endless()))

    await eventually(lambda: ended == [True])

    assert await rest(exchange) == b"enough"
    exchange.close()
    assert repr(transport) == "<Http1Transport 0 active, 0 idle>"


async def test_an_upload_goes_no_faster_than_the_server_reads(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield bytes(1 << 16)

    up.plays([Unread(), Hang()])
    opening = asyncio.create_task(begin(transport, UpstreamRequest("POST", "/", (), endless())))
    await eventually(lambda: given > 0)

    assert await stalled(lambda: given) < 1000
    await cancelled(opening)
    await eventually(lambda: transport.active == 0)


@HTTP1
async def test_an_answer_that_comes_before_the_upload_ended_is_not_lost(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays([Unread(), *answer(413, "too large"), Pause(0.02), Reset()])

    assert await fetch(transport, UpstreamRequest("POST", "/", (), bytes(20_000_000))) == (413, b"too large")


@HTTP1
async def test_an_answer_that_comes_while_the_caller_still_has_nothing_to_send_is_not_lost(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    ended: list[bool] = []

    async def slow() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    up.plays([Unread(), *answer(401, "no")])

    assert await fetch(transport, UpstreamRequest("POST", "/", (), slow())) == (401, b"no")
    await eventually(lambda: ended == [True])
    assert repr(transport) == "<Http1Transport 0 active, 0 idle>"


@HTTP1
async def test_an_answer_is_found_even_where_our_write_was_what_failed(make: Make) -> None:
    gone = threading.Event()

    def refuse(listener: socket.socket) -> None:
        """Answer on the head alone and reset, in a thread, because our loop is kept busy meanwhile."""
        peer, _ = listener.accept()
        with peer:
            peer.recv(1 << 16)
            peer.sendall(bytes_of(answer(413, "too large")))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.set()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(0.01)
        gone.wait(5)  # the loop sees neither the answer nor the reset before our next write
        yield b"second"
        await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=refuse, args=(listener,))
        server.start()
        transport = make(f"http://127.0.0.1:{listener.getsockname()[1]}")

        assert await fetch(transport, UpstreamRequest("POST", "/", (), body())) == (413, b"too large")
        server.join()


# -- failures --------------------------------------------------------------------------------


async def test_a_refused_connection_is_named(transport: AnyTransport, up: FaultyUpstream) -> None:
    await up.stop_listening()

    assert await failure_of(begin(transport)) is FailureKind.CONNECT


BEFORE_THE_HEAD: list[tuple[str, Script, FailureKind]] = [
    ("accept-then-close", [Close()], FailureKind.RESET),
    ("reset", [Reset()], FailureKind.RESET),
    ("reset-inside-the-head", [Send(b"HTTP/1.1 200 OK\r\nx:"), Pause(0.01), Reset()], FailureKind.RESET),
    ("garbage", [Send(b"\x16\x03\x01 what is this\r\n\r\n"), Hang()], FailureKind.PROTOCOL),
    ("other-protocol", [Send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Hang()], FailureKind.PROTOCOL),
    ("200-kB-header", raw("HTTP/1.1 200 OK", "x: " + "y" * 200_000), FailureKind.PROTOCOL),
    ("endless-header", [Send(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000), Hang()], FailureKind.PROTOCOL),
    ("switching", raw("HTTP/1.1 101 Switching", "upgrade: x", "connection: upgrade"), FailureKind.PROTOCOL),
    ("two-framings", raw("HTTP/1.1 200 OK", "content-length: 1", "content-length: 2"), FailureKind.PROTOCOL),
]


@pytest.mark.parametrize(
    ("script", "expected"), [row[1:] for row in BEFORE_THE_HEAD], ids=[row[0] for row in BEFORE_THE_HEAD]
)
async def test_what_happens_before_the_head_has_a_name(
    transport: AnyTransport, up: FaultyUpstream, script: Script, expected: FailureKind
) -> None:
    up.plays(script)

    assert await failure_of(begin(transport)) is expected
    await eventually(lambda: (transport.active, up.open_connections) == (0, 0))
    assert len(up.requests) == 1


@HTTP1
async def test_half_a_status_line_is_not_http(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays([Send(b"HTTP/1.1 20"), Close()])

    assert await failure_of(begin(transport)) is FailureKind.PROTOCOL


@HTTP1
@pytest.mark.parametrize(
    "script",
    [
        raw("HTTP/1.1 200 OK", "transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"),
        raw("HTTP/1.1 200 OK", "content-length: 1", "transfer-encoding: chunked", body=b"0\r\n\r\n"),
        [Send(b"HTTP/1.1 100 Continue\r\n\r\n" * 4000), Hang()],
        raw("HTTP/1.1 099 What", "content-length: 0"),
    ],
    ids=["transfer-coding", "length-and-chunked", "endless-interim", "no-such-status"],
)
async def test_framing_that_servers_and_proxies_read_differently_is_refused(
    transport: AnyTransport, up: FaultyUpstream, script: Script
) -> None:
    up.plays(script)

    assert await failure_of(begin(transport)) is FailureKind.PROTOCOL


INSIDE_THE_BODY: list[tuple[str, Script, FailureKind]] = [
    ("length-too-large", cut(answer(200, "0123456789"), 4, Close(), of="body"), FailureKind.TRUNCATED),
    ("length-reset", cut(answer(200, "0123456789"), 4, Reset(), of="body"), FailureKind.TRUNCATED),
    ("chunked-unterminated", cut(stream([b"0123"]), 9, Close(), of="body"), FailureKind.TRUNCATED),
    ("chunked-inside-a-chunk", cut(stream([b"012345"]), 7, Close(), of="body"), FailureKind.TRUNCATED),
    ("chunked-reset", cut(stream([b"0123"]), 9, Reset(), of="body"), FailureKind.TRUNCATED),
    (
        "close-delimited-reset",
        cut(answer(200, "0123", framing="close"), 4, Reset(), of="body"),
        FailureKind.TRUNCATED,
    ),
    (
        "chunk-garbage",
        raw("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=b"4\r\n0123\r\nzz\r\n"),
        FailureKind.PROTOCOL,
    ),
    ("silence", cut(answer(200, "0123456789"), 4, Hang(), of="body"), FailureKind.TIMEOUT),
]


@pytest.mark.parametrize(
    ("script", "expected"), [row[1:] for row in INSIDE_THE_BODY], ids=[row[0] for row in INSIDE_THE_BODY]
)
async def test_a_body_that_breaks_is_never_complete(
    transport: AnyTransport, up: FaultyUpstream, script: Script, expected: FailureKind
) -> None:
    *sent, end = script
    up.plays([*sent, Pause(0.01), end])
    exchange = await begin(transport)

    first = await exchange.read(soon())
    assert await failure_of(exchange.read(soon(0.05))) is expected
    assert await failure_of(exchange.read(soon())) is expected

    assert b"012345".startswith(first)
    assert not exchange.complete
    exchange.close()
    await eventually(lambda: (transport.active, up.open_connections) == (0, 0))


async def test_silence_before_the_head_ends_at_its_time_and_not_before(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays([Hang()])
    began = soon(0)

    assert await failure_of(begin(transport, within=0.04)) is FailureKind.TIMEOUT
    assert 0.035 <= soon(0) - began < 0.5
    await eventually(lambda: up.open_connections == 0)


async def test_bytes_that_are_here_are_read_even_when_time_is_up(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays(cut(answer(200, "0123456789"), 4, Hang(), of="body"))
    exchange = await begin(transport)
    await asyncio.sleep(0.02)

    assert await exchange.read(soon(-1)) == b"0123"
    exchange.close()


# -- connecting ------------------------------------------------------------------------------


def server_tls(authority: trustme.CA, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", **options).configure_cert(context)
    return context


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_verified_server_is_spoken_to_over_tls(make: Make) -> None:
    authority = trustme.CA()
    async with FaultyUpstream(ssl=server_tls(authority)) as up:
        up.always(stream([b"sec", b"ret"]))
        transport = make(up.url, ssl_context=client_tls(authority))

        assert [await fetch(transport) for _ in range(3)] == [(200, b"secret")] * 3
        assert up.connections == 1


EXPIRED = {
    "not_before": datetime.now(UTC) - timedelta(days=9),
    "not_after": datetime.now(UTC) - timedelta(days=1),
}


@pytest.mark.parametrize(
    ("options", "trusted"), [(EXPIRED, True), ({}, False)], ids=["expired", "unknown-authority"]
)
async def test_a_certificate_that_does_not_verify_is_named(
    make: Make, options: dict[str, Any], trusted: bool
) -> None:
    authority = trustme.CA()
    async with FaultyUpstream(ssl=server_tls(authority, **options)) as up:
        transport = make(up.url, ssl_context=client_tls(authority if trusted else trustme.CA()))

        assert await failure_of(begin(transport)) is FailureKind.CERTIFICATE
        await eventually(lambda: up.open_connections == 0)
        assert up.requests == []


async def test_the_default_context_trusts_no_authority_of_ours(make: Make) -> None:
    async with FaultyUpstream(ssl=server_tls(trustme.CA())) as up:
        assert await failure_of(begin(make(up.url))) is FailureKind.CERTIFICATE


@pytest.mark.parametrize(
    "script",
    [[Close()], [Reset()], [Send(b"HTTP/1.1 400 Bad\r\n\r\n"), Close()]],
    ids=["fin", "rst", "plain"],
)
async def test_a_handshake_that_breaks_is_a_failed_connect(
    make: Make, up: FaultyUpstream, script: Script
) -> None:
    up.greets(script)
    transport = make(up.url.replace("http://", "https://"))

    assert await failure_of(begin(transport)) is FailureKind.CONNECT


async def test_a_handshake_that_hangs_ends_with_the_time_for_connecting(
    make: Make, up: FaultyUpstream
) -> None:
    up.greets([Hang()])
    transport = make(up.url.replace("http://", "https://"))

    assert await failure_of(begin(transport, connect=0.05)) is FailureKind.CONNECT_TIMEOUT
    await eventually(lambda: up.open_connections == 0)


async def test_an_answer_over_tls_that_ends_without_a_farewell_is_truncated(make: Make) -> None:
    authority = trustme.CA()
    async with FaultyUpstream(ssl=server_tls(authority)) as up:
        up.plays(cut(answer(200, "0123456789"), 4, Reset(), of="body"))
        exchange = await begin(make(up.url, ssl_context=client_tls(authority)))

        await exchange.read(soon())
        assert await failure_of(exchange.read(soon())) is FailureKind.TRUNCATED
        exchange.close()


@pytest.mark.parametrize(
    ("polite", "failure"), [(True, None), (False, FailureKind.TRUNCATED)], ids=["notify", "fin"]
)
@HTTP1
async def test_over_tls_only_a_farewell_ends_a_body_without_length(
    make: Make, polite: bool, failure: FailureKind | None
) -> None:
    authority = trustme.CA()
    async with FaultyUpstream(ssl=server_tls(authority)) as up:

        def act(_: Received) -> Iterator[Step]:
            yield from raw("HTTP/1.1 200 OK", "x: y", body=b"abc")
            yield Pause(0.01)
            if polite:
                yield Close()
            for connection in up._open:  # a FIN that the TLS layer knows nothing of
                fd = os.dup(connection._transport.get_extra_info("socket").fileno())
                with socket.socket(fileno=fd) as sock:
                    sock.shutdown(socket.SHUT_WR)
            yield Hang()

        up.plays(act)
        exchange = await begin(make(up.url, ssl_context=client_tls(authority)))

        assert await exchange.read(soon()) == b"abc"
        if failure is None:
            assert await exchange.read(soon()) == b""
        else:
            assert await failure_of(exchange.read(soon())) is failure
        exchange.close()


# -- names (httpx leaves them to the event loop) -----------------------------------------------


def answers(*rows: tuple[int, str, int]) -> Callable[..., list[Any]]:
    return lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", (host, port)) for family, host, port in rows]


@HTTP1
async def test_a_name_is_tried_at_all_its_addresses(make: Make, up: FaultyUpstream) -> None:
    up.always(answer(200, "found"))
    rows = answers((socket.AF_INET6, "::1", up.port), (socket.AF_INET, "127.0.0.1", up.port))

    assert await fetch(make(f"http://localhost:{up.port}", lookup=rows)) == (200, b"found")


@HTTP1
@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label")], ids=repr)
async def test_a_name_that_does_not_resolve_is_a_failed_connect(make: Make, error: Exception) -> None:
    def lookup(*_: Any, **__: Any) -> list[Any]:
        raise error

    assert await failure_of(begin(make("http://name.example", lookup=lookup))) is FailureKind.CONNECT


@HTTP1
async def test_a_hung_resolver_costs_its_own_provider_only(make: Make, up: FaultyUpstream) -> None:
    released, started = threading.Event(), []

    def hang(*_: Any, **__: Any) -> list[Any]:
        started.append(1)
        released.wait(5)
        return []

    up.always(answer(200, "healthy"))
    sick = make("http://sick.example", lookup=hang)
    well = make(f"http://well.example:{up.port}", lookup=answers((socket.AF_INET, "127.0.0.1", up.port)))

    calls = [asyncio.create_task(failure_of(begin(sick, connect=0.1))) for _ in range(50)]
    assert await fetch(well) == (200, b"healthy")
    kinds = await asyncio.gather(*calls)
    released.set()

    assert (set(kinds), len(started)) == ({FailureKind.CONNECT_TIMEOUT}, 1)


@HTTP1
async def test_our_own_shortage_is_nobodys_failure(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> Any:
        raise OSError(24, os.strerror(24))

    transport = make("http://127.0.0.1:9")
    monkeypatch.setattr(socket, "socket", none_left)

    assert await failure_of(begin(transport)) is FailureKind.LOCAL


# -- kept-alive connections ----------------------------------------------------------------------


async def test_a_connection_is_used_again(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(answer(200, "a"), stream([b"b"]), answer(200, "c", framing="chunked"), answer(500, "d"))

    for expected in (b"a", b"b", b"c", b"d"):
        assert (await fetch(transport))[1] == expected

    assert up.connections == 1


@pytest.mark.parametrize(
    "script",
    [
        answer(200, "x", {"connection": "close"}),
        raw("HTTP/1.0 200 OK", "content-length: 1", body=b"x"),
        [*answer(200, "x", framing="close")],
        [Send(bytes_of(answer(200, "x")) + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")],
    ],
    ids=["asked-to-close", "http-1.0", "close-delimited", "answer-nobody-asked-for"],
)
async def test_a_connection_that_cannot_be_trusted_again_is_not_used_again(
    transport: AnyTransport, up: FaultyUpstream, script: Script
) -> None:
    up.plays(script, answer(200, "next"))

    assert (await fetch(transport))[1] == b"x"
    assert (await fetch(transport))[1] == b"next"
    assert up.connections == 2


async def test_closing_before_the_end_closes_the_connection(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays(cut(answer(200, "0123456789"), 4, Hang(), of="body"))
    exchange = await begin(transport)

    exchange.close()
    exchange.close()

    assert transport.active == 0
    await eventually(lambda: up.open_connections == 0)


@HTTP1
async def test_a_connection_whose_body_ends_while_it_lingers_is_used_again(
    transport: Http1Transport, up: FaultyUpstream
) -> None:
    """The end of a stream's framing often comes a moment after its last event."""
    up.plays(
        [
            *raw("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=b"4\r\ndone\r\n"),
            Pause(0.02),
            Send(b"0\r\n\r\n"),
        ]
    )
    up.always(answer(200, "next"))
    exchange = await begin(transport)
    await exchange.read(soon())

    exchange.close(linger_seconds=SOON)

    assert (transport.active, transport.idle) == (0, 0)
    await eventually(lambda: transport.idle == 1)
    assert (await fetch(transport))[1] == b"next"
    assert up.connections == 1


@HTTP1
async def test_a_connection_that_lingers_in_vain_is_closed(
    transport: Http1Transport, up: FaultyUpstream
) -> None:
    up.plays(cut(answer(200, "0123456789"), 4, Hang(), of="body"))
    exchange = await begin(transport)

    exchange.close(linger_seconds=0.03)

    await eventually(lambda: up.open_connections == 0)
    assert (transport.active, transport.idle) == (0, 0)


async def test_a_stale_connection_is_replaced_silently(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(answer(200, "first"), [Close()], answer(200, "second"))
    await fetch(transport)

    assert (await fetch(transport))[1] == b"second"
    assert [request.connection for request in up.requests] == [1, 1, 2]


async def test_a_stale_connection_is_replaced_once(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(answer(200, "first")).always([Close()])
    await fetch(transport)

    assert await failure_of(begin(transport)) is FailureKind.RESET
    assert len(up.requests) == 3


@HTTP1
@pytest.mark.parametrize("sent", [b"HTTP", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["part", "interim"])
async def test_once_a_byte_has_come_nothing_is_sent_again(
    transport: AnyTransport, up: FaultyUpstream, sent: bytes
) -> None:
    up.plays(answer(200, "first"), [Send(sent), Pause(0.01), Reset()])
    await fetch(transport)

    await failure_of(begin(transport))

    assert len(up.requests) == 2


@HTTP1
async def test_a_connection_that_dies_at_work_is_not_taken_for_a_stale_one(
    transport: AnyTransport, up: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "STALE_SECONDS", 0.01)
    up.plays(answer(200, "first"), [Pause(0.03), Reset()])
    await fetch(transport)

    assert await failure_of(begin(transport)) is FailureKind.RESET
    assert len(up.requests) == 2


@HTTP1
async def test_a_body_that_cannot_be_sent_twice_gets_a_new_connection(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.always(answer(200, "ok"))
    await fetch(transport)

    await fetch(transport, UpstreamRequest("POST", "/", (), pieces(b"once")))

    assert [request.connection for request in up.requests] == [1, 2]


@HTTP1
@pytest.mark.parametrize("end", [Close(), Reset(), Send(b"garbage")], ids=["fin", "rst", "garbage"])
async def test_an_idle_connection_that_ends_or_speaks_leaves_the_pool_at_once(
    transport: Http1Transport, up: FaultyUpstream, end: Step
) -> None:
    up.plays([*answer(200, "x"), Pause(0.01), end], answer(200, "y"))
    await fetch(transport)
    assert repr(transport) == "<Http1Transport 0 active, 1 idle>"

    await eventually(lambda: transport.idle == 0)

    assert (await fetch(transport))[1] == b"y"
    assert len(up.requests) == 2


@HTTP1
async def test_an_answer_that_is_here_but_unread_does_not_cost_the_connection(
    transport: Http1Transport, up: FaultyUpstream
) -> None:
    up.plays(answer(200, b"x" * 80_000), answer(200, "next"))
    exchange = await begin(transport)
    assert isinstance(exchange, Http1Exchange)
    await eventually(lambda: exchange._connection is not None and exchange._connection.done)

    exchange.close()

    assert (exchange.complete, await fetch(transport)) == (False, (200, b"next"))
    assert up.connections == 1


@HTTP1
async def test_an_idle_connection_is_closed_after_a_while(
    transport: Http1Transport, up: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "IDLE_SECONDS", 0.02)
    up.plays(answer(200, "x"))

    await fetch(transport)

    await eventually(lambda: (transport.idle, up.open_connections) == (0, 0))


@HTTP1
async def test_the_connection_used_last_is_used_first(transport: Http1Transport, up: FaultyUpstream) -> None:
    up.always(answer(200, "x"))
    first, second = await begin(transport), await begin(transport)
    for exchange in (first, second):
        await rest(exchange)
        exchange.close()

    await fetch(transport)

    assert transport.idle == 2
    assert up.requests[-1].connection == 2


@HTTP1
async def test_an_exchange_that_is_closed_cannot_touch_the_next_one(
    transport: Http1Transport, up: FaultyUpstream
) -> None:
    up.always(answer(200, "x"))
    first = await begin(transport)
    await rest(first)
    first.close()
    second = await begin(transport)

    first.close()
    with pytest.raises(RuntimeError, match="closed"):
        await first.read(soon())

    assert (first.complete, transport.active, await rest(second)) == (True, 1, b"x")
    assert repr(second) == "<Http1Exchange 200 complete=True>"
    second.close()


# -- limits and back-pressure --------------------------------------------------------------------


async def test_beyond_its_limit_a_transport_refuses_at_once(make: Make, up: FaultyUpstream) -> None:
    up.always(answer(200, "x"))
    transport = make(up.url, max_connections=2)
    first, second = await begin(transport), await begin(transport)

    assert await failure_of(begin(transport)) is FailureKind.LOCAL
    await rest(first)
    first.close()
    assert (await fetch(transport))[1] == b"x"
    second.close()


@HTTP1
async def test_idle_connections_make_room_for_new_ones(make: Make, up: FaultyUpstream) -> None:
    up.always(answer(200, "x"))
    transport = make(up.url, max_connections=1)
    await fetch(transport)

    await fetch(transport, UpstreamRequest("POST", "/", (), pieces(b"needs a new one")))

    assert up.connections == 2
    await eventually(lambda: up.open_connections == 1)


async def test_a_reader_that_does_not_read_slows_the_server_down(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    sent = 0

    def flood(_: Received) -> Iterator[Step]:
        nonlocal sent
        yield Send(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 400:
            sent += 1
            yield Send(bytes(1 << 16))
        yield Close()

    up.plays(flood)
    exchange = await begin(transport)
    await eventually(lambda: sent > 2)

    assert await stalled(lambda: sent) < 400
    assert len(await rest(exchange)) == 400 << 16
    exchange.close()


# -- cancelling ----------------------------------------------------------------------------------


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_while_the_head_is_awaited_closes_the_connection(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays([Hang()], answer(200, "next"))
    opening = asyncio.create_task(begin(transport))
    await eventually(lambda: len(up.requests) == 1)

    await cancelled(opening)

    assert transport.active == 0
    await eventually(lambda: up.open_connections == 0)
    assert (await fetch(transport))[1] == b"next"


async def test_cancelling_while_connecting_closes_the_connection(make: Make, up: FaultyUpstream) -> None:
    up.greets([Hang()])
    transport = make(up.url.replace("http://", "https://"))
    opening = asyncio.create_task(begin(transport, connect=0.2))
    await eventually(lambda: up.open_connections == 1)

    await cancelled(opening)

    assert transport.active == 0
    await eventually(lambda: up.open_connections == 0)


@HTTP1
async def test_cancelling_while_a_name_is_looked_up_leaves_nothing(make: Make) -> None:
    released = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        released.wait(5)
        return []

    transport = make("http://slow.example", lookup=hang)
    opening = asyncio.create_task(begin(transport))
    await asyncio.sleep(0.01)

    await cancelled(opening)
    released.set()

    assert repr(transport) == "<Http1Transport 0 active, 0 idle>"


async def test_cancelling_a_read_leaves_the_exchange_as_it_was(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays(stream([b"late"], pause=0.03))
    exchange = await begin(transport)
    reading = asyncio.create_task(exchange.read(soon()))
    await asyncio.sleep(0.005)

    await cancelled(reading)

    assert await rest(exchange) == b"late"
    exchange.close()


async def test_a_storm_of_cancelled_exchanges_leaves_the_pool_as_it_was(
    make: Make, up: FaultyUpstream
) -> None:
    dice = random.Random(7)

    def moody(_: Received) -> Script:
        return dice.choice(
            [answer(200, "x"), stream([b"a", b"b"], pause=0.002), [Hang()], [Reset()], [Close()]]
        )

    up.always(moody)
    transport = make(up.url, max_connections=10)

    async def one() -> None:
        with suppress(UpstreamError):
            await fetch(transport)

    async def struck_down() -> None:
        task = asyncio.create_task(one())
        await asyncio.sleep(dice.random() * 0.006)
        task.cancel()
        await asyncio.wait([task])

    for _ in range(25):
        await asyncio.gather(*(struck_down() for _ in range(20)))
    await eventually(lambda: transport.active == 0)
    up.always(answer(200, "after the storm"))

    assert await asyncio.gather(*(fetch(transport) for _ in range(10))) == [(200, b"after the storm")] * 10
    assert up.open_connections <= 10


@HTTP1
async def test_nothing_of_a_storm_stays_open(make: Make, up: FaultyUpstream) -> None:
    before = len(os.listdir("/proc/self/fd"))
    authority = trustme.CA()
    async with FaultyUpstream(ssl=server_tls(authority)) as secure:
        secure.always([Pause(0.001), *answer(200, "x")])
        transport = make(secure.url, ssl_context=client_tls(authority))
        assert isinstance(transport, Http1Transport)
        for step in range(40):
            opening = asyncio.create_task(begin(transport))
            await asyncio.sleep(0.0003 * step)
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                opening.result().close()
        await eventually(lambda: secure.open_connections == transport.idle)

        assert transport.active == 0
        await transport.aclose()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)


async def test_closing_the_transport_ends_what_is_in_use(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays([Hang()], cut(answer(200, "0123456789"), 4, Hang(), of="body"))
    opening = asyncio.create_task(failure_of(begin(transport)))
    await eventually(lambda: len(up.requests) == 1)
    exchange = await begin(transport)
    await exchange.read(soon())

    await transport.aclose()

    assert await opening is FailureKind.RESET
    assert await failure_of(exchange.read(soon())) is FailureKind.TRUNCATED
    exchange.close()
    assert await failure_of(begin(transport)) is FailureKind.LOCAL
    await eventually(lambda: up.open_connections == 0)


@HTTP1
async def test_a_connection_that_was_being_made_is_closed_with_the_transport(
    make: Make, up: FaultyUpstream
) -> None:
    released = threading.Event()

    def late(*_: Any, **__: Any) -> list[Any]:
        released.wait(5)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", up.port))]

    transport = make("http://slow.example", lookup=late)
    opening = asyncio.create_task(failure_of(begin(transport)))
    await asyncio.sleep(0.01)

    await transport.aclose()
    released.set()

    assert await opening is FailureKind.LOCAL
    await eventually(lambda: (up.connections, up.open_connections) == (1, 0))


# -- base URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "localhost:11434", "ftp://h", "http://", "http://h:99999", "http://h:x"], ids=repr
)
async def test_what_is_no_base_url_is_a_mistake_of_the_configuration(make: Make, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(url)

    assert caught.value.key == "base_url"


# -- what only httpx does ------------------------------------------------------------------------


@HTTPX
async def test_an_answer_that_is_encoded_all_the_same_is_decoded(
    transport: AnyTransport, up: FaultyUpstream
) -> None:
    up.plays(answer(200, gzip.compress(b"plain"), {"content-encoding": "gzip", "x": "y"}))

    exchange = await begin(transport)
    body = await rest(exchange)
    exchange.close()

    assert body == b"plain"
    assert {name for name, _ in exchange.head.headers} == {b"content-type", b"x"}


@HTTPX
async def test_a_broken_encoding_is_named(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(answer(200, "not gzip", {"content-encoding": "gzip"}))
    exchange = await begin(transport)

    assert await failure_of(rest(exchange)) is FailureKind.PROTOCOL
    exchange.close()


@HTTPX
async def test_an_operator_can_see_what_is_open(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.plays(cut(answer(200, "0123456789"), 4, Hang(), of="body"))

    exchange = await begin(transport)

    assert (repr(transport), repr(exchange)) == (
        "<HttpxTransport 1 active>",
        "<HttpxExchange talking complete=False>",
    )
    exchange.close()


@HTTPX
async def test_cookies_are_neither_kept_nor_sent(transport: AnyTransport, up: FaultyUpstream) -> None:
    up.always(answer(200, headers={"set-cookie": "session=1; Path=/"}))

    await fetch(transport)
    await fetch(transport)

    assert up.requests[1].header("cookie") is None


@HTTPX
async def test_an_outbound_proxy_gets_the_absolute_form(make: Make, up: FaultyUpstream) -> None:
    up.plays(answer(200, "by proxy"))
    transport = make("http://api.example", proxy=up.url)

    assert (await fetch(transport, GET))[1] == b"by proxy"
    assert up.requests[0].target == "http://api.example/v1/models"


@HTTPX
async def test_a_proxy_that_refuses_the_tunnel_is_a_failed_connect(make: Make, up: FaultyUpstream) -> None:
    up.plays(answer(407, "who are you?"))
    transport = make("https://api.example", proxy=up.url)

    assert await failure_of(begin(transport)) is FailureKind.CONNECT
    assert (up.requests[0].method, up.requests[0].target) == ("CONNECT", "api.example:443")


@HTTPX
@pytest.mark.parametrize(
    ("options", "key"),
    [({"http2": True}, "transport"), ({"proxy": "gopher://x"}, "proxy")],
    ids=["h2", "proxy"],
)
async def test_what_httpx_cannot_do_is_said_at_the_start(
    make: Make, options: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ConfigError) as caught:
        make("http://api.example", **options)

    assert caught.value.key == key


@HTTPX
@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (httpx.ConnectTimeout("x"), FailureKind.CONNECT_TIMEOUT),
        (httpx.PoolTimeout("x"), FailureKind.LOCAL),
        (httpx.ReadTimeout("x"), FailureKind.TIMEOUT),
        (httpx.ConnectError("x"), FailureKind.CONNECT),
        (httpx.WriteError("x"), FailureKind.RESET),
        (httpx.RemoteProtocolError("x"), FailureKind.PROTOCOL),
        (httpx.TooManyRedirects("x"), FailureKind.PROTOCOL),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_of_httpx_get_our_names(make: Make, effect: Exception, expected: FailureKind) -> None:
    with respx.mock(assert_all_called=False) as router:
        router.post("http://api.example/v1/chat/completions").mock(side_effect=effect)
        transport = make("http://api.example", transport=httpx.MockTransport(router.async_handler))

        assert await failure_of(begin(transport)) is expected


@HTTPX
async def test_respx_can_stand_in_for_the_network(make: Make) -> None:
    with respx.mock() as router:
        router.post("http://api.example/v1/chat/completions").respond(201, content=b"mocked")

        assert await fetch(make("http://api.example")) == (201, b"mocked")


# -- flowing ---------------------------------------------------------------------------------


CHUNKED_HEAD: Final = Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


class Basin:
    """A sink that keeps what flows, and wants *wanted* parts of it."""

    def __init__(self, wanted: int = 1_000_000, error: Exception | None = None) -> None:
        self.parts: list[bytes] = []
        self._wanted = wanted
        self._error = error

    def __call__(self, data: bytes) -> float:
        self.parts.append(data)
        if self._error is not None:
            raise self._error
        return soon() if len(self.parts) < self._wanted else 0.0


@pytest.mark.parametrize("wanted", [1, 3, 1_000_000])
async def test_what_flows_and_what_is_read_are_together_the_whole_body(
    up: FaultyUpstream, transport: AnyTransport, wanted: int
) -> None:
    parts = [b"part %d;" % number for number in range(20)]
    chunks = [step for part in parts for step in (Send(b"%x\r\n%b\r\n" % (len(part), part)), Pause(0.002))]
    up.plays([CHUNKED_HEAD, *chunks, Send(b"0\r\n\r\n")])
    exchange = await begin(transport)
    body = b""

    while True:
        basin = Basin(wanted)
        await exchange.flow(soon(), basin)
        body += b"".join(basin.parts)
        assert len(basin.parts) <= wanted
        if not (data := await exchange.read(soon())):
            break
        body += data
    complete = exchange.complete
    exchange.close()

    assert body == b"".join(parts)
    assert complete


async def test_silence_while_it_flows_is_a_time_out(up: FaultyUpstream, transport: AnyTransport) -> None:
    up.plays([CHUNKED_HEAD, Send(b"3\r\nabc\r\n"), Hang()])
    exchange = await begin(transport)
    read = await exchange.read(soon())

    await exchange.flow(soon(0.05), Basin())
    kind = await failure_of(exchange.read(soon(0.05)))
    exchange.close()

    assert (read, kind) == (b"abc", FailureKind.TIMEOUT)


async def test_a_break_while_it_flows_is_told_to_who_reads_next(
    up: FaultyUpstream, transport: AnyTransport
) -> None:
    up.plays([CHUNKED_HEAD, Send(b"3\r\nabc\r\n"), Pause(0.02), Send(b"3\r\ndef\r\n"), Reset()])
    exchange = await begin(transport)
    basin = Basin()

    async def to_the_end() -> None:
        while True:
            await exchange.flow(soon(), basin)
            basin.parts.append(await exchange.read(soon()))

    with pytest.raises(UpstreamError) as caught:
        await to_the_end()
    exchange.close()

    assert caught.value.kind in (FailureKind.TRUNCATED, FailureKind.RESET)
    assert b"abcdef".startswith(b"".join(basin.parts))


async def test_a_mistake_in_the_sink_is_told_to_who_reads_next(
    up: FaultyUpstream, make: Make, kind: str
) -> None:
    if kind == "httpx":
        return  # nothing ever flows there
    transport = make(up.url)
    up.plays([CHUNKED_HEAD, Send(b"3\r\nabc\r\n"), Pause(0.02), Send(b"3\r\ndef\r\n"), Hang()])
    exchange = await begin(transport)
    mistake = LookupError("of the sink")

    await exchange.read(soon())
    await exchange.flow(soon(), Basin(error=mistake))
    with pytest.raises(LookupError) as caught:
        await exchange.read(soon())
    exchange.close()

    assert caught.value is mistake


async def test_cancelling_a_flow_leaves_the_exchange_as_it_was(
    up: FaultyUpstream, transport: AnyTransport
) -> None:
    up.plays([CHUNKED_HEAD, Send(b"3\r\nabc\r\n"), Pause(0.1), Send(b"3\r\ndef\r\n0\r\n\r\n")])
    exchange = await begin(transport)
    body = await exchange.read(soon())
    basin = Basin()

    flowing = asyncio.create_task(exchange.flow(soon(), basin))
    await asyncio.sleep(0)
    flowing.cancel()
    await asyncio.wait([flowing])
    body += await rest(exchange)
    exchange.close()

    assert (body, basin.parts) == (b"abcdef", [])
