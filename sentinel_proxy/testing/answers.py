"""
What a simulated model says: what follows from the conversation, and nothing else.

All simulated models say the same to the same conversation, word for word, and go on with an
answer that somebody else began. So whoever knows the question knows the answer: an answer
that went through a proxy, from one provider or from two, can be held against it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sentinel_proxy.model import Usage
from sentinel_proxy.testing.scripts import ToolCall
from sentinel_proxy.wire import json

Message = Mapping[str, Any]

_LONGEST_QUOTE_CHARS: Final = 200
_DEEPEST_SCHEMA: Final = 20


@dataclass(frozen=True, slots=True)
class Said:
    """One answer, before it is put into a dialect."""

    tokens: tuple[str, ...]
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    limited: bool = False  # the caller's limit of tokens came before the end

    @property
    def text(self) -> str:
        """The tokens together."""
        return "".join(self.tokens)


def reply(
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    format: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
) -> Said:
    """
    Answer a conversation.

    Args:
        tools: In the form that both dialects share (`type`, `function`). The first is called,
            unless the conversation ends with the result of one.
        format: A JSON schema to obey; `{}` is any object.
        max_tokens: The answer breaks off after so many.
    """
    spent = sum(len(tokens_of(content_of(message))) for message in messages)
    if tools and messages[-1].get("role") != "tool":
        call = _call(tools[0]["function"], _question(messages))
        return Said((), Usage(spent, len(call.arguments) + 1), (call,))
    text = answer_to(messages) if format is None else _as_json(messages, format)
    tokens = tokens_of(text)
    kept = tokens if max_tokens is None else tokens[:max_tokens]
    return Said(kept, Usage(spent, len(kept)), limited=len(kept) < len(tokens))


def answer_to(messages: Sequence[Message]) -> str:
    """
    Return the text that answers *messages*, or the rest of it.

    A beginning of the right answer near the end of the conversation, alone or before a request
    to go on, is continued where it stops.
    """
    if messages[-1].get("role") == "tool":
        return f"The tool says: {_quoted(content_of(messages[-1]))} That is all there is to know."
    for end in (len(messages), len(messages) - 1):
        if end >= 2 and messages[end - 1].get("role") == "assistant":
            whole = _essay(_question(messages[: end - 1]))
            begun = content_of(messages[end - 1])
            if whole.startswith(begun) and begun != whole:
                return whole[len(begun) :]
    return _essay(_question(messages))


def content_of(message: Message) -> str:
    """Return the text of a message; of one in parts, that of its text parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def tokens_of(text: str) -> tuple[str, ...]:
    """Cut *text* into words, each with the space before it."""
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def _question(messages: Sequence[Message]) -> str:
    asked = (content_of(message) for message in reversed(messages) if message.get("role") == "user")
    return next(asked, "")


def _essay(question: str) -> str:
    words = question.split()
    if not words:
        return "You asked nothing, so there is nothing to answer."
    longest = max(words, key=len).strip(".,;:!?")
    return (
        f'You asked: "{_quoted(question)}" I count {len(words)} words, the longest is "{longest}", and '
        f'read backwards it is "{_quoted(" ".join(reversed(words)))}" '
        "That is everything a simulated model knows about it."
    )


def _quoted(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST_QUOTE_CHARS else f"{flat[:_LONGEST_QUOTE_CHARS]}..."


def _as_json(messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
    text = answer_to(messages)
    value = instance(schema, text) if schema else {"question": _question(messages), "answer": text}
    return json.dumps(value).decode()


def _call(function: Mapping[str, Any], question: str) -> ToolCall:
    arguments = instance({"type": "object", **(function.get("parameters") or {})}, question)
    return ToolCall(function["name"], arguments)


def instance(schema: Mapping[str, Any], text: str) -> Any:
    """
    Return a small value that fits a JSON schema, made of *text* where a string is free.

    Knows what function parameters and response formats are written in: types, properties,
    items, enum, const, anyOf, and `$ref` to `$defs`; an object gets all its properties.
    """
    return _instance(schema, text, schema, 0)


def _instance(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], depth: int) -> Any:
    if depth > _DEEPEST_SCHEMA:
        return None
    if "$ref" in schema:
        target: Any = root
        for key in filter(None, schema["$ref"].removeprefix("#").split("/")):
            target = target[key]
        return _instance(target, text, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _instance(options[0], text, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: _instance(part, text, root, depth + 1) for name, part in properties.items()}
        case "array":
            return [_instance(schema.get("items", {}), text, root, depth + 1)]
        case "integer" | "number":
            return max(len(text.split()), schema.get("minimum", 0))
        case "boolean":
            return True
        case "null":
            return None
    return text
