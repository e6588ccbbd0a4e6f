"""Streams that break after their first token: carried on elsewhere, or ended honestly."""

import json
from typing import Any

import pytest
from harness import CHAT, Harness, Start, chain

from sentinel_proxy.config import RescueConfig, TimeoutsConfig
from sentinel_proxy.events import StreamRescued
from sentinel_proxy.testing import (
    DEFAULT_USAGE,
    Close,
    FaultyUpstream,
    Hang,
    Pause,
    Reset,
    ToolCall,
    ollama_error,
    ollama_stream,
    openai_chunks,
    sse_stream,
)

pytestmark = pytest.mark.anyio

PATIENT = TimeoutsConfig(connect=0.5, first_token=0.5, idle=0.3, progress=1, answer=5, total=60)
TOKENS = ["The quick", " brown fox", " jumps over", " the lazy dog"]


def broken_after(tokens: list[str], by: Any = None) -> Any:
    """Return a stream that says *tokens* and then breaks off."""
    events = openai_chunks(tokens, finish_reason=None, done=False)
    return [*sse_stream(events)[:-1], by if by is not None else Reset()]


async def stream(harness: Harness, **fields: Any) -> list[Any]:
    """Call for a stream and return the payloads of its events, `[DONE]` as text."""
    headers = fields.pop("headers", None)
    request = harness.client.build_request(
        "POST", "/v1/chat/completions", json=CHAT | {"stream": True} | fields, headers=headers
    )
    reply = await harness.client.send(request)
    events = [line[6:] for line in reply.text.split("\n\n") if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def text_of(events: list[Any]) -> str:
    chunks = [event for event in events if event != "[DONE]" and event.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.mark.parametrize("by", [Reset(), Close(), Hang()], ids=["reset", "clean end", "stall"])
async def test_a_broken_stream_goes_on_at_the_next_provider(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, by: Any
) -> None:
    """D06, D13."""
    primary.always(broken_after(TOKENS[:2], by))
    backup.always(ollama_stream(TOKENS[2:]))
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    events = await stream(harness)

    chunks = [event for event in events if event != "[DONE]"]
    assert text_of(events) == "".join(TOKENS)
    assert events.count("[DONE]") == 1
    assert events[-1] == "[DONE]"
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]] == ["stop"]
    assert [c for c in chunks if "role" in c["choices"][0]["delta"]] == chunks[:1]
    assert [chunk["model"] for chunk in chunks][-1] == "llama3.2"
    asked = backup.requests[-1].json()["messages"]
    assert asked[-1] == {"role": "assistant", "content": "The quick brown fox"}
    assert [event.outcome for event in harness.finished()] == ["rescued"]
    assert harness.idle()


@pytest.mark.parametrize(
    "said",
    [
        ["brown fox", " jumps over", " the lazy dog"],
        ["The", " quick brown", " fox jumps over", " the lazy dog"],
    ],
    ids=["the last words", "everything"],
)
async def test_what_the_next_provider_repeats_is_cut_away(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, said: list[str]
) -> None:
    """D07, D08."""
    primary.always(broken_after(TOKENS[:2]))
    backup.always(ollama_stream(said))
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    assert text_of(await stream(harness)) == "".join(TOKENS)


async def test_a_provider_that_rejects_prefill_is_asked_in_words_and_remembered(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """D09 and what is learned from it."""
    primary.always(broken_after(TOKENS[:2]))
    backup.plays(ollama_error(400, "the last message must not be from the assistant"))
    backup.always(ollama_stream(TOKENS[2:]))
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    first, second = await stream(harness), await stream(harness)

    assert text_of(first) == text_of(second) == "".join(TOKENS)
    roles = [[message["role"] for message in request.json()["messages"]] for request in backup.requests]
    assert roles == [["user", "assistant"], ["user", "assistant", "user"], ["user", "assistant", "user"]]


CALLING = openai_chunks([], tool_calls=[ToolCall("f", {"a": 1}, id="call_1")])[:-2]
SAID = broken_after(TOKENS[:2])


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        pytest.param({}, [*sse_stream(CALLING)[:-1], Reset()], id="D10 a tool call in progress"),
        pytest.param({"response_format": {"type": "json_object"}}, SAID, id="D11 a promised format"),
        pytest.param({"logprobs": True}, SAID, id="log probabilities"),
        pytest.param({"headers": {"x-sentinel-rescue": "error"}}, SAID, id="the caller's wish"),
        pytest.param({"headers": {"x-sentinel-no-failover": "true"}}, SAID, id="no failover"),
    ],
)
async def test_what_must_not_be_continued_ends_in_an_honest_error(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, fields: dict[str, Any], broken: Any
) -> None:
    primary.always(broken)
    backup.always(ollama_stream(TOKENS[2:]))
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    events = await stream(harness, **fields)

    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert "[DONE]" not in events
    assert backup.requests == []
    assert [event.outcome for event in harness.finished()] == ["truncated"]


async def test_the_rescue_can_be_switched_off(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """D01."""
    primary.always(broken_after(TOKENS[:2]))
    harness = await start(chain(primary, backup, timeouts=PATIENT, rescue=RescueConfig(mode="error")))

    events = await stream(harness)

    assert text_of(events) == "The quick brown fox"
    assert events[-1]["error"]["code"] == "stream_interrupted"


async def test_a_rescue_that_fails_tells_the_first_cause(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """D12: the backup breaks before it says anything; there is no third."""
    primary.always(broken_after(TOKENS[:2]))
    backup.always(ollama_error(500))
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    events = await stream(harness)

    assert text_of(events) == "The quick brown fox"
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert "openai" in events[-1]["error"]["message"]
    assert [e.result for e in harness.events if isinstance(e, StreamRescued)] == ["failed"]


async def test_a_rescued_stream_that_breaks_again_is_over(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """D12: one rescue a call."""
    primary.always(broken_after(TOKENS[:2]))
    backup.always([*ollama_stream([TOKENS[2], "x" * 100])[:-2], Reset()])
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    events = await stream(harness)

    assert text_of(events).startswith("The quick brown fox jumps over")
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert harness.idle()


async def test_waiting_for_the_rest_of_a_rescued_stream_is_not_our_overhead(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(broken_after(TOKENS[:2]))
    head, first, *rest = ollama_stream([TOKENS[2], "x" * 300, TOKENS[3]])
    backup.always([head, first, *rest[:1], Pause(0.25), *rest[1:]])
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    await stream(harness)

    [finished] = harness.finished()
    assert finished.outcome == "rescued"
    assert finished.overhead_seconds < finished.seconds / 2


async def test_usage_adds_up_over_the_seam(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """D14. The primary never told its usage: what it said is estimated by its events."""
    primary.always(broken_after(TOKENS[:2]))
    backup.always(ollama_stream(TOKENS[2:]))
    harness = await start(chain(primary, backup, timeouts=PATIENT))

    events = await stream(harness, stream_options={"include_usage": True})

    usages = [event["usage"] for event in events if event != "[DONE]" and event.get("usage")]
    said_before = 2
    assert usages == [
        {
            "prompt_tokens": DEFAULT_USAGE.prompt_tokens - said_before,
            "completion_tokens": DEFAULT_USAGE.completion_tokens + said_before,
            "total_tokens": DEFAULT_USAGE.total_tokens,
        }
    ]
