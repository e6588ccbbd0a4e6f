"""A proxy as a process: how it starts, and how it goes without taking anybody's answer with it."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import CHAT, Harness, Start, chain
from pydantic import SecretStr

from sentinel_proxy.model import IncidentType
from sentinel_proxy.testing import (
    FaultyUpstream,
    Hang,
    Pause,
    ollama_completion,
    openai_chunks,
    openai_completion,
    openai_error,
    openai_stream,
    sse_stream,
)

pytestmark = pytest.mark.anyio


class Process:
    """`sentinel-proxy serve` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, config: Path) -> None:
        self._process = process
        self.config = config
        self.url = url
        self.client = httpx.AsyncClient(base_url=url, timeout=10, trust_env=False)

    def send(self, signal: signal.Signals) -> None:
        self._process.send_signal(signal)

    async def line(self) -> dict[str, Any]:
        """Return the next line of the log."""
        assert self._process.stdout is not None
        line: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return line

    async def ended(self) -> int:
        return await asyncio.wait_for(self._process.wait(), 10)

    async def stream(self) -> list[str]:
        """Call for a stream and return its data lines."""
        async with self.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
            return [line async for line in reply.aiter_lines() if line.startswith("data:")]


Run = Callable[..., Awaitable[Process]]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Run the proxy on a free port in front of *upstream*; it is killed after the test if need be."""
    started: list[tuple[asyncio.subprocess.Process, httpx.AsyncClient]] = []

    async def run(upstream: FaultyUpstream, drain_seconds: float = 5) -> Process:
        config = tmp_path / "config.toml"
        config.write_text(
            f"""
            [server]
            port = 0
            drain_seconds = {drain_seconds}
            [[providers]]
            name = "openai"
            kind = "openai"
            base_url = "{upstream.url}/v1"
            api_key = "sk-of-the-proxy"
            """
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sentinel_proxy", "serve", "--config", str(config)),
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"]},
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while (line := json.loads(await process.stdout.readline()))["event"] != "listening":
                pass
        running = Process(process, line["address"], config)
        started.append((process, running.client))
        return running

    yield run
    for process, client in started:
        await client.aclose()
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # or its pipe outlives the loop


async def first_request(upstream: FaultyUpstream) -> None:
    async with asyncio.timeout(10):
        while not upstream.requests:  # noqa: ASYNC110 - what the upstream has seen is no event
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
async def test_an_idle_proxy_ends_at_once_and_well(
    run: Run, primary: FaultyUpstream, sent: signal.Signals
) -> None:
    """K01."""
    proxy = await run(primary)
    before = time.monotonic()

    proxy.send(sent)

    assert await proxy.ended() == 0
    assert time.monotonic() - before < 2


async def test_a_stream_that_is_going_on_may_finish(run: Run, primary: FaultyUpstream) -> None:
    """K02."""
    primary.always(openai_stream(["a", "b", "c", "d"], pause=0.1))
    proxy = await run(primary)
    stream = asyncio.create_task(proxy.stream())
    await first_request(primary)

    proxy.send(signal.SIGTERM)

    assert (await stream)[-1] == "data: [DONE]"
    assert await proxy.ended() == 0


async def test_a_stream_without_end_is_told_in_band_that_it_is_over(
    run: Run, primary: FaultyUpstream
) -> None:
    """K03."""
    events = openai_chunks(["a", "b"], finish_reason=None, done=False)
    primary.always([*sse_stream(events)[:-1], Hang()])
    proxy = await run(primary, drain_seconds=0.3)
    stream = asyncio.create_task(proxy.stream())
    await first_request(primary)

    proxy.send(signal.SIGTERM)

    last = json.loads((await stream)[-1].removeprefix("data:"))
    assert last["error"]["code"] == "stream_interrupted"
    assert await proxy.ended() == 0


async def test_a_call_that_waits_for_its_answer_is_told_to_go_elsewhere(
    run: Run, primary: FaultyUpstream
) -> None:
    """K03, for a call that is not a stream."""
    primary.always([Hang()])
    proxy = await run(primary, drain_seconds=0.3)
    call = asyncio.create_task(proxy.client.post("/v1/chat/completions", json=CHAT))
    await first_request(primary)

    proxy.send(signal.SIGTERM)

    reply = await call
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "proxy_draining")
    assert reply.headers["x-should-retry"] == "true"
    assert await proxy.ended() == 0


async def test_whoever_comes_while_it_drains_learns_so(run: Run, primary: FaultyUpstream) -> None:
    """K04."""
    primary.always(openai_stream(["a", "b", "c", "d"], pause=0.15))
    proxy = await run(primary)
    stream = asyncio.create_task(proxy.stream())
    await first_request(primary)
    assert (await proxy.client.get("/readyz")).status_code == 200

    proxy.send(signal.SIGTERM)
    async with asyncio.timeout(5):
        while (await proxy.client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - as an orchestrator does
            await asyncio.sleep(0.01)
    refused = await proxy.client.post("/v1/chat/completions", json=CHAT)

    assert refused.status_code == 503
    assert refused.headers["connection"] == "close"
    assert refused.headers["retry-after"] == "1"
    assert (await proxy.client.get("/livez")).status_code == 200
    assert (await stream)[-1] == "data: [DONE]"
    assert await proxy.ended() == 0


async def test_a_second_interrupt_ends_it_at_once(run: Run, primary: FaultyUpstream) -> None:
    primary.always([Pause(0), Hang()])
    proxy = await run(primary, drain_seconds=60)
    call = asyncio.create_task(proxy.client.post("/v1/chat/completions", json=CHAT))
    await first_request(primary)

    proxy.send(signal.SIGINT)
    await asyncio.sleep(0.3)
    proxy.send(signal.SIGINT)

    assert await proxy.ended() == 0
    await asyncio.gather(call, return_exceptions=True)


# -- SIGHUP ------------------------------------------------------------------------------------


async def said_by(proxy: Process, event: str) -> dict[str, Any]:
    """Read the log until it says *event*."""
    async with asyncio.timeout(10):
        while (line := await proxy.line())["event"] != event:
            pass
    return line


async def test_a_new_configuration_is_taken_up_without_dropping_anything(
    run: Run, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(openai_stream(["a", "b", "c", "d"], pause=0.15))
    backup.always(openai_completion("from the new one"))
    proxy = await run(primary)
    stream = asyncio.create_task(proxy.stream())
    await first_request(primary)

    proxy.config.write_text(proxy.config.read_text().replace(primary.url, backup.url))
    proxy.send(signal.SIGHUP)
    told = await said_by(proxy, "configuration reloaded")
    reply = await proxy.client.post("/v1/chat/completions", json=CHAT)

    assert told["chain"] == "openai"
    assert reply.json()["choices"][0]["message"]["content"] == "from the new one"
    assert (await stream)[-1] == "data: [DONE]"
    assert len(primary.requests) == 1


async def test_a_broken_configuration_is_reported_and_the_old_one_stays(
    run: Run, primary: FaultyUpstream
) -> None:
    primary.always(openai_completion("still here"))
    proxy = await run(primary)

    proxy.config.write_text(proxy.config.read_text().replace("drain_seconds", "drian_seconds"))
    proxy.send(signal.SIGHUP)
    told = await said_by(proxy, "the configuration was not reloaded, the old one stays")
    reply = await proxy.client.post("/v1/chat/completions", json=CHAT)

    assert "drain_seconds" in told["problem"]
    assert reply.json()["choices"][0]["message"]["content"] == "still here"


class TestANewKey:
    """What was held against a provider under its old settings is not held against it under new ones."""

    async def refused(self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream) -> Harness:
        """Return a proxy whose key has been refused."""
        primary.always(
            lambda request: (
                openai_completion("Hi")
                if request.header("authorization") == "Bearer sk-new"
                else openai_error(401)
            )
        )
        backup.always(ollama_completion("from the backup"))
        harness = await start(chain(primary, backup))
        assert (await harness.chat()).headers["x-sentinel-trail"] == "openai:401,ollama:200"
        assert (await harness.chat()).headers["x-sentinel-trail"] == "openai:open,ollama:200"
        return harness

    def renew(self, harness: Harness) -> None:
        config = harness.proxy.config
        first, second = config.providers
        renewed = first.model_copy(update={"api_key": SecretStr("sk-new")})
        harness.proxy.reload(config.model_copy(update={"providers": (renewed, second)}))

    async def test_it_is_used_at_once_and_the_outage_is_over(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        harness = await self.refused(start, primary, backup)

        self.renew(harness)

        assert (await harness.chat()).headers["x-sentinel-trail"] == "openai:200"
        (outage,) = harness.proxy.incidents.find(type=IncidentType.OUTAGE_DETECTED)[0]
        assert outage.details["ended_by"] == "configured anew"
        assert not harness.proxy.incidents.ongoing()

    async def test_an_operators_isolation_stands(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        harness = await self.refused(start, primary, backup)
        harness.proxy.operations.isolate("openai", 600, "maintenance", "a test")

        self.renew(harness)

        assert (await harness.chat()).headers["x-sentinel-trail"] == "openai:open,ollama:200"
        assert harness.proxy.upstreams[0].breakers.own.state == "isolated"
