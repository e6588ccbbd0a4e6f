"""
A store in memory that several replicas of one test may share, cut off one by one, or lose.

It answers without ever waiting, so a test decides alone what happens in which order.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sentinel_proxy.clock import Clock
from sentinel_proxy.model import Frame
from sentinel_proxy.resilience.rate_limit import Decision, SlidingLog
from sentinel_proxy.stores.base import News, StoreAway
from sentinel_proxy.stores.records import (
    BreakerRecord,
    Contribution,
    Note,
    Resumed,
    SharedIncident,
    aged,
    kept_seconds,
    merged,
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A record, and when it was handed over."""

    record: BreakerRecord
    at: float

    def aged(self, now: float) -> BreakerRecord | None:
        """Return it as it is *now*; None once it is forgotten."""
        passed = now - self.at
        return aged(self.record, passed) if passed < kept_seconds(self.record) else None


@dataclass
class FakeState:
    """
    What the stores of one test share.

    Attributes:
        clock: The store's own.
        asked: The name of every method that was called, in order.
    """

    clock: Clock
    max_frames: int = 500
    max_incidents: int = 500
    shared: bool = True
    asked: list[str] = field(default_factory=list)
    records: dict[str, Kept] = field(default_factory=dict)
    leases: dict[str, dict[str, float]] = field(default_factory=dict)  # by name: when each owner loses it
    limits: dict[tuple[str, float], SlidingLog] = field(default_factory=dict)
    ring: list[Frame] = field(default_factory=list)
    shared_incidents: list[SharedIncident] = field(default_factory=list)  # newest first
    presences: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    stores: list["FakeStore"] = field(default_factory=list)

    def store(self) -> "FakeStore":
        """Return another replica's way to this state; it is open at once."""
        return FakeStore(self)

    def forget(self) -> None:
        """Lose everything, as a server does that is flushed or restarts without a file."""
        for kept in (self.records, self.leases, self.limits, self.presences):
            kept.clear()
        self.ring.clear()
        self.shared_incidents.clear()
        self.tell(Resumed())

    def tell(self, news: News) -> None:
        """Tell everybody who can hear."""
        for store in self.stores:
            store.hear(news)


