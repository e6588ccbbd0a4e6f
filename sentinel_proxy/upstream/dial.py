"""
From a host to an open connection: DNS, TCP and TLS inside one budget of seconds.

Everything that can fail before a byte of a request is sent fails here, and is named here:
`FAILURES` is the only place where the operating system's errors of this phase get our names.
"""

import asyncio
import errno
import functools
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from sentinel_proxy.errors import ConfigError, FailureKind, UpstreamError
from sentinel_proxy.upstream.dns import Address, Lookup, Resolver
from sentinel_proxy.wheel import Wheel

HANDSHAKE_SECONDS: Final = 3_600.0
"""The budget ends long before; without this the loop would end a handshake by a timer of its own."""

P = TypeVar("P", bound=asyncio.Protocol)

# The first row that fits names the failure.
FAILURES: Final[Sequence[tuple[type[BaseException], FailureKind, str]]] = (
    (TimeoutError, FailureKind.CONNECT_TIMEOUT, "no connection could be made in time"),
    (ssl.SSLCertVerificationError, FailureKind.CERTIFICATE, "the server's certificate does not verify"),
    (ssl.SSLError, FailureKind.CONNECT, "the TLS handshake failed"),
    (socket.gaierror, FailureKind.CONNECT, "the server's name could not be resolved"),
    (UnicodeError, FailureKind.CONNECT, "the server's name could not be resolved"),
    (ConnectionRefusedError, FailureKind.CONNECT, "the connection was refused"),
    (ConnectionError, FailureKind.CONNECT, "the connection was closed while it was being made"),
    (OSError, FailureKind.CONNECT, "the server cannot be reached"),
)

# Our own shortage, not the server's fault: file descriptors, ports, memory for sockets.
SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}


def connect_failure(error: BaseException) -> UpstreamError:
    """Name what kept a connection from being made; nothing was sent."""
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return UpstreamError(FailureKind.LOCAL, "this machine has no connections left")
    for kind_of_error, kind, message in FAILURES:
        if isinstance(error, kind_of_error):
            return UpstreamError(kind, message)
    raise TypeError("not an error of this phase") from error


class Origin(NamedTuple):
    """Where a base URL points: all of it but the path."""

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """The value of Host (RFC 9110 §7.2): the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def origin_of(base_url: str) -> Origin:
    """
    Read scheme, host and port of *base_url*.

    Raises:
        ConfigError: It is not an http(s) URL with a host. The URL is not quoted: it may hold a password.
    """
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port
        ascii_host = host if host.isascii() else host.encode("idna").decode()
    except ValueError as error:
        raise ConfigError("base_url", "is not a URL with a valid host and port") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("base_url", "must begin with http:// or https:// and name a host")
    tls = parts.scheme == "https"
    return Origin(ascii_host, port if port is not None else (443 if tls else 80), tls)


def verifying_tls() -> ssl.SSLContext:
    """Return a new context that verifies by the system's trust, or by certifi's where it has none."""
    context = ssl.create_default_context()
    folder = ssl.get_default_verify_paths().capath  # read certificate by certificate, when asked for
    if not context.cert_store_stats()["x509_ca"] and not (folder and os.listdir(folder)):
        import certifi

        context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


@functools.cache
def default_tls() -> ssl.SSLContext:
    """Return the context shared by all: reading the bundle takes some ten milliseconds."""
    return verifying_tls()


class Dialer:
    """Makes connections to one origin."""

    def __init__(
        self,
        origin: Origin,
        wheel: Wheel,
        ssl_context: ssl.SSLContext | None = None,
        lookup: Lookup = socket.getaddrinfo,
    ) -> None:
        self._origin = origin
        self._wheel = wheel
        self._ssl_context = ssl_context
        self._resolver = Resolver(origin.host, origin.port, lookup)

    async def dial(self, make: Callable[[], P], seconds: float) -> P:
        """
        Return the protocol that *make* made, connected within *seconds*.

        Every address of the name is tried in turn; one that does not answer leaves the rest of
        the time, in equal shares, to those behind it. Cancelling closes what is half open.

        Raises:
            UpstreamError: `CONNECT`, `CERTIFICATE`, `CONNECT_TIMEOUT` or `LOCAL`.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with self._wheel.timeout_at(deadline):
                addresses = await self._resolver.addresses()
                sock = await self._first_that_connects(addresses, deadline)
                return await self._protocol(make, sock)
        except (OSError, UnicodeError) as error:
            self._resolver.forget()
            raise connect_failure(error) from error

    async def _first_that_connects(self, addresses: Sequence[Address], deadline: float) -> socket.socket:
        loop = asyncio.get_running_loop()
        failure: OSError = TimeoutError()
        for position, address in enumerate(addresses):
            share = (deadline - loop.time()) / (len(addresses) - position)
            try:
                async with self._wheel.timeout_at(loop.time() + share):
                    return await _connected(address)
            except OSError as error:  # a time-out is one
                failure = error
        raise failure

    async def _protocol(self, make: Callable[[], P], sock: socket.socket) -> P:
        """Put a protocol, and TLS if need be, on *sock*; from here on the loop owns the socket."""
        loop = asyncio.get_running_loop()
        if not self._origin.tls:
            return (await loop.create_connection(make, sock=sock))[1]
        _, protocol = await loop.create_connection(
            make,
            sock=sock,
            ssl=self._ssl_context or default_tls(),
            server_hostname=self._origin.host,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )
        return protocol


async def _connected(address: Address) -> socket.socket:
    family, where = address
    sock = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # named, or asyncio sets no TCP_NODELAY
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock
