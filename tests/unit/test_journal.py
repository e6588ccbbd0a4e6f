"""One live feed for all replicas: in one order, without gap or repetition, with the store or without."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from fake_store import FakeState
from hypothesis import given, settings
from hypothesis import strategies as st
from replica_support import Linked, StillClock, rounds

from sentinel_proxy.admin.broadcast import Broadcast
from sentinel_proxy.events import Noticed
from sentinel_proxy.model import Feed, Frame
from sentinel_proxy.replica.journal import MOST_WAITING, OVERDUE_SECONDS, Journal
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.stores.records import Resumed

pytestmark = pytest.mark.anyio


class Replica(Linked):
    """A live feed with its journal, and one client that listens from the start."""

    def __init__(self, state: FakeState, clock: StillClock, capacity: int = 500) -> None:
        super().__init__(state, clock)
        self.broadcast = Broadcast(capacity, clock, Feed())
        self.journal = Journal(self.link, self.broadcast, capacity, clock, self.emitted.append)
        self.broadcast.look_elsewhere(self.journal.catch_up)
        self.subscription = self.broadcast.subscribe()

    def tell(self, *numbers: int) -> None:
        for number in numbers:
            self.journal.tell(self.broadcast.frame("system", {"number": number}))

    async def hears(self) -> None:
        """Let everything take its course: what was told is appended, what the store tells is taken."""
        await rounds()
        for piece in self.store.heard():
            if isinstance(piece, Frame):
                self.journal.take(piece)
            elif isinstance(piece, Resumed):
                with suppress(StoreAway):
                    await self.journal.synchronise()
        await rounds()

    async def told(self) -> list[int]:
        """Return what the client was told since this was last asked."""
        reading = asyncio.create_task(self.subscription.next())
        await rounds(3)
        reading.cancel()
        return numbers(reading.result()) if reading.done() else []

    def remembered(self) -> list[int]:
        return numbers([frame.text for frame in self.broadcast.since(None).frames])

    def after(self, id: str) -> tuple[list[int], bool]:
        replay = self.broadcast.since(id)
        return numbers([frame.text for frame in replay.frames]), replay.missed


def numbers(texts: Sequence[str]) -> list[int]:
    return [json.loads(text)["payload"]["number"] for text in texts]


class Room:
    """Replicas that share one store."""

    def __init__(self, clock: StillClock, replicas: Sequence[Replica]) -> None:
        self.clock = clock
        self.replicas = replicas
        self.state = replicas[0].store.state

    async def settle(self) -> None:
        for _ in range(3):
            for replica in self.replicas:
                await replica.hears()

    async def join(self, replica: Replica) -> None:
        await replica.join()
        await self.settle()


@asynccontextmanager
async def a_room(replicas: int = 2, capacity: int = 500) -> AsyncIterator[Room]:
    clock = StillClock()
    state = FakeState(clock, max_frames=capacity)
    room = Room(clock, [Replica(state, clock, capacity) for _ in range(replicas)])
    async with AsyncExitStack() as stack:
        for replica in room.replicas:
            await stack.enter_async_context(replica.link.running())
            await stack.enter_async_context(replica.journal.running())
        yield room


async def test_what_one_replica_tells_is_shown_at_all_in_one_order() -> None:
    async with a_room() as room:
        one, other = room.replicas
        one.tell(1)
        other.tell(2)
        one.tell(3)
        await room.settle()

        assert await one.told() == await other.told() == one.remembered() == other.remembered()
        assert sorted(one.remembered()) == [1, 2, 3]


async def test_nothing_is_shown_before_the_store_has_it() -> None:
    async with a_room() as room:
        one, _ = room.replicas
        one.tell(1)

        assert one.remembered() == []
        await rounds()
        assert (len(room.state.ring), one.remembered()) == (1, [])
        await one.hears()
        assert one.remembered() == [1]


async def test_the_id_of_any_frame_leads_on_at_any_replica() -> None:
    async with a_room() as room:
        one, other = room.replicas
        for number in range(10):
            room.replicas[number % 2].tell(number)
        await room.settle()
        frames = one.broadcast.since(None).frames

        for place, frame in enumerate(frames):
            rest = numbers([later.text for later in frames[place + 1 :]])
            assert one.after(frame.id) == other.after(frame.id) == (rest, False)


async def test_an_id_whose_frame_is_still_on_its_way_is_looked_for() -> None:
    """Whoever was shown it at one replica may be at the next before that has heard of it."""
    async with a_room() as room:
        one, other = room.replicas
        one.tell(1, 2)
        await rounds()
        await one.hears()
        first, _ = one.broadcast.since(None).frames
        assert other.after(first.id) == ([], True)
        await other.broadcast.look_for(first.id)

        assert other.after(first.id) == ([2], False)
        await room.settle()
        assert await other.told() == [1, 2]


async def test_an_id_that_nobody_knows_and_nobody_can_be_asked_about_is_not_waited_for() -> None:
    async with a_room() as room:
        one, _ = room.replicas
        one.tell(1)
        await room.settle()
        await one.cut_off()
        await one.broadcast.look_for("7" + "Z" * 25)

        assert one.after("7" + "Z" * 25) == ([1], True)


async def test_an_id_that_is_known_is_asked_of_nobody() -> None:
    async with a_room() as room:
        one, _ = room.replicas
        one.tell(1)
        await room.settle()
        room.state.asked.clear()
        for id in (None, one.broadcast.last_id):
            await one.broadcast.look_for(id)

        assert room.state.asked == []


async def test_a_replica_that_comes_later_remembers_what_all_do() -> None:
    async with a_room(1) as room:
        (one,) = room.replicas
        one.tell(1, 2)
        await room.settle()
        late = Replica(room.state, room.clock)
        async with late.link.running():
            await late.hears()

            assert late.remembered() == [1, 2]


async def test_without_the_store_frames_are_shown_here_at_once() -> None:
    async with a_room() as room:
        one, other = room.replicas
        await one.cut_off()
        one.tell(1)

        assert one.remembered() == [1]
        await room.settle()
        assert other.remembered() == []


async def test_what_was_shown_alone_is_told_later_and_shown_once() -> None:
    async with a_room() as room:
        one, other = room.replicas
        one.tell(1)
        await room.settle()
        await one.cut_off()
        one.tell(2)
        other.tell(3)
        await room.settle()
        assert (await one.told(), await other.told()) == ([1, 2], [1, 3])
        await room.join(one)

        assert (await one.told(), await other.told()) == ([3], [2])
        assert one.remembered() == other.remembered() == [1, 3, 2]


async def test_an_id_from_the_time_alone_gets_all_and_is_told() -> None:
    """Whoever was shown it here has missed what happened elsewhere."""
    async with a_room() as room:
        one, other = room.replicas
        await one.cut_off()
        one.tell(2)
        alone = one.broadcast.last_id
        assert one.after(alone) == ([], False)
        other.tell(3)
        await room.settle()
        await room.join(one)

        assert one.after(alone) == other.after(alone) == ([3, 2], True)


async def test_a_frame_that_was_kept_though_the_store_did_not_say_so_is_shown_once() -> None:
    async with a_room() as room:
        one, other = room.replicas
        kept = one.store.append

        async def append(frames: Sequence[Frame]) -> None:
            await kept(frames)
            raise StoreAway("the answer got lost")

        one.store.append = append  # type: ignore[method-assign]
        one.tell(1)
        await room.settle()
        one.store.append = kept  # type: ignore[method-assign]
        one.tell(2)
        await room.settle()

        assert await one.told() == await other.told() == [1, 2]
        assert one.remembered() == other.remembered() == [1, 2]


async def test_a_store_that_takes_nothing_but_tells_is_followed_all_the_same() -> None:
    async with a_room() as room:
        one, other = room.replicas
        keep = one.store.append

        async def refuse(frames: Sequence[Frame]) -> None:
            raise StoreAway("read only")

        one.store.append = refuse  # type: ignore[method-assign]
        one.tell(1)
        await room.settle()
        other.tell(2)
        await room.settle()
        assert one.remembered() == [1, 2]
        one.store.append = keep  # type: ignore[method-assign]
        one.tell(3)
        await room.settle()

        assert (await one.told(), await other.told()) == ([1, 2, 3], [2, 1, 3])
        assert one.remembered() == other.remembered() == [2, 1, 3]


async def test_news_that_the_ring_has_told_already_are_no_news() -> None:
    async with a_room() as room:
        one, other = room.replicas
        other.tell(1, 2)
        await room.settle()
        first, *_ = room.state.ring
        one.journal.take(first)
        await one.journal.synchronise()

        assert await one.told() == one.remembered() == [1, 2]


async def test_what_came_while_the_news_were_lost_is_shown_once_they_are_back() -> None:
    async with a_room() as room:
        one, other = room.replicas
        one.store.deaf = True
        other.tell(1, 2)
        await room.settle()
        one.store.deaf = False
        one.store.hear(Resumed())
        other.tell(3)
        await room.settle()

        assert await one.told() == one.remembered() == [1, 2, 3]


async def test_own_frames_whose_news_got_lost_are_looked_for() -> None:
    async with a_room(1) as room:
        (one,) = room.replicas
        one.store.deaf = True
        one.tell(1)
        await room.settle()
        await one.journal.tick()
        assert one.remembered() == []
        await room.clock.move(OVERDUE_SECONDS)
        await one.journal.tick()

        assert await one.told() == [1]


async def after_a_loss(room: Room) -> list[Replica]:
    """Let the store lose its memory between the news of one replica and of the other; return both."""
    one, other = room.replicas
    one.tell(1)
    await room.settle()
    room.state.forget()
    await room.settle()
    other.tell(2)
    await room.settle()
    return [one, other]


async def test_a_store_that_lost_its_memory_takes_nothing_from_ours() -> None:
    async with a_room() as room:
        one, other = await after_a_loss(room)

        assert one.remembered() == other.remembered() == [1, 2]
        assert await one.told() == [1, 2]


async def test_nor_does_it_when_it_is_read_again_after_it_was_told_something_since() -> None:
    async with a_room() as room:
        one, _ = await after_a_loss(room)

        await one.journal.synchronise()

        assert one.remembered() == [1, 2]
        assert await one.told() == [1, 2]


async def test_who_was_away_for_a_whole_ring_tells_that_some_is_missed() -> None:
    async with a_room(capacity=5) as room:
        one, other = room.replicas
        one.tell(0)
        await room.settle()
        last = one.broadcast.last_id
        await one.cut_off()
        other.tell(*range(1, 10))
        await room.settle()
        await room.join(one)

        assert one.after(last) == other.after(last) == ([5, 6, 7, 8, 9], True)


async def test_more_than_can_wait_is_dropped_and_said_to_be() -> None:
    async with a_room() as room:
        one, other = room.replicas
        await one.cut_off()
        one.tell(*range(MOST_WAITING + 7))
        await room.join(one)

        assert one.journal.dropped == 7
        assert other.remembered() == one.remembered() == list(range(507, MOST_WAITING + 7))
        assert {"events": 7} in [event.details for event in one.emitted if isinstance(event, Noticed)]


async def test_who_hurries_shows_at_once_and_still_tells_the_others() -> None:
    """The last words come before the feed ends, which is before the store has answered."""
    async with a_room(1) as room:
        (one,) = room.replicas
        one.tell(1)
        one.journal.hurry()
        one.tell(2)

        assert one.remembered() == [1, 2]
    assert [json.loads(frame.text)["payload"]["number"] for frame in room.state.ring] == [1, 2]


STEPS = st.lists(
    st.tuples(st.sampled_from(["tell", "tell", "tell", "cut", "join", "deaf", "settle"]), st.integers(0, 1)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_everybody_sees_everything_once_and_remembers_one_order(
    steps: list[tuple[str, int]],
) -> None:
    async def play() -> None:
        async with a_room() as room:
            sent = 0
            heard: list[list[int]] = [[], []]
            for step, which in steps:
                replica = room.replicas[which]
                match step:
                    case "tell":
                        replica.tell(sent)
                        sent += 1
                    case "cut" if not replica.store.away:
                        await replica.cut_off()
                    case "join" if replica.store.away:
                        await room.join(replica)
                    case "deaf":
                        replica.store.deaf = True
                    case "settle":
                        await room.settle()
            for replica in room.replicas:
                if replica.store.deaf:
                    replica.store.deaf = False
                    replica.store.hear(Resumed())
                if replica.store.away:
                    await room.join(replica)
            await room.settle()
            for replica, texts in zip(room.replicas, heard, strict=True):
                texts += await replica.told()

            one, other = room.replicas
            assert sorted(heard[0]) == sorted(heard[1]) == list(range(sent))
            assert one.remembered() == other.remembered()
            assert sorted(one.remembered()) == list(range(sent))

    asyncio.run(play())
