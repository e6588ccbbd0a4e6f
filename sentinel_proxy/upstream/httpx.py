"""
The broad transport: httpx behind the same seam, for outbound proxies, HTTP/2 and odd servers.

httpx 0.28 loses pool slots for ever when it is cancelled while it connects or closes
(encode/httpcore #1093, encode/httpx #3782). So no caller ever waits inside it: each exchange has an
*owner*, a task that makes every httpx call, and the caller waits on plain futures. `close` only tells
the owner, and cancels it where that is known to be safe: while it talks, never while it
connects or closes. What httpx would add or keep by itself (headers, cookies, redirects) is off.

It is the weaker of the two transports where httpx is: names are looked up in the event loop's
shared threads, an answer that comes while a large body is still being sent may be lost to the
reset behind it (encode/httpx #878), and whether a byte of an answer had come before a reset is not known.
"""

import asyncio
import importlib.util
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from enum import IntEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpx

from sentinel_proxy.errors import ConfigError, FailureKind, UpstreamError
from sentinel_proxy.model import Headers, ReplyHead, UpstreamRequest, header
from sentinel_proxy.upstream.base import Sink, Transport
from sentinel_proxy.upstream.connection import MAX_HEAD_BYTES, READ_AHEAD_BYTES
from sentinel_proxy.upstream.dial import connect_failure, origin_of, verifying_tls
from sentinel_proxy.upstream.http1 import IDLE_SECONDS, STALE_SECONDS
from sentinel_proxy.upstream.render import measured, request_line, safe_headers

# The first row that fits names the failure: before the head of the answer came, and after.
FAILURES: Final[Sequence[tuple[type[Exception], FailureKind, FailureKind, str]]] = (
    (
        httpx.ConnectTimeout,
        FailureKind.CONNECT_TIMEOUT,
        FailureKind.CONNECT_TIMEOUT,
        "no connection could be made in time",
    ),
    (httpx.PoolTimeout, FailureKind.LOCAL, FailureKind.LOCAL, "all connections to this provider are in use"),
    (httpx.TimeoutException, FailureKind.TIMEOUT, FailureKind.TIMEOUT, "the server fell silent"),
    (httpx.ConnectError, FailureKind.CONNECT, FailureKind.CONNECT, "the server cannot be reached"),
    (httpx.ProxyError, FailureKind.CONNECT, FailureKind.CONNECT, "the outbound proxy refused"),
    (httpx.NetworkError, FailureKind.RESET, FailureKind.TRUNCATED, "the connection was lost"),
    (httpx.LocalProtocolError, FailureKind.CALLER, FailureKind.CALLER, "the request cannot be sent as HTTP"),
    (httpx.DecodingError, FailureKind.PROTOCOL, FailureKind.PROTOCOL, "the answer's encoding is broken"),
    (httpx.HTTPError, FailureKind.PROTOCOL, FailureKind.PROTOCOL, "what came is not HTTP"),
)

# httpx has one class for "not HTTP" and for "ended too soon"; only its words tell them apart.
ENDED_EARLY: Final = ("without sending a response", "without sending complete message body")


class _Phase(IntEnum):
    CONNECTING = 0  # queued, connecting, in TLS: cancelling would leak
    TALKING = 1  # the request goes out, the answer comes in: may be cancelled, once
    CLOSING = 2  # the connection goes back to the pool: cancelling would leak
    OVER = 3


class _Abandoned(Exception):
    """The caller has gone before anything was sent."""


