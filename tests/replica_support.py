"""What tests of several replicas share: a clock that stands still, and a store that comes and goes."""

import asyncio

import pytest
from fake_store import FakeState, FakeStore

from sentinel_proxy.events import Event
from sentinel_proxy.model import StateHealth
from sentinel_proxy.replica.link import BYPASS_SECONDS, FAILURES, Link
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.testing import FakeClock


class StillClock(FakeClock):
    """A clock that only moves by hand; who sleeps is woken by the hand that moves it."""

    def __init__(self) -> None:
        super().__init__()
        self._moved = asyncio.Condition()

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        async with self._moved:
            await self._moved.wait_for(lambda: self.monotonic() >= until)

    async def move(self, seconds: float) -> None:
        self.advance(seconds)
        async with self._moved:
            self._moved.notify_all()
        await rounds()


async def rounds(number: int = 30) -> None:
    """Let the event loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


class Linked:
    """One replica's link to the state that a test shares, and what was emitted there."""

    def __init__(self, state: FakeState, clock: StillClock) -> None:
        self.clock = clock
        self.name = f"R{len(state.stores)}"
        self.store = FakeStore(state)
        self.emitted: list[Event] = []
        self.health = StateHealth()
        self.link = Link(self.store, clock, self.health, self.emitted.append, self.name)

    async def cut_off(self) -> None:
        """Take the store away, and let that be noticed."""
        self.store.away = True
        for _ in range(FAILURES):
            with pytest.raises(StoreAway):
                await self.link.ask("read", lambda store: store.frames())

    async def join(self) -> None:
        """Give the store back, and let that be noticed."""
        self.store.away = False
        await self.clock.move(BYPASS_SECONDS + 1)
