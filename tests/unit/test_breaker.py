"""A circuit breaker: who may call, and what each outcome changes."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from sentinel_proxy.config import BreakerConfig
from sentinel_proxy.errors import BreakerOpen
from sentinel_proxy.resilience.breaker import (
    BUSY_SECONDS,
    CALM_SECONDS,
    TRANSITIONS,
    Breaker,
    Lease,
    Permit,
    Signal,
    Snapshot,
    State,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "breaker.md").read_text()
LEASE_SECONDS = 35.0


class OneLease:
    """What replicas share out: one lease, which is somewhere."""

    def __init__(self) -> None:
        self.in_hand = True
        self.elsewhere_seconds = 0.0
        self.given_back = 0
        self.until = 0.0
        self.foreseen: list[float] = []

    def take(self, now: float, until: float) -> Lease | None:
        self.until = until
        taken, self.in_hand = self.in_hand, False
        return self if taken else None

    def give_back(self) -> None:
        self.in_hand = True
        self.given_back += 1

    def wait(self, now: float) -> float:
        return self.elsewhere_seconds

    def foresee(self, now: float, at: float) -> None:
        self.foreseen.append(at)


class Watched:
    """A breaker under a clock of its own, and the transitions that it reported."""

    def __init__(self, *, leases: OneLease | None = None, **settings: Any) -> None:
        self.now = 1000.0
        self.changes: list[tuple[str, str]] = []
        self.breaker = Breaker(
            BreakerConfig(**settings), self._changed, lease_seconds=LEASE_SECONDS, leases=leases
        )

    def _changed(self, breaker: Breaker, before: State, now: float) -> None:
        assert now == self.now
        self.changes.append((before.value, breaker.state.value))

    def acquire(self) -> Permit:
        return self.breaker.acquire(self.now)

    def fail(self, times: int = 1, **votes: Any) -> None:
        for _ in range(times):
            self.acquire().fail(self.now, "timeout", **votes)

    def succeed(self) -> None:
        self.acquire().succeed(self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def refused_for(self) -> float:
        """Return the seconds after which a refused caller may come back."""
        with pytest.raises(BreakerOpen) as refusal:
            self.acquire()
        return refusal.value.retry_after

    @property
    def facts(self) -> tuple[str, float | None, float | None, int, str, int]:
        """All that the breaker shows of itself."""
        b = self.breaker
        return (b.state.value, b.since, b.until, b.failures, b.reason, b.level)


@pytest.fixture
def closed() -> Watched:
    return Watched()


@pytest.fixture
def opened(closed: Watched) -> Watched:
    """Opened at second 1000 by three failures, to rest until 1030."""
    closed.fail(3)
    closed.changes.clear()
    return closed


@pytest.fixture
def half_open(opened: Watched) -> Watched:
    """At second 1030, with its only place free."""
    opened.wait(30)
    opened.acquire().release(opened.now)
    opened.changes.clear()
    return opened


def test_a_new_breaker_admits_and_remembers_nothing(closed: Watched) -> None:
    closed.succeed()

    assert closed.facts == ("closed", None, None, 0, "", 0)
    assert closed.breaker.pristine
    assert repr(closed.breaker) == "<Breaker closed, 0 failures, level 0>"


def test_f01_three_failures_in_a_row_open_it_once(closed: Watched) -> None:
    closed.fail(3)

    assert closed.facts == ("open", 1000.0, 1030.0, 3, "timeout", 1)
    assert closed.changes == [("closed", "open")]


def test_f02_a_success_ends_a_run_of_failures(closed: Watched) -> None:
    closed.fail(2)
    closed.succeed()
    closed.fail(2)

    assert closed.facts == ("closed", None, None, 2, "", 0)
    assert not closed.breaker.pristine


def test_f03_a_neutral_outcome_does_not_interrupt_a_run_of_failures(closed: Watched) -> None:
    closed.fail(2)
    closed.acquire().release(closed.now)
    closed.fail()

    assert closed.breaker.state is State.OPEN


def test_f04_an_open_breaker_refuses_and_says_for_how_long(opened: Watched) -> None:
    opened.wait(10)

    assert opened.refused_for() == 20.0


def test_f05_the_rest_ends_to_the_second(opened: Watched) -> None:
    opened.wait(29.9)
    assert opened.refused_for() == pytest.approx(0.1)

    opened.now = 1030.0
    permit = opened.acquire()

    assert permit.trial
    assert opened.changes == [("open", "half_open")]
    assert opened.facts == ("half_open", 1030.0, None, 3, "the rest is over", 1)


@pytest.mark.parametrize("places", [1, 3])
def test_f06_of_fifty_at_the_end_of_the_rest_only_the_trials_are_admitted(places: int) -> None:
    watched = Watched(half_open_permits=places)
    watched.fail(3)
    watched.wait(30)

    admitted = [watched.acquire() for _ in range(places)]
    refusals = [watched.refused_for() for _ in range(50 - places)]

    assert all(permit.trial for permit in admitted)
    assert set(refusals) == {BUSY_SECONDS}
    assert watched.breaker.trials(watched.now) == places


def test_f07_a_good_trial_closes_it(half_open: Watched) -> None:
    half_open.succeed()

    assert half_open.facts == ("closed", 1030.0, None, 0, "a trial succeeded", 1)
    assert half_open.changes == [("half_open", "closed")]


def test_f08_a_bad_trial_opens_it_for_a_whole_rest(half_open: Watched) -> None:
    half_open.fail()

    assert half_open.facts == ("open", 1030.0, 1060.0, 4, "timeout", 2)
    assert half_open.changes == [("half_open", "open")]


def test_f09_a_neutral_trial_leaves_it_half_open_and_frees_the_place(half_open: Watched) -> None:
    before = half_open.facts

    half_open.acquire().release(half_open.now)

    assert (half_open.facts, half_open.changes) == (before, [])
    assert half_open.acquire().trial


def test_f10_the_place_of_a_lost_trial_is_free_after_its_lease(half_open: Watched) -> None:
    half_open.acquire()
    half_open.wait(LEASE_SECONDS - 0.5)
    assert half_open.refused_for() == 0.5

    half_open.wait(0.5)

    assert half_open.acquire().trial


def test_a_lost_trial_that_answers_after_all_still_votes(half_open: Watched) -> None:
    late = half_open.acquire()
    half_open.wait(LEASE_SECONDS)
    half_open.acquire()

    late.succeed(half_open.now)

    assert half_open.breaker.state is State.CLOSED


def test_a_lost_trial_does_not_free_the_place_of_another(half_open: Watched) -> None:
    late = half_open.acquire()
    half_open.wait(LEASE_SECONDS)
    half_open.acquire()

    late.release(half_open.now)

    assert half_open.refused_for() == BUSY_SECONDS


def test_f12_an_isolated_breaker_refuses_until_the_order_expires(closed: Watched) -> None:
    closed.breaker.isolate(closed.now, 1060.0, "maintenance")
    assert closed.facts == ("isolated", 1000.0, 1060.0, 0, "maintenance", 0)
    assert closed.refused_for() == 60.0

    closed.wait(60)

    assert closed.acquire().trial
    assert closed.changes == [("closed", "isolated"), ("isolated", "half_open")]
    assert closed.breaker.reason == "the isolation has expired"


def test_an_order_without_an_end_lasts_until_the_reset(closed: Watched) -> None:
    closed.breaker.isolate(closed.now, math.inf, "maintenance")
    closed.wait(1e9)
    assert closed.refused_for() == math.inf

    closed.breaker.reset(closed.now, "maintenance is over")

    assert closed.facts == ("closed", closed.now, None, 0, "maintenance is over", 0)
    assert not closed.acquire().trial


def test_isolating_again_changes_the_order_and_is_no_transition(closed: Watched) -> None:
    closed.breaker.isolate(closed.now, 1060.0, "maintenance")
    closed.wait(10)

    closed.breaker.isolate(closed.now, 2000.0, "takes longer")

    assert closed.facts == ("isolated", 1000.0, 2000.0, 0, "takes longer", 0)
    assert closed.changes == [("closed", "isolated")]


@pytest.mark.parametrize("way", ["succeed", "fail"])
def test_a_trial_that_is_out_does_not_vote_against_an_operator(half_open: Watched, way: str) -> None:
    trial = half_open.acquire()
    half_open.breaker.isolate(half_open.now, 9000.0, "maintenance")

    settle(trial, way, half_open.now)

    assert half_open.breaker.state is State.ISOLATED


@pytest.mark.parametrize("state", ["closed", "half_open", "isolated"])
def test_only_a_rest_can_be_ended_early(half_open: Watched, state: str) -> None:
    match state:
        case "closed":
            half_open.breaker.reset(half_open.now, "well")
        case "isolated":
            half_open.breaker.isolate(half_open.now, 9000.0, "maintenance")
    before = half_open.facts

    half_open.breaker.advance(half_open.now)

    assert half_open.facts == before
    assert before[0] == state


def test_a_rest_ended_early_admits_a_trial(opened: Watched) -> None:
    opened.wait(5)

    opened.breaker.advance(opened.now)

    assert opened.acquire().trial
    assert opened.changes == [("open", "half_open")]


@pytest.mark.parametrize("state", ["closed", "open", "half_open", "isolated"])
def test_a_reset_closes_it_from_any_state_and_forgets_everything(state: str) -> None:
    watched = Watched()
    watched.fail(2)
    if state != "closed":
        watched.fail()
    if state == "half_open":
        watched.breaker.advance(watched.now)
    if state == "isolated":
        watched.breaker.isolate(watched.now, 9000.0, "maintenance")
    assert watched.breaker.state.value == state
    watched.changes.clear()

    watched.breaker.reset(watched.now, "well")

    assert watched.breaker.pristine
    assert watched.changes == ([] if state == "closed" else [(state, "closed")])


def test_f19_rests_grow_with_each_relapse_up_to_the_cap(closed: Watched) -> None:
    closed.fail(3)
    rests = []
    for _ in range(7):
        rests.append(closed.refused_for())
        closed.wait(rests[-1])
        closed.fail()

    assert rests == [30, 30, 60, 120, 240, 300, 300]


def test_a_cap_below_the_first_rest_does_not_shorten_it() -> None:
    watched = Watched(recovery_timeout=60, max_recovery_timeout=10)

    watched.fail(3)

    assert watched.refused_for() == 60


@pytest.mark.parametrize(
    ("calm", "level"),
    [(CALM_SECONDS - 1, 2), (CALM_SECONDS, 1)],
    ids=["flapping escalates", "a calm one starts anew"],
)
def test_it_forgets_its_relapses_only_after_it_was_closed_for_long(
    half_open: Watched, calm: float, level: int
) -> None:
    half_open.succeed()
    half_open.wait(calm)

    half_open.fail(3)

    assert half_open.breaker.level == level


def test_once_calm_it_is_as_good_as_new(half_open: Watched) -> None:
    half_open.succeed()
    half_open.wait(CALM_SECONDS)

    half_open.succeed()

    assert half_open.breaker.pristine


def test_a_failure_that_says_enough_opens_it_at_once_for_its_own_rest(closed: Watched) -> None:
    closed.fail(opens=True, rest_seconds=600.0)

    assert closed.facts == ("open", 1000.0, 1600.0, 1, "timeout", 1)


def test_a_rest_of_its_own_holds_for_a_relapse_too(half_open: Watched) -> None:
    half_open.fail(opens=True, rest_seconds=120.0)

    assert half_open.refused_for() == 120.0


def test_an_early_trial_is_one_at_a_time_and_only_while_open(opened: Watched) -> None:
    first = opened.breaker.acquire_early(opened.now)
    second = opened.breaker.acquire_early(opened.now)
    assert first is not None
    first.release(opened.now)
    third = opened.breaker.acquire_early(opened.now)

    assert first.trial
    assert second is None
    assert third is not None


def test_a_closed_breaker_has_no_early_trials(closed: Watched) -> None:
    assert closed.breaker.acquire_early(closed.now) is None


def test_a_half_open_breaker_has_no_early_trials(half_open: Watched) -> None:
    assert half_open.breaker.acquire_early(half_open.now) is None


def test_a_lost_early_trial_does_not_keep_others_from_trying(opened: Watched) -> None:
    opened.breaker.isolate(opened.now, 1001.0, "for a moment")
    opened.wait(1)
    opened.fail(rest_seconds=500.0)
    opened.breaker.acquire_early(opened.now)

    opened.wait(LEASE_SECONDS)

    assert opened.breaker.acquire_early(opened.now) is not None


def test_a_good_early_trial_ends_the_rest(opened: Watched) -> None:
    trial = opened.breaker.acquire_early(opened.now)
    assert trial is not None

    trial.succeed(opened.now)

    assert opened.breaker.state is State.CLOSED
    assert opened.changes == [("open", "closed")]


def test_a_bad_early_trial_does_not_make_the_rest_longer(opened: Watched) -> None:
    opened.wait(10)
    trial = opened.breaker.acquire_early(opened.now)
    assert trial is not None

    trial.fail(opened.now, "reset", opens=True, rest_seconds=900.0)

    assert opened.facts == ("open", 1000.0, 1030.0, 4, "timeout", 1)
    assert opened.changes == []
    assert opened.breaker.acquire_early(opened.now) is not None


def test_an_early_trial_that_outlives_the_rest_does_not_vote(opened: Watched) -> None:
    early = opened.breaker.acquire_early(opened.now)
    assert early is not None
    opened.wait(30)
    trial = opened.acquire()

    early.fail(opened.now, "reset")

    assert opened.breaker.state is State.HALF_OPEN
    assert (early.counts, trial.counts) == (False, True)


def settle(permit: Permit, way: str, now: float) -> None:
    match way:
        case "succeed":
            permit.succeed(now)
        case "fail":
            permit.fail(now, "reset")
        case _:
            permit.release(now)


WAYS = ["succeed", "fail", "release"]


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_a_permit_settles_once(first: str, second: str) -> None:
    watched = Watched(failure_threshold=2, half_open_permits=2)
    permit = watched.acquire()
    settle(permit, first, watched.now)
    before = watched.facts

    settle(permit, second, watched.now)

    assert watched.facts == before
    assert (permit.counts, repr(permit)) == (False, "<Permit of era 0, settled>")


@pytest.mark.parametrize("way", WAYS)
def test_a_permit_from_before_the_outage_does_not_vote_in_it(closed: Watched, way: str) -> None:
    old = closed.acquire()
    closed.fail(3)
    before = closed.facts

    settle(old, way, closed.now)

    assert closed.facts == before


@pytest.mark.parametrize("way", WAYS)
def test_a_permit_from_before_the_outage_is_no_trial(closed: Watched, way: str) -> None:
    old = closed.acquire()
    closed.fail(3)
    closed.wait(30)
    trial = closed.acquire()

    settle(old, way, closed.now)

    assert closed.breaker.state is State.HALF_OPEN
    assert closed.breaker.trials(closed.now) == 1
    assert repr(trial) == "<Permit of era 2, trial, out>"


def test_fifty_calls_that_time_out_late_do_not_open_a_recovered_breaker(closed: Watched) -> None:
    late = [closed.acquire() for _ in range(50)]
    closed.fail(3)
    closed.wait(30)
    closed.succeed()
    closed.wait(30)

    for permit in late:
        permit.fail(closed.now, "timeout")

    assert (closed.breaker.state, closed.breaker.failures) == (State.CLOSED, 0)


def test_of_several_trials_the_first_verdict_counts() -> None:
    watched = Watched(half_open_permits=2)
    watched.fail(3)
    watched.wait(30)
    first, second = watched.acquire(), watched.acquire()

    first.succeed(watched.now)
    second.fail(watched.now, "reset")

    assert (watched.breaker.state, watched.breaker.failures) == (State.CLOSED, 0)


def test_a_breaker_that_begins_in_a_later_era_ignores_older_permits() -> None:
    breaker = Breaker(BreakerConfig(failure_threshold=1), lambda *change: None, era=7)

    Permit(breaker, 6, trial=False).fail(1000.0, "reset")

    assert (breaker.state, breaker.era) == (State.CLOSED, 7)


# Adoption: being in a state that another replica has told.


def told(state: State = State.OPEN, **fields: Any) -> Snapshot:
    """What another replica might tell: opened in era 1, ten seconds ago, to rest for twenty more."""
    opened = Snapshot(state, 0, 1, 20.0, 10.0, 1, "overloaded (503)", "the other")
    return replace(opened, **fields)


def moved_to(state: str) -> Watched:
    """Return a breaker that was brought to *state* by calls or an operator."""
    watched = Watched()
    if state == "isolated":
        watched.breaker.isolate(watched.now, watched.now + 60, "maintenance")
    if state in ("open", "half_open"):
        watched.fail(3)
    if state == "half_open":
        watched.breaker.advance(watched.now)
    watched.changes.clear()
    return watched


@pytest.mark.parametrize("after", State)
@pytest.mark.parametrize("before", State)
def test_what_another_replica_tells_may_lead_from_any_state_to_any_and_is_told_if_it_is_another(
    before: State, after: State
) -> None:
    watched = moved_to(before)
    era = watched.breaker.era

    watched.breaker.adopt(told(after, era=era + 1), watched.now)

    assert watched.breaker.state is after
    assert watched.breaker.era == era + 1
    assert watched.changes == ([] if before is after else [(before.value, after.value)])


def test_a_rest_that_was_adopted_ends_as_one_of_ones_own(closed: Watched) -> None:
    closed.breaker.adopt(told(), closed.now)

    assert closed.refused_for() == 20
    closed.wait(20)
    assert closed.acquire().trial
    assert closed.facts[:2] == ("half_open", 1020)


def test_a_breaker_that_adopts_a_snapshot_would_tell_the_same_to_a_third(closed: Watched) -> None:
    closed.breaker.adopt(told(), closed.now)

    assert closed.breaker.snapshot(closed.now) == told()
    assert closed.breaker.snapshot(closed.now + 25) == told(rest_seconds=0.0, since_seconds=35.0)


def test_a_breaker_that_never_moved_has_nothing_to_tell(closed: Watched) -> None:
    assert closed.breaker.snapshot(closed.now) == Snapshot(State.CLOSED, 0, 0, 0.0, 0.0, 0, "")


def test_a_transition_of_ones_own_is_nobody_elses(closed: Watched) -> None:
    closed.breaker.adopt(told(), closed.now)
    assert closed.breaker.moved_by == "the other"

    closed.breaker.advance(closed.now)

    assert closed.breaker.moved_by is None


def test_an_order_given_here_is_nobody_elses_though_it_moves_nothing(closed: Watched) -> None:
    closed.breaker.adopt(told(State.ISOLATED, orders=1), closed.now)
    closed.breaker.isolate(closed.now, closed.now + 60, "longer")
    assert (closed.breaker.moved_by, closed.breaker.orders) == (None, 2)

    closed.breaker.adopt(told(State.CLOSED, orders=3, era=3), closed.now)
    closed.breaker.reset(closed.now, "well already")
    assert (closed.breaker.moved_by, closed.breaker.orders) == (None, 4)


def test_a_longer_rest_told_by_another_is_no_transition_and_leaves_permits_valid(opened: Watched) -> None:
    early = opened.breaker.acquire_early(opened.now)
    assert early is not None

    opened.breaker.adopt(told(rest_seconds=40.0), opened.now)

    assert (opened.refused_for(), opened.changes) == (40, [])
    early.succeed(opened.now)
    assert opened.breaker.state is State.CLOSED


@pytest.mark.parametrize("way", ["succeed", "fail"])
def test_a_permit_from_before_an_adoption_does_not_vote(closed: Watched, way: str) -> None:
    closed.fail(2)
    permit = closed.acquire()
    closed.breaker.adopt(told(State.CLOSED, era=3, rest_seconds=0.0), closed.now)
    closed.fail(2)

    permit.succeed(closed.now) if way == "succeed" else permit.fail(closed.now, "reset")

    assert (closed.breaker.state, closed.breaker.failures) == (State.CLOSED, 2)


def test_a_trial_that_another_replica_overtook_does_not_vote_and_frees_its_place(half_open: Watched) -> None:
    trial = half_open.acquire()

    half_open.breaker.adopt(told(State.HALF_OPEN, era=half_open.breaker.era + 2), half_open.now)

    assert half_open.breaker.trials(half_open.now) == 0
    trial.fail(half_open.now, "timeout")
    assert half_open.breaker.state is State.HALF_OPEN


def test_an_era_never_comes_again_whatever_another_tells(closed: Watched) -> None:
    permit = closed.acquire()
    closed.breaker.isolate(closed.now, math.inf, "maintenance")
    closed.breaker.adopt(told(State.ISOLATED, orders=2, era=0), closed.now)
    closed.breaker.adopt(told(State.CLOSED, orders=3, era=0), closed.now)

    permit.fail(closed.now, "timeout", opens=True)

    assert (closed.breaker.state, closed.breaker.era) == (State.CLOSED, 2)


def test_closing_elsewhere_ends_the_run_of_failures_here(opened: Watched) -> None:
    opened.breaker.adopt(told(State.CLOSED, era=3), opened.now)

    assert opened.breaker.failures == 0
    opened.fail(2)
    assert opened.breaker.state is State.CLOSED


def test_an_outage_that_others_met_adds_no_failures_here(closed: Watched) -> None:
    closed.fail(2)

    closed.breaker.adopt(told(), closed.now)

    assert (closed.breaker.state, closed.breaker.failures) == (State.OPEN, 2)


def test_the_next_rest_goes_on_from_the_relapses_of_others(closed: Watched) -> None:
    closed.breaker.adopt(told(level=3), closed.now)
    closed.wait(20)

    closed.fail()

    assert closed.refused_for() == 120


def test_each_order_of_an_operator_is_one_above_those_that_are_known(closed: Watched) -> None:
    closed.breaker.isolate(closed.now, closed.now + 60, "maintenance")
    closed.breaker.isolate(closed.now, closed.now + 90, "it takes longer")
    closed.breaker.adopt(told(State.ISOLATED, orders=7), closed.now)
    assert closed.breaker.orders == 7

    closed.breaker.reset(closed.now, "well")

    assert closed.breaker.orders == 8


def test_only_operators_give_orders(opened: Watched) -> None:
    opened.wait(30)
    opened.acquire().succeed(opened.now)
    opened.fail(3)

    opened.breaker.retire(opened.now, "nobody calls it")

    assert (opened.breaker.state, opened.breaker.orders) == (State.CLOSED, 0)


# Trials that replicas share.


def test_a_rest_that_is_over_goes_on_until_the_lease_is_in_hand() -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)
    watched.changes.clear()
    leases.in_hand = False

    assert watched.refused_for() == BUSY_SECONDS
    assert (watched.breaker.state, watched.changes) == (State.OPEN, [])

    leases.in_hand = True
    assert watched.acquire().trial
    assert watched.changes == [("open", "half_open")]
    assert leases.until == watched.now + LEASE_SECONDS


def test_an_isolation_that_is_over_needs_a_lease_as_well() -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.breaker.isolate(watched.now, watched.now + 60, "maintenance")
    watched.wait(60)
    leases.in_hand = False

    assert watched.refused_for() == BUSY_SECONDS
    assert watched.breaker.state is State.ISOLATED


@pytest.mark.parametrize("way", ["succeed", "fail", "release"])
def test_a_trial_gives_its_lease_back_however_it_is_settled(way: str) -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)
    trial = watched.acquire()
    assert not leases.in_hand

    settle = {
        "succeed": lambda: trial.succeed(watched.now),
        "fail": lambda: trial.fail(watched.now, "timeout"),
        "release": lambda: trial.release(watched.now),
    }
    settle[way]()

    assert (leases.in_hand, leases.given_back) == (True, 1)


@pytest.mark.parametrize("way", ["isolate", "reset", "adopt"])
def test_a_trial_that_does_not_count_any_more_gives_its_lease_back_at_once(way: str) -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)
    trial = watched.acquire()

    end = {
        "isolate": lambda: watched.breaker.isolate(watched.now, math.inf, "maintenance"),
        "reset": lambda: watched.breaker.reset(watched.now, "well"),
        "adopt": lambda: watched.breaker.adopt(told(State.CLOSED, era=9), watched.now),
    }
    end[way]()
    trial.release(watched.now)

    assert leases.given_back == 1


def test_the_lease_of_a_lost_trial_is_given_back_when_its_place_is_wanted() -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)
    watched.acquire()
    watched.wait(LEASE_SECONDS)

    assert watched.acquire().trial
    assert leases.given_back == 1


def test_trials_here_are_counted_whatever_leases_there_are() -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)
    watched.acquire()
    leases.in_hand = True

    assert watched.refused_for() == BUSY_SECONDS


def test_a_closed_breaker_needs_no_lease() -> None:
    leases = OneLease()
    leases.in_hand = False
    watched = Watched(leases=leases)

    assert not watched.acquire().trial
    assert watched.breaker.rest(watched.now) == 0


def test_who_opens_or_refuses_foresees_the_end_of_the_rest() -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.fail(3)
    assert leases.foreseen == [1030]

    watched.breaker.adopt(told(rest_seconds=50.0), watched.now)
    watched.refused_for()

    assert leases.foreseen == [1030, 1050]


def test_the_rest_lasts_as_long_as_the_trial_is_known_to_be_elsewhere() -> None:
    leases = OneLease()
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)
    assert watched.breaker.rest(watched.now) == 0

    leases.elsewhere_seconds = 0.4
    assert watched.breaker.rest(watched.now) == 0.4
    leases.elsewhere_seconds = 6.0
    assert watched.breaker.rest(watched.now) == BUSY_SECONDS


def test_an_early_trial_needs_no_lease() -> None:
    leases = OneLease()
    leases.in_hand = False
    leases.elsewhere_seconds = 6.0
    watched = Watched(leases=leases)
    watched.fail(3)

    early = watched.breaker.acquire_early(watched.now)

    assert early is not None
    early.succeed(watched.now)
    assert (watched.breaker.state, leases.given_back) == (State.CLOSED, 0)


def test_where_everything_rests_a_call_tries_early_though_another_replica_holds_the_lease() -> None:
    """F14: the other may have no call for it, this one has nobody left to ask; failing decides nothing."""
    leases = OneLease()
    leases.elsewhere_seconds = 6.0
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)

    trial = watched.breaker.acquire_early(watched.now)

    assert trial is not None
    assert watched.breaker.acquire_early(watched.now) is None
    trial.fail(watched.now, "timeout")
    after_a_failure = watched.breaker.state
    second = watched.breaker.acquire_early(watched.now)
    assert second is not None
    second.succeed(watched.now)
    assert (after_a_failure, watched.breaker.state) == (State.OPEN, State.CLOSED)


def test_where_everything_rests_and_nobody_is_known_to_try_a_call_tries_without_a_lease() -> None:
    leases = OneLease()
    leases.in_hand = False
    watched = Watched(leases=leases)
    watched.fail(3)
    watched.wait(30)

    trial = watched.breaker.acquire_early(watched.now)

    assert trial is not None
    assert watched.breaker.state is State.HALF_OPEN
    assert watched.refused_for() == BUSY_SECONDS
    trial.fail(watched.now, "timeout")
    assert watched.refused_for() == 30


def mermaid() -> str:
    """Draw `TRANSITIONS` as the document shows it."""
    edges = [
        f"    {before.value} --> {after.value}: {signal.value}"
        for before, row in TRANSITIONS.items()
        for signal, after in row.items()
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {State.CLOSED.value}", *edges, "```"])


def test_the_document_draws_the_machine() -> None:
    assert mermaid() in DOCUMENT


def test_the_document_tells_each_transition_in_its_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|", DOCUMENT, re.MULTILINE)

    assert rows == [
        (before.value, signal.value, after.value)
        for before, row in TRANSITIONS.items()
        for signal, after in row.items()
    ]


def test_the_document_tells_what_becomes_of_everything_that_another_replica_tells() -> None:
    _, told, rest = DOCUMENT.partition("| what another replica tells |")
    names = re.findall(r"^\| `(\w+)` \|", rest.partition("\n\n")[0], re.MULTILINE)

    assert told
    assert names == [field.name for field in fields(Snapshot)]


def test_the_document_tells_each_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", DOCUMENT, re.MULTILINE)
    defaults = {
        name: field.default if isinstance(field.default, str) else f"{field.default:g}"
        for name, field in BreakerConfig.model_fields.items()
    }

    assert dict(row for row in rows if row[0] in defaults) == defaults


def test_every_signal_moves_something() -> None:
    assert {signal for row in TRANSITIONS.values() for signal in row} == set(Signal)
    assert set(TRANSITIONS) == set(State)
