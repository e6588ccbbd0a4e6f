"""
From facts to frames: what of all that happens is told on the live feed, and how.

A provider's status is told when it changes, and once for all changes of the same moment. That
happens right after the event that caused it, not within: whoever reports an event is in the
middle of something, and the status must be what it leaves behind.

Where replicas share a feed, each tells what happened at itself: what another one has moved or
found out is taken note of here, and told there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sentinel_proxy.admin.broadcast import Broadcast
from sentinel_proxy.background import background
from sentinel_proxy.clock import Clock
from sentinel_proxy.events import (
    BreakerChanged,
    Bus,
    HealthChecked,
    IncidentChanged,
    MappedModelsChecked,
    Noticed,
    ProbeFinished,
)
from sentinel_proxy.model import Frame

Status = Mapping[str, Any]


def told(status: Status) -> tuple[Any, ...]:
    """Return what of a provider's status is worth telling when it changes; numbers that drift are not."""
    breaker = status["circuit_breaker"]
    models = [(name, each["state"]) for name, each in status["models"].items() if each["state"] != "closed"]
    return (
        status["status"],
        status["routable"],
        breaker["state"],
        breaker["reason"],
        models,
        status["missing_models"],
    )


class Reporter:
    """
    Listens to the bus and publishes.

    Args:
        view: Returns every provider's status by name, as `GET /api/providers/status` gives it.
        totals: Returns the payload of a `metrics` frame.
        heartbeat_seconds: Between two heartbeats.
        tell: Given each frame; by default it is shown to those who listen here.
        leads: Whether this replica tells what concerns all, such as the totals.
        replica: The name that notices are signed with, where there may be others.
    """

    def __init__(
        self,
        broadcast: Broadcast,
        view: Callable[[], Mapping[str, dict[str, Any]]],
        totals: Callable[[], dict[str, Any]],
        clock: Clock,
        heartbeat_seconds: float,
        *,
        tell: Callable[[Frame], None] | None = None,
        leads: Callable[[], bool] = lambda: True,
        replica: str | None = None,
    ) -> None:
        self._broadcast = broadcast
        self._view = view
        self._totals = totals
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds
        self._last: dict[str, tuple[Any, ...]] = {name: told(status) for name, status in view().items()}
        self._tell = tell if tell is not None else broadcast.show
        self._leads = leads
        self._signature = {} if replica is None else {"replica": replica}
        self._due = False
        self._ours = False  # whether something of what is due happened here

    def __repr__(self) -> str:
        return f"<Reporter to {self._broadcast!r}>"

    def listen(self, bus: Bus) -> None:
        """Tell what *bus* carries from now on."""
        bus.subscribe(BreakerChanged, lambda event: self._something_changed(event.moved_by is None))
        bus.subscribe(ProbeFinished, lambda event: self._something_changed(event.told_by is None))
        bus.subscribe(MappedModelsChecked, lambda event: self._something_changed(event.told_by is None))
        bus.subscribe(IncidentChanged, self._incident_changed)
        bus.subscribe(HealthChecked, self._round_is_over)
        bus.subscribe(Noticed, self._noticed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send heartbeats until the context is left."""
        async with background(self._beat(), "heartbeat of the live feed"):
            yield

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self._heartbeat_seconds)
            self._broadcast.heartbeat({"uptime_seconds": self._totals()["uptime_seconds"]})

    def tell_status(self, always: str | None = None) -> None:
        """Publish the status of every provider whose status has changed, and that of *always*."""
        self._look(ours=True, always=always)

    def _look(self, *, ours: bool, always: str | None = None) -> None:
        """Take note of every status; publish what has changed if that happened here."""
        for name, status in self._view().items():
            before, self._last[name] = self._last.get(name), told(status)
            if name == always or (ours and before != self._last[name]):
                self._publish("provider_status", {"provider": name, **status})

    def _look_after(self) -> None:
        ours, self._due, self._ours = self._ours, False, False
        self._look(ours=ours)

    def _something_changed(self, here: bool) -> None:
        self._ours = self._ours or here
        if not self._due:
            asyncio.get_running_loop().call_soon(self._look_after)
            self._due = True

    def _incident_changed(self, event: IncidentChanged) -> None:
        self._publish("incident", {"change": event.change, **event.incident.public()})

    def _round_is_over(self, _: HealthChecked) -> None:
        leads = self._leads()
        self._something_changed(leads)
        if leads:
            self._publish("metrics", self._totals())

    def _noticed(self, event: Noticed) -> None:
        payload = {"level": event.level, "message": event.message, "details": event.details}
        self._publish("system", payload | self._signature)

    def _publish(self, event_type: str, payload: dict[str, Any]) -> None:
        self._tell(self._broadcast.frame(event_type, payload))
