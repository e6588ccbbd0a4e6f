"""Who is there, who leads, what all have counted, and what they tell each other."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields

import pytest
from fake_store import FakeState
from replica_support import Linked, StillClock, rounds

from sentinel_proxy.replica.leader import LEASE_SECONDS, Leader
from sentinel_proxy.replica.notes import MOST_AT_ONCE, Notes
from sentinel_proxy.replica.presence import ALIVE_SECONDS, Presence, Tally, summed
from sentinel_proxy.stores.records import Note

pytestmark = pytest.mark.anyio


class Replica(Linked):
    """A replica that is there, may lead, and has counted something."""

    def __init__(self, state: FakeState, clock: StillClock) -> None:
        super().__init__(state, clock)
        self.tally = Tally(uptime_seconds=1.0, requests=10, successes=1, seconds=2.0)
        self.presence = Presence(self.link, lambda: self.tally)
        self.leader = Leader(self.link)
        self.notes = Notes(self.link)
        self.heard: list[tuple[bytes, str]] = []
        self.notes.hear("probe", lambda data, replica: self.heard.append((data, replica)))

    async def tick(self) -> None:
        await self.presence.tick()
        await self.leader.tick()

    async def hears(self) -> None:
        await rounds()
        for news in self.store.heard():
            if isinstance(news, Note):
                self.notes.take(news)


@asynccontextmanager
async def replicas(number: int = 2, *, shared: bool = True) -> AsyncIterator[Sequence[Replica]]:
    clock = StillClock()
    state = FakeState(clock, shared=shared)
    made = [Replica(state, clock) for _ in range(number)]
    async with AsyncExitStack() as stack:
        for replica in made:
            await stack.enter_async_context(replica.link.running())
        for replica in made:
            await replica.tick()
        await made[0].tick()
        yield made


# Who is there.


async def test_everybody_knows_who_is_there() -> None:
    async with replicas(3) as all_three:
        for replica in all_three:
            await replica.tick()
            assert replica.presence.alive == {"R0", "R1", "R2"}


async def test_who_falls_silent_is_gone_after_a_while_and_its_numbers_with_it() -> None:
    async with replicas() as (one, other):
        assert one.presence.others == {"R1": other.tally}
        await one.clock.move(ALIVE_SECONDS)
        await one.tick()

        assert one.presence.alive == {"R0"}
        assert not one.presence.others


async def test_who_says_that_it_goes_is_gone_at_once() -> None:
    async with replicas() as (one, other):
        await other.presence.leave()
        await one.tick()

        assert one.presence.alive == {"R0"}


async def test_without_the_store_nobody_else_is_known() -> None:
    async with replicas() as (one, _):
        await one.cut_off()

        assert not one.presence.alive
        assert not one.presence.others
        await one.join()
        assert "R0" in one.presence.alive


async def test_where_nothing_is_shared_one_is_alone_and_asks_nobody() -> None:
    async with replicas(1, shared=False) as (one,):
        assert one.presence.alive == {"R0"}
        assert not {"beat", "take_lease"} & set(one.store.state.asked)


async def test_a_word_of_another_version_is_understood_as_far_as_it_can_be() -> None:
    async with replicas() as (one, _):
        await one.store.beat("R9", b'{"requests":5,"from_the_future":1}', ALIVE_SECONDS)
        await one.tick()

        assert one.presence.others["R9"] == Tally(requests=5)


def test_numbers_add_up_and_averages_are_weighted() -> None:
    many, few = Tally(requests=9, successes=9, seconds=9.0), Tally(requests=2, successes=1, seconds=6.0)

    total = summed((many, few))

    assert (total.requests, total.average_latency_ms) == (11, 1500.0)
    assert summed(()) == Tally()
    assert summed(()).average_latency_ms is None


@pytest.mark.parametrize("field", [field.name for field in fields(Tally)])
def test_no_number_is_left_out_of_the_sum(field: str) -> None:
    assert getattr(summed((Tally(**{field: 2}), Tally(**{field: 3}))), field) == 5


# Who leads.


async def test_one_leads() -> None:
    async with replicas(3) as all_three:
        assert [replica.leader.leads for replica in all_three] == [True, False, False]


async def test_another_leads_once_the_leader_is_gone() -> None:
    async with replicas() as (one, other):
        await one.clock.move(LEASE_SECONDS - 1)
        await other.tick()
        assert not other.leader.leads
        await one.clock.move(1)
        await other.tick()

        assert other.leader.leads
        await one.tick()
        assert not one.leader.leads


async def test_who_goes_makes_room_at_once() -> None:
    async with replicas() as (one, other):
        await one.leader.leave()
        await other.tick()

        assert (one.leader.leads, other.leader.leads) == (False, True)


async def test_without_the_store_each_leads() -> None:
    async with replicas() as (one, other):
        await other.cut_off()

        assert (one.leader.leads, other.leader.leads) == (True, True)
        await other.join()
        await one.tick()
        assert (one.leader.leads, other.leader.leads) == (False, True)


async def test_a_question_that_fails_changes_nothing() -> None:
    async with replicas() as (one, other):
        for replica in (one, other):
            replica.store.away = True
            await replica.leader.tick()

        assert (one.leader.leads, other.leader.leads) == (True, False)


# What they tell each other.


async def test_a_note_is_heard_by_all_others() -> None:
    async with replicas(3) as all_three:
        all_three[0].notes.tell("probe", b"it is there")
        for replica in all_three:
            await replica.hears()

        assert [replica.heard for replica in all_three] == [
            [],
            [(b"it is there", "R0")],
            [(b"it is there", "R0")],
        ]


async def test_a_note_of_something_unknown_is_passed_over() -> None:
    async with replicas() as (one, other):
        one.notes.tell("news of the future", b"")
        await other.hears()

        assert other.heard == []


async def test_what_cannot_be_told_now_is_not_told() -> None:
    async with replicas() as (one, other):
        await one.cut_off()
        one.notes.tell("probe", b"nobody hears this")
        await one.join()
        await other.hears()

        assert other.heard == []


async def test_notes_do_not_pile_up() -> None:
    async with replicas() as (one, other):
        for _ in range(MOST_AT_ONCE + 5):
            one.notes.tell("probe", b"")
        await other.hears()

        assert len(other.heard) == MOST_AT_ONCE


@pytest.mark.parametrize("said", [b"no JSON", b"[1]", b'{"requests": "many", "successes": null}'])
async def test_what_another_version_says_of_itself_counts_as_far_as_it_is_understood(said: bytes) -> None:
    async with replicas(2) as (one, other):
        await other.store.beat(other.name, said, ALIVE_SECONDS)
        await one.tick()

        assert other.name in one.presence.alive
        assert summed(one.presence.others.values()) == Tally()
