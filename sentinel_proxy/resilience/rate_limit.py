"""
A sliding-window rate limit that is exact.

The log of admitted requests is kept per client, so "100 in any 60 seconds" holds for every 60
seconds. A fixed window lets twice as much through at its border; a token bucket with the same
burst does so in its first window. Pure: *now* (monotonic seconds) is an argument.
"""

import math
from bisect import insort
from collections import OrderedDict, deque
from functools import lru_cache
from typing import Final, NamedTuple

MAX_KEYS: Final = 50_000
"""Clients remembered at once; whoever invents keys must not be able to fill the memory."""


class Decision(NamedTuple):
    """What the limiter says about one request; the last four are for response headers."""

    allowed: bool
    limit: int  # requests per window; 0: no limit applies
    remaining: int  # that would be admitted now, after this one
    retry_after_seconds: float  # until one more is admitted; 0 if it was allowed
    reset_seconds: float  # until the whole limit is free again


UNLIMITED: Final = Decision(allowed=True, limit=0, remaining=0, retry_after_seconds=0.0, reset_seconds=0.0)


class SlidingLog:
    """
    Admits at most *requests* per key in any *window_seconds*.

    Memory is one float for each request admitted in the window. Beyond *max_keys* the key that
    was silent longest is forgotten, and starts anew if it comes back.

    Args:
        requests: Limit of keys that have none of their own; 0 admits everything.
    """

    def __init__(self, requests: int, window_seconds: float, max_keys: int = MAX_KEYS) -> None:
        self.requests = requests
        self.window_seconds = window_seconds
        self.max_keys = max_keys
        self._logs: OrderedDict[str, deque[float]] = OrderedDict()  # silent keys first

    def __repr__(self) -> str:
        return f"<SlidingLog {self.requests} in {self.window_seconds} s, {len(self._logs)} keys>"

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._logs)

    def admit(self, key: str, now: float, *, limit: int | None = None) -> Decision:
        """
        Decide about one request and, if it is admitted, count it.

        A refused one is not counted, or an impatient client would never get out.

        Args:
            limit: Instead of the usual one, for clients that have their own; 0 is no limit.
        """
        limit = self.requests if limit is None else limit
        if limit <= 0:
            return UNLIMITED
        log = self._log_of(key, now)
        refused = _refusal(log, limit, now)
        if refused is not None:
            return refused
        log.append(now + self.window_seconds)
        return Decision(True, limit, limit - len(log), 0.0, self.window_seconds)

    def refusal(self, key: str, now: float, limit: int) -> Decision | None:
        """Return why a request would be refused, None if it would not be; counts nothing."""
        return _refusal(self._log_of(key, now), limit, now) if key in self._logs else None

    def note(self, key: str, at: float) -> None:
        """Count a request that somebody else has admitted; *at* may be earlier than those counted before."""
        insort(self._log_of(key, at), at + self.window_seconds)

    def _log_of(self, key: str, now: float) -> deque[float]:
        """
        Return the ends of the windows of the key's requests, without those that are over.

        Also notes that the key was here, which moves it to the far end of being forgotten.
        """
        log = self._logs.get(key)
        if log is None:
            self._make_room(now)
            log = self._logs[key] = deque()
            return log
        self._logs.move_to_end(key)
        while log and log[0] <= now:
            log.popleft()
        return log

    def _make_room(self, now: float) -> None:
        """Forget one key if there is no room, and up to two that count for nothing any more."""
        logs = self._logs
        if len(logs) >= self.max_keys:
            logs.popitem(last=False)
        for _ in range(min(2, len(logs))):
            silent, log = next(iter(logs.items()))
            if log and log[-1] > now:
                return
            del logs[silent]


def _refusal(log: deque[float], limit: int, now: float) -> Decision | None:
    excess = len(log) - limit
    if excess < 0:
        return None
    return Decision(False, limit, 0, log[excess] - now, log[-1] - now)  # above 0 after the limit was lowered


@lru_cache(maxsize=64)
def duration_text(seconds: float) -> str:
    """
    Write a duration as OpenAI's `x-ratelimit-reset-*` headers do: `120ms`, `12.5s`, `1m0s`.

    Rounded up to whole milliseconds, so that who waits this long does not come too early. A few are
    remembered: nearly all that are written are the window's own.
    """
    milliseconds = max(0, math.ceil(round(seconds * 1000, 6)))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
