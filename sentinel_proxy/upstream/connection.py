"""
One HTTP/1.1 connection, as seen by the side that asks.

`Connection` is the event loop's protocol and the parser's listener in one: bytes come in by
callbacks, whoever reads waits on one future at a time. It knows nothing of pools or of
dialling (`http1`, `dial`), and carries one exchange after another, never two at once.

It is the hot path of the product, which explains its shape. The parser puts body bytes straight into
a list, without a Python frame in between. All time limits of a connection's life (head, next
bytes, idleness) are one alarm that is moved, never a timer of their own. No task runs unless
a body is uploaded piece by piece.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Header, ReplyHead, header
from sentinel_proxy.upstream.base import Sink
from sentinel_proxy.upstream.render import measured
from sentinel_proxy.wheel import Alarm, Wheel

MAX_HEAD_BYTES: Final = 65_536
"""Of status line and headers, 1xx heads included. llhttp has no limit; h11 stops at 100 KiB, Go at 1 MiB."""

READ_AHEAD_BYTES: Final = 65_536
"""Unread bytes at which the socket is paused; one segment more (256 KiB at most) may already be here."""

JOIN_BYTES: Final = 65_536
"""Up to this size, copying a body behind its head is cheaper than a second system call."""


_DEAF: Final = HttpResponseParser(object())
"""In place of a lost connection's parser: the two would keep each other until the collector comes by."""


class _Stop(Exception):
    """Makes the parser stop where it is."""


