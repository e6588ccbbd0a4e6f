"""The thinnest path end to end, and what follows from each failure before the answer begins."""

import pytest
from harness import Start, chain

from sentinel_proxy.testing import FaultyUpstream, ollama_completion, openai_completion, openai_error

pytestmark = pytest.mark.anyio


async def test_a_healthy_primary_answers(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(openai_completion("hello"))
    harness = await start(chain(primary, backup))

    reply = await harness.chat()

    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "hello"
    print(reply.headers)


async def test_b(start: Start, primary: FaultyUpstream, backup: FaultyUpstream) -> None:
    primary.always(openai_error(503, "down"))
    backup.always(ollama_completion("hello"))
    harness = await start(chain(primary, backup))

    reply = await harness.chat()

    print(reply.headers, reply.text)
    assert reply.status_code == 200
