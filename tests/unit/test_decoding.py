"""Compressed answers, read as if they were not."""

import gzip
import zlib
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import ReplyHead
from sentinel_proxy.upstream.base import Exchange
from sentinel_proxy.upstream.decoding import MAX_READ_BYTES, plain

pytestmark = pytest.mark.anyio


class Scripted(Exchange):
    """An exchange that hands out *parts*."""

    def __init__(self, *parts: bytes, coding: bytes | None = b"gzip") -> None:
        fields = [] if coding is None else [(b"content-encoding", coding), (b"content-length", b"9")]
        self.head = ReplyHead(200, [(b"content-type", b"application/json"), *fields])
        self.closed: list[float] = []
        self._parts = deque(part for part in parts if part)

    def __repr__(self) -> str:
        return "<Scripted>"

    @property
    def complete(self) -> bool:
        return not self._parts

    async def read(self, until: float) -> bytes:
        return self._parts.popleft() if self._parts else b""

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        self.closed.append(linger_seconds)


async def body_of(exchange: Exchange) -> bytes:
    parts = []
    while part := await exchange.read(0):
        assert len(part) <= MAX_READ_BYTES
        parts.append(part)
    assert exchange.complete
    return b"".join(parts)


@pytest.mark.parametrize("coding", [None, b"identity", b"br"], ids=str)
def test_what_is_not_compressed_in_a_way_we_know_is_left_alone(coding: bytes | None) -> None:
    exchange = Scripted(b"{}", coding=coding)

    assert plain(exchange) is exchange


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        (b"gzip", gzip.compress(b"plain")),
        (b"GZIP", gzip.compress(b"plain")),
        (b"x-gzip", gzip.compress(b"plain")),
        (b"deflate", zlib.compress(b"plain")),
    ],
    ids=["gzip", "in capitals", "x-gzip", "deflate"],
)
async def test_what_is_compressed_comes_out_plain(coding: bytes, data: bytes) -> None:
    exchange = plain(Scripted(data, coding=coding))

    assert await body_of(exchange) == b"plain"
    assert exchange.head.headers == [(b"content-type", b"application/json")]


@given(text=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2100)))
async def test_where_the_network_cuts_does_not_matter(text: bytes, cuts: list[int]) -> None:
    data = gzip.compress(text)
    parts = [data[start:end] for start, end in pairwise(sorted({0, *cuts, len(data)}))]

    assert await body_of(plain(Scripted(*parts))) == text


async def test_a_little_that_becomes_a_lot_comes_in_bounded_parts() -> None:
    zeros = 5 * MAX_READ_BYTES
    exchange = plain(Scripted(gzip.compress(bytes(zeros))))

    first = await exchange.read(0)

    assert len(first) == MAX_READ_BYTES
    assert not exchange.complete
    assert len(first) + len(await body_of(exchange)) == zeros


async def test_no_body_is_no_break() -> None:
    exchange = plain(Scripted())

    assert exchange.complete
    assert await exchange.read(0) == b""


async def test_what_follows_the_compressed_data_is_left_out() -> None:
    assert await body_of(plain(Scripted(gzip.compress(b"plain"), b"\0\0\0"))) == b"plain"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (gzip.compress(b"plain")[:-3], FailureKind.TRUNCATED),
        (b"not compressed at all", FailureKind.PROTOCOL),
    ],
    ids=["cut short", "not compressed"],
)
async def test_what_is_not_what_it_says_is_a_failure(data: bytes, kind: FailureKind) -> None:
    exchange = plain(Scripted(data))

    with pytest.raises(UpstreamError) as caught:
        await body_of(exchange)

    assert caught.value.kind is kind


def test_closing_it_closes_the_exchange_within() -> None:
    inner = Scripted()

    exchange = plain(inner)
    exchange.close(1.5)

    assert inner.closed == [1.5]
    assert repr(exchange) == "<DecodedExchange of <Scripted>>"
