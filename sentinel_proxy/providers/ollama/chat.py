"""
Answers of `/api/chat` as chat completions, whole and streamed.

Thoughts go out under both names that the field uses, `reasoning` and `reasoning_content`;
OpenAI's SDKs leave both alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sentinel_proxy.providers.ollama import failures
from sentinel_proxy.providers.ollama.envelope import (
    FINGERPRINT,
    Native,
    read_usage,
    usage_body,
)
from sentinel_proxy.providers.ollama.replies import Asked, BodyDecoder, StreamDecoder, require_done
from sentinel_proxy.providers.ollama.requests import stream_usage
from sentinel_proxy.providers.ollama.tools import CallRules, call_rules
from sentinel_proxy.providers.ollama.turns import (
    Said,
    ToolCall,
    TurnReader,
    finish_reason,
    logprob_entries,
)
from sentinel_proxy.wire.openai import DONE, event


class ChatDecoder(BodyDecoder):
    """One `chat.completion`."""

    def answer(self, native: Native) -> Mapping[str, Any]:
        require_done(native)
        if not isinstance(native.get("message"), Mapping):
            raise failures.protocol("the upstream's answer lacks a message")
        rules = call_rules(self.asked.call.payload)
        said = TurnReader(rules, self.asked.mint).read(native["message"])
        if not (said.thinking or said.text or said.calls) and native.get("done_reason") != "length":
            raise failures.empty()
        self.usage = read_usage(native)
        entries = logprob_entries(native) if _wants_logprobs(self.asked) else []
        return {
            "id": self.identity.id,
            "object": "chat.completion",
            "created": self.identity.created,
            "model": self.identity.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [
                {
                    "index": 0,
                    "message": _message(said, rules),
                    "logprobs": _logprobs(entries) if entries else None,
                    "finish_reason": finish_reason(native, _called(rules) if said.calls else None),
                }
            ],
            "usage": usage_body(self.usage),
        }


class ChatStreamDecoder(StreamDecoder):
    """`chat.completion.chunk` events: the role once, then what is said, the reason, the count, `[DONE]`."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._rules = call_rules(asked.call.payload)
        self._turn = TurnReader(self._rules, asked.mint)
        self._counts = stream_usage(asked.call)
        self._probable = _wants_logprobs(asked)
        self._calls = 0
        self.said: list[str] = []

    def begin(self) -> Iterator[bytes]:
        self.opened_as = (self.identity.id, self.identity.created)
        yield self._chunk({"role": "assistant", "content": ""})

    def say(self, native: Native) -> Iterator[bytes]:
        entries = logprob_entries(native) if self._probable else []
        deltas = list(self._deltas(self._turn.read(native.get("message"))))
        if entries and not deltas:
            deltas = [{"content": ""}]
        for delta in deltas:
            if delta != {"content": ""}:
                self.meant()
            yield self._chunk(delta, logprobs=_logprobs(entries) if entries else None)
            entries = []

    def end(self, native: Native) -> Iterator[bytes]:
        called = _called(self._rules) if self._turn.called else None
        yield self._chunk({}, finish_reason(native, called))
        if self._counts and self.usage is not None:
            yield event(self._head() | {"choices": [], "usage": usage_body(self.usage)})
        yield DONE

    def _deltas(self, said: Said) -> Iterator[dict[str, Any]]:
        if said.thinking:
            yield _thoughts(said.thinking)
        if said.text:
            self.said.append(said.text)
            yield {"content": said.text}
        if said.calls or self._probable:
            self.plain = False
        for call in said.calls:
            if self._rules.legacy:
                yield {"function_call": _function(call)}
            else:
                yield {"tool_calls": [{"index": self._calls, **_tool_call(call)}]}
            self._calls += 1

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.identity.id,
            "object": "chat.completion.chunk",
            "created": self.identity.created,
            "model": self.identity.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _chunk(
        self, delta: Mapping[str, Any], reason: str | None = None, logprobs: Mapping[str, Any] | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        chunk = self._head() | {"choices": [choice]}
        return event(chunk | {"usage": None} if self._counts else chunk)


def _wants_logprobs(asked: Asked) -> bool:
    return asked.call.payload.get("logprobs") is True


def _logprobs(entries: list[dict[str, Any]]) -> Mapping[str, Any]:
    return {"content": entries, "refusal": None}


def _called(rules: CallRules) -> str:
    return "function_call" if rules.legacy else "tool_calls"


def _message(said: Said, rules: CallRules) -> Mapping[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if said.calls and not said.text else said.text,
        "refusal": None,
    }
    if said.thinking:
        message |= _thoughts(said.thinking)
    if said.calls and rules.legacy:
        message["function_call"] = _function(said.calls[0])
    elif said.calls:
        message["tool_calls"] = [_tool_call(call) for call in said.calls]
    return message


def _thoughts(text: str) -> dict[str, Any]:
    return {"reasoning": text, "reasoning_content": text}


def _function(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": _function(call)}
