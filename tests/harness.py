"""A real proxy between real sockets: what many tests are built on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    HealthConfig,
    ProviderConfig,
    RateLimitConfig,
    RetryConfig,
    TimeoutsConfig,
)
from sentinel_proxy.events import Bus, CallFinished, Event
from sentinel_proxy.server import running
from sentinel_proxy.testing import FaultyUpstream, Hang, Reset, Script, openai_chunks, sse_stream

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}


def unfinished(words: Sequence[str], end: Hang | Reset) -> Script:
    """Return a stream that says *words*, neither why it stops nor that it does, and then that *end*."""
    return [*sse_stream(openai_chunks(words, finish_reason=None, done=False))[:-1], end]


def chain(primary: FaultyUpstream, backup: FaultyUpstream | None = None, **sections: Any) -> Config:
    """Return a configuration of one or two providers, quick to fail, without a rate limit."""
    providers: list[dict[str, Any]] = [
        {"name": "openai", "kind": "openai", "base_url": f"{primary.url}/v1", "api_key": "sk-of-the-proxy"}
    ]
    if backup is not None:
        providers.append(
            {"name": "ollama", "kind": "ollama", "base_url": backup.url, "models": {"*": "llama3.2"}}
        )
    quick: dict[str, Any] = {
        "retry": RetryConfig(backoff=0.01, max_backoff=0.02),
        "timeouts": TimeoutsConfig(
            connect=0.5, first_token=0.5, first_token_reasoning=1, idle=0.5, progress=1, answer=1, total=10
        ),
        "rate_limit": RateLimitConfig(requests=0),
        "breaker": BreakerConfig(),
        "health": HealthConfig(interval=3600),  # probes only where a test is about them
    }
    return Config(
        providers=tuple(ProviderConfig.model_validate(provider) for provider in providers),
        **(quick | sections),
    )


class Harness:
    """A real proxy on a real socket, what it reported, and an HTTP client to call it with."""

    def __init__(self, proxy: Proxy, url: str, client: httpx.AsyncClient, events: list[Event]) -> None:
        self.proxy = proxy
        self.url = url
        self.client = client
        self.events = events

    async def chat(self, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """Send one chat completion and return the whole answer."""
        return await self.client.post("/v1/chat/completions", json=CHAT | fields, headers=headers)

    def finished(self) -> list[CallFinished]:
        """Return how the calls so far ended."""
        return [event for event in self.events if isinstance(event, CallFinished)]

    def idle(self) -> bool:
        """Whether nothing is held any more: no call, no place at an upstream, no connection in use."""
        return self.proxy.load.in_flight == 0 and all(
            upstream.in_flight == 0 and getattr(upstream.transport, "active", 0) == 0
            for upstream in self.proxy.upstreams
        )


@asynccontextmanager
async def started(config: Config, **parts: Any) -> AsyncIterator[Harness]:
    """Run a proxy with *config*; *parts* go to `Proxy`. Leaving stops it."""
    bus, events = Bus(), list[Event]()
    bus.subscribe_all(events.append)
    proxy = Proxy(config, bus=bus, **parts)
    async with (
        running(proxy) as url,
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client,
    ):
        yield Harness(proxy, url, client, events)


class Start(Protocol):
    """What the fixture `start` is."""

    async def __call__(self, config: Config, **parts: Any) -> Harness:
        """Start a proxy with *config*; it is stopped after the test. *parts* go to `Proxy`."""
        ...


async def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until *condition* holds; fail if it does not within *seconds*."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not condition():
        assert loop.time() < until, "it never came true"
        await asyncio.sleep(0.005)
