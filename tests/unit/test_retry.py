"""Another try at the same provider: whether, when, and how often."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.config import RetryConfig
from sentinel_proxy.errors import CONSEQUENCES, BreakerOpen, FailureKind, Retry, UpstreamError
from sentinel_proxy.resilience.budget import FREE_RETRIES, RetryBudget
from sentinel_proxy.resilience.retry import PATIENCE_SECONDS, RetryPolicy
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

FAR = 1e9  # a deadline that does not matter


def failure(kind: FailureKind = FailureKind.OVERLOADED, retry_after: float | None = None) -> UpstreamError:
    return UpstreamError(kind, "it failed", retry_after=retry_after)


def highest(low: float, high: float) -> float:
    """Jitter at its longest."""
    return high


class Script:
    """An attempt that plays one outcome after another and counts how often it was made."""

    def __init__(self, *outcomes: BaseException | str) -> None:
        self._outcomes = list(outcomes)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Trial:
    """One call's retries under a fake clock."""

    def __init__(
        self, uniform: Callable[[float, float], float] = highest, share: float = 1.0, **settings: Any
    ) -> None:
        self.clock = FakeClock()
        self.policy = RetryPolicy(RetryConfig(**settings), self.clock, uniform)
        self.budget = RetryBudget(share)
        self.pauses: list[float] = []

    async def again(
        self,
        script: Script,
        first: UpstreamError,
        *,
        alone: bool = True,
        deadline: float = FAR,
        retried_by_client: bool = False,
    ) -> str:
        return await self.policy.again(
            script,
            first,
            alone=alone,
            deadline=deadline,
            budget=self.budget,
            on_retry=self.pauses.append,
            retried_by_client=retried_by_client,
        )

    async def outcome(self, script: Script, first: UpstreamError, **rules: Any) -> str | UpstreamError:
        """Return what `again` returns or the failure it raises."""
        try:
            return await self.again(script, first, **rules)
        except UpstreamError as error:
            return error


@pytest.mark.parametrize("kind", FailureKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "another is left"])
def test_the_table_of_consequences_decides(kind: FailureKind, alone: bool) -> None:
    policy = Trial().policy
    expected = {Retry.NEVER: False, Retry.ALONE: alone, Retry.ALWAYS: True}

    allowed = policy.may_retry(failure(kind, retry_after=0.5), alone=alone, retried_by_client=False)

    assert allowed is expected[CONSEQUENCES[kind].retry]


@pytest.mark.parametrize(
    ("retry_after", "alone", "allowed"),
    [
        pytest.param(5.0, True, True, id="alone, at the limit"),
        pytest.param(5.1, True, False, id="alone, above the limit"),
        pytest.param(PATIENCE_SECONDS, False, True, id="another is left, a short wait"),
        pytest.param(1.1, False, False, id="another is left, a longer wait"),
        pytest.param(None, False, True, id="nothing asked"),
    ],
)
def test_a_long_retry_after_means_no_retry(retry_after: float | None, alone: bool, allowed: bool) -> None:
    policy = Trial(retry_after_limit=5).policy

    error = failure(retry_after=retry_after)

    assert policy.may_retry(error, alone=alone, retried_by_client=False) is allowed


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "another is left"])
async def test_g11_the_retry_of_a_client_is_only_retried_where_no_other_provider_is_left(alone: bool) -> None:
    trial, script, first = Trial(), Script("hello"), failure()

    outcome = await trial.outcome(script, first, alone=alone, retried_by_client=True)

    assert (outcome, script.made) == (("hello", 1) if alone else (first, 0))


async def test_a_retry_returns_what_the_next_attempt_returns() -> None:
    trial, script = Trial(backoff=0.25), Script("hello")

    assert await trial.again(script, failure()) == "hello"

    assert (script.made, trial.pauses, trial.clock.sleeps) == (1, [0.25], [0.25])
    assert repr(trial.policy) == "<RetryPolicy of 2 attempts>"


async def test_b15_a_short_retry_after_is_waited_for_exactly() -> None:
    trial, script = Trial(), Script("hello")

    assert await trial.again(script, failure(FailureKind.THROTTLED, retry_after=1.5)) == "hello"

    assert trial.clock.sleeps == [1.5]


async def test_after_a_429_without_a_number_the_pause_is_that_of_our_own_gate() -> None:
    trial, script = Trial(), Script("hello")

    await trial.again(script, failure(FailureKind.THROTTLED))

    assert trial.clock.sleeps == [5.0]


async def test_a_retry_after_of_zero_is_jittered_like_none() -> None:
    trial, script = Trial(backoff=0.25), Script("hello")

    await trial.again(script, failure(retry_after=0.0))

    assert trial.clock.sleeps == [0.25]


@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_g01_there_are_never_more_attempts_than_configured(attempts: int) -> None:
    trial = Trial(attempts=attempts)
    script = Script(*(failure() for _ in range(10)))

    with pytest.raises(UpstreamError):
        await trial.again(script, failure())

    assert 1 + script.made == attempts
    assert len(trial.pauses) == attempts - 1


async def test_the_last_failure_is_the_one_that_is_told() -> None:
    trial, last = Trial(), failure(FailureKind.RESET)

    with pytest.raises(UpstreamError) as caught:
        await trial.again(Script(last), failure())

    assert caught.value is last


async def test_a_failure_that_no_retry_can_help_ends_the_tries() -> None:
    trial, script = Trial(attempts=5), Script(failure(FailureKind.CREDENTIAL), "never reached")

    with pytest.raises(UpstreamError):
        await trial.again(script, failure())

    assert script.made == 1


