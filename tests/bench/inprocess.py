"""
A call through the whole application, without a socket: what our own code costs.

The figures do not depend on what else the machine does, so they can be compared from one release to
the next: the CPU time of a call as a multiple of a fixed piece of Python that runs in the same
moment, and, where valgrind is installed, the machine instructions of a call.

    python tests/bench/inprocess.py CALLS

makes so many calls and ends.
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
from typing import Any, Final

from canned import PLAIN
from loads import PATH, request_bytes
from starlette.types import Message

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import Config, HealthConfig, LogConfig, ProviderConfig, RateLimitConfig
from sentinel_proxy.events import Bus
from sentinel_proxy.log import Log
from sentinel_proxy.model import Header, Headers, ReplyHead, UpstreamRequest
from sentinel_proxy.upstream.base import Exchange, Transport

ROUNDS: Final = 9
CALLS: Final = 500

_HEAD, _, _BODY = PLAIN.partition(b"\r\n\r\n")


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


class Application:
    """The application with every feature on, and one request to ask it again and again."""

    def __init__(self) -> None:
        bus = Bus()
        Log(LogConfig(), io.BytesIO()).listen(bus)
        config = Config(
            providers=(ProviderConfig(name="openai", kind="openai", base_url="http://127.0.0.1:1/v1"),),
            rate_limit=RateLimitConfig(requests=1_000_000_000),
            health=HealthConfig(interval=3600),
        )
        self.proxy = Proxy(config, bus=bus, transport=lambda provider, wheel: _NoSockets())
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
    if shutil.which("valgrind") is None:
        return None
    few, many = 200, 700
    return (_instructions(many) - _instructions(few)) / (many - few)


def _instructions(calls: int) -> int:
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    said = subprocess.run(
        [*command, sys.executable, __file__, str(calls)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "0"},
    ).stderr
    counted = re.search(r"I\s+refs:\s+([0-9,]+)", said)
    if counted is None:
        raise RuntimeError(f"valgrind counted nothing: {said[-1000:]}")
    return int(counted[1].replace(",", ""))


if __name__ == "__main__":
    gc.disable()  # when it runs, and over how much, is chance
    asyncio.run(Application().call(int(sys.argv[1])))
