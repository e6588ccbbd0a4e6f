"""Scripts in the dialect of OpenAI: what its API answers, event by event."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sentinel_proxy.model import Usage
from sentinel_proxy.testing.scripts import DEFAULT_USAGE, Framing, Script, ToolCall, json_answer, stream
from sentinel_proxy.wire import json

CREATED: Final = 1_772_359_200


@dataclass(frozen=True, slots=True)
class _Chat:
    """What the parts of one simulated OpenAI answer have in common."""

    model: str
    object: str
    id: str = "chatcmpl-Scripted1"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def json(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": CREATED,
            "model": self.model,
            "choices": choices,
            **more,
            **self.extra,
        }


def openai_completion(
    text: str = "Hello",
    *,
    model: str = "gpt-4o-mini",
    usage: Usage = DEFAULT_USAGE,
    finish_reason: str = "stop",
    tool_calls: Sequence[ToolCall] = (),
    headers: Mapping[str, str] | None = None,
    framing: Framing = "length",
) -> Script:
    """Build a complete `chat.completion` with one choice; without *text* its content is null."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text or None if tool_calls else text,
        "refusal": None,
        "annotations": [],
    }
    if tool_calls:
        message["tool_calls"] = [_tool_call(call, json.dumps(call.arguments).decode()) for call in tool_calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    body = _Chat(model, "chat.completion").json(
        [choice], usage=_usage(usage), system_fingerprint="fp_scripted"
    )
    return json_answer(200, body, _openai_headers(headers), framing)


def openai_chunks(
    tokens: Iterable[str],
    *,
    model: str = "gpt-4o-mini",
    usage: Usage | None = None,
    finish_reason: str | None = "stop",
    done: bool = True,
    role: bool = True,
    tool_calls: Sequence[ToolCall] = (),
) -> list[bytes]:
    """
    Return the SSE events of a streamed chat answer, one `bytes` an event.

    Args:
        usage: Adds the event with empty choices that `include_usage` asks for.
        finish_reason: None leaves the finishing event away: the stream is truncated.
        done: Whether `[DONE]` comes at the end.
        role: Whether the first delta carries the role alone, as OpenAI sends it.
        tool_calls: Come after the tokens: each its name first, then its arguments in two pieces.
    """
    chat = _Chat(model, "chat.completion.chunk", extra={} if usage is None else {"usage": None})
    deltas: list[tuple[dict[str, Any], str | None]] = [({"content": token}, None) for token in tokens]
    deltas += [({"tool_calls": [piece]}, None) for piece in _pieces(tool_calls)]
    if role:
        deltas.insert(0, ({"role": "assistant", "content": ""}, None))
    if finish_reason is not None:
        deltas.append(({}, finish_reason))
    payloads = [
        chat.json([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])
        for delta, finish in deltas
    ]
    if usage is not None:
        payloads.append({**chat.json([]), "usage": _usage(usage)})
    return [*map(sse, payloads), *([sse("[DONE]")] if done else [])]


def openai_stream(
    tokens: Iterable[str],
    *,
    model: str = "gpt-4o-mini",
    usage: Usage | None = None,
    finish_reason: str | None = "stop",
    done: bool = True,
    role: bool = True,
    tool_calls: Sequence[ToolCall] = (),
    pause: float = 0.0,
    headers: Mapping[str, str] | None = None,
    framing: Framing = "chunked",
) -> Script:
    """Build a streamed chat answer; the arguments are those of `openai_chunks` and `stream`."""
    events = openai_chunks(
        tokens,
        model=model,
        usage=usage,
        finish_reason=finish_reason,
        done=done,
        role=role,
        tool_calls=tool_calls,
    )
    return sse_stream(events, pause=pause, headers=_openai_headers(headers), framing=framing)


def openai_error(
    status: int,
    code: str | None = None,
    message: str = "The scripted error.",
    *,
    type: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Script:
    """Build an error in OpenAI's envelope; *type* follows from the status unless given."""
    kind = type or ("invalid_request_error" if 400 <= status < 500 and status != 429 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json_answer(status, {"error": error}, _openai_headers(headers))


def openai_models(*ids: str) -> Script:
    """Build the answer to `GET /v1/models`."""
    return json_answer(200, {"object": "list", "data": [*map(_model, ids)]}, _openai_headers(None))


def openai_model(id: str) -> Script:
    """Build the answer to `GET /v1/models/{id}`."""
    return json_answer(200, _model(id), _openai_headers(None))


def sse(payload: Any) -> bytes:
    """Return one event; a string is sent as it is, anything else as JSON."""
    data = payload.encode() if isinstance(payload, str) else json.dumps(payload)
    return b"data: %b\n\n" % data


def sse_stream(
    events: Iterable[bytes],
    *,
    pause: float = 0.0,
    headers: Mapping[str, str] | None = None,
    framing: Framing = "chunked",
) -> Script:
    """Build an event stream from *events* as they are."""
    fields = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
    return stream(events, headers=fields | dict(headers or {}), framing=framing, pause=pause)


def _openai_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {"x-request-id": "req_scripted", "openai-processing-ms": "5", **(headers or {})}


def _model(id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": CREATED, "owned_by": "system"}


def _tool_call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _pieces(calls: Sequence[ToolCall]) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(calls):
        arguments = json.dumps(call.arguments).decode()
        middle = len(arguments) // 2
        yield {"index": index, **_tool_call(call, "")}
        for piece in (arguments[:middle], arguments[middle:]):
            yield {"index": index, "function": {"arguments": piece}}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
