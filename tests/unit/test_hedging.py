"""The race of a slow provider with the next one: no sockets, time and the order of things by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.config import BreakerConfig, HedgeConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.errors import FailureKind, NoReply, UpstreamError
from sentinel_proxy.events import CallFailedOver, CallHedged, CallRetried, Event
from sentinel_proxy.failover import Failover
from sentinel_proxy.hedging import MAX_LOAD, MAX_PROMPT_BYTES, Hedging
from sentinel_proxy.model import Call, Controls, Endpoint, Load, ReplyHead, UpstreamRequest
from sentinel_proxy.providers.base import Decoder, Provider
from sentinel_proxy.reply import Reply
from sentinel_proxy.resilience.hedge import BURST, LEAST_SAMPLES
from sentinel_proxy.resilience.retry import RetryPolicy
from sentinel_proxy.testing import FakeClock
from sentinel_proxy.upstream import base
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wheel import Alarm, Wheel

pytestmark = pytest.mark.anyio

DELAY = 2.0
MAX_IN_FLIGHT = 100
Kind = FailureKind


def failure(kind: FailureKind, status: int | None = None) -> UpstreamError:
    return UpstreamError(kind, f"scripted {kind.value}", status=status)


class Exchange(base.Exchange):
    """An answer whose first byte is its first token."""

    def __init__(self) -> None:
        self.head = ReplyHead(200, ())
        self.closed = False
        self._parts = [b"all of it"]

    @property
    def complete(self) -> bool:
        return not self._parts

    async def read(self, until: float) -> bytes:
        return self._parts.pop()

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        self.closed = True


class Lane:
    """A transport whose attempts wait until the test says how they go."""

    def __init__(self) -> None:
        self.attempts: list[asyncio.Future[None]] = []
        self.opened: list[Exchange] = []

    async def open(self, request: UpstreamRequest, *, connect_seconds: float, until: float) -> Exchange:
        going = asyncio.get_running_loop().create_future()
        self.attempts.append(going)
        await going
        self.opened.append(Exchange())
        return self.opened[-1]

    async def aclose(self) -> None:
        pass

    def answers(self) -> None:
        """Let the attempt that is under way answer, unless it has been given up."""
        if not self.attempts[-1].done():
            self.attempts[-1].set_result(None)

    def fails(self, error: UpstreamError) -> None:
        if not self.attempts[-1].done():
            self.attempts[-1].set_exception(error)


class ByHand(Wheel):
    """A wheel that is turned by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.rings: list[tuple[Remembered, Callable[[], None]]] = []

    def set(self, due: float, ring: Callable[[], None]) -> Alarm:
        self.rings.append((Remembered(self, due, ring), ring))
        return self.rings[-1][0]

    def waiting(self) -> list[float]:
        """Return when the alarms that are still set would ring."""
        return [alarm.due for alarm, _ in self.rings if not alarm.cancelled]

    def ring(self) -> None:
        rings, self.rings = self.rings, []
        for alarm, ring in rings:
            if not alarm.cancelled:
                ring()


class Remembered(Alarm):
    cancelled = False

    def cancel(self) -> None:
        super().cancel()
        self.cancelled = True


class Whatever(Decoder):
    """Takes any byte for a first token, and the end for a good end."""

    def feed(self, data: bytes) -> bytes:
        self.began, self.progress = True, self.progress + 1
        return data

    def close(self) -> bytes:
        self.finished = self.complete = True
        return b""


class Plain(Provider):
    base_url = "http://scripted"

    def __init__(self, name: str) -> None:
        self.name = name
        self.refuses: Exception | None = None
        self.authorizes = True

    def serves(self, endpoint: Endpoint) -> bool:
        return True

    def can_authorize(self, call: Call) -> bool:
        return self.authorizes

    def encode(self, call: Call) -> UpstreamRequest:
        if self.refuses is not None:
            raise self.refuses
        return UpstreamRequest("POST", "/", ())

    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        return Whatever()

    def failure(self, call: Call, head: ReplyHead, body: bytes) -> UpstreamError:
        raise AssertionError("scripted failures come from the transport")

    def probe(self) -> UpstreamRequest:
        return UpstreamRequest("GET", "/", ())


