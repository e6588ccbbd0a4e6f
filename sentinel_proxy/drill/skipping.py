"""
An event loop that does not wait for time to pass.

Policies wait for minutes, a drill must not. So where nothing happens, neither here nor on any
socket, time is moved on instead of waited for. Everybody in the drill (proxy, callers, simulated
servers) lives in this one loop and reads its time, so each wait keeps its length and all
proportions stay: what is drilled is the policy as it is written, not a copy of it in small.

While something happens, time passes as usual: code that is slow is not hidden.
"""

import asyncio
import selectors
from collections.abc import Callable
from typing import Final

from sentinel_proxy.clock import SystemClock

QUIET_SECONDS: Final = 0.0003
"""Real seconds without an event before time is moved on: on loopback all that was sent has come by then."""

STEP_SECONDS: Final = 0.1
"""Time is moved on by no more at once, so that a machine that is slow for a moment costs little."""

LATE_SHARE: Final = 0.02
"""...but by this share of the silence so far, even past what is due: long waits may end so much too late."""

_Events = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.SelectSelector):
    """
    Where the loop would sleep, it looks whether there is anything to wait for.

    With select(2), since epoll would round so short a look up to a millisecond.
    """

    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self._skip = skip
        self._silence_seconds = 0.0

    def select(self, timeout: float | None = None) -> _Events:
        if timeout is None or timeout <= QUIET_SECONDS:
            events = super().select(timeout)
        elif not (events := super().select(QUIET_SECONDS)):
            step = max(min(timeout - QUIET_SECONDS, STEP_SECONDS), self._silence_seconds * LATE_SHARE)
            self._silence_seconds += step
            self._skip(step)
        if events:
            self._silence_seconds = 0.0
        return events


class SkippingLoop(asyncio.SelectorEventLoop):
    """Runs like any other, but `time()` runs ahead of the machine's by all that was skipped."""

    def __init__(self) -> None:
        self._skipped_seconds = 0.0
        super().__init__(_Selector(self.skip))

    def time(self) -> float:
        """Return monotonic seconds, the skipped ones included."""
        return super().time() + self._skipped_seconds

    def skip(self, seconds: float) -> None:
        """Move time on; what has become due by that runs next."""
        self._skipped_seconds += seconds


class LoopClock:
    """A `clock.Clock` that agrees with the running loop, whatever time it has."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._began_unix = SystemClock().time()

    def monotonic(self) -> float:
        """Return the loop's time."""
        return self._loop.time()

    def time(self) -> float:
        """Return Unix seconds: those of the start, and what has passed in the loop since."""
        return self._began_unix + self._loop.time() - self._began_at

    async def sleep(self, seconds: float) -> None:
        """Wait, in the loop's time."""
        await asyncio.sleep(seconds)
