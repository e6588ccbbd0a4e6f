"""
Another try at the same provider: whether, when, and how often.

tenacity runs the loop, and only once a first attempt has failed, so a call that goes well never
builds any of this. What it is told here are the rules that it cannot know: which failures can
pass by themselves, what the upstream said about waiting, that the next provider is often the
better retry, the call's deadline, and the budget. Failing over is `failover`'s business.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState

from sentinel_proxy.clock import Clock
from sentinel_proxy.config import RetryConfig
from sentinel_proxy.errors import FailureKind, Retry, UpstreamError
from sentinel_proxy.resilience.budget import RetryBudget
from sentinel_proxy.resilience.gate import UNSAID_SECONDS

T = TypeVar("T")

PATIENCE_SECONDS: Final = 1.0
"""Where another provider is left, a longer pause costs the caller more than failing over does."""


class RetryPolicy:
    """
    Decides about further tries at the same provider; shared by all calls.

    Args:
        uniform: `random.uniform`, or what a test puts in its place.
    """

    def __init__(self, settings: RetryConfig, clock: Clock, uniform: Callable[[float, float], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._uniform = uniform

    def __repr__(self) -> str:
        return f"<RetryPolicy of {self._settings.attempts} attempts>"

    def may_retry(self, error: UpstreamError, *, alone: bool, retried_by_client: bool) -> bool:
        """
        Whether *error* leaves room for another try at the same provider.

        Args:
            alone: No other provider is left to try.
            retried_by_client: The caller's SDK is retrying already
                (`x-stainless-retry-count`); ours would multiply with its own.
        """
        retry = error.consequence.retry
        if retry is Retry.NEVER or (not alone and (retry is Retry.ALONE or retried_by_client)):
            return False
        limit = self._settings.retry_after_limit
        return _dictated_seconds(error) <= (limit if alone else min(limit, PATIENCE_SECONDS))

    async def again(
        self,
        attempt: Callable[[], Awaitable[T]],
        first: UpstreamError,
        *,
        alone: bool,
        deadline: float,
        budget: RetryBudget,
        on_retry: Callable[[float], None],
        retried_by_client: bool = False,
    ) -> T:
        """
        Try again after *first*, as often as the rules allow, and return what *attempt* returns.

        Cancelling ends a pause at once and no further attempt is made.

        Args:
            deadline: Monotonic seconds; no pause reaches it.
            budget: Charged for a retry just before its pause, and never for one not made.
            on_retry: Told the pause in seconds before it begins.

        Raises:
            UpstreamError: The last failure: *first* itself if there is to be no retry.
            BaseException: Whatever else *attempt* raises, at once and unchanged.
        """
        if not self.may_retry(first, alone=alone, retried_by_client=retried_by_client):
            raise first
        unspent = [first]

        async def attempt_or_first() -> T:
            """Let tenacity see the failure that has already happened as its first attempt."""
            if unspent:
                raise unspent.pop()
            return await attempt()

        def retriable(state: RetryCallState) -> bool:
            """An allow-list: a predicate that says yes to everything would swallow cancellation."""
            error = _error(state)
            return isinstance(error, UpstreamError) and self.may_retry(
                error, alone=alone, retried_by_client=retried_by_client
            )

        def exhausted(state: RetryCallState) -> bool:
            """Asked last, with the pause known, so that the budget pays only for what happens."""
            pause, now = state.upcoming_sleep, self._clock.monotonic()
            return (
                state.attempt_number >= self._settings.attempts
                or (not alone and pause > PATIENCE_SECONDS)
                or now + pause >= deadline
                or not budget.take(now)
            )

        retrying = AsyncRetrying(
            retry=retriable,
            wait=_Pauses(self._settings, self._uniform),
            stop=exhausted,
            sleep=self._clock.sleep,
            before_sleep=lambda state: on_retry(state.upcoming_sleep),
            reraise=True,
        )
        try:
            return await retrying(attempt_or_first)
        finally:
            retrying.iter_state.reset()  # what it was about to do knows it: a cycle, and the call in it


class _Pauses:
    """
    The pauses of one call: what the upstream asked for, else full jitter.

    The n-th pause of our own is uniform(0, min(max_backoff, backoff * 2**n)), n from 0. After
    one that the upstream dictated, n starts anew, as in gRPC: it knows better than our guess.
    """

    def __init__(self, settings: RetryConfig, uniform: Callable[[float, float], float]) -> None:
        self._settings = settings
        self._uniform = uniform
        self._doublings = 0

    def __call__(self, state: RetryCallState) -> float:
        error = _error(state)
        assert isinstance(error, UpstreamError)
        if dictated := _dictated_seconds(error):
            self._doublings = 0
            return dictated
        ceiling = min(self._settings.max_backoff, self._settings.backoff * 2.0 ** min(self._doublings, 64))
        self._doublings += 1
        return self._uniform(0.0, ceiling)


def _error(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _dictated_seconds(error: UpstreamError) -> float:
    """
    Return how long the upstream wants to be left alone; 0 if it does not care.

    After a 429 without a number our own gate stays closed for `UNSAID_SECONDS`: trying earlier
    would only be refused by ourselves.
    """
    if error.retry_after is None:
        return UNSAID_SECONDS if error.kind is FailureKind.THROTTLED else 0.0
    return error.retry_after
