"""The live feed's ring and those who listen to it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.admin.broadcast import (
    LEAST_FRAMES,
    RESTARTING,
    WOKEN_AT_ONCE,
    Broadcast,
    Subscription,
    TooSlow,
)
from sentinel_proxy.model import Feed
from sentinel_proxy.testing import FakeClock
from sentinel_proxy.ulid import Ulids

pytestmark = pytest.mark.anyio


def a_broadcast(capacity: int = 500, counts: Feed | None = None, clock: FakeClock | None = None) -> Broadcast:
    return Broadcast(capacity, clock or FakeClock(), counts or Feed(), Ulids(lambda bits: 1).mint)


def publish(broadcast: Broadcast, *numbers: int, event_type: str = "system") -> list[str]:
    """Publish events that carry these numbers; return their ids."""
    ids = []
    for number in numbers:
        broadcast.publish(event_type, {"number": number})
        ids.append(broadcast.last_id)
    return ids


def numbers(texts: list[str]) -> list[int | None]:
    """Return what `publish` put in; None for other frames."""
    return [json.loads(text)["payload"].get("number") for text in texts]


def replayed(broadcast: Broadcast, since: str | None) -> tuple[list[int | None], bool]:
    replay = broadcast.since(since)
    return numbers([frame.text for frame in replay.frames]), replay.missed


@asynccontextmanager
async def listening(broadcast: Broadcast, **wanted: Any) -> AsyncIterator[list[str]]:
    """Yield a list that grows with what a subscriber is told."""
    heard: list[str] = []
    subscription = broadcast.subscribe(**wanted)

    async def listen() -> None:
        while texts := await subscription.next():
            heard.extend(texts)

    task = asyncio.create_task(listen())
    yield heard
    task.cancel()
    broadcast.unsubscribe(subscription)


async def rounds(number: int = 20) -> None:
    """Let the event loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


# What is remembered.


async def test_a_frame_says_what_happened_and_when() -> None:
    broadcast = a_broadcast()

    (id,) = publish(broadcast, 7)

    (frame,) = broadcast.since(None).frames
    assert json.loads(frame.text) == {
        "id": id,
        "event_type": "system",
        "timestamp": "2026-03-01T10:00:00.000Z",
        "payload": {"number": 7},
    }


async def test_ids_sort_by_time_though_the_clock_stands_still() -> None:
    ids = publish(a_broadcast(), *range(50))

    assert ids == sorted(set(ids))


async def test_what_came_after_an_id_is_replayed() -> None:
    broadcast = a_broadcast()
    ids = publish(broadcast, 1, 2, 3)

    assert [replayed(broadcast, id) for id in ids] == [([2, 3], False), ([3], False), ([], False)]


async def test_the_last_id_of_an_empty_feed_leads_to_everything() -> None:
    broadcast = a_broadcast()
    before = broadcast.last_id

    publish(broadcast, 1, 2)

    assert replayed(broadcast, before) == ([1, 2], False)


@pytest.mark.parametrize("capacity", [1, 3, LEAST_FRAMES, LEAST_FRAMES + 50])
async def test_as_many_are_remembered_as_configured(capacity: int) -> None:
    broadcast = a_broadcast(capacity)

    publish(broadcast, *range(capacity + 40))

    assert replayed(broadcast, None) == (list(range(40, capacity + 40)), False)


@pytest.mark.parametrize("capacity", [3, LEAST_FRAMES + 50])
async def test_what_is_forgotten_is_said_to_be(capacity: int) -> None:
    broadcast = a_broadcast(capacity)
    ids = publish(broadcast, *range(capacity + 10))
    last = list(range(10, capacity + 10))

    assert replayed(broadcast, ids[9]) == (last, False)
    assert replayed(broadcast, ids[8]) == (last, True)


async def test_an_id_from_before_a_restart_gets_all_and_is_told() -> None:
    clock = FakeClock()
    (old,) = publish(a_broadcast(clock=clock), 1)
    clock.advance(1)
    broadcast = a_broadcast(clock=clock)
    publish(broadcast, 2, 3)

    assert replayed(broadcast, old) == ([2, 3], True)


async def test_an_id_from_the_future_gets_all_and_is_told() -> None:
    """Of another replica, or from before a clock was set back: what is between cannot be known."""
    broadcast = a_broadcast()
    publish(broadcast, 1, 2)

    assert replayed(broadcast, "7" + "Z" * 25) == ([1, 2], True)


# Who listens.


async def test_everybody_is_told_everything_in_order() -> None:
    broadcast = a_broadcast()

    async with listening(broadcast) as one, listening(broadcast) as other:
        publish(broadcast, 1, 2)
        await rounds()
        publish(broadcast, 3)
        await rounds()

    assert numbers(one) == numbers(other) == [1, 2, 3]


async def test_all_are_given_the_same_text() -> None:
    """One serialisation, however many listen."""
    broadcast = a_broadcast()

    async with listening(broadcast) as one, listening(broadcast) as other:
        publish(broadcast, 1)
        await rounds()

    assert one[0] is other[0]


async def test_only_the_wanted_types_come_through() -> None:
    broadcast = a_broadcast()
    before = broadcast.last_id
    publish(broadcast, 1)
    publish(broadcast, 2, event_type="incident")

    async with listening(broadcast, types=frozenset({"incident"}), since=before) as heard:
        publish(broadcast, 3)
        publish(broadcast, 4, event_type="incident")
        await rounds()

    assert numbers(heard) == [2, 4]


