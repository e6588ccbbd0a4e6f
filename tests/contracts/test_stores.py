"""
Every promise of `stores/base.py`, held against every store: a file, Redis in all its ways, and
the fake that unit tests use.

Time is the backing's fake clock, so that nothing here waits for a lease to run out.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from harness import eventually
from stores_support import ALONE, SHARED, Backing, listening, opened

from sentinel_proxy.model import Frame
from sentinel_proxy.resilience.rate_limit import UNLIMITED, Decision, SlidingLog
from sentinel_proxy.stores.base import News, Store, StoreAway
from sentinel_proxy.stores.records import (
    BreakerRecord,
    Contribution,
    Note,
    Resumed,
    SharedIncident,
    kept_seconds,
    merged,
)

pytestmark = pytest.mark.anyio

T = TypeVar("T")

OPEN: Final = BreakerRecord("openai", None, "open", 0, 1, 30.0, 0.0, 1, "3 failures in a row", "A")
CLOSED: Final = replace(OPEN, state="closed", rest_seconds=0.0, level=0, reason="recovered")
ISOLATED: Final = replace(OPEN, state="isolated", orders=1, rest_seconds=math.inf, reason="maintenance")
HOUR: Final = 3600.0
EVERYBODY: Final = frozenset("ABC")


@pytest.fixture(params=[*ALONE, *SHARED])
async def backing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backing]:
    """Where state is kept; each kind of store has its own."""
    async with {**ALONE, **SHARED}[request.param](tmp_path) as backing:
        yield backing


@pytest.fixture
async def store(backing: Backing) -> AsyncIterator[Store]:
    """A store that is open, for 5 incidents and 5 events."""
    async with opened(backing.store()) as store:
        yield store


@pytest.fixture(params=SHARED)
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Two open stores on one state, as two replicas have them, with room for 100 events."""
    async with SHARED[request.param](tmp_path) as backing, AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(opened(backing.store(events=100))) for _ in range(2)]
        yield first, second


def frame(name: str) -> Frame:
    return Frame(name, "system", f'{{"id": "{name}", "text": "Grüße"}}')


def told(
    replica: str, id: str, *, ongoing: bool = True, key: str = "outage openai", data: bytes = b"{}"
) -> Contribution:
    return Contribution(key, replica, id, ongoing, data)


def rounded(*records: BreakerRecord) -> list[BreakerRecord]:
    """Return *records* as far as they can be compared: stores may count in milliseconds."""
    return [
        replace(
            record,
            rest_seconds=round(record.rest_seconds, 2),
            since_seconds=round(record.since_seconds, 2),
        )
        for record in sorted(records, key=lambda record: record.key)
    ]


async def together(questions: Iterable[Awaitable[T]]) -> list[T]:
    """Ask many questions, some at a time: as many as a store has patience for at once."""
    places = asyncio.Semaphore(8)

    async def ask(question: Awaitable[T]) -> T:
        async with places:
            return await question

    return await asyncio.gather(*(ask(question) for question in questions))


async def admit(store: Store, limit: int, key: str = "a client") -> Decision:
    """Ask about one request."""
    (decision,) = await store.admit(key, limit, 60.0, 1)
    return decision


async def admitted(store: Store, times: int, *, key: str = "a client", limit: int = 100) -> int:
    """Ask *times* times, some at once; return how many were let in."""
    decisions = await together(admit(store, limit, key) for _ in range(times))
    return sum(decision.allowed for decision in decisions)


def ids(incidents: Sequence[SharedIncident]) -> list[list[str]]:
    """Return the ids of the contributions, an incident a list."""
    return [[contribution.id for contribution in incident.contributions] for incident in incidents]


# Coming and going.

COMMANDS: Final[dict[str, Callable[[Store], Awaitable[Any]]]] = {
    "ping": lambda store: store.ping(),
    "merge_breaker": lambda store: store.merge_breaker(OPEN),
    "breakers": lambda store: store.breakers(),
    "take_lease": lambda store: store.take_lease("probes", "A", 6.0),
    "release_lease": lambda store: store.release_lease("probes", "A"),
    "admit": lambda store: store.admit("a client", 100, 60.0, 1),
    "append": lambda store: store.append([frame("1")]),
    "frames": lambda store: store.frames(),
    "contribute": lambda store: store.contribute(told("A", "A1"), EVERYBODY),
    "incidents": lambda store: store.incidents(),
    "beat": lambda store: store.beat("A", b"{}", 6.0),
    "leave": lambda store: store.leave("A"),
    "tell": lambda store: store.tell(Note("probe", "A", b"{}")),
}


