"""
Outages as callers live through them: minutes of them, in seconds.

Sockets are real, pauses are skipped: the proxy's clock, and with it every timer of the event
loop, is real time plus what a test has skipped. The ids are those of docs/catalogue.md: F the
breaker, G the budget; A03 and F04 with their price.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import count, cycle
from typing import Any

import pytest
from harness import CHAT, Harness, Start, chain
from raw_caller import ask, judged

from sentinel_proxy.config import BreakerConfig, Config, HealthConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.events import AttemptFailed, BreakerChanged
from sentinel_proxy.model import Outcome
from sentinel_proxy.testing import (
    Act,
    FaultyUpstream,
    Hang,
    Pause,
    Received,
    Reset,
    Script,
    Step,
    ollama_completion,
    ollama_stream,
    ollama_tags,
    openai_chunks,
    openai_completion,
    openai_error,
    openai_models,
    openai_stream,
    sse_stream,
)

pytestmark = pytest.mark.anyio

TOKENS = ["All", " is", " well."]
TEXT = "".join(TOKENS)
UNPROBED = HealthConfig(interval=1e9)
DEFAULTS: dict[str, Any] = {"retry": RetryConfig(), "breaker": BreakerConfig(), "health": UNPROBED}
"""Where what calls do by themselves is the question."""

NO_SECOND_TRY = DEFAULTS | {"retry": RetryConfig(attempts=1)}


class SkippingClock:
    """
    A `clock.Clock`: real time plus what was skipped.

    The running event loop reads it too, so that whatever is due meanwhile is done when time is
    skipped, and not when it would really have come.
    """

    def __init__(self) -> None:
        self._skipped = 0.0

    def monotonic(self) -> float:
        """Return the seconds this clock shows."""
        return time.monotonic() + self._skipped

    def time(self) -> float:
        """Return the Unix seconds this clock shows."""
        return time.time() + self._skipped

    async def sleep(self, seconds: float) -> None:
        """Wait, unless the time is skipped."""
        await asyncio.sleep(seconds)

    async def skip(self, seconds: float) -> None:
        """Let *seconds* pass, and what is due be done."""
        self._skipped += seconds
        await asyncio.sleep(0.002)


@pytest.fixture
async def clock() -> AsyncIterator[SkippingClock]:
    """The time of this test; name it before `start`, so that it outlives the proxy."""
    clock = SkippingClock()
    loop = asyncio.get_running_loop()
    loop.time = clock.monotonic  # type: ignore[method-assign]
    yield clock
    del loop.time


def attempts(harness: Harness, provider: str = "openai") -> int:
    """Return how many attempts at *provider* have failed."""
    return sum(isinstance(event, AttemptFailed) and event.provider == provider for event in harness.events)


def changes(harness: Harness) -> list[str]:
    """Return the states that breakers have gone to."""
    return [event.after for event in harness.events if isinstance(event, BreakerChanged)]


def fails_calls_alone(request: Received) -> Script:
    """A provider whose inference is down, and whose model list is not."""
    return openai_models("gpt-4o-mini") if request.method == "GET" else openai_error(503)


def openai_well(request: Received) -> Script:
    if request.method == "GET":
        return openai_models("gpt-4o-mini")
    return openai_stream(TOKENS) if request.json()["stream"] else openai_completion(TEXT)


def ollama_well(request: Received) -> Script:
    if request.target != "/api/chat":
        return ollama_tags("llama3.2")
    return ollama_stream(TOKENS) if request.json()["stream"] else ollama_completion(TEXT)


async def goes_down(primary: FaultyUpstream, act: Act | None) -> None:
    """Let *primary* fail like *act*; None: nobody listens."""
    if act is None:
        await primary.stop_listening()
        primary.drop_connections()
    else:
        primary.always(act)


async def comes_back(primary: FaultyUpstream, act: Act) -> None:
    primary.always(act)
    await primary.listen_again()


class TestAMinuteOfIt:
    """60 seconds of a dead primary, and a call every four seconds: a stream, a whole answer, in turns."""

    @pytest.mark.parametrize(
        "act",
        [
            pytest.param(None, id="refused"),
            pytest.param([Reset()], id="reset"),
            pytest.param(openai_error(503), id="503"),
            pytest.param([Hang()], id="silent"),
            pytest.param(fails_calls_alone, id="F21 503, and all is well for probes"),
        ],
    )
    async def test_all_calls_are_answered_and_the_primary_is_hardly_asked(
        self,
        clock: SkippingClock,
        start: Start,
        primary: FaultyUpstream,
        backup: FaultyUpstream,
        act: Act | None,
    ) -> None:
        backup.always(ollama_well)
        timeouts = TimeoutsConfig(first_token=0.1, answer=0.1)
        probed = DEFAULTS | {"health": HealthConfig(timeout=0.1)}
        harness = await start(chain(primary, backup, timeouts=timeouts, **probed), clock=clock)

        await goes_down(primary, act)
        down = await self._calls(harness, clock, (True, False), seconds=60)
        asked_in_vain, states = attempts(harness), changes(harness)
        await comes_back(primary, openai_well)
        up = await self._calls(harness, clock, (True, False), seconds=32)

        assert asked_in_vain <= 4
        assert down == ["ollama"] * 15
        assert "closed" not in states
        assert "openai" in up, "it is not back within 30 seconds"
        assert up == ["ollama"] * up.index("openai") + ["openai"] * up.count("openai")
        assert attempts(harness) == asked_in_vain
        assert {event.outcome for event in harness.finished()} == {Outcome.SUCCESS, Outcome.FAILED_OVER}

    async def test_streams_that_break_are_answered_too(
        self, clock: SkippingClock, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """A primary that dies in each answer is found out like one that does not answer."""
        said = openai_chunks(TOKENS[:1], finish_reason=None, done=False)
        backup.always(lambda request: ollama_stream(TOKENS[1 if _continues(request) else 0 :]))
        primary.always([*sse_stream(said)[:-1], Reset()])
        harness = await start(chain(primary, backup, timeouts=TimeoutsConfig(), **DEFAULTS), clock=clock)

        down = await self._calls(harness, clock, (True,), seconds=60)
        asked_in_vain = len(primary.requests)
        primary.always(openai_stream(TOKENS))
        up = await self._calls(harness, clock, (True,), seconds=32)

        assert asked_in_vain <= 4
        assert len(down) == 15
        assert "openai" in up
        outcomes = {event.outcome for event in harness.finished()}
        assert outcomes == {Outcome.SUCCESS, Outcome.FAILED_OVER, Outcome.RESCUED}

    async def _calls(
        self, harness: Harness, clock: SkippingClock, streams: Sequence[bool], seconds: int
    ) -> list[str]:
        """Call every four seconds, as *streams* says in turns; return who answered. All answers are whole."""
        by: list[str] = []
        for _, stream in zip(range(0, seconds, 4), cycle(streams), strict=False):
            answer = judged(await ask(harness.url, CHAT | {"stream": stream}))
            assert answer.success
            said = answer.text if stream else json.loads(answer.body)["choices"][0]["message"]["content"]
            assert said == TEXT
            by.append(answer.headers["x-sentinel-provider"])
            await clock.skip(4)
        return by


def _continues(request: Received) -> bool:
    return bool(request.json()["messages"][-1]["role"] == "assistant")


class TestThePrice:
    """
    What it costs a caller that its provider is down.

    Calls are taken in turns with those to a healthy provider, in changing order, so that a busy
    machine is busy for both; what counts is the lower quartile of each, when it was least so.
    """

    @pytest.mark.parametrize(
        ("act", "breaker", "repetitions", "limit_seconds"),
        [
            pytest.param(openai_error(503), BreakerConfig(failure_threshold=10**6), 11, 1.0, id="503"),
            pytest.param(None, BreakerConfig(failure_threshold=10**6), 60, 0.05, id="A03 refused"),
            pytest.param(None, BreakerConfig(), 200, 0.001, id="F04 an open breaker"),
        ],
    )
    async def test_a_failover_costs_so_much_and_no_more(
        self,
        start: Start,
        primary: FaultyUpstream,
        backup: FaultyUpstream,
        act: Act | None,
        breaker: BreakerConfig,
        repetitions: int,
        limit_seconds: float,
    ) -> None:
        backup.always(openai_completion(TEXT))
        healthy = await start(_only(backup))
        sick = await start(_two_of_a_kind(primary, backup, breaker))
        await goes_down(primary, act)
        for harness in (healthy, sick) * 4:  # connections are made, breakers have tripped
            await self._timed(harness)

        seconds: dict[Harness, list[float]] = {healthy: [], sick: []}
        for turn in range(repetitions):
            for harness in (healthy, sick) if turn % 2 else (sick, healthy):
                seconds[harness].append(await self._timed(harness))

        baseline, paid = (statistics.quantiles(seconds[each])[0] for each in (healthy, sick))
        assert paid - baseline <= limit_seconds
        assert {event.outcome for event in sick.finished()} == {Outcome.FAILED_OVER}

    async def _timed(self, harness: Harness) -> float:
        began = time.perf_counter()
        answer = judged(await ask(harness.url, CHAT))
        took = time.perf_counter() - began
        assert (answer.status, answer.headers["x-sentinel-provider"]) == (200, "backup")
        return took


def _only(backup: FaultyUpstream) -> Config:
    config = chain(backup, **DEFAULTS)
    renamed = config.providers[0].model_copy(update={"name": "backup"})
    return config.model_copy(update={"providers": (renamed,)})


def _two_of_a_kind(primary: FaultyUpstream, backup: FaultyUpstream, breaker: BreakerConfig) -> Config:
    """
    Both speak the same dialect, so that a translation is no part of the price. Retries are, and
    the budget allows for all of them.
    """
    config = chain(primary, **(DEFAULTS | {"breaker": breaker, "retry": RetryConfig(budget=1)}))
    return config.model_copy(update={"providers": (*config.providers, *_only(backup).providers)})


async def test_a_thousand_calls_are_all_served_by_the_backup(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """G05: no budget stands between an outage and a failover."""
    backup.always(ollama_completion(TEXT))
    harness = await start(chain(primary, backup, **DEFAULTS))
    await goes_down(primary, openai_error(503))
    numbers = count()
    served: list[str] = []

    async def caller() -> None:
        while next(numbers) < 1000:
            answer = judged(await ask(harness.url, CHAT))
            assert json.loads(answer.body)["choices"][0]["message"]["content"] == TEXT
            served.append(answer.headers["x-sentinel-provider"])

    await asyncio.gather(*(caller() for _ in range(16)))

    assert served == ["ollama"] * 1000
    assert len(backup.requests) == 1000
    assert attempts(harness) <= 3 + 2 * 16  # those that were under way when the breaker tripped
    assert harness.idle()


class TestTheBreaker:
    """F on real sockets; every transition of the table is in tests/unit/test_breaker.py."""

    async def test_three_failures_in_a_row_open_it_once(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """F01, F04: one event, and then nothing is sent."""
        primary.always(openai_error(504))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY))

        trails = [(await harness.chat()).headers["x-sentinel-trail"] for _ in range(5)]

        assert trails == ["openai:504,ollama:200"] * 3 + ["openai:open,ollama:200"] * 2
        assert changes(harness) == ["open"]
        assert len(primary.requests) == 3

    @pytest.mark.parametrize(
        ("acts", "after"),
        [
            pytest.param("FFSFF", [], id="F02 a success between them ends the run"),
            pytest.param("FFNF", ["open"], id="F03 what is nobody's fault does not"),
            pytest.param("TTTTTTTTTT", [], id="F11 ten 429s are no failures"),
        ],
    )
    async def test_what_counts_is_the_run_of_failures(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream, acts: str, after: list[str]
    ) -> None:
        meanings = {
            "F": openai_error(504),
            "S": openai_completion(TEXT),
            "N": openai_error(400, "invalid_value"),
            "T": openai_error(429, headers={"retry-after-ms": "1"}),
        }
        primary.plays(*(meanings[act] for act in acts))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY))

        for _ in acts:
            await harness.chat()
            await asyncio.sleep(0.002)

        assert len(primary.requests) == len(acts)
        assert changes(harness) == after

    async def test_it_rests_for_its_time_and_then_lets_exactly_one_try(
        self, clock: SkippingClock, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """F05, F06, F07: fifty callers at the end of the rest, one trial, and it closes."""
        primary.always(openai_error(504))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY), clock=clock)
        for _ in range(3):
            await harness.chat()
        primary.always([Pause(0.2), *openai_completion(TEXT)])

        await clock.skip(29)
        early = await harness.chat()
        await clock.skip(1)
        answers = await asyncio.gather(*(ask(harness.url, CHAT) for _ in range(50)))
        later = await harness.chat()

        served = [judged(answer).headers["x-sentinel-provider"] for answer in answers]
        assert early.headers["x-sentinel-trail"] == "openai:open,ollama:200"
        assert sorted(served) == ["ollama"] * 49 + ["openai"]
        assert later.headers["x-sentinel-trail"] == "openai:200"
        assert changes(harness) == ["open", "half_open", "closed"]

    async def test_a_trial_that_fails_means_another_rest(
        self, clock: SkippingClock, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """F08, F19: the first relapse rests as long again, from the second on it doubles."""
        primary.always(openai_error(504))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY), clock=clock)
        for _ in range(3):
            await harness.chat()

        rests = []
        for _ in range(6):
            asked = len(primary.requests)
            rest = 0
            while len(primary.requests) == asked:
                await clock.skip(10)
                rest += 10
                await harness.chat()
            rests.append(rest)

        assert rests == [30, 30, 60, 120, 240, 300]
        assert changes(harness) == ["open", *["half_open", "open"] * 6]

    async def test_a_trial_that_proves_nothing_leaves_it_half_open(
        self, clock: SkippingClock, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """F09: a caller's mistake is no news; the place is free for the next."""
        primary.always(openai_error(504))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY), clock=clock)
        for _ in range(3):
            await harness.chat()
        primary.plays(openai_error(400, "invalid_value"), openai_completion(TEXT))
        await clock.skip(30)

        mistaken = await harness.chat()
        states = changes(harness)
        served = await harness.chat()

        assert mistaken.status_code == 400
        assert states == ["open", "half_open"]
        assert served.headers["x-sentinel-trail"] == "openai:200"
        assert changes(harness) == ["open", "half_open", "closed"]

    async def test_a_trial_whose_caller_hangs_up_gives_its_place_back(
        self, clock: SkippingClock, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """E10, F10: nothing was learned, and the next call is the trial."""
        primary.always(openai_error(504))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY), clock=clock)
        for _ in range(3):
            await harness.chat()
        primary.plays([Hang()], openai_completion(TEXT))
        await clock.skip(30)

        trial = asyncio.create_task(harness.chat())
        await _until(lambda: len(primary.requests) == 4)
        trial.cancel()
        await _until(harness.idle)
        served = await harness.chat()

        assert served.headers["x-sentinel-trail"] == "openai:200"
        assert changes(harness) == ["open", "half_open", "closed"]

    async def test_what_an_operator_isolates_is_not_asked_until_the_order_expires(
        self, clock: SkippingClock, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """F12: it is well, and rests all the same."""
        primary.always(openai_completion(TEXT))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY), clock=clock)
        breakers = harness.proxy.upstreams[0].breakers

        breakers.isolate(clock.monotonic(), clock.monotonic() + 3600, "maintenance")
        isolated = await harness.chat()
        await clock.skip(3600)
        expired = await harness.chat()

        assert isolated.headers["x-sentinel-trail"] == "openai:open,ollama:200"
        assert expired.headers["x-sentinel-trail"] == "openai:200"
        assert len(primary.requests) == 1

    async def test_one_broken_model_takes_no_other_away(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """F18."""
        primary.always(
            lambda request: (
                openai_error(503) if request.json()["model"] == "broken" else openai_completion(TEXT)
            )
        )
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, **NO_SECOND_TRY))
        for _ in range(3):
            await harness.chat(model="broken")

        broken, fine = await harness.chat(model="broken"), await harness.chat(model="fine")

        assert broken.headers["x-sentinel-trail"] == "openai:open,ollama:200"
        assert fine.headers["x-sentinel-trail"] == "openai:200"
        assert [event.model for event in harness.events if isinstance(event, BreakerChanged)] == ["broken"]

    async def test_a_trial_that_streams_well_for_a_while_has_proved_its_point(
        self, clock: SkippingClock, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """F20: closed after five seconds of it, though the answer takes minutes."""
        token, goes_on = asyncio.Event(), asyncio.Event()

        def slowly(_: Received) -> Iterator[Step]:
            events = openai_chunks([*TOKENS, " And so on."])
            head, *parts = sse_stream(events)
            yield from (head, *parts[:2])
            token.set()
            while not goes_on.is_set():
                yield Pause(0.005)
            yield parts[2]
            goes_on.clear()
            while not goes_on.is_set():
                yield Pause(0.005)
            yield from parts[3:]

        primary.always(openai_error(504))
        backup.always(ollama_completion(TEXT))
        harness = await start(chain(primary, backup, timeouts=TimeoutsConfig(), **NO_SECOND_TRY), clock=clock)
        for _ in range(3):
            await harness.chat()
        primary.always(slowly)
        await clock.skip(30)

        trial = asyncio.create_task(ask(harness.url, CHAT | {"stream": True}))
        await token.wait()
        await asyncio.sleep(0.02)
        before = changes(harness)
        await clock.skip(5.5)
        goes_on.set()
        await _until(lambda: changes(harness)[-1] == "closed")
        still_streaming = not trial.done()
        await _until(lambda: not goes_on.is_set())
        goes_on.set()

        assert before == ["open", "half_open"]
        assert still_streaming
        assert judged(await trial).text == f"{TEXT} And so on."
        assert changes(harness) == ["open", "half_open", "closed"]


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come true")
