"""
Whose breaker hears of a failure: the provider's, or that of one model there.

A refused connection says something about the provider, an overload about the model that was
called: one broken model must not take a provider away, nor must a dead provider be found out
model by model. So a call needs leave of both breakers, and its outcome votes at both, as
`errors.CONSEQUENCES` and the rules at `ProviderBreakers._fail` say. The reasons are in
docs/decisions/0003-breaker.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple

from sentinel_proxy.config import BreakerConfig
from sentinel_proxy.errors import BreakerOpen, FailureKind, Scope, UpstreamError, Vote
from sentinel_proxy.events import BreakerChanged
from sentinel_proxy.resilience.breaker import Breaker, Leases, Permit, Snapshot, State

MAX_MODELS: Final = 1000
"""Models with a breaker of their own, at one provider; callers can invent names."""

CONFIGURED_ANEW: Final = "configured anew"
"""The reason of breakers that closed because their provider has other settings now."""

ABANDONED_SECONDS: Final = 300.0
"""
A model that nobody has tried for so long after its rest is not in use: its breaker is forgotten.
As long it is known after that how it ended, and longer than news of it may still be under way.
"""

_SEVERITY: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2, State.ISOLATED: 3}
_FORCED_SCOPES: Final = {"auto": None, "provider": Scope.PROVIDER, "model": Scope.MODEL}


@dataclass(frozen=True, slots=True)
class Rest:
    """How long to rest after a failure that time heals more slowly than most; doubles at each relapse."""

    first_seconds: float
    max_seconds: float

    def seconds(self, level: int) -> float:
        """Return the rest of a breaker that has opened *level* times before."""
        return min(self.first_seconds * 2.0 ** min(level, 64), self.max_seconds)


# Kinds without a row rest as the settings say.
RESTS: Final[dict[FailureKind, Rest]] = {
    FailureKind.CREDENTIAL: Rest(60.0, 900.0),  # somebody has to change a key
    FailureKind.QUOTA: Rest(600.0, 600.0),  # somebody has to pay, or a new month begin
}


class ScopedPermit:
    """
    Leave for one attempt at one model of a provider. Settle it on every way out, once.

    Cheap where nothing is wrong: as long as no model of the provider has a breaker, it holds
    the provider's permit and nothing else.
    """

    __slots__ = ("_breakers", "_model", "_model_era", "_model_trial", "_own")

    def __init__(
        self, breakers: "ProviderBreakers", own: Permit, model: str, era: int, trial: Permit | None
    ) -> None:
        self._breakers: ProviderBreakers | None = breakers
        self._own = own
        self._model = model
        self._model_era = era
        self._model_trial = trial

    def __repr__(self) -> str:
        settled = "settled" if self._breakers is None else "out"
        return f"<ScopedPermit{' for a trial' if self.trial else ''}, {settled}>"

    @property
    def trial(self) -> bool:
        """Whether this attempt decides about one of the breakers."""
        return self._own.trial or self._model_trial is not None

    def succeed(self, now: float) -> None:
        """The attempt came to a good end."""
        breakers = self._breakers
        if breakers is None:
            return
        self._breakers = None
        if breakers._models and self._own.counts:
            breakers._model_succeeded(self, now)
        elif self._model_trial is not None:  # no news of today, but its place must be free again
            self._model_trial.release(now)
        self._own.succeed(now)

    def fail(self, error: UpstreamError, now: float) -> None:
        """The attempt failed; what that says, and to whom, follows from the error's kind."""
        breakers = self._breakers
        if breakers is None:
            return
        self._breakers = None
        breakers._failed(self, error, now)

    def release(self, now: float) -> None:
        """Nothing was learned: the caller hung up, or never got as far as the upstream."""
        if self._breakers is None:
            return
        self._breakers = None
        self._free(now)

    def _free(self, now: float) -> None:
        self._own.release(now)
        if self._model_trial is not None:
            self._model_trial.release(now)


class _Over(NamedTuple):
    """The end of a model's breaker: it is closed, and forgotten since then."""

    snapshot: Snapshot
    since: float


