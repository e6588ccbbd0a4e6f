"""The rate limit of a client over all replicas, while they hear of each other and while they do not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, cast

import pytest
from fake_store import FakeState, FakeStore
from harness import eventually
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.events import Event
from sentinel_proxy.model import StateHealth
from sentinel_proxy.replica import limits, link
from sentinel_proxy.replica.limits import SharedLimit
from sentinel_proxy.replica.link import FAILURES, Link
from sentinel_proxy.resilience.rate_limit import Decision, SlidingLog
from sentinel_proxy.stores.base import Store
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

T = TypeVar("T")
WINDOW = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine wakes tests late; here that is no excuse for the store, and no reason to go without."""
    monkeypatch.setattr(link, "SLACK_SECONDS", 60.0)
    monkeypatch.setattr(limits, "ADMIT_SECONDS", 60.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a store that does not answer: the sooner it is given up, the better."""
    monkeypatch.setattr(limits, "ADMIT_SECONDS", 0.02)


class SilentStore(FakeStore):
    """A store that counts, but answers only once it is told to."""

    def __init__(self, state: FakeState) -> None:
        super().__init__(state)
        self.answers = asyncio.Event()

    async def admit(self, key: str, limit: int, window_seconds: float, requests: int) -> Sequence[Decision]:
        decisions = await super().admit(key, limit, window_seconds, requests)
        await self.answers.wait()
        return decisions

    async def ping(self) -> None:
        await self.answers.wait()


class Replica:
    """One of several processes, as far as the limit goes."""

    def __init__(self, store: FakeStore, clock: FakeClock, limit: int) -> None:
        self.store = store
        self.limit = limit
        self.events: list[Event] = []
        self.log = SlidingLog(limit, WINDOW)
        self.link = Link(cast(Store, store), clock, StateHealth(), self.events.append, "01REPLICA")
        self.shared = SharedLimit(self.log, self.link, clock)

    async def ask(self, key: str = "web") -> Decision:
        return await self.shared.admit(key, self.limit)

    async def admitted(self, calls: int, key: str = "web") -> int:
        """Return how many of so many calls, one after the other, are let through."""
        return sum([(await self.ask(key)).allowed for _ in range(calls)])


@asynccontextmanager
async def replicas(
    *kinds: Callable[[FakeState], FakeStore], limit: int = 100
) -> AsyncIterator[tuple[FakeState, FakeClock, list[Replica]]]:
    clock = FakeClock()
    state = FakeState(clock)
    async with AsyncExitStack() as stack:
        those = [Replica(kind(state), clock, limit) for kind in kinds]
        for replica in those:
            await stack.enter_async_context(replica.link.running())
        yield state, clock, those


async def test_i05_two_hundred_at_once_at_two_replicas_and_exactly_a_hundred_pass() -> None:
    async with replicas(FakeStore, FakeStore) as (_, _, (one, other)):
        decisions = await asyncio.gather(*(replica.ask() for replica in (one, other) for _ in range(100)))

    assert sum(decision.allowed for decision in decisions) == 100


async def test_every_replica_tells_what_is_left_of_all() -> None:
    async with replicas(FakeStore, FakeStore, limit=3) as (_, clock, (one, other)):
        first = await one.ask()
        clock.advance(10)
        second, third = await other.ask(), await one.ask()
        refused = await other.ask()

    assert [first.remaining, second.remaining, third.remaining] == [2, 1, 0]
    assert refused == Decision(False, 3, 0, retry_after_seconds=50.0, reset_seconds=60.0)


async def test_a_shared_limit_says_over_what_it_is_shared() -> None:
    async with replicas(FakeStore) as (_, _, (one,)):
        assert repr(one.shared) == "<SharedLimit over <Link to fake, up>>"


async def test_clients_do_not_share_a_limit() -> None:
    """I06."""
    async with replicas(FakeStore, FakeStore, limit=1) as (_, _, (one, other)):
        assert await one.admitted(2, "web") == 1
        assert await other.admitted(2, "batch") == 1


async def test_a_client_that_used_up_its_limit_here_costs_the_store_nothing() -> None:
    async with replicas(FakeStore, limit=3) as (state, _, (one,)):
        await one.admitted(3)
        state.asked.clear()

        refused = [await one.ask() for _ in range(50)]

        assert {decision.allowed for decision in refused} == {False}
        assert state.asked == []


class TestTogether:
    """Calls of one client that come at once, or while a question about it is out, share a question."""

    async def test_many_calls_at_once_cost_one_question(self) -> None:
        async with replicas(FakeStore, limit=60) as (state, _, (one,)):
            state.asked.clear()
            decisions = await asyncio.gather(*(one.ask() for _ in range(100)))

        assert state.asked == ["admit"]
        assert [decision.allowed for decision in decisions] == [True] * 60 + [False] * 40
        assert [decision.remaining for decision in decisions] == [*reversed(range(60)), *[0] * 40]

    async def test_another_client_is_another_question(self) -> None:
        async with replicas(FakeStore, limit=60) as (state, _, (one,)):
            state.asked.clear()
            await asyncio.gather(one.ask("web"), one.ask("batch"), one.ask("web"))

        assert state.asked == ["admit", "admit"]

    async def test_whoever_comes_while_a_question_is_out_waits_for_the_next(self) -> None:
        async with replicas(SilentStore, limit=60) as (state, _, (one,)):
            first = asyncio.create_task(one.ask())
            await eventually(lambda: "admit" in state.asked)
            others = [asyncio.create_task(one.ask()) for _ in range(20)]
            await asyncio.sleep(0)
            cast(SilentStore, one.store).answers.set()
            decisions = await asyncio.gather(first, *others)

        assert state.asked.count("admit") == 2
        assert [decision.remaining for decision in decisions] == [*reversed(range(39, 60))]

    async def test_a_caller_who_leaves_takes_nobody_along(self) -> None:
        async with replicas(SilentStore, limit=60) as (state, _, (one,)):
            calls = [asyncio.create_task(one.ask()) for _ in range(3)]
            await eventually(lambda: "admit" in state.asked)
            for call in calls[:2]:
                call.cancel()
            cast(SilentStore, one.store).answers.set()

            assert (await calls[2]).allowed
            assert [type(each) for each in await asyncio.gather(*calls[:2], return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 2

    @pytest.mark.usefixtures("hasty")
    async def test_a_caller_who_leaves_before_the_store_is_given_up_takes_nobody_along(self) -> None:
        async with replicas(SilentStore, limit=60) as (state, _, (one,)):
            calls = [asyncio.create_task(one.ask()) for _ in range(3)]
            await eventually(lambda: "admit" in state.asked)
            calls[0].cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            cast(SilentStore, one.store).answers.set()

        assert [type(result) for result in results] == [asyncio.CancelledError, Decision, Decision]

    @pytest.mark.usefixtures("hasty")
    async def test_who_waits_behind_a_question_without_an_answer_does_not_wait_for_a_second(self) -> None:
        async with replicas(SilentStore, limit=60) as (state, _, (one,)):
            decisions = await asyncio.gather(*(one.ask() for _ in range(20)))

            assert state.asked.count("admit") == 1
            assert {decision.allowed for decision in decisions} == {True}
            cast(SilentStore, one.store).answers.set()


class TestAway:
    async def test_what_was_let_through_before_counts_on(self) -> None:
        async with replicas(FakeStore, limit=10) as (_, _, (one,)):
            assert await one.admitted(6) == 6
            one.store.away = True

            assert await one.admitted(10) == 4

    async def test_a_call_is_let_through_rather_than_refused(self) -> None:
        async with replicas(FakeStore, FakeStore, limit=10) as (_, _, (one, other)):
            assert await one.admitted(10) == 10
            other.store.away = True

            assert await other.admitted(11) == 10

    @pytest.mark.usefixtures("hasty")
    async def test_an_answer_that_does_not_come_in_time_is_not_waited_for(self) -> None:
        async with replicas(SilentStore, limit=10) as (_, _, (one,)):
            assert await one.ask() == Decision(True, 10, 9, 0.0, WINDOW)
            cast(SilentStore, one.store).answers.set()

    @pytest.mark.usefixtures("hasty")
    async def test_nobody_waits_once_it_is_known(self) -> None:
        async with replicas(SilentStore, limit=10) as (state, _, (one,)):
            await one.admitted(FAILURES)
            state.asked.clear()

            assert immediate(one.ask()).allowed
            assert state.asked == []
            cast(SilentStore, one.store).answers.set()

    @pytest.mark.usefixtures("hasty")
    async def test_a_store_that_is_back_counts_for_all_again(self) -> None:
        async with replicas(SilentStore, FakeStore, limit=10) as (_, _, (one, other)):
            await one.admitted(FAILURES)
            cast(SilentStore, one.store).answers.set()
            await eventually(lambda: one.link.up)

            assert await other.admitted(10 - FAILURES) == 10 - FAILURES  # the store heard of the late ones
            assert await one.admitted(1) == 0

    async def test_a_store_that_lost_its_memory_hands_out_nothing_twice_here(self) -> None:
        async with replicas(FakeStore, limit=10) as (state, _, (one,)):
            await one.admitted(10)
            state.forget()

            assert await one.admitted(5) == 0

    async def test_nor_to_calls_that_come_together(self) -> None:
        async with replicas(FakeStore, limit=10) as (state, _, (one,)):
            await one.admitted(6)
            state.forget()

            decisions = await asyncio.gather(*(one.ask() for _ in range(10)))

            assert sum(decision.allowed for decision in decisions) == 4


async def test_a_slow_answer_does_not_make_the_window_longer() -> None:
    """The request counts from when it was asked for, here as in the store."""
    async with replicas(SilentStore, limit=1) as (state, clock, (one,)):
        asking = asyncio.create_task(one.ask())
        await eventually(lambda: "admit" in state.asked)
        clock.advance(0.01)
        cast(SilentStore, one.store).answers.set()
        assert (await asking).allowed

        clock.advance(WINDOW - 0.01)

        assert (await one.ask()).allowed


class Wire:
    """As much of a link as the limit uses; it asks whatever happened before."""

    up = True

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def ask(self, _: str, question: Callable[[Any], Awaitable[T]], __: float) -> T:
        return await question(self._store)


def immediate(asking: Any) -> Decision:
    """Return what a coroutine returns that waits for nothing."""
    with pytest.raises(StopIteration) as ended:
        asking.send(None)
    return cast(Decision, ended.value.value)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 1)),
        st.tuples(st.just("pass"), st.sampled_from((1, 19, 20, 41, 59, 60, 61))),
        st.tuples(st.sampled_from(("go", "return")), st.integers(0, 1)),
        st.tuples(st.just("forget"), st.just(0)),
    ),
    min_size=10,
    max_size=60,
)


@given(steps=STEPS, limit=st.integers(1, 4))
def test_whatever_the_store_does_nobody_is_refused_too_early_or_let_through_twice(
    steps: list[tuple[str, int]], limit: int
) -> None:
    """
    Refused is only who has made as many calls in the window as the limit says, all replicas together.

    No replica alone lets more through than that, and all together do not either, unless the
    store was out of reach or has forgotten something within the window.
    """
    clock = FakeClock()
    state = FakeState(clock)
    stores = [state.store(), state.store()]
    limits = [SharedLimit(SlidingLog(limit, WINDOW), cast(Link, Wire(store)), clock) for store in stores]
    admitted: list[tuple[float, int]] = []
    disturbed = -1000.0
    for step, value in steps:
        now = clock.monotonic()
        if any(store.away for store in stores) or step == "forget":
            disturbed = now
        if step == "pass":
            clock.advance(value)
            disturbed = clock.monotonic() if disturbed == now else disturbed
        elif step == "forget":
            state.forget()
        elif step in ("go", "return"):
            stores[value].away = step == "go"
        else:
            allowed = asyncio.run(limits[value].admit("web", limit)).allowed
            lately = [who for at, who in admitted if at > now - WINDOW]
            assert allowed or len(lately) >= limit
            assert not allowed or lately.count(value) < limit
            if disturbed <= now - WINDOW:
                assert allowed == (len(lately) < limit)
            if allowed:
                admitted.append((now, value))
