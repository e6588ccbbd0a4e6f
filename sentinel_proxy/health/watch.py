"""
One provider under observation: what its probes have said, and what follows.

A probe is free and proves little: that somebody is there, not that models answer. So it may
open a breaker, and it may end a rest early if it was the probes that had failed, but it never
closes a breaker: the next real call does.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from sentinel_proxy.errors import BreakerOpen, FailureKind, UpstreamError
from sentinel_proxy.health.probe import Answer
from sentinel_proxy.health.traffic import Traffic
from sentinel_proxy.model import ProbeResult, Verdict
from sentinel_proxy.providers.base import ModelEntry
from sentinel_proxy.resilience.breaker import Breaker, State
from sentinel_proxy.upstream.upstream import Upstream

MIN_REST_SECONDS: Final = 5.0
"""A rest lasts at least so long, or half of `recovery_timeout`: what has just come up may fall again."""


class Watch:
    """
    What is known of one provider's health.

    Attributes:
        last: Its latest probe.
        traffic: How recent calls went.
        missing: Models that calls would be sent to there, and that it does not list.
        busy: Held while it is being asked.
        untold: Whether what it lists was too long for another replica to tell, so that it must be asked here.
        warmed: Whether it was made ready in the present outage of those before it.
    """

    def __init__(self, upstream: Upstream, recovery_timeout: float) -> None:
        self.upstream = upstream
        self.last: ProbeResult | None = None
        self.traffic = Traffic()
        self.missing: tuple[str, ...] = ()
        self.busy = asyncio.Lock()
        self.untold = False
        self.warmed = False
        self._answered_since = False  # a call was answered well after the latest probe
        self._least_rest = min(MIN_REST_SECONDS, recovery_timeout / 2)
        self._probes_failed = False  # since the outage, if there is one, began to show
        self._own_votes = 0  # failures that the breaker holds against it, if all of them are probes'

    def __repr__(self) -> str:
        return (
            f"<Watch {self.upstream.name} {self.last.verdict.value if self.last is not None else 'unknown'}>"
        )

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.upstream.name

    @property
    def ails(self) -> bool:
        """Whether its latest probe failed, and no call has told otherwise: who answers calls is not asked."""
        return self.last is not None and self.last.verdict is Verdict.FAILED and not self._answered_since

    def take(self, answer: Answer, era: int, now: float) -> None:
        """
        Let an answer have its consequences.

        Args:
            era: Of the provider's breaker when it was asked: what has moved since, moved on
                fresher news.
        """
        self.hear(answer.verdict, answer.kind, answer.retry_after, now)
        if answer.error is not None and answer.verdict is Verdict.FAILED:
            self._vote(answer.error, era, now)
        elif answer.verdict is Verdict.PASSED:
            self._take_back(now)
            self._end_rest_early(now)

    def hear(self, verdict: Verdict, kind: FailureKind | None, retry_after: float | None, now: float) -> None:
        """
        Take note of a probe, whoever made it; what becomes of the breakers is not decided here.

        Args:
            retry_after: Seconds, of a 429; None: it did not say.
        """
        self._answered_since = False
        if kind is FailureKind.THROTTLED:
            self.upstream.gate.close(retry_after, now)
        if verdict is Verdict.FAILED or kind is FailureKind.CREDENTIAL:
            # A refused credential is no vote, but the first probe that passes tells that it works again.
            self._probes_failed = True
        elif verdict is Verdict.PASSED and not self._resting():
            self._probes_failed = self._probes_failed and self.upstream.breakers.own.state is not State.CLOSED

    def _vote(self, error: UpstreamError, era: int, now: float) -> None:
        """Vote as a failed call does. The permit is asked for only now, lest a probe keep out a call."""
        own = self.upstream.breakers.own
        if own.era != era:
            return
        try:
            permit = own.acquire(now)
        except BreakerOpen:
            return
        before = own.failures
        reason = f"{error.kind.value} (probe)"
        permit.fail(now, reason, opens=error.consequence.opens)
        self._own_votes = own.failures if before in (0, self._own_votes) else 0

    def _take_back(self, now: float) -> None:
        """
        Withdraw what only probes hold against the provider: three blips in three days are no run.

        Failures of calls are not a probe's to forgive.
        """
        own = self.upstream.breakers.own
        if own.state is State.CLOSED and own.failures == self._own_votes > 0:
            own.acquire(now).succeed(now)
        self._own_votes = 0

    def _end_rest_early(self, now: float) -> None:
        resting = self._resting()
        least_rest_over = now - max((each.since or 0.0 for each in resting), default=now) >= self._least_rest
        if resting and self._probes_failed and least_rest_over:
            self._probes_failed = False
            self.upstream.breakers.advance(now)

    def _resting(self) -> list[Breaker]:
        breakers = self.upstream.breakers
        return [each for each in (breakers.own, *breakers.models_view().values()) if each.state is State.OPEN]

    def heard_good(self, seconds: float, now: float) -> None:
        """A call was answered well."""
        self._answered_since = True
        self._own_votes = 0
        self.traffic.good(seconds, now)

    def missed(self, entries: Sequence[ModelEntry]) -> tuple[str, ...]:
        """Return the mapped models that the provider does not list; none where it lists nothing."""
        provider = self.upstream.provider
        listed = {entry.id for entry in entries}
        missing = {}
        for name, target in provider.models.items():
            offered = provider.offers(name)
            if offered is None:
                offered = target in listed or not listed
            if not offered:
                missing[target] = True
        return tuple(missing)
