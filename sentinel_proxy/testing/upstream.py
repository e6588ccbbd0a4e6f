"""
A raw TCP server that answers by script.

It does what no HTTP server would: stop inside a status line, reset, fall silent, lie about a
length. What it plays is `scripts`; what the words of a script mean is not its business.
"""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self, cast

from sentinel_proxy.model import Header
from sentinel_proxy.testing.scripts import (
    Close,
    HalfClose,
    Hang,
    Pause,
    Reset,
    Script,
    Send,
    Step,
    Unread,
    answer,
)
from sentinel_proxy.wire import json

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, repr=False)
class Received:
    """One request as it arrived."""

    method: str
    target: str
    headers: list[Header]  # as sent: order, case and repetitions kept
    body: bytes  # without its framing; b"" if the script began with `Unread`
    raw: bytes  # every byte of head and body, framing included
    connection: int  # 1 for the first connection that was accepted
    arrived: float  # monotonic seconds of the event loop, when it was complete

    def header(self, name: str) -> str | None:
        """Return the first value of *name*, whatever its case, or None."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), None)

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<Received {self.method} {self.target} on connection {self.connection}>"


Act = Script | Callable[[Received], Iterable[Step]]
"""What to play: a script, or a function that looks at the request first (it may be a generator)."""


class FaultyUpstream:
    """
    A server on loopback that answers each request with the next script.

    Use it as an async context manager. A connection stays open after a script, as HTTP/1.1
    has it, unless the script ended it or the request asked for that. Leaving the context
    closes every connection and ends every task.

    Args:
        port: 0 takes a free one.
        ssl: A server-side context makes it speak TLS.
    """

    def __init__(self, port: int = 0, ssl: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.requests: list[Received] = []
        self.connections = 0
        self._ssl = ssl
        self._claim: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._queue: deque[Act] = deque()
        self._always: Act = answer(500, b"nothing was scripted for this request")
        self._greeting: Script = ()
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<FaultyUpstream {len(self.requests)} requests, {self.open_connections} open connections>"

    @property
    def url(self) -> str:
        """Scheme, host and port; no trailing slash."""
        return f"{'https' if self._ssl else 'http'}://{HOST}:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    def is_open(self, connection: int) -> bool:
        """Whether a connection, as `Received.connection` counts them, is open now."""
        return any(each._number == connection for each in self._open)

    async def __aenter__(self) -> Self:
        self._claim = _bound(self.port)
        self.port = self._claim.getsockname()[1]
        await self.listen_again()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def plays(self, *acts: Act) -> Self:
        """Answer the next requests with *acts*, one each, after those already queued."""
        self._queue.extend(acts)
        return self

    def always(self, act: Act) -> Self:
        """Answer with *act* whenever nothing is queued."""
        self._always = act
        return self

    def greets(self, script: Script) -> Self:
        """Play *script* on every new connection before a request is read; `()`: nothing."""
        self._greeting = script
        return self

    async def stop_listening(self) -> None:
        """Refuse new connections. The port stays ours and open connections stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)  # the loop lets go of the socket in its next round

    async def listen_again(self) -> None:
        """Accept connections, on the same port as before."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            listener = _bound(self.port)
            self._server = await loop.create_server(lambda: _Connection(self), sock=listener, ssl=self._ssl)

    def drop_connections(self) -> None:
        """Reset every open connection, as a crash of the server would."""
        for connection in list(self._open):
            connection.reset()

    async def aclose(self) -> None:
        """Stop listening, close every connection, end every task."""
        await self.stop_listening()
        for connection in list(self._open):
            connection.abort()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _unread_next(self) -> bool:
        """Whether the next act wants to answer before the body is read."""
        act = self._queue[0] if self._queue else self._always
        return not callable(act) and bool(act) and isinstance(act[0], Unread)

    def _next(self, request: Received) -> Iterable[Step]:
        self.requests.append(request)
        act = self._queue.popleft() if self._queue else self._always
        return act(request) if callable(act) else act


def _bound(port: int) -> socket.socket:
    """
    Return a socket bound to *port* that does not listen, so connects to it are refused.

    SO_REUSEPORT lets the one that holds the port and the one that listens coexist.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((HOST, port))
    except BaseException:
        sock.close()
        raise
    return sock


