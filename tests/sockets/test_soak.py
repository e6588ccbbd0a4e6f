"""
200 streams at once, with cuts, stalls and hang-ups: nothing hangs, leaks or is passed off as whole.

SENTINEL_SOAK_SECONDS says for how long (5 by default, so that every run of the suite has some of
it), SENTINEL_TEST_SEED which faults. `pytest -s` shows the figures.
"""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Final
from urllib.parse import urlsplit

import pytest
from harness import CHAT, chain
from raw_caller import Answer, judged, request

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import BreakerConfig, Config, RetryConfig, TimeoutsConfig
from sentinel_proxy.server import running
from sentinel_proxy.testing import (
    Close,
    FaultyUpstream,
    Hang,
    Received,
    Reset,
    Script,
    Step,
    cut,
    ollama_error,
    ollama_stream,
    openai_error,
    openai_stream,
    sse,
    sse_stream,
)

pytestmark = pytest.mark.anyio

SECONDS: Final = float(os.environ.get("SENTINEL_SOAK_SECONDS", "5"))
SEED: Final = os.environ.get("SENTINEL_TEST_SEED", "2026")
CALLERS: Final = 200
GROWTH_BYTES: Final = 32 * 1024 * 1024
"""Allowed for after the first third: arenas that fill up, and no more in a long run than in a short one."""

TIMEOUTS: Final = TimeoutsConfig(
    connect=2, first_token=1.5, idle=0.5, progress=1, header_hold=0.2, heartbeat=0.1, total=15
)
OVERDUE_SECONDS: Final = TIMEOUTS.total + 5


def words(number: int) -> list[str]:
    """Return what every provider answers to a call: no two calls, and no two places, alike."""
    return [f"{number}.{place} " for place in range(Random(f"{SEED}/{number}").randint(1, 30))]


def asked(received: Received) -> int:
    return int(received.json()["messages"][0]["content"])


def primary_act(received: Received) -> Script | Iterator[Step]:
    """Answer well one time in three; else fail in one of the ways there are."""
    number = asked(received)
    rng = Random(f"{SEED}/{number}/primary")
    whole = openai_stream(
        words(number), pause=rng.choice((0, 0.002)), framing=rng.choice(("chunked", "close"))
    )
    match rng.randrange(9):
        case 0 | 1 | 2:
            return whole
        case 3:
            return openai_error(rng.choice((500, 503, 504)))
        case 4:
            return [rng.choice((Reset(), Close(), Hang()))]
        case 5:
            error = sse({"error": {"message": "the engine died", "type": "server_error"}})
            return [*whole[: rng.randint(2, len(whole))], *sse_stream([error, sse("[DONE]")])[1:]]
        case _:
            return cut(whole, rng.randrange(6000), rng.choice((Reset(), Close(), Hang())))


def backup_act(received: Received) -> Script:
    """Go on where the text stops, or answer; fail one time in eight."""
    number = asked(received)
    rng = Random(f"{SEED}/{number}/backup")
    text = "".join(words(number))
    said = "".join(m["content"] for m in received.json()["messages"] if m["role"] == "assistant")
    rest = text.removeprefix(said) or text
    whole = ollama_stream([rest[at : at + 7] for at in range(0, len(rest), 7)], pause=rng.choice((0, 0.002)))
    match rng.randrange(16):
        case 0:
            return ollama_error(500)
        case 1:
            return cut(whole, rng.randrange(3000), rng.choice((Reset(), Close(), Hang())))
    return whole


def forgetful(upstream: FaultyUpstream, act: Callable[[Received], Script | Iterator[Step]]) -> None:
    """Let *upstream* act without a memory of its own: it is what leaks that is looked for."""

    def acts(received: Received) -> Script | Iterator[Step]:
        upstream.requests.clear()
        return act(received) if received.method == "POST" else openai_error(404)

    upstream.always(acts)


@dataclass
class Figures:
    """What became of the calls."""

    calls: int = 0
    whole: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, number: int, answer: Answer) -> None:
        """Judge what the caller of *number* saw."""
        text = "".join(words(number))
        if answer.success:
            right = (answer.text, answer.finishes, answer.roles, answer.done) == (text, ["stop"], 1, True)
            rescued = b": sentinel failover" in answer.body
            self.whole += 1
            self.ends[
                "rescued" if rescued else answer.headers["x-sentinel-provider"].replace("none", "kept warm")
            ] += 1
        elif answer.status == 200:
            all_was_said = answer.text == text  # then the provider itself may have said so, and failed
            right = answer.whole and text.startswith(answer.text) and answer.error is not None
            right = right and not answer.done and (not answer.finishes or all_was_said)
            self.ends[answer.error["code"] if answer.error else "no error"] += 1
        else:
            right = answer.whole and answer.status >= 500
            self.ends[str(answer.status)] += 1
        if not right:
            self.wrong.append(f"call {number}: {answer.status}, {answer.body[-200:]!r}")


