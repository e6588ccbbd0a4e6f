"""Of the records of a breaker a Redis lets stand what `records.merged` says, by script and without."""

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_backing import RedisBacking, with_scripts, without_scripts
from stores_support import opened

from sentinel_proxy.stores.base import Store
from sentinel_proxy.stores.records import RANKS, BreakerRecord, aged, merged

# Few values each, so that records often differ in one thing only; texts whose order is another one
# by code point, by UTF-16 and by any language.
TEXTS: Final = st.text("aBb_é中\uffee💥\x00", max_size=2)
RECORDS: Final = st.builds(
    BreakerRecord,
    provider=st.just("openai"),
    model=st.none(),
    state=st.sampled_from(sorted(RANKS)),
    orders=st.integers(0, 2),
    era=st.integers(0, 4) | st.just(10**9),
    rest_seconds=st.sampled_from([0.0, 10.0, 10.001, 30.0, math.inf]),
    since_seconds=st.sampled_from([0.0, 5.0, 5.001]),
    level=st.integers(0, 1),
    reason=TEXTS,
    replica=TEXTS,
)
PAUSES: Final = st.sampled_from([0.0, 0.25, 5.0, 10.0, 40.0])

Fixture = tuple[asyncio.Runner, RedisBacking, Store]


@pytest.fixture(scope="module", params=[with_scripts, without_scripts])
def redis(request: pytest.FixtureRequest) -> Iterator[Fixture]:
    """One open store for all examples, and what runs it."""
    with asyncio.Runner() as runner:
        backing_context = request.param(Path())
        backing = runner.run(backing_context.__aenter__())
        store_context = opened(backing.store())
        store = runner.run(store_context.__aenter__())
        yield runner, backing, store
        runner.run(store_context.__aexit__(None, None, None))
        runner.run(backing_context.__aexit__(None, None, None))


def in_milliseconds(record: BreakerRecord) -> BreakerRecord:
    """Return *record* as far as a store that counts in milliseconds can tell."""
    return replace(
        record, rest_seconds=round(record.rest_seconds, 3), since_seconds=round(record.since_seconds, 3)
    )


numbers = count()


@settings(max_examples=200)
@given(story=st.lists(st.tuples(PAUSES, RECORDS), min_size=1, max_size=6))
def test_what_stands_is_what_stands_in_python(
    redis: Fixture, story: list[tuple[float, BreakerRecord]]
) -> None:
    runner, backing, store = redis
    model = f"{next(numbers)}"  # a breaker of its own for each example
    known: BreakerRecord | None = None

    for pause, record in story:
        backing.clock.advance(pause)
        told = replace(record, model=model)
        known = told if known is None else in_milliseconds(merged(aged(known, pause), told))

        assert in_milliseconds(runner.run(store.merge_breaker(told))) == known

    assert known in [in_milliseconds(each) for each in runner.run(store.breakers())]
