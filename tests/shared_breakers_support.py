"""Replicas that share breakers through a store in memory; time and messages move only by hand."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fake_store import FakeState

from sentinel_proxy.config import BreakerConfig
from sentinel_proxy.errors import BreakerOpen, FailureKind, UpstreamError
from sentinel_proxy.events import BreakerChanged, Bus, Event
from sentinel_proxy.model import StateHealth
from sentinel_proxy.replica.breakers import SharedBreakers
from sentinel_proxy.replica.link import Link
from sentinel_proxy.resilience.breaker import Breaker, State
from sentinel_proxy.resilience.scopes import ProviderBreakers, ScopedPermit
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.stores.records import BreakerRecord, Resumed
from sentinel_proxy.testing import FakeClock

MODEL = "gpt-4o"
OF_PROVIDER = FailureKind.RESET
OF_MODEL = FailureKind.OVERLOADED


class Replica:
    """One process: the breakers of provider "openai", and what they share with those of others."""

    def __init__(self, state: FakeState, clock: FakeClock, name: str, **settings: Any) -> None:
        self.clock = clock
        self.name = name
        self.store = state.store()
        self.health = StateHealth()
        self.events: list[Event] = []
        self.link = Link(self.store, clock, self.health, self.events.append, name)
        self.health.up = True
        self.shared = SharedBreakers(self.link, self._chain, clock)
        config = BreakerConfig(**settings)
        bus = Bus()
        bus.subscribe(BreakerChanged, self.events.append)
        self.shared.listen(bus)
        self.breakers = ProviderBreakers(
            "openai", config, bus.emit, leases=self.shared.leases("openai", config.half_open_permits)
        )

    def __repr__(self) -> str:
        return f"<Replica {self.name}: {self.breakers}>"

    def _chain(self) -> Mapping[str, ProviderBreakers]:
        return {"openai": self.breakers}

    @property
    def own(self) -> Breaker:
        return self.breakers.own

    @property
    def changes(self) -> list[tuple[str, str, str | None]]:
        """Each change of the provider's own breaker: before, after, and who else moved it."""
        changes = [event for event in self.events if isinstance(event, BreakerChanged)]
        return [(each.before, each.after, each.moved_by) for each in changes if each.model is None]

    def state(self, model: str | None = None) -> State:
        """Return the state of a model's breaker, or of the provider's own; none is a closed one."""
        breaker = self.own if model is None else self.breakers.models_view().get(model)
        return State.CLOSED if breaker is None else breaker.state

    def acquire(self, model: str = MODEL) -> ScopedPermit | None:
        """Return leave for a call; None if it is refused."""
        try:
            return self.breakers.acquire(model, self.clock.monotonic())
        except BreakerOpen:
            return None

    def fail(self, kind: FailureKind = OF_PROVIDER, times: int = 3) -> None:
        """Let calls be admitted and fail."""
        for _ in range(times):
            permit = self.acquire()
            assert permit is not None
            permit.fail(UpstreamError(kind, "it failed"), self.clock.monotonic())

    def cut(self) -> None:
        """Lose the store, and know it."""
        self.store.away = True
        self.health.up = False

    def rejoin(self) -> None:
        """Have the store again. What a link does then, `synchronise`, is up to the test."""
        self.store.away = False
        self.health.up = True

    async def hear(self) -> None:
        """Take the news that have come, in their order."""
        for news in self.store.heard():
            if isinstance(news, BreakerRecord):
                self.shared.take(news)
            elif isinstance(news, Resumed):
                with suppress(StoreAway):
                    await self.shared.synchronise()


async def done() -> None:
    """Return once everything is done that was left to be done by and by."""
    while errands := [task for task in asyncio.all_tasks() if task.get_name() == "shared breakers"]:
        await asyncio.wait(errands)


async def spread(*replicas: Replica) -> None:
    """Let everything be told, and everybody hear it."""
    for _ in range(3):  # a reply to news may be news itself
        await done()
        for replica in replicas:
            await replica.hear()
    await done()
