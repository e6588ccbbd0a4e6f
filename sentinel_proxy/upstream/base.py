"""
The seam between the core and the network: a transport opens exchanges.

One transport serves one provider. What lies behind it (connection pool, framing, TLS) is its
own; what goes through here is narrow on purpose, so that transports can be compared and
swapped by configuration. `tests/contracts/test_transports.py` holds every promise below.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from sentinel_proxy.model import ReplyHead, UpstreamRequest

Sink = Callable[[bytes], float]
"""Takes the next bytes of a body; returns until when (monotonic seconds) to wait for more, 0 for no more."""


class Exchange(Protocol):
    """One request sent, and its answer being read. It owns a connection until `close`."""

    head: ReplyHead

    @property
    def complete(self) -> bool:
        """True once the whole body has been handed out by `read`."""
        ...

    async def read(self, until: float) -> bytes:
        """
        Return the bytes that have come since the last read, as soon as there are any.

        `b""` means that the body is complete as its framing defines it (RFC 9112 §6.3).
        Bytes are handed out in order and never held back to be joined. While nobody reads,
        the upstream is slowed down once a bounded amount has piled up (back-pressure).
        Cancelling leaves the exchange as it was; it must still be closed.

        Args:
            until: Monotonic seconds. Nothing having come by then is a failure.

        Raises:
            UpstreamError: `TIMEOUT` at *until*; `TRUNCATED` where the connection ended before
                the body did; `PROTOCOL` for bytes that break the framing. The exchange is
                dead then and must still be closed.
        """
        ...

    async def flow(self, until: float, sink: Sink) -> None:
        """
        Give *sink* what comes from now on, in the very callback that brings it, while it asks for more.

        Waking a task for each chunk costs more than looking into the chunk. May return at any
        time, also at once: what has not been given away is then for `read`, the end and
        every failure included. An error that *sink* raises is raised by `read`. Cancelling ends
        the flow and leaves the exchange as it was.

        Args:
            until: As in `read`, for the first bytes; from then on it is what *sink* returns.
        """
        return

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        """
        Give the connection back: to the pool if the body is complete, else by closing it.

        Never waits, never raises, may be called more than once and from any exit path.

        Args:
            linger_seconds: For an answer that has said all it had to say before its framing
                ends: the connection may stay open so long to be kept for another exchange.
            reuse: False where what came was not the API's: it may have been the answer to another
                request, and whoever came next would get ours. Then the connection is closed, as
                far as the transport can tell its connections apart.
        """
        ...


class Transport(Protocol):
    """Opens exchanges with the server of one provider."""

    @abstractmethod
    async def open(self, request: UpstreamRequest, *, connect_seconds: float, until: float) -> Exchange:
        """
        Send *request* and return once the head of its answer is here (1xx heads are skipped).

        A kept-alive connection that turns out to be dead before a byte of the answer came is
        replaced by a new one, once and silently, if the request can be replayed. Redirects are
        answers like any other. Cancelling at any point closes what was opened; nothing leaks.

        Args:
            request: Sent byte for byte; the transport adds Host and the framing headers.
            connect_seconds: For DNS, TCP and TLS together.
            until: Monotonic seconds by which the head must have come.

        Raises:
            UpstreamError: `CONNECT`, `CERTIFICATE`, `CONNECT_TIMEOUT` (nothing was sent);
                `RESET`, `TIMEOUT`, `PROTOCOL` (it may have been processed);
                `LOCAL` (all connections in use).
        """
        ...

    @abstractmethod
    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        ...
