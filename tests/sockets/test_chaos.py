"""
Thousands of calls, a random fault on each, and a promise that holds for every one of them.

Real sockets throughout: callers, the proxy and three providers share one event loop. The faults
are in `chaos_faults`, the callers in `chaos_support`, the promise in `chaos_oracle`. A failure
prints its seed; `SENTINEL_TEST_SEED=...` plays the same calls and the same faults again, though
not the same timing.
"""

import asyncio
import gc
import itertools
import logging
import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from chaos_faults import FAULTS, SECRET, Liars, Said
from chaos_oracle import complaint
from chaos_support import Ask, Seen, Wire, invent

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    ProviderConfig,
    RateLimitConfig,
    RescueConfig,
    RetryConfig,
    TimeoutsConfig,
)
from sentinel_proxy.events import Bus, CallFinished, Noticed
from sentinel_proxy.model import Outcome
from sentinel_proxy.resilience.gate import Gate
from sentinel_proxy.resilience.scopes import ScopedPermit
from sentinel_proxy.server import running
from sentinel_proxy.testing import FaultyUpstream
from sentinel_proxy.upstream.upstream import Upstream

pytestmark = pytest.mark.anyio

CALLERS = 40  # at once: all of them, and the providers, share one core with the proxy
SETTLING_SECONDS = 2.0
WEATHER_SECONDS = 0.02
BACK_OFF_SECONDS = 0.05  # of a caller that was told to come back; an SDK would wait longer


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """As the product runs: asyncio on uvloop."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def seed() -> int:
    """Another one for each run, unless the environment names one."""
    return int(os.environ.get("SENTINEL_TEST_SEED") or Random().randrange(1 << 32))


@dataclass
class Run:
    """One proxy amid faulty providers and odd callers, and what came of it."""

    proxy: Proxy
    url: str
    liars: Liars
    upstreams: dict[str, FaultyUpstream]
    finished: defaultdict[str, list[CallFinished]] = field(default_factory=lambda: defaultdict(list))
    seen: dict[int, tuple[Ask, Seen]] = field(default_factory=dict)
    stray_bytes: int = 0
    mistakes: list[Noticed] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)  # when the event loop did not turn

    async def make_calls(self, asks: Iterator[Ask], callers: int) -> None:
        """Make all calls, so many at once as there are *callers*."""
        await asyncio.gather(*(self._caller(asks) for _ in range(callers)))

    async def _caller(self, asks: Iterator[Ask]) -> None:
        wire: Wire | None = None
        for ask in asks:
            if wire is None or not wire.usable:
                wire = await Wire.connected(self.url)
            seen = await wire.call(ask)
            self.seen[ask.number] = ask, seen
            self.stray_bytes += wire.stray_bytes
            if seen.status == 503:
                await asyncio.sleep(BACK_OFF_SECONDS)
        if wire is not None:
            wire.close()

    async def weather(self, seed: int) -> None:
        """Refuse connections now and then, and end every rest soon: some would last for minutes."""
        rng, loop = Random(f"{seed}/weather"), asyncio.get_running_loop()
        for tick in itertools.count():
            for server in self.upstreams.values():
                if rng.random() < 0.1:
                    await server.stop_listening()
                else:
                    await server.listen_again()
            for upstream in self.proxy.upstreams:
                now = self.proxy.clock.monotonic()
                upstream.breakers.reset(now, "fine") if tick % 10 == 0 else upstream.breakers.advance(now)
                upstream.gate = Gate()
            due = loop.time() + WEATHER_SECONDS
            await asyncio.sleep(WEATHER_SECONDS)
            self.stalls.append((due, loop.time()))

    def count(self, *outcomes: Outcome) -> int:
        """Return how many calls ended so."""
        return sum(event.outcome in outcomes for events in self.finished.values() for event in events)

    def complaints(self, *, rescues: bool = False) -> list[str]:
        """Return what is wrong, one story a call."""
        for _, seen in self.seen.values():
            seen.lost_seconds = self._stalled_seconds(seen.began, seen.began + seen.seconds)
        return [
            f"{wrong}: {self._story(ask, seen)}"
            for ask, seen in self.seen.values()
            if (wrong := complaint(ask, seen, *self._truth(ask), rescues=rescues)) is not None
        ]

    def _stalled_seconds(self, began: float, ended: float) -> float:
        """Return how long the event loop stood still in a span of time: a busy machine's fault."""
        first = bisect_left(self.stalls, (began, began)) - 1
        spans = self.stalls[max(0, first) : bisect_left(self.stalls, (ended, ended))]
        return sum(max(0.0, min(ended, end) - max(began, start)) for start, end in spans)

    def _truth(self, ask: Ask) -> tuple[list[Said], list[CallFinished]]:
        return self.liars.said[ask.number], self.finished[ask.trace_id]

    def _story(self, ask: Ask, seen: Seen) -> str:
        said, events = self._truth(ask)
        return "\n    ".join(
            [
                f"call {ask.number}, {ask.kind}, stream={ask.stream}, request {ask.parts[0][-300:]!r}",
                *(f"{one.provider} {one.attempt}: {one.fault}, {one.body[-300:]!r}" for one in said),
                f"seen after {seen.seconds:.3f} s: {seen.ended}, {seen.status}, {seen.headers}",
                f"{seen.body[:200]!r} ... {seen.body[-400:]!r}",
                *(
                    f"{e.outcome} {e.status} {e.provider} {e.error_code} {e.call and e.call.trail}"
                    for e in events
                ),
            ]
        )


