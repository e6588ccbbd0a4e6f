"""Where the network cuts an answer does not matter, and no bytes whatever break the connection's rules."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import ReplyHead
from sentinel_proxy.upstream.connection import READ_AHEAD_BYTES, Connection
from sentinel_proxy.wheel import Wheel

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


class FakeTransport(asyncio.Transport):
    """Takes what is written and remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def on_a_loop(test: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(test())


def begun() -> tuple[Connection, FakeTransport]:
    connection, transport = Connection(Wheel(), lambda _: None), FakeTransport()
    connection.connection_made(transport)
    connection.begin(b"GET / HTTP/1.1\r\n\r\n", b"", head_only=False)
    return connection, transport


def drained(connection: Connection) -> tuple[bytes, FailureKind | None]:
    """Take what is there; return it, and what went wrong behind it."""
    body = b""
    try:
        while data := connection.take():
            body += data
    except UpstreamError as error:
        return body, error.kind
    return body, None


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]


Outcome = tuple[ReplyHead | None, bytes, FailureKind | None, bool, bool]


def outcome(parts: list[bytes], *, eof: bool, interleaved: bool = False) -> Outcome:
    """Feed *parts* as the loop would; return head, body, failure, done, reusable."""

    async def feed() -> Outcome:
        connection, transport = begun()
        body = b""
        for part in parts:
            if transport.aborted:
                break
            connection.data_received(part)
            if interleaved and connection.chunks:
                body += connection.take()
        if eof and not transport.aborted:
            connection.eof_received()
        reusable = connection.reusable
        more, failure = drained(connection)
        connection.connection_lost(None)
        return connection.head, body + more, failure, connection.done, reusable

    return on_a_loop(feed)


bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def chunked(parts: list[bytes]) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\nX-Trailer: 1\r\n\r\n"


def with_length(parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def until_close(parts: list[bytes]) -> bytes:
    return OK + b"\r\n" + b"".join(parts)


framings = st.sampled_from([chunked, with_length, until_close])
interim = st.sampled_from(
    [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
)


@given(
    parts=bodies,
    framing=framings,
    before=interim,
    cuts=st.lists(st.integers(0), max_size=20),
    stop=st.booleans(),
)
def test_any_cut_of_an_answer_gives_the_same_answer(
    parts: list[bytes],
    framing: Callable[[list[bytes]], bytes],
    before: bytes,
    cuts: list[int],
    stop: bool,
) -> None:
    wire = before + framing(parts)
    eof = framing is until_close

    head, body, failure, done, reusable = outcome(cut_at(wire, cuts), eof=eof, interleaved=stop)

    assert head is not None
    assert (head.status, head.headers[0]) == (200, (b"content-type", b"text/plain"))
    assert (b"x-trailer", b"1") not in head.headers
    assert (body, failure, done, reusable) == (b"".join(parts), None, True, not eof)


@given(parts=bodies, framing=st.sampled_from([chunked, with_length]), data=st.data())
def test_an_answer_that_stops_early_is_never_taken_for_a_whole_one(
    parts: list[bytes], framing: Callable[[list[bytes]], bytes], data: st.DataObject
) -> None:
    wire = framing(parts)
    sent = wire[: data.draw(st.integers(0, len(wire) - 1))]
    cuts = data.draw(st.lists(st.integers(0), max_size=5))

    head, body, failure, done, reusable = outcome(cut_at(sent, cuts), eof=True)

    expected = FailureKind.TRUNCATED if head else FailureKind.PROTOCOL if sent else FailureKind.RESET
    assert (failure, done, reusable) == (expected, False, False)
    assert b"".join(parts).startswith(body)


@given(parts=bodies, framing=framings, extra=st.binary(min_size=1).filter(lambda data: data.strip(b"\r\n")))
def test_whatever_comes_behind_an_answer_spoils_the_connection_but_not_the_answer(
    parts: list[bytes], framing: Callable[[list[bytes]], bytes], extra: bytes
) -> None:
    wire = framing(parts) + extra
    head, body, failure, done, reusable = outcome([wire], eof=True)

    expected = b"".join(parts) + (extra if framing is until_close else b"")
    assert head is not None
    assert (body, failure, done, reusable) == (expected, None, True, False)


@given(parts=st.lists(st.binary(), max_size=10), prefix=st.sampled_from([b"", OK, chunked([b"abc"])[:-20]]))
def test_no_bytes_whatever_raise_anything_but_our_error(parts: list[bytes], prefix: bytes) -> None:
    for eof in (False, True):
        head, _, failure, done, _ = outcome([prefix, *parts], eof=eof)

        if eof:
            assert done is (failure is None)
            assert head is not None or failure is not None


@given(sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=12))
def test_reading_is_paused_once_enough_is_unread_and_goes_on_when_it_is_taken(sizes: list[int]) -> None:
    async def feed() -> None:
        connection, transport = begun()
        connection.data_received(OK + b"\r\n")
        unread = len(OK) + 2
        for size in sizes:
            connection.data_received(bytes(size))
            unread += size
            assert transport.reading is (unread <= READ_AHEAD_BYTES)
            if not transport.reading:
                connection.take()
                unread = 0
                assert transport.reading

    on_a_loop(feed)


def test_a_connection_that_ended_meanwhile_sends_nothing_and_says_so() -> None:
    async def use() -> tuple[bytes, tuple[bytes, FailureKind | None]]:
        connection, transport = Connection(Wheel(), lambda _: None), FakeTransport()
        connection.connection_made(transport)
        connection.eof_received()
        connection.begin(b"GET / HTTP/1.1\r\n\r\n", b"", head_only=False)
        return transport.written, drained(connection)

    assert on_a_loop(use) == (b"", (b"", FailureKind.RESET))
