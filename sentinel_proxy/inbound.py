"""
One HTTP/1.1 connection of a caller: what the server hands requests to.

A protocol for uvicorn's server, which accepts, counts and closes connections and runs the
lifespan; it stands in the place of uvicorn's own because it does less for each call, and because
it can do three things more: an answer's head and the first of its body leave in one write, a stream
can be written from wherever its bytes arrive, without waking the task that serves the call
(`Turn.write`), and a hang-up is told without a task that waits for it (`Turn.when_gone`).
Everything else about it is ASGI. The reasons and the figures are in
docs/decisions/0016-own-server-protocol.md.

`Inbound` is the connection: parsing, the order of requests, time limits. `Turn` is one request and
its answer. Requests that come while one is being answered wait, and reading pauses meanwhile.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.types import ASGIApp, Message, Scope
from uvicorn import Config
from uvicorn.server import ServerState

from sentinel_proxy.model import Header, Headers, header
from sentinel_proxy.wheel import Alarm, Wheel

HEAD_SECONDS: Final = 30.0
"""For the head of a connection's first request, or the rest of any other's, to arrive."""

MAX_HEAD_BYTES: Final = 65_536
"""Of request line and headers; llhttp has no limit. h11 stops at 100 KiB, Node at 16 KiB, nginx at 32."""

READ_AHEAD_BYTES: Final = 65_536
"""Unread bytes of a body at which the socket is paused."""

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}
_NOTHING: Final = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_BODYLESS: Final = frozenset((204, 304))
_CHUNKED: Final = (b"transfer-encoding", b"chunked")
_CLOSE: Final = (b"connection", b"close")
_DISCONNECTED: Final[Message] = {"type": "http.disconnect"}
_MAX_CACHED_TARGET_BYTES: Final = 256


class Inbound(asyncio.Protocol):
    """
    A connection and the requests that come on it, answered one at a time and in order.

    Args:
        server_state: The server's book of connections and tasks.
        app_state: What the lifespan has left for requests.
        wheel: Where its one alarm waits.
    """

    __slots__ = (
        "_alarm",
        "_app",
        "_app_state",
        "_asgi",
        "_client",
        "_config",
        "_head_bytes",
        "_headers",
        "_idle_seconds",
        "_loop",
        "_parser",
        "_reading",
        "_server",
        "_target",
        "_turn",
        "_waiting",
        "_wheel",
        "lost",
        "read_paused",
        "state",
        "transport",
        "writable",
        "write_paused",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        wheel: Wheel,
    ) -> None:
        self._config = config
        self._app = cast(ASGIApp, config.loaded_app)
        self._app_state = app_state
        self._asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        self._idle_seconds = config.timeout_keep_alive
        self._wheel = wheel
        self._loop = _loop if _loop is not None else asyncio.get_running_loop()
        self._parser = _new_parser(self)
        self._alarm: Alarm | None = None
        self._target = b""
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._reading: Turn | None = None  # whose body the parser is in
        self._turn: Turn | None = None  # that is being answered
        self._waiting: deque[Turn] = deque()
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self.state = server_state
        self.transport: asyncio.Transport
        self.lost = False
        self.read_paused = False
        self.write_paused = False
        self.writable: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Inbound {'lost' if self.lost else 'idle' if self._turn is None else 'busy'}>"

    # -- what the server and the turns do -----------------------------------------------------

    def shutdown(self) -> None:
        """Close as soon as what is being answered has been."""
        if self._turn is None:
            self.transport.close()
        else:
            self._turn.keep_alive = False

    def answered(self, turn: "Turn") -> None:
        """Go on with what comes after *turn*."""
        self.state.total_requests += 1
        self._turn = None
        if self.transport.is_closing():
            return
        if not turn.keep_alive:
            self.transport.close()
            return
        if self._waiting:
            self._serve(self._waiting.popleft())
        else:
            self._rest(self._idle_seconds)
        self.resume_reading()

    def pause_reading(self) -> None:
        if not self.read_paused and not self.lost:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and not self.lost and not self._waiting:
            self.read_paused = False
            self.transport.resume_reading()

    # -- what the event loop calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self.state.connections.add(cast(Any, self))
        self._rest(HEAD_SECONDS)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.state.connections.discard(cast(Any, self))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for turn in (self._turn, self._reading):
            if turn is not None:
                turn.leave()
        self._waiting.clear()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._reading is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._wants_websocket():
                self._become_websocket()
            else:
                self._stay(data[upgrade.args[0] :])
            return
        except HttpParserError:
            self._refuse(400, b"what came is not HTTP")
            return
        if self._reading is None and self._head_bytes:
            self._head_is_coming(len(data))

    # -- what the parser calls ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is None:  # else a trailer: nobody is told of them
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        self._head_bytes = 0
        if parser.should_upgrade():
            return  # the parser stops here
        method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        target = self._target
        split = _split_cached if len(target) <= _MAX_CACHED_TARGET_BYTES else _split
        path, raw_path, query = split(target)
        scope: Scope = {
            "type": "http",
            "asgi": self._asgi,
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "root_path": "",
            "method": method,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
        }
        turn = Turn(self, scope, keep_alive=version != "1.0" and parser.should_keep_alive())
        self._reading = turn
        if self._turn is None:
            self._serve(turn)
        else:
            self._waiting.append(turn)
            self.pause_reading()

    def on_body(self, data: bytes) -> None:
        if self._reading is not None:
            self._reading.take(data)

    def on_message_complete(self) -> None:
        if self._reading is not None:
            turn, self._reading = self._reading, None
            turn.end()

    # -- inside -------------------------------------------------------------------------------

    def _serve(self, turn: "Turn") -> None:
        self._turn = turn
        tasks = self.state.tasks
        task = self._loop.create_task(turn.run(self._app))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _rest(self, seconds: float) -> None:
        """Close unless a request is there within *seconds*."""
        due = self._loop.time() + seconds
        if self._alarm is None:
            self._alarm = self._wheel.set(due, self._too_late)
        else:
            self._alarm.move(due)

    def _too_late(self) -> None:
        self._alarm = None
        if self._turn is None:
            self.transport.close()
        else:
            self._rest(self._idle_seconds)  # cheaper to look again than to cancel it for every call

    def _head_is_coming(self, last_bytes: int) -> None:
        """See to it that the rest of a head that has begun comes soon, and is not too large."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, b"the head of the request is too large")
        elif self._head_bytes == last_bytes and self._turn is None:
            self._rest(HEAD_SECONDS)

    def _stay(self, rest: bytes) -> None:
        """
        Take a request that offers another protocol for what it is without the offer (RFC 9110 §7.8).

        The parser stops behind such a head and would take a body for that protocol; Java's client
        offers HTTP/2 with every first call.
        """
        parser = self._parser
        head = [parser.get_method(), b" ", self._target, b" HTTP/1.1\r\n"]
        head += [b"%b: %b\r\n" % pair for pair in self._headers if pair[0] != b"upgrade"]
        self._parser = _new_parser(self)
        self.data_received(b"".join((*head, b"\r\n", rest)))

    def _refuse(self, status: int, message: bytes) -> None:
        """End a connection that cannot be understood; what is being answered is cut off with it."""
        if self._turn is None and not self.transport.is_closing():
            body = (
                b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}'
                % message
            )
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(_STATUS_LINES[status] + head % len(body) + body)
        self.transport.close()

    def _wants_websocket(self) -> bool:
        """Whether the request is one for a WebSocket (RFC 6455 §4.1), and there are any here."""
        if self._config.ws_protocol_class is None:
            return False
        return (header(self._headers, b"upgrade") or b"").lower() == b"websocket"

    def _become_websocket(self) -> None:
        """Hand the connection over, with the request that asked for it written anew."""
        self.state.connections.discard(cast(Any, self))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        head = [self._parser.get_method(), b" ", self._target, b" HTTP/1.1\r\n"]
        head += [b"%b: %b\r\n" % pair for pair in self._headers]
        live = cast(Any, self._config.ws_protocol_class)(
            config=self._config, server_state=self.state, app_state=self._app_state
        )
        live.connection_made(self.transport)
        live.data_received(b"".join((*head, b"\r\n")))
        self.transport.set_protocol(live)


