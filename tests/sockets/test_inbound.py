"""A caller's connection: HTTP/1.1 on one side, ASGI on the other."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from harness import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from sentinel_proxy.inbound import Inbound
from sentinel_proxy.inbound import connection as inbound
from sentinel_proxy.wheel import Wheel

pytestmark = pytest.mark.anyio

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Served:
    """A server of one application, and what it has seen."""

    def __init__(self, app: App) -> None:
        self.config = uvicorn.Config(app, interface="asgi3", log_config=None)
        self.config.load()
        self.state = ServerState()
        self.wheel = Wheel()
        self.connections: list[Inbound] = []
        self.port = 0

    def make(self) -> Inbound:
        self.connections.append(Inbound(self.config, self.state, {}, wheel=self.wheel))
        return self.connections[-1]

    async def ask(self, *parts: bytes) -> bytes:
        """Write *parts* one after the other on one connection; return all that comes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[Served]:
    served = Served(app)
    server = await asyncio.get_running_loop().create_server(served.make, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for connection in served.connections:
            connection.transport.abort()
        await eventually(lambda: not served.state.connections and not served.state.tasks)


async def body_of(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return body


async def answer(send: Send, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what was asked."""
    names = b",".join(name for name, _ in scope["headers"])
    line = f"{scope['method']} {scope['path']}?".encode() + scope["query_string"]
    await answer(send, b"%b [%b] %b" % (line, names, await body_of(receive)))


POST = b"POST /a%20b?c=d HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /t HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
LAST = b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"

NOTHING = b"GET /n HTTP/1.1\r\nHost: x\r\nAccept: y\r\n\r\n"
ALL = POST + NOTHING + POST + CHUNKED + POST + LAST
ENDS = [match.end() for match in re.finditer(rb"\r\n\r\n|hello", ALL)]
CUTS = [*range(len(ALL)), *ENDS * 10]  # more often where something ends


class Written(asyncio.Transport):
    """A transport that keeps what is written, and reads on whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.data: list[bytes] = []
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data.append(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def bodies(wire: bytes) -> list[bytes]:
    """Return the bodies of answers that have their length in their head."""
    found = []
    while wire:
        head, _, rest = wire.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append(rest[:length])
        wire = rest[length:]
    return found


class TestRequests:
    async def test_requests_that_come_at_once_are_answered_one_by_one_and_in_order(self) -> None:
        async with serving(echo) as served:
            wire = await served.ask(POST + CHUNKED + LAST)

        assert bodies(wire) == [
            b"POST /a b?c=d [host,content-length] hello",
            b"POST /t? [transfer-encoding] abcde",
            b"GET /last? [connection] ",
        ]

    @settings(max_examples=200)
    @given(cuts=st.lists(st.sampled_from(CUTS), max_size=12))
    def test_where_the_network_cuts_does_not_matter(self, cuts: list[int]) -> None:
        parts = [ALL[start:end] for start, end in pairwise(sorted({0, *cuts, len(ALL)}))]

        async def wire() -> bytes:
            async with serving(echo) as served:
                connection, transport = served.make(), Written()
                connection.connection_made(transport)
                for part in parts:
                    connection.data_received(part)
                    await asyncio.sleep(0)
                await eventually(lambda: transport.is_closing())
                connection.connection_lost(None)
                return b"".join(transport.data)

        assert bodies(asyncio.run(wire())) == [
            b"POST /a b?c=d [host,content-length] hello",
            b"GET /n? [host,accept] ",
            b"POST /a b?c=d [host,content-length] hello",
            b"POST /t? [transfer-encoding] abcde",
            b"POST /a b?c=d [host,content-length] hello",
            b"GET /last? [connection] ",
        ]

    async def test_a_caller_that_asks_first_is_told_to_go_on(self) -> None:
        head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
        async with serving(echo) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(head)
            invitation = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"ok")
            rest = await reader.read()
            writer.close()

        assert invitation == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert bodies(rest)[0].endswith(b" ok")

    async def test_a_caller_whose_body_is_here_is_not_invited(self) -> None:
        asked = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
        async with serving(echo) as served:
            wire = await served.ask(asked)

        assert wire.startswith(b"HTTP/1.1 200 OK\r\n")

    async def test_an_offer_of_another_protocol_is_passed_over_and_its_body_kept(self) -> None:
        asked = (
            b"POST /h HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAE\r\nContent-Length: 5\r\n\r\nhello" + LAST
        )
        async with serving(echo) as served:
            wire = await served.ask(asked)

        assert bodies(wire)[0].endswith(b" hello")
        assert len(bodies(wire)) == 2

    async def test_a_websocket_that_is_asked_for_too_early_is_a_request_like_any_other(self) -> None:
        """Behind a request that is still being answered, the connection is not free to change."""
        asked = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        async with serving(echo) as served:
            wire = await served.ask(POST + asked + LAST)

        assert [body.split(b" ")[1] for body in bodies(wire)] == [b"/a", b"/ws?", b"/last?"]

    async def test_a_body_that_nobody_reads_is_not_taken_in_for_ever(self) -> None:
        read = asyncio.Event()

        async def hesitate(scope: Scope, receive: Receive, send: Send) -> None:
            await read.wait()
            await answer(send, b"%d" % len(await body_of(receive)))

        size = 4_000_000
        head = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
        async with serving(hesitate) as served:
            asking = asyncio.create_task(served.ask(head + bytes(size)))
            await eventually(lambda: served.connections and served.connections[0].read_paused)
            read.set()
            wire = await asking

        assert bodies(wire) == [b"%d" % size]

    @pytest.mark.parametrize(
        ("wire", "status"),
        [
            (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400 Bad Request"),
            (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400 Bad Request"),
            (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", b"400 Bad Request"),
            (b"CONNECT x:443 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: y\r\n\r\n", b"400 Bad Request"),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, b"431 Request Header Fields Too Large"),
        ],
        ids=["TLS", "two lengths", "a tunnel", "a tunnel with an offer", "a head without end"],
    )
    async def test_what_cannot_be_understood_is_refused(self, wire: bytes, status: bytes) -> None:
        async with serving(echo) as served:
            refusal = await served.ask(wire)

        assert refusal.startswith(b"HTTP/1.1 " + status)
        assert b'{"error":{"message":' in refusal


class TestAnswers:
    async def test_an_answer_of_unknown_length_is_chunked(self) -> None:
        async def parts(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await send({"type": "http.response.body", "body": b"three"})

        async with serving(parts) as served:
            wire = await served.ask(LAST)

        assert wire.partition(b"\r\n\r\n")[2] == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"
        assert b"transfer-encoding: chunked\r\n" in wire

    @pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204)])
    async def test_some_answers_have_no_body(self, method: bytes, status: int) -> None:
        async def empty(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"" if status == 204 else b"unsent"})

        async with serving(empty) as served:
            wire = await served.ask(method + b" / HTTP/1.1\r\nConnection: close\r\n\r\n")

        assert wire.endswith(b"\r\n\r\n")
        assert b"chunked" not in wire

    async def test_an_application_may_want_the_connection_closed(self) -> None:
        async def farewell(scope: Scope, receive: Receive, send: Send) -> None:
            await answer(send, b"bye", 200, (b"connection", b"close"))

        async with serving(farewell) as served:
            wire = await served.ask(b"GET / HTTP/1.1\r\n\r\n")

        assert wire.count(b"connection: close") == 1

    async def test_an_old_caller_is_not_kept_waiting_for_more(self) -> None:
        async with serving(echo) as served:
            wire = await served.ask(b"GET / HTTP/1.0\r\n\r\n")

        assert b"connection: close\r\n" in wire

    @pytest.mark.parametrize("body", [b"too long", b"s"], ids=["too long", "too short"])
    async def test_an_answer_that_is_not_as_long_as_it_says_does_not_look_whole(self, body: bytes) -> None:
        async def lie(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
            with pytest.raises(RuntimeError):
                await send({"type": "http.response.body", "body": body})

        async with serving(lie) as served:
            wire = await served.ask(b"GET / HTTP/1.1\r\n\r\n")

        assert wire.partition(b"\r\n\r\n")[2] == b""

    @pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nx: y", b"a\0b"])
    async def test_no_header_can_smuggle_another(self, value: bytes) -> None:
        async def smuggle(scope: Scope, receive: Receive, send: Send) -> None:
            with pytest.raises(RuntimeError):
                await answer(send, b"", 200, (b"x-evil", value))

        async with serving(smuggle) as served:
            wire = await served.ask(b"GET / HTTP/1.1\r\n\r\n")

        assert wire.startswith(b"HTTP/1.1 500 ")
        assert b"x-evil" not in wire

    async def test_an_application_that_does_not_answer_is_answered_for(self) -> None:
        async def silent(scope: Scope, receive: Receive, send: Send) -> None:
            pass

        async with serving(silent) as served:
            wire = await served.ask(b"GET / HTTP/1.1\r\n\r\n")

        assert wire.startswith(b"HTTP/1.1 500 ")

    async def test_a_slow_reader_is_waited_for(self) -> None:
        wrote: list[Any] = []

        async def flood(scope: Scope, receive: Receive, send: Send) -> None:
            write: Callable[[bytes], bool] = send.write  # type: ignore[attr-defined]
            wrote.append(write(b"too early"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            wrote.append(write(b"still too early"))
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            while write(bytes(65_536)):
                pass
            wrote.append("full")
            await send({"type": "http.response.body", "body": b"last"})
            wrote.append("sent")

        async with serving(flood) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(LAST)
            await eventually(lambda: "full" in wrote)
            before = list(wrote)
            wire = await reader.read()
            writer.close()

        assert before == [False, False, "full"]
        assert wrote == [False, False, "full", "sent"]
        assert wire.endswith(b"4\r\nlast\r\n0\r\n\r\n")

    async def test_who_waits_hears_that_the_caller_has_left(self) -> None:
        heard: list[str] = []

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            await body_of(receive)
            heard.append((await receive())["type"])
            await answer(send, b"to nobody")
            assert send.write(b"neither") is False  # type: ignore[attr-defined]
            heard.append("no error")

        async with serving(wait) as served:
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(POST)
            await eventually(lambda: served.state.tasks)
            writer.close()
            await eventually(lambda: len(heard) == 2)

        assert heard == ["http.disconnect", "no error"]

    async def test_a_hang_up_is_told_once_and_only_before_the_answer_is_complete(self) -> None:
        told: list[str] = []
        leave = asyncio.Event()

        async def watch(scope: Scope, receive: Receive, send: Send) -> None:
            await body_of(receive)
            send.when_gone(lambda: told.append(scope["path"]))  # type: ignore[attr-defined]
            if scope["path"] == "/waits":
                await leave.wait()
                send.when_gone(lambda: told.append("late"))  # type: ignore[attr-defined]
            await answer(send, b"")

        async with serving(watch) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"GET /answered HTTP/1.1\r\n\r\nGET /waits HTTP/1.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await eventually(lambda: told)
            before = list(told)
            leave.set()
            await eventually(lambda: not served.state.tasks)

        assert before == ["/waits"]
        assert told == ["/waits", "late"]


class TestTime:
    async def test_half_a_head_is_not_waited_for_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inbound, "HEAD_SECONDS", 0.05)
        async with serving(echo) as served:
            assert await served.ask(b"GET / HTT") == b""

    async def test_a_connection_that_nobody_uses_is_closed(self) -> None:
        async with serving(echo) as served:
            served.config.timeout_keep_alive = 0  # rounded up to the next tick
            wire = await served.ask(POST)

        assert len(bodies(wire)) == 1

    async def test_an_answer_may_take_longer_than_idleness_may_last(self) -> None:
        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            connection = served.connections[0]
            await eventually(lambda: connection._alarm is not alarms[0])
            await answer(send, b"at last")

        async with serving(slow) as served:
            served.config.timeout_keep_alive = 0
            alarms: list[Any] = []
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            await eventually(lambda: served.connections and served.connections[0]._alarm is not None)
            alarms.append(served.connections[0]._alarm)
            assert alarms[0] is not None
            writer.write(POST)
            await eventually(lambda: served.state.tasks)
            alarms[0].move(0.0)
            wire = await reader.read()
            writer.close()

        assert bodies(wire) == [b"at last"]

    async def test_a_shutdown_lets_an_answer_finish_and_closes_what_is_idle(self) -> None:
        finish = asyncio.Event()

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            await finish.wait()
            await answer(send, b"finished")

        async with serving(wait) as served:
            idle_reader, idle = await asyncio.open_connection("127.0.0.1", served.port)
            await eventually(lambda: served.connections)
            asking = asyncio.create_task(served.ask(b"GET / HTTP/1.1\r\n\r\n"))
            await eventually(lambda: served.state.tasks)
            for connection in list(served.connections):
                connection.shutdown()
            closed = await idle_reader.read()
            finish.set()
            wire = await asking
            idle.close()

        assert closed == b""
        assert bodies(wire) == [b"finished"]
