"""
The seam between a replica and what it shares: one protocol, kept by every store.

A store is slow, far away, or dead. Every method may raise `StoreAway`, at the latest after the
store's own time-out, and may be cancelled: a change then has happened whole or not at all. No
method is ever awaited by a call, but for `admit`, which is bounded by who asks.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from sentinel_proxy.errors import SentinelError
from sentinel_proxy.model import Frame
from sentinel_proxy.resilience.rate_limit import Decision
from sentinel_proxy.stores.records import (
    BreakerRecord,
    Contribution,
    Note,
    Resumed,
    SharedIncident,
)

News = Frame | BreakerRecord | Note | Resumed
"""What a store tells by itself."""


class StoreAway(SentinelError):
    """The store did not do what was asked: not there, too slow, or refusing. The message says which."""


class Store(Protocol):
    """
    Keeps what replicas share, or what survives a restart.

    Attributes:
        kind: For people: "sqlite" or "redis".
        shared: Whether there may be other replicas; if not, there is no use in asking for
            leases and limits.
    """

    kind: str
    shared: bool

    async def open(self) -> None:
        """Connect. Raises `StoreAway`; may be tried again."""

    async def aclose(self) -> None:
        """Let go of everything, whatever state it is in; never raises `StoreAway`."""

    async def ping(self) -> None:
        """Return if it answers, and would keep what it is told."""

    # Breakers.

    async def merge_breaker(self, record: BreakerRecord) -> BreakerRecord:
        """
        Tell what became of a breaker; return what stands (`records.merged`), aged to now.

        If that is not what stood before, `news` tells it to everybody.
        """

    async def breakers(self) -> Sequence[BreakerRecord]:
        """
        Return every breaker that is known, aged to now: a rest that is over has 0 seconds left.

        One that nothing has changed for `records.kept_seconds` is forgotten.
        """

    # Leases: leave to do what only a few may do at a time.

    async def take_lease(self, name: str, owner: str, seconds: float, places: int = 1) -> float:
        """
        Take or renew one of the *places* under *name*; who does not renew it loses it after *seconds*.

        Returns:
            0.0 if *owner* has it now, else the seconds until one is free unless it is renewed.
        """

    async def release_lease(self, name: str, owner: str) -> None:
        """Give it back, if *owner* still has it."""

    # Limits.

    async def admit(self, key: str, limit: int, window_seconds: float, requests: int) -> Sequence[Decision]:
        """
        Decide about so many requests of *key*, one after the other, by the store's own clock.

        Each as `SlidingLog.admit` does, all in one step: those that are admitted come first.
        """

    # Events.

    async def append(self, frames: Sequence[Frame]) -> None:
        """Add to the ring of events; once it is kept, `news` tells it to everybody, in one order for all."""

    async def frames(self) -> Sequence[Frame]:
        """Return the ring, oldest first; the order is that in which `news` told them."""

    # Incidents.

    async def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
        """
        Tell what one replica knows of an incident; return what all know together, this included.

        A contribution with a known `id` takes the place of the old one. A new one joins the
        latest incident of its `key` if anybody of *alive* says that it is ongoing and this
        replica has not contributed yet (`records.joins`); else it begins a new incident.
        """

    async def incidents(self) -> Sequence[SharedIncident]:
        """
        Return the ring of incidents, newest first.

        Where there is no room the oldest that nobody calls ongoing goes, or else the oldest; never
        the one that has just come.
        """

    # Replicas.

    async def beat(self, replica: str, presence: bytes, seconds: float) -> Mapping[str, bytes]:
        """Say that *replica* is there for another *seconds*; return what all that are there say."""

    async def leave(self, replica: str) -> None:
        """Say that *replica* goes."""

    async def tell(self, note: Note) -> None:
        """Send a message to every replica that listens now."""

    def news(self) -> AsyncIterator[News]:
        """
        Yield what happens from now on, of this replica's own doing too; ends when the store closes.

        The first is `Resumed`: from here on nothing is missed, so who reads the store now knows
        it all. It comes again whenever the store was out of reach or lost its memory. Frames come
        without gap or repetition as long as the ring holds what was missed. Never raises
        `StoreAway`: it waits, and tries again. For one reader.
        """
