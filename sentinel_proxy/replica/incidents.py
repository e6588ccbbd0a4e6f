"""
Incidents that replicas share: each tells what it knows, and all show what all know together.

A change of an incident goes to the store first; what comes back is the incident as everybody
knows it, and the difference that our news made is what we report. So of several replicas that
see one outage the first reports that it began and the last that it is over, and nobody reports
it twice. While the store is away each reports what it sees itself.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final, NamedTuple

from sentinel_proxy.background import background
from sentinel_proxy.clock import Clock
from sentinel_proxy.events import Emit, IncidentChanged
from sentinel_proxy.incidents.merging import decoded, encoded, ended, merged
from sentinel_proxy.incidents.pages import page
from sentinel_proxy.model import Incident, IncidentType
from sentinel_proxy.replica.incident_list import IncidentList, whole
from sentinel_proxy.replica.link import Link
from sentinel_proxy.stores.base import Store, StoreAway
from sentinel_proxy.stores.records import Contribution, SharedIncident

PATIENCE_SECONDS: Final = 1.0
"""For the store to take what we know: longer than its own time-out, for no reader waits for it."""

FRESH_SECONDS: Final = 0.5
"""The list is read from the store at most so often, however many ask for it."""

RETURN_SECONDS: Final = 10.0
"""Who was cut off together may come back one after the other: until then nobody is taken for gone."""

MAX_SPELLS: Final = 20
"""
Incidents of ours that are told as parts of one that goes on elsewhere: we may see it come and go.
Beyond that the oldest two are put together.
"""


class _Told(NamedTuple):
    """A contribution as it was last reported, and the id of the incident that it was part of."""

    contribution: Contribution
    place: str


class SharedIncidents:
    """
    The incidents of all replicas, for those who read them as `Incidents` is for one alone.

    Args:
        alive: Returns the replicas that are there; without this one as long as that is not known.
        look: Brings *alive* up to date.
        leads: Whether it falls to this one to end what replicas have left behind that are gone.
        capacity: How many are remembered; the oldest that are over go first.
        emit: Told every change that our news made; must not raise or block.
    """

    def __init__(
        self,
        link: Link,
        alive: Callable[[], frozenset[str]],
        look: Callable[[], Awaitable[None]],
        leads: Callable[[], bool],
        capacity: int,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._link = link
        self._alive = alive
        self._look = look
        self._leads = leads
        self._capacity = capacity
        self._clock = clock
        self._emit = emit
        self._known = IncidentList(capacity)
        self._ours: dict[str, str] = {}  # id of our incident -> id of the contribution that it is in
        self._spells: dict[str, dict[str, Incident]] = {}  # by contribution: our incidents in it
        self._told: dict[str, _Told] = {}  # what we last reported, by id of the contribution
        self._owed: dict[str, None] = {}  # ids of contributions that the store has not got, in order
        self._due = asyncio.Event()
        self._turn = asyncio.Lock()
        self._read_at: float | None = None
        self._returned_at = clock.monotonic()
        self._ended_for: frozenset[str] | None = None  # who was alive when this was last looked after
        link.on_return(self.synchronise)

    def __repr__(self) -> str:
        return f"<SharedIncidents {len(self._known)}, {len(self._owed)} to be told>"

    # For those who read.

    def find(
        self,
        limit: int | None = None,
        type: IncidentType | None = None,
        provider: str | None = None,
        since: float | None = None,
        before: str | None = None,
    ) -> tuple[list[Incident], int]:
        """As `Incidents.find`, of all replicas as far as this one knows; `refresh` first."""
        found, total = page(self._known.newest_first(), limit, type, provider, since, before)
        return [self._known.linked(incident) for incident in found], total

    async def refresh(self) -> None:
        """Read what the others know, unless that was done just now; without the store nothing changes."""
        now = self._clock.monotonic()
        if self._read_at is None or now - self._read_at >= FRESH_SECONDS:
            self._read_at = now
            with suppress(StoreAway):
                self._known.learn(await self._link.ask("read", _incidents))

    # What happens here.

    def take(self, event: IncidentChanged) -> None:
        """Take a change of an incident that this replica sees; returns at once."""
        incident = event.incident
        id = self._ours.get(incident.id) or self._contribution_for(incident)
        self._ours[incident.id] = id
        spells = self._spells.setdefault(id, {})
        spells[incident.id] = incident
        if len(spells) > MAX_SPELLS:
            oldest, next_one, *_ = spells
            spells[oldest] = merged((spells[oldest], spells.pop(next_one)), oldest)
        self._owed[id] = None
        if self._link.up:
            self._due.set()
        else:
            self._go_alone(id)

    def _contribution_for(self, incident: Incident) -> str:
        """Return what a new incident of ours is told in: what goes on elsewhere may have come back here."""
        latest = self._known.latest(_key(incident))
        parts = latest.contributions if latest is not None else ()
        if any(part.ongoing and part.replica != self._link.replica for part in parts):
            return next((part.id for part in parts if part.id in self._spells), incident.id)
        return incident.id

    def _contribution(self, id: str) -> Contribution:
        known = merged(list(self._spells[id].values()))
        outage = known.details.get("outage")
        if outage is not None:
            known = replace(known, details={**known.details, "outage": self._ours.get(outage, outage)})
        data = encoded(known, self._clock.time())
        return Contribution(_key(known), self._link.replica, id, known.resolved_at is None, data)

    def _go_alone(self, id: str) -> None:
        """Report one of ours as if the store had taken it; that is still owed."""
        ours = self._contribution(id)
        self._report(ours, self._known.joined(ours, self._alive() | {self._link.replica}))

    def _report(self, ours: Contribution, shared: SharedIncident) -> None:
        told, self._told[ours.id] = self._told.get(ours.id), _Told(ours, shared.id)
        known_there = told is not None and shared.id in (told.place, ours.id)
        self._report_difference(ours, told.contribution if told and known_there else None, shared)
        if len(self._told) > 2 * self._capacity:
            self._forget()

    def _report_difference(
        self, ours: Contribution, told: Contribution | None, shared: SharedIncident
    ) -> None:
        """Tell what a contribution changes in what all know together; *told*: what it was before."""
        self._known.put(shared)
        parts = (told if part.id == ours.id else part for part in shared.contributions)
        before = whole(shared.id, [part for part in parts if part is not None])
        after = whole(shared.id, shared.contributions)
        if after is None:
            return
        after = self._known.linked(after)
        if before is None:
            self._emit(IncidentChanged("opened", after))
        if after.resolved_at is not None and (before is None or before.resolved_at is None):
            self._emit(IncidentChanged("resolved", after))
        elif before is not None and self._known.linked(before) != after:
            self._emit(IncidentChanged("updated", after))

    def _forget(self) -> None:
        """Let go of contributions that have left the list, though the store has never heard of them."""
        gone = [id for id in self._told if id not in self._known]
        for id in gone:
            del self._told[id]
            self._owed.pop(id, None)
            for incident in self._spells.pop(id, {}):
                self._ours.pop(incident, None)

    # Between here and the store.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell the store what is owed until the context is left; what comes last is still tried."""
        try:
            async with background(self._run(), "shared incidents"):
                yield
        finally:
            with suppress(StoreAway):
                await self._pay()

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self._pay()
            except StoreAway:
                for id in [id for id in self._owed if id in self._spells]:
                    self._go_alone(id)

    async def _pay(self) -> None:
        async with self._turn:
            while self._owed:
                id = next(iter(self._owed))
                del self._owed[id]
                if id not in self._spells:  # it has left the list since
                    continue
                ours = self._contribution(id)
                try:
                    if id not in self._told:
                        await self._look()  # who has only just come may have been the first to report it
                    shared = await self._contribute(ours)
                except BaseException:
                    self._owed = {id: None} | self._owed
                    raise
                self._report(ours, shared)

    async def _contribute(self, contribution: Contribution) -> SharedIncident:
        alive = self._alive() | {self._link.replica}
        return await self._link.ask(
            "write", lambda store: store.contribute(contribution, alive), PATIENCE_SECONDS
        )

    async def synchronise(self) -> None:
        """
        Read the list, and tell the store what it lacks of what goes on here.

        For the start, and for whenever the store was away or lost its memory. What was over when
        it lost its memory is still known to replicas that were there, until they end.

        Raises:
            StoreAway: It has gone again; what it was not told is kept for the next time.
        """
        self._returned_at = self._clock.monotonic()
        self._ended_for = None
        shared = await self._link.ask("read", _incidents)
        kept = {part.id: part for incident in shared for part in incident.contributions}
        for id, told in self._told.items():
            if told.contribution.ongoing and kept.get(id) != told.contribution:
                self._owed[id] = None
        self._known.learn(shared)
        await self._pay()

    async def tick(self) -> None:
        """See to what is left behind or held up; call every other second. Never raises `StoreAway`."""
        if not self._link.up:
            return
        with suppress(StoreAway):
            if self._owed:
                await self._pay()
            await self._end_for_the_gone()

    async def _end_for_the_gone(self) -> None:
        """End what only replicas have seen that are gone, as of their last word."""
        alive = self._alive()
        patience = RETURN_SECONDS if self._link.store.shared else 0.0
        early = self._clock.monotonic() - self._returned_at < patience
        if early or self._link.replica not in alive or alive == self._ended_for or not self._leads():
            return
        for incident in await self._link.ask("read", _incidents):
            for part in incident.contributions:
                if part.ongoing and part.replica not in alive:
                    over = _over(part)
                    self._report_difference(over, part, await self._contribute(over))
        self._ended_for = alive


async def _incidents(store: Store) -> list[SharedIncident]:
    return list(await store.incidents())


def _key(incident: Incident) -> str:
    name = f"{incident.type.value} {incident.provider or '-'} {incident.details.get('model', '')}"
    return name.encode("utf-8", "backslashreplace").decode()  # callers choose models; see `can_be_kept`


def _over(part: Contribution) -> Contribution:
    """Return the last word of a replica that is gone."""
    try:
        incident, told_at = decoded(part.data)
    except ValueError:
        return replace(part, ongoing=False)
    return replace(part, ongoing=False, data=encoded(ended(incident, told_at), told_at))
