"""What every test may use."""

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import hypothesis
import pytest
from admin_support import simulated_chain
from harness import Harness, Start, started
from redis_support import RedisServer

from sentinel_proxy.config import Config
from sentinel_proxy.testing import FaultyUpstream, SimulatedOllama, SimulatedOpenAI

# Machines are shared and slow at times: how long an example takes says nothing about the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """Take what is loaded out of the collector's sight, as the server does: looking stops event loops."""
    gc.collect()
    gc.freeze()


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

        async def start(config: Config, **parts: Any) -> Harness:
            return await stack.enter_async_context(started(config, **parts))

        yield start


@pytest.fixture
async def openai() -> AsyncIterator[SimulatedOpenAI]:
    """A provider that answers as OpenAI does."""
    async with SimulatedOpenAI() as provider:
        yield provider


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    """A provider that answers as Ollama does."""
    async with SimulatedOllama() as provider:
        yield provider


@pytest.fixture
async def proxy(start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Harness:
    """A proxy between the two, quick to open its breakers and to try again."""
    return await start(simulated_chain(openai, ollama))


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    """A Redis of the test's own, empty."""
    async with RedisServer() as server:
        yield server
