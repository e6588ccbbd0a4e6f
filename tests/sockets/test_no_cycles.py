"""
What is left of a call when it is over: nothing, without any help of the garbage collector.

In production the collector looks rarely (`server._calm_the_collector`), so a cycle is as good as a leak.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness import CHAT, Harness, Start, chain, eventually, unfinished
from raw_caller import ask, request

from sentinel_proxy.api.line import Line
from sentinel_proxy.api.relay import Caller
from sentinel_proxy.config import BreakerConfig, TimeoutsConfig
from sentinel_proxy.errors import BreakerOpen, NoReply, UpstreamError
from sentinel_proxy.hedging import Hedge
from sentinel_proxy.inbound import Inbound
from sentinel_proxy.inbound.turn import Turn
from sentinel_proxy.model import Call
from sentinel_proxy.reply import Reply
from sentinel_proxy.testing import (
    Act,
    FaultyUpstream,
    Hang,
    Reset,
    answer,
    ollama_completion,
    ollama_error,
    ollama_stream,
    openai_completion,
    openai_error,
    openai_stream,
)
from sentinel_proxy.upstream.connection import Connection
from sentinel_proxy.upstream.http1 import Http1Exchange

pytestmark = pytest.mark.anyio

OF_A_CALL = {
    *(Inbound, Turn, Line, Caller, Call, Reply, Hedge, Http1Exchange, Connection),
    *(UpstreamError, BreakerOpen, NoReply),
}
CALLS = 10
PARKED = Counter({"Connection": 4})
"""At most: one each of the last call and of a probe, to both upstreams."""

PATIENT = TimeoutsConfig(connect=5, first_token=5, idle=5, progress=5, answer=5, total=60)
WORDS = ["The quick", " brown fox"]
BROKEN = unfinished(WORDS, Reset())
SILENT = unfinished(WORDS, Hang())


def alive() -> Counter[str]:
    """Count what belongs to calls and is still there."""
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in OF_A_CALL)


@contextmanager
def without_a_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def nothing_is_left(harness: Harness, before: Counter[str]) -> None:
    """Wait until what there is of calls is what there was *before*."""
    left: Counter[str] = Counter()

    def gone() -> bool:
        nonlocal left
        harness.events.clear()  # they know their calls
        left = alive() - before
        return not left

    try:
        await eventually(gone, seconds=3)
    except AssertionError:
        pytest.fail(f"still there: {dict(left)}")


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        (openai_completion("Hi"), ollama_completion(), {}),
        (openai_stream(WORDS), ollama_stream(WORDS), {"stream": True}),
        (openai_error(503), ollama_completion(), {}),
        (openai_error(429), ollama_completion(), {}),
        (openai_error(400), ollama_completion(), {}),
        ([Reset()], ollama_completion(), {}),
        (answer(200, b"{ this is no JSON"), ollama_completion(), {}),
        (openai_error(503), ollama_error(500), {}),
        (BROKEN, ollama_stream(WORDS), {"stream": True}),
        (BROKEN, ollama_error(500), {"stream": True}),
    ],
    ids=[
        "answered",
        "streamed",
        "failed over",
        "busy",
        "the caller's mistake",
        "reset",
        "garbage",
        "nobody answers",
        "broken and carried on",
        "broken for good",
    ],
)
async def test_nothing_is_left_of_a_call(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, first: Act, second: Act, fields: Any
) -> None:
    primary.always(first)
    backup.always(second)
    harness = await start(chain(primary, backup, breaker=BreakerConfig(failure_threshold=100)))

    with without_a_collector():
        before = alive()
        for _ in range(CALLS):
            await ask(harness.url, CHAT | fields)

        await nothing_is_left(harness, before + PARKED)


async def test_nothing_is_left_of_a_caller_that_hung_up(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(SILENT)
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    with without_a_collector():
        before = alive()
        for _ in range(CALLS):
            port = int(harness.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(CHAT | {"stream": True}))
            await reader.readuntil(b"brown fox")
            writer.close()

        await nothing_is_left(harness, before)
