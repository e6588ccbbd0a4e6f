"""
OpenAI's wire format: the objects we write ourselves.

Chunks, completions and errors as plain dictionaries in the order in which OpenAI writes their
keys, and the few whole events that are always the same. What upstreams write is relayed and
never built again, so there is no parser here and no model of the whole API.

Source: OpenAI's API reference, the chat completion object, the chat completion chunk object
and streaming events of the Responses API.
"""

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sentinel_proxy.model import Endpoint
from sentinel_proxy.wire import sse
from sentinel_proxy.wire.json import dumps

DONE: Final = b"data: [DONE]\n\n"
"""Ends a good stream; never sent after an error."""

COMMENT: Final = b": keep-alive\n\n"
"""Keeps a silent stream warm; every SSE parser ignores it (WHATWG HTML 9.2.7)."""


def new_id(prefix: str) -> str:
    """Return a new identifier, such as `new_id("chatcmpl-")`; as long as OpenAI's and never guessed."""
    return prefix + secrets.token_hex(14)


def event(payload: Mapping[str, Any]) -> bytes:
    """Write one `data:` event."""
    return b"data: %b\n\n" % dumps(payload)


def chunk(
    *,
    id: str,
    created: int,
    model: str,
    delta: Mapping[str, Any] | None = None,
    finish_reason: str | None = None,
    index: int = 0,
    usage: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """
    Build one `chat.completion.chunk`.

    Args:
        created: Unix seconds, the same for all chunks of a stream.
        delta: What this choice says now; None with no finish reason: a chunk without choices,
            as the one that carries the usage.
        extra: Further keys of the chunk (`system_fingerprint`).
    """
    choices = []
    if delta is not None or finish_reason is not None:
        choices.append({"index": index, "delta": dict(delta or {}), "finish_reason": finish_reason})
    built = {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        **extra,
        "choices": choices,
    }
    return built if usage is None else {**built, "usage": dict(usage)}


def completion(
    *,
    id: str,
    created: int,
    model: str,
    message: Mapping[str, Any],
    finish_reason: str,
    usage: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """
    Build one `chat.completion` with a single choice.

    Args:
        created: Unix seconds.
        message: What the assistant said; `role`, `content` and `refusal` are there in any case.
    """
    said = {"role": "assistant", "content": None, "refusal": None, **message}
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": finish_reason}
    built = {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        **extra,
        "choices": [choice],
    }
    return built if usage is None else {**built, "usage": dict(usage)}


def error_body(
    message: str,
    type: str,
    param: str | None = None,
    code: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the error envelope; *metadata* is ours and left out where it is None."""
    error: dict[str, Any] = {"message": message, "type": type, "param": param, "code": code}
    if metadata is not None:
        error["metadata"] = dict(metadata)
    return {"error": error}


def error_event(
    endpoint: Endpoint,
    message: str,
    type: str,
    param: str | None = None,
    code: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    sequence_number: int = 0,
) -> bytes:
    """
    Write the in-band error that every version of the official SDKs raises on.

    That is an event without a name and with a top-level `error` object, and no `[DONE]` after
    it. The Responses API has named events and flat errors; its SDKs differ in which of the two
    they look at, so there the event carries both.

    Args:
        sequence_number: Of the event in a stream of the Responses API.
    """
    body = error_body(message, type, param, code, metadata)
    if endpoint is not Endpoint.RESPONSES:
        return event(body)
    flat = {
        "type": "error",
        "code": code,
        "message": message,
        "param": param,
        "sequence_number": sequence_number,
    }
    return sse.event(dumps({**flat, **body}), b"error")


def completion_to_stream(completion: Mapping[str, Any], *, include_usage: bool = False) -> bytes:
    """
    Write a complete answer as the stream that was asked for, `[DONE]` included.

    Chat completions become two chunks a choice, what was said and why it ended; legacy text
    completions look the same in a stream and become one event. Keys that we do not know stay.

    Args:
        completion: A `chat.completion` or `text_completion` with its `choices`.
        include_usage: Whether the caller asked for the usage, which then has a chunk of its own.

    Raises:
        ValueError: It has the shape of neither.
    """
    try:
        events = b"".join(event(payload) for payload in _chunks(completion, include_usage))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("not a completion") from error
    return events + DONE


def _chunks(completion: Mapping[str, Any], include_usage: bool) -> Iterator[dict[str, Any]]:
    choices, usage = completion["choices"], completion.get("usage")
    shell = {key: value for key, value in completion.items() if key not in ("choices", "usage")}
    if all("text" in choice for choice in choices):
        yield {**shell, "choices": choices}
    else:
        shell["object"] = "chat.completion.chunk"
        for choice in choices:
            end = {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice["finish_reason"]}
            said = {**choice, "delta": _delta(choice["message"]), "finish_reason": None}
            del said["message"]
            yield {**shell, "choices": [said]}
            yield {**shell, "choices": [end]}
    if include_usage and usage:
        yield {**shell, "choices": [], "usage": usage}


def _delta(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as the one delta that says all of it."""
    delta = {key: value for key, value in message.items() if value is not None}
    if calls := delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    return delta
