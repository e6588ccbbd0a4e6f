"""
A circuit breaker: who may call, and what each outcome changes.

Everything that affects a breaker's state is in this file. It does no I/O, knows no clock and
never waits: *now* (monotonic seconds) is an argument, so each method is one atomic step of the
event loop. What a failure means, and whose breaker hears of it, is decided in `scopes`.

Four ideas carry it:

- `TRANSITIONS` is the whole machine. `docs/breaker.md` draws it, and a test holds them equal.
- Whoever is admitted holds a `Permit`, which settles exactly once: success, failure, or
  neither. A caller that hangs up gives its permit back; nothing is learned and nothing leaks.
- Each transition begins a new *era*. A permit of an earlier era no longer votes, so fifty calls
  that time out a minute later cannot open a breaker that has recovered in between.
- What another replica knows better is adopted as a whole: a state, not a signal. That is no move
  of the machine, for the other one has made it already. Which of two states stands is decided
  elsewhere (`stores.records.merged`); who may hold a trial is asked of `Leases`.

The states are those of Nygard, *Release It!* (2018), chapter 5; `isolated` is Polly's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from sentinel_proxy.config import BreakerConfig
from sentinel_proxy.errors import BreakerOpen

CALM_SECONDS: Final = 300.0
"""Closed for this long without a break, a breaker forgets its relapses; sooner, flapping escalates."""

TRIAL_SUCCEEDED: Final = "a trial succeeded"
"""The reason of a breaker that closed because the upstream has proved itself."""

BUSY_SECONDS: Final = 1.0
"""What those are told who come while the trials are out: a trial's verdict rarely takes longer."""


class State(StrEnum):
    """What a breaker does with whoever asks for a permit."""

    CLOSED = "closed"  # admits everyone
    OPEN = "open"  # refuses until its rest is over
    HALF_OPEN = "half_open"  # admits a few trials
    ISOLATED = "isolated"  # refuses by order of an operator


class Signal(StrEnum):
    """What moves a breaker from one state to another."""

    TRIPPED = "tripped"  # too many failures in a row, or one that says enough
    RESTED = "rested"  # the rest is over, or was ended early
    RECOVERED = "recovered"  # a trial succeeded
    RELAPSED = "relapsed"  # a trial failed
    ISOLATED = "isolated"  # an operator takes it out
    EXPIRED = "expired"  # the operator's order has run out
    RESET = "reset"  # an operator declares it well


