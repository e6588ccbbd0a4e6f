"""When a hedge is due, and whether it can be paid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.resilience.hedge import (
    BURST,
    LEAST_SAMPLES,
    LEAST_SECONDS,
    MAX_MODELS,
    MAX_SAMPLES,
    REFRESH_SECONDS,
    WINDOW_SECONDS,
    FirstTokens,
    HedgeBudget,
    percentile_95,
)


def noted(*seconds: float, at: float = 1000.0) -> FirstTokens:
    first_tokens = FirstTokens()
    for each in seconds:
        first_tokens.note("openai", "m", each, at)
    return first_tokens


class TestBudget:
    def test_five_may_come_at_once(self) -> None:
        budget = HedgeBudget(0.05)

        assert [budget.take() for _ in range(BURST + 1)] == [True] * BURST + [False]

        assert budget.spent
        assert repr(budget) == "<HedgeBudget of 0.00 tokens>"

    def test_then_twenty_calls_pay_for_one(self) -> None:
        budget = HedgeBudget(0.05)
        for _ in range(BURST):
            budget.take()

        granted = []
        for _ in range(40):
            budget.note_call()
            granted.append(budget.take())

        assert [number for number, yes in enumerate(granted, 1) if yes] == [20, 40]

    def test_what_is_not_spent_is_saved_up_to_the_burst(self) -> None:
        budget = HedgeBudget(0.5)
        for _ in range(1000):
            budget.note_call()

        assert sum(budget.take() for _ in range(10)) == BURST

    def test_no_share_is_no_hedge(self) -> None:
        budget = HedgeBudget(0.0)
        for _ in range(1000):
            budget.note_call()

        assert not budget.take()


class TestFirstTokens:
    def test_of_too_few_nothing_is_concluded(self) -> None:
        assert noted(*[2.0] * (LEAST_SAMPLES - 1)).late_after("openai", "m", 1000.0) is None
        assert noted(*[2.0] * LEAST_SAMPLES).late_after("openai", "m", 1000.0) == 2.0

    def test_late_is_later_than_nineteen_of_twenty(self) -> None:
        first_tokens = noted(*[2.0] * 94, *[4.0] * 2, *[30.0] * 4)

        assert first_tokens.late_after("openai", "m", 1000.0) == 4.0

    def test_nothing_is_late_within_a_second(self) -> None:
        assert noted(*[0.2] * LEAST_SAMPLES).late_after("openai", "m", 1000.0) == LEAST_SECONDS

    @pytest.mark.parametrize(("provider", "model"), [("ollama", "m"), ("openai", "o3")])
    def test_providers_and_models_are_told_apart(self, provider: str, model: str) -> None:
        assert noted(*[2.0] * LEAST_SAMPLES).late_after(provider, model, 1000.0) is None

    def test_after_five_minutes_it_is_forgotten(self) -> None:
        first_tokens = noted(*[9.0] * LEAST_SAMPLES, at=1000.0)
        for _ in range(LEAST_SAMPLES):
            first_tokens.note("openai", "m", 2.0, 1200.0)

        later = 1000.0 + WINDOW_SECONDS

        assert first_tokens.late_after("openai", "m", later - 0.1) == 9.0
        assert first_tokens.late_after("openai", "m", later + REFRESH_SECONDS) == 2.0
        assert first_tokens.late_after("openai", "m", later + WINDOW_SECONDS) is None

    def test_of_a_busy_window_the_latest_count(self) -> None:
        first_tokens = noted(*[9.0] * 500, *[2.0] * MAX_SAMPLES)

        assert first_tokens.late_after("openai", "m", 1000.0) == 2.0

    def test_it_is_computed_once_a_second(self) -> None:
        first_tokens = noted(*[2.0] * LEAST_SAMPLES)
        first_tokens.late_after("openai", "m", 1000.0)
        for _ in range(LEAST_SAMPLES):
            first_tokens.note("openai", "m", 5.0, 1000.0)

        assert first_tokens.late_after("openai", "m", 1000.0 + REFRESH_SECONDS / 2) == 2.0
        assert first_tokens.late_after("openai", "m", 1000.0 + REFRESH_SECONDS) == 5.0

    def test_invented_models_take_bounded_room(self) -> None:
        first_tokens = noted(*[2.0] * LEAST_SAMPLES)
        for number in range(MAX_MODELS):
            first_tokens.note("openai", f"invented-{number}", 2.0, 1000.0)

        assert repr(first_tokens) == f"<FirstTokens of {MAX_MODELS} models>"
        assert first_tokens.late_after("openai", "m", 1000.0) is None


@given(st.lists(st.floats(0, 300), min_size=1, max_size=200))
def test_at_most_one_in_twenty_is_beyond_the_percentile(values: list[float]) -> None:
    late = percentile_95(values)

    assert late in values
    assert sum(value > late for value in values) * 20 <= len(values)
    assert sum(value < late for value in values) * 20 < len(values) * 19
