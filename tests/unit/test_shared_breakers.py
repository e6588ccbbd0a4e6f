"""Breakers that replicas share: telling, adopting, healing, and who may hold a trial."""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress

import fake_store
import pytest
from fake_store import FakeState
from shared_breakers_support import MODEL, OF_MODEL, Replica, done, spread

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.replica import breakers as module
from sentinel_proxy.replica.trials import KEPT_SECONDS, LEASE_SECONDS, ROUND_SECONDS
from sentinel_proxy.resilience.breaker import BUSY_SECONDS, State
from sentinel_proxy.resilience.scopes import ScopedPermit
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.stores.records import BreakerRecord
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

Start = Callable[[str], Replica]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def state(clock: FakeClock) -> FakeState:
    return FakeState(clock)


@pytest.fixture
def start(state: FakeState, clock: FakeClock) -> Start:
    """Start one more replica."""
    return lambda name: Replica(state, clock, name)


@pytest.fixture
def a(start: Start) -> Replica:
    return start("A")


@pytest.fixture
def b(start: Start) -> Replica:
    return start("B")


async def round_of(*replicas: Replica) -> None:
    """What each replica does every two seconds."""
    for replica in replicas:
        await replica.shared.synchronise()
        await replica.shared.tick()
    await spread(*replicas)


async def rounds(clock: FakeClock, seconds: float, *replicas: Replica) -> None:
    """Let *seconds* pass as they do where nothing hangs."""
    for _ in range(int(seconds / ROUND_SECONDS)):
        clock.advance(ROUND_SECONDS)
        await round_of(*replicas)
    clock.advance(seconds % ROUND_SECONDS)


async def trial_of(replica: Replica) -> ScopedPermit:
    """Return leave for a trial; where there was no lease in hand, one has been asked for."""
    permit = replica.acquire()
    if permit is None:
        await done()
        permit = replica.acquire()
    assert permit is not None
    assert permit.trial
    return permit


# Telling and adopting.


async def test_j08_a_breaker_that_opens_in_one_replica_refuses_in_the_other_as_soon_as_it_hears(
    a: Replica, b: Replica
) -> None:
    a.fail()
    assert b.acquire() is not None

    await spread(a, b)

    assert b.acquire() is None
    assert a.changes == [("closed", "open", None)]
    assert b.changes == [("closed", "open", "A")]
    assert (b.own.reason, b.own.rest(b.clock.monotonic())) == ("reset", 30)


async def test_j08_where_news_get_lost_the_next_comparison_tells(a: Replica, b: Replica) -> None:
    b.store.deaf = True
    a.fail()
    await spread(a, b)
    assert b.acquire() is not None

    await b.shared.synchronise()

    assert b.acquire() is None


async def test_what_happens_to_a_model_is_told_of_the_model_alone(a: Replica, b: Replica) -> None:
    a.fail(OF_MODEL)

    await spread(a, b)

    assert b.acquire() is None
    assert b.acquire("another") is not None
    assert (b.state(), b.state(MODEL)) == (State.CLOSED, State.OPEN)


