"""What stores are made of in tests, and how their news are listened to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

import redis_backing
from fake_store import FakeState, FakeStore
from harness import eventually

from sentinel_proxy.stores.base import News, Store
from sentinel_proxy.stores.embedded import EmbeddedStore
from sentinel_proxy.stores.records import Resumed
from sentinel_proxy.testing import FakeClock


class Backing(Protocol):
    """
    Something that keeps what stores are told: a file, a server. Each test has an empty one of its own.

    Attributes:
        clock: What all its stores take for the time.
        shared: Whether several of its stores may be open at once.
    """

    clock: FakeClock
    shared: bool

    def store(self, *, incidents: int = 5, events: int = 5) -> Store:
        """Return another store on the same state, not yet open."""
        ...


class FileBacking:
    """A file of its own in *directory*."""

    shared = False

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.path = directory / "state.db"

    def store(self, *, incidents: int = 5, events: int = 5) -> EmbeddedStore:
        """Return another store on the file; the one before must be closed."""
        return EmbeddedStore(self.path, incidents, events, self.clock)


@asynccontextmanager
async def embedded(directory: Path) -> AsyncIterator[Backing]:
    """Keep state in a file."""
    yield FileBacking(directory)


class _Reached(FakeStore):
    """A fake that is not there before it is opened, as real ones are not."""

    def __init__(self, state: FakeState) -> None:
        super().__init__(state)
        self.away = True

    async def open(self) -> None:
        self.away = False
        await super().open()


class MemoryBacking:
    """The memory of the test, where stores of unit tests are."""

    shared = True

    def __init__(self) -> None:
        self.clock = FakeClock()
        self._state = FakeState(self.clock)

    def store(self, *, incidents: int = 5, events: int = 5) -> FakeStore:
        """Return another store on the memory; of all, the last one says how much room there is."""
        self._state.max_incidents, self._state.max_frames = incidents, events
        return _Reached(self._state)


@asynccontextmanager
async def fake(directory: Path) -> AsyncIterator[Backing]:
    """Keep state as the fake does: what unit tests rely on must hold of it too."""
    yield MemoryBacking()


Maker = Callable[[Path], AbstractAsyncContextManager[Backing]]

ALONE: Final[Mapping[str, Maker]] = {"embedded": embedded}
"""State that one store at a time may use; called with an empty directory of the test's own."""

SHARED: Final[Mapping[str, Maker]] = {
    "redis": redis_backing.with_scripts,
    "redis without scripts": redis_backing.without_scripts,
    "fake": fake,
}
"""State that many stores may use at once: Redis in every way it is spoken to, and the fake."""


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    """Have *store* open for a while."""
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def listening(store: Store) -> AsyncIterator[list[News]]:
    """Collect the news of *store* in a list that grows, from now on and without the first `Resumed`."""
    heard: list[News] = []

    async def listen() -> None:
        async for news in store.news():
            heard.append(news)

    task = asyncio.create_task(listen())
    try:
        await eventually(lambda: heard)
        assert heard.pop(0) == Resumed()
        yield heard
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
