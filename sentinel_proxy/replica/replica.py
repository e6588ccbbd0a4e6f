"""
This process as one of several: the parts that share, put together over one link to one store.

One task reads what the store tells and hands each piece to the part that it concerns; one
looks, every other second, after what has to be renewed, repeated or put right. A call waits for
neither.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from sentinel_proxy.background import background
from sentinel_proxy.clock import Clock
from sentinel_proxy.config import StateConfig
from sentinel_proxy.events import Emit, Noticed
from sentinel_proxy.model import Frame, StateHealth
from sentinel_proxy.replica.breakers import SharedBreakers
from sentinel_proxy.replica.incidents import SharedIncidents
from sentinel_proxy.replica.journal import Journal, LocalFeed
from sentinel_proxy.replica.leader import Leader
from sentinel_proxy.replica.link import Link
from sentinel_proxy.replica.notes import Notes
from sentinel_proxy.replica.presence import Presence, Tally
from sentinel_proxy.replica.trials import ROUND_SECONDS
from sentinel_proxy.resilience.scopes import ProviderBreakers
from sentinel_proxy.stores.base import Store, StoreAway
from sentinel_proxy.stores.records import BreakerRecord, Note, Resumed


class Replica:
    """
    What this process tells the others, and what it takes from them.

    Args:
        name: Of this process, unlike that of any other; a ULID.
        breakers: Returns those of the chain as it is now, by provider.
        feed: The live feed of this process.
        tally: Returns what this process has counted.
        state: Told whether the store is up.
        emit: Told every fact.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        config: StateConfig,
        *,
        breakers: Callable[[], Mapping[str, ProviderBreakers]],
        feed: LocalFeed,
        tally: Callable[[], Tally],
        clock: Clock,
        state: StateHealth,
        emit: Emit,
    ) -> None:
        self._store = store
        self._clock = clock
        self._emit = emit
        # When the store is back the parts are brought up to date in this order: who is there
        # comes first, what is shown comes last.
        self.link = link = Link(store, clock, state, emit, name)
        self.presence = Presence(link, tally)
        self.leader = Leader(link)
        self.breakers = SharedBreakers(link, breakers, clock)
        link.on_return(self.breakers.synchronise)
        self.incidents = SharedIncidents(
            link,
            lambda: self.presence.alive,
            self.presence.beat,
            lambda: self.leader.leads,
            config.incidents,
            clock,
            emit,
        )
        self.journal = Journal(link, feed, config.events, clock, emit)
        self.notes = Notes(link)

    def __repr__(self) -> str:
        return f"<Replica {self.link.replica} on {self.link!r}>"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """
        Share until the context is left; the last words are still told.

        Entering waits for a store that is there, a moment at most, and never fails without one.
        """
        async with self.link.running():
            try:
                async with (
                    background(self._look_after(), "rounds of the replica"),
                    background(self._listen(), "news of the store"),
                    self.journal.running(),
                    self.incidents.running(),
                ):
                    yield
            finally:
                for leave in (self.breakers.leave, self.leader.leave, self.presence.leave):
                    await leave()

    async def _listen(self) -> None:
        """Take what the store tells until it closes; whatever goes wrong in it, it is heard again."""
        while True:
            try:
                await self._hear()
                return
            except Exception as error:
                self._went_wrong("what the store tells could not be heard", error)
            await self._clock.sleep(ROUND_SECONDS)

    async def _hear(self) -> None:
        async for news in self._store.news():
            try:
                match news:
                    case Frame():
                        self.journal.take(news)
                    case BreakerRecord():
                        self.breakers.take(news)
                    case Note():
                        self.notes.take(news)
                    case Resumed():
                        await self.link.catch_up()  # some news were never heard
            except Exception as error:  # a mistake in one part must not end the hearing of all
                self._went_wrong("what the state store told could not be taken", error)

    async def _look_after(self) -> None:
        while True:
            await self._clock.sleep(ROUND_SECONDS)
            for tick in (
                self.presence.tick,
                self.leader.tick,
                self._compare_breakers,
                self.breakers.tick,
                self.incidents.tick,
                self.journal.tick,
            ):
                try:
                    await tick()
                except Exception as error:
                    self._went_wrong("a round of the replica went wrong", error)

    async def _compare_breakers(self) -> None:
        """News get lost; what breakers do must not depend on them."""
        with suppress(StoreAway):
            await self.breakers.synchronise()

    def _went_wrong(self, message: str, error: Exception) -> None:
        """Tell of a mistake of ours; only its type, for its text may quote anything."""
        self._emit(Noticed("error", message, {"error": type(error).__name__}))
