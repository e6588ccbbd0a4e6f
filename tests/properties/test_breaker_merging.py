"""What becomes of a breaker that several replicas have moved, whoever hears of whom first."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.stores.records import RANKS, BreakerRecord, aged, merged

# Few values each, so that records often differ in one thing only, or in nothing.
RECORDS: Final = st.builds(
    BreakerRecord,
    provider=st.just("openai"),
    model=st.none(),
    state=st.sampled_from(sorted(RANKS)),
    orders=st.integers(0, 2),
    era=st.integers(0, 4),
    rest_seconds=st.sampled_from([0.0, 10.0, 30.0, math.inf]),
    since_seconds=st.sampled_from([0.0, 5.0]),
    level=st.integers(0, 1),
    reason=st.sampled_from(["", "maintenance"]),
    replica=st.sampled_from("ABC"),
)
THREE: Final = st.lists(RECORDS, min_size=3, max_size=3)
WAYS: Final = list(itertools.permutations(range(3), 2))  # who tells whom
GOSSIP: Final = st.lists(st.sampled_from(WAYS), max_size=12)


def gossip(records: Sequence[BreakerRecord], ways: Sequence[tuple[int, int]]) -> list[BreakerRecord]:
    """Let the first of each pair tell the second what it holds; return what each holds in the end."""
    held = list(records)
    for teller, hearer in ways:
        held[hearer] = merged(held[hearer], held[teller])
    return held


@given(RECORDS, RECORDS)
def test_it_does_not_matter_who_hears_of_whom(ours: BreakerRecord, theirs: BreakerRecord) -> None:
    assert merged(ours, theirs) == merged(theirs, ours)


@given(RECORDS)
def test_a_record_stands_against_itself(record: BreakerRecord) -> None:
    assert merged(record, record) == record


@given(RECORDS, RECORDS)
def test_what_stands_stands_against_what_it_was_made_of(ours: BreakerRecord, theirs: BreakerRecord) -> None:
    stands = merged(ours, theirs)

    assert merged(stands, ours) == merged(stands, theirs) == stands


@given(RECORDS, RECORDS)
def test_what_stands_is_one_of_the_two_but_for_its_era(ours: BreakerRecord, theirs: BreakerRecord) -> None:
    stands = merged(ours, theirs)

    assert replace(stands, era=0) in (replace(ours, era=0), replace(theirs, era=0))


@given(RECORDS, RECORDS)
def test_who_held_another_state_has_seen_a_transition(ours: BreakerRecord, theirs: BreakerRecord) -> None:
    stands = merged(ours, theirs)

    assert all(stands.era > held.era for held in (ours, theirs) if held.state != stands.state)


@given(RECORDS, RECORDS)
def test_an_era_never_goes_back(ours: BreakerRecord, theirs: BreakerRecord) -> None:
    assert merged(ours, theirs).era >= max(ours.era, theirs.era)


@given(THREE, GOSSIP, st.permutations(WAYS), st.permutations(WAYS))
def test_three_replicas_agree_in_the_end_in_whatever_order_they_gossip(
    records: list[BreakerRecord],
    ways: list[tuple[int, int]],
    once: list[tuple[int, int]],
    again: list[tuple[int, int]],
) -> None:
    held = gossip(records, [*ways, *once, *again])

    assert len(set(held)) == 1
    assert gossip(held, WAYS) == held


@given(THREE, st.permutations(range(3)), st.permutations(range(3)))
def test_three_replicas_agree_once_each_has_asked_the_store_twice(
    records: list[BreakerRecord], once: list[int], again: list[int]
) -> None:
    held = list(records)
    stored = held[once[0]]
    for replica in [*once, *again]:
        stored = held[replica] = merged(stored, held[replica])

    assert held == [stored] * 3


@given(THREE, GOSSIP, st.permutations(WAYS), st.permutations(WAYS))
def test_no_order_of_an_operator_is_lost_to_calls(
    records: list[BreakerRecord],
    ways: list[tuple[int, int]],
    once: list[tuple[int, int]],
    again: list[tuple[int, int]],
) -> None:
    latest = max(record.orders for record in records)
    ordered = {record.state for record in records if record.orders == latest}

    stands, *_ = gossip(records, [*ways, *once, *again])

    assert stands.orders == latest
    assert stands.state in ordered


@given(RECORDS, st.integers(-60, 60), st.integers(0, 60))
def test_ageing_twice_is_ageing_once(record: BreakerRecord, before: int, after: int) -> None:
    passed = max(0, before) + after

    assert aged(aged(record, before), after) == aged(record, passed)
    assert 0.0 <= aged(record, passed).rest_seconds <= record.rest_seconds
