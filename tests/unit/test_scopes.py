"""Whose breaker hears of a failure: the provider's, or that of one model there."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sentinel_proxy.config import BreakerConfig
from sentinel_proxy.errors import CONSEQUENCES, BreakerOpen, FailureKind, Scope, UpstreamError, Vote
from sentinel_proxy.events import BreakerChanged
from sentinel_proxy.resilience.breaker import BUSY_SECONDS, CALM_SECONDS, Leases, Snapshot, State
from sentinel_proxy.resilience.scopes import ABANDONED_SECONDS, MAX_MODELS, ProviderBreakers, ScopedPermit

A, B = "gpt-4o", "gpt-4o-mini"

OF_PROVIDER = FailureKind.RESET
OF_MODEL = FailureKind.OVERLOADED
NEUTRAL = FailureKind.THROTTLED
LEASE_SECONDS = 35.0


class Watched:
    """The breakers of one provider under a clock of its own, and the events they emitted."""

    def __init__(self, *, leases: Callable[[str | None], Leases] | None = None, **settings: Any) -> None:
        self.now = 1000.0
        self.events: list[BreakerChanged] = []
        self.breakers = ProviderBreakers(
            "openai",
            BreakerConfig(**settings),
            self.events.append,
            lease_seconds=LEASE_SECONDS,
            leases=leases,
        )

    def acquire(self, model: str = A) -> ScopedPermit:
        return self.breakers.acquire(model, self.now)

    def fail(self, *kinds: FailureKind, model: str = A) -> None:
        for kind in kinds:
            self.acquire(model).fail(failure(kind), self.now)

    def succeed(self, model: str = A) -> None:
        self.acquire(model).succeed(self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def refuses(self, model: str) -> bool:
        try:
            self.acquire(model).release(self.now)
        except BreakerOpen:
            return True
        return False

    @property
    def own(self) -> tuple[str, int]:
        return (self.breakers.own.state.value, self.breakers.own.failures)

    @property
    def models(self) -> dict[str, tuple[str, int]]:
        view = self.breakers.models_view()
        return {name: (breaker.state.value, breaker.failures) for name, breaker in view.items()}

    @property
    def story(self) -> list[tuple[str | None, str, str]]:
        return [(event.model, event.before, event.after) for event in self.events]


def failure(kind: FailureKind, status: int | None = None) -> UpstreamError:
    return UpstreamError(kind, "it failed", status=status)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.mark.parametrize("kind", FailureKind, ids=lambda kind: kind.value)
def test_the_table_of_consequences_decides_whose_breaker_hears_a_failure(
    watched: Watched, kind: FailureKind
) -> None:
    consequence = CONSEQUENCES[kind]
    heard = consequence.vote is Vote.FAILURE
    by_provider = heard and consequence.scope is Scope.PROVIDER
    by_model = heard and not consequence.opens

    watched.fail(kind)

    assert watched.own == ("open" if consequence.opens else "closed", int(by_provider))
    assert watched.models == ({A: ("closed", 1)} if by_model else {})


def test_f18_a_broken_model_does_not_take_the_provider_away(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=A)

    assert watched.refuses(A)
    assert not watched.refuses(B)
    assert watched.story == [(A, "closed", "open")]


def test_a_dead_provider_is_found_out_whatever_models_are_called(watched: Watched) -> None:
    for model in ("one", "two", "three"):
        watched.fail(OF_PROVIDER, model=model)

    assert watched.refuses("four")
    assert watched.story == [(None, "closed", "open")]


def test_one_outage_of_the_provider_is_one_event(watched: Watched) -> None:
    watched.fail(OF_PROVIDER, OF_PROVIDER, OF_PROVIDER)
    watched.wait(30)
    watched.fail(OF_PROVIDER)
    watched.wait(30)
    watched.succeed()

    assert {event.model for event in watched.events} == {None}
    assert [event.after for event in watched.events] == ["open", "half_open", "open", "half_open", "closed"]
    assert watched.models == {}


def test_failures_of_both_kinds_in_turn_are_one_run(watched: Watched) -> None:
    watched.fail(OF_PROVIDER, OF_MODEL, OF_PROVIDER)

    assert watched.own == ("closed", 1)
    assert watched.models == {A: ("open", 3)}


def test_a_success_ends_the_runs_of_both(watched: Watched) -> None:
    watched.fail(OF_PROVIDER, OF_PROVIDER)

    watched.succeed()

    assert (watched.own, watched.models) == (("closed", 0), {})


def test_a_success_of_one_model_says_nothing_of_another(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, model=A)

    watched.succeed(model=B)

    assert watched.models == {A: ("closed", 2)}


def test_f11_ten_429s_open_nothing(watched: Watched) -> None:
    watched.fail(*[NEUTRAL] * 10)

    assert (watched.own, watched.models) == (("closed", 0), {})


def test_neutral_outcomes_leave_runs_as_they_are(watched: Watched) -> None:
    watched.fail(OF_PROVIDER, OF_PROVIDER)
    before = watched.own, watched.models

    watched.fail(NEUTRAL)
    watched.acquire().release(watched.now)

    assert (watched.own, watched.models) == before


@pytest.mark.parametrize(
    ("kind", "rests"),
    [
        pytest.param(FailureKind.CREDENTIAL, [60, 120, 240, 480, 900, 900], id="credential"),
        pytest.param(FailureKind.QUOTA, [600, 600, 600], id="quota"),
        pytest.param(FailureKind.CERTIFICATE, [30, 30, 60, 120, 240, 300], id="certificate"),
    ],
)
def test_what_heals_slowly_rests_longer(watched: Watched, kind: FailureKind, rests: list[float]) -> None:
    for rest in rests:
        watched.fail(kind)
        assert watched.events[-1].rest_seconds == rest
        watched.wait(rest)


def test_after_a_calm_time_a_refused_key_rests_as_at_first(watched: Watched) -> None:
    watched.fail(FailureKind.CREDENTIAL)
    watched.wait(60)
    watched.succeed()
    watched.wait(CALM_SECONDS)

    watched.fail(FailureKind.CREDENTIAL)

    assert watched.events[-1].rest_seconds == 60


def test_events_tell_who_why_and_for_how_long(watched: Watched) -> None:
    for _ in range(3):
        watched.acquire().fail(failure(OF_MODEL, status=503), watched.now)
    watched.breakers.isolate(watched.now, 5000.0, "maintenance")

    assert watched.events == [
        BreakerChanged("openai", A, "closed", "open", "overloaded (503)", 30.0),
        BreakerChanged("openai", None, "closed", "isolated", "maintenance", 0.0),
    ]


@pytest.fixture
def provider_half_open() -> Watched:
    watched = Watched()
    watched.fail(FailureKind.CERTIFICATE)
    watched.wait(30)
    return watched


def test_a_models_failure_does_not_decide_a_trial_of_the_provider(provider_half_open: Watched) -> None:
    """The connection works, which is no more than a probe knows: neither proof nor relapse."""
    trial = provider_half_open.acquire()
    assert trial.trial

    trial.fail(failure(OF_MODEL), provider_half_open.now)

    assert provider_half_open.own == ("half_open", 1)
    assert provider_half_open.models == {A: ("closed", 1)}
    assert not provider_half_open.refuses(B)


def test_a_models_failure_does_not_decide_an_early_trial_of_the_provider() -> None:
    watched = Watched()
    watched.fail(FailureKind.CERTIFICATE)
    trial = watched.breakers.acquire_early(A, watched.now)
    assert trial is not None

    trial.fail(failure(OF_MODEL), watched.now)

    assert watched.own == ("open", 1)
    assert watched.breakers.rest(A, watched.now) == 30
    assert watched.breakers.acquire_early(A, watched.now) is not None


@pytest.mark.parametrize("way", ["neutral", "release"])
def test_f09_a_neutral_trial_frees_both_places(way: str) -> None:
    watched = Watched()
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.fail(FailureKind.CERTIFICATE, model=B)
    watched.wait(30)
    trial = watched.acquire(A)
    assert watched.refuses(A)

    if way == "neutral":
        trial.fail(failure(NEUTRAL), watched.now)
    else:
        trial.release(watched.now)

    assert (watched.own[0], watched.models[A][0]) == ("half_open", "half_open")
    assert not watched.refuses(A)


def test_one_good_trial_closes_both() -> None:
    watched = Watched()
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.fail(FailureKind.CERTIFICATE, model=B)
    watched.wait(30)

    watched.succeed(A)

    assert watched.own == ("closed", 0)
    assert watched.models == {A: ("closed", 0)}  # kept for its relapses until it is calm


def test_a_trial_of_a_model_that_fails_with_the_provider_leaves_the_model_alone() -> None:
    watched = Watched()
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.wait(30)

    watched.fail(FailureKind.CREDENTIAL)

    assert watched.own[0] == "open"
    assert watched.models == {A: ("half_open", 3)}
    assert watched.breakers.models_view()[A].trials(watched.now) == 0


def test_a_relapse_of_a_model_is_its_own(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.wait(30)

    watched.fail(OF_MODEL)

    assert watched.models == {A: ("open", 4)}
    assert not watched.refuses(B)


def test_who_is_refused_by_the_model_gives_the_providers_place_back(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=A)
    watched.fail(FailureKind.CERTIFICATE, model=B)
    watched.breakers.own.advance(watched.now)

    with pytest.raises(BreakerOpen) as refusal:
        watched.acquire(A)

    assert refusal.value.retry_after == 30
    assert watched.breakers.own.trials(watched.now) == 0


def test_the_rest_is_that_of_the_breaker_that_rests_longer(watched: Watched) -> None:
    assert watched.breakers.rest(A, watched.now) == 0
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.wait(10)
    watched.fail(FailureKind.CERTIFICATE, model=B)

    assert watched.breakers.rest(A, watched.now) == 30
    assert watched.breakers.rest(B, watched.now) == 30
    watched.breakers.own.reset(watched.now, "well")
    assert watched.breakers.rest(A, watched.now) == 20
    assert watched.breakers.rest(B, watched.now) == 0


def test_an_early_trial_passes_both_breakers(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.fail(FailureKind.CERTIFICATE, model=B)

    trial = watched.breakers.acquire_early(A, watched.now)
    assert trial is not None
    assert repr(trial) == "<ScopedPermit for a trial, out>"
    assert watched.breakers.acquire_early(A, watched.now) is None
    assert watched.breakers.acquire_early(B, watched.now) is None
    trial.succeed(watched.now)

    assert (watched.own[0], watched.models[A][0]) == ("closed", "closed")


def test_a_failed_early_trial_of_a_model_changes_nothing_and_frees_its_place(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    trial = watched.breakers.acquire_early(A, watched.now)
    assert trial is not None

    trial.fail(failure(OF_MODEL), watched.now)

    assert watched.breakers.rest(A, watched.now) == 30
    assert watched.breakers.acquire_early(A, watched.now) is not None


def test_an_early_trial_that_the_model_refuses_gives_the_providers_place_back(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.breakers.acquire_early(A, watched.now)
    watched.fail(FailureKind.CERTIFICATE, model=B)

    assert watched.breakers.acquire_early(A, watched.now) is None
    assert watched.breakers.acquire_early(B, watched.now) is not None


def test_where_nothing_rests_an_early_permit_is_a_usual_one(watched: Watched) -> None:
    watched.fail(OF_MODEL)

    permit = watched.breakers.acquire_early(A, watched.now)

    assert permit is not None
    assert not permit.trial


def test_f12_an_isolated_provider_admits_nobody_not_even_early(watched: Watched) -> None:
    watched.breakers.isolate(watched.now, math.inf, "maintenance")

    assert watched.refuses(A)
    assert watched.breakers.acquire_early(A, watched.now) is None
    assert watched.breakers.rest(A, watched.now) == math.inf


@pytest.mark.parametrize("kind", [OF_PROVIDER, OF_MODEL], ids=["provider's", "model's"])
def test_calls_from_before_an_outage_do_not_vote_after_it(watched: Watched, kind: FailureKind) -> None:
    """Fifty that time out late must not open the model of a provider that has recovered."""
    late = [watched.acquire() for _ in range(50)]
    watched.fail(FailureKind.CERTIFICATE)
    watched.wait(30)
    watched.succeed()

    for permit in late:
        permit.fail(failure(kind), watched.now)

    assert (watched.own, watched.models) == (("closed", 0), {})


def test_a_late_success_from_before_an_outage_does_not_end_the_run_of_a_model(watched: Watched) -> None:
    late = watched.acquire()
    watched.breakers.isolate(watched.now, watched.now, "for a moment")
    watched.succeed()
    watched.fail(OF_MODEL, OF_MODEL)

    late.succeed(watched.now)

    assert watched.models == {A: ("closed", 2)}


def test_calls_from_before_a_models_outage_do_not_vote_after_it_was_forgotten(watched: Watched) -> None:
    late = [watched.acquire() for _ in range(6)]
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.wait(30)
    watched.succeed()
    watched.wait(CALM_SECONDS)
    watched.succeed()
    assert watched.models == {}

    for permit in late[:3]:
        permit.fail(failure(OF_MODEL), watched.now)
    assert watched.models == {}
    watched.fail(OF_MODEL)
    for permit in late[3:]:
        permit.fail(failure(OF_MODEL), watched.now)

    assert watched.models == {A: ("closed", 1)}


def test_calls_of_one_run_count_although_the_breaker_was_forgotten_in_between(watched: Watched) -> None:
    watched.fail(OF_MODEL)
    early, later = watched.acquire(), watched.acquire()

    watched.succeed()
    assert watched.models == {}
    early.fail(failure(OF_MODEL), watched.now)
    later.fail(failure(OF_MODEL), watched.now)

    assert watched.models == {A: ("closed", 2)}


def test_a_success_that_began_before_the_first_failure_ends_the_run(watched: Watched) -> None:
    permit = watched.acquire()
    watched.fail(OF_MODEL, OF_MODEL)

    permit.succeed(watched.now)

    assert watched.models == {}


@pytest.mark.parametrize("second", ["succeed", "fail", "release"])
@pytest.mark.parametrize("first", ["succeed", "fail", "release"])
def test_a_permit_settles_once(watched: Watched, first: str, second: str) -> None:
    watched.fail(OF_MODEL)
    permit = watched.acquire()
    settle(permit, first, watched.now)
    before = watched.own, watched.models

    settle(permit, second, watched.now)

    assert (watched.own, watched.models) == before
    assert repr(permit) == "<ScopedPermit, settled>"


def settle(permit: ScopedPermit, way: str, now: float) -> None:
    match way:
        case "succeed":
            permit.succeed(now)
        case "fail":
            permit.fail(failure(OF_PROVIDER), now)
        case _:
            permit.release(now)


def test_scope_provider_puts_everything_on_the_provider() -> None:
    watched = Watched(scope="provider")

    watched.fail(OF_MODEL, OF_PROVIDER, OF_MODEL)

    assert (watched.own, watched.models) == (("open", 3), {})
    assert watched.refuses(B)


def test_scope_model_puts_everything_on_the_model() -> None:
    watched = Watched(scope="model")

    watched.fail(OF_PROVIDER, OF_MODEL, OF_PROVIDER, model=A)
    watched.fail(FailureKind.CREDENTIAL, model=B)

    assert (watched.own, watched.models) == (("closed", 0), {A: ("open", 3), B: ("open", 1)})
    assert watched.events[-1].rest_seconds == 60
    assert not watched.refuses("another")


def test_scope_model_can_be_isolated_and_comes_back() -> None:
    watched = Watched(scope="model")
    watched.breakers.isolate(watched.now, watched.now + 60, "maintenance")
    assert watched.refuses(A)
    watched.wait(60)

    watched.fail(OF_PROVIDER)
    watched.succeed()

    assert watched.own == ("closed", 0)


def test_a_reset_closes_everything_and_tells_it_once(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=A)
    watched.fail(OF_MODEL, model=B)
    watched.fail(FailureKind.QUOTA, model=B)
    watched.events.clear()

    watched.breakers.reset(watched.now, "paid")

    assert watched.story == [(None, "open", "closed"), (A, "open", "closed")]
    assert watched.models == {}
    assert not watched.refuses(A)


def test_an_advance_ends_the_rests_of_the_provider_and_its_models(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=A)
    watched.fail(FailureKind.CERTIFICATE, model=B)

    watched.breakers.advance(watched.now)

    assert watched.acquire(A).trial
    assert (watched.own[0], watched.models[A][0]) == ("half_open", "half_open")


def test_the_worst_breaker_is_shown(watched: Watched) -> None:
    breakers = watched.breakers
    assert breakers.worst(watched.now) is breakers.own
    watched.fail(OF_MODEL)
    assert breakers.worst(watched.now) is breakers.own

    watched.fail(OF_MODEL, OF_MODEL)
    assert breakers.worst(watched.now) is breakers.models_view()[A]

    watched.fail(FailureKind.CERTIFICATE, model=B)
    assert breakers.worst(watched.now) is breakers.own


def test_of_several_resting_models_the_one_that_rests_longest_is_shown(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=A)
    watched.wait(10)
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=B)

    assert watched.breakers.worst(watched.now) is watched.breakers.models_view()[B]


@pytest.mark.parametrize("state", ["open", "half_open"])
def test_a_model_that_nobody_calls_any_more_is_forgotten_and_told_closed(
    watched: Watched, state: str
) -> None:
    """Or an operator would look at its outage for ever."""
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.wait(30)
    if state == "half_open":
        watched.acquire().release(watched.now)
    watched.wait(ABANDONED_SECONDS - 1)
    assert watched.breakers.worst(watched.now).state.value == state

    watched.wait(1)

    assert watched.breakers.worst(watched.now).state is State.CLOSED
    assert watched.models == {}
    assert watched.story[-1] == (A, state, "closed")


def test_a_model_with_a_trial_out_is_not_forgotten() -> None:
    events: list[BreakerChanged] = []
    breakers = ProviderBreakers("openai", BreakerConfig(), events.append, lease_seconds=2000.0)
    for _ in range(3):
        breakers.acquire(A, 0.0).fail(failure(OF_MODEL), 0.0)
    breakers.acquire(A, 30.0)

    assert breakers.worst(1030.0).state is State.HALF_OPEN


def test_a_model_that_has_been_calm_is_forgotten_when_somebody_looks(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL)
    watched.wait(30)
    watched.succeed()
    watched.wait(CALM_SECONDS)

    watched.breakers.worst(watched.now)

    assert watched.models == {}


def test_models_in_trouble_are_few_and_the_oldest_closed_one_goes_first(watched: Watched) -> None:
    watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model="resting")
    for number in range(MAX_MODELS):
        watched.fail(OF_MODEL, model=f"invented {number}")

    assert len(watched.models) == MAX_MODELS
    assert "resting" in watched.models
    assert "invented 0" not in watched.models
    assert repr(watched.breakers) == f"<ProviderBreakers openai: closed, {MAX_MODELS} models>"


def test_where_all_models_rest_the_oldest_makes_room_and_is_told_closed(watched: Watched) -> None:
    for number in range(MAX_MODELS):
        watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=f"resting {number}")

    watched.fail(OF_MODEL, model="one more")

    assert len(watched.models) == MAX_MODELS
    assert watched.models["one more"] == ("closed", 1)
    assert watched.story[-1] == ("resting 0", "open", "closed")


def test_room_is_made_first_from_what_does_not_matter_any_more(watched: Watched) -> None:
    for number in range(MAX_MODELS - 1):
        watched.fail(OF_MODEL, OF_MODEL, OF_MODEL, model=f"resting {number}")
    watched.wait(30 + ABANDONED_SECONDS)
    watched.fail(OF_MODEL, model="recent")

    watched.fail(OF_MODEL, model="one more")

    assert watched.models == {"recent": ("closed", 1), "one more": ("closed", 1)}


def test_an_empty_account_of_a_callers_own_speaks_against_nobody() -> None:
    """Where callers bring their own keys, one that has run out must not cost the others their provider."""
    breakers = ProviderBreakers("openai", BreakerConfig(failure_threshold=1), lambda _: None)

    breakers.acquire("gpt", 0.0).fail(
        UpstreamError(FailureKind.QUOTA, "no money left", status=429, personal=True), 0.0
    )

    assert breakers.own.state is State.CLOSED


def test_a_listener_that_looks_while_breakers_move_disturbs_nothing() -> None:
    """Looking makes a provider forget models that nobody uses, also in the middle of a walk over them."""
    heard: list[str] = []

    def look(change: BreakerChanged) -> None:
        heard.append(change.after)
        breakers.worst(ABANDONED_SECONDS * 10)

    breakers = ProviderBreakers("openai", BreakerConfig(failure_threshold=1), look)
    overloaded = UpstreamError(FailureKind.OVERLOADED, "busy", status=503)
    for model in ("a", "b", "c"):
        breakers.acquire(model, 0.0).fail(overloaded, 0.0)

    breakers.advance(1.0)
    breakers.reset(2.0, "by hand")

    assert breakers.models_view() == {}
    assert heard[:1] == ["open"]


# What other replicas tell.


def told(state: State = State.OPEN, **fields: Any) -> Snapshot:
    """What another replica might tell: opened in era 1, just now, to rest for twenty seconds."""
    return replace(Snapshot(state, 0, 1, 20.0, 0.0, 1, "overloaded (503)", "the other"), **fields)


def test_what_another_replica_tells_of_a_model_gives_it_a_breaker_and_says_who_moved_it(
    watched: Watched,
) -> None:
    watched.breakers.adopt(A, told(), watched.now)

    assert watched.refuses(A)
    assert not watched.refuses(B)
    assert watched.events == [
        BreakerChanged("openai", A, "closed", "open", "overloaded (503)", 20.0, "the other")
    ]


def test_what_another_replica_tells_of_the_provider_holds_for_all_models(watched: Watched) -> None:
    watched.breakers.adopt(None, told(State.ISOLATED, rest_seconds=math.inf), watched.now)

    assert watched.refuses(A)
    assert watched.refuses(B)
    assert watched.story == [(None, "closed", "isolated")]


def test_a_model_that_others_closed_is_forgotten_here_too(watched: Watched) -> None:
    watched.breakers.adopt(A, told(), watched.now)

    watched.breakers.adopt(A, told(State.CLOSED, era=3, level=0, rest_seconds=0.0), watched.now)

    assert watched.models == {}
    assert watched.story == [(A, "closed", "open"), (A, "open", "closed")]


def test_a_model_without_a_breaker_begins_after_the_eras_and_orders_that_others_know_of(
    watched: Watched,
) -> None:
    watched.breakers.adopt(A, told(State.CLOSED, era=7, orders=2), watched.now)
    assert (watched.models, watched.events) == ({}, [])

    watched.fail(*[OF_MODEL] * 3)

    snapshot = watched.breakers.snapshot(A, watched.now)
    assert snapshot is not None
    assert (snapshot.era, snapshot.orders) == (8, 2)


def test_calls_from_before_a_models_outage_elsewhere_do_not_vote_after_it(watched: Watched) -> None:
    permit = watched.acquire()
    watched.breakers.adopt(A, told(State.CLOSED, era=3), watched.now)

    permit.fail(failure(OF_MODEL), watched.now)

    assert watched.models == {}


def test_what_others_tell_of_models_takes_no_room_from_those_that_rest(watched: Watched) -> None:
    for number in range(MAX_MODELS):
        watched.breakers.adopt(f"model-{number}", told(), watched.now)

    watched.breakers.adopt("one more", told(), watched.now)

    assert "one more" not in watched.models
    assert watched.models["model-0"] == ("open", 0)


def test_what_others_tell_of_models_takes_the_room_of_those_that_do_not_matter(watched: Watched) -> None:
    for number in range(MAX_MODELS - 1):
        watched.breakers.adopt(f"model-{number}", told(), watched.now)
    watched.fail(OF_MODEL, model="failed once")

    watched.breakers.adopt("one more", told(), watched.now)

    assert "one more" in watched.models
    assert "failed once" not in watched.models


def test_a_model_that_was_adopted_is_forgotten_as_one_of_ones_own(watched: Watched) -> None:
    watched.breakers.adopt(A, told(), watched.now)
    watched.wait(20 + ABANDONED_SECONDS)

    watched.breakers.worst(watched.now)

    assert watched.models == {}
    assert watched.events[-1].moved_by is None


def test_others_hear_of_what_has_ever_moved_and_of_orders(watched: Watched) -> None:
    assert watched.breakers.moved() == []
    watched.fail(*[OF_MODEL] * 3)
    watched.fail(OF_MODEL, model=B)

    assert watched.breakers.moved() == [A]
    watched.breakers.own.reset(watched.now, "well already")
    assert watched.breakers.moved() == [None, A]


def test_how_a_model_ended_is_known_for_a_while(watched: Watched) -> None:
    watched.fail(*[OF_MODEL] * 3)
    watched.breakers.reset(watched.now, "well")

    watched.wait(ABANDONED_SECONDS - 1)
    assert watched.breakers.snapshot(A, watched.now) is not None
    watched.wait(1)
    assert watched.breakers.snapshot(A, watched.now) is None


def test_of_a_model_that_was_forgotten_it_is_known_how_it_ended(watched: Watched) -> None:
    watched.fail(*[OF_MODEL] * 3)
    watched.fail(OF_MODEL, model=B)

    watched.breakers.reset(watched.now, "well")

    assert watched.breakers.snapshot(A, watched.now) == Snapshot(State.CLOSED, 1, 2, 0.0, 0.0, 0, "well")
    assert watched.breakers.snapshot(B, watched.now) is None  # it never moved
    assert watched.breakers.own.orders == 1


def test_a_model_that_is_in_trouble_again_remembers_the_orders_it_had(watched: Watched) -> None:
    watched.fail(*[OF_MODEL] * 3)
    watched.breakers.reset(watched.now, "well")

    watched.fail(*[OF_MODEL] * 3)

    snapshot = watched.breakers.snapshot(A, watched.now)
    assert snapshot is not None
    assert (snapshot.state, snapshot.orders, snapshot.era) == (State.OPEN, 1, 3)


def test_a_model_that_was_forgotten_by_nobodys_order_has_none(watched: Watched) -> None:
    watched.fail(*[OF_MODEL] * 3)
    watched.wait(30 + ABANDONED_SECONDS)

    watched.breakers.worst(watched.now)

    snapshot = watched.breakers.snapshot(A, watched.now)
    assert snapshot is not None
    assert (snapshot.state, snapshot.orders) == (State.CLOSED, 0)


def test_how_models_ended_is_remembered_of_so_many_only(watched: Watched) -> None:
    for number in range(MAX_MODELS + 1):
        watched.breakers.adopt(f"model-{number}", told(State.CLOSED), watched.now)

    assert watched.breakers.snapshot("model-0", watched.now) is None
    assert watched.breakers.snapshot("model-1", watched.now) is not None


class Elsewhere:
    """Leases that other replicas hold."""

    def __init__(self, model: str | None) -> None:
        self.model = model

    def take(self, now: float, until: float) -> None:
        return None

    def wait(self, now: float) -> float:
        return 6.0

    def foresee(self, now: float, at: float) -> None:
        pass


def test_a_call_that_gets_no_lease_is_told_to_come_back_in_a_moment() -> None:
    watched = Watched(leases=Elsewhere)
    watched.fail(*[OF_MODEL] * 3)
    watched.wait(30)

    with pytest.raises(BreakerOpen) as refusal:
        watched.acquire()

    assert refusal.value.retry_after == BUSY_SECONDS
    assert not watched.refuses(B)