async def test_an_outage_and_its_end_are_told_once_each(a: Replica, b: Replica, clock: FakeClock) -> None:
    a.fail()
    await rounds(clock, 30, a, b)
    trial = a.acquire()
    assert trial is not None
    await rounds(clock, 2, a, b)
    trial.succeed(clock.monotonic())
    await rounds(clock, 10, a, b)

    moves = [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
    assert a.changes == [(*move, None) for move in moves]
    assert b.changes == [(*move, "A") for move in moves]


async def test_while_nothing_happens_nothing_is_told(
    a: Replica, b: Replica, state: FakeState, clock: FakeClock
) -> None:
    a.fail()
    await rounds(clock, 4, a, b)
    state.asked.clear()

    await rounds(clock, 20, a, b)

    assert set(state.asked) == {"breakers"}


async def test_two_replicas_that_open_together_agree_on_one_era(a: Replica, b: Replica) -> None:
    a.fail()
    b.fail()

    await spread(a, b)

    assert (a.own.state, a.own.era) == (b.own.state, b.own.era) == (State.OPEN, 1)
    assert (len(a.changes), len(b.changes)) == (1, 1)


async def test_failures_are_counted_by_each_replica_alone(a: Replica, b: Replica) -> None:
    a.fail(times=2)
    b.fail(times=2)

    await spread(a, b)
    await round_of(a, b)

    assert (a.own.failures, b.own.failures) == (2, 2)
    assert (a.state(), b.state()) == (State.CLOSED, State.CLOSED)


async def test_only_the_newest_state_of_a_breaker_waits_to_be_told(
    a: Replica, clock: FakeClock, state: FakeState
) -> None:
    a.cut()
    for _ in range(100):
        a.fail()
        a.breakers.advance(clock.monotonic())
        trial = a.acquire()
        assert trial is not None
        trial.succeed(clock.monotonic())
    a.rejoin()

    await a.shared.synchronise()

    assert state.asked.count("merge_breaker") == 1
    assert state.records["openai"].record.era == a.own.era == 300


async def test_a_provider_that_others_have_in_their_chain_is_none_of_ours(a: Replica) -> None:
    a.shared.take(BreakerRecord("elsewhere", None, "open", 0, 1, 30.0, 0.0, 1, "reset", "B"))

    await done()

    assert a.changes == []


async def test_news_of_ones_own_that_come_late_end_nothing(a: Replica) -> None:
    a.fail(OF_MODEL)
    await done()
    a.breakers.reset(a.clock.monotonic(), "well")
    await done()

    await a.hear()

    assert a.state(MODEL) is State.CLOSED


# Operators.


async def test_an_isolation_holds_in_all_replicas_whatever_their_calls_say(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    b.fail()
    await spread(a, b)
    await rounds(clock, 30, a, b)
    trial = b.acquire()
    assert trial is not None
    a.breakers.isolate(clock.monotonic(), clock.monotonic() + 600, "maintenance")
    await spread(a, b)

    trial.succeed(clock.monotonic())
    await round_of(a, b)

    assert (a.state(), b.state()) == (State.ISOLATED, State.ISOLATED)


async def test_an_isolation_given_to_a_replica_that_was_cut_off_beats_what_happened_meanwhile(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    a.cut()
    a.breakers.isolate(clock.monotonic(), math.inf, "maintenance")
    for _ in range(3):
        b.fail()
        b.breakers.advance(clock.monotonic())
        (await trial_of(b)).succeed(clock.monotonic())
    await spread(b)
    a.rejoin()

    await a.shared.synchronise()
    await spread(a, b)

    assert (a.state(), b.state()) == (State.ISOLATED, State.ISOLATED)
    assert a.own.era == b.own.era == 10


async def test_a_reset_in_one_replica_closes_everything_in_all(a: Replica, b: Replica) -> None:
    a.fail(OF_MODEL)
    await spread(a, b)
    b.breakers.isolate(b.clock.monotonic(), math.inf, "maintenance")
    await spread(a, b)

    b.breakers.reset(b.clock.monotonic(), "well")
    await spread(a, b)

    assert [replica.state(model) for replica in (a, b) for model in (None, MODEL)] == [State.CLOSED] * 4
    assert a.breakers.models_view() == {}


async def test_a_reset_while_the_store_is_away_is_not_forgotten(a: Replica, b: Replica) -> None:
    a.fail(OF_MODEL)
    await spread(a, b)
    a.cut()
    a.breakers.reset(a.clock.monotonic(), "well")
    a.rejoin()

    await round_of(a, b)

    assert (a.state(MODEL), b.state(MODEL)) == (State.CLOSED, State.CLOSED)


async def test_a_reset_of_a_breaker_that_is_closed_here_closes_it_elsewhere(a: Replica, b: Replica) -> None:
    a.store.deaf = True
    b.fail()
    await spread(a, b)

    a.breakers.reset(a.clock.monotonic(), "well")
    await round_of(a)
    await spread(b)

    assert (a.state(), b.state()) == (State.CLOSED, State.CLOSED)


async def test_an_order_beats_all_that_were_given_before_it_though_they_moved_nothing(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    for _ in range(3):
        a.breakers.reset(clock.monotonic(), "well already")
    await round_of(a, b)

    b.breakers.isolate(clock.monotonic(), math.inf, "maintenance")
    await spread(a, b)
    await round_of(a, b)

    assert (a.state(), b.state()) == (State.ISOLATED, State.ISOLATED)


async def test_what_a_new_replica_finds_out_stands_although_the_others_have_moved_more_often(
    a: Replica, start: Start, clock: FakeClock, state: FakeState
) -> None:
    for _ in range(3):
        a.fail()
        a.breakers.advance(clock.monotonic())
        (await trial_of(a)).succeed(clock.monotonic())
    state.forget()  # it was long ago
    await round_of(a)
    c = start("C")
    await c.shared.synchronise()

    c.fail()
    await spread(a, c)

    assert (a.state(), c.state()) == (State.OPEN, State.OPEN)
    assert c.changes == [("closed", "open", None)]


async def test_a_change_of_an_isolation_reaches_the_others_with_the_next_comparison(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    a.breakers.isolate(clock.monotonic(), clock.monotonic() + 600, "maintenance")
    await spread(a, b)

    a.breakers.isolate(clock.monotonic(), clock.monotonic() + 60, "it went faster")
    await round_of(a, b)

    assert (b.own.rest(clock.monotonic()), b.own.reason) == (60, "it went faster")
    assert b.changes == [("closed", "isolated", "A")]


async def test_j10_an_isolation_survives_the_restart_of_all_replicas_until_it_expires(
    a: Replica, b: Replica, start: Start, clock: FakeClock
) -> None:
    a.breakers.isolate(clock.monotonic(), clock.monotonic() + 60, "maintenance")
    await spread(a, b)
    for replica in (a, b):
        await replica.shared.leave()
        await replica.store.aclose()
    clock.advance(40)

    c = start("C")
    await c.shared.synchronise()

    assert c.acquire() is None
    assert c.changes == [("closed", "isolated", "A")]
    assert c.own.rest(clock.monotonic()) == 20
    await rounds(clock, 20, c)
    permit = c.acquire()
    assert permit is not None
    assert permit.trial


async def test_a_rest_survives_a_restart_with_a_store_of_ones_own(clock: FakeClock) -> None:
    state = FakeState(clock, shared=False)
    before = Replica(state, clock, "before")
    before.fail()
    await before.shared.leave()
    clock.advance(10)

    after = Replica(state, clock, "after")
    await after.shared.synchronise()

    assert after.acquire() is None
    assert after.own.rest(clock.monotonic()) == 20
    clock.advance(20)
    permit = after.acquire()  # nobody to share trials with
    assert permit is not None
    assert permit.trial
    assert "take_lease" not in state.asked


# Healing.


async def test_j09_a_replica_that_returns_with_old_news_reopens_nothing(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    b.fail()
    await spread(a, b)
    b.cut()
    await rounds(clock, 30, a)
    (await trial_of(a)).succeed(clock.monotonic())
    await spread(a)
    assert b.state() is State.OPEN
    b.rejoin()

    await round_of(b, a)

    assert (a.state(), b.state()) == (State.CLOSED, State.CLOSED)
    assert a.changes[-1] == ("half_open", "closed", None)


async def test_what_opened_while_the_store_was_away_is_told_when_it_is_back(a: Replica, b: Replica) -> None:
    a.cut()
    a.fail()
    a.rejoin()

    await round_of(a, b)

    assert b.state() is State.OPEN


async def test_a_store_that_forgot_everything_is_told_again(
    a: Replica, b: Replica, start: Start, state: FakeState
) -> None:
    a.fail()
    await spread(a, b)
    state.forget()

    await b.shared.synchronise()
    c = start("C")
    await c.shared.synchronise()

    assert c.changes == [("closed", "open", "A")]  # B told it, but it was A that moved it


async def test_of_two_that_parted_the_graver_state_stands_if_both_have_moved_as_often(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    for replica in (a, b):
        replica.cut()
        replica.fail()
    clock.advance(30)
    (await trial_of(a)).succeed(clock.monotonic())
    b.fail(times=1)
    for replica in (a, b):
        replica.rejoin()

    await round_of(a, b)

    assert (a.state(), b.state()) == (State.OPEN, State.OPEN)
    assert (a.own.era, b.own.era) == (4, 4)  # one more than the 3 in which A was closed
    assert a.changes[-1] == ("closed", "open", "B")


async def test_a_rest_that_is_heard_of_late_is_soon_as_long_as_it_was_meant(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    a.fail()
    await done()
    clock.advance(7)
    await b.hear()
    assert b.own.rest(clock.monotonic()) == 30

    await round_of(b, a)

    assert (a.own.rest(clock.monotonic()), b.own.rest(clock.monotonic())) == (23, 23)


async def test_news_that_always_come_late_do_not_make_a_rest_longer_and_longer(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    for replica in (a, b):
        replica.fail()
    for _ in range(5):
        clock.advance(5)
        await spread(a, b)

    assert (a.own.rest(clock.monotonic()), b.own.rest(clock.monotonic())) == (5, 5)


async def test_of_two_rests_of_one_era_the_longer_one_stands_for_all(
    a: Replica, b: Replica, start: Start, clock: FakeClock
) -> None:
    a.fail()
    b.fail(FailureKind.CREDENTIAL, times=1)

    await round_of(a, b, c := start("C"))
    await round_of(a, b, c)

    assert [replica.own.rest(clock.monotonic()) for replica in (a, b, c)] == [60, 60, 60]


async def test_a_model_that_nobody_calls_any_more_is_forgotten_by_all(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    a.fail(OF_MODEL)
    await spread(a, b)
    clock.advance(30 + 300)
    a.breakers.worst(clock.monotonic())

    await spread(a, b)
    await round_of(a, b)

    assert a.breakers.models_view() == b.breakers.models_view() == {}


async def test_a_model_that_is_in_trouble_again_is_not_silenced_by_its_past(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    for _ in range(3):
        a.fail(OF_MODEL)
        await spread(a, b)
        a.breakers.reset(clock.monotonic(), "well")
        await spread(a, b)

    b.fail(OF_MODEL)
    await round_of(a, b)

    assert (a.state(MODEL), b.state(MODEL)) == (State.OPEN, State.OPEN)


async def test_a_store_that_is_away_costs_nobody_anything(a: Replica, state: FakeState) -> None:
    a.cut()
    state.asked.clear()

    a.fail()
    await done()
    await a.shared.tick()

    assert a.state() is State.OPEN
    assert state.asked == []


# Trials.


async def open_everywhere(*replicas: Replica) -> None:
    replicas[0].fail()
    await spread(*replicas)


async def test_f06_of_fifty_calls_at_the_end_of_a_rest_one_is_a_trial_in_all_replicas_together(
    a: Replica, b: Replica, start: Start, clock: FakeClock
) -> None:
    replicas = (a, b, start("C"))
    await open_everywhere(*replicas)
    for replica in replicas:
        assert replica.acquire() is None  # who refuses calls will want to try
    await rounds(clock, 30, *replicas)

    permits = [replica.acquire() for _ in range(50) for replica in replicas]
    await spread(*replicas)
    permits += [replica.acquire() for _ in range(50) for replica in replicas]

    assert [permit.trial for permit in permits if permit is not None] == [True]


async def test_the_lease_is_in_hand_as_the_rest_ends(a: Replica, b: Replica, clock: FakeClock) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)

    permit = a.acquire()  # the replica that tripped it, and that nobody has called since

    assert permit is not None
    assert permit.trial


async def test_a_lease_that_nobody_wants_is_given_back_so_that_another_replica_may_try(
    a: Replica, b: Replica, clock: FakeClock, state: FakeState
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    assert b.acquire() is None
    await done()
    assert b.own.rest(clock.monotonic()) == BUSY_SECONDS
    await rounds(clock, KEPT_SECONDS + 1, a, b)

    assert b.acquire() is None
    await done()

    permit = b.acquire()
    assert permit is not None
    assert permit.trial


async def test_a_replica_that_has_seen_no_calls_asks_for_the_lease_with_the_first(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    a.cut()  # killed, say
    clock.advance(3600)

    assert b.acquire() is None
    await done()

    assert b.acquire() is not None


async def test_f10_the_trial_of_a_replica_that_was_killed_is_free_after_its_lease(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    assert a.acquire() is not None
    await spread(a, b)
    await a.store.aclose()

    assert b.acquire() is None
    await done()
    assert b.acquire() is None
    await rounds(clock, LEASE_SECONDS, b)
    assert b.acquire() is None
    await done()

    assert b.acquire() is not None
    assert b.changes[-1] == ("open", "half_open", "A")


async def test_f10_a_long_trial_keeps_its_lease_for_as_long_as_its_owner_lives(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    assert a.acquire() is not None

    for _ in range(14):
        await rounds(clock, ROUND_SECONDS, a, b)
        assert b.acquire() is None


async def test_f10_a_trial_whose_caller_was_lost_is_not_renewed_for_ever(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    assert a.acquire() is not None  # and never settled; the default place is kept for 35 seconds

    await rounds(clock, 36 + LEASE_SECONDS, a, b)
    assert b.acquire() is None
    await done()

    assert b.acquire() is not None


async def test_f09_a_trial_that_taught_nothing_leaves_the_place_to_the_next_call_here(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    trial = a.acquire()
    assert trial is not None

    trial.release(clock.monotonic())

    assert a.acquire() is not None
    assert a.state() is State.HALF_OPEN


async def test_a_trial_that_took_long_leaves_the_place_to_whoever_asks_first(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    trial = a.acquire()
    assert trial is not None
    await rounds(clock, 10, a, b)
    trial.release(clock.monotonic())
    await spread(a, b)

    assert b.acquire() is None
    await done()

    assert b.acquire() is not None
    assert a.acquire() is None


async def test_a_good_trial_closes_the_breaker_of_every_replica(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    trial = a.acquire()
    assert trial is not None

    trial.succeed(clock.monotonic())
    await spread(a, b)

    permit = b.acquire()
    assert permit is not None
    assert not permit.trial


async def test_while_the_store_is_away_each_replica_tries_by_itself(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    for replica in (a, b):
        replica.cut()
    clock.advance(30)

    permits = [replica.acquire() for _ in range(10) for replica in (a, b)]

    assert [permit.trial for permit in permits if permit is not None] == [True, True]


async def test_a_store_that_does_not_answer_keeps_nobody_from_trying(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    clock.advance(30)
    b.store.away = True  # but nobody knows it yet

    assert b.acquire() is None
    await done()

    assert b.acquire() is not None


async def test_where_both_breakers_rest_a_call_gets_both_leases_in_the_end(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    a.fail(OF_MODEL)
    a.breakers.isolate(clock.monotonic(), clock.monotonic() + 30, "maintenance")
    await spread(a, b)
    clock.advance(30)
    permits = []
    for _ in range(3):
        permits.append(b.acquire())
        await done()

    assert permits[:2] == [None, None]
    assert permits[2] is not None
    permits[2].succeed(clock.monotonic())
    await spread(a, b)
    assert [replica.state(model) for replica in (a, b) for model in (None, MODEL)] == [State.CLOSED] * 4


async def test_who_leaves_gives_everything_back_and_has_told_everything(
    a: Replica, b: Replica, clock: FakeClock, state: FakeState
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)
    assert a.acquire() is not None

    await a.shared.leave()

    assert state.records["openai"].record.state == "half_open"
    assert b.acquire() is None
    await done()
    await b.hear()
    assert b.acquire() is not None


async def test_a_store_that_sees_things_otherwise_is_told_once_a_round(
    a: Replica, state: FakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.fail()
    await done()
    monkeypatch.setattr(fake_store, "merged", lambda stood, told: stood)
    a.breakers.advance(a.clock.monotonic())
    await done()
    state.asked.clear()

    await a.shared.synchronise()

    assert state.asked.count("merge_breaker") == 1


async def test_leaving_while_the_store_is_away_is_no_error(a: Replica) -> None:
    a.fail()
    a.cut()

    await a.shared.leave()

    assert not [task for task in asyncio.all_tasks() if task.get_name() == "shared breakers"]


async def test_a_lease_that_could_not_be_renewed_in_time_is_not_used_any_more(
    a: Replica, b: Replica, clock: FakeClock
) -> None:
    await open_everywhere(a, b)
    await rounds(clock, 30, a, b)  # A has it in hand
    clock.advance(LEASE_SECONDS)  # and hangs
    assert (await trial_of(b)).trial

    assert a.acquire() is None
    await a.shared.tick()
    await done()

    assert a.acquire() is None
    assert a.own.rest(clock.monotonic()) == BUSY_SECONDS


async def test_what_is_too_much_to_be_kept_for_the_store_is_found_by_comparison(
    a: Replica, b: Replica, monkeypatch: pytest.MonkeyPatch, state: FakeState
) -> None:
    monkeypatch.setattr(module, "MAX_UNTOLD", 2)
    a.cut()
    for model in ("one", "two", "three"):
        for _ in range(3):
            permit = a.acquire(model)
            assert permit is not None
            permit.fail(UpstreamError(OF_MODEL, "it failed"), a.clock.monotonic())
    a.rejoin()

    await a.shared.leave()
    assert set(state.records) == {"openai two", "openai three"}
    await a.shared.synchronise()

    assert set(state.records) == {"openai one", "openai two", "openai three"}


async def test_a_model_that_no_store_can_keep_is_everybodys_own(a: Replica, b: Replica) -> None:
    """Callers choose names, and half of a surrogate pair is legal JSON; it must not hold up the others."""
    for _ in range(3):
        permit = a.breakers.acquire("gpt-\ud800", a.clock.monotonic())
        permit.fail(UpstreamError(OF_MODEL, "it failed"), a.clock.monotonic())
    a.fail(OF_MODEL)
    await spread(a, b)

    assert a.state("gpt-\ud800") is State.OPEN
    assert b.state(MODEL) is State.OPEN
    assert {record.model for record in await b.store.breakers()} == {MODEL}
    a.clock.advance(31)
    assert a.breakers.acquire("gpt-\ud800", a.clock.monotonic()).trial


async def test_a_record_that_the_store_refuses_holds_up_no_other(
    a: Replica, b: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = a.store.merge_breaker

    async def refuse_the_first(record: BreakerRecord) -> BreakerRecord:
        if record.model == MODEL:
            raise StoreAway("fake refuses")
        return await merge(record)

    monkeypatch.setattr(a.store, "merge_breaker", refuse_the_first)
    a.fail(OF_MODEL)
    a.breakers.isolate(a.clock.monotonic(), math.inf, "an order")
    for _ in range(2):
        with suppress(StoreAway):
            await round_of(a)
    await round_of(b)

    assert b.state() is State.ISOLATED


async def test_a_breaker_that_was_made_anew_does_not_pass_for_the_one_before_it(
    a: Replica, clock: FakeClock
) -> None:
    """Its trial would be a second one, and its end would free the place of the first."""
    of = a.shared.leases("openai", 1)
    assert of is not None
    before, after = of(MODEL), of(MODEL)
    assert before is not None
    assert after is not None
    assert before.take(clock.monotonic(), clock.monotonic() + 60) is None
    await done()
    assert before.take(clock.monotonic(), clock.monotonic() + 60) is not None

    assert after.take(clock.monotonic(), clock.monotonic() + 60) is None
    await done()

    assert after.take(clock.monotonic(), clock.monotonic() + 60) is None
    assert after.wait(clock.monotonic()) > 0


async def test_a_lease_that_the_store_refuses_keeps_nobody_from_renewing_others(
    a: Replica, state: FakeState, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = a.shared.leases("openai", 1)
    assert of is not None
    for model in ("first", "second"):
        trials = of(model)
        assert trials is not None
        assert trials.take(clock.monotonic(), clock.monotonic() + 60) is None
        await done()
        assert trials.take(clock.monotonic(), clock.monotonic() + 60) is not None
    take = a.store.take_lease

    async def refuse_the_first(name: str, owner: str, seconds: float, places: int = 1) -> float:
        if name.endswith("first"):
            raise StoreAway("fake refuses")
        return await take(name, owner, seconds, places)

    monkeypatch.setattr(a.store, "take_lease", refuse_the_first)
    clock.advance(ROUND_SECONDS)
    await a.shared.tick()

    (until,) = state.leases["trial openai second"].values()
    assert until == clock.monotonic() + LEASE_SECONDS
