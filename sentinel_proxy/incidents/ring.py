"""Incidents as they are kept: records that grow, in a ring that does not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sentinel_proxy.incidents.words import MESSAGES, SEVERITIES
from sentinel_proxy.model import Incident, IncidentType


class Instant(NamedTuple):
    """One moment on both clocks: Unix seconds for others, monotonic ones to reckon with."""

    unix: float
    monotonic: float


class Rest(NamedTuple):
    """A breaker that is not closed: its state, and when its rest is over (monotonic seconds)."""

    state: str
    until: float


@dataclass(slots=True, eq=False)
class Record:
    """
    One incident while it may still change.

    Attributes:
        rests: Of an outage: the breakers that it consists of, by model; None: the provider's own.
    """

    id: str
    type: IncidentType
    provider: str | None
    began: Instant
    seen: Instant  # when it last showed
    details: dict[str, Any] = field(default_factory=dict)
    ended: Instant | None = None
    changed: bool = False  # since anybody was told
    rests: dict[str | None, Rest] = field(default_factory=dict)

    @property
    def timestamp(self) -> float:
        """Unix seconds, when it began."""
        return self.began.unix

    def incident(self) -> Incident:
        """Return it as of now."""
        ended = self.ended
        seconds = None if ended is None else max(0.0, round(ended.monotonic - self.began.monotonic, 3))
        return Incident(
            self.id,
            self.type,
            SEVERITIES[self.type],
            self.provider,
            self.began.unix,
            MESSAGES[self.type](self.provider or "", self.details, seconds),
            dict(self.details),
            None if ended is None else ended.unix,
            seconds,
        )


class Ring:
    """
    The records that are remembered, oldest first.

    Args:
        forgotten: Told of each record that had to go.
    """

    def __init__(self, capacity: int, forgotten: Callable[[Record], None]) -> None:
        self._capacity = capacity
        self._forgotten = forgotten
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def add(self, record: Record) -> None:
        """Keep *record*; where there is no room, forget the oldest that is over, or else the oldest."""
        if len(self._records) >= self._capacity:
            over = (each for each in self._records.values() if each.ended is not None)
            oldest = next(over, None) or next(iter(self._records.values()))
            del self._records[oldest.id]
            self._forgotten(oldest)
        self._records[record.id] = record

    def newest_first(self) -> Iterator[Record]:
        """Return the records, the latest first."""
        return reversed(self._records.values())
