"""
Incidents: the events folded into what an operator wants to read.

Ten thousand failed calls are one outage. `ledger` holds the rules, purely: an event and the
moment in, changes out. `ring` keeps the last few hundred, `pages` finds among them. `Incidents`
gives them a clock and a bus; each change is told as `IncidentChanged`. `merging` makes one
incident of what several replicas know of it. docs/incidents.md describes every type.
"""

from collections.abc import Callable
from typing import Any

from sentinel_proxy.clock import Clock
from sentinel_proxy.events import Bus, CallFinished, IncidentChanged
from sentinel_proxy.incidents.ledger import HEARD, Ledger
from sentinel_proxy.incidents.pages import page
from sentinel_proxy.incidents.ring import Instant
from sentinel_proxy.model import Incident, IncidentType
from sentinel_proxy.ulid import Ulids

__all__ = ["Incidents"]


class Incidents:
    """
    What has gone wrong lately, and what still does.

    Args:
        capacity: How many are remembered; the oldest that are over go first.
        emit: Told every change; must not raise or block. Where replicas share incidents this is
            `SharedIncidents.take`, which reports what comes of it for all of them.
        model_for: Returns a provider's own name for a caller's model: breakers know that one.
        mint: Names incidents, given Unix seconds.
    """

    def __init__(
        self,
        capacity: int,
        clock: Clock,
        emit: Callable[[IncidentChanged], None],
        *,
        model_for: Callable[[str, str], str] = lambda provider, model: model,
        mint: Callable[[float], str] | None = None,
    ) -> None:
        self._clock = clock
        self._emit = emit
        self._ledger = Ledger(capacity, mint or Ulids().mint, model_for)

    def __repr__(self) -> str:
        return f"<Incidents {len(self._ledger.ring)}, {len(self.ongoing())} ongoing>"

    def listen(self, bus: Bus) -> None:
        """Fold everything that *bus* carries from now on; subscribe last, so that causes precede."""
        for kind in HEARD:
            bus.subscribe(kind, self._hear)
        bus.subscribe(CallFinished, self._hear_call)

    def find(
        self,
        limit: int | None = None,
        type: IncidentType | None = None,
        provider: str | None = None,
        since: float | None = None,
        before: str | None = None,
    ) -> tuple[list[Incident], int]:
        """
        Return one page of the incidents that match, newest first, and how many match in all.

        Args:
            limit: At most so many; None: all.
            since: Unix seconds; only those that began then or later.
            before: An id; only those that are older: the last one of a page leads to the next.
        """
        found, total = page(self._ledger.ring.newest_first(), limit, type, provider, since, before)
        return [record.incident() for record in found], total

    async def refresh(self) -> None:
        """Do nothing: all that there is to find is here."""

    def ongoing(self) -> list[Incident]:
        """Return those that are not over, newest first."""
        return [incident for incident in self.find()[0] if incident.resolved_at is None]

    def _hear_call(self, event: CallFinished) -> None:
        if not self._ledger.is_no_news(event):
            self._hear(event)

    def _hear(self, event: Any) -> None:
        now = Instant(self._clock.time(), self._clock.monotonic())
        for change in self._ledger.fold(event, now):
            self._emit(change)