def test_every_command_of_a_store_is_held_to_what_follows() -> None:
    commands = {name for name in vars(Store) if not name.startswith("_")}
    assert commands - {"open", "aclose", "news", "kind", "shared"} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_an_open_store_does_what_it_is_asked(
    store: Store, command: Callable[[Store], Awaitable[Any]]
) -> None:
    await command(store)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_a_store_that_is_not_open_yet_is_away(
    backing: Backing, command: Callable[[Store], Awaitable[Any]]
) -> None:
    store = backing.store()

    with pytest.raises(StoreAway, match=r"\w+ \w+"):
        await command(store)

    await store.aclose()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_a_closed_store_is_away(backing: Backing, command: Callable[[Store], Awaitable[Any]]) -> None:
    store = backing.store()
    await store.open()
    await store.aclose()

    with pytest.raises(StoreAway, match=r"\w+ \w+"):
        await command(store)


async def test_a_store_may_be_opened_and_closed_twice(backing: Backing) -> None:
    store = backing.store()

    await store.open()
    await store.open()
    await store.ping()
    await store.aclose()
    await store.aclose()


async def test_a_store_says_what_it_is(store: Store, backing: Backing) -> None:
    assert (store.kind, store.shared) in {("sqlite", False), ("redis", True), ("fake", True)}
    assert store.shared is backing.shared


async def test_what_is_kept_outlives_the_store(backing: Backing) -> None:
    async with opened(backing.store()) as store:
        await store.merge_breaker(ISOLATED)
        await store.append([frame("1"), frame("2")])
        await store.contribute(told("A", "A1", data=b'{"calls": 3}'), EVERYBODY)

    async with opened(backing.store()) as store:
        assert list(await store.breakers()) == [ISOLATED]
        assert list(await store.frames()) == [frame("1"), frame("2")]
        (incident,) = await store.incidents()
        assert incident.id == "A1"
        assert list(incident.contributions) == [told("A", "A1", data=b'{"calls": 3}')]


# Breakers.


async def test_nothing_is_known_of_breakers_at_first(store: Store) -> None:
    assert list(await store.breakers()) == []


async def test_a_breaker_is_kept_as_it_was_told(store: Store) -> None:
    record = replace(OPEN, since_seconds=2.5, level=3, reason='it said "no": 💥\n')

    assert rounded(await store.merge_breaker(record)) == rounded(record)

    assert rounded(*await store.breakers()) == rounded(record)


async def test_breakers_of_a_provider_and_of_its_models_are_kept_apart(store: Store) -> None:
    models = ["gpt-4o", "a model: {with} *odd* [letters]", "größer"]
    records = [OPEN, *(replace(OPEN, model=model, era=number) for number, model in enumerate(models, 2))]

    for record in records:
        await store.merge_breaker(record)

    assert rounded(*await store.breakers()) == rounded(*records)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(OPEN, replace(CLOSED, era=2), id="a later era"),
        pytest.param(replace(CLOSED, era=2), OPEN, id="an earlier era"),
        pytest.param(CLOSED, OPEN, id="a graver state"),
        pytest.param(OPEN, CLOSED, id="a milder state"),
        pytest.param(OPEN, replace(OPEN, rest_seconds=60.0), id="a longer rest"),
        pytest.param(OPEN, replace(OPEN, rest_seconds=10.0), id="a shorter rest"),
        pytest.param(replace(OPEN, era=9), ISOLATED, id="an order"),
        pytest.param(replace(OPEN, era=9), replace(OPEN, orders=1), id="an order that changes nothing"),
        pytest.param(ISOLATED, replace(OPEN, era=9), id="calls after an order"),
        pytest.param(ISOLATED, replace(CLOSED, orders=2, era=2), id="a later order"),
        pytest.param(OPEN, OPEN, id="the same again"),
        pytest.param(OPEN, replace(OPEN, replica="B"), id="two at once"),
        pytest.param(OPEN, replace(OPEN, replica="B", level=2), id="two at once, told apart by who"),
        pytest.param(OPEN, replace(OPEN, reason="a timeout"), id="told apart by the reason"),
    ],
)
async def test_of_two_records_stands_what_the_rules_say(
    store: Store, first: BreakerRecord, second: BreakerRecord
) -> None:
    await store.merge_breaker(first)

    assert rounded(await store.merge_breaker(second)) == rounded(merged(first, second))

    assert rounded(*await store.breakers()) == rounded(merged(first, second))


async def test_a_rest_runs_down_and_stays_at_nothing(store: Store, backing: Backing) -> None:
    await store.merge_breaker(OPEN)

    backing.clock.advance(10.0)
    assert rounded(*await store.breakers()) == rounded(replace(OPEN, rest_seconds=20.0, since_seconds=10.0))

    backing.clock.advance(25.0)
    assert rounded(*await store.breakers()) == rounded(replace(OPEN, rest_seconds=0.0, since_seconds=35.0))


