"""
The default transport: a thin HTTP/1.1 client on httptools.

Forwarding is what this project is for, so its client does that and no more: no redirects, no
cookies, no decoding, no queue. Here is the pool; one connection is `connection`, making one is
`dial`, a request's bytes are `render`. Why not a library: docs/decisions/0002-own-http1-client.md.
"""

import asyncio
import socket
import ssl
from typing import Final

from sentinel_proxy.errors import FailureKind, UpstreamError, forget_frames
from sentinel_proxy.model import ReplyHead, UpstreamRequest
from sentinel_proxy.upstream.base import Sink, Transport
from sentinel_proxy.upstream.connection import Connection
from sentinel_proxy.upstream.dial import Dialer, origin_of
from sentinel_proxy.upstream.dns import Lookup
from sentinel_proxy.upstream.render import render_head
from sentinel_proxy.wheel import Wheel

IDLE_SECONDS: Final = 15.0
"""
How long a kept-alive connection waits for its next exchange. Longer than the pauses of live
traffic, shorter than the idle limits of the servers and load balancers we meet (20 s and up),
so that rarely one is used while the other side is closing it.
"""

STALE_SECONDS: Final = 2.0
"""
A kept-alive connection that dies this soon after it was used again was dead before: the request
is sent once more. Later, the server was at work, and sending again would pay twice.
"""


class Http1Exchange:
    """An exchange on one connection of the pool; see `base.Exchange`."""

    __slots__ = ("_complete", "_connection", "_pool", "head")

    def __init__(self, pool: "Http1Transport", connection: Connection, head: ReplyHead) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._complete = False
        self.head = head

    def __repr__(self) -> str:
        return f"<Http1Exchange {self.head.status} complete={self.complete}>"

    @property
    def complete(self) -> bool:
        """True once the whole body has been handed out by `read`."""
        connection = self._connection
        return self._complete if connection is None else connection.done and not connection.chunks

    async def read(self, until: float) -> bytes:
        """Return the bytes that have come since the last read; see `base.Exchange.read`."""
        connection = self._connection
        if connection is None:
            raise RuntimeError("the exchange is closed")
        while not connection.chunks and not connection.over:
            await connection.wait(until)
        return connection.take()

    async def flow(self, until: float, sink: Sink) -> None:
        """Give *sink* what comes from now on; see `base.Exchange.flow`."""
        connection = self._connection
        if connection is not None and not connection.chunks and not connection.over:
            await connection.flow(until, sink)

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        """Give the connection back; see `base.Exchange.close`."""
        if (connection := self._connection) is not None:
            self._complete = self.complete
            self._connection = None
            self._pool._give_back(connection, linger_seconds, reuse=reuse)


class Http1Transport(Transport):
    """
    A pool of connections to one server.

    The connection used last is used first, so that the pool shrinks to what traffic needs. A
    body that cannot be sent twice always gets a new connection.

    Args:
        base_url: Scheme, host and port of it count; the path is part of each request's target.
        wheel: Where time limits wait.
        max_connections: Exchanges at once; one more fails with `LOCAL`. 0: unlimited.
        ssl_context: Instead of the default one, which trusts what the system trusts.
        lookup: Resolves names, in a thread.

    Raises:
        ConfigError: *base_url* is not one.
    """

    def __init__(
        self,
        base_url: str,
        wheel: Wheel,
        *,
        max_connections: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        lookup: Lookup = socket.getaddrinfo,
    ) -> None:
        origin = origin_of(base_url)
        self._host_line = f"host: {origin.authority}".encode()
        self._dialer = Dialer(origin, wheel, ssl_context, lookup)
        self._wheel = wheel
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._closed = False
        self.active = 0

    def __repr__(self) -> str:
        return f"<Http1Transport {self.active} active, {self.idle} idle>"

    @property
    def idle(self) -> int:
        """How many open connections wait for their next exchange."""
        return len(self._idle)

    async def open(self, request: UpstreamRequest, *, connect_seconds: float, until: float) -> Http1Exchange:
        """
        Send *request* and return once the head of its answer is here; see `base.Transport.open`.

        Raises:
            UpstreamError: As the seam has it; also `CALLER` for a method or target that cannot
                stand in a request line (nothing was sent).
        """
        head = render_head(request, self._host_line)
        if self._closed or 0 < self._max_connections <= self.active:
            raise UpstreamError(FailureKind.LOCAL, "all connections to this provider are in use")
        self.active += 1
        try:
            connection = self._idle.pop() if self._idle and request.replayable else None
            if connection is None or not await _converse(connection, request, head, until):
                connection = await self._connect(connect_seconds, until)
                await _converse(connection, request, head, until)
        except BaseException:
            self.active -= 1
            raise
        assert connection.head is not None
        return Http1Exchange(self, connection, connection.head)

    async def aclose(self) -> None:
        """Close every connection, also those in use; what is opened later fails with `LOCAL`."""
        self._closed = True
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        if connections:
            await asyncio.wait([connection.lost for connection in connections])

    async def _connect(self, connect_seconds: float, until: float) -> Connection:
        if self._idle and self.active + self.idle > self._max_connections > 0:
            self._idle[0].abort()  # the one unused for longest makes room
        left = until - asyncio.get_running_loop().time()
        connection = await self._dialer.dial(self._make, min(connect_seconds, left))
        self._connections.add(connection)
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        if self._closed:
            connection.abort()
            raise UpstreamError(FailureKind.LOCAL, "the proxy is shutting down")
        return connection

    def _make(self) -> Connection:
        return Connection(self._wheel, self._forget)

    def _forget(self, connection: Connection) -> None:
        """Take a connection that has ended out of the pool, if it is there."""
        if not connection.busy and connection in self._idle:
            self._idle.remove(connection)

    def _give_back(self, connection: Connection, linger_seconds: float, *, reuse: bool) -> None:
        self.active -= 1
        if not reuse:
            connection.abort()
        elif linger_seconds and not connection.over and connection.usable and not self._closed:
            connection.linger(asyncio.get_running_loop().time() + linger_seconds, self._park)
        else:
            self._park(connection)

    def _park(self, connection: Connection) -> None:
        """Keep a connection for its next exchange, if it can carry one."""
        if connection.reusable and not self._closed:
            connection.park(asyncio.get_running_loop().time() + IDLE_SECONDS)
            self._idle.append(connection)
        else:
            connection.abort()


async def _converse(connection: Connection, request: UpstreamRequest, head: bytes, until: float) -> bool:
    """
    Send *request* on *connection* and return True once the head of the answer is there.

    False: the connection was stale, so another may be tried. It is closed then, as after any error.
    """
    body = request.body
    try:
        connection.begin(head, body if isinstance(body, bytes) else b"", head_only=request.method == "HEAD")
        if not isinstance(body, bytes) and connection.usable:
            connection.upload(body, request.body_length)
        while connection.head is None:
            if connection.error is not None:
                raise connection.error
            await connection.wait(until)
    except BaseException as error:
        connection.abort()
        if not _was_stale(connection, error):
            raise
        forget_frames(error)
        return False
    return True


def _was_stale(connection: Connection, error: BaseException) -> bool:
    """Whether a reused connection had died before it was used."""
    silent_seconds = connection.silent_seconds
    return (
        isinstance(error, UpstreamError)
        and error.kind is FailureKind.RESET
        and connection.reused
        and silent_seconds is not None
        and silent_seconds < STALE_SECONDS
    )
