"""
What a simulated server needs to know of an API: right answers, and refusals in its own words.

Faults are made out of these (`faults`), so whoever describes a dialect gets every fault in it.
OpenAI's and Ollama's are here; a plugin brings its own (docs/drill.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sentinel_proxy.model import Usage
from sentinel_proxy.testing import (
    Script,
    Send,
    ToolCall,
    ollama_completion,
    ollama_lines,
    ollama_tags,
    openai_chunks,
    openai_completion,
    openai_models,
    sse,
)
from sentinel_proxy.wire import json


class Refusal(StrEnum):
    """What an API can refuse a call for, in words that a provider has to recognise."""

    RATE_LIMIT = "rate limit"
    BROKEN = "500"
    BUSY = "503"
    UNAUTHORIZED = "refused key"
    QUOTA = "spent quota"
    UNKNOWN_MODEL = "unknown model"
    CONTEXT_OVERFLOW = "context overflow"
    CONTENT_FILTER = "content filter"
    PREFILL = "refused prefill"


@dataclass(frozen=True, slots=True)
class Dialect:
    """
    One API, as far as a drill speaks it.

    Args:
        completion: Makes the body of an answer that is not streamed: text and usage in, JSON out.
        events: Makes a streamed answer: tokens and usage in; out come the events or lines, one
            `bytes` each, those of the tokens one a token.
        opening: Events before the first token.
        closing: Events after the last one.
        stream_type: The media type of a stream.
        refusals: Status and JSON body. What is missing the API does not have, and what needs it
            is left out.
        error_event: An event that says that the server has failed.
        ping: An event that means nothing and keeps the wire alive; None if there is no such thing.
        terminated: The last event of a stream ends it and says nothing else (`[DONE]`).
        overflow_tokens: The window that `CONTEXT_OVERFLOW` speaks of; 0 if it gives no number.
        catalogue: Makes the answer to a probe: the names of models in, JSON out.
        tool_call: The events of a stream that has begun to call a tool and is not done; empty if
            the API has no tools.
    """

    completion: Callable[[str, Usage], bytes]
    events: Callable[[Sequence[str], Usage], list[bytes]]
    opening: int
    closing: int
    stream_type: str
    refusals: Mapping[Refusal, tuple[int, Any]]
    error_event: bytes
    ping: bytes | None = None
    terminated: bool = False
    overflow_tokens: int = 0
    catalogue: Callable[[Sequence[str]], bytes] = lambda _: b"{}"
    tool_call: Sequence[bytes] = ()


def body_of(script: Script) -> bytes:
    """Return the body of a complete answer that is not chunked."""
    (step,) = script
    assert isinstance(step, Send)
    return step.data.split(b"\r\n\r\n", 1)[1]


def _openai(message: str, code: str | None, type: str = "invalid_request_error") -> Any:
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


_OVERFLOW_TOKENS: Final = 4096
_TOOL_CALL: Final = ToolCall("book_a_table", {"persons": 4, "at": "20:00"}, id="call_drill")

OPENAI: Final = Dialect(
    completion=lambda text, usage: body_of(openai_completion(text, usage=usage)),
    events=lambda tokens, usage: openai_chunks(tokens, usage=usage),
    opening=1,  # the role
    closing=3,  # the finish reason, the usage, the terminator
    stream_type="text/event-stream",
    refusals={
        Refusal.RATE_LIMIT: (429, _openai("Rate limit reached.", "rate_limit_exceeded", "requests")),
        Refusal.BROKEN: (500, _openai("The server had an error.", None, "server_error")),
        Refusal.BUSY: (503, _openai("The server is overloaded.", "server_is_overloaded", "server_error")),
        Refusal.UNAUTHORIZED: (401, _openai("Incorrect API key provided.", "invalid_api_key")),
        Refusal.QUOTA: (
            429,
            _openai("You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
        ),
        Refusal.UNKNOWN_MODEL: (404, _openai("The model does not exist.", "model_not_found")),
        Refusal.CONTEXT_OVERFLOW: (
            400,
            _openai(
                f"This model's maximum context length is {_OVERFLOW_TOKENS} tokens.",
                "context_length_exceeded",
            ),
        ),
        Refusal.CONTENT_FILTER: (400, _openai("The prompt was filtered.", "content_filter")),
        Refusal.PREFILL: (400, _openai("The last message must be from the user.", None)),
    },
    error_event=sse(_openai("The server had an error.", None, "server_error")),
    ping=b": ping\n\n",
    terminated=True,
    overflow_tokens=_OVERFLOW_TOKENS,
    catalogue=lambda models: body_of(openai_models(*models)),
    tool_call=openai_chunks([], tool_calls=[_TOOL_CALL], finish_reason=None, done=False),
)

OLLAMA: Final = Dialect(
    completion=lambda text, usage: body_of(ollama_completion(text, usage=usage)),
    events=lambda tokens, usage: ollama_lines(tokens, usage=usage),
    opening=0,
    closing=1,
    stream_type="application/x-ndjson",
    refusals={
        Refusal.RATE_LIMIT: (429, {"error": "too many requests"}),
        Refusal.BROKEN: (500, {"error": "the model runner has stopped"}),
        Refusal.BUSY: (503, {"error": "server busy, please try again"}),
        Refusal.UNAUTHORIZED: (401, {"error": "unauthorized"}),
        Refusal.QUOTA: (402, {"error": "the usage limit is reached"}),
        Refusal.UNKNOWN_MODEL: (404, {"error": "model 'm' not found"}),
        Refusal.CONTEXT_OVERFLOW: (400, {"error": "the input length exceeds the context length"}),
        Refusal.PREFILL: (400, {"error": "the last message must be from the user"}),
    },
    error_event=json.dumps({"error": "the model runner has stopped"}) + b"\n",
    ping=b"\n",
    catalogue=lambda models: body_of(ollama_tags(*models)),
    tool_call=ollama_lines([], tool_calls=[_TOOL_CALL])[:-1],
)