async def test_what_only_an_operator_ends_does_not_run_down(store: Store, backing: Backing) -> None:
    await store.merge_breaker(ISOLATED)

    backing.clock.advance(1000 * HOUR)

    (record,) = await store.breakers()
    assert math.isinf(record.rest_seconds)


async def test_a_record_meets_the_other_as_old_as_it_is(store: Store, backing: Backing) -> None:
    await store.merge_breaker(OPEN)
    backing.clock.advance(20.0)

    stands = await store.merge_breaker(replace(OPEN, rest_seconds=15.0, replica="B"))

    assert (stands.replica, stands.rest_seconds) == ("B", 15.0)
    (record,) = await store.breakers()
    assert (record.replica, record.rest_seconds) == ("B", 15.0)


async def test_a_rest_goes_on_while_no_store_is_open(backing: Backing) -> None:
    async with opened(backing.store()) as store:
        await store.merge_breaker(OPEN)

    backing.clock.advance(12.0)

    async with opened(backing.store()) as store:
        assert rounded(*await store.breakers()) == rounded(
            replace(OPEN, rest_seconds=18.0, since_seconds=12.0)
        )


async def test_what_nobody_has_told_for_long_is_forgotten(store: Store, backing: Backing) -> None:
    resting = replace(OPEN, model="m", rest_seconds=3 * HOUR)
    await store.merge_breaker(CLOSED)
    await store.merge_breaker(resting)

    backing.clock.advance(kept_seconds(CLOSED) + 1.0)
    assert [record.key for record in await store.breakers()] == [resting.key]

    backing.clock.advance(kept_seconds(resting))
    assert list(await store.breakers()) == []


async def test_what_stands_against_another_is_kept_as_long_as_it_would_have_been(
    store: Store, backing: Backing
) -> None:
    await store.merge_breaker(ISOLATED)
    await store.merge_breaker(replace(CLOSED, era=9))

    backing.clock.advance(kept_seconds(CLOSED) + 1.0)

    assert [(record.state, record.era) for record in await store.breakers()] == [("isolated", 10)]


async def test_what_is_forgotten_begins_anew(store: Store, backing: Backing) -> None:
    await store.merge_breaker(replace(OPEN, era=7))
    backing.clock.advance(kept_seconds(OPEN) + 1.0)

    await store.merge_breaker(CLOSED)

    assert rounded(*await store.breakers()) == rounded(CLOSED)


async def test_breakers_that_several_move_at_once_end_as_if_one_had_spoken_after_the_other(
    pair: tuple[Store, Store],
) -> None:
    records = [replace(OPEN, era=era, replica=replica) for era in range(1, 21) for replica in "AB"]
    random.Random(1).shuffle(records)

    await together(store.merge_breaker(record) for store, record in zip(pair * 20, records, strict=True))

    for store in pair:
        (record,) = await store.breakers()
        assert (record.era, record.replica) == (20, "B")


# Leases.


async def test_one_has_a_lease_and_the_next_is_told_how_long(store: Store, backing: Backing) -> None:
    assert await store.take_lease("trial openai", "A", 6.0) == 0.0

    backing.clock.advance(2.0)

    assert await store.take_lease("trial openai", "B", 6.0) == pytest.approx(4.0, abs=0.002)


async def test_a_lease_that_nobody_renews_runs_out(store: Store, backing: Backing) -> None:
    await store.take_lease("trial openai", "A", 6.0)
    await store.take_lease("trial openai", "B", 6.0)  # refused, and must not count

    backing.clock.advance(6.25)

    assert await store.take_lease("trial openai", "B", 6.0) == 0.0
    assert await store.take_lease("trial openai", "A", 6.0) == pytest.approx(6.0, abs=0.002)


async def test_who_renews_a_lease_keeps_it(store: Store, backing: Backing) -> None:
    for _ in range(5):
        assert await store.take_lease("trial openai", "A", 6.0) == 0.0
        backing.clock.advance(4.0)

    assert await store.take_lease("trial openai", "B", 6.0) == pytest.approx(2.0, abs=0.002)


async def test_a_lease_may_be_renewed_for_a_shorter_time(store: Store, backing: Backing) -> None:
    await store.take_lease("trial openai", "A", 60.0)
    await store.take_lease("trial openai", "A", 2.0)

    backing.clock.advance(2.25)

    assert await store.take_lease("trial openai", "B", 6.0) == 0.0