class Callers:
    """As many callers as there are, each with one call after the other."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._numbers = count()
        self.figures = Figures()

    async def call_until(self, end: float) -> None:
        """Let all of them call until the loop's time is *end*."""
        await asyncio.gather(*(self._calls(place / CALLERS, end) for place in range(CALLERS)))

    async def _calls(self, delay_seconds: float, end: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(delay_seconds)  # not all of them in one instant
        while loop.time() < end:
            number = next(self._numbers)
            self.figures.calls += 1
            try:
                async with asyncio.timeout(OVERDUE_SECONDS):
                    await self._call(number)
            except TimeoutError:
                self.figures.wrong.append(f"call {number} hangs")

    async def _call(self, number: int) -> None:
        rng = Random(f"{SEED}/{number}/caller")
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            asks = CHAT | {"stream": True, "messages": [{"role": "user", "content": str(number)}]}
            writer.write(request(asks))
            match rng.randrange(10):
                case 0:
                    await self._hang_up(reader, writer, rng)
                case 1:
                    self.figures.note(number, judged(await _read_slowly(reader, rng)))
                case _:
                    self.figures.note(number, judged(await reader.read()))
        finally:
            writer.close()

    async def _hang_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rng: Random) -> None:
        self.figures.ends["hung up"] += 1
        with suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(rng.random() / 4):
                await reader.readexactly(rng.randrange(1, 4000))
        writer.transport.abort()


async def _read_slowly(reader: asyncio.StreamReader, rng: Random) -> bytes:
    parts = []
    while part := await reader.read(rng.randrange(1, 2000)):
        parts.append(part)
        await asyncio.sleep(rng.random() / 50)
    return b"".join(parts)


def config(primary: FaultyUpstream, backup: FaultyUpstream) -> Config:
    """Return a configuration whose breakers trip and recover all the time."""
    return chain(
        primary,
        backup,
        timeouts=TIMEOUTS,
        breaker=BreakerConfig(failure_threshold=12, recovery_timeout=0.1, max_recovery_timeout=0.2),
        retry=RetryConfig(backoff=0.01, max_backoff=0.02),
    )


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def idle(proxy: Proxy) -> bool:
    """Whether nothing is held: no call, no stream, no place, no connection in use, no trial."""
    now = proxy.clock.monotonic()
    return (proxy.load.in_flight, proxy.load.open_streams) == (0, 0) and all(
        upstream.in_flight == 0
        and getattr(upstream.transport, "active", 0) == 0
        and upstream.breakers.own.trials(now) == 0
        and not any(breaker.trials(now) for breaker in upstream.breakers.models_view().values())
        for upstream in proxy.upstreams
    )


async def within_seconds(seconds: float, holds: Callable[[], bool]) -> bool:
    for _ in range(round(seconds / 0.02)):
        if holds():
            return True
        await asyncio.sleep(0.02)
    return holds()


async def test_nothing_hangs_leaks_or_is_passed_off_as_whole(
    primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    forgetful(primary, primary_act)
    forgetful(backup, backup_act)
    loop = asyncio.get_running_loop()
    files, tasks = open_files(), len(asyncio.all_tasks())

    proxy = Proxy(config(primary, backup))
    async with running(proxy) as url:
        callers = Callers(url)
        began = loop.time()
        await callers.call_until(began + SECONDS / 3)
        settled_bytes = resident_bytes()
        await callers.call_until(began + SECONDS)
        grown_bytes = resident_bytes() - settled_bytes

        figures = callers.figures
        print(f"\n{figures.calls} calls in {loop.time() - began:.1f} s: {dict(figures.ends.most_common())}")
        print(f"resident {settled_bytes >> 20} MiB, grown by {grown_bytes / 2**20:.1f} MiB")
        assert figures.wrong == [], f"seed {SEED}: {figures.wrong[:5]}"
        assert figures.whole > 0, figures.ends  # how many depends on what else the machine does
        assert await within_seconds(2, lambda: idle(proxy)), f"seed {SEED}: {proxy.load}, {proxy.upstreams}"
        assert grown_bytes < GROWTH_BYTES

    assert await within_seconds(2, lambda: len(asyncio.all_tasks()) <= tasks), asyncio.all_tasks()
    assert await within_seconds(2, lambda: open_files() <= files)
