"""The benchmark's load of streams finds whatever is wrong with one, wherever the network cuts."""

import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from select import select

import pytest

if sys.platform != "linux":
    pytest.skip("the benchmark knows Linux only", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from canned import CHUNK, STREAM_HEAD, last_chunk_of
from streams import Seen, Stream

WHOLE = STREAM_HEAD + CHUNK * 3 + last_chunk_of(4)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """What streams connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def judged(server: socket.socket, parts: Sequence[bytes], *, close: bool = False) -> tuple[bool | None, int]:
    """Send *parts*, each after the last one was read; return whether that was whole, and its chunks."""
    seen = Seen()
    stream = Stream(server.getsockname()[1], seen, sampled=True)
    upstream, _ = server.accept()
    with stream.socket, upstream:
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.ask(b"a request")
        for part in parts:
            upstream.sendall(part)
            select([stream.socket], [], [])
            stream.read()
        if close:
            upstream.shutdown(socket.SHUT_WR)
            select([stream.socket], [], [])
            stream.read()
    return stream.whole, seen.chunks


def test_a_stream_is_whole_wherever_it_is_cut(server: socket.socket) -> None:
    """Every chunk is counted once, and the end is found."""
    first = len(STREAM_HEAD)
    for cut in range(first, len(WHOLE)):
        assert judged(server, [WHOLE[:cut], WHOLE[cut:]]) == (True, 4)
    assert judged(server, [WHOLE[:first], *(bytes([byte]) for byte in WHOLE[first:])]) == (True, 4)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(STREAM_HEAD + CHUNK * 2 + last_chunk_of(4), id="a chunk is lost"),
        pytest.param(STREAM_HEAD + CHUNK * 4 + last_chunk_of(4), id="a chunk came twice"),
        pytest.param(WHOLE.replace(b"[DONE]", b"[GONE]"), id="no event says that it is done"),
        pytest.param(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", id="an error"),
    ],
)
def test_what_ends_otherwise_is_broken(server: socket.socket, sent: bytes) -> None:
    """No stream is whole that lacks anything, or has too much."""
    assert judged(server, [sent])[0] is False


def test_a_stream_without_a_last_http_chunk_is_not_over_before_the_connection_is(
    server: socket.socket,
) -> None:
    """Then it is broken."""
    assert judged(server, [WHOLE[:-5]])[0] is None
    assert judged(server, [WHOLE[:-5]], close=True)[0] is False
