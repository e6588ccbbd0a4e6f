"""Time in a drill: it passes without being waited for, and never before what happens."""

import asyncio
import socket
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from sentinel_proxy.drill.skipping import LATE_SHARE, STEP_SECONDS, LoopClock, SkippingLoop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(work)


@pytest.mark.parametrize("seconds", [0.05, 5.0, 30.0, 600.0])
def test_a_wait_takes_as_long_as_it_says_and_hardly_any_time(seconds: float) -> None:
    async def wait() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        return asyncio.get_running_loop().time() - began

    began = time.monotonic()
    waited = run(wait())
    real_seconds = time.monotonic() - began

    assert seconds <= waited + 0.001
    assert waited <= seconds * (1 + LATE_SHARE) + 2 * STEP_SECONDS + real_seconds
    assert seconds < 5 or real_seconds < seconds / 5


def test_what_is_due_first_happens_first() -> None:
    happened: list[int] = []

    async def at(seconds: int) -> None:
        await asyncio.sleep(seconds)
        happened.append(seconds)

    async def all_of_them() -> None:
        await asyncio.gather(*(at(seconds) for seconds in (300, 5, 60, 1)))

    run(all_of_them())

    assert happened == [1, 5, 60, 300]


def test_bytes_on_a_socket_come_before_time_that_is_skipped() -> None:
    async def exchange() -> list[float]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        _, other = await asyncio.open_connection(sock=theirs)
        late = []
        for _ in range(10):
            began = loop.time()
            async with asyncio.timeout(5):
                other.write(b"x")
                await reader.readexactly(1)
            late.append(loop.time() - began)
        writer.close()
        other.close()
        return late

    assert max(run(exchange())) < 5


def test_code_that_is_slow_is_not_hidden() -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass
        return loop.time() - began

    assert run(work()) >= 0.02


def test_time_can_be_passed_at_once() -> None:
    async def rest() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)
        clock = LoopClock()
        before, unix = clock.monotonic(), clock.time()
        loop.skip(3600)
        return clock.monotonic() - before, clock.time() - unix

    monotonic, unix = run(rest())

    assert monotonic == pytest.approx(3600, abs=1)
    assert unix == pytest.approx(3600, abs=1)


def test_the_clock_of_a_drill_agrees_with_its_loop() -> None:
    async def wait() -> tuple[float, float]:
        clock = LoopClock()
        await clock.sleep(60)
        return clock.monotonic(), asyncio.get_running_loop().time()

    clock, loop = run(wait())

    assert clock == pytest.approx(loop, abs=0.5)
