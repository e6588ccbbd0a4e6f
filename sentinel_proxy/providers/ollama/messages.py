"""
OpenAI's messages as Ollama's.

System and developer messages are merged and come first, because many chat templates fail on a
late or a second one. Arguments of tool calls change from text to object; a tool's result gets
the name of the call it answers, which is all that some templates look at.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sentinel_proxy.providers.ollama.content import read_content
from sentinel_proxy.providers.ollama.facts import ModelFacts
from sentinel_proxy.providers.ollama.refusals import invalid_type, invalid_value
from sentinel_proxy.wire.json import loads

Message = dict[str, Any]

_THINKING: Final = ("reasoning", "reasoning_content", "thinking")


def native_messages(
    messages: Sequence[Mapping[str, Any]], facts: ModelFacts, param: str = "messages"
) -> list[Message]:
    """
    Translate a conversation.

    Args:
        messages: In the form of chat completions; not empty, because Ollama takes an empty list
            for the wish to load a model.
        param: The top-level field to blame for what is wrong with them.
    """
    return _Translation(messages, facts, param).run()


class _Translation:
    """One conversation on its way; knows which call each tool result answers."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], facts: ModelFacts, param: str) -> None:
        if not messages:
            raise invalid_value(param, f"'{param}' must not be empty")
        self._messages = messages
        self._facts = facts
        self._param = param
        self._system: list[Message] = []
        self._others: list[Message] = []
        self._callee: dict[str, str] = {}  # call id to name, of the messages translated so far

    def run(self) -> list[Message]:
        for message in self._messages:
            role = message.get("role")
            translate = _ROLES.get(role) if isinstance(role, str) else None
            if translate is None:
                raise invalid_value(self._param, "a message has no role that is known here")
            translate(self, message)
        self._name_early_results()
        return [*self._merged_system(), *self._others]

    def _name_early_results(self) -> None:
        """A result may stand before its call; such a one learns its name last."""
        for message in reversed(self._others):
            for call in message.get("tool_calls", ()):
                self._note(call)
            if message["role"] == "tool" and "tool_name" not in message:
                name = self._callee.get(message.get("tool_call_id", ""))
                if name:
                    message["tool_name"] = name

    def _note(self, call: Mapping[str, Any]) -> None:
        if "id" in call:
            self._callee[call["id"]] = call["function"]["name"]

    def _plain(self, role: str, message: Mapping[str, Any]) -> Message:
        content = read_content(message.get("content"), self._param, self._facts)
        native: Message = {"role": role, "content": content.text}
        if content.images:
            native["images"] = content.images
        return native

    def _merged_system(self) -> list[Message]:
        if not self._system:
            return []
        texts = [message["content"] for message in self._system if message["content"]]
        images = [image for message in self._system for image in message.get("images", ())]
        merged: Message = {"role": "system", "content": "\n\n".join(texts)}
        return [merged | {"images": images} if images else merged]

    def system(self, message: Mapping[str, Any]) -> None:
        self._system.append(self._plain("system", message))

    def user(self, message: Mapping[str, Any]) -> None:
        self._others.append(self._plain("user", message))

    def assistant(self, message: Mapping[str, Any]) -> None:
        native = self._plain("assistant", message)
        calls = _calls(message, self._param)
        if message.get("content") is None and not calls and isinstance(message.get("refusal"), str):
            native["content"] = message["refusal"]
        thoughts = (message.get(name) for name in _THINKING)
        thinking = next((text for text in thoughts if isinstance(text, str) and text), None)
        if thinking is not None:
            native["thinking"] = thinking
        if calls:
            native["tool_calls"] = calls
            for call in calls:
                self._note(call)
        self._others.append(native)

    def tool(self, message: Mapping[str, Any]) -> None:
        native = self._plain("tool", message)
        call_id, name = message.get("tool_call_id"), message.get("name")
        answered = call_id if isinstance(call_id, str) else ""
        if not (isinstance(name, str) and name):
            name = self._callee.get(answered)
        if name:
            native["tool_name"] = name
        if answered:
            native["tool_call_id"] = answered
        self._others.append(native)


_ROLES: Final[dict[str, Callable[[_Translation, Mapping[str, Any]], None]]] = {
    "system": _Translation.system,
    "developer": _Translation.system,
    "user": _Translation.user,
    "assistant": _Translation.assistant,
    "tool": _Translation.tool,
    "function": _Translation.tool,
}


def _calls(message: Mapping[str, Any], param: str) -> list[dict[str, Any]]:
    """Return the tool calls of an assistant message, the deprecated single one included."""
    calls = message.get("tool_calls")
    if calls is None or calls == []:
        legacy = message.get("function_call")
        return [] if legacy is None else [_call({"function": legacy}, param)]
    if not isinstance(calls, list):
        raise invalid_type(param, "messages whose tool calls are a list")
    return [_call(call, param) for call in calls]


def _call(call: object, param: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise invalid_type(param, "messages whose tool calls are objects")
    custom = call.get("type") == "custom"
    function = call.get("custom" if custom else "function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise invalid_type(param, "messages whose tool calls name a function")
    arguments = (
        {"input": function.get("input", "")} if custom else native_arguments(function.get("arguments"))
    )
    native: dict[str, Any] = {"function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str) and call["id"]:
        native = {"id": call["id"], **native}
    return native


def native_arguments(arguments: object) -> Mapping[str, Any]:
    """
    Return a call's arguments as the object that Ollama wants.

    Broken ones are wrapped instead of refused: they are history, and refusing them would block
    every later turn of the conversation.
    """
    if arguments is None or isinstance(arguments, Mapping):
        return arguments or {}
    if not isinstance(arguments, str) or not arguments.strip():
        return {} if isinstance(arguments, str) else {"_raw": arguments}
    try:
        value = loads(arguments.encode())
    except ValueError:
        return {"_raw": arguments}
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"_raw": arguments}