async def test_who_missed_something_is_told_first_whatever_it_wants() -> None:
    broadcast = a_broadcast(capacity=2)
    first, *_ = publish(broadcast, 1, 2, 3, 4)

    async with listening(broadcast, types=frozenset({"incident"}), since=first) as heard:
        await rounds()

    (frame,) = map(json.loads, heard)
    assert (frame["event_type"], frame["payload"]["missed"], frame["id"]) == ("system", True, first)


async def test_what_is_published_while_others_are_being_woken_is_told_too() -> None:
    broadcast = a_broadcast()
    subscriptions = [broadcast.subscribe() for _ in range(3 * WOKEN_AT_ONCE)]
    heard: list[list[str]] = [[] for _ in subscriptions]

    async def listen(subscription: Subscription, into: list[str]) -> None:
        while texts := await subscription.next():
            into += texts

    tasks = [
        asyncio.create_task(listen(subscription, into))
        for subscription, into in zip(subscriptions, heard, strict=True)
    ]
    await rounds(3)
    publish(broadcast, 1)
    await rounds(2)  # the first have been woken, and are waiting again
    publish(broadcast, 2)
    await rounds()

    assert all(numbers(texts) == [1, 2] for texts in heard)
    for task in tasks:
        task.cancel()


async def test_not_everybody_is_woken_at_once() -> None:
    """So that calls have their turn in between."""
    broadcast = a_broadcast()
    subscriptions = [broadcast.subscribe() for _ in range(3 * WOKEN_AT_ONCE)]
    told = 0

    async def listen(subscription: Subscription) -> None:
        nonlocal told
        await subscription.next()
        told += 1

    tasks = [asyncio.create_task(listen(subscription)) for subscription in subscriptions]
    await rounds(3)
    publish(broadcast, 1)
    seen = []
    while told < len(subscriptions):
        await asyncio.sleep(0)
        seen.append(told)

    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) <= WOKEN_AT_ONCE
    await asyncio.gather(*tasks)


async def test_a_heartbeat_is_heard_but_not_kept() -> None:
    broadcast = a_broadcast()
    (last,) = publish(broadcast, 1)

    async with listening(broadcast) as heard:
        broadcast.heartbeat({"uptime_seconds": 1})
        await rounds()

    (beat,) = map(json.loads, heard)
    assert (beat["event_type"], beat["id"]) == ("heartbeat", last)
    assert replayed(broadcast, None) == ([1], False)


async def test_nobody_gets_a_heartbeat_from_before_it_came() -> None:
    broadcast = a_broadcast()
    broadcast.heartbeat({})

    async with listening(broadcast) as heard:
        await rounds()

    assert heard == []


async def test_publishing_needs_neither_listeners_nor_a_loop() -> None:
    broadcast = await asyncio.to_thread(a_broadcast)

    await asyncio.to_thread(publish, broadcast, 1)

    assert replayed(broadcast, None) == ([1], False)


@pytest.mark.parametrize("capacity", [10, LEAST_FRAMES + 50])
async def test_a_subscriber_may_be_so_far_behind_and_no_further(capacity: int) -> None:
    counts = Feed()
    broadcast = a_broadcast(capacity, counts)
    least = 1 + max(capacity, LEAST_FRAMES)
    slow, slower = broadcast.subscribe(), broadcast.subscribe()

    publish(broadcast, *range(least))
    assert len(await slow.next()) == least
    publish(broadcast, least)

    with pytest.raises(TooSlow):
        await slower.next()
    broadcast.unsubscribe(slower, too_slow=True)
    assert numbers(await slow.next()) == [least]
    assert (counts.dropped, counts.subscribers) == (least + 1, 1)


async def test_subscribers_are_counted() -> None:
    counts = Feed()
    broadcast = a_broadcast(counts=counts)

    async with listening(broadcast), listening(broadcast):
        assert counts.subscribers == 2

    assert (counts.subscribers, counts.dropped) == (0, 0)


async def test_the_end_comes_after_what_is_left() -> None:
    broadcast = a_broadcast()
    subscription = broadcast.subscribe()
    publish(broadcast, 1)

    ending = asyncio.create_task(broadcast.end(10))
    await rounds(2)
    left = await subscription.next()

    assert (numbers(left), await subscription.next(), subscription.farewell) == ([1], [], RESTARTING)
    assert (broadcast.ended, ending.done()) == (True, False)
    broadcast.unsubscribe(subscription)
    await ending


async def test_the_end_does_not_wait_for_ever() -> None:
    broadcast = a_broadcast()
    broadcast.subscribe()

    await broadcast.end(0.01)

    assert broadcast.ended


STEPS = st.lists(st.sampled_from(["publish", "read", "leave"]), max_size=60)


@given(steps=STEPS, capacity=st.integers(20, 80))
def test_coming_back_with_the_last_id_leaves_no_gap_and_repeats_nothing(
    steps: list[str], capacity: int
) -> None:
    """Wherever a client breaks off, and whatever it had not read yet."""

    async def play() -> None:
        broadcast = a_broadcast(capacity)
        last, sent = broadcast.last_id, 0
        heard: list[int | None] = []
        subscription = broadcast.subscribe(since=last)

        async def read() -> None:
            nonlocal last
            reading = asyncio.create_task(subscription.next())
            await rounds(2)
            if reading.done():
                heard.extend(numbers(reading.result()))
                last = json.loads(reading.result()[-1])["id"]
            reading.cancel()

        for step in steps:
            if step == "publish":
                publish(broadcast, sent)
                sent += 1
            elif step == "read":
                await read()
            else:
                broadcast.unsubscribe(subscription)
                subscription = broadcast.subscribe(since=last)
        await read()

        known = [number for number in heard if number is not None]
        assert known == sorted(set(known))
        assert known == list(range(sent)) or (None in heard and sent > capacity)

    asyncio.run(play())
