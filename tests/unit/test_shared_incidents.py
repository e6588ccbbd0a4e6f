"""One incident for all replicas that see it: told once, known everywhere, with the store and without."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from fake_store import FakeState
from hypothesis import given, settings
from hypothesis import strategies as st
from replica_support import Linked, StillClock, rounds

from sentinel_proxy.events import (
    BreakerChanged,
    Bus,
    CallFailedOver,
    CallFinished,
    HealthChecked,
    IncidentChanged,
)
from sentinel_proxy.incidents import Incidents
from sentinel_proxy.incidents.ledger import QUIET_SECONDS
from sentinel_proxy.incidents.merging import GONE
from sentinel_proxy.model import Attempt, Call, Endpoint, Incident, IncidentType, Outcome
from sentinel_proxy.replica.incidents import FRESH_SECONDS, MAX_SPELLS, RETURN_SECONDS, SharedIncidents
from sentinel_proxy.resilience.breaker import TRIAL_SUCCEEDED
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.stores.records import Contribution, SharedIncident

pytestmark = pytest.mark.anyio

OUTAGE = IncidentType.OUTAGE_DETECTED
ROUND = HealthChecked(1, 0.1)


class Replica(Linked):
    """A ledger whose incidents are shared, and what was reported of them here."""

    def __init__(self, state: FakeState, clock: StillClock, alive: set[str], capacity: int = 500) -> None:
        super().__init__(state, clock)
        self.alive = alive
        alive.add(self.name)
        self.leads = False
        self.bus = Bus()
        self.reported: list[IncidentChanged] = []
        self.shared = SharedIncidents(
            self.link, lambda: frozenset(alive), self._look, lambda: self.leads, capacity, clock, self._report
        )
        self.incidents = Incidents(capacity, clock, self.shared.take)
        self.incidents.listen(self.bus)

    async def _look(self) -> None:
        """Whom a test names as alive is known at once."""

    def _report(self, event: object) -> None:
        assert isinstance(event, IncidentChanged)
        self.reported.append(event)

    async def hears(self, *events: object) -> None:
        for event in events:
            self.bus.emit(event)  # type: ignore[arg-type]
        assert self.bus.errors == 0
        await rounds()

    def changes(self) -> list[tuple[str, str]]:
        """Return what was reported since this was last asked: the change and the type."""
        told = [(event.change, event.incident.type.value) for event in self.reported]
        self.reported.clear()
        return told

    async def list(self, type: IncidentType | None = None) -> list[Incident]:
        self.clock.advance(FRESH_SECONDS)
        await self.shared.refresh()
        return self.shared.find(type=type)[0]

    async def one(self, type: IncidentType = OUTAGE) -> Incident:
        (incident,) = await self.list(type)
        return incident


def moved(after: str, before: str = "closed", by: str | None = None) -> BreakerChanged:
    reason = {"open": "connect", "closed": TRIAL_SUCCEEDED}.get(after, "the rest is over")
    return BreakerChanged("openai", None, before, after, reason, 30.0 if after == "open" else 0.0, by)


def rescued() -> CallFinished:
    trail = [Attempt("openai", "open", sent=False), Attempt("ollama", "200", seconds=0.1)]
    call = Call("t", Endpoint.CHAT, b"", {}, "gpt-4o", False, 0.0, 600.0, trail=trail)
    return CallFinished(
        "t", Endpoint.CHAT, call, Outcome.FAILED_OVER, 200, "ollama", "llama3.2", 1.0, 0.001, None, None
    )


def failed_over() -> CallFailedOver:
    return CallFailedOver("t", "openai", "ollama", "503")


@asynccontextmanager
async def replicas(number: int = 2, capacity: int = 500) -> AsyncIterator[Sequence[Replica]]:
    clock = StillClock()
    state = FakeState(clock, max_incidents=capacity)
    alive: set[str] = set()
    made = [Replica(state, clock, alive, capacity) for _ in range(number)]
    made[0].leads = True
    async with AsyncExitStack() as stack:
        for replica in made:
            await stack.enter_async_context(replica.link.running())
            await stack.enter_async_context(replica.shared.running())
        yield made


async def test_an_outage_that_two_see_is_one_incident_reported_once() -> None:
    async with replicas() as (one, other):
        await one.hears(moved("open"))
        await other.hears(moved("open", by="R0"))
        await one.hears(moved("half_open", "open"), moved("closed", "half_open"))
        await other.hears(moved("half_open", "open", by="R0"), moved("closed", "half_open", by="R0"))

        changes = [*one.changes(), *other.changes()]
        assert changes.count(("opened", "outage_detected")) == 1
        assert changes.count(("resolved", "outage_detected")) == 1
        assert changes.count(("opened", "provider_recovered")) == 1
        assert await one.list() == await other.list()
        assert len(await one.list()) == 2


async def test_it_is_over_when_the_last_says_so() -> None:
    async with replicas() as (one, other):
        await one.hears(moved("open"))
        await other.hears(moved("open", by="R0"))
        await one.hears(moved("closed", "half_open"))
        assert (await other.one()).resolved_at is None
        assert ("resolved", "outage_detected") not in one.changes()
        await other.hears(moved("closed", "half_open", by="R0"))

        assert (await one.one()).resolved_at is not None
        assert ("resolved", "outage_detected") in other.changes()


async def test_the_calls_of_all_are_counted_together() -> None:
    async with replicas() as (one, other):
        await one.hears(moved("open"), rescued())
        await other.hears(moved("open", by="R0"), rescued(), rescued())
        await one.hears(ROUND, moved("closed", "open"))
        await other.hears(ROUND, moved("closed", "open", by="R0"))

        for replica in (one, other):
            outage = await replica.one()
            assert (outage.details["affected_calls"], outage.details["rescued_calls"]) == (3, 3)
            recovery = await replica.one(IncidentType.PROVIDER_RECOVERED)
            assert (recovery.details["affected_calls"], recovery.details["outage"]) == (3, outage.id)


async def test_a_failover_names_the_outage_as_all_know_it() -> None:
    async with replicas() as (one, other):
        await one.hears(moved("open"))
        await other.hears(moved("open", by="R0"), failed_over())

        failover = await one.one(IncidentType.FAILOVER_TRIGGERED)
        assert failover.details["outage"] == (await one.one()).id


async def test_an_outage_that_ends_here_and_begins_anew_while_others_have_it_is_one() -> None:
    async with replicas() as (one, other):
        await other.hears(moved("open"))
        await one.hears(moved("open"), moved("closed", "open"))
        await one.hears(moved("open"), failed_over())

        failover = await other.one(IncidentType.FAILOVER_TRIGGERED)
        assert failover.details["outage"] == (await other.one()).id


async def test_a_burst_that_pauses_here_and_goes_on_there_is_one() -> None:
    async with replicas() as (one, other):
        for _ in range(3):
            await one.hears(failed_over())
            await other.hears(failed_over(), failed_over())
            one.clock.advance(QUIET_SECONDS / 2)
            await other.hears(failed_over(), ROUND)
            one.clock.advance(QUIET_SECONDS / 2)
            await one.hears(ROUND)

        failover = await one.one(IncidentType.FAILOVER_TRIGGERED)
        assert (failover.details["calls"], failover.resolved_at) == (12, None)


async def test_a_burst_that_comes_and_goes_for_ever_is_told_in_a_few_parts() -> None:
    async with replicas() as (one, other):
        times = MAX_SPELLS + 5
        for _ in range(times):
            await one.hears(failed_over())
            await other.hears(failed_over())
            one.clock.advance(QUIET_SECONDS / 2)
            await other.hears(failed_over())
            one.clock.advance(QUIET_SECONDS / 2)
            await one.hears(ROUND)
            await other.hears(failed_over(), ROUND)

        failover = await one.one(IncidentType.FAILOVER_TRIGGERED)
        assert failover.details["calls"] == 4 * times


async def test_without_the_store_each_reports_what_it_sees() -> None:
    async with replicas() as (one, other):
        await one.cut_off()
        one.bus.emit(moved("open"))

        assert one.changes() == [("opened", "outage_detected")]
        assert (await one.one()).resolved_at is None
        assert await other.list() == []


async def test_the_list_outlives_the_store() -> None:
    async with replicas() as (one, other):
        await other.hears(moved("open"))
        await one.list()
        await one.cut_off()

        assert (await one.one()).message == "openai is out: connect"


async def test_what_was_seen_alone_joins_what_the_others_saw() -> None:
    async with replicas() as (one, other):
        await one.cut_off()
        await one.hears(moved("open"), rescued(), ROUND)
        await other.hears(moved("open"), rescued(), ROUND)
        one.changes()
        await one.join()

        assert one.changes() == [("updated", "outage_detected")]
        assert await one.list() == await other.list()
        assert (await other.one()).details["affected_calls"] == 2


async def test_an_outage_that_was_reported_alone_is_not_reported_again() -> None:
    async with replicas() as (one, other):
        await one.cut_off()
        await one.hears(moved("open"))
        one.changes()
        await one.join()

        assert (one.changes(), len(await other.list())) == ([], 1)


async def test_a_change_that_the_store_did_not_take_is_reported_and_told_later() -> None:
    """One failure does not mean that it is away."""
    async with replicas() as (one, other):
        kept = one.store.contribute

        async def refuse(contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
            raise StoreAway("busy")

        one.store.contribute = refuse  # type: ignore[method-assign]
        await one.hears(moved("open"))
        assert one.changes() == [("opened", "outage_detected")]
        one.store.contribute = kept  # type: ignore[method-assign]
        await one.shared.tick()

        assert (len(await other.list()), one.changes()) == (1, [])


async def test_a_store_that_lost_its_memory_is_told_what_goes_on() -> None:
    async with replicas() as (one, other):
        await one.hears(moved("open"), failed_over())
        await other.hears(moved("open", by="R0"), rescued(), ROUND)
        one.store.state.forget()
        for replica in (one, other):
            replica.changes()
            await replica.shared.synchronise()

        outage = await other.one()
        assert outage == await one.one()
        assert (outage.details["affected_calls"], outage.resolved_at) == (1, None)
        assert one.changes() == other.changes() == []


async def test_what_was_over_is_known_to_those_who_were_there() -> None:
    async with replicas() as (one, other):
        await one.hears(moved("open"))
        await other.hears(moved("open", by="R0"), moved("closed", "open", by="R0"))
        await one.hears(moved("closed", "open"))
        await other.list()
        one.store.state.forget()
        for replica in (one, other):
            await replica.shared.synchronise()

        assert await one.one() == await other.one()
        assert (await one.one()).resolved_at is not None


async def test_what_a_replica_saw_that_is_gone_ends_with_its_last_word() -> None:
    async with replicas(3) as (one, other, third):
        await third.hears(moved("open"))
        last_word = one.clock.time()
        await one.clock.move(RETURN_SECONDS)
        one.alive.remove(third.name)
        for replica in (one, other):
            await replica.shared.tick()

        outage = await other.one()
        assert (outage.resolved_at, outage.details["ended_by"]) == (last_word, GONE)
        assert one.changes() == [("resolved", "outage_detected")]
        assert other.changes() == []
        await one.shared.tick()
        assert one.changes() == []


async def test_what_others_see_too_goes_on_without_the_one_that_is_gone() -> None:
    async with replicas() as (one, other):
        await other.hears(moved("open"), rescued(), ROUND)
        await one.hears(moved("open", by="R1"))
        await one.clock.move(RETURN_SECONDS)
        one.alive.remove(other.name)
        await one.shared.tick()

        outage = await one.one()
        assert (outage.resolved_at, outage.details["affected_calls"]) == (None, 1)


async def test_nobody_is_taken_for_gone_while_all_are_coming_back() -> None:
    async with replicas() as (one, other):
        await other.hears(moved("open"))
        await one.cut_off()
        one.alive.remove(other.name)
        await one.join()
        await one.shared.tick()

        assert (await one.one()).resolved_at is None


async def test_what_was_going_on_at_a_restart_ended_with_the_old_process() -> None:
    clock = StillClock()
    state = FakeState(clock, shared=False)
    before = Replica(state, clock, {"R0"})
    async with before.link.running(), before.shared.running():
        await before.hears(moved("open"))
    clock.advance(60)
    after = Replica(state, clock, set())
    after.leads = True
    async with after.link.running(), after.shared.running():
        await after.shared.tick()

        outage = await after.one()
        assert (outage.duration_seconds, outage.details["ended_by"]) == (0.0, GONE)
        await after.hears(moved("open"))
        assert [each.resolved_at for each in await after.list(OUTAGE)] == [None, outage.resolved_at]


async def test_the_oldest_that_are_over_are_forgotten_first() -> None:
    async with replicas(capacity=3) as (one, other):
        await one.hears(BreakerChanged("ollama", None, "closed", "isolated", "maintenance", 0.0))
        for _ in range(9):
            one.clock.advance(QUIET_SECONDS)
            await one.hears(failed_over(), ROUND)

        for replica in (one, other):
            found = await replica.list()
            assert len(found) == 3
            assert found[-1].type is IncidentType.BREAKER_ISOLATED


async def test_pages_lead_through_the_incidents_of_all() -> None:
    async with replicas() as (one, other):
        for replica in (one, other, one):
            one.clock.advance(QUIET_SECONDS)
            await replica.hears(failed_over(), ROUND)
            one.clock.advance(QUIET_SECONDS)
            await replica.hears(ROUND)
        await other.list()

        first, total = other.shared.find(limit=2)
        rest, _ = other.shared.find(limit=2, before=first[-1].id)
        assert total == 3
        assert [each.timestamp for each in (*first, *rest)] == sorted(
            (each.timestamp for each in (*first, *rest)), reverse=True
        )
        assert len({each.id for each in (*first, *rest)}) == 3


async def test_what_another_version_tells_is_passed_over() -> None:
    async with replicas() as (one, _):
        strange = Contribution("x", "R9", "Z", True, b'{"type":"from_the_future"}')
        await one.store.contribute(strange, frozenset())
        await one.hears(moved("open"))

        assert len(await one.list()) == 1


async def test_many_readers_are_one_question() -> None:
    async with replicas() as (one, _):
        one.store.state.asked.clear()
        one.clock.advance(FRESH_SECONDS)
        for _ in range(5):
            await one.shared.refresh()

        assert one.store.state.asked == ["incidents"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "closed", "call", "call", "failover", "round", "pass", "cut", "join", "busy"]
        ),
        st.integers(0, 1),
    ),
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_all_list_the_same_and_nothing_counts_twice(steps: list[tuple[str, int]]) -> None:
    """Breakers move at one and are followed by the other; the store comes, goes, and fails now and then."""

    async def play() -> None:
        async with replicas() as pair:
            for step, which in steps:
                replica, other = pair[which], pair[1 - which]
                match step:
                    case "open" | "closed":
                        await replica.hears(moved(step))
                        await other.hears(moved(step, by=replica.name))
                    case "call":
                        await replica.hears(rescued())
                    case "failover":
                        await replica.hears(failed_over())
                    case "round":
                        await replica.hears(ROUND)
                    case "pass":
                        replica.clock.advance(QUIET_SECONDS)
                    case "cut" if replica.link.up:
                        await replica.cut_off()
                    case "join" if not replica.link.up:
                        await replica.join()
                    case "busy" if replica.link.up:
                        replica.store.away = True
                        await replica.hears(failed_over())
                        replica.store.away = False
            for replica in pair:
                await replica.hears(ROUND)
                if not replica.link.up:
                    await replica.join()
                await replica.shared.tick()
            lists = [await replica.list() for replica in pair]

            assert lists[0] == lists[1]
            for type, number in ((OUTAGE, "affected_calls"), (IncidentType.FAILOVER_TRIGGERED, "calls")):
                counted = [each.details[number] for each in lists[0] if each.type is type]
                seen = [
                    each.details[number] for replica in pair for each in replica.incidents.find(type=type)[0]
                ]
                assert sum(counted) == sum(seen)
            lasting = {each.type for each in lists[0] if each.resolved_at is None}
            assert lasting == {each.type for replica in pair for each in replica.incidents.ongoing()}
            opened = [
                event.incident.id
                for replica in pair
                for event in replica.reported
                if event.change == "opened"
            ]
            assert len(opened) == len(set(opened))

    asyncio.run(play())


async def test_a_day_without_the_store_takes_no_more_room_than_the_list() -> None:
    async with replicas(1, capacity=5) as (one,):
        await one.cut_off()
        for _ in range(50):
            await one.hears(moved("open"), failed_over(), ROUND, moved("closed", "open"))
            one.clock.advance(QUIET_SECONDS + 1)

        known, owed = map(int, re.findall(r"\d+", repr(one.shared)))
        assert known == 5
        assert owed <= 2 * 5 + 1


async def test_a_model_with_half_a_letter_in_its_name_holds_up_no_incident() -> None:
    """Callers choose names, and a lone surrogate is legal JSON; no store can keep it."""
    async with replicas(1) as (one,):
        await one.hears(BreakerChanged("openai", "gpt-\ud800", "closed", "open", "overloaded (503)", 30.0))

        (shared,) = one.store.state.shared_incidents
        assert shared.contributions[0].key.encode()
        assert shared.contributions[0].data
