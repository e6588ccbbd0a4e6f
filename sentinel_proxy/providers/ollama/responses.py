"""
Answers of `/api/chat` as responses, whole and streamed.

Events are named, numbered without gaps and end with the one that carries the whole response;
there is no `[DONE]`. A stream that breaks is ended by the relay, like any other.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sentinel_proxy.model import Usage
from sentinel_proxy.providers.ollama import failures
from sentinel_proxy.providers.ollama.envelope import Native, read_usage
from sentinel_proxy.providers.ollama.replies import (
    Asked,
    BodyDecoder,
    Identity,
    StreamDecoder,
    require_done,
)
from sentinel_proxy.providers.ollama.responses_items import Event, Item, OutputBuilder
from sentinel_proxy.providers.ollama.tools import CallRules
from sentinel_proxy.providers.ollama.turns import TurnReader
from sentinel_proxy.wire.json import dumps

ECHOED: Final[Mapping[str, Any]] = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1,
    "tool_choice": "auto",
    "top_p": 1,
}
"""Fields of the call that the response repeats, and what it says where the call is silent."""


class ResponseDecoder(BodyDecoder):
    """One `response`."""

    prefix = "resp_"

    def answer(self, native: Native) -> Mapping[str, Any]:
        require_done(native)
        if not isinstance(native.get("message"), Mapping):
            raise failures.protocol("the upstream's answer lacks a message")
        said = _turn(self.asked).read(native["message"])
        if not (said.thinking or said.text or said.calls) and native.get("done_reason") != "length":
            raise failures.empty()
        builder = OutputBuilder(self.asked.mint)
        status = _status(native)
        for _ in (*builder.add(said), *builder.end(status)):
            pass
        self.usage = read_usage(native)
        return _response(self.asked, self.identity, status, builder.output, self.usage)


class ResponseStreamDecoder(StreamDecoder):
    """The events of one response, from `response.created` to `response.completed` or `.incomplete`."""

    prefix = "resp_"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._turn = _turn(asked)
        self._builder = OutputBuilder(asked.mint)
        self._number = 0

    def begin(self) -> Iterator[bytes]:
        response = _response(self.asked, self.identity, "in_progress", [], None)
        yield self._event({"type": "response.created", "response": response})
        yield self._event({"type": "response.in_progress", "response": response})

    def say(self, native: Native) -> Iterator[bytes]:
        for event in self._builder.add(self._turn.read(native.get("message"))):
            if event["type"].endswith(".delta"):
                self.meant()
            yield self._event(event)

    def end(self, native: Native) -> Iterator[bytes]:
        status = _status(native)
        yield from map(self._event, self._builder.end(status))
        response = _response(self.asked, self.identity, status, self._builder.output, self.usage)
        yield self._event({"type": f"response.{status}", "response": response})

    def _event(self, event: Event) -> bytes:
        data = dumps({**event, "sequence_number": self._number})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)


def _turn(asked: Asked) -> TurnReader:
    """Calls are left out only where the caller said so: an agent may replay calls without their tools."""
    payload = asked.call.payload
    rules = CallRules(
        wanted=payload.get("tool_choice") != "none",
        one=payload.get("parallel_tool_calls") is False,
        legacy=False,
    )
    return TurnReader(rules, asked.mint)


def _status(native: Native) -> str:
    return "incomplete" if native.get("done_reason") == "length" else "completed"


def _response(
    asked: Asked, identity: Identity, status: str, output: list[Item], usage: Usage | None
) -> dict[str, Any]:
    payload = asked.call.payload
    echoed = {
        name: default if payload.get(name) is None else payload[name] for name, default in ECHOED.items()
    }
    response = {
        "id": identity.id,
        "object": "response",
        "created_at": identity.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": identity.model,
        "output": output,
        "tools": [_tool(tool) for tool in payload.get("tools") or ()],
        **echoed,
    }
    return response if usage is None else response | {"usage": _usage_body(usage)}


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a function as the caller gave it; what the schema wants and the caller left out is said."""
    return {"parameters": None, "strict": None, **tool}


def _usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