async def test_as_many_have_a_lease_as_there_are_places(store: Store, backing: Backing) -> None:
    assert await store.take_lease("trial openai", "A", 6.0, places=2) == 0.0
    backing.clock.advance(1.0)
    assert await store.take_lease("trial openai", "B", 6.0, places=2) == 0.0

    assert await store.take_lease("trial openai", "C", 6.0, places=2) == pytest.approx(5.0, abs=0.002)
    assert await store.take_lease("trial openai", "A", 6.0, places=2) == 0.0
    assert await store.take_lease("trial openai", "C", 6.0, places=2) == pytest.approx(6.0, abs=0.002)


async def test_with_fewer_places_than_before_the_wait_is_for_all_who_are_too_many(
    store: Store, backing: Backing
) -> None:
    await store.take_lease("trial openai", "A", 6.0, places=2)
    backing.clock.advance(1.0)
    await store.take_lease("trial openai", "B", 6.0, places=2)

    assert await store.take_lease("trial openai", "C", 6.0, places=1) == pytest.approx(6.0, abs=0.002)


async def test_who_has_a_lease_may_renew_it_where_there_are_fewer_places_than_before(store: Store) -> None:
    await store.take_lease("trial openai", "A", 6.0, places=2)
    await store.take_lease("trial openai", "B", 6.0, places=2)

    assert await store.take_lease("trial openai", "A", 6.0, places=1) == 0.0
    assert await store.take_lease("trial openai", "B", 6.0, places=1) == 0.0


async def test_a_lease_that_is_given_back_is_free(store: Store) -> None:
    await store.take_lease("trial openai", "A", 6.0)

    await store.release_lease("trial openai", "A")

    assert await store.take_lease("trial openai", "B", 6.0) == 0.0


async def test_nobody_gives_back_what_another_has(store: Store, backing: Backing) -> None:
    await store.take_lease("trial openai", "A", 6.0)
    backing.clock.advance(6.25)
    await store.take_lease("trial openai", "B", 6.0)

    await store.release_lease("trial openai", "A")
    await store.release_lease("trial of nobody", "A")

    assert await store.take_lease("trial openai", "A", 6.0) == pytest.approx(6.0, abs=0.002)


async def test_leases_of_different_names_do_not_meet(store: Store) -> None:
    assert await store.take_lease("trial openai", "A", 6.0) == 0.0
    assert await store.take_lease("trial openai gpt-4o", "B", 6.0) == 0.0
    assert await store.take_lease("probes", "C", 6.0) == 0.0


async def test_of_many_that_ask_at_once_as_many_get_a_lease_as_there_are_places(
    pair: tuple[Store, Store],
) -> None:
    waits = await together(
        pair[number % 2].take_lease("trial openai", f"{number}", 6.0, places=3) for number in range(50)
    )

    assert sum(wait == 0.0 for wait in waits) == 3
    assert all(wait == 0.0 or wait == pytest.approx(6.0, abs=0.002) for wait in waits)


# Limits.


async def test_the_100th_is_admitted_and_the_101st_refused(store: Store) -> None:
    decisions = [await admit(store, 100) for _ in range(101)]

    assert [decision.allowed for decision in decisions] == [True] * 100 + [False]
    assert [decision.remaining for decision in decisions] == [*reversed(range(100)), 0]


async def test_requests_of_the_same_moment_are_each_counted(store: Store) -> None:
    assert await admitted(store, 200) == 100


async def test_the_window_slides(store: Store, backing: Backing) -> None:
    backing.clock.advance(59.0)
    assert await admitted(store, 100) == 100

    backing.clock.advance(2.0)
    assert await admitted(store, 1) == 0

    backing.clock.advance(58.25)
    assert await admitted(store, 101) == 100


async def test_who_is_refused_is_not_counted(store: Store, backing: Backing) -> None:
    await admitted(store, 100)
    for _ in range(10):
        backing.clock.advance(5.0)
        assert await admitted(store, 5) == 0

    backing.clock.advance(10.25)

    assert await admitted(store, 100) == 100


async def test_who_comes_when_told_to_is_admitted(store: Store, backing: Backing) -> None:
    await admit(store, 2)
    backing.clock.advance(10.0)
    await admit(store, 2)
    backing.clock.advance(10.0)

    refused = await admit(store, 2)

    assert refused == pytest.approx(Decision(False, 2, 0, 40.0, 50.0), abs=0.002)
    backing.clock.advance(math.ceil(refused.retry_after_seconds))
    assert await admit(store, 2) == pytest.approx(Decision(True, 2, 0, 0.0, 60.0), abs=0.002)
    assert not (await admit(store, 2)).allowed


