"""
Who is asked, in which order, how often, and what is given back: no sockets, and time by hand.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.config import BreakerConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.errors import CONSEQUENCES, BreakerOpen, CallerError, FailureKind, NoReply, UpstreamError
from sentinel_proxy.events import AttemptFailed, CallFailedOver, CallRetried, Event
from sentinel_proxy.failover import Failover
from sentinel_proxy.model import Call, Controls, Endpoint, ReplyHead, UpstreamRequest
from sentinel_proxy.providers.base import Decoder, Provider
from sentinel_proxy.reply import TRIAL_PROOF_SECONDS, Reply
from sentinel_proxy.resilience.breaker import State
from sentinel_proxy.resilience.retry import RetryPolicy
from sentinel_proxy.testing import FakeClock
from sentinel_proxy.upstream.base import Exchange
from sentinel_proxy.upstream.upstream import Upstream

pytestmark = pytest.mark.anyio

Kind = FailureKind
ANSWER = b"one whole answer"


@dataclass
class Told:
    """What a scripted attempt does: takes its time, then fails or answers."""

    failure: UpstreamError | None = None
    seconds: float = 0.0
    parts: tuple[bytes | UpstreamError, ...] = (ANSWER,)
    forever: bool = False


def fails(
    kind: FailureKind, *, status: int | None = None, retry_after: float | None = None, **more: Any
) -> Told:
    return Told(UpstreamError(kind, f"scripted {kind.value}", status=status, retry_after=retry_after, **more))


@dataclass
class ScriptedExchange(Exchange):
    """An answer in scripted parts; a part that is an error breaks it."""

    clock: FakeClock
    parts: deque[bytes | UpstreamError]
    pause_seconds: float = 0.0
    head: ReplyHead = field(default_factory=lambda: ReplyHead(200, ()))
    closed: int = 0

    @property
    def complete(self) -> bool:
        return not self.parts

    async def read(self, until: float) -> bytes:
        self.clock.advance(self.pause_seconds)
        part = self.parts.popleft()
        if isinstance(part, UpstreamError):
            raise part
        return part

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        self.closed += 1


@dataclass
class ScriptedTransport:
    """Acts out one `Told` an attempt; the last one again and again."""

    clock: FakeClock
    script: deque[Told]
    opened: list[ScriptedExchange] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    untils: list[float] = field(default_factory=list)

    async def open(
        self, request: UpstreamRequest, *, connect_seconds: float, until: float
    ) -> ScriptedExchange:
        told = self.script.popleft() if len(self.script) > 1 else self.script[0]
        self.asked.append(self.clock.monotonic())
        self.untils.append(until)
        if told.forever:
            await asyncio.Event().wait()
        if self.clock.monotonic() + told.seconds > until:
            self.clock.advance(max(0.0, until - self.clock.monotonic()))
            raise UpstreamError(Kind.TIMEOUT, "scripted silence")
        self.clock.advance(told.seconds)
        if told.failure is not None:
            raise told.failure
        self.opened.append(ScriptedExchange(self.clock, deque(told.parts)))
        return self.opened[-1]

    async def aclose(self) -> None:
        pass


class Verbatim(Decoder):
    """Takes any bytes for an answer that has begun, and their end for its good end."""

    def feed(self, data: bytes) -> bytes:
        self.began, self.progress = True, self.progress + 1
        return data

    def close(self) -> bytes:
        self.finished = self.complete = True
        return b""


class Plain(Provider):
    """A provider whose answers need no reading."""

    base_url = "http://scripted"

    def __init__(self, name: str, endpoints: Sequence[Endpoint] = tuple(Endpoint), **settings: Any) -> None:
        self.name = name
        self._endpoints = endpoints
        self.authorizes = True
        for key, value in settings.items():
            setattr(self, key, value)

    def serves(self, endpoint: Endpoint) -> bool:
        return endpoint in self._endpoints

    def can_authorize(self, call: Call) -> bool:
        return self.authorizes

    def encode(self, call: Call) -> UpstreamRequest:
        return UpstreamRequest("POST", "/", ())

    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        return Verbatim()

    def failure(self, call: Call, head: ReplyHead, body: bytes) -> UpstreamError:
        raise AssertionError("scripted failures come from the transport")

    def probe(self) -> UpstreamRequest:
        return UpstreamRequest("GET", "/", ())


class Bench:
    """A failover over scripted providers, and everything there is to see of it."""

    def __init__(
        self,
        *scripts: Sequence[Told],
        retry: RetryConfig | None = None,
        breaker: BreakerConfig | None = None,
        timeouts: TimeoutsConfig | None = None,
        providers: Sequence[Provider] = (),
    ) -> None:
        self.clock = FakeClock()
        self.events: list[Event] = []
        self.transports = [ScriptedTransport(self.clock, deque(script)) for script in scripts]
        retry = retry or RetryConfig()
        named = providers or [Plain(name) for name, _ in zip("abcdef", scripts, strict=False)]
        self.upstreams = [
            Upstream.build(
                provider,
                transport,
                timeouts=timeouts or TimeoutsConfig(),
                breaker=breaker or BreakerConfig(),
                retry=retry,
                emit=self.events.append,
            )
            for provider, transport in zip(named, self.transports, strict=True)
        ]
        policy = RetryPolicy(retry, self.clock, lambda low, high: high)
        self.failover = Failover(self.upstreams, policy, self.clock, self.events.append)

    def call(self, *, seconds: float = 600.0, endpoint: Endpoint = Endpoint.CHAT, **more: Any) -> Call:
        now = self.clock.monotonic()
        payload = more.pop("payload", {"model": "m"})
        return Call("t", endpoint, b"{}", payload, "m", True, now, now + seconds, **more)

    async def ask(self, call: Call | None = None) -> tuple[str, str]:
        """Make one call to its end; return who answered and the trail."""
        call = call or self.call()
        reply = await self.failover.open(call)
        try:
            while await reply.read():
                pass
        finally:
            reply.close()
        return reply.upstream.name, trail(call)

    def settled(self) -> bool:
        """Whether nothing is held: no place, no exchange, no permit of a trial."""
        now = self.clock.monotonic()
        return all(
            upstream.in_flight == 0
            and upstream.breakers.own.trials(now) == 0
            and all(breaker.trials(now) == 0 for breaker in upstream.breakers.models_view().values())
            and all(exchange.closed for exchange in transport.opened)
            for upstream, transport in zip(self.upstreams, self.transports, strict=True)
        )

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def trail(call: Call) -> str:
    return ",".join(f"{attempt.provider}:{attempt.result}" for attempt in call.trail)


DOWN = [fails(Kind.RESET)]
BROKEN = [fails(Kind.OVERLOADED, status=503)]
FINE = [Told()]


class TestOrder:
    async def test_the_first_that_answers_is_the_last_that_is_asked(self) -> None:
        bench = Bench(DOWN, FINE, FINE)

        assert await bench.ask() == ("b", "a:reset,b:200")

        assert [len(transport.asked) for transport in bench.transports] == [1, 1, 0]
        (event,) = bench.of(CallFailedOver)
        assert (event.source, event.target, event.reason) == ("a", "b", "reset")
        assert bench.settled()

    @pytest.mark.parametrize(
        ("controls", "expected"),
        [
            (Controls(providers=("c", "b")), ("c", "c:200")),
            (Controls(providers=("c", "c", "a")), ("c", "c:200")),
            (Controls(providers=("b",), no_failover=True), ("b", "b:200")),
        ],
        ids=["an order", "a repetition", "one alone"],
    )
    async def test_the_caller_may_choose(self, controls: Controls, expected: tuple[str, str]) -> None:
        bench = Bench(FINE, FINE, FINE)

        assert await bench.ask(bench.call(controls=controls)) == expected

    async def test_a_name_that_is_not_there_is_the_callers_mistake(self) -> None:
        bench = Bench(FINE)

        with pytest.raises(CallerError, match="there is no provider 'z'; there are a"):
            await bench.ask(bench.call(controls=Controls(providers=("z",))))

    async def test_where_the_caller_refuses_to_be_moved_nobody_else_is_asked(self) -> None:
        bench = Bench(DOWN, FINE)
        call = bench.call(controls=Controls(no_failover=True))

        with pytest.raises(NoReply):
            await bench.ask(call)

        assert bench.transports[1].asked == []

    async def test_without_providers_there_is_no_reply(self) -> None:
        bench = Bench()

        with pytest.raises(NoReply) as failed:
            await bench.ask()

        assert failed.value.failures == []

    async def test_one_that_does_not_know_the_model_is_asked_last_for_five_minutes(self) -> None:
        bench = Bench([fails(Kind.MODEL_NOT_FOUND, status=404)], [*FINE, *FINE, *DOWN, *FINE])

        assert await bench.ask() == ("b", "a:404,b:200")
        assert await bench.ask() == ("b", "a:model_not_found,b:200")
        call = bench.call()
        with pytest.raises(NoReply):
            await bench.ask(call)
        bench.clock.advance(301)

        assert trail(call) == "a:model_not_found,b:reset,a:404"
        assert [event.kind for event in bench.of(AttemptFailed)][-2:] == [Kind.RESET, Kind.MODEL_NOT_FOUND]
        assert await bench.ask() == ("b", "a:404,b:200")
        assert [event.reason for event in bench.of(CallFailedOver)] == ["404", "model_not_found", "404"]


class TestPassingBy:
    @pytest.mark.parametrize(
        ("first", "result"),
        [
            (Plain("a", endpoints=()), "unsupported"),
            (Plain("a", authorizes=False), "unsupported"),
        ],
        ids=["another kind of call", "no key for it"],
    )
    async def test_one_that_cannot_serve_the_call_is_passed_by(self, first: Plain, result: str) -> None:
        bench = Bench(FINE, FINE, providers=[first, Plain("b")])

        assert await bench.ask() == ("b", f"a:{result},b:200")

        assert bench.transports[0].asked == []
        assert bench.settled()

    async def test_embeddings_stay_with_their_model(self) -> None:
        same = Plain("b", models={"*": "m:latest"})
        other = Plain("c", models={"*": "another"})
        bench = Bench(DOWN, [*FINE, *DOWN], FINE, providers=[Plain("a"), same, other])

        assert await bench.ask(bench.call(endpoint=Endpoint.EMBEDDINGS)) == ("b", "a:reset,b:200")
        call = bench.call(endpoint=Endpoint.EMBEDDINGS)
        with pytest.raises(NoReply):
            await bench.ask(call)

        assert trail(call) == "a:reset,b:reset,c:unsupported"

    @pytest.mark.parametrize(
        ("windows", "answered"),
        [
            ((8192, 16384), True),
            ((8192, 8192), False),
            ((None, 4096), False),
            ((None, 16384), True),
            ((8192, None), True),
        ],
        ids=str,
    )
    async def test_an_overflow_goes_to_larger_windows_only(
        self, windows: tuple[int | None, int | None], answered: bool
    ) -> None:
        told = Told(
            UpstreamError(Kind.CONTEXT_OVERFLOW, "the maximum context length is 8192 tokens", status=400)
        )
        providers = [Plain(name, context_window=window) for name, window in zip("ab", windows, strict=True)]
        bench = Bench([told], FINE, providers=providers)
        call = bench.call()

        if answered:
            assert await bench.ask(call) == ("b", "a:400,b:200")
        else:
            with pytest.raises(NoReply):
                await bench.ask(call)
            assert trail(call) == "a:400,b:context_overflow"

    @pytest.mark.parametrize("field", ["previous_response_id", "conversation", "background"])
    async def test_what_one_provider_keeps_is_not_asked_for_elsewhere(self, field: str) -> None:
        bench = Bench(DOWN, FINE)
        tied = bench.call(endpoint=Endpoint.RESPONSES, payload={"model": "m", field: "kept"})

        with pytest.raises(NoReply):
            await bench.ask(tied)

        assert trail(tied) == "a:reset"
        assert await bench.ask(bench.call(endpoint=Endpoint.RESPONSES)) == ("b", "a:reset,b:200")

    async def test_one_that_is_full_is_passed_by_and_not_blamed(self) -> None:
        bench = Bench(FINE, FINE, providers=[Plain("a", max_in_flight=1), Plain("b")])
        held = await bench.failover.open(bench.call())

        assert await bench.ask() == ("b", "a:limited,b:200")
        held.close()

        assert await bench.ask() == ("a", "a:200")
        assert bench.upstreams[0].breakers.own.failures == 0


class TestConsequences:
    @pytest.mark.parametrize("kind", list(FailureKind), ids=lambda kind: kind.value)
    async def test_every_kind_of_failure_does_what_its_row_says(self, kind: FailureKind) -> None:
        bench = Bench([fails(kind)], FINE)
        call = bench.call()

        if CONSEQUENCES[kind].failover:
            assert (await bench.ask(call))[0] == "b"
        else:
            with pytest.raises(NoReply) as failed:
                await bench.ask(call)
            assert [failure.kind for failure in failed.value.failures] == [kind]  # type: ignore[union-attr]
            assert bench.transports[1].asked == []
        assert {event.kind for event in bench.of(AttemptFailed)} == {kind}
        assert bench.settled()

    async def test_a_provider_gets_its_tries_before_the_next_has_its_turn(self) -> None:
        bench = Bench(BROKEN, FINE, retry=RetryConfig(attempts=2, backoff=0.25))

        assert await bench.ask() == ("b", "a:503,a:503,b:200")

        assert bench.clock.sleeps == [0.25]
        assert [event.pause_seconds for event in bench.of(CallRetried)] == [0.25]

    async def test_a_retry_that_helps_is_no_failover(self) -> None:
        bench = Bench([*BROKEN, *FINE], FINE)
        call = bench.call()

        reply = await bench.failover.open(call)
        reply.close()

        assert (trail(call), reply.failover) == ("a:503,a:200", False)
        assert bench.of(CallFailedOver) == []

    async def test_a_busy_provider_is_left_alone_until_it_may_be_asked_again(self) -> None:
        bench = Bench([fails(Kind.THROTTLED, status=429, retry_after=7.0), *FINE], FINE)

        assert await bench.ask() == ("b", "a:429,b:200")
        bench.clock.advance(6.9)
        assert await bench.ask() == ("b", "a:limited,b:200")
        bench.clock.advance(0.1)
        assert await bench.ask() == ("a", "a:200")

    async def test_the_only_one_is_waited_for(self) -> None:
        bench = Bench([fails(Kind.THROTTLED, status=429, retry_after=3.0), *FINE])

        assert await bench.ask() == ("a", "a:429,a:200")

        assert bench.clock.sleeps == [3.0]


class TestDeadline:
    async def test_nobody_is_asked_after_it(self) -> None:
        bench = Bench([Told(seconds=99)], FINE)
        call = bench.call(seconds=5)

        with pytest.raises(NoReply) as failed:
            await bench.ask(call)

        assert failed.value.deadline_exceeded
        assert trail(call) == "a:timeout"
        assert bench.clock.monotonic() == call.deadline

    async def test_a_slow_provider_leaves_the_rest_of_the_time_to_the_next(self) -> None:
        bench = Bench([Told(seconds=99)], FINE, timeouts=TimeoutsConfig(first_token=30))

        assert await bench.ask(bench.call(seconds=40)) == ("b", "a:timeout,b:200")

        assert bench.transports[1].untils == [bench.clock.monotonic() + 10]

    async def test_waiting_for_others_is_counted_apart(self) -> None:
        bench = Bench([Told(BROKEN[0].failure, seconds=2), Told(seconds=1)], retry=RetryConfig(backoff=0.5))
        call = bench.call()

        await bench.ask(call)

        assert call.waited_seconds == pytest.approx(3.5)
        assert [attempt.seconds for attempt in call.trail] == pytest.approx([2, 1])


class TestBreakers:
    async def test_a_resting_provider_is_passed_by(self) -> None:
        bench = Bench(DOWN, FINE, breaker=BreakerConfig(failure_threshold=1))
        await bench.ask()

        assert await bench.ask() == ("b", "a:open,b:200")

    async def test_where_all_rest_the_one_that_rises_first_is_tried_early(self) -> None:
        bench = Bench(
            [*DOWN, *FINE], DOWN, breaker=BreakerConfig(failure_threshold=1), retry=RetryConfig(attempts=1)
        )
        with pytest.raises(NoReply):
            await bench.ask()

        assert await bench.ask() == ("a", "a:open,b:open,a:200")
        assert bench.upstreams[0].breakers.own.state is State.CLOSED

    async def test_one_early_trial_at_a_time_and_the_others_know_when_to_return(self) -> None:
        bench = Bench(DOWN, breaker=BreakerConfig(failure_threshold=1), retry=RetryConfig(attempts=1))
        with pytest.raises(NoReply):
            await bench.ask()
        bench.clock.advance(10)
        bench.transports[0].script = deque([Told(forever=True)])
        early = asyncio.create_task(bench.ask())
        await asyncio.sleep(0)

        with pytest.raises(NoReply) as refused:
            await bench.ask()
        early.cancel()
        await asyncio.wait([early])

        assert [failure.retry_after for failure in refused.value.failures] == [20.0, 20.0]
        assert all(isinstance(failure, BreakerOpen) for failure in refused.value.failures)
        assert bench.settled()

    async def test_a_trial_that_streams_for_a_while_has_proved_its_point(self) -> None:
        """F20: a long answer must not hold the only place for minutes."""
        bench = Bench(
            [*DOWN, Told(parts=(ANSWER,) * 5)],
            breaker=BreakerConfig(failure_threshold=1),
            retry=RetryConfig(attempts=1),
        )
        with pytest.raises(NoReply):
            await bench.ask()
        bench.clock.advance(30)
        reply = await bench.failover.open(bench.call())
        await reply.read()
        before = bench.upstreams[0].breakers.own.state

        bench.transports[0].opened[0].pause_seconds = TRIAL_PROOF_SECONDS + 1
        await reply.read()

        assert (before, bench.upstreams[0].breakers.own.state) == (State.HALF_OPEN, State.CLOSED)
        reply.close()
        assert bench.settled()


class TestReplies:
    async def opened(self, bench: Bench) -> Reply:
        return await bench.failover.open(bench.call())

    async def test_an_answer_that_breaks_votes_once(self) -> None:
        broken = UpstreamError(Kind.TRUNCATED, "it broke")
        bench = Bench([Told(parts=(ANSWER, broken))])
        reply = await self.opened(bench)
        await reply.read()

        with pytest.raises(UpstreamError):
            await reply.read()
        reply.close()
        reply.close()

        assert [breaker.failures for breaker in bench.upstreams[0].breakers.models_view().values()] == [1]
        assert bench.settled()

    async def test_a_reply_that_is_closed_early_speaks_for_nobody(self) -> None:
        bench = Bench([*DOWN, *DOWN, Told(parts=(ANSWER, ANSWER))], retry=RetryConfig(attempts=1))
        for _ in range(2):
            with pytest.raises(NoReply):
                await bench.ask()

        reply = await self.opened(bench)
        reply.close()

        assert bench.upstreams[0].breakers.own.failures == 2
        assert bench.settled()

    @pytest.mark.parametrize("at", ["sending", "a pause"])
    async def test_cancelling_gives_everything_back_and_asks_nobody_else(self, at: str) -> None:
        bench = Bench([Told(forever=True)] if at == "sending" else BROKEN, FINE)
        if at == "a pause":
            reached = asyncio.Event()

            async def sleep(seconds: float) -> None:
                reached.set()
                await asyncio.Event().wait()

            bench.clock.sleep = sleep  # type: ignore[method-assign]
        task = asyncio.create_task(bench.ask())
        for _ in range(5):
            await asyncio.sleep(0)

        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert len(bench.transports[0].asked) == 1
        assert bench.transports[1].asked == []
        assert bench.settled()

    async def test_what_is_shown_of_them_holds_no_prompt(self) -> None:
        bench = Bench([Told(parts=(ANSWER, ANSWER))])
        reply = await self.opened(bench)

        assert repr(bench.failover) == "<Failover a>"
        assert repr(reply) == "<Reply of a to t, open>"
        reply.close()
        assert repr(reply) == "<Reply of a to t, closed>"


OUTCOMES = st.builds(
    Told,
    failure=st.none()
    | st.builds(
        UpstreamError,
        st.sampled_from(FailureKind),
        st.just("scripted"),
        status=st.none() | st.sampled_from([400, 404, 429, 500, 503]),
        retry_after=st.none() | st.floats(0, 400),
    ),
    seconds=st.floats(0, 200),
    parts=st.lists(
        st.just(ANSWER) | st.builds(UpstreamError, st.sampled_from(FailureKind), st.just("broke")),
        min_size=1,
        max_size=3,
    ).map(tuple),
)


def waits_of(bench: Bench) -> Iterator[float]:
    for transport in bench.transports:
        yield from transport.untils


@given(
    scripts=st.lists(st.lists(OUTCOMES, min_size=1, max_size=5), min_size=1, max_size=4),
    gaps=st.lists(st.floats(0, 60), min_size=1, max_size=6),
    seconds=st.floats(1, 600),
    attempts=st.integers(1, 4),
    threshold=st.integers(1, 3),
)
async def test_whatever_happens_a_call_ends_once_in_time_and_holds_nothing(
    scripts: list[list[Told]], gaps: list[float], seconds: float, attempts: int, threshold: int
) -> None:
    bench = Bench(
        *scripts, retry=RetryConfig(attempts=attempts), breaker=BreakerConfig(failure_threshold=threshold)
    )
    for gap in gaps:
        bench.clock.advance(gap)
        call = bench.call(seconds=seconds)
        said = []
        try:
            reply = await bench.failover.open(call)
        except NoReply:
            assert call.trail or bench.clock.monotonic() >= call.deadline
        else:
            assert [a.result for a in call.trail].count("200") == 1
            assert call.trail[-1].provider == reply.upstream.name
            assert reply.failover == (reply.upstream is not bench.upstreams[0])
            try:
                while part := await reply.read():
                    said.append(part)
            except UpstreamError:
                pass
            reply.close()
            assert set(said) <= {ANSWER}

        assert bench.clock.monotonic() <= call.deadline + 1e-6
        assert bench.settled()
        assert call.attempts == sum(attempt.sent for attempt in call.trail)
        assert call.attempts <= attempts * len(scripts)
        assert all(until <= call.deadline for until in waits_of(bench))
        for transport in bench.transports:
            transport.untils.clear()
