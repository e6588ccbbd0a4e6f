"""
One upstream as we use it: how it is described, how it is reached, and what we have learned of it.

Failover asks it for leave before every attempt, health probes it, operators look at it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sentinel_proxy.config import BreakerConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.errors import BreakerOpen, CallerError, FailureKind, UpstreamError
from sentinel_proxy.events import BreakerChanged
from sentinel_proxy.model import Controls
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.resilience.breaker import BUSY_SECONDS, Leases
from sentinel_proxy.resilience.budget import RetryBudget
from sentinel_proxy.resilience.deadline import Waits, overridden
from sentinel_proxy.resilience.gate import Gate
from sentinel_proxy.resilience.scopes import ProviderBreakers, ScopedPermit
from sentinel_proxy.upstream.base import Transport

MISSING_SECONDS: Final = 300.0
"""How long a provider that did not know a model is asked last for it."""

CLOCK_SLACK_SECONDS: Final = 0.005
"""Whoever slept until a gate opens may wake this much early: event loops count in milliseconds."""

LEASE_MARGIN_SECONDS: Final = 5.0
"""A trial that has not settled this long after its first token was due has lost its owner."""


@dataclass(slots=True, eq=False)
class Upstream:
    """A provider, the transport that reaches it, and everything that may keep a call from it."""

    provider: Provider
    transport: Transport
    breakers: ProviderBreakers
    timeouts: TimeoutsConfig
    waits: Waits  # what follows from *timeouts* for calls
    budget: RetryBudget
    gate: Gate = field(default_factory=Gate)
    in_flight: int = 0
    rejects_prefill: bool = False  # learned: it answered 400 to a conversation that ends with the assistant
    missing: dict[str, float] = field(default_factory=dict)  # learned: models it lacks, until when

    @classmethod
    def build(
        cls,
        provider: Provider,
        transport: Transport,
        *,
        timeouts: TimeoutsConfig,
        breaker: BreakerConfig,
        retry: RetryConfig,
        emit: Callable[[BreakerChanged], None],
        leases: Callable[[str | None], Leases | None] | None = None,
    ) -> "Upstream":
        """Put together an upstream that has learned nothing yet; *leases* share out its trials."""
        own = overridden(timeouts, provider.timeouts)
        lease = max(own.first_token, own.first_token_reasoning, own.answer) + LEASE_MARGIN_SECONDS
        breakers = ProviderBreakers(provider.name, breaker, emit, lease_seconds=lease, leases=leases)
        return cls(provider, transport, breakers, own, Waits(own), RetryBudget(retry.budget))

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.provider.name

    @property
    def full(self) -> bool:
        """Whether as many calls are there as the provider's own limit allows."""
        limit = self.provider.max_in_flight
        return 0 < limit <= self.in_flight

    def admit(self, model: str, now: float, *, early: bool = False) -> ScopedPermit:
        """
        Give leave for one attempt; the permit must be settled on every way out.

        Args:
            early: Ask for a trial before the rest is over (everything else is resting too).

        Raises:
            BreakerOpen: A breaker is resting.
            UpstreamError: `THROTTLED` while the upstream wants to be left alone after a 429,
                `LOCAL` where our own limit of calls there is reached.
        """
        if (wait := self.gate.wait(now)) > CLOCK_SLACK_SECONDS:
            raise UpstreamError(
                FailureKind.THROTTLED, "it asked us to wait", code="rate_limit_exceeded", retry_after=wait
            )
        if self.full:
            raise UpstreamError(FailureKind.LOCAL, "as many calls as allowed are there already")
        if not early:
            return self.breakers.acquire(model, now)
        permit = self.breakers.acquire_early(model, now)
        if permit is None:
            raise BreakerOpen(self.breakers.rest(model, now) or BUSY_SECONDS)
        return permit

    def admits(self, model: str, now: float) -> bool:
        """Whether an attempt would be admitted now; nothing is taken."""
        return (
            self.gate.wait(now) <= CLOCK_SLACK_SECONDS
            and not self.full
            and self.breakers.rest(model, now) <= 0
        )

    def learn(self, error: UpstreamError, model: str, now: float) -> None:
        """Remember what a failure says about the time after it, for everybody's calls."""
        if error.personal:
            return
        if error.kind is FailureKind.THROTTLED:
            self.gate.close(error.retry_after, now)
        elif error.kind is FailureKind.MODEL_NOT_FOUND:
            if len(self.missing) >= 1000:
                self.missing.clear()
            self.missing[model] = now + MISSING_SECONDS

    def misses(self, model: str, now: float) -> bool:
        """Whether the provider said lately that it does not have *model*."""
        until = self.missing.get(model)
        return until is not None and now < until


def preferred(upstreams: Sequence[Upstream], controls: Controls) -> Sequence[Upstream]:
    """
    Return those that the caller wants to be asked, in its order, or else all of *upstreams*.

    Raises:
        CallerError: It named one that is not there.
    """
    chain = upstreams
    if controls.providers:
        by_name = {upstream.name: upstream for upstream in upstreams}
        if unknown := next((name for name in controls.providers if name not in by_name), None):
            message = (
                f"x-sentinel-providers: there is no provider {unknown!r}; there are {', '.join(by_name)}"
            )
            raise CallerError(message, code="unknown_provider")
        chain = [by_name[name] for name in dict.fromkeys(controls.providers)]
    return chain[:1] if controls.no_failover else chain