class Connection(asyncio.Protocol):
    """
    A connection and the exchange it carries, if any.

    Args:
        wheel: Where its alarm waits.
        gone: Called once, as soon as it cannot carry another exchange; also while one is under way.
    """

    __slots__ = (
        "_alarm",
        "_began",
        "_drained",
        "_exchanges",
        "_gone",
        "_head_bytes",
        "_head_only",
        "_headers",
        "_keep_alive",
        "_loop",
        "_lost_already",
        "_parser",
        "_paused",
        "_ready",
        "_sink",
        "_then",
        "_transport",
        "_unread_bytes",
        "_upload",
        "_waiter",
        "_wheel",
        "_write_paused",
        "busy",
        "chunks",
        "done",
        "error",
        "head",
        "lost",
        "on_body",
        "usable",
    )

    def __init__(self, wheel: Wheel, gone: Callable[["Connection"], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wheel = wheel
        self._gone = gone
        self._transport: asyncio.Transport
        self._alarm: Alarm | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._write_paused = False
        self._lost_already = False
        self._exchanges = 0
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.usable = True  # neither ended nor poisoned
        self.busy = False
        self.chunks: list[bytes] = []
        self.on_body = self.chunks.append  # the parser's callback
        self._parser = HttpResponseParser(self)
        self._reset(head_only=False)

    def _reset(self, *, head_only: bool) -> None:
        self.head: ReplyHead | None = None
        self.done = False  # the whole body has come, though it may not have been taken
        self.error: Exception | None = None
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._head_only = head_only
        self._keep_alive = False
        self._ready = False
        self._sink: Sink | None = None
        self._then: Callable[[Connection], None] | None = None
        self._paused = False
        self._unread_bytes = 0
        self._began = self._loop.time()

    # -- what the pool and the exchange do ----------------------------------------------------

    @property
    def over(self) -> bool:
        """Nothing more will come; what has come may still wait in `chunks`."""
        return self.done or self.error is not None

    @property
    def reused(self) -> bool:
        """Whether this exchange is not the connection's first."""
        return self._exchanges > 1

    @property
    def silent_seconds(self) -> float | None:
        """How long the exchange has gone without one byte of an answer; None once there was one."""
        return None if self._head_bytes else self._loop.time() - self._began

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow: request and answer are over, nothing is left over."""
        return (
            self.done
            and self._keep_alive
            and self.usable
            and self._upload is None
            and not self._transport.get_write_buffer_size()
        )

    def begin(self, head: bytes, body: bytes, *, head_only: bool) -> None:
        """Start an exchange: write *head* and *body* at once. *head_only*: the method is HEAD."""
        self._exchanges += 1
        self.busy = True
        self._reset(head_only=head_only)
        if not self.usable:
            self._fail(FailureKind.RESET, "the connection was closed before an answer began")
        elif len(body) <= JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def upload(self, body: AsyncIterator[bytes], length: int | None) -> None:
        """Send *body* piece by piece, beside the reading; chunked unless *length* is known."""
        self._upload = self._loop.create_task(self._send(body, length), name="sentinel-upload")

    async def wait(self, until: float) -> None:
        """Return once something is new: the head, bytes, the end, or an error (time-out at *until*)."""
        self._ready = False
        self._set_alarm(until)
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    async def flow(self, until: float, sink: Sink) -> None:
        """Give *sink* what comes; return once it wants no more, or there is no more, or none by *until*."""
        self._sink = sink
        try:
            await self.wait(until)
        finally:
            self._sink = None

    def take(self) -> bytes:
        """Return the bytes that wait, or `b""` at the end of the body; raise what went wrong."""
        chunks = self.chunks
        if not chunks:
            if self.error is not None:
                raise self.error
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._unread_bytes = 0
        if self._paused:
            self._resume()
        return data

    def park(self, until: float) -> None:
        """The exchange is over: stay open for another one, but not beyond *until*."""
        self.busy = False
        self._discard()
        self._set_alarm(until)

    def linger(self, until: float, then: Callable[["Connection"], None]) -> None:
        """Nobody reads any more, but the body has not ended: call *then* when it has, close at *until*."""
        self._then = then
        self._discard()
        self._set_alarm(until)

    def abort(self) -> None:
        """Close at once, in whatever state; twice does nothing."""
        if self._upload is not None:
            self._upload.cancel()
        if not self._lost_already:
            self._transport.abort()
        self._retire()

    # -- what the event loop calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.done or self.error is not None or not self.busy:
            self.abort()  # nobody asked for these: whatever they are, the next answer is not to be trusted
            return
        if self.head is None:
            self._head_bytes += len(data)
        self._parse(data)
        if self.head is None and self._head_bytes > MAX_HEAD_BYTES and not self.over:
            self._fail(FailureKind.PROTOCOL, "the head of the answer is too large")
        self._unread_bytes += len(data)
        if self._then is not None:
            self._lingered()
            return
        if self.chunks and not (self._sink is not None and self._poured(self._sink)):
            self._ready = True
            if self._unread_bytes > READ_AHEAD_BYTES and not self._paused and not self._lost_already:
                self._paused = True
                self._transport.pause_reading()
        if self._ready:
            self._wake()

    def eof_received(self) -> None:
        """The server has said all it had to say; the loop closes our side in turn."""
        self._retire()
        if self.busy and not self.over:
            self._broken(clean=self._said_farewell())

    def connection_lost(self, error: Exception | None) -> None:
        self._lost_already = True
        if self.busy and not self.over and error is not None:
            self._salvage()
        if self.busy and not self.over:
            self._broken(clean=False)
        self._retire()
        if self._alarm is not None:
            self._alarm.cancel()
        if self._upload is not None:
            self._upload.cancel()
        if not self.lost.done():
            self.lost.set_result(None)
        self._parser = _DEAF

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- what the parser calls ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.done:
            raise _Stop  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:  # else a trailer: nobody is told of them
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status, headers = self._parser.get_status_code(), self._headers
        if status < 200:
            if status < 100 or status == 101:
                self._refuse("the server switched to another protocol")
            self._headers = []
            return
        if self._head_bytes > MAX_HEAD_BYTES and sum(len(n) + len(v) for n, v in headers) > MAX_HEAD_BYTES:
            self._refuse("the head of the answer is too large")
        coding = header(headers, b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            self._refuse("the answer has a transfer coding that nobody asked for")
        self.head = ReplyHead(status, headers)
        self._ready = True
        if self._head_only:
            # The parser cannot be told that no body follows, so it has seen its last byte, and
            # what came behind the head cannot be told from the next answer: no reuse.
            self.done = True
            self._parser = HttpResponseParser(self)
            raise _Stop

    def on_message_complete(self) -> None:
        if self.head is not None:  # else a 1xx, and the answer is still to come
            self.done = self._ready = True
            self._keep_alive = self._parser.should_keep_alive()

    # -- inside --------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if self.done:
                self.abort()  # a good answer with something behind it
            elif self.error is None:
                self._fail(FailureKind.PROTOCOL, "what came is not HTTP")

    def _poured(self, sink: Sink) -> bool:
        """Give away what waits; False if somebody must read on: *sink* wants no more, or that was the end."""
        if self.done or self.error is not None:
            return False
        chunks = self.chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._unread_bytes = 0
        try:
            until = sink(data)
        except Exception as error:  # not the loop's business, but of whoever reads
            self._fail_with(error)
            return False
        if until and self._alarm is not None:
            self._alarm.move(until)
            return True
        self._sink = None
        return False

    def _refuse(self, message: str) -> None:
        """Fail from inside the parser."""
        self._fail(FailureKind.PROTOCOL, message)
        raise _Stop

    def _broken(self, *, clean: bool) -> None:
        """The connection ended before the answer did; *clean*: by FIN, and close_notify if TLS."""
        if self.head is None and clean and self._head_bytes:
            self._fail(FailureKind.PROTOCOL, "the connection ended inside the head of the answer")
        elif self.head is None:
            self._fail(FailureKind.RESET, "the connection was closed before an answer began")
        elif clean and self._until_close():
            self.done = True
            self._wake()
        else:
            self._fail(FailureKind.TRUNCATED, "the connection ended before the answer did")

    def _said_farewell(self) -> bool:
        """
        Whether the end just seen was the server's word: over TLS a FIN alone may be anybody's.

        asyncio reports either alike, but a TLS engine that had a close_notify reads as empty.
        """
        tls = self._transport.get_extra_info("ssl_object")
        if tls is None:
            return True
        try:
            return bool(tls.read(1) == b"")
        except ssl.SSLError:
            return False

    def _until_close(self) -> bool:
        """Whether the end of the connection is what ends the body (RFC 9112 §6.3, rule 8)."""
        framed = (b"content-length", b"transfer-encoding")
        return self.head is not None and not any(name in framed for name, _ in self.head.headers)

    def _salvage(self) -> None:
        """
        Read what the kernel still holds of an answer that came before the connection broke.

        A server that refuses an upload answers and resets while we are still writing. The loop
        then reports our failed write and drops what it has not read: the very 413 we need.
        """
        if self._transport.get_extra_info("sslcontext") is not None:
            return  # only the loop's TLS engine could make sense of it
        with suppress(OSError, ValueError):
            fd = os.dup(self._transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=fd) as sock:
                sock.setblocking(False)
                while not self.over and (data := sock.recv(READ_AHEAD_BYTES)):
                    self.data_received(data)

    def _lingered(self) -> None:
        """Drop what came; where it was the end, somebody waits for the connection."""
        self._discard()
        if self.done and self._then is not None:
            then, self._then = self._then, None
            then(self)

    def _discard(self) -> None:
        self.chunks.clear()
        self._unread_bytes = 0
        if self._paused:
            self._resume()

    def _fail(self, kind: FailureKind, message: str) -> None:
        self._fail_with(UpstreamError(kind, message))

    def _fail_with(self, error: Exception) -> None:
        if self.over:
            return
        self.error = error
        self.abort()
        self._wake()

    def _retire(self) -> None:
        if self.usable:
            self.usable = False
            self._gone(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume(self) -> None:
        self._paused = False
        self._unread_bytes = 0
        if self.usable:
            self._transport.resume_reading()

    def _set_alarm(self, due: float) -> None:
        if self._alarm is None:
            self._alarm = self._wheel.set(due, self._ring)
        else:
            self._alarm.move(due)

    def _ring(self) -> None:
        self._alarm = None
        if not self.busy or self._then is not None:
            self.abort()
        elif self._waiter is not None and not self._waiter.done():
            message = "no answer began in time" if self.head is None else "the answer fell silent"
            self._fail(FailureKind.TIMEOUT, message)

    # -- uploading ----------------------------------------------------------------------------

    async def _send(self, body: AsyncIterator[bytes], length: int | None) -> None:
        """Write the pieces of *body* as fast as the socket takes them; stop when the answer is over."""
        try:
            async with aclosing(measured(body, length)) as pieces:
                async for piece in pieces:
                    if self.over or not self.usable:
                        return
                    await self._send_piece(
                        piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece)
                    )
            if length is None:
                await self._send_piece(b"0\r\n\r\n")
            self._upload = None
        except Exception as error:  # the caller's body failed: half a request must not look whole
            self._fail_with(error)

    async def _send_piece(self, data: bytes) -> None:
        if self._write_paused:
            self._drained = self._loop.create_future()
            await self._drained
        if self.usable and not self._transport.is_closing():
            self._transport.write(data)
