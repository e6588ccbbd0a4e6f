"""Defects that the chaos runs have found, each as small as it gets."""

import asyncio
import socket

import pytest
from harness import Start, chain
from starlette.types import Message

from sentinel_proxy.api.relay import Caller
from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import BreakerConfig
from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import UpstreamRequest
from sentinel_proxy.resilience.scopes import ProviderBreakers
from sentinel_proxy.testing import (
    HOST,
    FaultyUpstream,
    Pause,
    answer,
    ollama_completion,
    ollama_error,
    openai_completion,
    openai_error,
)
from sentinel_proxy.upstream.httpx import HttpxTransport
from sentinel_proxy.wheel import Wheel

pytestmark = pytest.mark.anyio


async def test_a_trial_of_a_model_that_outlives_a_move_of_the_provider_gives_its_place_back() -> None:
    breakers = ProviderBreakers(
        "openai", BreakerConfig(failure_threshold=1, recovery_timeout=10), lambda _: None
    )
    breakers.acquire("a", 0).fail(UpstreamError(FailureKind.OVERLOADED, "no capacity"), 0)
    trial = breakers.acquire("a", 10)
    breakers.acquire("b", 11).fail(UpstreamError(FailureKind.CONNECT, "refused"), 11)

    trial.succeed(12)

    assert trial.trial
    assert breakers.models_view()["a"].trials(12) == 0
    assert breakers.acquire("a", 21).trial


@pytest.mark.parametrize("status", [400, 401, 500], ids=str)
async def test_a_key_that_ollama_repeats_is_not_shown(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, status: int
) -> None:
    primary.always(openai_error(503))
    backup.always(ollama_error(status, "invalid key sk-0123456789abcdef"))
    harness = await start(chain(primary, backup))

    reply = await harness.chat()

    assert reply.status_code == {400: 400}.get(status, 502)
    assert "0123456789abcdef" not in reply.text
    assert "****" in reply.text


async def test_an_answer_too_many_never_becomes_the_next_calls_answer(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """
    An upstream that answers once more than it was asked is one behind: nobody must get the answer before his.
    """
    late = Pause(0.02)
    primary.plays([*answer(200, "nobody asked"), late, *openai_completion("first")])
    primary.plays(openai_completion("second"))
    backup.plays(ollama_completion("instead of the first"))
    harness = await start(chain(primary, backup))

    first = await harness.chat()
    second = await harness.chat()

    assert first.json()["choices"][0]["message"]["content"] == "instead of the first"
    assert second.json()["choices"][0]["message"]["content"] == "second"


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_lost_while_httpx_is_making_it_is_a_failure_of_the_upstream(turns: int) -> None:
    """
    However many turns of the event loop it lived: anyio's AttributeError is none of the caller's business.
    """
    listener = socket.create_server((HOST, 0))
    transport = HttpxTransport(f"http://{HOST}:{listener.getsockname()[1]}")
    until = asyncio.get_running_loop().time() + 1
    opening = asyncio.create_task(
        transport.open(UpstreamRequest("POST", "/v1/x", (), b"{}"), connect_seconds=1, until=until)
    )

    for _ in range(turns):
        await asyncio.sleep(0)
    listener.close()
    with pytest.raises(UpstreamError) as caught:
        await opening
    await transport.aclose()

    assert caught.value.kind in (FailureKind.CONNECT, FailureKind.RESET)
    assert transport.active == 0


async def test_only_one_comment_waits_for_a_caller_that_does_not_read() -> None:
    """
    Of two, one would be forgotten, and speak after the end of the answer.
    """
    reads = asyncio.Event()
    begun: list[str] = []

    async def send(message: Message) -> None:
        begun.append(message["type"])
        if len(begun) > 1:
            await reads.wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nobody hangs up here")

    caller = Caller(receive, send, Wheel(), SystemClock())
    await caller.start(200, [], streaming=True)
    caller.watch(heartbeat_seconds=0.01)

    await asyncio.sleep(0.25)
    caller.release()

    assert begun == ["http.response.start", "http.response.body"]
