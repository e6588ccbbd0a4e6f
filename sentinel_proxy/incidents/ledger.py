"""
The rules by which events become incidents. Pure: an event and the moment in, changes out.

Three kinds of incident differ in how they end:

- A *span* lasts until a fact ends it: an outage from the opening of a breaker to its closing.
- A *burst* gathers what happens again and again. It ends when it has not happened for
  `QUIET_SECONDS`, or with the outage that it belongs to, and is then over since it last happened.
- A *moment* is over as soon as it is there.

One outage is one incident, however many breakers show it. Those of several models at a provider
that answers are outages of their own; but when the provider's own breaker opens, it is the
provider that is out, and they are a part of that.

Counting is quiet: numbers inside an incident are told with the next round of probes, so a
thousand failing calls are a thousand additions and one change a round.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sentinel_proxy.errors import CONSEQUENCES, FailureKind, Vote
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    CallFailedOver,
    CallFinished,
    HealthChecked,
    IncidentChanged,
    MappedModelsChecked,
    ProbeFinished,
    StreamRescued,
)
from sentinel_proxy.incidents.ring import Instant, Record, Rest, Ring
from sentinel_proxy.model import HEDGED, Attempt, IncidentType, Outcome
from sentinel_proxy.resilience.breaker import TRIAL_SUCCEEDED, State

QUIET_SECONDS: Final = 60.0
"""A burst is over after so long without; longer than the pauses of all but the rarest callers."""

UNASKED_SECONDS: Final = 300.0
"""An outage is over if probes have passed for so long and no call has come to prove more."""

NOBODY_ASKED: Final = "probes pass, and no call has come since to prove more"
PART_OF_PROVIDERS: Final = "all of the provider is out"

HEARD: Final = (
    BreakerChanged,
    CallFailedOver,
    StreamRescued,
    AttemptFailed,
    ProbeFinished,
    MappedModelsChecked,
    HealthChecked,
)
"""What is folded, beside `CallFinished`."""

_BURSTS: Final = frozenset(
    (
        IncidentType.FAILOVER_TRIGGERED,
        IncidentType.STREAM_RESCUED,
        IncidentType.STREAM_TRUNCATED,
        IncidentType.RATE_LIMITED_UPSTREAM,
        IncidentType.NO_PROVIDER_ANSWERED,
    )
)
_ABSENCES: Final = frozenset((IncidentType.OUTAGE_DETECTED, IncidentType.BREAKER_ISOLATED))
"""While one of these lasts, calls pass the provider by, and its failovers go on."""

_REFUSALS: Final = {
    FailureKind.CREDENTIAL: IncidentType.CREDENTIAL_REFUSED,
    FailureKind.QUOTA: IncidentType.QUOTA_EXHAUSTED,
}
_DISPROVED_BY_AN_ANSWER: Final = frozenset((*_REFUSALS.values(), IncidentType.FALLBACK_MODEL_MISSING))

_NO_TROUBLE: Final = frozenset(
    (
        FailureKind.UNSUPPORTED.value,
        FailureKind.CONTEXT_OVERFLOW.value,
        FailureKind.MODEL_NOT_FOUND.value,
        HEDGED,
    )
)
"""Reasons that are about the call, or about who was quicker: where it goes then is routing, no incident."""

_GRAVITY: Final = (State.HALF_OPEN, State.OPEN)  # the graver the later
_KINDS: Final = frozenset(kind.value for kind in FailureKind)
_GOOD: Final = frozenset((Outcome.SUCCESS, Outcome.FAILED_OVER, Outcome.RESCUED))
_SUCCESS: Final = Outcome.SUCCESS  # found once: of its class, Python 3.11 finds a member by a detour
_LOST: Final = frozenset((Outcome.FAILURE, Outcome.TRUNCATED))

Changes = Sequence[IncidentChanged]
Key = tuple[IncidentType, str, str | None]  # what it is about: type, provider, model


class Ledger:
    """
    Every incident that is remembered, and what the next event makes of them.

    Args:
        mint: Names incidents, given Unix seconds.
        model_for: Returns a provider's own name for a caller's model.
    """

    def __init__(
        self, capacity: int, mint: Callable[[float], str], model_for: Callable[[str, str], str]
    ) -> None:
        self.ring = Ring(capacity, self._forgotten)
        self._mint = mint
        self._model_for = model_for
        self._going: dict[Key, Record] = {}  # those that last
        self._latest: dict[Key, Record] = {}  # also those that are over, for what is counted late
        self._well: dict[str, Instant] = {}  # providers whose probes pass, and since when
        self._disprovable: set[str] = set()  # providers with an incident that one good answer ends
        self._rules: dict[type, Callable[[Any, Instant], Iterator[IncidentChanged]]] = {
            BreakerChanged: self._breaker_changed,
            CallFailedOver: self._failed_over,
            StreamRescued: self._rescued,
            AttemptFailed: self._attempt_failed,
            ProbeFinished: self._probed,
            MappedModelsChecked: self._models_checked,
            HealthChecked: self._round_is_over,
            CallFinished: self._call_finished,
        }

    def fold(self, event: Any, now: Instant) -> Changes:
        """Take *event*, which happened *now*; return what it changes, in order."""
        return list(self._rules[type(event)](event, now))

    def is_no_news(self, event: CallFinished) -> bool:
        """Whether a call went as calls should; spares the hot path the rest."""
        return (
            event.outcome is _SUCCESS
            and (call := event.call) is not None
            and len(call.trail) == 1
            and call.trail[0].provider not in self._disprovable
        )

    # The rules, one for each event.

    def _breaker_changed(self, event: BreakerChanged, now: Instant) -> Iterator[IncidentChanged]:
        outage: Key = (IncidentType.OUTAGE_DETECTED, event.provider, event.model)
        isolation: Key = (IncidentType.BREAKER_ISOLATED, event.provider, event.model)
        if event.before == State.ISOLATED:
            yield from self._resolve(isolation, now)
        match event.after:
            case State.OPEN:
                yield from self._rests(event, outage, now)
            case State.HALF_OPEN if (record := self._ongoing(outage)) is not None:
                record.rests[event.model] = Rest(event.after, now.monotonic)
                yield self._updated(record, now)
            case State.ISOLATED:
                yield self._opened(isolation, now, {"reason": event.reason})
            case State.CLOSED:
                yield from self._closed(event, outage, now)

    def _rests(self, event: BreakerChanged, key: Key, now: Instant) -> Iterator[IncidentChanged]:
        """A breaker has opened: begin an outage, or see which one this is a part of."""
        of_provider = self._ongoing((IncidentType.OUTAGE_DETECTED, event.provider, None))
        of_models = list(self._ongoing_of(event.provider, IncidentType.OUTAGE_DETECTED))
        record = self._ongoing(key) or of_provider
        if record is None and event.model is None and of_models:
            record, *others = of_models
            yield from self._widened(record, others, event, now)
        if record is None:
            opened = self._opened(key, now, _of_outage(event))
            self._going[key].rests[event.model] = _rest_of(event, now)
            yield opened
            return
        self._going[key] = self._latest[key] = record
        record.rests[event.model] = _rest_of(event, now)
        record.details["openings"] += 1
        yield self._updated(record, now)

    def _widened(
        self, record: Record, others: Sequence[Record], event: BreakerChanged, now: Instant
    ) -> Iterator[IncidentChanged]:
        """Make the outage of one model that of its provider; those of other models end in it."""
        record.details.pop("model")
        record.details |= {"cause": cause_of(event.reason), "reason": event.reason}
        for other in others:
            keys = [key for key, each in self._going.items() if each is other]
            other.details |= {"ended_by": PART_OF_PROVIDERS, "outage": record.id}
            yield from self._end(other, now)
            self._going |= dict.fromkeys(keys, record)
            record.rests |= other.rests

    def _closed(self, event: BreakerChanged, key: Key, now: Instant) -> Iterator[IncidentChanged]:
        outage = self._going.pop(key, None)
        if outage is not None:
            outage.rests.pop(event.model, None)
            if event.model is None:  # the provider answers: only a model that still rests is out
                outage.rests = {
                    model: rest for model, rest in outage.rests.items() if rest.until > now.monotonic
                }
                if len(outage.rests) == 1:
                    (outage.details["model"],) = outage.rests
            if outage.rests:
                yield self._updated(outage, now)
            else:
                outage.details |= {"state": event.after, "ended_by": event.reason}
                yield from self._end(outage, now)
        if not self._is_away(event.provider):
            yield from self._resolve((IncidentType.FAILOVER_TRIGGERED, event.provider, None), now)
        if event.reason != TRIAL_SUCCEEDED:
            return
        yield from self._disproved(event.provider, now)
        if outage is not None and outage.ended is not None and event.moved_by is None:
            model = outage.details.get("model")
            recovered: Key = (IncidentType.PROVIDER_RECOVERED, event.provider, model)
            details = {
                "model": model,
                "outage": outage.id,
                "outage_seconds": outage.incident().duration_seconds,
                **{name: outage.details[name] for name in ("affected_calls", "rescued_calls", "lost_calls")},
            }
            yield self._opened(recovered, now, details)
            yield from self._resolve(recovered, now)

    def _failed_over(self, event: CallFailedOver, now: Instant) -> Iterator[IncidentChanged]:
        if event.reason in _NO_TROUBLE:
            return
        key: Key = (IncidentType.FAILOVER_TRIGGERED, event.source, None)
        outages = list(self._ongoing_of(event.source, IncidentType.OUTAGE_DETECTED))
        latest = self._latest.get(key)
        if latest is not None and _is_late(event, latest, now) and not self._is_away(event.source):
            _count_failover(latest, event)
            return
        details = {
            "reason": event.reason,
            "calls": 0,
            "reasons": {},
            "targets": (),
            "outage": outages[0].id if outages else None,
        }
        yield from self._burst(key, now, details, lambda record: _count_failover(record, event))
        for outage in outages:
            outage.details["targets"] = _with(outage.details["targets"], event.target)

    def _rescued(self, event: StreamRescued, now: Instant) -> Iterator[IncidentChanged]:
        if event.result != "continued":
            return

        def count(record: Record) -> None:
            record.details["streams"] += 1
            record.details["targets"] = _with(record.details["targets"], event.target)

        key: Key = (IncidentType.STREAM_RESCUED, event.source, None)
        yield from self._burst(key, now, {"streams": 0, "targets": ()}, count)

    def _attempt_failed(self, event: AttemptFailed, now: Instant) -> Iterator[IncidentChanged]:
        if event.kind is FailureKind.THROTTLED:
            yield from self._limited(event.provider, now)
        elif (type := _REFUSALS.get(event.kind)) is not None:
            yield from self._refused(type, event.provider, "call", now)

    def _probed(self, event: ProbeFinished, now: Instant) -> Iterator[IncidentChanged]:
        result = event.result
        if result.ok:
            self._well.setdefault(result.provider, now)
        else:
            self._well.pop(result.provider, None)
        key: Key = (IncidentType.CREDENTIAL_REFUSED, result.provider, None)
        if result.kind is FailureKind.CREDENTIAL:
            yield from self._refused(IncidentType.CREDENTIAL_REFUSED, result.provider, "probe", now)
        elif (
            result.ok and (record := self._ongoing(key)) is not None and record.details["found_by"] == "probe"
        ):
            yield from self._resolve(key, now)

    def _models_checked(self, event: MappedModelsChecked, now: Instant) -> Iterator[IncidentChanged]:
        key: Key = (IncidentType.FALLBACK_MODEL_MISSING, event.provider, None)
        if not event.missing:
            yield from self._resolve(key, now)
        elif (record := self._ongoing(key)) is not None:
            record.details["models"] = event.missing
            yield self._updated(record, now)
        else:
            yield self._opened(key, now, {"models": event.missing})

    def _call_finished(self, event: CallFinished, now: Instant) -> Iterator[IncidentChanged]:
        call = event.call
        if call is None:
            return
        for provider in dict.fromkeys(_hurt(call.trail, event.outcome)):
            outage = self._outage_of(provider, self._model_for(provider, call.model))
            if outage is not None and (outage.ended is None or call.started <= outage.ended.monotonic):
                _count_call(outage, event.outcome)
        for attempt in call.trail:
            if attempt.kind is FailureKind.THROTTLED and not attempt.sent:
                yield from self._limited(attempt.provider, now)
        answered_by = call.answered_by
        if event.outcome is Outcome.TRUNCATED and answered_by is not None:
            key: Key = (IncidentType.STREAM_TRUNCATED, answered_by, None)
            yield from self._burst(key, now, {"streams": 0}, _adding("streams"))
        elif event.outcome is Outcome.FAILURE and answered_by is None and event.error_code is not None:
            key = (IncidentType.NO_PROVIDER_ANSWERED, "", None)
            details = {"calls": 0, "error_code": event.error_code}
            yield from self._burst(key, now, details, _adding("calls"))
        elif event.outcome in _GOOD and answered_by in self._disprovable:
            yield from self._disproved(answered_by, now)

    def _round_is_over(self, _: HealthChecked, now: Instant) -> Iterator[IncidentChanged]:
        for key, record in list(self._going.items()):
            if self._is_quiet(record, now):
                yield from self._resolve(key, record.seen)
            elif record.ended is None and (since := self._unasked_since(record, now)) is not None:
                record.details["ended_by"] = NOBODY_ASKED
                yield from self._end(record, since)
        for record in self.ring:
            if record.changed:
                yield self._updated(record, record.seen)

    # What the rules are made of.

    def _disproved(self, provider: str, now: Instant) -> Iterator[IncidentChanged]:
        """End what a good answer of *provider* disproves, whichever replica was given it."""
        for type in _DISPROVED_BY_AN_ANSWER:
            yield from self._resolve((type, provider, None), now)

    def _limited(self, provider: str, now: Instant) -> Iterator[IncidentChanged]:
        key: Key = (IncidentType.RATE_LIMITED_UPSTREAM, provider, None)
        yield from self._burst(key, now, {"calls": 0}, _adding("calls"))

    def _refused(
        self, type: IncidentType, provider: str, found_by: str, now: Instant
    ) -> Iterator[IncidentChanged]:
        if self._ongoing((type, provider, None)) is None:
            yield self._opened((type, provider, None), now, {"found_by": found_by})

    def _burst(
        self, key: Key, now: Instant, details: dict[str, Any], count: Callable[[Record], None]
    ) -> Iterator[IncidentChanged]:
        """Count one more into the burst that goes on, or begin one."""
        record = self._ongoing(key)
        if record is not None and self._is_quiet(record, now):
            yield from self._resolve(key, record.seen)
            record = None
        if record is not None:
            count(record)
            record.seen, record.changed = now, True
        else:
            yield self._opened(key, now, details, count)

    def _is_quiet(self, record: Record, now: Instant) -> bool:
        if record.type not in _BURSTS or now.monotonic - record.seen.monotonic < QUIET_SECONDS:
            return False
        return record.type is not IncidentType.FAILOVER_TRIGGERED or not self._is_away(record.provider or "")

    def _unasked_since(self, record: Record, now: Instant) -> Instant | None:
        """
        Return since when an outage shows no more, if that is long ago.

        It is for the next call to prove that the provider answers. Where none comes, as to a
        fallback that is not needed, the outage must not go on for ever.
        """
        own, well = record.rests.get(None), self._well.get(record.provider or "")
        if own is None or well is None:
            return None
        seconds = now.monotonic - max(own.until, well.monotonic)
        if seconds < UNASKED_SECONDS:
            return None
        return Instant(now.unix - seconds, now.monotonic - seconds)

    def _is_away(self, provider: str) -> bool:
        """Whether an outage or an operator keeps calls from *provider*, wholly or in part."""
        return any(name == provider and type in _ABSENCES for type, name, _ in self._going)

    def _ongoing_of(self, provider: str, type: IncidentType) -> Iterator[Record]:
        found = (
            record for (kind, name, _), record in self._going.items() if kind is type and name == provider
        )
        return iter(dict.fromkeys(found))

    def _outage_of(self, provider: str, model: str) -> Record | None:
        """Return the outage that a call of *model* ran into there: that which lasts, else the latest."""
        keys: list[Key] = [
            (IncidentType.OUTAGE_DETECTED, provider, None),
            (IncidentType.OUTAGE_DETECTED, provider, model),
        ]
        found = [record for key in keys if (record := self._latest.get(key)) is not None]
        return max(found, key=lambda record: (record.ended is None, record.began), default=None)

    def _ongoing(self, key: Key) -> Record | None:
        return self._going.get(key)

    def _opened(
        self,
        key: Key,
        now: Instant,
        details: dict[str, Any],
        count: Callable[[Record], None] = lambda record: None,
    ) -> IncidentChanged:
        type, provider, model = key
        if model is not None:
            details["model"] = model
        record = Record(self._mint(now.unix), type, provider or None, now, now, details)
        count(record)
        self.ring.add(record)
        self._going[key] = self._latest[key] = record
        if type in _DISPROVED_BY_AN_ANSWER:
            self._disprovable.add(provider)
        return IncidentChanged("opened", record.incident())

    def _updated(self, record: Record, seen: Instant) -> IncidentChanged:
        if record.rests:
            record.details["state"] = max((rest.state for rest in record.rests.values()), key=_GRAVITY.index)
        record.seen, record.changed = seen, False
        return IncidentChanged("updated", record.incident())

    def _resolve(self, key: Key, when: Instant) -> Iterator[IncidentChanged]:
        """End what goes on under *key*, if anything does."""
        if (record := self._going.get(key)) is not None:
            yield from self._end(record, when)

    def _end(self, record: Record, when: Instant) -> Iterator[IncidentChanged]:
        """End an incident that goes on."""
        self._going = {key: each for key, each in self._going.items() if each is not record}
        record.ended, record.changed = when, False
        if record.type in _DISPROVED_BY_AN_ANSWER:
            self._disprovable = {name for type, name, _ in self._going if type in _DISPROVED_BY_AN_ANSWER}
        yield IncidentChanged("resolved", record.incident())

    def _forgotten(self, record: Record) -> None:
        self._latest = {key: each for key, each in self._latest.items() if each is not record}


def _rest_of(event: BreakerChanged, now: Instant) -> Rest:
    return Rest(event.after, now.monotonic + event.rest_seconds)


def _of_outage(event: BreakerChanged) -> dict[str, Any]:
    return {
        "cause": cause_of(event.reason),
        "reason": event.reason,
        "state": event.after,
        "openings": 1,
        "affected_calls": 0,
        "rescued_calls": 0,
        "lost_calls": 0,
        "targets": (),
    }


def cause_of(reason: str) -> str:
    """Return the failure kind that a breaker's reason begins with (`overloaded (503)`), else "unknown"."""
    word = reason.partition(" ")[0]
    return word if word in _KINDS else "unknown"