class _Ended(Exception):
    """The script has ended the connection."""


class _Connection(asyncio.Protocol):
    """One accepted connection: reads requests, plays scripts."""

    def __init__(self, upstream: FaultyUpstream) -> None:
        self._upstream = upstream
        self._reader = asyncio.StreamReader(limit=1 << 20)
        self._drained = asyncio.Event()
        self._drained.set()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None]
        self._number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # "Drained" then means that the kernel has it all; asyncio's TLS never resumes with high=0.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._reader.set_transport(transport)
        upstream = self._upstream
        upstream.connections += 1
        self._number = upstream.connections
        upstream._open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"faulty {self._number}")
        upstream._tasks.add(self._task)
        self._task.add_done_callback(upstream._tasks.discard)

    def data_received(self, data: bytes) -> None:
        self._reader.feed_data(data)

    def eof_received(self) -> bool:
        self._reader.feed_eof()
        return False  # a peer that closes has gone: half-open clients are not acted out

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._upstream._open.discard(self)
        self._reader.feed_eof()
        self._task.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def reset(self) -> None:
        sock = self._transport.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def _serve(self) -> None:
        with suppress(_Ended, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            await self._play(self._upstream._greeting)
            while await self._exchange():
                pass
        if not self._transport.is_closing():
            self._transport.close()

    async def _exchange(self) -> bool:
        """Read one request and answer it; return whether the connection may carry another."""
        request = await self._head()
        unread = self._upstream._unread_next()
        if unread:
            self._transport.pause_reading()
        else:
            request = await self._body(request)
        request = replace(request, arrived=asyncio.get_running_loop().time())
        await self._play(self._upstream._next(request))
        if unread:
            return False
        return b"HTTP/1.1" in request.raw.split(b"\r\n", 1)[0] and request.header("connection") != "close"

    async def _head(self) -> Received:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].split(b"\r\n")
        method, target, _version = first.decode("latin-1").split(" ")
        pairs = (line.partition(b":") for line in lines)
        headers = [(name, value.strip(b" \t")) for name, _, value in pairs]
        return Received(method, target, headers, b"", raw, self._number, 0.0)

    async def _body(self, request: Received) -> Received:
        if "chunked" in (request.header("transfer-encoding") or "").lower():
            body, wire = await self._chunks()
        else:
            body = wire = await self._reader.readexactly(int(request.header("content-length") or 0))
        return replace(request, body=body, raw=request.raw + wire)

    async def _chunks(self) -> tuple[bytes, bytes]:
        """Return a chunked body without and with its framing (RFC 9112 §7.1)."""
        body, wire = bytearray(), bytearray()
        while True:
            line = await self._reader.readuntil(b"\r\n")
            size = int(line.split(b";", 1)[0], 16)
            if size == 0:
                break
            chunk = await self._reader.readexactly(size + 2)
            body += chunk[:-2]
            wire += line + chunk
        while True:
            wire += line
            if line == b"\r\n":
                return bytes(body), bytes(wire)
            line = await self._reader.readuntil(b"\r\n")  # trailers, then the empty line

    async def _play(self, script: Iterable[Step]) -> None:
        for step in script:
            match step:
                case Send(data):
                    self._transport.write(data)
                    await self._drained.wait()
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Hang():
                    await asyncio.Event().wait()  # ends by cancellation once the peer has gone
                case HalfClose() if self._transport.can_write_eof():
                    self._transport.write_eof()
                case Close() | HalfClose():
                    self._transport.close()
                    raise _Ended
                case Reset():
                    self.reset()
                    raise _Ended
                case Unread():
                    pass  # has already taken effect
