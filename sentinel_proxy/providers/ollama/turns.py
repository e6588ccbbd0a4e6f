"""
What the model says in one native message: thoughts, text, tool calls, log probabilities.

Chat completions and the Responses API tell the same turn in different words; here it is read,
with the freedoms that Ollama takes ironed out: ids that are missing, repeated or too long, and
indexes that are always 0 (they are not even looked at).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sentinel_proxy.providers.ollama.envelope import Native
from sentinel_proxy.providers.ollama.ids import MAX_ID_CHARS, Mint
from sentinel_proxy.providers.ollama.tools import CallRules
from sentinel_proxy.wire.json import dumps

FINISH_REASONS: Final = {"length": "length"}
"""Everything else means `stop`: strict clients know no `load`, and no empty reason."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """What one native message says."""

    thinking: str
    text: str
    calls: Sequence[ToolCall]


class TurnReader:
    """Reads the messages of one answer; knows the calls that came before."""

    def __init__(self, rules: CallRules, mint: Mint) -> None:
        self._rules = rules
        self._mint = mint
        self._ids: set[str] = set()

    @property
    def called(self) -> bool:
        """Whether a call has been returned."""
        return bool(self._ids)

    def read(self, message: object) -> Said:
        """Read one message; what is missing or of a strange type counts as nothing."""
        if not isinstance(message, Mapping):
            return Said("", "", ())
        calls = message.get("tool_calls")
        wanted = calls if isinstance(calls, list) and self._rules.wanted else []
        return Said(
            _text(message.get("thinking")),
            _text(message.get("content")),
            [call for call in map(self._call, wanted) if call is not None],
        )

    def _call(self, native: object) -> ToolCall | None:
        function = native.get("function") if isinstance(native, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not (isinstance(name, str) and name) or (self._rules.one and self._ids):
            return None
        assert isinstance(native, Mapping)
        assert isinstance(function, Mapping)
        return ToolCall(self._id(native.get("id")), name, arguments_text(function.get("arguments")))

    def _id(self, id: object) -> str:
        good = isinstance(id, str) and 0 < len(id) <= MAX_ID_CHARS and id not in self._ids
        fresh = id if good and isinstance(id, str) else self._mint("call_")
        self._ids.add(fresh)
        return fresh


def arguments_text(arguments: object) -> str:
    """Return a call's arguments as compact JSON text, order and letters kept."""
    if isinstance(arguments, str):
        return arguments
    return "{}" if arguments is None else dumps(arguments).decode()


def finish_reason(native: Native, called: str | None = None) -> str:
    """
    Return OpenAI's finish reason for the end of an answer.

    Args:
        called: The reason to give if the model called something and was not cut off.
    """
    reason = native.get("done_reason")
    return FINISH_REASONS.get(reason if isinstance(reason, str) else "", called or "stop")


def logprob_entries(native: Native) -> list[dict[str, Any]]:
    """Return the log probabilities that a native object brings, in the form of chat completions."""
    entries = native.get("logprobs")
    return [
        _entry(entry) | {"top_logprobs": [_entry(other) for other in _good(entry.get("top_logprobs"))]}
        for entry in _good(entries)
    ]


def _good(entries: object) -> list[Mapping[str, Any]]:
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, Mapping) and _is_entry(entry)]


def _is_entry(entry: Mapping[str, Any]) -> bool:
    logprob = entry.get("logprob")
    return (
        isinstance(entry.get("token"), str)
        and isinstance(logprob, int | float)
        and not isinstance(logprob, bool)
    )


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"], "bytes": _bytes(entry)}


def _bytes(entry: Mapping[str, Any]) -> list[int] | None:
    given = entry.get("bytes")
    if isinstance(given, list) and all(type(byte) is int for byte in given):
        return given
    try:
        return list(entry["token"].encode())
    except UnicodeEncodeError:
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
