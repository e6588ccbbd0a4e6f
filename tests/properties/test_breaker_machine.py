"""The breaker against a small model of it that was written another way."""

from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sentinel_proxy.config import BreakerConfig
from sentinel_proxy.errors import BreakerOpen
from sentinel_proxy.resilience.breaker import Breaker, Permit, State

SETTINGS: Final = BreakerConfig(
    failure_threshold=3, recovery_timeout=30, max_recovery_timeout=300, half_open_permits=2
)
RESTS: Final = [30, 30, 60, 120, 240, 300]
LEASE_SECONDS: Final = 35
CALM_SECONDS: Final = 300

# Whole seconds, so that sums are exact; most of them near the borders where something happens.
PAUSES: Final = st.sampled_from([0, 1, 5, 29, 30, 34, 35, 60, 299, 300, 1000])


@dataclass(eq=False)
class Leave:
    """A permit as the model sees it."""

    permit: Permit
    generation: int
    lease_ends: int | None  # None: no trial


@dataclass
class Model:
    """What a breaker should do, told as a story rather than as a table."""

    now: int = 1000
    state: str = "closed"
    since: int = 0
    until: int = 0
    run: int = 0
    opened: int = 0
    generation: int = 0
    trials: list[Leave] = field(default_factory=list)
    story: list[tuple[str, str]] = field(default_factory=list)

    def go(self, state: str, until: int = 0) -> None:
        self.story.append((self.state, state))
        self.state, self.since, self.until = state, self.now, until
        self.generation += 1
        self.trials = []

    def running(self) -> int:
        return sum(trial.lease_ends is not None and trial.lease_ends > self.now for trial in self.trials)

    def admits(self) -> bool:
        if self.state in ("open", "isolated") and self.now >= self.until:
            self.go("half_open")
        return self.state == "closed" or (
            self.state == "half_open" and self.running() < SETTINGS.half_open_permits
        )

    def admits_early(self) -> bool:
        return self.state == "open" and self.running() == 0

    def succeed(self, leave: Leave) -> None:
        if leave.generation != self.generation:
            return
        self.run = 0
        if leave.lease_ends is not None:
            self.go("closed")
        self.calm_down()

    def fail(self, leave: Leave, opens: bool) -> None:
        if leave.generation != self.generation:
            return
        self.run += 1
        if self.state == "half_open" or (self.state == "closed" and (opens or self.run >= 3)):
            self.calm_down()
            rest = RESTS[min(self.opened, len(RESTS) - 1)]
            self.opened += 1
            self.go("open", self.now + rest)

    def calm_down(self) -> None:
        if self.state == "closed" and self.now - self.since >= CALM_SECONDS:
            self.opened = 0


class BreakerMachine(RuleBasedStateMachine):
    """Does anything to both in any order, and compares after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.story: list[tuple[str, str]] = []
        self.out: list[Leave] = []
        self.breaker = Breaker(SETTINGS, self.changed, lease_seconds=LEASE_SECONDS)

    def changed(self, breaker: Breaker, before: State, now: float) -> None:
        assert now == self.model.now
        self.story.append((before.value, breaker.state.value))

    def take(self, permit: Permit) -> None:
        lease_ends = self.model.now + LEASE_SECONDS if permit.trial else None
        leave = Leave(permit, self.model.generation, lease_ends)
        self.out.append(leave)
        if permit.trial:
            self.model.trials.append(leave)

    def give_back(self, which: int) -> Leave:
        leave = self.out.pop(which % len(self.out))
        self.model.trials = [trial for trial in self.model.trials if trial is not leave]
        return leave

    @rule(times=st.integers(1, 4))
    def call(self, times: int) -> None:
        for _ in range(times):
            if self.model.admits():
                permit = self.breaker.acquire(self.model.now)
                assert permit.trial is (self.model.state == "half_open")
                self.take(permit)
            else:
                with pytest.raises(BreakerOpen) as refusal:
                    self.breaker.acquire(self.model.now)
                assert refusal.value.retry_after > 0

    @rule()
    def call_early(self) -> None:
        admits = self.model.admits_early()

        permit = self.breaker.acquire_early(self.model.now)

        assert (permit is not None) is admits
        if permit is not None:
            self.take(permit)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def succeed(self, which: int) -> None:
        leave = self.give_back(which)
        self.model.succeed(leave)
        leave.permit.succeed(self.model.now)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100), opens=st.booleans())
    def fail(self, which: int, opens: bool) -> None:
        leave = self.give_back(which)
        self.model.fail(leave, opens)
        leave.permit.fail(self.model.now, "reset", opens=opens)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        leave = self.give_back(which)
        before = repr(self.breaker)

        leave.permit.release(self.model.now)

        assert repr(self.breaker) == before

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def lose(self, which: int) -> None:
        """Its owner vanishes: the permit is never settled, and only the lease frees its place."""
        self.out.pop(which % len(self.out))

    @rule(seconds=PAUSES)
    def pass_time(self, seconds: int) -> None:
        self.model.now += seconds

    @rule(seconds=PAUSES)
    def isolate(self, seconds: int) -> None:
        until = self.model.now + seconds
        if self.model.state == "isolated":
            self.model.until = until
        else:
            self.model.go("isolated", until)
        self.breaker.isolate(self.model.now, until, "maintenance")

    @rule()
    def reset(self) -> None:
        if self.model.state != "closed":
            self.model.go("closed")
        self.model.run = self.model.opened = 0
        self.breaker.reset(self.model.now, "well")

    @rule()
    def advance(self) -> None:
        if self.model.state == "open":
            self.model.go("half_open")
        self.breaker.advance(self.model.now)

    @precondition(lambda self: self.model.state == "closed")
    @rule()
    def break_down(self) -> None:
        """Three failures in a row, which chance alone would seldom bring about."""
        while self.model.state == "closed":
            self.call(1)
            self.fail(-1, opens=False)

    @rule()
    def recover(self) -> None:
        """Never stuck: with nobody in flight and enough rest, a call is admitted and can close it."""
        while self.out:
            self.release(0)
        self.model.now += LEASE_SECONDS
        self.model.now += int(self.breaker.rest(self.model.now))

        assert self.breaker.rest(self.model.now) == 0
        self.call(1)
        self.succeed(0)
        assert self.breaker.state is State.CLOSED

    @invariant()
    def both_agree(self) -> None:
        assert self.breaker.state.value == self.model.state
        assert self.breaker.failures == self.model.run
        assert self.breaker.level == self.model.opened
        assert self.breaker.until == (self.model.until if self.model.state in ("open", "isolated") else None)

    @invariant()
    def each_transition_is_told_once(self) -> None:
        assert self.story == self.model.story

    @invariant()
    def trials_are_few(self) -> None:
        assert self.breaker.trials(self.model.now) == self.model.running()
        assert self.model.running() <= SETTINGS.half_open_permits

    @invariant()
    def a_closed_breaker_is_below_its_threshold(self) -> None:
        assert self.breaker.state is not State.CLOSED or self.breaker.failures < SETTINGS.failure_threshold

    @invariant()
    def nobody_is_admitted_before_the_rest_is_over(self) -> None:
        if self.breaker.state in (State.OPEN, State.ISOLATED):
            assert self.breaker.rest(self.model.now) == max(0, self.model.until - self.model.now)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