def _hurt(trail: Sequence[Attempt], outcome: Outcome) -> Iterator[str]:
    """Yield the providers whose outage a call has felt: they failed it, or broke off, or rested."""
    answered = [attempt for attempt in trail if attempt.answered]
    held = answered[-1] if answered and outcome is not Outcome.TRUNCATED else None
    for attempt in trail:
        if attempt.answered:
            if attempt is not held:
                yield attempt.provider
        elif attempt.result == HEDGED:
            continue  # slow this time, which is no outage
        elif attempt.kind is None:
            yield attempt.provider  # passed by, for its breaker rests
        elif CONSEQUENCES[attempt.kind].vote is Vote.FAILURE:
            yield attempt.provider


def _count_call(outage: Record, outcome: Outcome) -> None:
    outage.changed = True
    outage.details["affected_calls"] += 1
    if outcome in _GOOD:
        outage.details["rescued_calls"] += 1
    elif outcome in _LOST:
        outage.details["lost_calls"] += 1


def _count_failover(record: Record, event: CallFailedOver) -> None:
    details = record.details
    reasons = details["reasons"]
    details["calls"] += 1
    details["reasons"] = reasons | {event.reason: reasons.get(event.reason, 0) + 1}
    details["targets"] = _with(details["targets"], event.target)
    record.changed = True


def _is_late(event: CallFailedOver, latest: Record, now: Instant) -> bool:
    """Whether a call passed a resting provider by, but was answered only after that had come back."""
    ended = latest.ended
    return ended is not None and event.reason == "open" and now.monotonic - ended.monotonic < QUIET_SECONDS


def _adding(name: str) -> Callable[[Record], None]:
    def count(record: Record) -> None:
        record.details[name] += 1

    return count


def _with(known: tuple[str, ...], name: str) -> tuple[str, ...]:
    return known if name in known else (*known, name)
