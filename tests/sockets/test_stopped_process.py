"""A process that was stopped for a while, as with its container or its machine, blames nobody for it."""

import asyncio
import signal

import pytest
from harness import eventually
from replicas_support import RunReplicas, run_replicas, two_providers

from sentinel_proxy.testing import (
    FaultyUpstream,
    Pause,
    Script,
    ollama_completion,
    openai_chunks,
    openai_completion,
    sse_stream,
)

__all__ = ["run_replicas"]

pytestmark = pytest.mark.anyio

LIMIT_SECONDS = 0.5
STOP_SECONDS = 1.5


@pytest.mark.parametrize(
    ("answer", "stream"),
    [
        pytest.param(openai_completion("in time"), False, id="whole"),
        pytest.param(sse_stream(openai_chunks("in time")), True, id="stream"),
    ],
)
async def test_an_answer_that_came_while_the_process_was_stopped_is_given_and_no_breaker_counts_it(
    primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas, answer: Script, stream: bool
) -> None:
    """A18."""
    primary.always((Pause(0.2), *answer))
    backup.always(ollama_completion("from the backup"))
    [proxy] = await run_replicas(two_providers(primary, backup, first_token=LIMIT_SECONDS))

    calls = [asyncio.create_task(proxy.chat(stream=stream)) for _ in range(4)]
    await eventually(lambda: sum(each.method == "POST" for each in primary.requests) == len(calls))
    proxy.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOP_SECONDS)  # the answers come, and every limit passes
    proxy.process.send_signal(signal.SIGCONT)
    replies = await asyncio.gather(*calls)

    assert [reply.headers["x-sentinel-trail"] for reply in replies] == ["openai:200"] * len(calls)
    assert (await proxy.breaker())["failures"] == 0