def config(urls: dict[str, str], total_seconds: float, mode: str, transport: str) -> Config:
    """Return a chain of three with waits so short that silence costs little."""
    providers: list[dict[str, Any]] = [
        {"name": "openai", "kind": "openai", "base_url": f"{urls['openai']}/v1", "api_key": SECRET},
        {"name": "ollama", "kind": "ollama", "base_url": urls["ollama"]},
        {"name": "spare", "kind": "openai", "base_url": f"{urls['spare']}/v1", "api_key": SECRET},
    ]
    return Config(
        providers=tuple(
            ProviderConfig.model_validate({**provider, "transport": transport}) for provider in providers
        ),
        timeouts=TimeoutsConfig(
            connect=0.3,
            first_token=0.3,
            first_token_reasoning=0.3,
            idle=0.3,
            progress=0.35,
            answer=0.3,
            header_hold=0.08,
            heartbeat=0.05,
            total=total_seconds,
        ),
        retry=RetryConfig(backoff=0.005, max_backoff=0.01, retry_after_limit=0.05, budget=1.0),
        breaker=BreakerConfig(failure_threshold=6, half_open_permits=4),
        rescue=RescueConfig(mode=mode),  # type: ignore[arg-type]
        rate_limit=RateLimitConfig(requests=0),
    )


@asynccontextmanager
async def amid_faults(liars: Liars, total_seconds: float, mode: str, transport: str) -> AsyncIterator[Run]:
    """Run the proxy between three faulty upstreams."""
    async with AsyncExitStack() as stack:
        upstreams = {
            name: await stack.enter_async_context(FaultyUpstream()) for name in ("openai", "ollama", "spare")
        }
        for name, upstream in upstreams.items():
            upstream.always(liars.playing(name))
        bus = Bus()
        urls = {name: upstream.url for name, upstream in upstreams.items()}
        proxy = Proxy(config(urls, total_seconds, mode, transport), bus=bus)
        url = await stack.enter_async_context(running(proxy))
        run = Run(proxy, url, liars, upstreams)
        bus.subscribe(CallFinished, lambda event: run.finished[event.trace_id].append(event))
        bus.subscribe(Noticed, lambda event: run.mistakes.append(event) if event.level != "info" else None)
        yield run


@pytest.fixture(autouse=True)
def permits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever got leave for an attempt has settled it in the end."""
    given: list[ScopedPermit] = []
    admit = Upstream.admit

    def recording(upstream: Upstream, model: str, now: float, *, early: bool = False) -> ScopedPermit:
        given.append(admit(upstream, model, now, early=early))
        return given[-1]

    monkeypatch.setattr(Upstream, "admit", recording)
    yield
    assert [permit for permit in given if "settled" not in repr(permit)] == []


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Answers that end without their last byte are many here, and uvicorn tells of each."""
    caplog.set_level(logging.CRITICAL, logger="uvicorn.error")


