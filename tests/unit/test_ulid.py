"""Names that sort by time."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.ulid import ALPHABET, Ulids


def test_it_is_written_as_the_specification_has_it() -> None:
    ulids = Ulids(lambda bits: 0)

    name = ulids.mint(1_469_918_176.385)

    assert name == "01ARYZ6S41" + "0" * 16  # the time of the specification's own example


@given(st.lists(st.floats(0, 2**33)), st.integers(0, 2**79 - 1))
def test_each_is_greater_than_the_one_before_whatever_the_clock_does(times: list[float], chance: int) -> None:
    ulids = Ulids(lambda bits: chance)

    names = [ulids.mint(time) for time in times]

    assert all(earlier < later for earlier, later in pairwise(names))
    assert all(len(name) == 26 and set(name) <= set(ALPHABET) for name in names)


def test_two_processes_that_begin_at_once_do_not_collide() -> None:
    names = {Ulids().mint(1_772_359_200.0) for _ in range(100)}

    assert len(names) == 100
