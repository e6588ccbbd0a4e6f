"""What stores keep: names, ages, and which incidents belong together."""

import math
from dataclasses import replace
from typing import Final

import pytest

from sentinel_proxy.stores.records import (
    KEPT_SECONDS,
    BreakerRecord,
    Contribution,
    SharedIncident,
    aged,
    joins,
    kept_seconds,
    merged,
)

OPEN: Final = BreakerRecord("openai", None, "open", 0, 1, 30.0, 2.0, 1, "3 failures in a row", "A")


def told(replica: str, *, ongoing: bool = True) -> Contribution:
    return Contribution("outage openai", replica, f"of {replica}", ongoing, b"{}")


def test_breakers_are_named_after_whose_they_are() -> None:
    assert OPEN.key == "openai"
    assert replace(OPEN, model="gpt-4o mini").key == "openai gpt-4o mini"


def test_a_rest_runs_down_while_the_time_since_then_runs_up() -> None:
    assert aged(OPEN, 10.0) == replace(OPEN, rest_seconds=20.0, since_seconds=12.0)
    assert aged(OPEN, 40.0) == replace(OPEN, rest_seconds=0.0, since_seconds=42.0)


def test_nothing_ages_backwards() -> None:
    assert aged(OPEN, -3600.0) == OPEN


def test_what_never_ends_does_not_come_nearer_to_its_end() -> None:
    assert math.isinf(aged(replace(OPEN, rest_seconds=math.inf), 1e9).rest_seconds)


@pytest.mark.parametrize(
    ("rest_seconds", "kept"),
    [(0.0, KEPT_SECONDS), (1800.0, KEPT_SECONDS), (3600.0, 7200.0), (math.inf, math.inf)],
)
def test_a_record_is_kept_until_well_after_its_rest(rest_seconds: float, kept: float) -> None:
    assert kept_seconds(replace(OPEN, rest_seconds=rest_seconds)) == kept


def test_an_order_that_comes_late_still_ends_the_era_of_who_went_on_without() -> None:
    ours = replace(OPEN, state="closed", orders=1, era=2, replica="B")

    assert merged(ours, replace(OPEN, era=9)) == replace(ours, era=10)


@pytest.mark.parametrize(
    ("known", "alive", "expected"),
    [
        pytest.param([told("A")], "AB", True, id="another calls it ongoing"),
        pytest.param([told("A", ongoing=False), told("C")], "ABC", True, id="one of many does"),
        pytest.param([told("A", ongoing=False)], "AB", False, id="it is over"),
        pytest.param([told("A")], "B", False, id="who calls it ongoing is dead"),
        pytest.param([told("A"), told("B", ongoing=False)], "AB", False, id="it has contributed"),
    ],
)
def test_which_incident_a_contribution_belongs_to(
    known: list[Contribution], alive: str, expected: bool
) -> None:
    assert joins(told("B"), SharedIncident("of A", known), frozenset(alive)) is expected
