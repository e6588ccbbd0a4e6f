"""
Many timers for the price of one.

Every call carries several time limits, nearly all of which never strike. A handle of the
event loop for each would cost more than relaying a chunk does, so alarms wait in the slots
of one coarse wheel: setting one appends to a list, moving one writes a number, and the loop
is woken once for a whole slot. Alarms ring up to `TICK_SECONDS` late and never early.
The idea is the hashed timing wheel of Varghese and Lauck (SOSP 1987).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

TICK_SECONDS: Final = 0.02
HORIZON_SECONDS: Final = 1.0
"""
An alarm further away waits in the slot at the horizon and is looked at again there, so that a
cancelled one is soon forgotten, however late it would have rung.
"""

STALL_SECONDS: Final = 0.5
"""
A wheel that is turned so much too late belongs to a process that was stopped meanwhile, with its
container or its machine. What was waited for has often come: the loop reads first, then alarms ring.
"""


class Alarm:
    """Something to be done at `due` (monotonic seconds) unless it is moved or cancelled."""

    __slots__ = ("_ring", "_tick", "_wheel", "due")

    def __init__(self, wheel: "Wheel", due: float, ring: Callable[[], None]) -> None:
        self._wheel = wheel
        self._ring: Callable[[], None] | None = ring
        self._tick = 0
        self.due = due

    def move(self, due: float) -> None:
        """Ring at *due* instead, earlier or later. A cancelled alarm stays cancelled."""
        self.due = due
        if due < (self._tick - 1) * TICK_SECONDS and self._ring is not None:
            self._wheel._place(self)

    def cancel(self) -> None:
        """Never ring. Cancelling twice, or after it rang, does nothing."""
        self._ring = None


class Wheel:
    """The alarms of one event loop; belongs to the loop that runs when the first one is set."""

    def __init__(self) -> None:
        self._slots: dict[int, list[Alarm]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._next_tick = 0
        self._stalled = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Wheel {sum(len(slot) for slot in self._slots.values())} alarms>"

    def __len__(self) -> int:
        """How many alarms may still ring."""
        waiting = (
            (alarm, tick)
            for tick, slot in self._slots.items()
            for alarm in slot
            if alarm._ring is not None and alarm._tick == tick
        )
        return sum(1 for _ in waiting)

    def set(self, due: float, ring: Callable[[], None]) -> Alarm:
        """
        Call *ring* once *due* (monotonic seconds) has passed.

        *ring* runs in the event loop and must not raise or block; it may set other alarms.
        """
        alarm = Alarm(self, due, ring)
        self._place(alarm)
        return alarm

    @asynccontextmanager
    async def timeout_at(self, due: float) -> AsyncIterator[None]:
        """
        Do what `asyncio.timeout_at` does, by an alarm.

        Raises:
            TimeoutError: What is inside did not end by *due* (monotonic seconds); it was cancelled.
        """
        async with asyncio.timeout(None) as limit:
            alarm = self.set(due, lambda: limit.reschedule(due))
            try:
                yield
            finally:
                alarm.cancel()

    def _place(self, alarm: Alarm) -> None:
        if (loop := self._loop) is None:
            loop = self._loop = asyncio.get_running_loop()
        due, horizon = alarm.due, loop.time() + HORIZON_SECONDS
        tick = alarm._tick = int((due if due < horizon else horizon) / TICK_SECONDS) + 1
        slot = self._slots.get(tick)
        if slot is None:
            self._slots[tick] = [alarm]
            if self._handle is None or tick < self._next_tick:
                self._wake_at(loop, tick)
        else:
            slot.append(alarm)

    def _wake_at(self, loop: asyncio.AbstractEventLoop, tick: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next_tick = tick
        self._handle = loop.call_at(tick * TICK_SECONDS, self._turn)

    def _turn(self) -> None:
        loop = self._loop
        assert loop is not None
        self._handle = None
        now = loop.time()
        self._stalled = not self._stalled and now - self._next_tick * TICK_SECONDS > STALL_SECONDS
        if self._stalled:
            self._wake_at(loop, int(now / TICK_SECONDS) + 2)
            return
        for tick in sorted(tick for tick in self._slots if tick * TICK_SECONDS <= now):
            for alarm in self._slots.pop(tick):
                ring = alarm._ring
                if ring is None or alarm._tick != tick:
                    continue  # cancelled, or moved to an earlier slot since
                if alarm.due > now:
                    self._place(alarm)
                    continue
                alarm._ring = None
                ring()
        if self._slots:
            first = min(self._slots)
            if self._handle is None or first < self._next_tick:
                self._wake_at(loop, first)