class ProviderBreakers:
    """
    The breaker of one provider and those of the models called there.

    A model has a breaker only while it has something to remember, so there are as many as
    there are models in trouble.

    Args:
        provider: Its name, for the events.
        emit: Told of each transition once; must not raise or block.
        lease_seconds: How long a trial may take before it counts as lost.
        leases: Makes the leases of a model's breaker, or of the provider's own (None); None
            where trials are not shared.

    Attributes:
        own: The provider's own breaker. Probes vote here, and nowhere else.
    """

    def __init__(
        self,
        provider: str,
        settings: BreakerConfig,
        emit: Callable[[BreakerChanged], None],
        *,
        lease_seconds: float = 35.0,
        leases: Callable[[str | None], Leases | None] | None = None,
    ) -> None:
        self.provider = provider
        self._settings = settings
        self._emit = emit
        self._lease_seconds = lease_seconds
        self._leases = leases
        self._forced_scope = _FORCED_SCOPES[settings.scope]
        self._models: dict[str, Breaker] = {}  # oldest first
        self._first_era = 0  # of new model breakers: beyond those of all that were forgotten
        self._over: dict[str, _Over] = {}  # those that were forgotten lately, oldest first
        self.own = self._breaker(None)

    def __repr__(self) -> str:
        return f"<ProviderBreakers {self.provider}: {self.own.state.value}, {len(self._models)} models>"

    def acquire(self, model: str, now: float) -> ScopedPermit:
        """
        Give leave for one attempt at *model*, the name as the provider knows it.

        Raises:
            BreakerOpen: One of the two breakers refuses; nothing was taken.
        """
        own = self.own.acquire(now)
        if not self._models or (breaker := self._models.get(model)) is None:
            return ScopedPermit(self, own, model, self._first_era, None)
        try:
            permit = breaker.acquire(now)
        except BreakerOpen as refused:
            own.release(now)
            raise BreakerOpen(max(refused.retry_after, self.own.rest(now))) from None
        return ScopedPermit(self, own, model, breaker.era, permit if permit.trial else None)

    def acquire_early(self, model: str, now: float) -> ScopedPermit | None:
        """
        Give leave although a breaker rests, one call at a time; None if that is impossible too.

        Success ends the rest, failure leaves it as it is. An isolated provider has no early trials.
        """
        own = _admitted_early(self.own, now)
        if own is None:
            return None
        if (breaker := self._models.get(model)) is None:
            return ScopedPermit(self, own, model, self._first_era, None)
        permit = _admitted_early(breaker, now)
        if permit is None:
            own.release(now)
            return None
        return ScopedPermit(self, own, model, breaker.era, permit if permit.trial else None)

    def rest(self, model: str, now: float) -> float:
        """Return the seconds until both breakers would admit a call of *model*; 0 if they do now."""
        breaker = self._models.get(model)
        rest = self.own.rest(now)
        return rest if breaker is None else max(rest, breaker.rest(now))

    def undisturbed(self, model: str) -> bool:
        """Whether neither the provider's breaker nor that of *model* is anything but closed."""
        breaker = self._models.get(model)
        return self.own.state is State.CLOSED and (breaker is None or breaker.state is State.CLOSED)

    def worst(self, now: float) -> Breaker:
        """Return the breaker to show: the provider's own or, if worse, that of a model in use."""
        self._forget_what_does_not_matter(now)
        return max(
            (self.own, *self._models.values()),  # of equals, the first
            key=lambda breaker: (_SEVERITY[breaker.state], breaker is self.own, breaker.rest(now)),
        )

    def models_view(self) -> Mapping[str, Breaker]:
        """Return the breakers of the models that have something to remember; read-only, and live."""
        return MappingProxyType(self._models)

    def isolate(self, now: float, until: float, reason: str) -> None:
        """Refuse every call to the provider until *until* (monotonic seconds, may be infinite)."""
        self.own.isolate(now, until, reason)

    def reset(self, now: float, reason: str) -> None:
        """Close all breakers and forget everything they hold against the provider and its models."""
        self.own.reset(now, reason)
        for model in list(self._models):
            self._forget(model, now, reason, ordered=True)

    def succeed_to(self, before: "ProviderBreakers", now: float) -> None:
        """
        Take the place of the breakers that the same provider had under other settings.

        What they held against it was about those settings, such as a key that was refused, so it
        is over, and told to be. An operator's isolation stands.
        """
        for model in before.moved():
            if (snapshot := before.snapshot(model, now)) is not None:
                self.adopt(model, snapshot, now)
        if self.own.state is not State.ISOLATED:
            self.reset(now, CONFIGURED_ANEW)

    def advance(self, now: float) -> None:
        """
        End all rests early, those of models too; the next call of each is a trial.

        For a provider that was down to its probes as well and has come back: whatever the calls
        failed of meanwhile, the models were not asked.
        """
        self.own.advance(now)
        for breaker in list(self._models.values()):  # whoever hears of it may make us forget one
            breaker.advance(now)

    def snapshot(self, model: str | None, now: float) -> Snapshot | None:
        """
        Return the state of a model's breaker, or of the provider's own; None if nothing is known.

        Of a breaker that was forgotten lately it is the last one, so that old news of it can be
        told from new ones.
        """
        if model is None:
            return self.own.snapshot(now)
        if (breaker := self._models.get(model)) is not None:
            return breaker.snapshot(now)
        over = self._over.get(model)
        return None if over is None or now - over.since >= ABANDONED_SECONDS else over.snapshot

    def moved(self) -> list[str | None]:
        """Return the models, and None for the provider, whose breakers have ever moved or had an order."""
        breakers = ((None, self.own), *self._models.items())
        return [model for model, breaker in breakers if breaker.since is not None or breaker.orders]

    def adopt(self, model: str | None, snapshot: Snapshot, now: float) -> None:
        """
        Let a breaker be in the state that another replica has told.

        A model gets a breaker for it, unless so many models are in trouble here that another
        one's would have to go.
        """
        if model is None:
            self.own.adopt(snapshot, now)
            return
        breaker = self._models.get(model)
        if breaker is None and snapshot.state is State.CLOSED:
            self._note_over(model, snapshot, now)
        elif breaker is not None or self._has_room(now):
            breaker = breaker or self._remember(model, self._first_era, now)
            breaker.adopt(snapshot, now)
            if breaker.pristine:
                self._forget(model, now, "")

    def _failed(self, permit: ScopedPermit, error: UpstreamError, now: float) -> None:
        """
        Cast the votes of a failed attempt.

        - What says nothing (a caller's fault, a 429, an empty account of the caller's own) frees
          both places. So does a call from before the provider's breaker last moved: what broke
          off then is no news of today.
        - A provider's failure counts there. It also counts for the model, so that resets and
          overloads in turn are one run of failures; but not once the provider's breaker has
          opened, which says it all: one outage, one incident.
        - A model's failure counts for the model. For the provider it is a success, since the
          connection worked, but it is no proof: it neither ends a rest nor fails a trial.
        """
        consequence = error.consequence
        if consequence.vote is not Vote.FAILURE or error.personal or not permit._own.counts:
            permit._free(now)
            return
        if (self._forced_scope or consequence.scope) is Scope.PROVIDER:
            self._vote_against(self.own, permit._own, error, now, opens=consequence.opens)
            if self._forced_scope is None and self.own.state is State.CLOSED:
                self._model_failed(permit, error, now, opens=False)
            else:
                permit._free(now)
        else:
            self._model_failed(permit, error, now, opens=consequence.opens)
            if permit._own.trial:
                permit._own.release(now)
            else:
                permit._own.succeed(now)

    def _vote_against(
        self, breaker: Breaker, permit: Permit, error: UpstreamError, now: float, *, opens: bool
    ) -> None:
        breaker.relax(now)
        rest = RESTS.get(error.kind) if opens else None
        rest_seconds = None if rest is None else rest.seconds(breaker.level)
        permit.fail(now, _reason(error), opens=opens, rest_seconds=rest_seconds)

    def _model_failed(self, scoped: ScopedPermit, error: UpstreamError, now: float, *, opens: bool) -> None:
        model, era = scoped._model, scoped._model_era
        breaker = self._models.get(model)
        if breaker is None:
            if era != self._first_era:
                return  # it had a breaker, which has changed and been forgotten since
            breaker = self._remember(model, era, now)
        permit = scoped._model_trial or Permit(breaker, era, False)
        self._vote_against(breaker, permit, error, now, opens=opens)

    def _model_succeeded(self, scoped: ScopedPermit, now: float) -> None:
        model = scoped._model
        breaker = self._models.get(model)
        if breaker is None:
            return
        permit = scoped._model_trial or Permit(breaker, scoped._model_era, False)
        permit.succeed(now)
        if breaker.pristine:
            self._forget(model, now, "")

    def _remember(self, model: str, era: int, now: float) -> Breaker:
        """Give *model* a breaker; where there is no room, the oldest that is closed makes some."""
        if len(self._models) >= MAX_MODELS:
            self._forget_what_does_not_matter(now)
        if len(self._models) >= MAX_MODELS:
            closed = (name for name, breaker in self._models.items() if breaker.state is State.CLOSED)
            self._forget(next(closed, next(iter(self._models))), now, "too many models rest")
        breaker = self._models[model] = self._breaker(model, era)
        return breaker

    def _has_room(self, now: float) -> bool:
        """Whether one more model can be remembered without ending the rest of another."""
        if len(self._models) >= MAX_MODELS:
            self._forget_what_does_not_matter(now)
        return len(self._models) < MAX_MODELS or any(
            breaker.state is State.CLOSED for breaker in self._models.values()
        )

    def _forget(self, model: str, now: float, reason: str, *, ordered: bool = False) -> None:
        breaker = self._models.pop(model, None)
        if breaker is None:
            return  # forgotten meanwhile, by somebody who heard of another one
        if ordered:
            breaker.reset(now, reason)
        else:
            breaker.retire(now, reason)
        if breaker.since is not None:
            self._note_over(model, breaker.snapshot(now), now)

    def _note_over(self, model: str, snapshot: Snapshot, now: float) -> None:
        """Remember how the breaker of a model ended; its next one begins in no earlier era."""
        self._first_era = max(self._first_era, snapshot.era)
        self._over.pop(model, None)
        if len(self._over) >= MAX_MODELS:
            del self._over[next(iter(self._over))]
        self._over[model] = _Over(snapshot, now)

    def _forget_what_does_not_matter(self, now: float) -> None:
        for model, breaker in list(self._models.items()):
            breaker.relax(now)
            if breaker.pristine or _abandoned(breaker, now):
                self._forget(model, now, "nobody has tried it since its rest")

    def _breaker(self, model: str | None, era: int = 0) -> Breaker:
        over = None if model is None else self._over.get(model)
        return Breaker(
            self._settings,
            partial(self._changed, model),
            lease_seconds=self._lease_seconds,
            era=era,
            orders=0 if over is None else over.snapshot.orders,
            leases=None if self._leases is None else self._leases(model),
        )

    def _changed(self, model: str | None, breaker: Breaker, before: State, now: float) -> None:
        rest_seconds = breaker.rest(now) if breaker.state is State.OPEN else 0.0
        self._emit(
            BreakerChanged(
                self.provider,
                model,
                before.value,
                breaker.state.value,
                breaker.reason,
                rest_seconds,
                breaker.moved_by,
            )
        )


def _admitted_early(breaker: Breaker, now: float) -> Permit | None:
    """Return a usual permit if there is one, else an early one, else None."""
    try:
        return breaker.acquire(now)
    except BreakerOpen:
        return breaker.acquire_early(now)


def _abandoned(breaker: Breaker, now: float) -> bool:
    """Whether a model's breaker waits for a trial that nobody seems to want."""
    if breaker.state is State.CLOSED or breaker.trials(now):
        return False
    rested_at = breaker.until if breaker.until is not None else breaker.since
    return rested_at is not None and now - rested_at >= ABANDONED_SECONDS


def _reason(error: UpstreamError) -> str:
    """Name a failure for operators: `overloaded (503)`, `timeout`."""
    return error.kind.value if error.status is None else f"{error.kind.value} ({error.status})"
