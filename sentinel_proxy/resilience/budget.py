"""
How many retries an upstream may be burdened with.

When an upstream fails, every call becomes two: the load doubles just when there is no capacity
for it. So retries are at most a share of recent calls. Failing over is not charged here: the
next provider is another destination, and in a full outage of the first every call needs it.
The idea is Finagle's retry budget.
"""

from typing import Final

WINDOW_SECONDS: Final = 10
"""What counts as recent, to the second."""

FREE_RETRIES: Final = 3
"""Retries that are always allowed in a window: a share of little traffic would be none at all."""


class RetryBudget:
    """
    The calls and retries of the last ten seconds at one upstream.

    Args:
        share: Retries per call, 0 to 1.
    """

    __slots__ = ("_calls", "_calls_by_second", "_retries", "_retries_by_second", "_second", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self._second = 0  # the last one that anything was noted in
        self._calls = self._retries = 0  # the sums of the rings below
        self._calls_by_second = [0] * WINDOW_SECONDS
        self._retries_by_second = [0] * WINDOW_SECONDS

    def __repr__(self) -> str:
        return f"<RetryBudget {self._retries} retries for {self._calls} calls>"

    def note_call(self, now: float) -> None:
        """Count a call's first attempt."""
        second = int(now)
        if second != self._second:
            self._turn(second)
        self._calls += 1
        self._calls_by_second[second % WINDOW_SECONDS] += 1

    def take(self, now: float) -> bool:
        """Charge one retry if the budget allows it; if not, nothing is charged."""
        second = int(now)
        if second != self._second:
            self._turn(second)
        if self._retries >= max(FREE_RETRIES, int(self.share * self._calls)):
            return False
        self._retries += 1
        self._retries_by_second[second % WINDOW_SECONDS] += 1
        return True

    def _turn(self, second: int) -> None:
        """Forget the seconds that have left the window by *second*."""
        for passed in range(max(self._second + 1, second - WINDOW_SECONDS + 1), second + 1):
            slot = passed % WINDOW_SECONDS
            self._calls -= self._calls_by_second[slot]
            self._retries -= self._retries_by_second[slot]
            self._calls_by_second[slot] = self._retries_by_second[slot] = 0
        self._second = second
