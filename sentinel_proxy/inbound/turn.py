"""One request and its answer: what an application sees of a connection."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Message, Scope

from sentinel_proxy.model import Header, Headers, header

if TYPE_CHECKING:
    from sentinel_proxy.inbound.connection import Inbound

READ_AHEAD_BYTES: Final = 65_536
"""Unread bytes of a body at which the socket is paused."""

STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}
_NOTHING: Final = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_BODYLESS: Final = frozenset((204, 304))
_CHUNKED: Final = (b"transfer-encoding", b"chunked")
_CLOSE: Final = (b"connection", b"close")
_DISCONNECTED: Final[Message] = {"type": "http.disconnect"}


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
        "_flowing",
        "_gone",
        "_head",
        "_head_only",
        "_invited",
        "_news",
        "_scope",
        "_started",
        "keep_alive",
    )

    def __init__(self, connection: "Inbound", scope: Scope, *, keep_alive: bool) -> None:
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
        self._flowing = False  # chunked, and begun: its head and some of its body have left
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
        if connection.lost or not self._flowing:
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
        self._head = b"%b%b\r\n" % (STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, block)
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
        self._flowing = more and self._chunked
        if not more:
            self._complete = True
            self._gone = None
            self.wake()
            self._connection.answered(self)