async def test_keys_are_limited_apart(store: Store) -> None:
    assert await admitted(store, 3, key="a client", limit=2) == 2
    assert await admitted(store, 3, key="another {client}:*", limit=2) == 2


async def test_a_limit_of_0_is_none(store: Store) -> None:
    assert await admit(store, 0) == UNLIMITED
    assert await admitted(store, 20, limit=0) == 20


@pytest.mark.parametrize("seed", range(5))
async def test_a_store_decides_as_the_sliding_log_does(store: Store, backing: Backing, seed: int) -> None:
    chance, log, clock = random.Random(seed), SlidingLog(100, 60.0), backing.clock
    keys = ["a client", "another"]

    for _ in range(200):
        clock.advance(chance.choice([0.0, 0.0, 0.25, 1.0, 7.5, 29.75, 60.0]))
        key, limit = chance.choice(keys), chance.choice([3, 4, 4, 10])
        decision = await admit(store, limit, key)

        assert decision == pytest.approx(log.admit(key, clock.monotonic(), limit=limit), abs=0.002)


@pytest.mark.parametrize("seed", range(5))
async def test_many_requests_at_once_are_decided_as_one_after_the_other(
    store: Store, backing: Backing, seed: int
) -> None:
    chance, log, clock = random.Random(seed), SlidingLog(100, 60.0), backing.clock

    for _ in range(50):
        clock.advance(chance.choice([0.0, 0.25, 7.5, 29.75, 60.0]))
        limit, requests = chance.choice([3, 4, 10]), chance.choice([1, 2, 3, 5, 20])
        decisions = await store.admit("a client", limit, 60.0, requests)

        assert len(decisions) == requests
        for decision in decisions:
            assert decision == pytest.approx(log.admit("a client", clock.monotonic(), limit=limit), abs=0.002)


async def test_of_200_in_parallel_at_two_replicas_exactly_100_pass(pair: tuple[Store, Store]) -> None:
    decisions = await together(admit(pair[number % 2], 100) for number in range(200))

    assert sum(decision.allowed for decision in decisions) == 100


# Events.


async def test_there_are_no_events_at_first(store: Store) -> None:
    assert list(await store.frames()) == []


async def test_events_are_kept_in_the_order_in_which_they_came(store: Store) -> None:
    await store.append([frame("b"), frame("a")])
    await store.append([])
    await store.append([frame("c")])

    assert list(await store.frames()) == [frame("b"), frame("a"), frame("c")]


async def test_the_ring_keeps_exactly_as_many_as_it_is_for(backing: Backing) -> None:
    frames = [frame(f"{number:03}") for number in range(600)]

    async with opened(backing.store(events=500)) as store:
        for start in range(0, 600, 50):
            await store.append(frames[start : start + 50])
            assert list(await store.frames()) == frames[max(0, start - 450) : start + 50]


async def test_of_more_at_once_than_the_ring_is_for_the_last_are_kept(store: Store) -> None:
    await store.append([frame(f"{number}") for number in range(12)])

    assert list(await store.frames()) == [frame(f"{number}") for number in range(7, 12)]


async def test_a_ring_made_smaller_keeps_the_newest(backing: Backing) -> None:
    async with opened(backing.store(events=5)) as store:
        await store.append([frame(name) for name in "abcde"])

    async with opened(backing.store(events=2)) as store:
        assert list(await store.frames()) == [frame("d"), frame("e")]
        await store.append([frame("f")])
        assert list(await store.frames()) == [frame("e"), frame("f")]


async def test_replicas_see_the_events_of_all_in_one_order(pair: tuple[Store, Store]) -> None:
    first, second = pair
    async with listening(first) as one, listening(second) as other:
        await together(
            store.append([frame(f"{number}a"), frame(f"{number}b")]) for number, store in enumerate(pair * 20)
        )
        await eventually(lambda: len(one) == len(other) == 80)

        assert one == other
        assert list(await first.frames()) == list(await second.frames()) == one
        firsts = [heard.id for heard in one if isinstance(heard, Frame)][::2]
        assert all(name.endswith("a") for name in firsts), "what was appended together stays together"


# Incidents.


async def test_there_are_no_incidents_at_first(store: Store) -> None:
    assert list(await store.incidents()) == []


async def test_the_first_contribution_begins_an_incident(store: Store) -> None:
    contribution = told("A", "A1", data='{"message": "größer"}'.encode())

    incident = await store.contribute(contribution, EVERYBODY)

    assert (incident.id, list(incident.contributions)) == ("A1", [contribution])
    assert [(each.id, list(each.contributions)) for each in await store.incidents()] == [
        ("A1", [contribution])
    ]