class HttpxExchange:
    """An exchange whose httpx calls are made by a task of its own; see `base.Exchange`."""

    head: ReplyHead

    def __init__(
        self,
        transport: "HttpxTransport",
        request: httpx.Request,
        body: AsyncGenerator[bytes, None] | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._request = request
        self._body = body
        self._phase = _Phase.CONNECTING
        self._began = False  # the head is here
        self._connected = False  # for this exchange, not before it
        self._reused = False
        self._done = False
        self._closed = False
        self._abandoned = False  # the owner is to end
        self._error: Exception | None = None
        self._chunks: list[bytes] = []
        self._unread_bytes = 0
        self._news: asyncio.Future[bool] | None = None
        self._room: asyncio.Future[None] | None = None
        request.extensions["trace"] = self._traced
        self._owner = self._loop.create_task(self._own(), name="sentinel-httpx")
        transport._owners.add(self._owner)
        self._owner.add_done_callback(transport._owners.discard)

    def __repr__(self) -> str:
        return f"<HttpxExchange {self._phase.name.lower()} complete={self.complete}>"

    @property
    def complete(self) -> bool:
        """True once the whole body has been handed out by `read`."""
        return self._done and not self._chunks

    async def read(self, until: float) -> bytes:
        """Return the bytes that have come since the last read; see `base.Exchange.read`."""
        while not self._chunks and not self._done and self._error is None:
            if not await self._wait(until):
                self._fail(UpstreamError(FailureKind.TIMEOUT, "the answer fell silent"))
        if not self._chunks:
            if self._error is not None:
                raise self._error
            return b""
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._unread_bytes = 0
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return data

    async def flow(self, until: float, sink: Sink) -> None:
        """Return at once: httpx is asked for each chunk."""

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        """Tell the owner to let go; see `base.Exchange.close`. It never lingers; httpx rules on reuse."""
        if not self._closed:
            self._closed = True
            self._transport.active -= 1
            self._let_go()

    async def begin(self, connect_until: float, until: float) -> None:
        """
        Return once `head` is set.

        Raises:
            UpstreamError: As `base.Transport.open` has it.
        """
        while self._phase is _Phase.CONNECTING and self._error is None:
            if not await self._wait(min(connect_until, until)):
                self._fail(UpstreamError(FailureKind.CONNECT_TIMEOUT, "no connection could be made in time"))
        while not self._began and self._error is None:
            if not await self._wait(until):
                self._fail(UpstreamError(FailureKind.TIMEOUT, "no answer began in time"))
        if not self._began and self._error is not None:
            raise self._error

    # -- the caller's side of the hand-over ----------------------------------------------------

    async def _wait(self, until: float) -> bool:
        """Return True at the owner's next news, False if there are none by *until*."""
        news: asyncio.Future[bool] = self._loop.create_future()
        self._news = news
        timer = self._loop.call_at(until, _settle, news, False)
        try:
            return await news
        finally:
            timer.cancel()
            self._news = None

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._let_go()

    def _let_go(self) -> None:
        """Make the owner end: by cancelling it where that is safe, else it looks for itself."""
        self._abandoned = True
        if self._phase is _Phase.TALKING:
            self._phase = _Phase.CLOSING  # so that it is cancelled only once
            self._owner.cancel()

    # -- the owner's side ----------------------------------------------------------------------

    async def _own(self) -> None:
        """Make every httpx call of this exchange."""
        try:
            async with self._transport._slots:
                response = await self._send()
                try:
                    await self._receive(response)
                finally:
                    self._phase = _Phase.CLOSING
                    await response.aclose()
            self._done = self._error is None
        except (asyncio.CancelledError, _Abandoned):
            if not self._abandoned:
                raise  # not by us: the event loop is being torn down
        except Exception as error:
            self._error = self._error or failure(error, began=self._began)
        finally:
            self._phase = _Phase.OVER
            if self._body is not None:
                await self._body.aclose()
            self._tell()

    async def _send(self) -> httpx.Response:
        """Send the request; again if the pool gave us connections that were dead already."""
        while not self._abandoned:
            self._connected, self._reused, started = False, False, self._loop.time()
            self._phase = _Phase.CONNECTING
            try:
                return await self._transport._client.send(self._request, stream=True, follow_redirects=False)
            except httpx.TransportError as error:
                named = failure(error, began=False)
                reset = isinstance(named, UpstreamError) and named.kind is FailureKind.RESET
                stale = self._reused and self._loop.time() - started < STALE_SECONDS
                if not (reset and stale and self._body is None):
                    raise
            except AttributeError as error:
                if self._phase is not _Phase.CONNECTING:
                    raise
                # anyio on uvloop: a connection that was lost just after it was made has no socket.
                gone = "the connection was closed while it was being made"
                raise UpstreamError(FailureKind.CONNECT, gone) from error
        raise _Abandoned

    async def _receive(self, response: httpx.Response) -> None:
        """Hand over the head, then the body as it comes, never more than the caller can take."""
        self._phase = _Phase.TALKING
        if self._abandoned:
            return
        self.head, encoded = _head(response)
        self._began = True
        self._tell()
        response.stream = _Watched(response, self)
        pieces = response.aiter_bytes() if encoded else response.aiter_raw()
        async for piece in pieces:
            await self._hand_over(piece)

    async def _hand_over(self, piece: bytes) -> None:
        if not piece:
            return
        self._chunks.append(piece)
        self._unread_bytes += len(piece)
        self._tell()
        if self._unread_bytes > READ_AHEAD_BYTES:
            self._room = self._loop.create_future()
            await self._room

    def _tell(self) -> None:
        if self._news is not None:
            _settle(self._news, True)

    async def _traced(self, event: str, info: dict[str, Any]) -> None:
        """httpcore's trace: how far it has come (https://www.encode.io/httpcore/extensions/#trace)."""
        if event == "connection.connect_tcp.started":
            self._connected = True
        elif event.endswith(".send_request_headers.started") and info["request"].method != b"CONNECT":
            if self._abandoned:
                raise _Abandoned
            self._reused = not self._connected
            self._phase = _Phase.TALKING
            self._tell()
        elif event.endswith(".response_closed.started"):
            self._phase = _Phase.CLOSING


class _Watched(httpx.AsyncByteStream):
    """A response's bytes; notes when they end, because the closing that follows must not be cancelled."""

    def __init__(self, response: httpx.Response, exchange: HttpxExchange) -> None:
        self._stream: Any = response.stream
        self._network: Any = response.extensions.get("network_stream")
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece
        self._exchange._phase = _Phase.CLOSING
        if _leftover(self._stream):
            await self._network.aclose()  # the pool sees that it is closed and forgets it

    async def aclose(self) -> None:
        self._exchange._phase = _Phase.CLOSING
        await self._stream.aclose()


class HttpxTransport(Transport):
    """
    Exchanges with one server by way of httpx.

    Args:
        base_url: Scheme, host and port of it count; the path is part of each request's target,
            which httpx may write in another, equivalent form (percent-encoding, dot segments).
        max_connections: Exchanges at once; one more fails with `LOCAL`. 0: unlimited.
        proxy: URL of an outbound proxy.
        http2: Speak HTTP/2 to servers that offer it; needs the package `h2`.
        trust_env: Take proxies from the environment (`HTTPS_PROXY`, `NO_PROXY`) where *proxy* is
            not given: most who choose this transport choose it for that.
        ssl_context: Instead of one that trusts what the system trusts. httpx sets its ALPN.
        transport: An httpx transport to use instead of the network, for tests.

    Raises:
        ConfigError: *base_url* or *proxy* is not one, or `h2` is missing.
    """

    def __init__(
        self,
        base_url: str,
        *,
        max_connections: int = 0,
        proxy: str | None = None,
        http2: bool = False,
        trust_env: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if http2 and importlib.util.find_spec("h2") is None:
            raise ConfigError(
                "transport", 'HTTP/2 needs the package h2: install it (pip install "httpx[http2]")'
            )
        origin = origin_of(base_url)
        self._origin = f"{'https' if origin.tls else 'http'}://{origin.authority}"
        self._max_connections = max_connections
        self._owners: set[asyncio.Task[None]] = set()
        # Never more owners in httpx than connections, so that its pool never queues: cancelling there leaks.
        self._slots: AbstractAsyncContextManager[object] = (
            asyncio.Semaphore(max_connections) if max_connections else nullcontext()
        )
        self._closed = False
        self.active = 0
        try:
            self._client = httpx.AsyncClient(
                verify=ssl_context or verifying_tls(),
                http2=http2,
                proxy=proxy,
                trust_env=trust_env,
                transport=transport,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise ConfigError("proxy", "is not a proxy that httpx can use") from error

    def __repr__(self) -> str:
        return f"<HttpxTransport {self.active} active>"

    async def open(self, request: UpstreamRequest, *, connect_seconds: float, until: float) -> HttpxExchange:
        """
        Send *request* and return once the head of its answer is here; see `base.Transport.open`.

        Raises:
            UpstreamError: As the seam has it; also `CALLER` for a method or target that cannot
                stand in a request line (nothing was sent).
        """
        request_line(request)
        if self._closed or 0 < self._max_connections <= self.active:
            raise UpstreamError(FailureKind.LOCAL, "all connections to this provider are in use")
        connect_until = asyncio.get_running_loop().time() + connect_seconds
        body = None if isinstance(request.body, bytes) else measured(request.body, request.body_length)
        exchange = HttpxExchange(self, self._request(request, body, connect_seconds), body)
        self.active += 1
        try:
            await exchange.begin(connect_until, until)
        except BaseException:
            exchange.close()
            raise
        return exchange

    async def aclose(self) -> None:
        """Close every connection, also those in use; what is opened later fails with `LOCAL`."""
        self._closed = True
        await self._client.aclose()
        if self._owners:
            await asyncio.wait(set(self._owners))

    def _request(
        self, request: UpstreamRequest, body: AsyncGenerator[bytes, None] | None, connect_seconds: float
    ) -> httpx.Request:
        """Return the request as httpx sends it without adding anything but Host and framing."""
        headers = safe_headers(request.headers)
        if header(headers, b"accept-encoding") is None:
            headers.append((b"accept-encoding", b"identity"))
        if body is not None and request.body_length is not None:
            headers.append((b"content-length", b"%d" % request.body_length))
        timeout = {"connect": connect_seconds, "read": None, "write": None, "pool": None}
        return httpx.Request(
            request.method,
            self._origin + request.target,
            headers=headers,
            content=body or request.body or None,
            extensions={"timeout": timeout},
        )


def failure(error: Exception, *, began: bool) -> Exception:
    """Name an error of httpx; one that is not httpx's (the caller's body failed) stays what it is."""
    if isinstance(error, httpx.RemoteProtocolError) and any(words in str(error) for words in ENDED_EARLY):
        kind = FailureKind.TRUNCATED if began else FailureKind.RESET
        return UpstreamError(kind, "the connection ended before the answer did")
    if isinstance(error, httpx.ConnectError) and (root := _root(error)) is not None:
        return connect_failure(root)
    for type_of_error, before, after, message in FAILURES:
        if isinstance(error, type_of_error):
            return UpstreamError(after if began else before, message)
    return error


def _root(error: BaseException) -> OSError | None:
    """Return the operating system's error that *error* goes back to, TLS before TCP."""
    found: OSError | None = None
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and not (isinstance(found, ssl.SSLError)):
            found = seen
        seen = seen.__cause__ or seen.__context__
    return found


def _head(response: httpx.Response) -> tuple[ReplyHead, bool]:
    """Return the head for the caller, and whether the body must be decoded for it."""
    headers: Headers = [(name.lower(), value) for name, value in response.headers.raw]
    if response.status_code < 200 or sum(len(n) + len(v) for n, v in headers) > MAX_HEAD_BYTES:
        raise UpstreamError(FailureKind.PROTOCOL, "the head of the answer is not one we can use")
    encoded = (header(headers, b"content-encoding") or b"identity").lower() != b"identity"
    if encoded:  # then neither header is true of what the caller gets
        stale = (b"content-encoding", b"content-length")
        headers = [field for field in headers if field[0] not in stale]
    return ReplyHead(response.status_code, headers), encoded


def _leftover(stream: Any) -> bytes:
    """
    Return what came on an HTTP/1.1 connection behind the answer that *stream* has just ended.

    h11 would take it for the answer to the *next* request: one caller would get another's. No
    public name of httpx leads there, so this goes by attributes; where httpx is built otherwise
    (HTTP/2, a mock, a later version) it finds nothing, and the contract suite would tell.
    """
    path = ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state", "trailing_data")
    found = stream
    for name in path:
        found = getattr(found, name, None)
    return found[0] if found else b""


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
