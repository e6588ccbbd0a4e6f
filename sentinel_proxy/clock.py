"""
Time as an argument.

`Clock` is what the core may know of time. `SystemClock` is the only place that reads the
machine's; `testing.FakeClock` moves by hand.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Durations and `monotonic` are seconds, `time` is Unix seconds."""

    def monotonic(self) -> float:
        """Return a reading that never goes back; only differences mean something."""
        ...

    def time(self) -> float:
        """Return Unix seconds, for what leaves the process: logs, incidents, stored states."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; cancelling ends the wait at once."""
        ...


class SystemClock:
    """The machine's clock. `monotonic` agrees with the event loop's `loop.time()`."""

    def __repr__(self) -> str:
        return "<SystemClock>"

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    sleep = staticmethod(asyncio.sleep)
