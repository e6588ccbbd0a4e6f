"""
The proxy that is soaked, and a witness inside it who says what only this process can know.

    python tests/bench/soaked.py WITNESS_FD OPENAI_PORT OLLAMA_PORT

serves as `sentinel-proxy serve` does, on a free port, its log on stdout. Each line that comes on the
witness's socket is answered by one line of JSON; "collect" has the garbage collector look first. It
ends when that socket does.
"""

import asyncio
import gc
import re
import socket
import sys
from collections import Counter
from typing import Any, Final

import orjson
from pydantic import SecretStr

from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    HealthConfig,
    HedgeConfig,
    Loaded,
    ProviderConfig,
    RateLimitConfig,
    RetryConfig,
    StateConfig,
)
from sentinel_proxy.server import Server, listen
from sentinel_proxy.upstream.http1 import Http1Transport
from sentinel_proxy.workers.process import Process

COLLECT: Final = b"collect\n"
COMMON_TYPES: Final = 12
_NUMBER: Final = re.compile(r"-\d+$")


def configuration(openai_port: int, ollama_port: int) -> Config:
    """
    Return one in which every feature is on, and what was broken is soon tried again.

    What is remembered is remembered for seconds, and little of it: after 50 000 calls there is as much
    as there will ever be.
    """
    return Config(
        providers=(
            ProviderConfig(
                name="openai",
                kind="openai",
                base_url=f"http://127.0.0.1:{openai_port}/v1",
                api_key=SecretStr("sk-of-the-soak"),
            ),
            ProviderConfig(
                name="ollama",
                kind="ollama",
                base_url=f"http://127.0.0.1:{ollama_port}",
                models={"*": "llama3.2"},
            ),
        ),
        retry=RetryConfig(backoff=0.01),
        breaker=BreakerConfig(recovery_timeout=0.2, max_recovery_timeout=1),
        hedge=HedgeConfig(enabled=True, delay=0.05),
        health=HealthConfig(interval=5),
        rate_limit=RateLimitConfig(requests=1_000_000_000, window=5),
        state=StateConfig(incidents=20, events=100),
    )


class Witness:
    """Looks at a proxy from inside whenever it is asked."""

    def __init__(self, server: Server, process: Process, port: int, questions: socket.socket) -> None:
        self._server = server
        self._proxy = process.proxy
        self._log = process.log
        self._port = port
        self._socket = questions

    def listen(self) -> None:
        """Answer from now on, in the running event loop."""
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._asked)

    def _asked(self) -> None:
        question = self._socket.recv(64)
        if not question:  # whoever measures is gone
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._server.stop()
            return
        collected = gc.collect() if question == COLLECT else 0
        self._socket.sendall(orjson.dumps({**self._seen(), "collected": collected}) + b"\n")

    def _seen(self) -> dict[str, Any]:
        proxy = self._proxy
        now = proxy.clock.monotonic()
        transports = [
            upstream.transport
            for upstream in proxy.upstreams
            if isinstance(upstream.transport, Http1Transport)
        ]
        breakers = [
            breaker
            for upstream in proxy.upstreams
            for breaker in (upstream.breakers.own, *upstream.breakers.models_view().values())
        ]
        objects = Counter(type(thing).__name__ for thing in gc.get_objects())  # since the start, not imports
        return {
            "port": self._port,
            "tasks": Counter(_name(task) for task in asyncio.all_tasks()),
            "alarms": len(proxy.wheel),
            "timers": objects["TimerHandle"],
            "callers": len(self._server.server_state.connections),
            "watchers": proxy.feed.subscribers,
            "in_flight": proxy.load.in_flight,
            "open_streams": proxy.load.open_streams,
            "attempts": sum(upstream.in_flight for upstream in proxy.upstreams),
            "exchanges": sum(transport.active for transport in transports),
            "idle_connections": sum(transport.idle for transport in transports),
            "trials": sum(breaker.trials(now) for breaker in breakers),
            "lost_lines": self._log.sink.lost,
            "objects": sum(objects.values()),
            "common_objects": dict(objects.most_common(COMMON_TYPES)),
        }


def _name(task: asyncio.Task[Any]) -> str:
    """Return what kind of task it is: its name without a number, or what it runs."""
    name = task.get_name()
    return getattr(task.get_coro(), "__qualname__", name) if _NUMBER.search(name) else name


def main(witness_fd: int, openai_port: int, ollama_port: int) -> None:
    """Serve until a signal comes."""
    loaded = Loaded(configuration(openai_port, ollama_port), (), None)
    process = Process(loaded, lambda: loaded)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with socket.socket(fileno=witness_fd) as questions:
        process.run(listener, lambda server: Witness(server, process, port, questions).listen())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