async def test_the_backoff_doubles_up_to_its_ceiling() -> None:
    trial = Trial(attempts=7, backoff=0.25, max_backoff=2)
    script = Script(*(failure() for _ in range(6)))
    for _ in range(10):
        trial.budget.note_call(trial.clock.monotonic())

    with pytest.raises(UpstreamError):
        await trial.again(script, failure())

    assert trial.pauses == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]


async def test_after_a_dictated_wait_the_backoff_starts_from_its_base_again() -> None:
    trial = Trial(attempts=5, backoff=0.25)
    script = Script(failure(), failure(retry_after=3.0), failure(), "hello")
    for _ in range(10):
        trial.budget.note_call(trial.clock.monotonic())

    await trial.again(script, failure())

    assert trial.pauses == [0.25, 0.5, 3.0, 0.25]


@given(
    seed=st.integers(),
    backoff=st.floats(0, 10),
    max_backoff=st.floats(0, 10),
    doublings=st.integers(1, FREE_RETRIES),
)
def test_g02_jitter_stays_within_its_bounds(
    seed: int, backoff: float, max_backoff: float, doublings: int
) -> None:
    trial = Trial(
        random.Random(seed).uniform, attempts=doublings + 1, backoff=backoff, max_backoff=max_backoff
    )
    script = Script(*(failure() for _ in range(doublings)))

    with pytest.raises(UpstreamError):
        asyncio.run(trial.again(script, failure()))

    assert len(trial.pauses) == doublings
    for n, pause in enumerate(trial.pauses):
        assert 0 <= pause <= min(max_backoff, backoff * 2**n)


async def test_jitter_is_drawn_from_the_whole_interval() -> None:
    asked: list[tuple[float, float]] = []

    def middle(low: float, high: float) -> float:
        asked.append((low, high))
        return (low + high) / 2

    trial = Trial(middle, backoff=0.5)
    await trial.again(Script("hello"), failure())

    assert (asked, trial.pauses) == ([(0.0, 0.5)], [0.25])


@pytest.mark.parametrize(
    ("left", "sleeps"),
    [
        pytest.param(2.0, [], id="passes before the pause is over"),
        pytest.param(5.0, [], id="passes just then"),
        pytest.param(5.1, [5.0], id="leaves a little"),
    ],
)
async def test_g03_no_pause_reaches_the_deadline(left: float, sleeps: list[float]) -> None:
    trial, first = Trial(), failure(retry_after=5.0)
    script = Script("hello")

    outcome = await trial.outcome(script, first, deadline=trial.clock.monotonic() + left)

    assert trial.clock.sleeps == sleeps
    assert outcome == ("hello" if sleeps else first)


async def test_where_another_provider_is_left_a_long_backoff_means_failing_over() -> None:
    trial, script, first = Trial(backoff=1.5), Script("hello"), failure()

    with pytest.raises(UpstreamError) as caught:
        await trial.again(script, first, alone=False)

    assert (caught.value, script.made, trial.pauses) == (first, 0, [])


async def test_g04_an_empty_budget_means_no_retry() -> None:
    trial, script, first = Trial(share=0.2), Script("hello"), failure()
    while trial.budget.take(trial.clock.monotonic()):
        pass

    with pytest.raises(UpstreamError) as caught:
        await trial.again(script, first)

    assert (caught.value, script.made, trial.clock.sleeps) == (first, 0, [])


@pytest.mark.parametrize(
    ("first", "alone", "seconds_left", "settings"),
    [
        pytest.param(failure(FailureKind.TIMEOUT), True, 60.0, {}, id="no retry can help"),
        pytest.param(failure(retry_after=60.0), True, 90.0, {}, id="too long a wait"),
        pytest.param(failure(), True, 0.1, {}, id="no time left"),
        pytest.param(failure(), True, 60.0, {"attempts": 1}, id="retries switched off"),
        pytest.param(failure(), False, 60.0, {"backoff": 2}, id="failing over is quicker"),
    ],
)
async def test_a_retry_that_is_not_made_is_not_charged(
    first: UpstreamError, alone: bool, seconds_left: float, settings: dict[str, Any]
) -> None:
    trial = Trial(**settings)

    with pytest.raises(UpstreamError):
        await trial.again(Script(), first, alone=alone, deadline=trial.clock.monotonic() + seconds_left)

    assert repr(trial.budget) == "<RetryBudget 0 retries for 0 calls>"


async def test_g12_cancelling_the_pause_stops_at_once() -> None:
    """On a real loop, in a pause that would last for a minute."""
    paused = asyncio.Event()

    class Sleepy(FakeClock):
        async def sleep(self, seconds: float) -> None:
            paused.set()
            await asyncio.sleep(60)

    policy = RetryPolicy(RetryConfig(attempts=5), Sleepy(), highest)
    script = Script("never reached")
    call = asyncio.create_task(
        policy.again(
            script, failure(), alone=True, deadline=FAR, budget=RetryBudget(1.0), on_retry=lambda pause: None
        )
    )
    await paused.wait()

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 1)

    assert script.made == 0


@pytest.mark.parametrize(
    "foreign",
    [asyncio.CancelledError(), BreakerOpen(30.0), ZeroDivisionError()],
    ids=["cancelled", "the breaker has opened", "a bug of ours"],
)
async def test_g12_what_is_no_failure_of_the_upstream_is_never_retried(foreign: BaseException) -> None:
    """tenacity captures every BaseException; only what is on our list may stay captured."""
    trial, script = Trial(attempts=5), Script(foreign, "never reached")

    with pytest.raises(type(foreign)) as caught:
        await trial.again(script, failure())

    assert caught.value is foreign
    assert script.made == 1
