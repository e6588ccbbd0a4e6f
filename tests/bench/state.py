"""
What a Redis carries for this proxy: each operation of the store, there and here.

    .venv/bin/python tests/bench/state.py [--operations N]

The server has one core, this process another. CPU is read from the server's own account and from
this process's; what one operation costs does not depend on how busy the machine is otherwise. The
last line is what one replica asks of it that has no calls at all. docs/operations/scaling.md
reckons with these figures.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import OTHER_CORE, described
from redis_support import RedisServer

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import Config, ProviderConfig, StateConfig
from sentinel_proxy.model import Frame
from sentinel_proxy.server import running
from sentinel_proxy.stores.records import BreakerRecord, Contribution
from sentinel_proxy.stores.redis import RedisStore
from sentinel_proxy.ulid import Ulids

SERVER_CORE: Final = 0
AT_ONCE: Final = 8
IDLE_SECONDS: Final = 20.0

Operation = Callable[[RedisStore, int], Awaitable[object]]

_mint = Ulids().mint
_FRAME: Final = '{"event_type": "system", "payload": "' + "x" * 400 + '"}'


async def _admit(store: RedisStore, number: int) -> None:
    await store.admit(f"client-{number % 1000}", 100, 60.0, 1)


async def _admit_ten(store: RedisStore, number: int) -> None:
    await store.admit(f"busy-{number % 1000}", 1000, 60.0, 10)


async def _append(store: RedisStore, _: int) -> None:
    await store.append([Frame(_mint(time.time()), "system", _FRAME)])


async def _merge(store: RedisStore, number: int) -> None:
    record = BreakerRecord("openai", f"m{number % 10}", "open", 0, number, 30.0, 0.0, 1, "timeout", "R")
    await store.merge_breaker(record)


async def _contribute(store: RedisStore, number: int) -> None:
    part = Contribution(f"outage openai m{number % 10}", "R", f"I{number % 500}", False, b"x" * 600)
    await store.contribute(part, frozenset("R"))


async def _lease(store: RedisStore, _: int) -> None:
    await store.take_lease("probes", "R", 6.0)


def _beat(replicas: int) -> Operation:
    """Return what says that one of so many is there, and hears of all."""

    async def beat(store: RedisStore, number: int) -> None:
        await store.beat(f"replica-{number % replicas}", b"x" * 300, 60.0)

    return beat


OPERATIONS: Final[dict[str, Operation]] = {
    "rate limit, one call": _admit,
    "rate limit, ten calls of one client": _admit_ten,
    "event": _append,
    "breaker": _merge,
    "incident": _contribute,
    "lease": _lease,
    "presence, of 10 replicas": _beat(10),
    "presence, of 100 replicas": _beat(100),
}


async def _cpu_seconds(server: RedisServer) -> float:
    """Return what the server has spent so far."""
    used = await server.command("INFO", "cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def _measured(server: RedisServer, store: RedisStore, operation: Operation, count: int) -> str:
    """Return the server's and our CPU of one operation in microseconds, and operations a second."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await operation(store, number)

    there, here, began = await _cpu_seconds(server), time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    seconds = time.perf_counter() - began
    there, here = await _cpu_seconds(server) - there, time.process_time() - here
    return f"{there / count * 1e6:8.0f} {here / count * 1e6:8.0f} {count / seconds:10.0f}"


async def _idle(server: RedisServer) -> float:
    """Return the commands a second that one replica without calls asks for."""
    config = Config(
        providers=(ProviderConfig(name="openai", kind="openai", base_url="http://127.0.0.1:9/v1"),),
        state=StateConfig(url=server.url),
    )

    async def commands() -> int:
        return int((await server.command("INFO", "stats"))["total_commands_processed"])

    async with running(Proxy(config)):
        await asyncio.sleep(3)
        before = await commands()
        await asyncio.sleep(IDLE_SECONDS)
        return (await commands() - before) / IDLE_SECONDS


async def _run(count: int) -> None:
    async with RedisServer() as server:
        assert server.process is not None
        os.sched_setaffinity(server.process.pid, {SERVER_CORE})
        store = RedisStore(server.url, "bench", 500, 500)
        await store.open()
        version = (await server.command("INFO", "server"))["redis_version"]
        print(f"{described()}; Redis {version}, {AT_ONCE} at once\n")
        print(f"{'':36}{'CPU in µs':>17}{'':>10}\n{'operation':36}{'there':>8} {'here':>8} {'a second':>10}")
        for name, operation in OPERATIONS.items():
            print(f"{name:36}{await _measured(server, store, operation, count)}")
        await store.aclose()
        await server.command("FLUSHALL")
        print(f"\none replica without calls: {await _idle(server):.1f} commands a second")


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python tests/bench/state.py", description=__doc__)
    parser.add_argument("--operations", type=int, default=5000, help="of each kind (default: 5000)")
    given = parser.parse_args(arguments)
    os.sched_setaffinity(0, {OTHER_CORE})
    asyncio.run(_run(given.operations))


if __name__ == "__main__":
    main(sys.argv[1:])
