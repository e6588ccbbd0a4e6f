"""Scripts in the dialect of Ollama: what its native API answers, line by line."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sentinel_proxy.model import Usage
from sentinel_proxy.testing.scripts import DEFAULT_USAGE, Script, ToolCall, json_answer, stream
from sentinel_proxy.wire import json

CREATED_AT: Final = "2026-03-01T10:00:00.123456789Z"


def ollama_lines(
    tokens: Iterable[str],
    *,
    model: str = "llama3.2",
    usage: Usage = DEFAULT_USAGE,
    thinking: Iterable[str] = (),
    done_reason: str | None = "stop",
    tool_calls: Sequence[ToolCall] = (),
) -> list[bytes]:
    """Return the NDJSON lines of `/api/chat`; `done_reason=None` leaves the last one away."""
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "thinking": thought} for thought in thinking
    ]
    messages += [{"role": "assistant", "content": token} for token in tokens]
    messages += [{"role": "assistant", "content": "", **_tool_calls([call])} for call in tool_calls]
    lines = [_ollama_line(model, message) for message in messages]
    if done_reason is not None:
        lines.append(_ollama_line(model, {"role": "assistant", "content": ""}, usage, done_reason))
    return [json.dumps(line) + b"\n" for line in lines]


def ollama_stream(
    tokens: Iterable[str],
    *,
    model: str = "llama3.2",
    usage: Usage = DEFAULT_USAGE,
    thinking: Iterable[str] = (),
    done_reason: str | None = "stop",
    tool_calls: Sequence[ToolCall] = (),
    pause: float = 0.0,
) -> Script:
    """Build a streamed answer of `/api/chat`; the arguments are those of `ollama_lines`."""
    lines = ollama_lines(
        tokens,
        model=model,
        usage=usage,
        thinking=thinking,
        done_reason=done_reason,
        tool_calls=tool_calls,
    )
    return stream(lines, headers={"content-type": "application/x-ndjson"}, pause=pause)


def ollama_completion(
    text: str = "Hello",
    *,
    model: str = "llama3.2",
    usage: Usage = DEFAULT_USAGE,
    done_reason: str = "stop",
    tool_calls: Sequence[ToolCall] = (),
) -> Script:
    """Build the answer of `/api/chat` to a call that does not stream."""
    message = {"role": "assistant", "content": text, **_tool_calls(tool_calls)}
    return json_answer(200, _ollama_line(model, message, usage, done_reason))


def ollama_error(status: int, message: str = "the scripted error") -> Script:
    """Build an error as Ollama's own API gives it: a bare string."""
    return json_answer(status, {"error": message})


def ollama_tags(*models: str) -> Script:
    """Build the answer to `GET /api/tags`: the installed models."""
    return json_answer(
        200, {"models": [_ollama_model(model) | {"modified_at": CREATED_AT} for model in models]}
    )


def ollama_ps(*models: str) -> Script:
    """Build the answer to `GET /api/ps`: the models in memory."""
    loaded = {"expires_at": "2026-03-01T10:05:00Z", "size_vram": 2_019_393_189, "context_length": 8192}
    return json_answer(200, {"models": [_ollama_model(model) | loaded for model in models]})


def ollama_show(*capabilities: str) -> Script:
    """Build the answer to `POST /api/show`."""
    return json_answer(200, {"capabilities": list(capabilities), "parameters": "", "details": _DETAILS})


def ollama_version(version: str = "0.32.15") -> Script:
    """Build the answer to `GET /api/version`."""
    return json_answer(200, {"version": version})


_DETAILS: Final = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "3.2B",
    "quantization_level": "Q4_K_M",
}


def _ollama_model(name: str) -> dict[str, Any]:
    """An installed model; a name without a tag means `:latest`, and is listed so."""
    full = name if ":" in name else f"{name}:latest"
    return {"name": full, "model": full, "size": 2_019_393_189, "digest": "a80c4f17acd5", "details": _DETAILS}


def _tool_calls(calls: Sequence[ToolCall]) -> dict[str, Any]:
    native = [{"function": {"name": call.name, "arguments": dict(call.arguments)}} for call in calls]
    return {"tool_calls": native} if calls else {}


def _ollama_line(
    model: str, message: Mapping[str, Any], usage: Usage = DEFAULT_USAGE, done_reason: str | None = None
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "model": model,
        "created_at": CREATED_AT,
        "message": message,
        "done": done_reason is not None,
    }
    if done_reason is None:
        return line
    return line | {
        "done_reason": done_reason,
        "total_duration": 900_000_000,  # nanoseconds, as all durations of this API
        "load_duration": 1_000_000,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": 100_000_000,
        "eval_count": usage.completion_tokens,
        "eval_duration": 700_000_000,
    }
