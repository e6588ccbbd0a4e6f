"""
A Responses call for `/api/chat`.

Its input is a flat list of items; a conversation is made of them first, in the form of chat
completions, and then translated as any other. What refers to state that the first provider
keeps (earlier responses, stored items and prompts) cannot be served here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from sentinel_proxy.model import Call
from sentinel_proxy.providers.ollama.facts import Facts
from sentinel_proxy.providers.ollama.fields import flag, given, mapping, string
from sentinel_proxy.providers.ollama.messages import native_messages
from sentinel_proxy.providers.ollama.options import effort_of, limit, output_format, sampling, think
from sentinel_proxy.providers.ollama.refusals import invalid_type, unsupported
from sentinel_proxy.providers.ollama.requests import Body, Defaults
from sentinel_proxy.providers.ollama.tools import responses_offer

Item = Mapping[str, Any]
Message = dict[str, Any]

_ELSEWHERE: Final = ("previous_response_id", "conversation", "prompt")
_PARAM: Final = "input"


def responses_body(call: Call, model: str, facts: Facts, defaults: Defaults) -> tuple[Body, list[str]]:
    """Translate a Responses call; also returns the fields that could not be honoured."""
    payload, known = call.payload, facts.about(model)
    for name in given(payload, _ELSEWHERE):
        raise unsupported(name, f"'{name}' refers to what is stored elsewhere; send the whole conversation")
    if flag(payload, "background"):
        raise unsupported("background", "Ollama does not work in the background")
    text = mapping(payload, "text")
    offer = responses_offer(payload, known)
    body = defaults.body(model, call.stream, sampling(payload) | limit(payload, "max_output_tokens"))
    body["messages"] = native_messages(conversation(payload), known, _PARAM)
    if string(payload, "truncation") == "auto":
        body["truncate"] = True
    if offer.tools:
        body["tools"] = offer.tools
    constraint = output_format(text.get("format"), "text")
    if constraint is not None:
        body["format"] = constraint
    body |= think(*effort_of(payload), model, facts)
    return body, [*offer.lossy, *given(payload, ("top_logprobs",)), *given(text, ("verbosity",))]


def conversation(payload: Mapping[str, Any]) -> list[Message]:
    """Return instructions and input as the messages of a chat completion."""
    builder = _Conversation()
    instructions = string(payload, "instructions")
    if instructions:
        builder.messages.append({"role": "system", "content": instructions})
    value = payload.get(_PARAM)
    if isinstance(value, str):
        builder.messages.append({"role": "user", "content": value})
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        for item in value:
            builder.add(item)
    else:
        raise invalid_type(_PARAM, "a string or a list of items")
    return builder.messages if value else []


class _Conversation:
    """Messages as far as the items were read."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._thoughts: list[str] = []  # of the assistant message that comes next

    def add(self, item: Item) -> None:
        kind = item.get("type", "message" if "role" in item else None)
        add = _ITEMS.get(kind) if isinstance(kind, str) else None
        if add is None:
            raise unsupported(_PARAM, "Ollama cannot be given an item of this type")
        add(self, item)

    def message(self, item: Item) -> None:
        message: Message = {"role": item.get("role"), "content": item.get("content")}
        if message["role"] != "assistant":
            self._thoughts.clear()
            self.messages.append(message)
            return
        calling = self._open_assistant()
        if calling is not None and calling.get("tool_calls"):
            calling["content"] = _parts(calling["content"]) + _parts(message["content"])
        else:
            self.messages.append(message)
        self._think()

    def call(self, item: Item) -> None:
        if self._open_assistant() is None:
            self.messages.append({"role": "assistant", "content": None})
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        self.messages[-1].setdefault("tool_calls", []).append(
            {"id": item.get("call_id"), "function": function}
        )
        self._think()

    def output(self, item: Item) -> None:
        self._thoughts.clear()
        self.messages.append(
            {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
        )

    def reasoning(self, item: Item) -> None:
        """Only the summary can be read; `encrypted_content` is for whoever wrote it."""
        summary = item.get("summary")
        parts = summary if isinstance(summary, list) else []
        texts = (part.get("text") for part in parts if isinstance(part, Mapping))
        self._thoughts.extend(text for text in texts if isinstance(text, str) and text)

    def ignored(self, item: Item) -> None:
        """Its results were part of the answer that followed."""

    def _open_assistant(self) -> Message | None:
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last["role"] == "assistant" else None

    def _think(self) -> None:
        if self._thoughts:
            message = self.messages[-1]
            earlier = [message["thinking"]] if "thinking" in message else []
            message["thinking"] = "\n".join([*earlier, *self._thoughts])
            self._thoughts.clear()


_ITEMS: Final[dict[str, Callable[[_Conversation, Item], None]]] = {
    "message": _Conversation.message,
    "function_call": _Conversation.call,
    "function_call_output": _Conversation.output,
    "reasoning": _Conversation.reasoning,
    "web_search_call": _Conversation.ignored,
}


def _parts(content: object) -> list[Any]:
    """Return content as a list of parts, so that two of them can be joined."""
    if content is None or content == "":
        return []
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
