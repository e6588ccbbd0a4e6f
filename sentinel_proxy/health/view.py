"""What operators see of a provider. Times go outward as RFC 3339 text, durations as the names say."""

import math
from dataclasses import dataclass
from typing import Any

from sentinel_proxy.clock import Clock, utc_text
from sentinel_proxy.health.watch import Watch
from sentinel_proxy.resilience.breaker import Breaker, State


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of both clocks, to tell others of monotonic times."""

    unix: float
    monotonic: float

    @classmethod
    def of(cls, clock: Clock) -> "Moment":
        """Read *clock*."""
        return cls(clock.time(), clock.monotonic())

    def text(self, monotonic: float | None) -> str | None:
        """Write a monotonic time; None for none, and for what never comes."""
        if monotonic is None or math.isinf(monotonic):
            return None
        return utc_text(self.unix + monotonic - self.monotonic)


def status_of(watch: Watch, now: float) -> str:
    """Return "healthy", "degraded" or "down": whether calls go there, and whether all is well."""
    upstream = watch.upstream
    model = upstream.provider.model_for("*")
    breakers = upstream.breakers
    blocking = [breakers.own, *(each for name, each in breakers.models_view().items() if name == model)]
    if any(each.state in (State.OPEN, State.ISOLATED) and each.rest(now) > 0 for each in blocking):
        return "down"
    calm = (
        breakers.worst(now).state is State.CLOSED
        and upstream.admits(model, now)
        and not watch.missing
        and not watch.ails
    )
    return "healthy" if calm else "degraded"


def provider_view(watch: Watch, position: int, at: Moment) -> dict[str, Any]:
    """
    Return everything about one provider as JSON has it.

    `circuit_breaker` is the provider's own or, if worse, that of a model in use (`model` names
    it then); `models` tells all of them apart. `latency_ms` is until an answer begins, of
    recent calls or else of the last probe.
    """
    upstream, now = watch.upstream, at.monotonic
    breakers = upstream.breakers
    worst = breakers.worst(now)
    models = dict(breakers.models_view())
    worst_model = next((name for name, breaker in models.items() if breaker is worst), None)
    share = watch.traffic.success_share(now)
    return {
        "status": status_of(watch, now),
        "routable": upstream.admits(upstream.provider.model_for("*"), now),
        "latency_ms": _latency_ms(watch, now),
        "success_rate_pct": None if share is None else round(share * 100, 1),
        "circuit_breaker": {**breaker_view(worst, at), "model": worst_model},
        "models": {name: breaker_view(breaker, at) for name, breaker in models.items()},
        "missing_models": list(watch.missing),
        "last_probe": None if watch.last is None else watch.last.public(),
        "position": position,
        "kind": upstream.provider.kind,
        "in_flight": upstream.in_flight,
    }


def breaker_view(breaker: Breaker, at: Moment) -> dict[str, Any]:
    """Return one breaker as JSON has it; `until` is when its rest ends, null where nothing is to end."""
    return {
        "state": breaker.state.value,
        "since": at.text(breaker.since),
        "until": at.text(breaker.until),
        "failures": breaker.failures,
        "reason": breaker.reason,
    }


def _latency_ms(watch: Watch, now: float) -> float | None:
    seconds = watch.traffic.mean_seconds(now)
    if seconds is None and watch.last is not None:
        seconds = watch.last.seconds
    return None if seconds is None else round(seconds * 1000, 1)
