"""Proxies in processes of their own that share a Redis, as they do in production."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import CHAT

from sentinel_proxy.testing import FaultyUpstream

STARTS_WITHIN_SECONDS = 30.0
TOKEN = "token-of-the-operators"


@dataclass
class Settings:
    """What the replicas of one test have in common; every number quick, but for the rate limit: none."""

    providers: list[tuple[str, str, str]]  # name, kind, base URL
    state: str = "sqlite://"
    recovery_timeout: float = 30.0
    requests: int = 0
    window: float = 60.0
    probe_interval: float = 3600.0
    first_token: float = 5.0
    more: str = ""

    def toml(self) -> str:
        """Write them as a configuration file has them."""
        chain = "".join(
            f'[[providers]]\nname = "{name}"\nkind = "{kind}"\nbase_url = "{url}"\n'
            + ('api_key = "sk-of-the-proxy"\n' if kind == "openai" else 'models = {"*" = "llama3.2"}\n')
            for name, kind, url in self.providers
        )
        return (
            f"{chain}"
            f'[state]\nurl = "{self.state}"\n'
            f"[breaker]\nrecovery_timeout = {self.recovery_timeout}\n"
            f"[rate_limit]\nrequests = {self.requests}\nwindow = {self.window}\n"
            f"[health]\ninterval = {self.probe_interval}\ntimeout = 1\n"
            f"[timeouts]\nconnect = 1\nfirst_token = {self.first_token}\nanswer = {self.first_token}\n"
            f"header_hold = 0\n"
            "[retry]\nattempts = 1\n"
            f'[admin]\ntoken = "{TOKEN}"\n'
            f"{self.more}"
        )


def two_providers(primary: FaultyUpstream, backup: FaultyUpstream, **others: Any) -> Settings:
    """Return the settings of a chain of OpenAI and Ollama."""
    return Settings([("openai", "openai", f"{primary.url}/v1"), ("ollama", "ollama", backup.url)], **others)


@dataclass
class Replica:
    """A proxy in a process of its own, and a client that calls it."""

    process: asyncio.subprocess.Process
    url: str
    client: httpx.AsyncClient
    log: list[dict[str, Any]] = field(default_factory=list)

    async def chat(self, **fields: Any) -> httpx.Response:
        """Send one chat completion and return the whole answer."""
        return await self.client.post("/v1/chat/completions", json=CHAT | fields)

    async def get(self, path: str, **query: Any) -> Any:
        """Ask one of the operators' faces."""
        answer = await self.client.get(path, params=query, headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def order(self, provider: str, action: str, **more: Any) -> None:
        """Give an operator's order about a breaker."""
        answer = await self.client.post(
            f"/api/providers/{provider}/breaker",
            json={"action": action, "reason": "a test", **more},
            headers={"authorization": f"Bearer {TOKEN}"},
        )
        assert answer.status_code == 200, answer.text

    async def breaker(self, provider: str = "openai") -> dict[str, Any]:
        """Return the provider's breaker as operators see it."""
        status = await self.get("/api/providers/status")
        found: dict[str, Any] = status[provider]["circuit_breaker"]
        return found

    async def state(self, provider: str = "openai") -> str:
        """Return the state of the provider's breaker."""
        state: str = (await self.breaker(provider))["state"]
        return state

    def told(self) -> list[str]:
        """Return what its log says, without the calls."""
        return [line["event"] for line in self.log]

    async def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        await self.process.wait()

    async def end(self) -> int:
        """Ask it to end, and return its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STARTS_WITHIN_SECONDS):
                await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def replica(settings: Settings, folder: Path, *arguments: str) -> AsyncIterator[Replica]:
    """Run one; leaving ends it, whatever has become of it."""
    file = folder / f"{os.urandom(6).hex()}.toml"
    file.write_text(settings.toml())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sentinel_proxy", "serve", "--config", str(file), "--port", "0"),
        *arguments,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=None,
    )
    assert process.stdout is not None
    log: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(STARTS_WITHIN_SECONDS):
            while True:
                line = await process.stdout.readline()
                assert line, f"it ended before it listened: {log}"
                log.append(json.loads(line))
                if log[-1]["event"] == "listening":
                    break
        reading = asyncio.create_task(_read(process.stdout, log))
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=log[-1]["address"], timeout=30, trust_env=False, limits=limits
        ) as client:
            yield Replica(process, log[-1]["address"], client, log)
        await Replica(process, "", client, log).end()
        await reading
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read(stdout: asyncio.StreamReader, log: list[dict[str, Any]]) -> None:
    while line := await stdout.readline():
        log.append(json.loads(line))


RunReplicas = Callable[..., Awaitable[list[Replica]]]


@pytest.fixture
async def run_replicas(tmp_path: Path) -> AsyncIterator[RunReplicas]:
    """Run so many replicas with the same settings, all started at once; they end with the test."""
    async with AsyncExitStack() as stack:

        async def run(settings: Settings, count: int = 1, *arguments: str) -> list[Replica]:
            contexts = [replica(settings, tmp_path, *arguments) for _ in range(count)]
            entered = await asyncio.gather(*(context.__aenter__() for context in contexts))
            for context in contexts:
                stack.push_async_exit(context)
            return list(entered)

        yield run


async def until(condition: Callable[[], Awaitable[object]], seconds: float) -> float:
    """Wait until *condition* holds; return the seconds that took, fail if it does not within *seconds*."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not await condition():
        assert loop.time() - began < seconds, f"it did not come true within {seconds} s"
        await asyncio.sleep(0.01)
    return loop.time() - began
