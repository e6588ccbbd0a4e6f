"""A store that may be away: whoever asks is answered soon, or told at once that it is not there."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
from harness import eventually

from sentinel_proxy import background
from sentinel_proxy.events import Event, Noticed
from sentinel_proxy.model import StateHealth
from sentinel_proxy.replica import link as module
from sentinel_proxy.replica.link import BYPASS_SECONDS, FAILURES, Link
from sentinel_proxy.stores.base import Store, StoreAway
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

SECRET = "sk-of-somebody"
SLACK_SECONDS = module.SLACK_SECONDS


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine wakes tests late; here that is no excuse for the store."""
    monkeypatch.setattr(module, "SLACK_SECONDS", 60.0)


class FarStore:
    """As much of a store as a link knows of: it is there or not, and may keep who asks waiting."""

    kind = "redis"
    shared = True

    def __init__(self, *, there: bool = True) -> None:
        self.there = there
        self.answers = asyncio.Event()  # pings and opening wait for it
        self.answers.set()
        self.seconds = 0.0  # that a ping takes
        self.opened = self.pings = self.closed = 0
        self.pinging = 0

    async def open(self) -> None:
        await self._answer()
        self.opened += 1

    async def ping(self) -> None:
        self.pings += 1
        self.pinging += 1
        try:
            assert self.pinging == 1, "one ping at a time"
            await self._answer()
        finally:
            self.pinging -= 1

    async def aclose(self) -> None:
        self.closed += 1

    async def _answer(self) -> None:
        await asyncio.sleep(self.seconds)
        await self.answers.wait()
        if not self.there:
            raise StoreAway("nobody listens there")


Question = Callable[[Store], Awaitable[int]]


async def answered(_: Store) -> int:
    return 42


async def failed(_: Store) -> int:
    raise StoreAway("the connection was lost")


def unanswered(until: asyncio.Event, error: StoreAway | None = None) -> Question:
    """A question that is answered once *until* is set."""

    async def question(_: Store) -> int:
        await until.wait()
        if error is not None:
            raise error
        return 42

    return question


class Parts:
    """A link and what it works with."""

    def __init__(self, store: FarStore) -> None:
        self.store = store
        self.clock = FakeClock()
        self.state = StateHealth()
        self.events: list[Event] = []
        self.link = Link(cast(Store, store), self.clock, self.state, self.events.append, "01REPLICA")

    @property
    def levels(self) -> list[str]:
        """How grave each of that is."""
        return [event.level for event in self.events if isinstance(event, Noticed)]

    @property
    def told(self) -> list[str]:
        """What operators read, in order."""
        return [event.message for event in self.events if isinstance(event, Noticed)]

    async def fails(self, times: int, question: Question = failed, **options: Any) -> None:
        for _ in range(times):
            with pytest.raises(StoreAway):
                await self.link.ask("write", question, **options)

    async def goes(self) -> None:
        """Have the store go, and pings wait for `store.answers`."""
        self.store.answers.clear()
        await self.fails(FAILURES)


@asynccontextmanager
async def linked(store: FarStore | None = None) -> AsyncIterator[Parts]:
    parts = Parts(store if store is not None else FarStore())
    async with parts.link.running():
        yield parts


