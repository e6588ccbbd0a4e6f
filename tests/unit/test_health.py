"""What is asked of providers, and what their answers may and may not do."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sentinel_proxy.config import BreakerConfig, HealthConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.errors import BreakerOpen, FailureKind, UpstreamError
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFinished,
    Event,
    HealthChecked,
    MappedModelsChecked,
    Noticed,
    ProbeFinished,
)
from sentinel_proxy.health import Monitor
from sentinel_proxy.health.traffic import SLOT_SECONDS, SLOTS, Traffic
from sentinel_proxy.health.watch import Watch
from sentinel_proxy.model import (
    Attempt,
    Call,
    Endpoint,
    Headers,
    Outcome,
    ProbeResult,
    ReplyHead,
    UpstreamRequest,
    Verdict,
)
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.providers.ollama import OllamaProvider
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.resilience.breaker import State
from sentinel_proxy.testing import FakeClock
from sentinel_proxy.upstream.base import Exchange, Transport
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wire.json import dumps

pytestmark = pytest.mark.anyio

LISTED: Mapping[str, Any] = {"data": [{"id": "gpt-4o"}]}
TAGS: Mapping[str, Any] = {"models": [{"name": "llama3.2:latest", "capabilities": ["completion"]}]}


class Said(Exchange):
    """An answer that is there at once."""

    def __init__(self, status: int, body: bytes, headers: Headers) -> None:
        self.head = ReplyHead(status, headers)
        self._body = body
        self.closed = False

    @property
    def complete(self) -> bool:
        return not self._body

    async def read(self, until: float) -> bytes:
        body, self._body = self._body[:500_000], self._body[500_000:]
        return body

    def close(self, linger_seconds: float = 0.0, *, reuse: bool = True) -> None:
        self.closed = True


Act = Callable[[], Exchange] | UpstreamError | Exception


def says(status: int, body: Any = None, headers: Headers = ()) -> Callable[[], Exchange]:
    return lambda: Said(status, b"" if body is None else dumps(body), headers)


class Scripted(Transport):
    """A transport that acts by script; the last act is repeated."""

    def __init__(self, clock: FakeClock, *acts: Act, seconds: float = 0.0) -> None:
        self.acts = deque(acts)
        self.asked: list[UpstreamRequest] = []
        self.limits: list[float] = []
        self.exchanges: list[Exchange] = []
        self.hold: asyncio.Event | None = None
        self._clock = clock
        self._seconds = seconds

    async def open(self, request: UpstreamRequest, *, connect_seconds: float, until: float) -> Exchange:
        self.asked.append(request)
        self.limits.append(until - self._clock.monotonic())
        if self.hold is not None:
            await self.hold.wait()
        self._clock.advance(self._seconds)
        act = self.acts.popleft() if len(self.acts) > 1 else self.acts[0]
        if isinstance(act, Exception):
            raise act
        exchange = act()
        self.exchanges.append(exchange)
        return exchange

    async def aclose(self) -> None:
        """Nothing is held."""


REFUSED = UpstreamError(FailureKind.CONNECT, "the connection was refused")
LATE = UpstreamError(FailureKind.TIMEOUT, "no answer in time")


class Ward:
    """A monitor, the providers it watches, and what it told."""

    def __init__(self, *acts: Act, provider: Provider | None = None, **breaker: Any) -> None:
        self.clock = FakeClock()
        self.bus = Bus()
        self.events: list[Event] = []
        self.bus.subscribe_all(self.events.append)
        self.settings = BreakerConfig(**breaker)
        self.upstreams: list[Upstream] = []
        self.add(provider or OpenAIProvider(base_url="http://openai.test/v1", api_key=Key()), *acts)

    def add(self, provider: Provider, *acts: Act) -> Scripted:
        transport = Scripted(self.clock, *acts, seconds=0.02)
        self.upstreams.append(
            Upstream.build(
                provider,
                transport,
                timeouts=TimeoutsConfig(),
                breaker=self.settings,
                retry=RetryConfig(),
                emit=self.bus.emit,
            )
        )
        self.monitor = Monitor(
            self.upstreams,
            HealthConfig(),
            self.settings.recovery_timeout,
            self.clock,
            self.bus.emit,
            lambda low, high: (low + high) / 2,
        )
        return transport

    def listens(self) -> "Ward":
        self.monitor.listen(self.bus)
        return self

    @property
    def upstream(self) -> Upstream:
        return self.upstreams[0]

    @property
    def transport(self) -> Scripted:
        assert isinstance(self.upstream.transport, Scripted)
        return self.upstream.transport

    @property
    def state(self) -> State:
        return self.upstream.breakers.own.state

    async def rounds(self, count: int = 1, every: float = 15.0) -> None:
        for _ in range(count):
            self.clock.advance(every)
            await self.monitor.round()

    def fails_calls(self, count: int, kind: FailureKind = FailureKind.CONNECT, model: str = "gpt-4o") -> None:
        for _ in range(count):
            now = self.clock.monotonic()
            self.upstream.breakers.acquire(model, now).fail(UpstreamError(kind, "it failed"), now)

    def trips(self, kind: FailureKind = FailureKind.CONNECT) -> None:
        self.fails_calls(self.settings.failure_threshold, kind)

    def said(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def notices(self) -> list[str]:
        return [event.message for event in self.said(Noticed)]


class Key:
    """A secret."""

    def get_secret_value(self) -> str:
        return "sk-of-the-proxy"


def ollama(**settings: Any) -> OllamaProvider:
    defaults: dict[str, Any] = {
        "name": "ollama",
        "base_url": "http://ollama.test",
        "models": {"*": "llama3.2"},
    }
    return OllamaProvider(**defaults | settings)


def finished(outcome: Outcome, *trail: Attempt) -> CallFinished:
    call = Call("t", Endpoint.CHAT, b"", {}, "gpt-4o", False, 0.0, 600.0, trail=list(trail))
    return CallFinished(
        "t", Endpoint.CHAT, call, outcome, 200, call.answered_by, "gpt-4o", 1.0, 0.001, 0.5, None
    )


ANSWER = Attempt("openai", "200", seconds=0.25)


async def turns_until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until *condition* holds; a thousand turns are more than any test needs."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


class TestVerdicts:
    @pytest.mark.parametrize(
        ("act", "verdict", "kind"),
        [
            (says(200, LISTED), Verdict.PASSED, None),
            (says(200, {"odd": 1}), Verdict.PASSED, None),
            (says(204), Verdict.PASSED, None),
            (says(302), Verdict.UNCLEAR, None),
            (says(401), Verdict.UNCLEAR, FailureKind.CREDENTIAL),
            (says(403), Verdict.UNCLEAR, FailureKind.CREDENTIAL),
            (says(404), Verdict.UNCLEAR, None),
            (says(405), Verdict.UNCLEAR, None),
            (says(429), Verdict.UNCLEAR, FailureKind.THROTTLED),
            (says(500), Verdict.FAILED, FailureKind.OVERLOADED),
            (says(503), Verdict.FAILED, FailureKind.OVERLOADED),
            (REFUSED, Verdict.FAILED, FailureKind.CONNECT),
            (LATE, Verdict.FAILED, FailureKind.TIMEOUT),
            (
                UpstreamError(FailureKind.LOCAL, "all connections in use"),
                Verdict.UNCLEAR,
                FailureKind.LOCAL,
            ),
        ],
        ids=[
            "a list",
            "not a list",
            "nothing",
            "302",
            "401",
            "403",
            "404",
            "405",
            "429",
            "500",
            "503",
            "refused",
            "late",
            "our own limit",
        ],
    )
    async def test_an_answer_says(self, act: Act, verdict: Verdict, kind: FailureKind | None) -> None:
        ward = Ward(act)

        result = await ward.monitor.probe("openai")

        assert (result.verdict, result.kind) == (verdict, kind)
        assert ward.said(ProbeFinished) == [ProbeFinished(result)]

    async def test_it_tells_when_and_how_long(self) -> None:
        ward = Ward(says(200, LISTED))
        began = ward.clock.time()

        result = await ward.monitor.probe("openai")

        assert result.at == pytest.approx(began + 0.02)
        assert result.seconds == pytest.approx(0.02)
        assert result.what == "it lists 1 models"

    async def test_it_has_its_own_limit_of_time(self) -> None:
        ward = Ward(says(200, LISTED))

        await ward.monitor.probe("openai")

        assert ward.transport.limits == [HealthConfig().timeout]

    @pytest.mark.parametrize("act", [says(200, LISTED), says(503), says(200, {"x": "y" * 9_000_000})])
    async def test_the_connection_is_given_back(self, act: Act) -> None:
        ward = Ward(act)

        await ward.monitor.probe("openai")

        assert [exchange.closed for exchange in ward.transport.exchanges if isinstance(exchange, Said)] == [
            True
        ]

    async def test_an_answer_without_end_is_a_failure(self) -> None:
        ward = Ward(says(200, {"x": "y" * 9_000_000}))

        result = await ward.monitor.probe("openai")

        assert result.kind is FailureKind.PROTOCOL

    async def test_where_callers_bring_their_keys_a_401_is_a_good_answer(self) -> None:
        provider = OpenAIProvider(base_url="http://openai.test/v1", passes_caller_key=True)
        ward = Ward(says(401), provider=provider)

        result = await ward.monitor.probe("openai")

        assert result.ok
        assert ward.notices() == []

    async def test_there_is_nobody_of_another_name_to_ask(self) -> None:
        ward = Ward(says(200))

        with pytest.raises(KeyError):
            await ward.monitor.probe("nobody")


class TestVotes:
    async def test_probes_alone_open_a_breaker(self) -> None:
        ward = Ward(REFUSED)

        await ward.rounds(3)

        assert ward.state is State.OPEN
        assert ward.said(BreakerChanged)[0].reason == "connect (probe)"

    async def test_a_certificate_that_does_not_verify_opens_it_at_once(self) -> None:
        ward = Ward(UpstreamError(FailureKind.CERTIFICATE, "it does not verify"))

        await ward.rounds(1)

        assert ward.state is State.OPEN

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 429])
    async def test_4xx_never_do(self, status: int) -> None:
        ward = Ward(says(status))

        await ward.rounds(10)

        assert (ward.state, ward.upstream.breakers.own.failures) == (State.CLOSED, 0)

    async def test_they_count_with_the_failures_of_calls(self) -> None:
        ward = Ward(REFUSED)
        ward.fails_calls(2)

        await ward.rounds(1)

        assert ward.state is State.OPEN

    async def test_what_only_probes_hold_against_it_a_probe_takes_back(self) -> None:
        ward = Ward(REFUSED, REFUSED, says(200, LISTED), REFUSED, REFUSED, says(200, LISTED))

        await ward.rounds(6)

        assert (ward.state, ward.upstream.breakers.own.failures) == (State.CLOSED, 0)

    async def test_what_calls_hold_against_it_no_probe_takes_back(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.fails_calls(2)

        await ward.rounds(5)

        assert ward.upstream.breakers.own.failures == 2

    async def test_nor_where_both_do(self) -> None:
        ward = Ward(REFUSED, says(200, LISTED))
        ward.fails_calls(1)

        await ward.rounds(2)

        assert ward.upstream.breakers.own.failures == 2

    async def test_a_probe_from_before_the_breaker_moved_does_not_vote(self) -> None:
        ward = Ward(REFUSED, failure_threshold=1)
        hold = ward.transport.hold = asyncio.Event()
        probe = asyncio.create_task(ward.monitor.probe("openai"))
        await asyncio.sleep(0)

        ward.trips()
        ward.upstream.breakers.reset(ward.clock.monotonic(), "by hand")
        hold.set()
        await probe

        assert ward.state is State.CLOSED

    async def test_a_probe_keeps_no_place_that_a_call_could_use(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.trips()
        ward.clock.advance(30)
        hold = ward.transport.hold = asyncio.Event()
        probe = asyncio.create_task(ward.monitor.probe("openai"))
        await asyncio.sleep(0)

        permit = ward.upstream.breakers.acquire("gpt-4o", ward.clock.monotonic())

        assert permit.trial
        hold.set()
        await probe

    async def test_a_trial_that_is_out_is_not_judged_by_a_probe(self) -> None:
        ward = Ward(REFUSED)
        ward.trips()
        ward.clock.advance(30)
        permit = ward.upstream.breakers.acquire("gpt-4o", ward.clock.monotonic())

        await ward.monitor.probe("openai")

        assert ward.state is State.HALF_OPEN
        permit.succeed(ward.clock.monotonic())
        assert ward.upstream.breakers.own.state is State.CLOSED

    async def test_after_a_rest_a_failing_probe_is_a_relapse(self) -> None:
        ward = Ward(REFUSED)
        ward.trips()
        ward.clock.advance(30)

        await ward.monitor.probe("openai")

        assert (ward.state, ward.upstream.breakers.own.level) == (State.OPEN, 2)

    async def test_a_429_closes_the_gate_for_as_long_as_it_says(self) -> None:
        ward = Ward(says(429, headers=((b"retry-after", b"7"),)))

        await ward.monitor.probe("openai")

        assert ward.upstream.gate.wait(ward.clock.monotonic()) == pytest.approx(7)


class TestRests:
    async def test_a_passing_probe_ends_one_that_probes_had_begun(self) -> None:
        ward = Ward(REFUSED, REFUSED, REFUSED, says(200, LISTED))

        await ward.rounds(4)

        assert ward.state is State.HALF_OPEN

    async def test_it_closes_nothing(self) -> None:
        ward = Ward(REFUSED, REFUSED, REFUSED, says(200, LISTED))

        await ward.rounds(20)

        assert ward.state is State.HALF_OPEN

    async def test_an_outage_of_inference_alone_is_left_to_the_trials(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.trips()

        await ward.rounds(1)

        assert ward.state is State.OPEN

    async def test_one_failing_probe_in_the_outage_is_enough(self) -> None:
        ward = Ward(REFUSED, says(200, LISTED))
        ward.trips()

        await ward.rounds(2, every=6)

        assert ward.state is State.HALF_OPEN

    async def test_the_rests_of_models_end_with_it(self) -> None:
        ward = Ward(LATE, says(200, LISTED))
        ward.trips(FailureKind.TIMEOUT)

        await ward.rounds(2)

        assert ward.upstream.breakers.models_view()["gpt-4o"].state is State.HALF_OPEN

    @pytest.mark.parametrize(
        ("recovery_timeout", "least"), [(30.0, 5.0), (4.0, 2.0)], ids=["five seconds", "half the rest"]
    )
    async def test_it_lasts_for_a_while_all_the_same(self, recovery_timeout: float, least: float) -> None:
        ward = Ward(REFUSED, says(200, LISTED), failure_threshold=1, recovery_timeout=recovery_timeout)
        await ward.rounds(1)

        await ward.rounds(1, every=least - 0.5)
        early = ward.state
        await ward.rounds(1, every=0.5)

        assert (early, ward.state) == (State.OPEN, State.HALF_OPEN)

    async def test_a_relapse_needs_news_of_its_own(self) -> None:
        ward = Ward(REFUSED, says(200, LISTED))
        ward.trips()
        await ward.rounds(2, every=6)
        permit = ward.upstream.breakers.acquire("gpt-4o", ward.clock.monotonic())
        permit.fail(REFUSED, ward.clock.monotonic())

        await ward.rounds(1)

        assert ward.state is State.OPEN

    async def test_probes_that_failed_before_the_last_good_one_do_not_count(self) -> None:
        ward = Ward(REFUSED, says(200, LISTED))
        await ward.rounds(2)
        ward.trips()

        await ward.rounds(1)

        assert ward.state is State.OPEN

    async def test_a_key_that_works_again_ends_it(self) -> None:
        ward = Ward(says(401), says(200, LISTED))
        now = ward.clock.monotonic()
        ward.upstream.breakers.acquire("gpt-4o", now).fail(
            UpstreamError(FailureKind.CREDENTIAL, "refused", status=401), now
        )

        await ward.rounds(2)

        assert ward.state is State.HALF_OPEN

    async def test_an_isolation_is_not_ended(self) -> None:
        ward = Ward(REFUSED, says(200, LISTED))
        ward.upstream.breakers.isolate(ward.clock.monotonic(), float("inf"), "by hand")

        await ward.rounds(3)

        assert ward.state is State.ISOLATED


class TestRounds:
    async def test_all_are_asked_at_once(self) -> None:
        ward = Ward(says(200, LISTED))
        other = ward.add(ollama(), says(200, TAGS))
        hold = ward.transport.hold = other.hold = asyncio.Event()

        round = asyncio.create_task(ward.monitor.round())
        await asyncio.sleep(0.001)

        assert (len(ward.transport.asked), len(other.asked)) == (1, 1)
        hold.set()
        await round

    async def test_it_is_told(self) -> None:
        ward = Ward(says(200, LISTED))

        await ward.rounds(1)

        (told,) = ward.said(HealthChecked)
        assert (told.probed, told.seconds) == (1, pytest.approx(0.02))

    async def test_who_has_just_answered_a_call_is_not_asked(self) -> None:
        ward = Ward(says(200, LISTED)).listens()
        ward.bus.emit(finished(Outcome.SUCCESS, ANSWER))

        await ward.rounds(1, every=14)
        skipped = len(ward.transport.asked)
        await ward.rounds(1, every=1)

        assert (skipped, len(ward.transport.asked)) == (0, 1)

    async def test_who_is_being_asked_is_not_asked_again(self) -> None:
        ward = Ward(says(200, LISTED))
        hold = ward.transport.hold = asyncio.Event()
        probe = asyncio.create_task(ward.monitor.probe("openai"))
        await asyncio.sleep(0)

        await ward.rounds(1)

        assert len(ward.transport.asked) == 1
        hold.set()
        await probe

    async def test_a_question_by_hand_waits_for_the_one_that_is_out(self) -> None:
        ward = Ward(says(200, LISTED))
        hold = ward.transport.hold = asyncio.Event()
        probes = [asyncio.create_task(ward.monitor.probe("openai")) for _ in range(2)]
        await asyncio.sleep(0.001)
        asked_at_once = len(ward.transport.asked)

        hold.set()
        await asyncio.gather(*probes)

        assert (asked_at_once, len(ward.transport.asked)) == (1, 2)

    async def test_a_bug_in_a_provider_harms_nobody_else(self) -> None:
        ward = Ward(ValueError("a bug that quotes a secret"))
        other = ward.add(ollama(), says(200, TAGS))

        await ward.rounds(1)

        (notice,) = ward.said(Noticed)
        assert notice.details == {"provider": "openai", "error": "ValueError"}
        assert other.asked
        assert len(ward.said(HealthChecked)) == 1

    async def test_they_come_again_and_again_with_jitter(self) -> None:
        ward = Ward(says(200, LISTED))
        drawn: list[tuple[float, float]] = []
        ward.monitor._uniform = lambda low, high: drawn.append((low, high)) or high  # type: ignore[func-returns-value]

        task = asyncio.create_task(ward.monitor.run())
        await turns_until(lambda: len(ward.clock.sleeps) >= 4)
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert ward.clock.sleeps[:3] == [pytest.approx(seconds) for seconds in (3.6, 18.0, 18.0)]
        assert set(drawn) == {(0.8, 1.2)}

    async def test_leaving_ends_a_probe_that_is_out(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.transport.hold = asyncio.Event()

        async with ward.monitor.running():
            await turns_until(lambda: bool(ward.transport.asked))

        assert {task.get_name() for task in asyncio.all_tasks()} & {"health monitor", "probe openai"} == set()


class TestModels:
    async def test_a_fallback_that_lacks_its_model_is_told_once(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.add(ollama(models={"*": "qwen3", "small": "llama3.2"}), says(200, TAGS))

        await ward.rounds(3)

        assert ward.said(MappedModelsChecked) == [MappedModelsChecked("ollama", ("qwen3",))]
        assert ward.notices() == ["a fallback lacks models that calls would be sent to"]

    async def test_one_with_no_model_at_all_lacks_it_too(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.add(ollama(), says(200, {"models": []}))

        await ward.rounds(1)

        assert ward.said(MappedModelsChecked) == [MappedModelsChecked("ollama", ("llama3.2",))]

    async def test_it_is_told_when_it_is_there_again(self) -> None:
        ward = Ward(says(200, LISTED))
        version, show = says(200, {"version": "0.30.0"}), says(200, {"capabilities": ["completion"]})
        ward.add(ollama(), says(200, {"models": []}), version, show, says(200, TAGS))

        await ward.rounds(2)

        assert ward.said(MappedModelsChecked)[1:] == [MappedModelsChecked("ollama", ())]

    @pytest.mark.parametrize(
        ("body", "missing"),
        [
            ({"data": [{"id": "other"}]}, ("qwen",)),
            ({"data": [{"id": "qwen"}]}, None),
            ({"data": []}, None),
            ({"odd": 1}, None),
        ],
        ids=["another", "listed", "it lists nothing", "no list"],
    )
    async def test_servers_of_openais_kind_are_asked_by_their_list(
        self, body: Any, missing: tuple[str, ...] | None
    ) -> None:
        ward = Ward(says(200, LISTED))
        ward.add(
            OpenAIProvider(name="vllm", base_url="http://vllm.test/v1", models={"*": "qwen"}),
            says(200, body),
        )

        await ward.rounds(1)

        told = [] if missing is None else [MappedModelsChecked("vllm", missing)]
        assert ward.said(MappedModelsChecked) == told

    async def test_the_first_of_the_chain_is_no_fallback(self) -> None:
        ward = Ward(says(200, {"models": []}), provider=ollama())

        await ward.rounds(1)

        assert ward.said(MappedModelsChecked) == []

    async def test_a_good_probe_is_followed_by_what_the_provider_wants_to_know(self) -> None:
        provider = ollama()
        ward = Ward(
            says(200, {"models": [{"name": "llama3.2"}]}),
            says(200, {"version": "0.30.1"}),
            says(200, {"capabilities": ["completion", "tools"]}),
            provider=provider,
        )

        await ward.rounds(1)

        assert [request.target for request in ward.transport.asked] == [
            "/api/tags",
            "/api/version",
            "/api/show",
        ]
        assert provider.facts.version == (0, 30, 1)
        assert provider.facts.about("llama3.2").has("tools")

    @pytest.mark.parametrize(
        "act", [says(200, "no version"), says(404), LATE], ids=["no version", "not found", "late"]
    )
    async def test_answers_that_it_cannot_use_do_no_harm(self, act: Act) -> None:
        ward = Ward(says(200, TAGS), act, provider=ollama())

        result = await ward.monitor.probe("ollama")

        assert result.ok
        assert ward.upstream.breakers.own.failures == 0

    async def test_a_refused_credential_is_told_once(self) -> None:
        ward = Ward(says(401), says(401), says(200, LISTED), says(403))

        await ward.rounds(4)

        assert ward.notices() == ["the provider refuses the proxy's credential"] * 2


class TestWarmUp:
    async def ward(self, **settings: Any) -> tuple[Ward, Scripted, asyncio.Task[None]]:
        ward = Ward(says(200, LISTED))
        fallback = ward.add(ollama(**settings), says(200, {"done": True}))
        ward.listens()
        ward.monitor._config = HealthConfig(interval=1e9)
        idle = asyncio.Event()
        ward.clock.sleep = lambda seconds: idle.wait()  # type: ignore[method-assign, assignment, return-value]
        task = asyncio.create_task(ward.monitor.run())
        await asyncio.sleep(0)
        return ward, fallback, task

    async def settle(self, task: asyncio.Task[None]) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def test_the_fallback_loads_its_model_when_calls_are_about_to_come(self) -> None:
        ward, fallback, task = await self.ward(keep_alive="5m", num_ctx=4096)

        ward.trips()
        await self.settle(task)

        (request,) = fallback.asked
        assert (request.method, request.target) == ("POST", "/api/generate")
        assert request.body == dumps(
            {
                "model": "llama3.2",
                "stream": False,
                "options": {"num_ctx": 4096},
                "truncate": False,
                "keep_alive": "5m",
            }
        )

    async def test_it_does_so_once_in_an_outage(self) -> None:
        ward, fallback, task = await self.ward(keep_alive=-1)

        ward.trips()
        ward.clock.advance(30)
        ward.upstream.breakers.acquire("gpt-4o", ward.clock.monotonic()).fail(REFUSED, ward.clock.monotonic())
        await self.settle(task)

        assert len(fallback.asked) == 1

    async def test_and_again_in_the_next(self) -> None:
        ward, fallback, task = await self.ward(keep_alive="5m")

        for _ in range(2):
            ward.trips()
            await asyncio.sleep(0)
            ward.upstream.breakers.reset(ward.clock.monotonic(), "by hand")
        await self.settle(task)

        assert len(fallback.asked) == 2

    @pytest.mark.parametrize("keep_alive", [None, 0, "0", "0s", "0m0s"])
    async def test_it_does_not_where_no_model_may_stay_in_memory(self, keep_alive: Any) -> None:
        ward, fallback, task = await self.ward(keep_alive=keep_alive)

        ward.trips()
        await self.settle(task)

        assert fallback.asked == []

    async def test_it_does_not_where_it_rests_itself(self) -> None:
        ward, fallback, task = await self.ward(keep_alive="5m")
        now = ward.clock.monotonic()
        ward.upstreams[1].breakers.isolate(now, float("inf"), "by hand")

        ward.trips()
        await self.settle(task)

        assert fallback.asked == []

    async def test_another_in_between_that_is_well_comes_first(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.add(OpenAIProvider(name="spare", base_url="http://spare.test/v1"), says(200, LISTED))
        fallback = ward.add(ollama(keep_alive="5m"), says(200))
        ward.listens()
        idle = asyncio.Event()
        ward.clock.sleep = lambda seconds: idle.wait()  # type: ignore[method-assign, assignment, return-value]
        task = asyncio.create_task(ward.monitor.run())
        await asyncio.sleep(0)

        ward.trips()
        await self.settle(task)

        assert fallback.asked == []

    async def test_before_the_monitor_runs_nothing_is_sent(self) -> None:
        ward = Ward(says(200, LISTED))
        fallback = ward.add(ollama(keep_alive="5m"), says(200))
        ward.listens()

        ward.trips()
        await asyncio.sleep(0)

        assert fallback.asked == []
        assert ward.bus.errors == 0

    async def test_how_it_goes_concerns_nobody(self) -> None:
        ward, fallback, task = await self.ward(keep_alive="5m")
        fallback.acts[0] = REFUSED

        ward.trips()
        await self.settle(task)

        assert task.cancelled()
        assert ward.upstreams[1].breakers.own.failures == 0

    async def test_a_bug_in_a_provider_does_not_end_the_watch(self) -> None:
        ward, fallback, task = await self.ward(keep_alive="5m")
        fallback.acts[0] = ValueError("a bug that quotes a secret")

        ward.trips()
        await self.settle(task)

        assert task.cancelled()
        assert ward.notices() == ["the warm-up of a provider went wrong"]


class TestTraffic:
    def test_the_share_of_good_attempts_is_that_of_the_last_minutes(self) -> None:
        traffic = Traffic()
        traffic.bad(0.0)
        traffic.good(1.0, 0.0)
        traffic.good(3.0, SLOT_SECONDS)

        assert traffic.success_share(SLOT_SECONDS) == pytest.approx(2 / 3)
        assert traffic.mean_seconds(SLOT_SECONDS) == 2.0
        assert traffic.success_share(SLOT_SECONDS * SLOTS) == 1.0

    def test_without_calls_there_is_none(self) -> None:
        traffic = Traffic()
        traffic.good(1.0, 0.0)

        assert traffic.success_share(SLOT_SECONDS * (SLOTS + 1)) is None
        assert traffic.mean_seconds(SLOT_SECONDS * (SLOTS + 1)) is None

    def test_it_stays_small(self) -> None:
        traffic = Traffic()

        for second in range(100_000):
            traffic.good(0.1, float(second))

        assert len(traffic._slots) == SLOTS

    @pytest.mark.parametrize(
        ("outcome", "trail", "share"),
        [
            (Outcome.SUCCESS, [ANSWER], 100.0),
            (Outcome.TRUNCATED, [ANSWER], 0.0),
            (Outcome.RESCUED, [ANSWER, Attempt("ollama", "200")], 0.0),
            (Outcome.FAILURE, [ANSWER], 0.0),
            (Outcome.HUNG_UP, [ANSWER], None),
            (Outcome.CALLER_ERROR, [ANSWER], None),
            (Outcome.FAILED_OVER, [Attempt("openai", "open", sent=False), Attempt("ollama", "200")], None),
        ],
        ids=lambda part: part.value if isinstance(part, Outcome) else "",
    )
    async def test_how_a_call_ends_speaks_for_or_against_who_answered(
        self, outcome: Outcome, trail: list[Attempt], share: float | None
    ) -> None:
        ward = Ward(says(200, LISTED))
        ward.add(ollama(), says(200, TAGS))
        ward.listens()

        ward.bus.emit(finished(outcome, *trail))

        assert ward.monitor.view()["openai"]["success_rate_pct"] == share
        assert ward.bus.errors == 0

    @pytest.mark.parametrize(
        ("kind", "share"),
        [
            (FailureKind.OVERLOADED, 0.0),
            (FailureKind.THROTTLED, 0.0),
            (FailureKind.CALLER, None),
            (FailureKind.LOCAL, None),
        ],
    )
    async def test_a_failed_attempt_speaks_against_it_unless_it_is_not_to_blame(
        self, kind: FailureKind, share: float | None
    ) -> None:
        ward = Ward(says(200, LISTED)).listens()

        ward.bus.emit(AttemptFailed("t", "openai", "gpt-4o", kind, kind.value, "it failed", 0.1))

        assert ward.monitor.view()["openai"]["success_rate_pct"] == share


class TestView:
    async def test_it_says_everything_about_a_provider(self) -> None:
        ward = Ward(says(200, LISTED)).listens()
        await ward.monitor.probe("openai")

        (view,) = ward.monitor.view().values()

        assert view == {
            "status": "healthy",
            "routable": True,
            "latency_ms": 20.0,
            "success_rate_pct": None,
            "circuit_breaker": {
                "state": "closed",
                "since": None,
                "until": None,
                "failures": 0,
                "reason": "",
                "model": None,
            },
            "models": {},
            "missing_models": [],
            "last_probe": {
                "time": "2026-03-01T10:00:00.020Z",
                "ok": True,
                "verdict": "passed",
                "latency_ms": 20.0,
                "what": "it lists 1 models",
                "status": 200,
            },
            "position": 1,
            "kind": "openai",
            "in_flight": 0,
        }
        assert dumps(view)

    async def test_before_the_first_probe_there_is_none(self) -> None:
        (view,) = Ward(says(200)).monitor.view().values()

        assert (view["status"], view["last_probe"], view["latency_ms"]) == ("healthy", None, None)

    async def test_calls_say_more_of_latency_than_probes(self) -> None:
        ward = Ward(says(200, LISTED)).listens()
        await ward.monitor.probe("openai")
        ward.bus.emit(finished(Outcome.SUCCESS, ANSWER))

        assert ward.monitor.view()["openai"]["latency_ms"] == 250.0

    async def test_a_rest_is_told_in_wall_clock_time(self) -> None:
        ward = Ward(says(200, LISTED))
        ward.trips()
        ward.clock.advance(10)

        view = ward.monitor.view()["openai"]

        assert view["status"] == "down"
        assert view["circuit_breaker"] == {
            "state": "open",
            "since": "2026-03-01T10:00:00.000Z",
            "until": "2026-03-01T10:00:30.000Z",
            "failures": 3,
            "reason": "connect",
            "model": None,
        }

    async def test_an_isolation_without_end_has_none(self) -> None:
        ward = Ward(says(200))
        ward.upstream.breakers.isolate(ward.clock.monotonic(), float("inf"), "by hand")

        assert ward.monitor.view()["openai"]["circuit_breaker"]["until"] is None
        assert not ward.monitor.is_up("openai")

    async def test_a_model_in_trouble_is_named(self) -> None:
        ward = Ward(says(200))
        ward.trips(FailureKind.TIMEOUT)

        view = ward.monitor.view()["openai"]

        assert (view["status"], view["routable"]) == ("degraded", True)
        assert (view["circuit_breaker"]["model"], view["circuit_breaker"]["state"]) == ("gpt-4o", "open")
        assert view["models"]["gpt-4o"]["state"] == "open"
        assert ward.monitor.breaker("openai") is State.OPEN

    async def test_where_every_call_leads_to_that_model_the_provider_is_down(self) -> None:
        ward = Ward(
            says(200),
            provider=OpenAIProvider(base_url="http://openai.test/v1", models={"*": "gpt-4o"}),
        )
        ward.trips(FailureKind.TIMEOUT)

        assert ward.monitor.status("openai") == "down"

    @pytest.mark.parametrize(
        "trouble",
        [
            lambda ward: ward.upstream.gate.close(5.0, ward.clock.monotonic()),
            lambda ward: ward.trips() or ward.clock.advance(30),
            lambda ward: setattr(ward.monitor._watches["openai"], "missing", ("qwen3",)),
            lambda ward: setattr(
                ward.monitor._watches["openai"],
                "last",
                ProbeResult("openai", 0.0, 0.1, Verdict.FAILED, "refused"),
            ),
        ],
        ids=["it asked us to wait", "the next call is a trial", "a model is missing", "a probe failed"],
    )
    async def test_it_is_degraded_when(self, trouble: Callable[[Ward], Any]) -> None:
        ward = Ward(says(200))

        trouble(ward)

        assert ward.monitor.status("openai") == "degraded"
        assert ward.monitor.is_up("openai")

    async def test_a_good_call_outdoes_an_earlier_probe_that_failed(self) -> None:
        ward = Ward(REFUSED).listens()
        await ward.monitor.probe("openai")

        ward.bus.emit(finished(Outcome.SUCCESS, ANSWER))

        assert ward.monitor.status("openai") == "healthy"
        await ward.monitor.probe("openai")
        assert ward.monitor.status("openai") == "degraded"

    async def test_a_trial_that_is_out_is_no_outage(self) -> None:
        ward = Ward(says(200))
        ward.trips()
        ward.clock.advance(30)
        ward.upstream.breakers.acquire("gpt-4o", ward.clock.monotonic())

        with pytest.raises(BreakerOpen):
            ward.upstream.breakers.acquire("gpt-4o", ward.clock.monotonic())
        assert ward.monitor.status("openai") == "degraded"

    async def test_the_order_is_that_of_the_chain(self) -> None:
        ward = Ward(says(200))
        ward.add(ollama(), says(200, TAGS))

        view = ward.monitor.view()

        assert {name: part["position"] for name, part in view.items()} == {"openai": 1, "ollama": 2}
        assert repr(ward.monitor) == "<Monitor openai healthy, ollama healthy>"
        assert repr(Watch(ward.upstream, 30.0)) == "<Watch openai unknown>"
