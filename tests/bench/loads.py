"""
The load: wrk for calls at full speed, a loader of our own for streams and for single latencies.

The requests are what the official Python SDK sends. Ours counts what comes back: a proxy that is
quick because it loses chunks is not quick.
"""

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from canned import STAMP, STAMP_DIGITS
from machine import OTHER_CORE

PATH: Final = "/v1/chat/completions"
SDK_HEADERS: Final = {
    "Host": "localhost",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 2.41.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "2.41.0",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.12.3",
    "Authorization": "Bearer sk-of-a-caller",
    "X-Stainless-Async": "async:asyncio",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
_QUESTION: Final = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello! What can you do for me today? Please answer in one sentence."},
    ],
}
OPENING_SECONDS: Final = 0.001
"""Between two streams that are opened: no multiple of a pause, so that their phases are spread."""

_LENGTH: Final = re.compile(rb"content-length: (\d+)\r\n", re.IGNORECASE)


def request_bytes(*, stream: bool = False, chunks: int = 0, pause_seconds: float = 0.0) -> bytes:
    """Return one request as it goes over the wire."""
    body = json.dumps(_QUESTION | ({"stream": True} if stream else {}), separators=(",", ":")).encode()
    headers = dict(SDK_HEADERS)
    if stream:
        headers |= {"x-bench-chunks": str(chunks), "x-bench-pause": str(pause_seconds)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {PATH} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


# -- wrk ---------------------------------------------------------------------------------------

_REQUESTS: Final = re.compile(r"(\d+) requests in ([0-9.]+)(m?s)")
_TROUBLE: Final = re.compile(r"Socket errors: .*|Non-2xx or 3xx responses: \d+")


@dataclass(slots=True)
class Calls:
    """What wrk saw."""

    count: int
    per_second: float


def wrk(port: int, folder: Path, *, connections: int, seconds: float) -> Calls:
    """
    Call as fast as answers come.

    Raises:
        RuntimeError: A call failed.
    """
    script = folder / "call.lua"
    body = json.dumps(_QUESTION, separators=(",", ":"))
    fields = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in SDK_HEADERS.items())
    script.write_text(f"wrk.method = 'POST'\nwrk.body = [[{body}]]\n{fields}")
    command = ["taskset", "--cpu-list", str(OTHER_CORE), "wrk", "-t1", f"-c{connections}", "--timeout", "30s"]
    command += [f"-d{round(seconds)}s", "-s", str(script), f"http://127.0.0.1:{port}{PATH}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counted = _REQUESTS.search(said)
    if counted is None or _TROUBLE.search(said) is not None:
        raise RuntimeError(f"wrk had trouble: {said}")
    took = float(counted[2]) / (1000 if counted[3] == "ms" else 1)
    return Calls(int(counted[1]), int(counted[1]) / took)


# -- one call at a time ------------------------------------------------------------------------


class OneByOne:
    """One kept-alive connection that is called on, each call after the answer to the last."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request_bytes()

    def __enter__(self) -> "OneByOne":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self) -> float:
        """
        Return the seconds from writing a request to having the whole answer.

        Raises:
            RuntimeError: It is not the answer that was to come.
        """
        began = time.perf_counter()
        self._socket.sendall(self._request)
        answer = self._socket.recv(65_536)
        while not _is_whole(answer):
            if not (more := self._socket.recv(65_536)):
                break
            answer += more
        seconds = time.perf_counter() - began
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"an answer that was not to come: {answer[:200]!r}")
        return seconds


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n") if separator else None
    return length is not None and len(body) >= int(length[1])


# -- many streams ------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """What all streams of a load have brought so far."""

    chunks: int = 0
    streams: int = 0  # that have ended well
    broken: int = 0
    delays: list[float] = field(default_factory=list)  # seconds a chunk was on its way, if asked for
    sampling: bool = False


class _Stream(asyncio.Protocol):
    """One connection that asks for a stream again as soon as one has ended."""

    def __init__(self, request: bytes, chunks: int, seen: Seen) -> None:
        self._request = request
        self._expected = chunks
        self._seen = seen
        self._chunks = 0
        self._transport: asyncio.Transport
        self.began = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or self._chunks:
            self._seen.broken += 1

    def stop(self) -> None:
        """Close, and count that for nothing."""
        self._chunks = 0
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        seen = self._seen
        came = data.count(STAMP)
        self._chunks += came
        seen.chunks += came
        if came and seen.sampling:
            at = data.rfind(STAMP) + len(STAMP)
            if stamped := int(data[at : at + STAMP_DIGITS] or b"0"):
                seen.delays.append((time.monotonic_ns() - stamped) / 1e9)
        if came and not self.began.done():
            self.began.set_result(None)
        if data.endswith(b"0\r\n\r\n"):
            if self._chunks == self._expected:
                seen.streams += 1
            else:
                seen.broken += 1
            self._chunks = 0
            self._transport.write(self._request)


@asynccontextmanager
async def streams(port: int, count: int, *, chunks: int, pause_seconds: float) -> AsyncIterator[Seen]:
    """
    Keep *count* streams open; yield once all have begun.

    Raises:
        RuntimeError: Not all of them began.
    """
    loop = asyncio.get_running_loop()
    request = request_bytes(stream=True, chunks=chunks, pause_seconds=pause_seconds)
    seen = Seen()
    opened: list[_Stream] = []
    try:
        for _ in range(count):
            _, stream = await loop.create_connection(
                lambda: _Stream(request, chunks, seen), "127.0.0.1", port
            )
            opened.append(stream)
            await asyncio.sleep(OPENING_SECONDS)
        await _all_begun(opened)
        yield seen
    finally:
        for stream in opened:
            stream.stop()
        await asyncio.sleep(0.5)  # for both sides to close what was open


async def _all_begun(opened: Sequence[_Stream]) -> None:
    done, pending = await asyncio.wait([stream.began for stream in opened], timeout=30)
    if pending:
        raise RuntimeError(f"only {len(done)} of {len(opened)} streams began")