class Turn:
    """
    One request and its answer; called as ASGI's `send`.

    Attributes:
        keep_alive: Whether another request may follow on the connection.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_ended",
        "_chunked",
        "_complete",
        "_connection",
        "_end_told",
        "_expected_bytes",
        "_gone",
        "_head",
        "_head_only",
        "_invited",
        "_news",
        "_scope",
        "_started",
        "keep_alive",
    )

    def __init__(self, connection: Inbound, scope: Scope, *, keep_alive: bool) -> None:
        self._connection = connection
        self._scope = scope
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_ended = False
        self._end_told = False
        self._invited = False
        self._news: asyncio.Future[None] | None = None
        self._gone: Callable[[], None] | None = None
        self._head = b""  # of the answer; leaves with the first of its body
        self._head_only = scope["method"] == "HEAD"
        self._started = False
        self._complete = False
        self._chunked = False
        self._expected_bytes = 0
        self.keep_alive = keep_alive

    def __repr__(self) -> str:
        state = "complete" if self._complete else "begun" if self._started else "open"
        return f"<Turn {self._scope['method']} {self._scope['path']}, {state}>"

    async def run(self, app: ASGIApp) -> None:
        """Let *app* answer. One that does not, or not to the end, loses its connection."""
        try:
            await app(self._scope, self.receive, self)
        finally:
            connection = self._connection
            if not self._complete and not connection.lost:
                connection.transport.write(self._head if self._started else _NOTHING)
                connection.transport.close()

    # -- the request --------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """Keep a part of the body, unless nobody wants it any more."""
        if self._complete:
            return
        self._body.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > READ_AHEAD_BYTES:
            self._connection.pause_reading()
        self.wake()

    def end(self) -> None:
        """The body is complete."""
        self._body_ended = True
        self.wake()

    def wake(self) -> None:
        """There is news for `receive`."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def leave(self) -> None:
        """The caller has left."""
        self.wake()
        if self._gone is not None:
            tell, self._gone = self._gone, None
            tell()

    def when_gone(self, tell: Callable[[], None]) -> None:
        """
        Call *tell* if the caller leaves before it has its answer, instead of having a task `receive` that.

        For who has read the body: what still comes of it is taken in without anybody looking.
        """
        if self._connection.lost:
            tell()
        elif not self._complete:
            self._gone = tell
            self._connection.resume_reading()

    async def receive(self) -> Message:
        """
        Return the next of the request's body, or that the caller has left or has its answer.

        One may wait at a time.
        """
        connection = self._connection
        if not self._body_ended and not self._body:
            self._invite()
        while not (self._body or self._complete or connection.lost):
            if self._body_ended and not self._end_told:
                break
            connection.resume_reading()
            self._news = asyncio.get_running_loop().create_future()
            try:
                await self._news
            finally:
                self._news = None
        if self._complete or connection.lost:
            return _DISCONNECTED
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._body_bytes = 0
        self._end_told = self._body_ended
        return {"type": "http.request", "body": body, "more_body": not self._body_ended}

    def _invite(self) -> None:
        """Tell a caller that has asked first to go on with its body (RFC 9110 §10.1.1), once."""
        if self._invited or self._started:
            return
        self._invited = True
        expected = header(self._scope["headers"], b"expect")
        if expected is not None and expected.lower() == b"100-continue":
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # -- the answer ---------------------------------------------------------------------------

    async def __call__(self, message: Message) -> None:
        """
        Send the head or a part of the body; waits while the caller's side is full.

        Raises:
            RuntimeError: That cannot be sent now, or is not as long as was said.
        """
        connection = self._connection
        if connection.write_paused and not connection.lost:
            await self._drained()
        if connection.lost:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self._started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self._started and not self._complete:
            self._send(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} cannot be sent now")

    def write(self, data: bytes) -> bool:
        """
        Send a part of a stream whose beginning was sent, at once and whatever waits.

        Returns False where no more should be written like this: the caller's side is full, or
        the caller is gone.
        """
        connection = self._connection
        if connection.lost or not self._chunked or self._head or self._complete:
            return False
        connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not connection.write_paused

    async def _drained(self) -> None:
        connection = self._connection
        while connection.write_paused and not connection.lost:
            if connection.writable is None or connection.writable.done():
                connection.writable = asyncio.get_running_loop().create_future()
            await asyncio.shield(connection.writable)

    def _start(self, status: int, headers: Headers) -> None:
        framed = False
        for name, value in headers:
            if name == b"content-length":
                framed = True
                self._expected_bytes = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        if not framed and not self._head_only and status not in _BODYLESS:
            self._chunked = True
        own = self._connection.state.default_headers
        fields = [b"%b: %b\r\n" % pair for pair in (*own, *headers, *self._framing(headers))]
        block = b"".join(fields)
        # One look at the whole is cheaper than one at each header, and as sure (RFC 9112 §11.1).
        if not block.count(b"\n") == block.count(b"\r") == len(fields) or b"\0" in block:
            raise RuntimeError("a header of the answer holds what cannot stand there")
        self._head = b"%b%b\r\n" % (_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, block)
        self._started = True

    def _framing(self, headers: Headers) -> list[Header]:
        """Return the headers that are the connection's own."""
        framing = [_CHUNKED] if self._chunked else []
        if not self.keep_alive and header(headers, b"connection") is None:
            framing.append(_CLOSE)
        return framing

    def _send(self, body: bytes, *, more: bool) -> None:
        if self._head_only:
            data = b""
            self._expected_bytes = 0
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        else:
            self._expected_bytes -= len(body)
            data = body
            if self._expected_bytes < 0 or (self._expected_bytes and not more):
                raise RuntimeError("the answer is not as long as its head says")
        if self._head:
            data, self._head = self._head + data, b""
        self._connection.transport.write(data)
        if not more:
            self._complete = True
            self._gone = None
            self.wake()
            self._connection.answered(self)


def _new_parser(connection: Inbound) -> HttpRequestParser:
    parser = HttpRequestParser(connection)
    # A request that is answered early is followed by the rest of its body, wanted or not.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _split(target: bytes) -> tuple[str, bytes, bytes]:
    """Return path, raw path and query of a request's target."""
    parsed = parse_url(target)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


_split_cached: Final = lru_cache(maxsize=512)(_split)


def _address(info: Any) -> tuple[str, int] | None:
    """Return host and port of what a transport says of one of its ends."""
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) else None
