"""
Time as an argument.

`Clock` is what the core may know of time. `SystemClock` is the only place that reads the
machine's; `testing.FakeClock` moves by hand. `utc_text` is how a moment is written for others.
"""

import asyncio
import time
from datetime import UTC, datetime
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


def utc_now() -> datetime:
    """Return the moment, in UTC, for those who write it down at once; who decides by time has a `Clock`."""
    return datetime.now(UTC)


def utc_text(unix_seconds: float) -> str:
    """Write a moment as RFC 3339 has it, in UTC and to the millisecond: `2026-03-01T10:00:00.250Z`."""
    text = datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