async def test_a_known_contribution_takes_the_place_of_the_old_one(store: Store) -> None:
    await store.contribute(told("A", "A1"), EVERYBODY)
    await store.contribute(told("B", "B1"), EVERYBODY)
    over = told("A", "A1", ongoing=False, data=b'{"over": true}')

    incident = await store.contribute(over, EVERYBODY)

    assert list(incident.contributions) == [over, told("B", "B1")]
    assert ids(await store.incidents()) == [["A1", "B1"]]


async def test_an_incident_that_is_over_may_still_be_corrected(store: Store) -> None:
    await store.contribute(told("A", "A1", ongoing=False), EVERYBODY)
    await store.contribute(told("A", "A2"), EVERYBODY)

    incident = await store.contribute(told("A", "A1", ongoing=False, data=b"[]"), EVERYBODY)

    assert (incident.id, incident.contributions[0].data) == ("A1", b"[]")
    assert ids(await store.incidents()) == [["A2"], ["A1"]]


async def test_what_two_replicas_see_at_the_same_time_is_one_incident(store: Store) -> None:
    await store.contribute(told("A", "A1"), EVERYBODY)

    incident = await store.contribute(told("B", "B1"), EVERYBODY)

    assert (incident.id, ids([incident])) == ("A1", [["A1", "B1"]])
    assert ids(await store.incidents()) == [["A1", "B1"]]


async def test_what_was_short_joins_what_goes_on(store: Store) -> None:
    await store.contribute(told("A", "A1"), EVERYBODY)
    await store.contribute(told("B", "B1", ongoing=False), EVERYBODY)

    assert ids(await store.incidents()) == [["A1", "B1"]]


@pytest.mark.parametrize(
    ("before", "alive"),
    [
        pytest.param(told("A", "A1", key="outage ollama"), "AB", id="something else"),
        pytest.param(told("A", "A1", ongoing=False), "AB", id="what is over"),
        pytest.param(told("A", "A1"), "B", id="what only the dead call ongoing"),
        pytest.param(told("B", "B0"), "AB", id="what it has contributed to"),
    ],
)
async def test_a_contribution_does_not_join(store: Store, before: Contribution, alive: str) -> None:
    await store.contribute(before, EVERYBODY)

    incident = await store.contribute(told("B", "B1"), frozenset(alive))

    assert (incident.id, ids([incident])) == ("B1", [["B1"]])
    assert ids(await store.incidents()) == [["B1"], [before.id]]


async def test_the_dead_do_not_keep_the_living_from_joining(store: Store) -> None:
    await store.contribute(told("A", "A1"), EVERYBODY)
    await store.contribute(told("B", "B1"), EVERYBODY)

    await store.contribute(told("C", "C1"), frozenset("BC"))

    assert ids(await store.incidents()) == [["A1", "B1", "C1"]]


async def test_only_the_latest_incident_of_a_key_is_joined(store: Store) -> None:
    await store.contribute(told("A", "A1"), EVERYBODY)
    await store.contribute(told("B", "B1", ongoing=False), EVERYBODY)
    await store.contribute(told("B", "B2", ongoing=False), EVERYBODY)  # A1 has one of B's already

    await store.contribute(told("C", "C1"), EVERYBODY)

    assert ids(await store.incidents()) == [["C1"], ["B2"], ["A1", "B1"]]


async def test_incidents_are_listed_by_when_they_began_newest_first(store: Store) -> None:
    for name in "abc":
        await store.contribute(told("A", name, key=name), EVERYBODY)
    await store.contribute(told("A", "a", key="a", ongoing=False), EVERYBODY)

    assert ids(await store.incidents()) == [["c"], ["b"], ["a"]]


async def test_the_oldest_that_nobody_calls_ongoing_goes_first(store: Store) -> None:
    for name in "abcde":
        await store.contribute(told("A", name, key=name, ongoing=name in "ac"), EVERYBODY)

    await store.contribute(told("A", "f", key="f"), EVERYBODY)
    assert ids(await store.incidents()) == [["f"], ["e"], ["d"], ["c"], ["a"]]

    await store.contribute(told("A", "g", key="g"), EVERYBODY)
    assert ids(await store.incidents()) == [["g"], ["f"], ["e"], ["c"], ["a"]]


async def test_where_all_go_on_the_oldest_goes_and_never_the_one_that_came(store: Store) -> None:
    for name in "abcde":
        await store.contribute(told("A", name, key=name), EVERYBODY)

    await store.contribute(told("A", "f", key="f", ongoing=False), EVERYBODY)

    assert ids(await store.incidents()) == [["f"], ["e"], ["d"], ["c"], ["b"]]


