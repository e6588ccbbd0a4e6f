"""
When a hedge is due, and whether it can be paid.

A hedge sends a second request for a call whose first one has not failed yet. What Dean and
Barroso measured for cheap requests ("The Tail at Scale", CACM 2013) holds here with a price tag
on each: one that fires after the 95th percentile adds about a twentieth of the requests, so it
waits for that, and a budget holds it there while everything is slow at once.
"""

from collections import deque
from typing import Final

BURST: Final = 5
"""Hedges that may come at once, after calls enough to pay for them."""

LEAST_SECONDS: Final = 1.0
"""No stream is called slow before this, however quick the others were."""

WINDOW_SECONDS: Final = 300.0
"""Older times to a first token say little about now."""

LEAST_SAMPLES: Final = 50
"""Of fewer, the slowest twentieth is two or three: chance, not a percentile."""

MAX_SAMPLES: Final = 1000
"""The latest of a busy window; the percentile of more would be no surer, only dearer."""

MAX_MODELS: Final = 100
"""Whose times are kept, at all providers together; callers can invent names."""

REFRESH_SECONDS: Final = 1.0
"""How old a computed percentile may be; sorting a full window takes some 100 microseconds."""


class HedgeBudget:
    """
    Tokens that calls earn and hedges spend; full at the start.

    Args:
        share: Hedges per call, 0 to 1: a call earns so much of a token.
    """

    __slots__ = ("_tokens", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self._tokens = float(BURST) if share else 0.0

    def __repr__(self) -> str:
        return f"<HedgeBudget of {self._tokens:.2f} tokens>"

    @property
    def spent(self) -> bool:
        """Whether there is not one whole token."""
        return self._tokens < 1.0 - 1e-9  # twenty times 0.05 is a little less than 1

    def note_call(self) -> None:
        """Earn what a call that might be hedged is worth."""
        self._tokens = min(self._tokens + self.share, float(BURST))

    def take(self) -> bool:
        """Spend one token if there is one; if not, nothing changes."""
        if self.spent:
            return False
        self._tokens -= 1.0
        return True


class FirstTokens:
    """
    How long the streams of each provider and model took to their first token, these five minutes.

    Models are told apart: by one measure for all of them, every call of a slow one would be late.
    Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], _Window] = {}  # the one that was begun first comes first

    def __repr__(self) -> str:
        return f"<FirstTokens of {len(self._windows)} models>"

    def note(self, provider: str, model: str, seconds: float, now: float) -> None:
        """One stream began *seconds* after it was asked for, or was given up by then."""
        key = (provider, model)
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= MAX_MODELS:
                del self._windows[next(iter(self._windows))]
            window = self._windows[key] = _Window()
        window.samples.append((now, seconds))

    def late_after(self, provider: str, model: str, now: float) -> float | None:
        """Return the seconds after which a stream is later than most; None if too few are known."""
        window = self._windows.get((provider, model))
        return None if window is None else window.late_after(now)


class _Window:
    """The recent times of one model, and what was last made of them."""

    __slots__ = ("_late_after", "_refresh_at", "samples")

    def __init__(self) -> None:
        self.samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)
        self._late_after: float | None = None
        self._refresh_at = 0.0

    def late_after(self, now: float) -> float | None:
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_SECONDS
            self._late_after = self._computed(now)
        return self._late_after

    def _computed(self, now: float) -> float | None:
        samples = self.samples
        while samples and samples[0][0] <= now - WINDOW_SECONDS:
            samples.popleft()
        if len(samples) < LEAST_SAMPLES:
            return None
        return max(LEAST_SECONDS, percentile_95([seconds for _, seconds in samples]))


def percentile_95(values: list[float]) -> float:
    """Return the smallest of *values* that at least 95 % of them do not exceed (nearest rank)."""
    return sorted(values)[(len(values) * 95 + 99) // 100 - 1]
