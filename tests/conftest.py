"""What every test may use."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import hypothesis
import pytest
from harness import Harness, Start

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import Config
from sentinel_proxy.events import Bus, Event
from sentinel_proxy.server import running
from sentinel_proxy.testing import FaultyUpstream


# Machines are shared and slow at times: how long an example takes says nothing about the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def anyio_backend() -> str:
    """Everything runs on asyncio, as the product does."""
    return "asyncio"


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


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a proxy with a configuration; it is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(config: Config) -> Harness:
            bus, events = Bus(), list[Event]()
            bus.subscribe_all(events.append)
            proxy = Proxy(config, bus=bus)
            url = await stack.enter_async_context(running(proxy))
            client = httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)
            await stack.enter_async_context(client)
            return Harness(proxy, url, client, events)

        yield start