def open_sockets() -> set[str]:
    """Return the sockets of this process, as the kernel names them."""
    names = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them has gone already
            names.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in names if name.startswith("socket:")}


async def settled(holds: Callable[[], bool]) -> bool:
    """Whether *holds* comes true soon enough."""
    for _ in range(int(SETTLING_SECONDS / 0.02)):
        if holds():
            return True
        await asyncio.sleep(0.02)
    return holds()


async def play(
    seed: int,
    calls: int,
    *,
    total_seconds: float = 1.5,
    mode: str = "error",
    transport: str = "http1",
    callers: int = CALLERS,
    gentle: int = 1,
    plain: bool = False,
) -> Run:
    """Make *calls* calls amid faults and check everything that does not depend on what they saw."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    sockets_before = open_sockets()
    async with amid_faults(Liars(seed, gentle), total_seconds, mode, transport) as run:
        tasks_before = asyncio.all_tasks()
        weather = asyncio.create_task(run.weather(seed))
        asks = (invent(number, seed, total_seconds, plain=plain) for number in range(calls))
        await run.make_calls(asks, callers)
        weather.cancel()
        await asyncio.wait([weather])
        await check_that_nothing_is_left(run, tasks_before)
    gc.collect()

    assert open_sockets() <= sockets_before
    assert troubles == []
    assert run.mistakes == []
    assert run.stray_bytes == 0
    assert run.liars.orphans == []
    return run


async def check_that_nothing_is_left(run: Run, tasks_before: set[asyncio.Task[Any]]) -> None:
    """No call, permit, connection, alarm or task is held once all callers have gone."""
    proxy = run.proxy
    load = proxy.load
    assert await settled(lambda: load.in_flight == load.open_streams == 0), repr(load)
    assert await settled(lambda: all(upstream.in_flight == 0 for upstream in proxy.upstreams))
    assert all(getattr(upstream.transport, "active", 0) == 0 for upstream in proxy.upstreams)
    for server in run.upstreams.values():
        server.drop_connections()
    assert await settled(lambda: asyncio.all_tasks() <= tasks_before), asyncio.all_tasks() - tasks_before
    assert await settled(lambda: len(proxy.wheel) == 0), repr(proxy.wheel)
    now = proxy.clock.monotonic()
    for upstream in proxy.upstreams:
        breakers = (upstream.breakers.own, *upstream.breakers.models_view().values())
        assert [breaker.trials(now) for breaker in breakers] == [0] * len(breakers)
        upstream.breakers.reset(now, "the test is over")
        upstream.gate = Gate()
        assert upstream.admits("any", now)


def report(run: Run, seed: int, *, rescues: bool = False) -> str:
    """Tell what is wrong, and how to see it again; "" if nothing is."""
    complaints = run.complaints(rescues=rescues)
    if not complaints:
        return ""
    kinds = Counter(complaint.partition(":")[0] for complaint in complaints)
    return "\n".join([f"SENTINEL_TEST_SEED={seed}: {dict(kinds)}", *complaints[:5]])


async def test_every_call_ends_with_a_whole_answer_or_an_honest_error(seed: int) -> None:
    """
    Whatever providers and callers do, nobody is shown a piece of an answer for the whole.
    """
    run = await play(seed, 10_000)

    assert not (wrong := report(run, seed)), wrong
    assert set(FAULTS) <= set(run.liars.played)
    assert run.count(Outcome.SUCCESS, Outcome.FAILED_OVER) > 3_000


async def test_a_stream_that_is_carried_on_is_one_answer_without_a_seam(seed: int) -> None:
    """
    With rescue, a text is one provider's beginning and exactly what another said in its continuation.
    """
    run = await play(seed, 2_000, total_seconds=12, mode="continue", gentle=2, plain=True)

    assert not (wrong := report(run, seed, rescues=True)), wrong
    assert run.count(Outcome.RESCUED) > 20


async def test_the_other_transport_keeps_the_same_promise(seed: int) -> None:
    """
    httpx behind the same seam: slower, and as honest.
    """
    run = await play(seed, 1_000, transport="httpx", callers=16)

    assert not (wrong := report(run, seed)), wrong
