"""How the calls of the last minutes went at one provider; a few numbers, whatever the load."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

SLOT_SECONDS: Final = 30.0
SLOTS: Final = 10
"""Five minutes: what is older says little about a provider that an outage may have changed since."""


@dataclass(slots=True)
class _Slot:
    number: int
    good: int = 0
    bad: int = 0
    seconds: float = 0.0  # until good answers began, summed


class Traffic:
    """Attempts that count, good or bad. Times are monotonic seconds."""

    __slots__ = ("_slots", "_until", "last_good")

    def __init__(self) -> None:
        self._slots: deque[_Slot] = deque(maxlen=SLOTS)
        self._until = -math.inf  # when the last of them ends
        self.last_good: float | None = None

    def good(self, seconds: float, now: float) -> None:
        """An attempt came to a good end; its answer took *seconds* to begin."""
        slot = self._slot(now)
        slot.good += 1
        slot.seconds += seconds
        self.last_good = now

    def bad(self, now: float) -> None:
        """An attempt failed, and the provider is to blame."""
        self._slot(now).bad += 1

    def success_share(self, now: float) -> float | None:
        """Return which share of the recent attempts was good, or None if there were none."""
        recent = self._recent(now)
        good = sum(slot.good for slot in recent)
        total = good + sum(slot.bad for slot in recent)
        return good / total if total else None

    def mean_seconds(self, now: float) -> float | None:
        """Return how long good answers took to begin, or None if there were none."""
        recent = self._recent(now)
        good = sum(slot.good for slot in recent)
        return sum(slot.seconds for slot in recent) / good if good else None

    def _slot(self, now: float) -> _Slot:
        if now >= self._until:
            number = int(now // SLOT_SECONDS)
            self._slots.append(_Slot(number))
            self._until = (number + 1) * SLOT_SECONDS
        return self._slots[-1]

    def _recent(self, now: float) -> list[_Slot]:
        oldest = int(now // SLOT_SECONDS) - SLOTS
        return [slot for slot in self._slots if slot.number > oldest]
