"""Defects that the chaos runs have found, each as small as it gets."""

import pytest
from harness import Start, chain

from sentinel_proxy.testing import FaultyUpstream, ollama_error, openai_error

pytestmark = pytest.mark.anyio


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
