"""A real proxy between real sockets: what these tests share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    ProviderConfig,
    RateLimitConfig,
    RetryConfig,
    TimeoutsConfig,
)
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFailedOver,
    CallFinished,
    CallRetried,
    Event,
    Noticed,
)
from sentinel_proxy.server import running
from sentinel_proxy.testing import FaultyUpstream

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def primary() -> AsyncIterator[FaultyUpstream]:
    """The first of the chain: speaks OpenAI's dialect, and fails on cue."""
    async with FaultyUpstream() as upstream:
        yield upstream


@pytest.fixture
async def backup() -> AsyncIterator[FaultyUpstream]:
    """The second of the chain: speaks Ollama's dialect."""
    async with FaultyUpstream() as upstream:
        yield upstream


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
    }
    return Config(
        providers=tuple(ProviderConfig.model_validate(provider) for provider in providers), **(quick | sections)
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


Start = Callable[[Config], Awaitable[Harness]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a proxy with a configuration; it is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(config: Config) -> Harness:
            bus, events = Bus(), list[Event]()
            for kind in (AttemptFailed, BreakerChanged, CallFailedOver, CallFinished, CallRetried, Noticed):
                bus.subscribe(kind, events.append)
            proxy = Proxy(config, bus=bus)
            url = await stack.enter_async_context(running(proxy))
            client = httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)
            await stack.enter_async_context(client)
            return Harness(proxy, url, client, events)

        yield start
