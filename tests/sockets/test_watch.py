"""`sentinel-proxy watch`: the live feed in a terminal, as people start it and as it goes on."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from admin_support import TOKEN, simulated_chain, with_token
from harness import Harness, Start, eventually

from sentinel_proxy.app import Proxy
from sentinel_proxy.clock import SystemClock
from sentinel_proxy.events import Noticed
from sentinel_proxy.server import running
from sentinel_proxy.testing import (
    FakeClock,
    FaultyUpstream,
    Outage,
    SimulatedOllama,
    SimulatedOpenAI,
    json_answer,
)
from sentinel_proxy.watch import Refused, Watcher, default_url, feed_url, told

pytestmark = pytest.mark.anyio


class Watching:
    """A watcher in a task, and the lines that it has printed."""

    def __init__(self, url: str, token: str | None = None, clock: Any = None) -> None:
        self.lines: list[str] = []
        self.clock = clock or FakeClock()
        watcher = Watcher(url, token, self.lines.append, lambda text, style: text, self.clock, max)
        self.task = asyncio.create_task(watcher.run())

    async def until(self, words: str) -> None:
        """Wait for a line with these words."""
        await eventually(lambda: any(words in line for line in self.lines))


@asynccontextmanager
async def watching(url: str, token: str | None = None, clock: Any = None) -> AsyncIterator[Watching]:
    watched = Watching(url, token, clock)
    yield watched
    watched.task.cancel()
    await asyncio.wait([watched.task])


def said(line: str) -> str:
    """Return a line without its time, its spaces as one."""
    return " ".join(line.split()[1:])


# What it prints.


async def test_an_outage_reads_like_a_story(proxy: Harness, openai: SimulatedOpenAI) -> None:
    async with watching(proxy.url) as watched:
        await watched.until("watching")
        await openai.outage(Outage.REFUSE)
        for _ in range(3):
            await proxy.chat()
        await proxy.proxy.health.round()
        await watched.until("3 failed over")

    assert watched.lines[0] == f"watching {proxy.url}"
    assert [said(line) for line in watched.lines if " incident " in line][:2] == [
        "incident opened (warning): calls go to ollama instead of openai, 1 so far: connect",
        "incident opened (critical): openai is out: connect",
    ]
    assert any(said(line).startswith("openai down, breaker open until ") for line in watched.lines)
    assert any("3 calls, 0 failed, 3 failed over" in line for line in watched.lines)


FRAME = {"id": "X", "timestamp": "2026-03-01T10:00:00.000Z"}


@pytest.mark.parametrize(
    ("event_type", "payload", "what", "text", "style"),
    [
        (
            "provider_status",
            {
                "provider": "openai",
                "status": "degraded",
                "circuit_breaker": {"state": "half_open", "until": None, "reason": "the rest is over"},
            },
            "openai",
            "degraded, breaker half-open: the rest is over",
            "warn",
        ),
        (
            "incident",
            {"change": "resolved", "severity": "critical", "message": "openai was out for 9.0 s: connect"},
            "incident",
            "resolved (critical): openai was out for 9.0 s: connect",
            "good",
        ),
        (
            "metrics",
            {
                "total_requests": 0,
                "total_failures": 0,
                "total_failovers": 0,
                "avg_latency_ms": None,
                "active_provider": None,
            },
            "metrics",
            "0 calls, 0 failed, 0 failed over, calls go to nobody",
            "dim",
        ),
        (
            "system",
            {
                "level": "warning",
                "message": "breaker reset",
                "details": {"provider": "openai", "author": "ada"},
            },
            "warning",
            "breaker reset: provider openai, author ada",
            "warn",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) and "_" in part else "",
)
def test_every_type_of_event_has_its_words(
    event_type: str, payload: dict[str, Any], what: str, text: str, style: str
) -> None:
    news = told(FRAME | {"event_type": event_type, "payload": payload})

    assert news is not None
    assert (news.what, news.text, news.style) == (what, text, style)


def test_heartbeats_and_what_nobody_knows_yet_are_kept_quiet() -> None:
    assert told(FRAME | {"event_type": "heartbeat", "payload": {}}) is None
    assert told(FRAME | {"event_type": "of_next_year", "payload": {}}) is None


async def test_what_others_have_written_does_not_steer_the_terminal(proxy: Harness) -> None:
    async with watching(proxy.url) as watched:
        await watched.until("watching")
        proxy.proxy.bus.emit(Noticed("info", "\x1b[2J\nforged line\x9b", {}))
        await watched.until("forged")

    assert all(line.isprintable() for line in watched.lines)


# It comes back.


async def test_it_comes_back_and_asks_for_what_it_missed(
    openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    config = simulated_chain(openai, ollama)
    async with running(Proxy(config)) as url:
        port = int(url.rpartition(":")[2])
        watched = Watching(url, clock=SystemClock())
        await watched.until("watching")
    await watched.until("disconnected: the proxy is going down; come back with since; trying to come back")
    second = Proxy(config)

    async with running(second, port=port):
        await watched.until("connected again")
        second.bus.emit(Noticed("info", "here I am", {}))
        await watched.until("here I am")
        watched.task.cancel()
        await asyncio.wait([watched.task])

    assert any("some events since then are forgotten" in line for line in watched.lines)
    assert any(said(line).startswith("info ready: version") for line in watched.lines)


async def test_its_pauses_grow_and_have_an_end(proxy: Harness) -> None:
    """With `max` for chance, each is as long as it may be."""
    async with watching(proxy.url) as watched:
        await watched.until("watching")
        await proxy.proxy.broadcast.end(1)
        await eventually(lambda: len(watched.clock.sleeps) >= 9)

    assert watched.clock.sleeps[:9] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert sum("disconnected" in line for line in watched.lines) == 1


# It does not.


async def fate(url: str, token: str | None = None) -> str:
    """Return why it gave up at once."""
    with pytest.raises(Refused) as caught:
        async with asyncio.timeout(5):
            await Watching(url, token).task
    return str(caught.value)


async def test_a_wrong_token_is_not_tried_again(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, admin=with_token()))

    assert "it answers 401: the admin token is missing" in await fate(proxy.url)
    assert "it answers 401: the admin token is not the one" in await fate(proxy.url, "wrong")
    async with watching(proxy.url, TOKEN) as watched:
        await watched.until("watching")


async def test_what_is_no_proxy_is_not_watched(primary: FaultyUpstream) -> None:
    primary.always(json_answer(404, {"hello": "world"}))

    assert await fate(primary.url) == (
        f"cannot watch {primary.url}: it answers 404: what answers there is no Sentinel Proxy, or an old one"
    )


async def test_where_nobody_is_it_says_so(primary: FaultyUpstream) -> None:
    await primary.stop_listening()

    assert (await fate(primary.url)).startswith(f"cannot watch {primary.url}: ")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/ws/system-events"),
        ("https://proxy.example/", "wss://proxy.example/ws/system-events"),
        ("localhost:8000", "ws://localhost:8000/ws/system-events"),
        ("wss://proxy.example/below", "wss://proxy.example/below/ws/system-events"),
    ],
)
def test_a_proxy_is_named_as_people_do(url: str, expected: str) -> None:
    assert feed_url(url) == expected


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "http://x:port", "http://[::1", "http://me:secret@x"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="it looks like"):
        feed_url(url)


def test_without_a_url_it_watches_what_this_environment_starts() -> None:
    assert default_url({}) == "http://127.0.0.1:8000"
    assert default_url({"SENTINEL_PORT": "9000"}) == "http://127.0.0.1:9000"


# As a process.


async def command(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sentinel_proxy", "watch", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]} | environment,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Return the exit status and what was said on standard error."""
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    process._transport.close()  # type: ignore[attr-defined]  # or its pipe outlives the loop
    return process.returncode, errors.decode()


async def test_an_interrupt_ends_it_quietly(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, admin=with_token()))
    process = await command("--url", proxy.url, SENTINEL_ADMIN_TOKEN=TOKEN)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        first = await process.stdout.readline()
        proxy.proxy.bus.emit(Noticed("info", "hello", {}))
        second = await process.stdout.readline()

    process.send_signal(signal.SIGINT)

    assert await ended(process) == (0, "")
    assert first.decode().strip() == f"watching {proxy.url}"
    assert said(second.decode()) == "info hello"


async def test_a_refusal_is_one_line_and_two(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, admin=with_token()))

    status, errors = await ended(await command("--url", proxy.url, "--token", "wrong"))

    assert (status, len(errors.splitlines())) == (2, 1)
    assert errors.startswith(f"sentinel-proxy: cannot watch {proxy.url}: it answers 401")


async def test_a_reader_that_leaves_ends_it_quietly(proxy: Harness) -> None:
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sentinel_proxy", "watch", "--url", proxy.url),
        stdout=write,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    os.close(write)
    await eventually(lambda: proxy.proxy.feed.subscribers == 1, seconds=20)
    os.close(read)

    proxy.proxy.bus.emit(Noticed("info", "is anybody there?", {}))

    assert await ended(process) == (0, "")
