import asyncio
import time

import pytest

from sentinel_proxy.wheel import STALL_SECONDS, TICK_SECONDS, Wheel

pytestmark = pytest.mark.anyio


async def rung_after(wheel: Wheel, *alarms: tuple[str, float]) -> list[str]:
    """Set *alarms* (name, seconds from now) and return their names in the order of ringing."""
    rung: list[str] = []
    start = time.monotonic()
    for name, seconds in alarms:
        wheel.set(start + seconds, lambda name=name: rung.append(name))  # type: ignore[misc]
    await asyncio.sleep(max(seconds for _, seconds in alarms) + 3 * TICK_SECONDS)
    return rung


async def test_alarms_ring_in_the_order_of_their_due_times() -> None:
    assert await rung_after(Wheel(), ("late", 0.08), ("early", 0.02), ("past", -1)) == [
        "past",
        "early",
        "late",
    ]


async def test_an_alarm_never_rings_early() -> None:
    wheel, rung = Wheel(), asyncio.Event()
    due = time.monotonic() + 0.03

    wheel.set(due, rung.set)
    await asyncio.wait_for(rung.wait(), 2)

    assert time.monotonic() >= due - 0.001  # the loop's own clock counts in milliseconds


async def test_a_cancelled_alarm_is_silent_and_forgotten() -> None:
    wheel, rung = Wheel(), []
    alarm = wheel.set(time.monotonic() + 0.02, lambda: rung.append(1))

    alarm.cancel()
    await asyncio.sleep(0.02 + 3 * TICK_SECONDS)

    assert (rung, len(wheel), repr(wheel)) == ([], 0, "<Wheel 0 alarms>")


async def test_an_alarm_can_be_moved_later_and_earlier() -> None:
    wheel, rung = Wheel(), []
    now = time.monotonic()
    later = wheel.set(now + 0.02, lambda: rung.append("later"))
    earlier = wheel.set(now + 600, lambda: rung.append("earlier"))

    later.move(now + 0.1)
    earlier.move(now + 0.04)
    await asyncio.sleep(0.1 + 3 * TICK_SECONDS)

    assert rung == ["earlier", "later"]


async def test_a_wheel_without_alarms_leaves_the_loop_alone() -> None:
    wheel = Wheel()

    await rung_after(wheel, ("only", 0.0))

    assert wheel._handle is None


async def test_after_a_stop_of_the_process_what_has_come_is_seen_before_alarms_ring() -> None:
    """A18."""
    loop, wheel, rung = asyncio.get_running_loop(), Wheel(), asyncio.Event()
    order: list[str] = []

    def ring() -> None:
        order.append("alarm")
        rung.set()

    wheel.set(loop.time() + 0.1, ring)
    time.sleep(0.1 + STALL_SECONDS + 2 * TICK_SECONDS)  # noqa: ASYNC251  # the stop: nothing may run
    loop.call_soon(loop.call_soon, order.append, "what came")  # seen one turn of the loop after the timers
    await asyncio.wait_for(rung.wait(), 5)

    assert order == ["what came", "alarm"]


async def test_what_takes_too_long_is_cancelled_and_what_does_not_leaves_no_alarm() -> None:
    loop, wheel = asyncio.get_running_loop(), Wheel()

    async with wheel.timeout_at(loop.time() + 60):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with wheel.timeout_at(loop.time() + 0.02):
            await asyncio.Event().wait()

    assert len(wheel) == 0