@dataclass
class Bench:
    """A failover that hedges, over providers a, b, c, and everything there is to see of it."""

    size: int = 2
    delay: float = DELAY
    attempts: int = 1
    clock: FakeClock = field(default_factory=FakeClock)
    wheel: ByHand = field(default_factory=ByHand)
    load: Load = field(default_factory=Load)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lanes = [Lane() for _ in range(self.size)]
        self.providers = [Plain(name) for name in "abc"[: self.size]]
        retry = RetryConfig(attempts=self.attempts)
        self.upstreams = [
            Upstream.build(
                provider,
                lane,
                timeouts=TimeoutsConfig(),
                breaker=BreakerConfig(),
                retry=retry,
                emit=self.events.append,
            )
            for provider, lane in zip(self.providers, self.lanes, strict=True)
        ]
        settings = HedgeConfig(enabled=True, delay=self.delay)
        self.hedging = Hedging(settings, self.load, MAX_IN_FLIGHT, self.wheel, self.clock, self.events.append)
        policy = RetryPolicy(retry, self.clock, lambda low, high: high)
        self.failover = Failover(self.upstreams, policy, self.clock, self.events.append, self.hedging)

    def call(self, **fields: Any) -> Call:
        now = self.clock.monotonic()
        defaults: dict[str, Any] = {
            "trace_id": "t",
            "endpoint": Endpoint.CHAT,
            "body": b"{}",
            "payload": {"model": "m"},
            "model": "m",
            "stream": True,
            "started": now,
            "deadline": now + 600.0,
        }
        return Call(**(defaults | fields))

    @asynccontextmanager
    async def asking(self, call: Call | None = None) -> AsyncIterator["Asked"]:
        """Ask as the API does, in a task of its own, and see afterwards that nothing is held."""
        asked = Asked(call or self.call(), self.clock)
        asked.task = asyncio.create_task(asked.run(self.failover.open(asked.call)))
        await settle()
        try:
            yield asked
            await settle()
        finally:
            asked.leave()
            await asyncio.wait((asked.task,))
            await settle()
        if not asked.task.cancelled():
            asked.task.exception()  # retrieved
        if asked.reply is not None:
            asked.reply.close()
        assert self.holds_nothing()

    def holds_nothing(self) -> bool:
        return (
            all(upstream.in_flight == 0 for upstream in self.upstreams)
            and all(exchange.closed for lane in self.lanes for exchange in lane.opened)
            and all(going.done() for lane in self.lanes for going in lane.attempts)
            and not self.wheel.waiting()
            and not any(task.get_name().startswith("hedge") for task in asyncio.all_tasks())
        )

    def late(self, seconds: float = DELAY) -> None:
        """Let the hedge become due."""
        self.clock.advance(seconds)
        self.wheel.ring()

    def asked_times(self) -> list[int]:
        return [len(lane.attempts) for lane in self.lanes]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Asked:
    """One call under way."""

    call: Call
    clock: FakeClock
    reply: Reply | None = None
    seconds: float = 0.0  # that it took
    leaves: int = 0  # how often it was cancelled from outside
    cancels_left: int = 0  # what the caller's own code would still see as a cancellation
    task: "asyncio.Task[None]" = field(init=False)

    async def run(self, opening: Coroutine[Any, Any, Reply]) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            self.reply = await opening
        finally:
            self.cancels_left = task.cancelling()
            self.seconds = self.clock.monotonic() - self.call.started

    def leave(self) -> None:
        self.leaves += self.task.cancel()

    @property
    def trail(self) -> str:
        return ",".join(f"{attempt.provider}:{attempt.result}" for attempt in self.call.trail)

    @property
    def winner(self) -> str | None:
        return self.reply.upstream.name if self.reply is not None else None

    def error(self) -> NoReply:
        assert self.task.done()
        error = self.task.exception()
        assert isinstance(error, NoReply)
        return error


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(8):
        await asyncio.sleep(0)