class FakeStore:
    """
    One replica's way to a `FakeState`; a `Store`.

    Attributes:
        away: Whether nothing gets through. It hears no news meanwhile, and `Resumed` at the end.
        deaf: Whether its news get lost, while everything else works.
    """

    kind = "fake"

    def __init__(self, state: FakeState) -> None:
        self.state = state
        self.shared = state.shared
        self.deaf = False
        self.closed = False
        self._away = False
        self._heard: asyncio.Queue[News | None] = asyncio.Queue()
        state.stores.append(self)

    def __repr__(self) -> str:
        return f"<FakeStore{', away' if self.away else ''}>"

    @property
    def away(self) -> bool:
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        was, self._away = self._away, away
        if was and not away:
            self.hear(Resumed())

    def hear(self, news: News) -> None:
        """Keep *news* for who reads `news`, unless it gets lost."""
        if not (self.away or self.deaf or self.closed):
            self._heard.put_nowait(news)

    def heard(self) -> list[News]:
        """Take all news that nobody has read yet."""
        taken = self.unheard()
        while not self._heard.empty():
            self._heard.get_nowait()
        return taken

    def unheard(self) -> list[News]:
        """Return all news that nobody has read yet."""
        kept: list[News] = []
        for _ in range(self._heard.qsize()):
            news = self._heard.get_nowait()
            self._heard.put_nowait(news)
            if news is not None:
                kept.append(news)
        return kept

    def _ask(self, name: str) -> float:
        """Note that *name* was asked, and return what time it is; raises `StoreAway` where it is."""
        self.state.asked.append(name)
        if self.away or self.closed:
            raise StoreAway("the store is closed" if self.closed else "the store is away")
        return self.state.clock.monotonic()

    async def open(self) -> None:
        self.closed = False
        self._ask("open")

    async def aclose(self) -> None:
        self.closed = True
        self._heard.put_nowait(None)

    async def ping(self) -> None:
        self._ask("ping")

    async def merge_breaker(self, record: BreakerRecord) -> BreakerRecord:
        now = self._ask("merge_breaker")
        kept = self.state.records.get(record.key)
        before = None if kept is None else kept.aged(now)
        stands = record if before is None else merged(before, record)
        if stands != before:
            self.state.records[record.key] = Kept(stands, now)
            self.state.tell(stands)
        return stands

    async def breakers(self) -> Sequence[BreakerRecord]:
        now = self._ask("breakers")
        records = (kept.aged(now) for kept in self.state.records.values())
        return [record for record in records if record is not None]

    async def take_lease(self, name: str, owner: str, seconds: float, places: int = 1) -> float:
        now = self._ask("take_lease")
        owners = {each: end for each, end in self.state.leases.get(name, {}).items() if end > now}
        self.state.leases[name] = owners
        if owner not in owners and len(owners) >= places:
            return sorted(owners.values())[-places] - now
        owners[owner] = now + seconds
        return 0.0

    async def release_lease(self, name: str, owner: str) -> None:
        self._ask("release_lease")
        self.state.leases.get(name, {}).pop(owner, None)

    async def admit(self, key: str, limit: int, window_seconds: float, requests: int) -> Sequence[Decision]:
        now = self._ask("admit")
        log = self.state.limits.setdefault((key, window_seconds), SlidingLog(limit, window_seconds))
        return [log.admit(key, now, limit=limit) for _ in range(requests)]

    async def append(self, frames: Sequence[Frame]) -> None:
        self._ask("append")
        for frame in frames:
            self.state.ring.append(frame)
            self.state.tell(frame)
        del self.state.ring[: -self.state.max_frames]

    async def frames(self) -> Sequence[Frame]:
        self._ask("frames")
        del self.state.ring[: -self.state.max_frames]
        return list(self.state.ring)

    async def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
        self._ask("contribute")
        incidents = self.state.shared_incidents
        place = _place(incidents, contribution, alive)
        if place is None:
            incidents.insert(0, SharedIncident(contribution.id, (contribution,)))
            self._trim()
            return SharedIncident(contribution.id, (contribution,))
        known = [
            contribution if each.id == contribution.id else each for each in incidents[place].contributions
        ]
        if contribution not in known:
            known.append(contribution)
        incidents[place] = replace(incidents[place], contributions=tuple(known))
        return incidents[place]

    def _trim(self) -> None:
        incidents = self.state.shared_incidents
        while len(incidents) > self.state.max_incidents:
            older = incidents[1:]
            over = [each for each in older if not any(part.ongoing for part in each.contributions)]
            incidents.remove((over or older)[-1])

    async def incidents(self) -> Sequence[SharedIncident]:
        self._ask("incidents")
        return list(self.state.shared_incidents)

    async def beat(self, replica: str, presence: bytes, seconds: float) -> Mapping[str, bytes]:
        now = self._ask("beat")
        presences = self.state.presences
        presences[replica] = (presence, now + seconds)
        for name in [name for name, (_, end) in presences.items() if end <= now]:
            del presences[name]
        return {name: said for name, (said, _) in presences.items()}

    async def leave(self, replica: str) -> None:
        self._ask("leave")
        self.state.presences.pop(replica, None)

    async def tell(self, note: Note) -> None:
        self._ask("tell")
        self.state.tell(note)

    async def news(self) -> AsyncIterator[News]:
        if self.closed:
            return
        self.heard()  # what was before
        if not self.away:
            yield Resumed()
        while (news := await self._heard.get()) is not None:
            yield news


def _place(
    incidents: Sequence[SharedIncident], contribution: Contribution, alive: frozenset[str]
) -> int | None:
    """Return which of *incidents* a contribution belongs to, None if it begins a new one."""
    for place, incident in enumerate(incidents):
        if any(part.id == contribution.id for part in incident.contributions):
            return place
    for place, incident in enumerate(incidents):
        if incident.contributions[0].key != contribution.key:
            continue
        lives = any(part.ongoing and part.replica in alive for part in incident.contributions)
        known = any(part.replica == contribution.replica for part in incident.contributions)
        return place if lives and not known else None
    return None
