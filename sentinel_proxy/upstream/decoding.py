"""
Answers that come compressed although nobody asked for that.

We ask for plain bytes (`accept-encoding: identity`), because every answer is looked into. Some
gateways compress all the same; an SDK of its own would read that, so through us it reads it too.
Only what zlib knows is decoded: any other coding is no answer that we can judge.
"""

import zlib
from typing import Final

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import ReplyHead, header
from sentinel_proxy.upstream.base import Exchange, Sink

CODINGS: Final = frozenset((b"gzip", b"x-gzip", b"deflate"))

MAX_READ_BYTES: Final = 1_048_576
"""How much one read gives at most: a few compressed bytes can be as many plain ones as they like."""

_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_STALE: Final = (b"content-encoding", b"content-length")


def plain(exchange: Exchange) -> Exchange:
    """Return an exchange that gives *exchange*'s body in plain bytes; itself if that is what it does."""
    coding = header(exchange.head.headers, b"content-encoding")
    return exchange if coding is None or coding.lower() not in CODINGS else DecodedExchange(exchange)


class DecodedExchange:
    """An exchange whose body is decompressed as it comes; see `base.Exchange`."""

    __slots__ = ("_begun", "_decompressor", "_inner", "head")

    def __init__(self, inner: Exchange) -> None:
        self._inner = inner
        self._decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False
        head = inner.head
        self.head = ReplyHead(head.status, [field for field in head.headers if field[0] not in _STALE])

    def __repr__(self) -> str:
        return f"<DecodedExchange of {self._inner!r}>"

    @property
    def complete(self) -> bool:
        """True once the whole plain body has been handed out by `read`."""
        return self._inner.complete and not self._decompressor.unconsumed_tail and self._over

    @property
    def _over(self) -> bool:
        return self._decompressor.eof or not self._begun

    async def read(self, until: float) -> bytes:
        """
        Return the plain bytes that can be had now; see `base.Exchange.read`.

        Raises:
            UpstreamError: Also `PROTOCOL` for bytes that are not what they are said to be, and
                `TRUNCATED` where they end before the compressed data does.
        """
        while True:
            data = self._decompressor.unconsumed_tail
            if not data and not self._inner.complete:
                data = await self._inner.read(until)
            if not data:
                if self._over:
                    return b""
                raise UpstreamError(FailureKind.TRUNCATED, "the compressed answer ended before its end")
            if output := self._decompressed(data):
                return output

    def _decompressed(self, data: bytes) -> bytes:
        self._begun = True
        if self._decompressor.eof:
            return b""  # what follows the compressed data is none of it
        try:
            return self._decompressor.decompress(data, MAX_READ_BYTES)
        except zlib.error as error:
            raise UpstreamError(FailureKind.PROTOCOL, "the answer's encoding is broken") from error

    async def flow(self, until: float, sink: Sink) -> None:
        """Return at once: what comes must be decompressed first."""

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        """Give the connection back; see `base.Exchange.close`."""
        self._inner.close(linger_seconds, reuse=reuse)
