"""
From facts to frames: what of all that happens is told on the live feed, and how.

A provider's status is told when it changes, and once for all changes of the same moment. That
happens right after the event that caused it, not within: whoever reports an event is in the
middle of something, and the status must be what it leaves behind.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sentinel_proxy.admin.broadcast import Broadcast
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
    """

    def __init__(
        self,
        broadcast: Broadcast,
        view: Callable[[], Mapping[str, dict[str, Any]]],
        totals: Callable[[], dict[str, Any]],
        clock: Clock,
        heartbeat_seconds: float,
    ) -> None:
        self._broadcast = broadcast
        self._view = view
        self._totals = totals
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds
        self._last: dict[str, tuple[Any, ...]] = {name: told(status) for name, status in view().items()}
        self._due = False

    def __repr__(self) -> str:
        return f"<Reporter to {self._broadcast!r}>"

    def listen(self, bus: Bus) -> None:
        """Tell what *bus* carries from now on."""
        for kind in (BreakerChanged, ProbeFinished, MappedModelsChecked):
            bus.subscribe(kind, self._something_changed)
        bus.subscribe(IncidentChanged, self._incident_changed)
        bus.subscribe(HealthChecked, self._round_is_over)
        bus.subscribe(Noticed, self._noticed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send heartbeats until the context is left."""
        task = asyncio.create_task(self._beat(), name="heartbeat of the live feed")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self._heartbeat_seconds)
            self._broadcast.heartbeat({"uptime_seconds": self._totals()["uptime_seconds"]})

    def tell_status(self, always: str | None = None) -> None:
        """Publish the status of every provider whose status has changed, and that of *always*."""
        self._due = False
        for name, status in self._view().items():
            if (now := told(status)) != self._last.get(name) or name == always:
                self._last[name] = now
                self._broadcast.publish("provider_status", {"provider": name, **status})

    def _something_changed(self, _: object) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self.tell_status)
            self._due = True

    def _incident_changed(self, event: IncidentChanged) -> None:
        self._broadcast.publish("incident", {"change": event.change, **event.incident.public()})

    def _round_is_over(self, _: HealthChecked) -> None:
        self._something_changed(None)
        self._broadcast.publish("metrics", self._totals())

    def _noticed(self, event: Noticed) -> None:
        payload = {"level": event.level, "message": event.message, "details": event.details}
        self._broadcast.publish("system", payload)
