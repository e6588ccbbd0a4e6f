"""
A call through the whole application, without a socket: what our own code costs.

The figures do not depend on what else the machine does, so they can be compared from one release to
the next: the CPU time of a call as a multiple of a fixed piece of Python that runs in the same
moment, and, where valgrind is installed, the machine instructions of a call.

    python tests/bench/inprocess.py COUNT [calls | chunks]

makes so many calls, or one for a stream of so many chunks, and ends.
"""

import asyncio
import gc
import io
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from canned import PLAIN
from loads import PATH, request_bytes
from starlette.types import Message
from uvicorn.server import ServerState

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import Config, HealthConfig, LogConfig, ProviderConfig, RateLimitConfig
from sentinel_proxy.events import Bus
from sentinel_proxy.inbound import Inbound
from sentinel_proxy.log import Log
from sentinel_proxy.model import Header, Headers, ReplyHead, UpstreamRequest
from sentinel_proxy.upstream.base import Exchange, Transport
from sentinel_proxy.upstream.connection import Connection
from sentinel_proxy.upstream.http1 import Http1Transport
from sentinel_proxy.wheel import Wheel

ROUNDS: Final = 9
_ENVIRONMENT: Final = {
    "PYTHONHASHSEED": "0",  # so that dictionaries are the same each time
    "PYTHONPATH": str(Path(__file__).parents[2]),  # so that what is measured is what lies beside this
}
CALLS: Final = 500