async def test_what_one_of_many_calls_ongoing_is_kept(store: Store) -> None:
    await store.contribute(told("A", "A1"), EVERYBODY)
    await store.contribute(told("B", "B1"), EVERYBODY)
    await store.contribute(told("A", "A1", ongoing=False), EVERYBODY)
    for name in "bcdef":
        await store.contribute(told("A", name, key=name, ongoing=False), EVERYBODY)

    assert ids(await store.incidents()) == [["f"], ["e"], ["d"], ["c"], ["A1", "B1"]]


async def test_a_forgotten_incident_that_is_told_again_is_new(store: Store) -> None:
    for name in "abcdef":
        await store.contribute(told("A", name, key=name, ongoing=False), EVERYBODY)

    await store.contribute(told("A", "a", key="a", ongoing=False), EVERYBODY)

    assert ids(await store.incidents()) == [["a"], ["f"], ["e"], ["d"], ["c"]]


async def test_a_ring_of_incidents_made_smaller_keeps_the_newest(backing: Backing) -> None:
    async with opened(backing.store(incidents=5)) as store:
        for name in "abcde":
            await store.contribute(told("A", name, key=name, ongoing=False), EVERYBODY)

    async with opened(backing.store(incidents=2)) as store:
        await store.contribute(told("A", "f", key="f", ongoing=False), EVERYBODY)

        assert ids(await store.incidents()) == [["f"], ["e"]]


async def test_replicas_that_see_an_outage_at_once_contribute_to_one_incident(
    pair: tuple[Store, Store],
) -> None:
    alive = frozenset(f"{number}" for number in range(20))

    incidents = await together(
        pair[number % 2].contribute(told(f"{number}", f"of {number}"), alive) for number in range(len(alive))
    )

    assert len({incident.id for incident in incidents}) == 1
    (incident,) = await pair[0].incidents()
    assert sorted(incident.contributions, key=repr) == sorted(
        (told(f"{number}", f"of {number}") for number in range(len(alive))), key=repr
    )


# Replicas.


async def test_a_replica_hears_of_itself_and_of_all_others_that_are_there(store: Store) -> None:
    assert dict(await store.beat("A", b"\x00\xff", 6.0)) == {"A": b"\x00\xff"}
    assert dict(await store.beat("B", b"of B", 6.0)) == {"A": b"\x00\xff", "B": b"of B"}
    assert dict(await store.beat("A", b"newer", 6.0)) == {"A": b"newer", "B": b"of B"}


async def test_a_replica_that_is_silent_for_too_long_is_gone(store: Store, backing: Backing) -> None:
    await store.beat("A", b"of A", 6.0)
    backing.clock.advance(4.0)
    await store.beat("B", b"of B", 6.0)
    backing.clock.advance(2.25)

    assert dict(await store.beat("B", b"of B", 6.0)) == {"B": b"of B"}


async def test_a_replica_that_leaves_is_gone_at_once(store: Store) -> None:
    await store.beat("A", b"of A", 6.0)
    await store.beat("B", b"of B", 6.0)

    await store.leave("A")
    await store.leave("C")  # was never there

    assert dict(await store.beat("B", b"of B", 6.0)) == {"B": b"of B"}


# News.


async def test_what_a_store_does_itself_is_news_too(store: Store) -> None:
    async with listening(store) as heard:
        note = Note("probe", "A", b'\x00{"passed": true}')

        await store.merge_breaker(OPEN)
        await store.append([frame("1"), frame("2")])
        await store.tell(note)
        await eventually(lambda: len(heard) == 4)

        assert [each for each in heard if isinstance(each, Frame)] == [frame("1"), frame("2")]
        assert rounded(*(each for each in heard if isinstance(each, BreakerRecord))) == rounded(OPEN)
        assert [each for each in heard if isinstance(each, Note)] == [note]


async def test_news_reach_every_replica(pair: tuple[Store, Store]) -> None:
    first, second = pair
    async with listening(first) as one, listening(second) as other:
        await first.merge_breaker(ISOLATED)
        await second.tell(Note("probe", "B", b"{}"))
        await first.append([frame("1")])
        await eventually(lambda: len(one) == len(other) == 3)

        assert sorted(map(repr, one)) == sorted(map(repr, other))


async def test_news_of_a_breaker_are_what_stands(store: Store) -> None:
    await store.merge_breaker(CLOSED)
    async with listening(store) as heard:
        await store.merge_breaker(OPEN)
        await eventually(lambda: heard)

        assert rounded(*(each for each in heard if isinstance(each, BreakerRecord))) == rounded(
            merged(CLOSED, OPEN)
        )


