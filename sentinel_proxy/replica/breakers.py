"""
Breakers that replicas share: each decides by what its own calls meet, and tells what it decided.

What is told are transitions, not failures: a replica that has not met the outage yet follows
one that has. Of two states the one stands that `stores.records.merged` says. Telling is never
waited for; messages that get lost, a store that was away or forgot everything, and replicas
that went on without each other are all healed by the same means: now and then everybody
compares all that the store knows with all that he knows.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.events import BreakerChanged, Bus
from sentinel_proxy.replica.link import Link
from sentinel_proxy.replica.trials import Trials
from sentinel_proxy.resilience.breaker import Leases, Snapshot, State
from sentinel_proxy.resilience.scopes import ProviderBreakers
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.stores.records import BreakerRecord, can_be_kept, merged

MAX_UNTOLD: Final = 2000
"""Breakers whose news wait for the store; of more, the oldest are left to the comparison of all."""

SAME_REST_SECONDS: Final = 1.0
"""Two rests that differ by less are the same one, seen through two clocks and a network."""

_Key = tuple[str, str | None]  # a provider; None for its own breaker, or a model there


class SharedBreakers:
    """
    Tells the store of this replica's breakers, and these of the others'.

    Args:
        breakers: Returns those of the chain as it is now, by provider.
    """

    def __init__(
        self, link: Link, breakers: Callable[[], Mapping[str, ProviderBreakers]], clock: Clock
    ) -> None:
        self._link = link
        self._breakers = breakers
        self._clock = clock
        self._untold: dict[_Key, object] = {}  # in order; another object each time it moves
        self._telling = asyncio.Lock()
        self._numbers = count(1)  # one a lease: a breaker that was made anew is another owner
        self._trials: dict[Trials, None] = {}  # those with something to do, in order
        self._errands: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<SharedBreakers, {len(self._untold)} untold, {len(self._trials)} with trials>"

    def leases(self, provider: str, places: int) -> Callable[[str | None], Leases | None] | None:
        """
        Return what `ProviderBreakers` takes for its leases; None where nobody shares them.

        Args:
            places: How many trials of one breaker may be out at a time.
        """
        if not self._link.store.shared:
            return None

        def of(model: str | None) -> Leases | None:
            if model is not None and not can_be_kept(model):
                return None
            name = provider if model is None else f"{provider} {model}"
            owners = (f"{self._link.replica} {number}" for number in self._numbers)
            return Trials(name, places, self._link, self._clock, owners, self._spawn, self._has_trials)

        return of

    def _has_trials(self, trials: Trials) -> None:
        self._trials[trials] = None

    # What it hears.

    def listen(self, bus: Bus) -> None:
        """Hear of breakers that move here."""
        bus.subscribe(BreakerChanged, self._breaker_changed)

    def _breaker_changed(self, event: BreakerChanged) -> None:
        if event.moved_by is None:
            self._tell((event.provider, event.model))

    def take(self, record: BreakerRecord) -> None:
        """
        Hear of a breaker that has moved elsewhere, in no hurry.

        How long it rests counts only if the move itself is news: who hears it late would count
        the rest from too late, and a rest that is told on and on like that would never end.
        """
        key = (record.provider, record.model)
        ours = self._record(key)
        if (ours is None or _move(ours) != _move(record)) and self._adopt(record):
            self._tell(key)

    def _adopt(self, record: BreakerRecord) -> bool:
        """Adopt what the store says now, as far as it stands; return whether more is known here."""
        key = (record.provider, record.model)
        breakers = self._breakers().get(record.provider)
        if breakers is None:
            return False  # it is in the chain of others only
        ours = self._record(key)
        if ours is not None and not _differ(ours, record):
            return False
        stands = record if ours is None or self._follows(ours, record) else merged(ours, record)
        if ours is None or _differ(ours, stands):
            breakers.adopt(record.model, _snapshot(stands), self._clock.monotonic())
            ours = self._record(key)
        return ours is not None and _differ(ours, record)

    def _follows(self, ours: BreakerRecord, record: BreakerRecord) -> bool:
        """Whether both are one move that was made elsewhere: then others know how long it is to last."""
        return _move(ours) == _move(record) and ours.replica != self._link.replica

    # What it does by itself.

    async def synchronise(self) -> None:
        """
        Compare all that the store knows with all that is known here, and let both know it.

        Raises:
            StoreAway: Try again when it is back.
        """
        await self._tell_all()
        records = await self._link.ask("read", lambda store: store.breakers())
        for record in records:
            if self._adopt(record):
                self._tell((record.provider, record.model))
        known = {(record.provider, record.model) for record in records}
        for provider, breakers in self._breakers().items():
            for model in breakers.moved():
                if (provider, model) not in known:
                    self._tell((provider, model))
        await self._tell_all()

    async def tick(self) -> None:
        """Look after leases; call this every `trials.ROUND_SECONDS`. A store that is away is no error."""
        for trials in list(self._trials):
            with suppress(StoreAway):  # it may have failed for these alone
                await trials.tick()
            if trials.idle:
                self._trials.pop(trials, None)

    async def leave(self) -> None:
        """Tell what is untold and give back all leases, as far as the store is there."""
        with suppress(StoreAway):
            await self._tell_all()
            for trials in list(self._trials):
                await trials.leave()
        for errand in self._errands:
            errand.cancel()
        if self._errands:
            await asyncio.wait(self._errands)

    # Telling.

    def _tell(self, key: _Key) -> None:
        """Let the store know of a breaker's present state as soon as may be."""
        self._untold.pop(key, None)
        self._untold[key] = object()
        if len(self._untold) > MAX_UNTOLD:
            del self._untold[next(iter(self._untold))]
        if self._link.up and not self._telling.locked():
            self._spawn(self._tell_all)

    async def _tell_all(self) -> None:
        async with self._telling:
            while self._untold:
                key, untold = next(iter(self._untold.items()))
                record = self._record(key)
                if record is None:  # its provider has left the chain, or it was too long ago
                    del self._untold[key]
                    continue
                try:
                    stands = await self._told(record)
                except StoreAway:
                    if (
                        self._untold.get(key) is untold
                    ):  # it may be about this one: another one first, next time
                        self._untold[key] = self._untold.pop(key)
                    raise
                if self._untold.get(key) is untold:
                    del self._untold[key]
                self._adopt(stands)  # should more be known here, the next comparison will tell

    async def _told(self, record: BreakerRecord) -> BreakerRecord:
        return await self._link.ask("write", lambda store: store.merge_breaker(record))

    def _record(self, key: _Key) -> BreakerRecord | None:
        """Return what is known here of a breaker; None for nothing that a store could keep."""
        provider, model = key
        if model is not None and not can_be_kept(model):
            return None
        if (breakers := self._breakers().get(provider)) is None:
            return None
        if (snapshot := breakers.snapshot(model, self._clock.monotonic())) is None:
            return None
        return BreakerRecord(
            provider=provider,
            model=model,
            state=snapshot.state.value,
            orders=snapshot.orders,
            era=snapshot.era,
            rest_seconds=snapshot.rest_seconds,
            since_seconds=snapshot.since_seconds,
            level=snapshot.level,
            reason=snapshot.reason,
            replica=snapshot.moved_by or self._link.replica,
        )

    def _spawn(self, errand: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what waits for the store; if it is away, what was to be done is done when it is back."""
        task = asyncio.create_task(_unless_away(errand), name="shared breakers")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


async def _unless_away(errand: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with suppress(StoreAway):
        await errand()


def _snapshot(record: BreakerRecord) -> Snapshot:
    return Snapshot(
        state=State(record.state),
        orders=record.orders,
        era=record.era,
        rest_seconds=record.rest_seconds,
        since_seconds=record.since_seconds,
        level=record.level,
        reason=record.reason,
        moved_by=record.replica,
    )


def _move(record: BreakerRecord) -> tuple[int, int, str]:
    """Name the move that led to a state, as far as replicas can tell moves apart."""
    return record.orders, record.era, record.state


def _differ(one: BreakerRecord, other: BreakerRecord) -> bool:
    """Whether two records of one breaker tell different things, and not one thing at two moments."""
    return _move(one) != _move(other) or not math.isclose(
        one.rest_seconds, other.rest_seconds, rel_tol=0, abs_tol=SAME_REST_SECONDS
    )