class TestAsking:
    async def test_a_store_that_is_there_answers(self) -> None:
        async with linked() as parts:
            assert await parts.link.ask("read", answered) == 42

        assert parts.state.errors == {"read": 0, "write": 0}
        assert parts.told == []

    async def test_a_store_that_was_not_opened_is_not_asked(self) -> None:
        parts = Parts(FarStore())
        asked: list[Store] = []

        async def question(store: Store) -> int:
            asked.append(store)
            return 42

        with pytest.raises(StoreAway):
            await parts.link.ask("read", question)

        assert (asked, parts.link.up) == ([], False)

    async def test_who_asks_is_let_go_in_time_and_the_command_goes_on(self) -> None:
        done = asyncio.Event()
        ended: list[int] = []

        async def question(store: Store) -> int:
            ended.append(await unanswered(done)(store))
            return 42

        async with linked() as parts:
            with pytest.raises(StoreAway, match="no answer within 10 ms"):
                await parts.link.ask("read", question, 0.01)
            done.set()
            await eventually(lambda: ended)

        assert parts.state.errors == {"read": 1, "write": 0}

    async def test_a_command_counts_once_late_and_failed_as_it_may_be(self) -> None:
        fails = asyncio.Event()
        async with linked() as parts:
            await parts.fails(1, unanswered(fails, StoreAway("lost")), within_seconds=0.01)
            fails.set()

        assert parts.state.errors["write"] == 1

    async def test_who_hangs_up_leaves_a_command_that_still_counts(self) -> None:
        fails = asyncio.Event()
        async with linked() as parts:
            asking = asyncio.create_task(parts.link.ask("write", unanswered(fails, StoreAway("lost"))))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            fails.set()
            await eventually(lambda: parts.state.errors["write"])

    async def test_any_mistake_inside_a_store_is_an_absence_and_its_text_stays_there(self) -> None:
        async def question(_: Store) -> int:
            raise ValueError(SECRET)

        async with linked() as parts:
            with pytest.raises(StoreAway, match="ValueError") as caught:
                await parts.link.ask("read", question)

        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None
        assert parts.state.errors["read"] == 1

    async def test_what_this_process_was_too_busy_for_is_not_held_against_the_store(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "SLACK_SECONDS", SLACK_SECONDS)
        never = asyncio.Event()
        async with linked() as parts:
            asyncio.get_running_loop().call_soon(time.sleep, 0.05)
            with pytest.raises(StoreAway):
                await parts.link.ask("read", unanswered(never), 0.01)
            assert parts.state.errors["read"] == 0
            never.set()

    async def test_but_what_took_too_long_in_any_case_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An asker who was let go while this process was busy: the end of the command tells."""
        monkeypatch.setattr(module, "SLACK_SECONDS", SLACK_SECONDS)
        monkeypatch.setattr(module, "BUSY_SECONDS", 0.02)
        answer = asyncio.Event()
        async with linked() as parts:
            asyncio.get_running_loop().call_soon(time.sleep, 0.05)
            with pytest.raises(StoreAway):
                await parts.link.ask("read", unanswered(answer), 0.01)
            answer.set()
            await eventually(lambda: parts.state.errors["read"])

            assert parts.state.errors["read"] == 1


class TestGoing:
    async def test_three_failures_in_a_row_and_nobody_asks_any_more(self) -> None:
        asked = 0

        async def question(_: Store) -> int:
            nonlocal asked
            asked += 1
            raise StoreAway("the connection was lost")

        store = FarStore()
        async with linked(store) as parts:
            store.answers.clear()
            parts.clock.advance(60)
            went = parts.clock.time()
            await parts.fails(FAILURES + 5, question)

            assert (asked, parts.link.up, parts.state.up) == (FAILURES, False, False)
            assert parts.state.errors["write"] == FAILURES
            assert parts.state.since == went

    async def test_an_answer_in_between_forgives_the_failures_before_it(self) -> None:
        async with linked() as parts:
            await parts.fails(FAILURES - 1)
            await parts.link.ask("read", answered)
            await parts.fails(FAILURES - 1)

            assert parts.link.up

    async def test_operators_are_told_once_that_it_went_and_once_that_it_is_back(self) -> None:
        store = FarStore()
        async with linked(store) as parts:
            await parts.goes()
            store.there = False
            store.answers.set()
            await eventually(lambda: store.pings > 3)
            store.there = True
            await eventually(lambda: parts.link.up)

        assert [(event.level, event.details) for event in parts.events if isinstance(event, Noticed)] == [
            ("warning", {"kind": "redis", "why": "the connection was lost"}),
            ("info", {"kind": "redis"}),
        ]

    async def test_what_fails_together_is_one_accident(self) -> None:
        """A server that forks holds up everybody for a moment, and is not away."""
        silence = asyncio.Event()
        store = FarStore()
        async with linked(store) as parts:
            store.answers.clear()
            up = []
            for _ in range(FAILURES):
                asking = [parts.link.ask("write", unanswered(silence), 0.01) for _ in range(50)]
                results = await asyncio.gather(*asking, return_exceptions=True)
                assert {type(result) for result in results} == {StoreAway}
                up.append(parts.link.up)
            silence.set()

        assert up == [True] * (FAILURES - 1) + [False]
        assert parts.state.errors["write"] == 50 * FAILURES
        assert len(parts.told) == 1


class TestSlow:
    """J04: what answers, but too late for who asks, is as good as away."""

    async def test_a_store_too_slow_for_its_askers_is_away_until_it_is_quick_enough_for_them(self) -> None:
        store = FarStore()
        silence = asyncio.Event()
        async with linked(store) as parts:
            store.seconds = 0.2
            await parts.fails(FAILURES, unanswered(silence), within_seconds=0.02)
            await eventually(lambda: store.pings >= 2)
            away = not parts.link.up
            store.seconds = 0.0
            await eventually(lambda: parts.link.up)
            silence.set()

        assert away

    async def test_a_store_that_is_a_little_too_slow_comes_and_goes_without_a_word(self) -> None:
        store = FarStore()
        silence = asyncio.Event()
        async with linked(store) as parts:
            store.seconds = 0.05
            for _ in range(3):
                await parts.fails(FAILURES, unanswered(silence), within_seconds=0.02)
                await eventually(lambda: parts.link.up)
            went_and_came = parts.levels
            await parts.fails(FAILURES, unanswered(silence), within_seconds=0.02)
            store.seconds = 0.0
            while parts.levels == went_and_came:
                with suppress(StoreAway):  # a command proves as much as a ping that came late
                    await parts.link.ask("read", answered)
                await asyncio.sleep(0.01)
            silence.set()

        assert went_and_came == ["warning"]
        assert parts.levels == ["warning", "info"]

    async def test_an_answer_that_is_late_for_others_forgives_nothing(self) -> None:
        silence = asyncio.Event()

        async def slow(_: Store) -> int:
            await asyncio.sleep(0.04)
            return 42

        store = FarStore()
        async with linked(store) as parts:
            store.answers.clear()
            for _ in range(FAILURES):
                await parts.fails(1, unanswered(silence), within_seconds=0.01)
                if parts.link.up:
                    assert await parts.link.ask("read", slow) == 42
            silence.set()

            assert not parts.link.up

    async def test_who_has_patience_does_with_a_slow_store(self) -> None:
        async def slow(_: Store) -> int:
            await asyncio.sleep(0.04)
            return 42

        async with linked() as parts:
            answers = [await parts.link.ask("read", slow) for _ in range(FAILURES)]

            assert (answers, parts.link.up) == ([42] * FAILURES, True)


class TestReturn:
    async def test_one_ping_at_a_time_looks_whether_it_is_back(self) -> None:
        store = FarStore()
        async with linked(store) as parts:
            store.there = False
            await parts.fails(FAILURES)
            await eventually(lambda: store.pings >= 4)

            assert parts.clock.sleeps[:4] == [BYPASS_SECONDS] * 4

    async def test_whoever_wants_to_know_is_told_at_the_first_time_and_at_every_return(self) -> None:
        told: list[str] = []

        async def breakers() -> None:
            told.append(f"breakers, up: {parts.link.up}")

        async def journal() -> None:
            told.append("journal")

        parts = Parts(FarStore())
        parts.link.on_return(breakers)
        parts.link.on_return(journal)
        async with parts.link.running():
            first = list(told)
            await parts.goes()
            parts.store.answers.set()
            await eventually(lambda: len(told) == 4)

        assert first == ["breakers, up: True", "journal"]
        assert told == first * 2

    async def test_a_part_that_goes_wrong_harms_neither_the_others_nor_the_link(self) -> None:
        told: list[str] = []

        async def away() -> None:
            raise StoreAway("again")

        async def mistaken() -> None:
            raise ValueError(SECRET)

        async def fine() -> None:
            told.append("fine")

        parts = Parts(FarStore())
        for callback in (away, mistaken, fine):
            parts.link.on_return(callback)
        async with parts.link.running():
            await parts.goes()
            parts.store.answers.set()
            await eventually(lambda: len(told) == 2)

        mistakes = [event for event in parts.events if isinstance(event, Noticed) and event.level == "error"]
        assert [mistake.details for mistake in mistakes] == [{"kind": "ValueError"}] * 2


class TestStartAndEnd:
    async def test_a_start_without_the_store_is_a_start(self) -> None:
        """J01."""
        store = FarStore(there=False)
        async with linked(store) as parts:
            with pytest.raises(StoreAway):
                await parts.link.ask("read", answered)
            told = list(parts.told)
            store.there = True
            await eventually(lambda: parts.link.up)

            assert await parts.link.ask("read", answered) == 42

        assert told == ["the state store is away; this replica goes on alone"]
        assert (store.opened, parts.told[1:]) == (1, ["the state store is back"])

    async def test_a_store_that_says_nothing_does_not_hold_up_the_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "START_SECONDS", 0.01)
        store = FarStore()
        store.answers.clear()
        async with linked(store) as parts:
            started_without = not parts.link.up
            store.answers.set()
            await eventually(lambda: parts.link.up)

        assert started_without

    async def test_the_end_lets_commands_end_and_closes_the_store(self) -> None:
        soon = asyncio.Event()
        store = FarStore()
        async with linked(store) as parts:
            asking = asyncio.create_task(parts.link.ask("write", unanswered(soon)))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(soon.set)

        assert await asking == 42
        assert store.closed == 1
        with pytest.raises(StoreAway):
            await parts.link.ask("read", answered)

    async def test_the_end_does_not_wait_for_a_command_without_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.01)
        async with linked() as parts:
            asking = asyncio.create_task(parts.link.ask("write", unanswered(asyncio.Event()), 60))
            await asyncio.sleep(0)

        with pytest.raises(StoreAway, match="was closed"):
            await asking

    async def test_a_client_that_swallows_a_cancellation_does_not_keep_the_link_from_ending(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before Python 3.12 `asyncio.wait_for` does, where the wait ends as the cancellation comes."""
        monkeypatch.setattr(background, "CANCELLED_SECONDS", 0.01)
        store = FarStore()

        async def ping() -> None:
            store.pings += 1
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

        async with linked(store) as parts:
            monkeypatch.setattr(store, "ping", ping)
            await parts.fails(FAILURES)
            await eventually(lambda: store.pings)

        assert store.closed == 1


async def test_the_link_says_how_it_is_and_no_more() -> None:
    async with linked() as parts:
        assert repr(parts.link) == "<Link to redis, up>"
        assert (parts.state.kind, parts.state.since) == ("redis", parts.clock.time())
