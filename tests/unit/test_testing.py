"""The clock that moves by hand and the upstream that fails on cue do what their scripts say."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trustme

from sentinel_proxy import testing
from sentinel_proxy.model import Usage
from sentinel_proxy.testing import (
    Close,
    FakeClock,
    FaultyUpstream,
    HalfClose,
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
    stream,
)

pytestmark = pytest.mark.anyio

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def up() -> AsyncIterator[FaultyUpstream]:
    async with FaultyUpstream() as upstream:
        yield upstream


@pytest.fixture
async def connect(up: FaultyUpstream) -> AsyncIterator[Callable[[], Awaitable[Peer]]]:
    """Open plain TCP connections to the upstream; all are closed at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def open_one() -> Peer:
        peer = await asyncio.open_connection("127.0.0.1", up.port)
        writers.append(peer[1])
        return peer

    yield open_one
    for writer in writers:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the loop run until *condition* holds; a second is more than it ever needs."""
    deadline = asyncio.get_running_loop().time() + 1
    while not condition() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - any condition
        await asyncio.sleep(0.001)
    assert condition()


async def ask(peer: Peer, request: bytes = GET) -> bytes:
    """Send *request* and return all that comes until the connection ends."""
    peer[1].write(request)
    return await peer[0].read()


def wire(script: Script) -> bytes:
    return b"".join(step.data for step in script if isinstance(step, Send))


def body(script: Script) -> bytes:
    return wire(script).partition(b"\r\n\r\n")[2]


# -- the clock -------------------------------------------------------------------------------


async def test_a_fake_clock_notes_each_sleep_and_advances_by_it() -> None:
    clock = FakeClock(monotonic=10, time=1000)

    await clock.sleep(2.5)
    await clock.sleep(0)
    clock.advance(1)

    assert (clock.sleeps, clock.monotonic(), clock.time()) == ([2.5, 0], 13.5, 1003.5)
    assert repr(clock) == "<FakeClock 13.500>"


async def test_a_fake_clock_never_goes_back() -> None:
    clock = FakeClock(monotonic=10)

    await clock.sleep(-1)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)

    assert clock.monotonic() == 10


# -- requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ("Content-Length: 5", b"hello"),
        ("Transfer-Encoding: chunked", b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: t\r\n\r\n"),
    ],
    ids=["content-length", "chunked"],
)
async def test_a_request_is_recorded_as_it_arrived(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]], framing: str, sent: bytes
) -> None:
    head = (
        f"POST /a?b=c HTTP/1.1\r\nX-Twice: 1\r\nx-twice: 2\r\nConnection: close\r\n{framing}\r\n\r\n".encode()
    )

    await ask(await connect(), head + sent)

    (request,) = up.requests
    assert (request.method, request.target, request.body) == ("POST", "/a?b=c", b"hello")
    assert request.headers[:2] == [(b"X-Twice", b"1"), (b"x-twice", b"2")]
    assert (request.header("X-TWICE"), request.header("absent")) == ("1", None)
    assert request.raw == head + sent
    assert request.connection == 1
    assert repr(request) == "<Received POST /a?b=c on connection 1>"
    assert request.arrived <= asyncio.get_running_loop().time()


async def test_json_bodies_can_be_read(up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]) -> None:
    up.plays([Close()])

    await ask(await connect(), b'POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\n{"a":1}')

    assert up.requests[0].json() == {"a": 1}


async def test_garbage_ends_the_connection_and_counts_as_no_request(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    assert await ask(await connect(), b"garbage\r\n\r\n") == b""
    assert up.requests == []


# -- what is played --------------------------------------------------------------------------


async def test_scripts_are_played_in_order_and_then_the_standing_one(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.plays(answer(200, "one"), answer(201, "two")).always(answer(202, "rest", framing="close"))
    reader, writer = await connect()

    writer.write(GET * 3)
    seen = await reader.read()

    assert seen == wire(answer(200, "one")) + wire(answer(201, "two")) + wire(
        answer(202, "rest", framing="close")
    )
    assert [request.connection for request in up.requests] == [1, 1, 1]


async def test_a_function_sees_the_request_and_makes_the_script(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    def echo(request: Received) -> Iterator[Step]:
        yield Send(request.target.encode())
        yield Close()

    up.always(echo)

    assert await ask(await connect()) == b"/x"


async def test_without_a_script_the_answer_says_so(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    seen = await ask(await connect(), b"GET / HTTP/1.0\r\n\r\n")

    assert seen.startswith(b"HTTP/1.1 500 ")
    assert b"nothing was scripted" in seen


async def test_a_greeting_is_played_before_any_request(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.greets([Send(b"unasked"), Close()])

    reader, _ = await connect()

    assert await reader.read() == b"unasked"
    assert up.requests == []


@pytest.mark.parametrize("asked", ["connection: close", "HTTP/1.0"], ids=str)
async def test_a_request_can_ask_for_the_last_answer(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]], asked: str
) -> None:
    request = GET.replace(b"HTTP/1.1", b"HTTP/1.0") if asked == "HTTP/1.0" else GET
    if asked != "HTTP/1.0":
        request = request.replace(b"Host: h", b"Connection: close")
    up.plays(answer(200, "bye"))

    assert await ask(await connect(), request) == wire(answer(200, "bye"))


# -- the steps -------------------------------------------------------------------------------


async def test_reset_is_a_tcp_reset(up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]) -> None:
    up.plays([Reset()])

    with pytest.raises(ConnectionResetError):
        await ask(await connect())


async def test_bytes_sent_before_a_reset_still_arrive(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.plays([Send(b"partial"), Pause(0.01), Reset()])
    reader, writer = await connect()
    writer.write(GET)

    assert await reader.readexactly(7) == b"partial"
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_hang_lasts_until_the_peer_goes(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.plays([Send(b"x"), Hang(), Send(b"never")])
    reader, writer = await connect()
    writer.write(GET)
    await reader.readexactly(1)

    assert up.open_connections == 1
    writer.close()

    await eventually(lambda: up.open_connections == 0)


async def test_after_half_close_the_peer_may_go_on_writing(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.plays([HalfClose()], [Hang()])
    reader, writer = await connect()

    assert await ask((reader, writer)) == b""
    writer.write(GET)

    await eventually(lambda: len(up.requests) == 2)


async def test_unread_answers_while_the_body_is_still_coming(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.plays([Unread(), *answer(413, "too large")])
    reader, writer = await connect()

    writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\nonly a part")
    head = await reader.readuntil(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 413 ")
    assert up.requests[0].body == b""


async def test_a_send_waits_for_a_peer_that_does_not_read(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    played = 0

    def flood(_: Received) -> Iterator[Step]:
        nonlocal played
        while True:
            played += 1
            yield Send(bytes(1 << 16))

    up.plays(flood)
    reader, writer = await connect()
    writer.write(GET)
    await reader.readexactly(1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.05)
    before = played
    await asyncio.sleep(0.02)

    assert played == before


# -- the server ------------------------------------------------------------------------------


async def test_after_stop_listening_connects_are_refused_and_open_connections_live(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.always(answer(200, "still here"))
    reader, writer = await connect()
    writer.write(GET)
    await reader.readuntil(b"still here")

    await up.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        await connect()
    writer.write(GET)
    await reader.readuntil(b"still here")
    await up.listen_again()
    await connect()

    await eventually(lambda: up.connections == 2)


async def test_dropping_connections_resets_them_all(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    peers = [await connect(), await connect()]
    await eventually(lambda: up.open_connections == 2)

    up.drop_connections()

    for reader, _ in peers:
        with pytest.raises(ConnectionResetError):
            await reader.read()
    assert (up.connections, up.open_connections) == (2, 0)


async def test_it_knows_which_connection_is_still_open(
    up: FaultyUpstream, connect: Callable[[], Awaitable[Peer]]
) -> None:
    up.always([Hang()])
    leaves, stays = await connect(), await connect()
    for _, writer in (leaves, stays):
        writer.write(GET)
    await eventually(lambda: len(up.requests) == 2)
    first, second = up.requests

    leaves[1].close()

    await eventually(lambda: not up.is_open(first.connection))
    assert up.is_open(second.connection)
    assert not up.is_open(3)


async def test_leaving_the_context_closes_everything() -> None:
    before = asyncio.all_tasks()
    async with FaultyUpstream() as up:
        up.always([Hang()])
        reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
        writer.write(GET)
        await eventually(lambda: bool(up.requests))

    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", up.port)
    assert (up.open_connections, asyncio.all_tasks()) == (0, before)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_an_upstream_takes_the_port_it_is_given() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async with FaultyUpstream(port) as up:
        assert up.url == f"http://127.0.0.1:{port}"
        assert repr(up) == "<FaultyUpstream 0 requests, 0 open connections>"


async def test_a_taken_port_is_an_error_and_leaks_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(OSError, match="in use"):
            await FaultyUpstream(taken.getsockname()[1]).__aenter__()


async def test_it_speaks_tls() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)

    async with FaultyUpstream(ssl=server) as up:
        up.plays([Send(b"secret"), HalfClose()])
        peer = await asyncio.open_connection("127.0.0.1", up.port, ssl=client)
        seen = await ask(peer)
        peer[1].close()
        await peer[1].wait_closed()

    assert seen == b"secret"
    assert up.url.startswith("https://")


# -- the builders ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (answer(200, "hé"), b"content-length: 3\r\n\r\nh\xc3\xa9"),
        (answer(204, framing="close"), b"connection: close\r\n\r\n"),
        (answer(200, b"ab", framing="chunked"), b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        (stream([b"a", b"bc"], framing="length"), b"content-length: 3\r\n\r\nabc"),
        (stream([b"a"], framing="close"), b"connection: close\r\n\r\na"),
    ],
    ids=["length", "empty-close", "chunked", "stream-length", "stream-close"],
)
def test_an_answer_is_framed_as_asked(script: Script, expected: bytes) -> None:
    assert wire(script).endswith(expected)


def test_headers_of_an_answer_replace_the_defaults() -> None:
    head = wire(answer(200, headers={"Content-Type": "text/html", "x": "y"}))

    assert b"content-type: text/html\r\nx: y\r\n" in head
    assert b"text/plain" not in head


def test_a_stream_can_pause_before_each_chunk() -> None:
    script = stream([b"a", b"b"], pause=0.5)

    assert [type(step) for step in script] == [Send, Pause, Send, Pause, Send, Send]


@pytest.mark.parametrize("at", [0, 1, 40, 10_000], ids=str)
def test_cut_keeps_the_first_bytes_of_the_wire(at: int) -> None:
    script = stream([b"one", b"two"], framing="close", pause=1)

    broken = cut(script, at)

    assert wire(broken) == wire(script)[:at]
    assert broken[-1] == Reset()
    assert Close() not in broken


def test_cut_can_count_from_the_body_and_end_otherwise() -> None:
    broken = cut(answer(200, "0123456789"), 4, Close(), of="body")

    assert (body(broken), broken[-1]) == (b"0123", Close())


def test_an_openai_completion_has_the_shape_of_the_api() -> None:
    payload = json.loads(body(testing.openai_completion("Hi", usage=Usage(3, 1))))

    assert payload["object"] == "chat.completion"
    assert payload["choices"][0]["message"]["content"] == "Hi"
    assert payload["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def test_an_openai_stream_is_role_tokens_finish_usage_done() -> None:
    events = testing.openai_chunks(["a", "b"], usage=Usage(3, 2))

    payloads = [json.loads(event[6:]) for event in events[:-1]]
    deltas = [p["choices"][0]["delta"] for p in payloads[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}]
    assert payloads[-2]["choices"][0]["finish_reason"] == "stop"
    assert (payloads[-1]["choices"], payloads[-1]["usage"]["total_tokens"]) == ([], 5)
    assert all(p["usage"] is None for p in payloads[:-1])
    assert events[-1] == b"data: [DONE]\n\n"


def test_an_openai_stream_can_be_left_unfinished() -> None:
    assert len(testing.openai_chunks(["a"], role=False, finish_reason=None, done=False)) == 1


def test_streams_of_both_dialects_are_http_answers() -> None:
    openai, ollama = testing.openai_stream(["a"]), testing.ollama_stream(["a"], thinking=["hm"])

    assert b"content-type: text/event-stream; charset=utf-8\r\n" in wire(openai)
    assert b"content-type: application/x-ndjson\r\n" in wire(ollama)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "server_error"), (503, "server_error")],
    ids=str,
)
def test_an_openai_error_is_an_envelope(status: int, kind: str) -> None:
    error = json.loads(body(testing.openai_error(status, "a_code", param="model")))["error"]

    assert (error["type"], error["code"], error["param"]) == (kind, "a_code", "model")


def test_ollama_lines_end_with_the_counts() -> None:
    lines = [json.loads(line) for line in testing.ollama_lines(["a"], thinking=["hm"])]

    assert [line["done"] for line in lines] == [False, False, True]
    assert lines[0]["message"]["thinking"] == "hm"
    assert (lines[-1]["done_reason"], lines[-1]["prompt_eval_count"], lines[-1]["eval_count"]) == (
        "stop",
        7,
        2,
    )
    assert all(
        line["done"] is False for line in map(json.loads, testing.ollama_lines(["a"], done_reason=None))
    )


@pytest.mark.parametrize(
    ("script", "key", "value"),
    [
        (testing.openai_models("m"), "object", "list"),
        (testing.ollama_completion("Hi"), "message", {"role": "assistant", "content": "Hi"}),
        (testing.ollama_error(404, "model 'x' not found"), "error", "model 'x' not found"),
        (testing.ollama_show("completion"), "capabilities", ["completion"]),
        (testing.ollama_version("0.30.0"), "version", "0.30.0"),
    ],
    ids=["models", "completion", "error", "show", "version"],
)
def test_json_answers_carry_what_they_name(script: Script, key: str, value: object) -> None:
    assert json.loads(body(script))[key] == value


def test_ollama_lists_models_with_their_tag() -> None:
    tags, loaded = (
        json.loads(body(script))["models"]
        for script in (testing.ollama_tags("llama3.2", "qwen3:8b"), testing.ollama_ps("qwen3:8b"))
    )

    assert [model["name"] for model in tags] == ["llama3.2:latest", "qwen3:8b"]
    assert loaded[0]["context_length"] == 8192