_HEAD, _, _BODY = PLAIN.partition(b"\r\n\r\n")
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"x-request-id: req_4f1b6c0b7f6c4d0f8a2c\r\n\r\n"
)
_EVENT: Final = (
    b'data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk",'
    b'"created":1741570283,"model":"gpt-4o-mini-2024-07-18","service_tier":"default",'
    b'"system_fingerprint":"fp_06737a9306","choices":[{"index":0,"delta":{"content":" word"},'
    b'"logprobs":null,"finish_reason":%b}]}\n\n'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_CHUNK: Final = _chunk(_EVENT % b"null")
_LAST_CHUNK: Final = _chunk(_EVENT % b'"stop"' + b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _headers_of(head: bytes) -> list[Header]:
    pairs = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    return [(name.lower(), value) for name, _, value in pairs]


class _Canned(Exchange):
    """An answer that is all here."""

    def __init__(self) -> None:
        self.head = ReplyHead(200, _ANSWER_HEADERS)
        self._left = _BODY

    @property
    def complete(self) -> bool:
        return not self._left

    async def read(self, until: float) -> bytes:
        body, self._left = self._left, b""
        return body

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        return


class _NoSockets(Transport):
    async def open(self, request: UpstreamRequest, *, connect_seconds: float, until: float) -> Exchange:
        return _Canned()

    async def aclose(self) -> None:
        return


_ANSWER_HEADERS: Final[Headers] = tuple(_headers_of(_HEAD))


def _proxy(transport: Callable[[Wheel], Transport]) -> Proxy:
    """Return the application with every feature on, and one provider behind *transport*."""
    bus = Bus()
    Log(LogConfig(), io.BytesIO()).listen(bus)
    config = Config(
        providers=(ProviderConfig(name="openai", kind="openai", base_url="http://127.0.0.1:1/v1"),),
        rate_limit=RateLimitConfig(requests=1_000_000_000),
        health=HealthConfig(interval=3600),
    )
    return Proxy(config, bus=bus, transport=lambda provider, wheel: transport(wheel))


class Application:
    """The application, and one request to ask it again and again."""

    def __init__(self) -> None:
        self.proxy = _proxy(lambda _: _NoSockets())
        head, _, self._body = request_bytes().partition(b"\r\n\r\n")
        self._headers = _headers_of(head)
        self.answered = 0

    async def call(self, times: int) -> None:
        """
        Call so many times.

        Raises:
            RuntimeError: An answer was not 200.
        """
        before = self.answered
        for _ in range(times):
            await self.proxy(self._scope(), self._receive, self._send)
        if self.answered != before + times:
            raise RuntimeError("an answer was not 200")

    def _scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
            "scheme": "http",
            "root_path": "",
            "method": "POST",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": list(self._headers),
            "state": {},
        }

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered += message["status"] == 200


class _Wire:
    """What a protocol takes for its transport; *first* is called once, when something is written."""

    def __init__(self, protocol: asyncio.Protocol, first: Callable[[], object]) -> None:
        self._first = first
        self._written: deque[bytes] = deque(maxlen=1)
        self.write: Callable[[bytes], None] = self._write_first
        protocol.connection_made(cast(asyncio.Transport, self))

    def _write_first(self, data: bytes) -> None:
        self.write = self._written.append  # no Python of ours: it stands for the loop's
        self._first()

    @property
    def last(self) -> bytes:
        """What was written last."""
        return self._written[-1]

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


class _NoServer(Http1Transport):
    """The real client, whose connections lead to *told* instead of to a server."""

    def __init__(self, wheel: Wheel, told: Callable[[Connection], None]) -> None:
        super().__init__("http://127.0.0.1:1", wheel)
        self._told = told

    async def _connect(self, connect_seconds: float, until: float) -> Connection:
        connection = self._make()
        _Wire(connection, lambda: self._told(connection))
        return connection


class Streaming:
    """The application between a caller's connection and a provider's, both real but for their sockets."""

    def __init__(self) -> None:
        self._proxy = _proxy(lambda wheel: _NoServer(wheel, self._begin))
        self._config = uvicorn.Config(self._proxy, interface="asgi3", log_config=None)
        self._config.load()
        self._provider: Connection

    async def call(self, chunks: int) -> None:
        """
        Ask for a stream of so many chunks, each of which comes in a read of its own.

        Raises:
            RuntimeError: It did not come to its end.
        """
        caller = Inbound(self._config, ServerState(), {}, wheel=self._proxy.wheel)
        loop = asyncio.get_running_loop()
        wire = _Wire(caller, lambda: loop.call_soon(self._go_on, chunks))
        caller.data_received(request_bytes(stream=True))
        await asyncio.gather(*caller.state.tasks)
        if not wire.last.endswith(b"0\r\n\r\n"):
            raise RuntimeError("the stream did not come to its end")

    def _begin(self, provider: Connection) -> None:
        """The provider has the request: its answer begins."""
        self._provider = provider
        asyncio.get_running_loop().call_soon(provider.data_received, _STREAM_HEAD + _CHUNK)

    def _go_on(self, chunks: int) -> None:
        """The caller has the first chunk, and who relays is waiting: here is the rest."""
        for _ in range(chunks - 1):
            self._provider.data_received(_CHUNK)
        self._provider.data_received(_LAST_CHUNK)


def ratio_to_plain_python() -> float:
    """CPU of a call as a multiple of `_plain_python`, the median of rounds that take turns."""

    async def measured() -> float:
        application = Application()
        await application.call(CALLS)
        ratios = []
        for _ in range(ROUNDS):
            began = time.process_time()
            await application.call(CALLS)
            between = time.process_time()
            for _ in range(CALLS):
                _plain_python()
            ratios.append((between - began) / (time.process_time() - between))
        return statistics.median(ratios)

    return asyncio.run(measured())


def _plain_python() -> int:
    """Do what Python programs do: calls, attributes, dictionaries, bytes. Never change this."""
    total = 0
    table: dict[str, int] = {}
    for number in range(100):
        table[f"key {number % 10}"] = number
        total += len(b"%d" % number) + sum(table.values())
    return total


def instructions_per_call() -> float | None:
    """Machine instructions of a call, Python's own included; None without valgrind."""
    return _per_one_more(200, 700)


def instructions_per_chunk() -> float | None:
    """Machine instructions of a chunk, from the one connection to the other; None without valgrind."""
    return _per_one_more(500, 2500, "chunks")


def _per_one_more(few: int, many: int, *of: str) -> float | None:
    if shutil.which("valgrind") is None:
        return None
    # Once before, so that neither of the two has modules to compile.
    subprocess.run([sys.executable, __file__, "1", *of], check=True, env=_ENVIRONMENT)
    return (_instructions(many, *of) - _instructions(few, *of)) / (many - few)


def _instructions(count: int, *of: str) -> int:
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    said = subprocess.run(
        [*command, sys.executable, __file__, str(count), *of],
        capture_output=True,
        text=True,
        check=True,
        env=_ENVIRONMENT,
    ).stderr
    counted = re.search(r"I\s+refs:\s+([0-9,]+)", said)
    if counted is None:
        raise RuntimeError(f"valgrind counted nothing: {said[-1000:]}")
    return int(counted[1].replace(",", ""))


async def _run(count: int, of: str = "calls") -> None:
    await (Streaming().call(count) if of == "chunks" else Application().call(count))


if __name__ == "__main__":
    gc.disable()  # when it runs, and over how much, is chance
    asyncio.run(_run(int(sys.argv[1]), *sys.argv[2:]))