async def test_what_changes_nothing_is_no_news(store: Store, backing: Backing) -> None:
    await store.merge_breaker(replace(OPEN, era=2))
    async with listening(store) as heard:
        backing.clock.advance(5.0)
        await store.merge_breaker(CLOSED)
        await store.merge_breaker(replace(OPEN, era=2, rest_seconds=1.0, since_seconds=5.0))
        await store.append([])
        await store.append([frame("after that")])
        await eventually(lambda: heard)

        assert heard == [frame("after that")]


async def test_who_listens_hears_what_happens_from_then_on(store: Store) -> None:
    await store.tell(Note("probe", "A", b"before"))
    await store.append([frame("before")])

    async with listening(store) as heard:
        await store.append([frame("after")])
        await eventually(lambda: heard)

        assert heard == [frame("after")]


async def test_news_end_when_the_store_closes(backing: Backing) -> None:
    store = backing.store()
    await store.open()
    news = store.news()
    assert await anext(news) == Resumed()

    async with asyncio.timeout(5.0), asyncio.TaskGroup() as tasks:
        tasks.create_task(store.aclose())
        assert [each async for each in news] == []


async def test_a_closed_store_has_no_news(backing: Backing) -> None:
    store = backing.store()
    await store.open()
    await store.aclose()

    async with asyncio.timeout(5.0):
        assert [each async for each in store.news()] == []


async def test_who_listens_before_the_store_is_open_hears_once_it_is(backing: Backing) -> None:
    store = backing.store()

    async def hear() -> News:
        return await anext(news)

    news = store.news()
    async with asyncio.timeout(5.0), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(hear())
        await asyncio.sleep(0)

        await store.open()

        assert await first == Resumed()
        await store.aclose()


async def test_frames_come_without_gap_or_repetition_however_slow_the_reader(backing: Backing) -> None:
    frames = [frame(f"{number}") for number in range(300)]
    async with opened(backing.store(events=500)) as store:
        news = store.news()
        assert await anext(news) == Resumed()

        await store.append(frames[:200])
        first = [await anext(news) for _ in range(10)]
        await store.append(frames[200:])
        rest = [await anext(news) for _ in range(290)]

        assert first + rest == frames


# Who gives up waiting.


async def some_give_up(tasks: Sequence[asyncio.Task[None]], chance: random.Random) -> None:
    """Cancel *tasks* one after the other, each wherever it happens to be."""
    for task in tasks:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()


@pytest.mark.parametrize("seed", range(3))
async def test_answers_stay_right_while_others_give_up_waiting(store: Store, seed: int) -> None:
    chance = random.Random(seed)

    async def ask(number: int) -> None:
        name = f"{number}"
        presence = await store.beat(name, name.encode(), 6.0)
        assert presence[name] == name.encode()
        stands = await store.merge_breaker(replace(OPEN, provider=name, reason=name))
        assert (stands.provider, stands.reason) == (name, name)
        incident = await store.contribute(told(name, name, key=name), EVERYBODY)
        assert (incident.id, ids([incident])) == (name, [[name]])
        assert await store.take_lease(name, name, 6.0) == 0.0
        assert (await admit(store, 1, name)).allowed

    for start in range(0, 100, 10):
        tasks = [asyncio.create_task(ask(number)) for number in range(start, start + 10)]
        impatient = chance.sample(tasks, 5)
        await some_give_up(impatient, chance)
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert all(
            result is None or (task in impatient and isinstance(result, asyncio.CancelledError))
            for task, result in zip(tasks, results, strict=True)
        )


@pytest.mark.parametrize("seed", range(3))
async def test_what_somebody_gave_up_waiting_for_happened_whole_or_not_at_all(
    backing: Backing, seed: int
) -> None:
    chance = random.Random(seed)
    async with opened(backing.store(events=500)) as store, listening(store) as heard:
        acknowledged = set()
        for start in range(0, 50, 10):
            tasks = {
                f"{number}": asyncio.create_task(store.append([frame(f"{number} {part}") for part in "abc"]))
                for number in range(start, start + 10)
            }
            await some_give_up(chance.sample(list(tasks.values()), 5), chance)
            await asyncio.wait(tasks.values())
            acknowledged |= {name for name, task in tasks.items() if not task.cancelled()}
        await store.append([frame("the end")])
        await eventually(lambda: frame("the end") in heard)

        *kept, _ = [each.id for each in await store.frames()]
        whole = [name.removesuffix(" a") for name in kept[::3]]
        assert kept == [f"{number} {part}" for number in whole for part in "abc"]
        assert acknowledged <= set(whole)
        assert [each.id for each in heard if isinstance(each, Frame)] == [*kept, "the end"]