TRANSITIONS: Final[dict[State, dict[Signal, State]]] = {
    State.CLOSED: {
        Signal.TRIPPED: State.OPEN,
        Signal.ISOLATED: State.ISOLATED,
    },
    State.OPEN: {
        Signal.RESTED: State.HALF_OPEN,
        Signal.RECOVERED: State.CLOSED,  # an early trial
        Signal.ISOLATED: State.ISOLATED,
        Signal.RESET: State.CLOSED,
    },
    State.HALF_OPEN: {
        Signal.RECOVERED: State.CLOSED,
        Signal.RELAPSED: State.OPEN,
        Signal.ISOLATED: State.ISOLATED,
        Signal.RESET: State.CLOSED,
    },
    State.ISOLATED: {
        Signal.EXPIRED: State.HALF_OPEN,  # nobody knows how it is by now
        Signal.RESET: State.CLOSED,
    },
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    A breaker's state without its clock, for whoever has another one.

    Attributes:
        orders: How many orders of operators led to it.
        rest_seconds: Until the rest or the isolation ends; 0 where nothing is to end.
        since_seconds: Since the transition; 0 if there was none.
        moved_by: The replica whose transition or order led to it; None if it was made here.
    """

    state: State
    orders: int
    era: int
    rest_seconds: float
    since_seconds: float
    level: int
    reason: str
    moved_by: str | None = None


class Lease(Protocol):
    """Leave of all replicas for one trial here."""

    def give_back(self) -> None:
        """The trial is over, or does not count any more; giving it back again does nothing."""


class Leases(Protocol):
    """
    Where the trials of one breaker are shared out among replicas.

    Never waits: what has to be asked for far away is there, or is asked for meanwhile.
    """

    def take(self, now: float, until: float) -> Lease | None:
        """
        Hand out a lease that is in hand, to be kept until *until* or given back; else ask for one.

        How many trials are out here is counted by the breaker, in any case.
        """

    def wait(self, now: float) -> float:
        """Return the seconds for which all places are known to be elsewhere; 0 if that is not known."""

    def foresee(self, now: float, at: float) -> None:
        """Somebody here is likely to want a trial from *at* (monotonic seconds, may be infinite) on."""


class Permit:
    """
    Leave for one attempt. Settle it on every way out; settling again does nothing.

    Attributes:
        trial: Whether this attempt decides about the breaker: admitted half-open, or early.
    """

    __slots__ = ("_breaker", "_era", "trial")

    def __init__(self, breaker: "Breaker", era: int, trial: bool) -> None:
        self._breaker: Breaker | None = breaker
        self._era = era
        self.trial = trial

    def __repr__(self) -> str:
        settled = "settled" if self._breaker is None else "out"
        return f"<Permit of era {self._era}{', trial' if self.trial else ''}, {settled}>"

    @property
    def counts(self) -> bool:
        """Whether it will vote: it is not settled, and the breaker has not moved since it was given."""
        return self._breaker is not None and self._era == self._breaker._era

    def succeed(self, now: float) -> None:
        """The attempt came to a good end: ends a run of failures, or the breaker's rest."""
        breaker = self._breaker
        if breaker is None:
            return
        self._breaker = None
        if self._era == breaker._era and (self.trial or breaker._failures or breaker._level):
            breaker._succeeded(self, now)

    def fail(
        self, now: float, reason: str, *, opens: bool = False, rest_seconds: float | None = None
    ) -> None:
        """
        The attempt failed, and the upstream is to blame.

        Args:
            reason: Shown to operators; never a secret or a prompt.
            opens: Trip at once, whatever the threshold.
            rest_seconds: If this failure opens the breaker, rest so long instead of the usual.
        """
        breaker = self._breaker
        if breaker is None:
            return
        self._breaker = None
        if self._era == breaker._era:
            breaker._failed(self, now, reason, opens, rest_seconds)

    def release(self, now: float) -> None:
        """Nothing was learned (a hang-up, a caller's fault, a limit of our own): only free the place."""
        breaker = self._breaker
        if breaker is None:
            return
        self._breaker = None
        breaker._end_trial(self)


class _Trial(NamedTuple):
    ends: float  # who has not settled by then is lost
    lease: Lease | None


class Breaker:
    """
    Refuses calls to something that fails, lets it rest, and tries it again carefully.

    Args:
        on_change: Called after each transition with the breaker, the state it was in and *now*;
            must not raise.
        lease_seconds: A trial not settled after this long has lost its owner: its place is free
            again. Should it answer after all, it still votes.
        era, orders: Where to begin counting. A breaker that takes the place of a forgotten one
            begins after it, so that old permits stay old.
        leases: Asked before each trial after a rest; None: trials are counted here alone.
    """

    __slots__ = (
        "_era",
        "_failures",
        "_lease_seconds",
        "_leases",
        "_level",
        "_moved_by",
        "_on_change",
        "_orders",
        "_reason",
        "_settings",
        "_since",
        "_state",
        "_trials",
        "_until",
    )

    def __init__(
        self,
        settings: BreakerConfig,
        on_change: Callable[["Breaker", State, float], None],
        *,
        lease_seconds: float = 35.0,
        era: int = 0,
        orders: int = 0,
        leases: Leases | None = None,
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._lease_seconds = lease_seconds
        self._leases = leases
        self._state = State.CLOSED
        self._era = era
        self._orders = orders
        self._moved_by: str | None = None
        self._since: float | None = None
        self._until = 0.0  # means something while OPEN or ISOLATED
        self._reason = ""
        self._failures = 0
        self._level = 0
        self._trials: dict[Permit, _Trial] = {}  # those of this era

    def __repr__(self) -> str:
        return f"<Breaker {self._state.value}, {self._failures} failures, level {self._level}>"

    @property
    def state(self) -> State:
        """The state as of the last call; a rest that is over shows when somebody asks for a permit."""
        return self._state

    @property
    def era(self) -> int:
        """How often the state has changed; only permits of the same era vote."""
        return self._era

    @property
    def orders(self) -> int:
        """How many orders of operators it has had, here or elsewhere."""
        return self._orders

    @property
    def moved_by(self) -> str | None:
        """The replica whose transition or order led to this state; None if it was made here."""
        return self._moved_by

    @property
    def since(self) -> float | None:
        """Monotonic seconds of the last transition; None if there was none."""
        return self._since

    @property
    def until(self) -> float | None:
        """Monotonic seconds at which the rest or the isolation ends; None where nothing is to end."""
        return self._until if self._state in (State.OPEN, State.ISOLATED) else None

    @property
    def failures(self) -> int:
        """Failures in a row, trials included; a success or a reset ends the run."""
        return self._failures

    @property
    def reason(self) -> str:
        """Why it is in this state, for people; "" if it was never in another."""
        return self._reason

    @property
    def level(self) -> int:
        """How often it has opened since it was last calm; decides how long it rests."""
        return self._level

    @property
    def pristine(self) -> bool:
        """Whether a new breaker would behave the same, so that this one may be forgotten."""
        return self._state is State.CLOSED and not self._failures and not self._level

    def trials(self, now: float) -> int:
        """Return how many trials are out here that are not lost."""
        for permit in [permit for permit, trial in self._trials.items() if trial.ends <= now]:
            self._end_trial(permit)
        return len(self._trials)

    def rest(self, now: float) -> float:
        """Return the seconds until it is worth asking for a permit: 0 if it is now, never negative."""
        if self._state is State.CLOSED:
            return 0.0
        if self._rests(now):
            return self._until - now
        if self._full(now):
            return min(BUSY_SECONDS, min(trial.ends for trial in self._trials.values()) - now)
        return 0.0 if self._leases is None else min(BUSY_SECONDS, self._leases.wait(now))

    def acquire(self, now: float) -> Permit:
        """
        Give leave for one attempt.

        Raises:
            BreakerOpen: Not now. Nothing was taken; `retry_after` is `rest(now)`, or
                `BUSY_SECONDS` until it is known whether another replica holds the trial.
        """
        if self._state is State.CLOSED:
            return Permit(self, self._era, False)
        if self._rests(now):
            if self._leases is not None:
                self._leases.foresee(now, self._until)
            raise BreakerOpen(self.rest(now))
        if self._full(now):
            raise BreakerOpen(self.rest(now))
        if self._leases is None:
            return self._trial_after_rest(now, None)
        if (lease := self._leases.take(now, now + self._lease_seconds)) is None:
            raise BreakerOpen(BUSY_SECONDS)
        return self._trial_after_rest(now, lease)

    def acquire_early(self, now: float) -> Permit | None:
        """
        Give leave for a trial before the rest is over, for when everything else rests too.

        One at a time; None unless the breaker is open. Success closes it; failure leaves it as
        it is, `until` included. One that outlives the rest has become old and does not vote.

        Where the rest is over and it was not found out yet whether another replica holds the
        trial, this one is held without a lease: with nobody left to ask, asking is better. Where
        another one does hold it, it is early all the same: that replica may have no call for it.
        """
        if self._state is not State.OPEN or self.trials(now):
            return None
        if self._leases is None or self._rests(now) or self._leases.wait(now) > 0:
            return self._trial(now, None)
        return self._trial_after_rest(now, None)

    def isolate(self, now: float, until: float, reason: str) -> None:
        """Refuse everyone until *until* (monotonic seconds, may be infinite), whatever calls say."""
        self._orders += 1
        if self._state is State.ISOLATED:
            self._until, self._reason, self._moved_by = until, reason, None
        else:
            self._fire(Signal.ISOLATED, now, reason, until=until)

    def reset(self, now: float, reason: str) -> None:
        """Close it by order of an operator, and forget everything it holds against the upstream."""
        self._orders += 1
        self._moved_by = None
        self.retire(now, reason)

    def retire(self, now: float, reason: str) -> None:
        """Close it because nobody needs it any more; no order, so other replicas may know better."""
        self._failures = self._level = 0
        if self._state is not State.CLOSED:
            self._fire(Signal.RESET, now, reason)

    def advance(self, now: float) -> None:
        """End a rest early: the next caller becomes a trial. An isolation is not ended by this."""
        if self._state is State.OPEN:
            self._fire(Signal.RESTED, now, "the rest was ended early")

    def relax(self, now: float) -> None:
        """Forget old relapses if it has been closed for `CALM_SECONDS`."""
        if self._level and self._state is State.CLOSED and now - (self._since or 0.0) >= CALM_SECONDS:
            self._level = 0

    def snapshot(self, now: float) -> Snapshot:
        """Tell what others need to know to be in the same state; failures in a row are not shared."""
        return Snapshot(
            state=self._state,
            orders=self._orders,
            era=self._era,
            rest_seconds=max(0.0, self._until - now) if self.until is not None else 0.0,
            since_seconds=0.0 if self._since is None else now - self._since,
            level=self._level,
            reason=self._reason,
            moved_by=self._moved_by,
        )

    def adopt(self, snapshot: Snapshot, now: float) -> None:
        """
        Be in the state that another replica has told.

        A new era ends the votes of permits as a transition does, and is never an earlier one. It
        is told as a change only if the state is another one. Closing ends the run of failures;
        otherwise the failures that were counted here stay.
        """
        before, self._state = self._state, snapshot.state
        moves = self._state is not before
        era = max(snapshot.era, self._era + moves)
        if era != self._era:
            self._era = era
            self._end_all_trials()
        self._orders = max(self._orders, snapshot.orders)
        self._since = now - snapshot.since_seconds
        self._until = now + snapshot.rest_seconds
        self._level, self._reason, self._moved_by = snapshot.level, snapshot.reason, snapshot.moved_by
        if self._state is State.CLOSED:
            self._failures = 0
        if moves:
            self._on_change(self, before, now)

    def _rests(self, now: float) -> bool:
        return self._state in (State.OPEN, State.ISOLATED) and now < self._until

    def _full(self, now: float) -> bool:
        return self._state is State.HALF_OPEN and self.trials(now) >= self._settings.half_open_permits

    def _trial_after_rest(self, now: float, lease: Lease | None) -> Permit:
        if self._state is State.ISOLATED:
            self._fire(Signal.EXPIRED, now, "the isolation has expired")
        elif self._state is State.OPEN:
            self._fire(Signal.RESTED, now, "the rest is over")
        return self._trial(now, lease)

    def _trial(self, now: float, lease: Lease | None) -> Permit:
        permit = Permit(self, self._era, True)
        self._trials[permit] = _Trial(now + self._lease_seconds, lease)
        return permit

    def _end_trial(self, permit: Permit) -> None:
        trial = self._trials.pop(permit, None)
        if trial is not None and trial.lease is not None:
            trial.lease.give_back()

    def _end_all_trials(self) -> None:
        for permit in list(self._trials):
            self._end_trial(permit)

    def _succeeded(self, permit: Permit, now: float) -> None:
        self._failures = 0
        if permit.trial:
            self._fire(Signal.RECOVERED, now, TRIAL_SUCCEEDED)
        else:
            self.relax(now)

    def _failed(
        self, permit: Permit, now: float, reason: str, opens: bool, rest_seconds: float | None
    ) -> None:
        self._failures += 1
        if self._state is State.OPEN:  # an early trial
            self._end_trial(permit)
        elif self._state is State.HALF_OPEN:
            self._open(Signal.RELAPSED, now, reason, rest_seconds)
        elif opens or self._failures >= self._settings.failure_threshold:
            self._open(Signal.TRIPPED, now, reason, rest_seconds)

    def _open(self, signal: Signal, now: float, reason: str, rest_seconds: float | None) -> None:
        self.relax(now)
        self._level += 1
        if rest_seconds is None:
            rest_seconds = usual_rest_seconds(self._settings, self._level)
        self._fire(signal, now, reason, until=now + rest_seconds)
        if self._leases is not None:
            self._leases.foresee(now, self._until)

    def _fire(self, signal: Signal, now: float, reason: str, until: float = 0.0) -> None:
        before = self._state
        self._state = TRANSITIONS[before][signal]
        self._era += 1
        self._since = now
        self._until = until
        self._reason = reason
        self._moved_by = None
        self._end_all_trials()
        self._on_change(self, before, now)


def usual_rest_seconds(settings: BreakerConfig, level: int) -> float:
    """
    Return how long a breaker rests that opens for the *level*-th time (from 1).

    The first relapse may be bad luck and costs no more than the first rest; from the second on
    the rest doubles up to `max_recovery_timeout`: 30, 30, 60, 120, 240, 300 by default. A
    maximum below `recovery_timeout` does not shorten that.
    """
    first = settings.recovery_timeout
    doublings = min(max(0, level - 2), 64)
    return min(first * 2.0**doublings, max(first, settings.max_recovery_timeout))