class TestTheRace:
    async def test_h01_who_is_quick_is_raced_with_nobody(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            before = len(asyncio.all_tasks())
            assert bench.wheel.waiting() == [bench.clock.monotonic() + DELAY]
            bench.lanes[0].answers()
            await settle()

            assert len(asyncio.all_tasks()) == before - 1  # the call's own has ended, there was no other
            assert bench.wheel.waiting() == []

        assert (asked.winner, asked.trail) == ("a", "a:200")
        assert bench.asked_times() == [1, 0]
        assert bench.of(CallHedged) == []

    async def test_h02_the_next_one_answers_where_the_first_is_slow(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.clock.advance(3.0)
            bench.lanes[1].answers()

        assert (asked.winner, asked.trail) == ("b", "a:hedged,b:200")
        assert asked.call.attempts == 2
        assert asked.reply is not None
        assert asked.reply.failover
        assert asked.reply.first_token_seconds == 5.0
        assert asked.cancels_left == 0
        assert bench.of(CallHedged) == [CallHedged("t", "a", "b", "b", DELAY)]
        assert bench.of(CallFailedOver) == [CallFailedOver("t", "a", "b", "hedged")]
        assert [attempt.seconds for attempt in asked.call.trail] == [5.0, 3.0]

    async def test_the_slow_one_may_still_be_first(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[0].answers()

        assert (asked.winner, asked.trail) == ("a", "a:200,b:hedged")
        assert asked.call.answered_by == "a"
        assert bench.of(CallHedged) == [CallHedged("t", "a", "b", "a", DELAY)]
        assert bench.of(CallFailedOver) == []

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["the slow one", "the hedge"])
    async def test_of_two_at_the_same_moment_one_is_closed(self, order: tuple[int, int]) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            for lane in order:
                bench.lanes[lane].answers()

        assert asked.winner in ("a", "b")
        assert asked.trail in ("a:hedged,b:200", "a:200,b:hedged")
        assert asked.cancels_left == 0

    async def test_h03_an_early_failure_is_an_ordinary_failover(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.lanes[0].fails(failure(Kind.OVERLOADED, 503))
            await settle()
            bench.lanes[1].answers()

        assert (asked.winner, asked.trail) == ("b", "a:503,b:200")
        assert bench.asked_times() == [1, 1]
        assert bench.of(CallHedged) == []
        assert repr(bench.hedging.budget) == "<HedgeBudget of 5.00 tokens>"

    async def test_who_fails_in_the_race_is_waited_for_by_nobody(self) -> None:
        bench = Bench(attempts=2)

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[0].fails(failure(Kind.OVERLOADED, 503))
            await settle()
            bench.lanes[1].answers()

        assert (asked.winner, asked.trail) == ("b", "a:503,b:200")
        assert bench.asked_times() == [1, 1]  # no retry: its failover was on its way
        assert bench.of(CallHedged) == [CallHedged("t", "a", "b", "b", DELAY)]
        assert bench.of(CallFailedOver) == [CallFailedOver("t", "a", "b", "503")]

    async def test_a_hedge_that_fails_does_not_end_the_race(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[1].fails(failure(Kind.OVERLOADED, 503))
            await settle()
            bench.lanes[0].answers()

        assert (asked.winner, asked.trail) == ("a", "a:200,b:503")
        assert bench.of(CallHedged) == [CallHedged("t", "a", "b", "a", DELAY)]
        assert bench.of(CallFailedOver) == []

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["the slow one first", "the hedge first"])
    async def test_h05_if_both_fail_both_are_told(self, order: tuple[int, int]) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            for lane in order:
                bench.lanes[lane].fails(failure(Kind.RESET) if lane == 0 else failure(Kind.OVERLOADED, 503))
                await settle()

        assert [str(each) for each in asked.error().failures] == ["scripted reset", "scripted overloaded"]
        assert asked.trail == "a:reset,b:503"
        assert bench.of(CallHedged) == [CallHedged("t", "a", "b", "", DELAY)]

    async def test_if_both_fail_each_is_retried_as_its_failure_says(self) -> None:
        bench = Bench(attempts=2)

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[1].fails(failure(Kind.OVERLOADED, 503))
            bench.lanes[0].fails(failure(Kind.TIMEOUT))
            await settle()
            bench.lanes[1].answers()

        assert (asked.winner, asked.trail) == ("b", "a:timeout,b:503,b:200")
        assert [event.provider for event in bench.of(CallRetried)] == ["b"]

    async def test_if_both_fail_the_third_is_asked(self) -> None:
        bench = Bench(size=3)

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[1].fails(failure(Kind.RESET))
            bench.lanes[0].fails(failure(Kind.TIMEOUT))
            await settle()
            assert bench.wheel.waiting() == []  # one hedge a call
            bench.lanes[2].answers()

        assert (asked.winner, asked.trail) == ("c", "a:timeout,b:reset,c:200")

    async def test_a_verdict_on_the_call_itself_ends_the_race(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[0].fails(failure(Kind.CALLER, 400))

        assert [each.status for each in asked.error().failures] == [400]  # type: ignore[union-attr]
        assert asked.trail == "a:400,b:hedged"
        assert bench.of(CallHedged) == [CallHedged("t", "a", "b", "", DELAY)]

    async def test_whoever_was_given_up_for_a_verdict_may_have_its_turn_yet(self) -> None:
        bench = Bench(attempts=2)

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[0].fails(failure(Kind.CONFLICT, 409))
            await settle()
            bench.lanes[0].fails(failure(Kind.PROTOCOL))
            await settle()
            bench.lanes[1].answers()

        assert (asked.winner, asked.trail) == ("b", "a:409,b:hedged,a:protocol,b:200")

    async def test_a_mistake_of_the_first_ones_plugin_ends_the_race(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[0].attempts[0].set_exception(KeyError("of a plugin"))

        assert isinstance(asked.task.exception(), KeyError)

    async def test_h06_whoever_loses_has_voted_for_nothing(self) -> None:
        bench = Bench()
        for upstream in bench.upstreams:
            for _ in range(2):
                upstream.breakers.acquire("m", 0.0).fail(failure(Kind.RESET), 0.0)

        for winner in (1, 0):
            async with bench.asking():
                bench.late()
                await settle()
                bench.lanes[winner].answers()

        assert [upstream.breakers.own.failures for upstream in bench.upstreams] == [2, 2]

    async def test_what_both_have_waited_counts_once(self) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.clock.advance(3.0)
            bench.lanes[1].answers()

        assert asked.call.waited_seconds == pytest.approx(5.0)


class TestTheCallerLeaves:
    @pytest.mark.parametrize("moment", ["both wait", "the first has failed", "the hedge has failed"])
    async def test_and_both_are_ended(self, moment: str) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            if moment == "the first has failed":
                bench.lanes[0].fails(failure(Kind.RESET))
            elif moment == "the hedge has failed":
                bench.lanes[1].fails(failure(Kind.RESET))
            await settle()
            asked.leave()
            await settle()

            assert asked.task.cancelled()
            assert bench.holds_nothing()
        assert asked.cancels_left == 1

    @pytest.mark.parametrize("turns", range(6))
    @pytest.mark.parametrize("lane", [0, 1], ids=["the slow one", "the hedge"])
    async def test_at_any_moment_of_a_win(self, lane: int, turns: int) -> None:
        bench = Bench()

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[lane].answers()
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.leave()
            await settle()

            assert asked.task.cancelled() == (asked.reply is None)


class TestWhen:
    async def test_without_a_delay_of_its_own_nothing_is_late_before_enough_is_known(self) -> None:
        bench = Bench(delay=0)

        for _ in range(LEAST_SAMPLES):
            async with bench.asking():
                assert bench.wheel.waiting() == []
                bench.clock.advance(1.5)
                bench.lanes[0].answers()
        async with bench.asking():
            waiting = bench.wheel.waiting()

        assert waiting == [bench.clock.monotonic() + 1.5]

    async def test_one_that_lost_counts_as_having_taken_so_long(self) -> None:
        bench = Bench(delay=0)
        for _ in range(LEAST_SAMPLES):
            bench.hedging.first_tokens.note("a", "m", 1.0, bench.clock.monotonic())

        for _ in range(3):
            bench.clock.advance(10.0)
            async with bench.asking():
                bench.late(1.0)
                await settle()
                bench.clock.advance(7.0)
                bench.lanes[1].answers()
        bench.clock.advance(10.0)

        assert bench.hedging.late_after("a", "m", bench.clock.monotonic()) == 8.0

    async def test_a_call_that_has_failed_once_is_hedged_no_more(self) -> None:
        bench = Bench(size=3)

        async with bench.asking():
            bench.lanes[0].fails(failure(Kind.RESET))
            await settle()
            assert bench.wheel.waiting() == []

    async def test_who_was_passed_by_has_not_failed(self) -> None:
        bench = Bench(size=3)
        bench.providers[0].authorizes = False

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[2].answers()

        assert asked.trail == "a:unsupported,b:hedged,c:200"

    async def test_the_hedge_passes_by_who_cannot_serve_the_call(self) -> None:
        bench = Bench(size=3)
        bench.providers[1].authorizes = False

        async with bench.asking() as asked:
            bench.late()
            await settle()
            bench.lanes[2].answers()

        assert asked.trail == "a:hedged,c:200"


NOT_THIS_CALL = [
    ("one answer", {"stream": False}),
    ("embeddings", {"endpoint": Endpoint.EMBEDDINGS, "stream": False}),
    ("responses", {"endpoint": Endpoint.RESPONSES}),
    ("a long prompt", {"body": b"x" * (MAX_PROMPT_BYTES + 1)}),
    ("an answer to be kept", {"payload": {"model": "m", "store": True}}),
    ("no failover", {"controls": Controls(no_failover=True)}),
    ("one provider", {"controls": Controls(providers=("a",))}),
]


@pytest.mark.parametrize("fields", [row[1] for row in NOT_THIS_CALL], ids=[row[0] for row in NOT_THIS_CALL])
async def test_some_calls_are_never_hedged(fields: dict[str, Any]) -> None:
    bench = Bench()

    async with bench.asking(bench.call(**fields)):
        assert bench.wheel.waiting() == []


def breaks(bench: Bench, at: int) -> None:
    for _ in range(3):
        bench.upstreams[at].breakers.acquire("m", 0.0).fail(failure(Kind.RESET), 0.0)


def breaks_model(bench: Bench) -> None:
    for _ in range(3):
        bench.upstreams[2].breakers.acquire("m", 0.0).fail(failure(Kind.OVERLOADED), 0.0)


def is_busy(bench: Bench) -> None:
    bench.load.in_flight = int(MAX_LOAD * MAX_IN_FLIGHT) + 1


def spends(bench: Bench) -> None:
    for _ in range(BURST):
        bench.hedging.budget.take()


def spends_retries(bench: Bench) -> None:
    while bench.upstreams[0].budget.take(bench.clock.monotonic() + DELAY):
        pass


def is_full(bench: Bench) -> None:
    bench.providers[1].max_in_flight = 1
    bench.upstreams[1].in_flight = 1


def is_gated(bench: Bench) -> None:
    bench.upstreams[1].gate.close(60.0, bench.clock.monotonic())


def cannot_express(bench: Bench) -> None:
    bench.providers[1].refuses = failure(Kind.UNSUPPORTED)


def is_mistaken(bench: Bench) -> None:
    bench.providers[1].refuses = KeyError("of a plugin")


def is_alone(bench: Bench) -> None:
    for provider in bench.providers[1:]:
        provider.authorizes = False


TROUBLE: list[tuple[str, Callable[[Bench], None]]] = [
    ("a breaker rests", lambda bench: breaks(bench, at=1)),
    ("the breaker of one further down rests", lambda bench: breaks(bench, at=2)),
    ("a model's breaker rests", breaks_model),
    ("the process is busy", is_busy),
    ("h04 the budget is spent", spends),
    ("the retry budget of the slow one is spent", spends_retries),
    ("the next is full", is_full),
    ("the next wants to be left alone", is_gated),
    ("the next cannot express the call", cannot_express),
    ("the next one's plugin is mistaken", is_mistaken),
    ("there is nobody else", is_alone),
]


@pytest.mark.parametrize("trouble", [row[1] for row in TROUBLE], ids=[row[0] for row in TROUBLE])
async def test_h04_in_times_of_trouble_nothing_is_hedged(trouble: Callable[[Bench], None]) -> None:
    bench = Bench(size=3)

    async with bench.asking() as asked:
        trouble(bench)
        before = repr(bench.hedging.budget)
        bench.late()
        await settle()
        bench.lanes[0].answers()
        await settle()
        bench.upstreams[1].in_flight = 0  # of `is_full`

    assert (asked.winner, asked.trail) == ("a", "a:200")
    assert bench.asked_times() == [1, 0, 0]
    assert bench.of(CallHedged) == []
    assert repr(bench.hedging.budget) == before


async def test_a_hedge_costs_a_token_and_a_retry_of_the_slow_one() -> None:
    bench = Bench()

    async with bench.asking():
        bench.late()

    assert repr(bench.hedging) == "<Hedging, <HedgeBudget of 4.00 tokens>>"
    assert repr(bench.upstreams[0].budget) == "<RetryBudget 1 retries for 1 calls>"


STEPS = (
    "late",
    "a answers",
    "a fails",
    "a refuses",
    "a conflicts",
    "b answers",
    "b fails",
    "leave",
    "wait",
    "turn",
)


@given(st.lists(st.sampled_from(STEPS), max_size=12))
def test_whatever_happens_in_whatever_order_there_is_one_end_and_nothing_is_held(steps: list[str]) -> None:
    asyncio.run(lives_through(steps))


async def lives_through(steps: list[str]) -> None:
    bench = Bench(attempts=2)
    async with bench.asking() as asked:
        for step in steps:
            await takes(bench, asked, step)

    answered = [attempt.provider for attempt in asked.call.trail if attempt.answered]
    if asked.leaves:  # one may have begun to answer at the very moment
        assert len(answered) <= 1
    else:
        assert answered == ([asked.winner] if asked.reply is not None else [])
    assert asked.cancels_left == asked.leaves
    assert asked.task.cancelled() == (asked.leaves > 0)
    assert asked.call.waited_seconds == pytest.approx(asked.seconds)
    assert [hedged.winner for hedged in bench.of(CallHedged)] in ([], [asked.winner], [""])


async def takes(bench: Bench, asked: Asked, step: str) -> None:
    match step.split():
        case ["late"]:
            await settle()
            bench.late()
        case ["wait"]:
            await settle()
            bench.clock.advance(1.0)
        case ["turn"]:
            await asyncio.sleep(0)
        case ["leave"]:
            asked.leave()
        case [name, what] if (lane := bench.lanes["ab".index(name)]).attempts:
            match what:
                case "answers":
                    lane.answers()
                case "fails":
                    lane.fails(failure(Kind.OVERLOADED, 503))
                case "refuses":
                    lane.fails(failure(Kind.CALLER, 400))
                case "conflicts":  # no failover, but a retry, whose failure may lead to one
                    lane.fails(failure(Kind.CONFLICT, 409))
