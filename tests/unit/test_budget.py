"""How many retries an upstream may be burdened with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.resilience.budget import FREE_RETRIES, WINDOW_SECONDS, RetryBudget


def granted(budget: RetryBudget, now: float, asked: int) -> int:
    return sum(budget.take(now) for _ in range(asked))


@pytest.mark.parametrize(
    ("share", "calls", "retries"),
    [
        pytest.param(0.2, 0, 3, id="no calls: three are free"),
        pytest.param(0.2, 10, 3, id="two would be the share: three are free"),
        pytest.param(0.2, 100, 20, id="the share"),
        pytest.param(0.0, 100, 3, id="no share: three are free"),
        pytest.param(1.0, 100, 100, id="as many as calls"),
    ],
)
def test_retries_are_a_share_of_recent_calls(share: float, calls: int, retries: int) -> None:
    budget = RetryBudget(share)
    for _ in range(calls):
        budget.note_call(1000.5)

    assert granted(budget, 1000.9, asked=200) == retries
    assert repr(budget) == f"<RetryBudget {retries} retries for {calls} calls>"


def test_a_refused_retry_is_not_charged() -> None:
    budget = RetryBudget(0.2)
    granted(budget, 1000.0, asked=50)

    for _ in range(20):
        budget.note_call(1000.0)

    assert granted(budget, 1000.0, asked=50) == 1  # 20 % of 20 calls, three of them used


def test_what_is_older_than_the_window_is_forgotten() -> None:
    budget = RetryBudget(0.2)
    for _ in range(100):
        budget.note_call(1000.0)
    granted(budget, 1000.0, asked=20)

    assert not budget.take(1009.9)
    assert granted(budget, 1010.0, asked=50) == FREE_RETRIES
    assert repr(budget) == "<RetryBudget 3 retries for 0 calls>"


def test_a_long_silence_empties_the_window() -> None:
    budget = RetryBudget(0.2)
    for second in range(WINDOW_SECONDS):
        budget.note_call(1000.0 + second)

    budget.note_call(5_000_000.0)

    assert repr(budget) == "<RetryBudget 0 retries for 1 calls>"


@given(
    share=st.floats(0, 1),
    steps=st.lists(st.tuples(st.floats(0, 15), st.booleans()), max_size=80),
)
def test_the_window_holds_what_the_last_ten_seconds_hold(
    share: float, steps: list[tuple[float, bool]]
) -> None:
    """Against a log of everything that happened, kept to the second."""
    budget, now = RetryBudget(share), 1000.0
    calls: list[int] = []
    retries: list[int] = []
    for pause, is_call in steps:
        now += pause
        second = int(now)
        recent_calls = sum(at > second - WINDOW_SECONDS for at in calls)
        recent_retries = sum(at > second - WINDOW_SECONDS for at in retries)
        if is_call:
            budget.note_call(now)
            calls.append(second)
            continue

        allowed = recent_retries < FREE_RETRIES or recent_retries + 1 <= share * recent_calls

        assert budget.take(now) is allowed
        if allowed:
            retries.append(second)
