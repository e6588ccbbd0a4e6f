"""
What of a request may be written to a server, and how: the one place that keeps smuggling out.

Whatever a caller or a plugin put into a path or a header, what leaves here is one request line
and one line a header (RFC 9112 §3, RFC 9110 §5.5).
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import lru_cache
from typing import Final

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Header, Headers, UpstreamRequest

REQUEST_LINE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.1")

OURS: Final = frozenset((b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"))
"""Host and framing belong to the transport: a second opinion about them is how smuggling works."""

SAYS_EMPTY: Final = frozenset(("POST", "PUT", "PATCH"))
"""Methods that announce even an empty body (RFC 9110 §8.6)."""

_CR, _LF, _NUL = b"\r\n\0"  # as numbers: looking for one in bytes costs a fifth of looking for a byte string


def request_line(request: UpstreamRequest) -> bytes:
    """
    Return the request line without its end.

    Raises:
        UpstreamError: `CALLER`; method or target hold what cannot stand there.
    """
    return _request_line(request.method, request.target)


@lru_cache(64)  # nearly all calls go to the same few targets; one that is refused is not remembered
def _request_line(method: str, target: str) -> bytes:
    line = f"{method} {target} HTTP/1.1"
    if REQUEST_LINE.fullmatch(line) is None:
        problem = "the request's path holds characters that a URL cannot"
        raise UpstreamError(FailureKind.CALLER, problem, status=400)
    return line.encode("ascii")


def safe_headers(headers: Headers) -> list[Header]:
    """Return *headers* without the transport's own and without those that hold CR, LF or NUL."""
    return [(name, value) for name, value in headers if name not in OURS and _fits_a_line(name + value)]


def render_head(request: UpstreamRequest, host_line: bytes) -> bytes:
    """
    Return everything before the body, the empty line included.

    Args:
        host_line: `host: example.com`.

    Raises:
        UpstreamError: As `request_line`.
    """
    fields = [b": ".join(field) for field in request.headers if field[0] not in OURS]
    # One look at the whole is cheaper than one at each, and nearly always enough.
    if not _fits_a_line(b"".join(fields)):
        fields = [b": ".join(field) for field in safe_headers(request.headers)]
    return b"\r\n".join([request_line(request), host_line, *fields, *_framing(request), b"", b""])


def _fits_a_line(text: bytes) -> bool:
    """Whether *text* holds neither CR nor LF nor NUL."""
    return not (_CR in text or _LF in text or _NUL in text)


async def measured(body: AsyncIterator[bytes], length: int | None) -> AsyncGenerator[bytes, None]:
    """
    Yield the pieces of *body* that are not empty, never more than *length* bytes together.

    *body* is closed at the end, however that comes.

    Raises:
        UpstreamError: `CALLER`; it is longer or shorter than *length*.
    """
    left = length
    try:
        async for piece in body:
            if left is not None:
                left -= len(piece)
                if left < 0:
                    break
            if piece:
                yield piece
        if left:
            raise UpstreamError(FailureKind.CALLER, "the request's body is not as long as it was declared")
    finally:
        if (aclose := getattr(body, "aclose", None)) is not None:
            await aclose()


def _framing(request: UpstreamRequest) -> Sequence[bytes]:
    """Return the header that says where the body ends (RFC 9112 §6), if one is needed."""
    if not isinstance(request.body, bytes):
        if request.body_length is None:
            return (b"transfer-encoding: chunked",)
        return (b"content-length: %d" % request.body_length,)
    if request.body or request.method in SAYS_EMPTY:
        return (b"content-length: %d" % len(request.body),)
    return ()
