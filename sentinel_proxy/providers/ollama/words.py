"""
The words of an error: where Ollama puts them, and what of them may be shown.

An error is usually `{"error": "text"}`, but the text may itself be a JSON document that the
runner wrote, and may quote an address or the model's answer, which are nobody's business.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from sentinel_proxy.wire.json import loads

MAX_MESSAGE_CHARS: Final = 500


def message_in(error: object) -> str:
    """
    Find the words for people in an error body.

    An error's text may itself be a JSON document of the runner, twice over; and one version used
    the text as the only key.
    """
    for _ in range(3):
        if isinstance(error, Mapping):
            error = _inner(error)
        parsed = _parsed(error)
        if parsed is None:
            break
        error = parsed
    return error if isinstance(error, str) else ""


def _inner(error: Mapping[str, Any]) -> object:
    for key in ("error", "message"):
        inner = error.get(key)
        if isinstance(inner, Mapping):
            return _inner_object(inner)
        if isinstance(inner, str) and inner:
            return inner
    if len(error) == 1:
        (key, value), *_ = error.items()
        if isinstance(value, str):
            return f"{key}: {value}"
    return ""


def _inner_object(error: Mapping[str, Any]) -> object:
    return error.get("message") or error.get("error") or ""


def _parsed(text: object) -> Mapping[str, Any] | None:
    """Return the JSON object that *text* is, if it is one."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return None
    try:
        value = loads(text.encode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


_ADDRESS: Final = re.compile(
    r"\b[a-z]+://[^\s\"']+"  # a URL
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?"  # IPv4
    r"|\[[0-9a-f]*(?::[0-9a-f]*){2,8}\](?::\d+)?"  # IPv6
)
_ANSWER: Final = re.compile(r":? raw=.*", re.DOTALL)


def presentable(said: str, status: int | None) -> str:
    """Return Ollama's words fit for a caller: no page, no address, nothing of the model's answer."""
    if not said:
        came = "with an error" if status is None else f"with status {status}"
        return f"the upstream answered {came} and no reason"
    if said.lstrip().startswith("<"):
        return f"the upstream answered with status {status} and a web page"
    words = _ADDRESS.sub("(address)", _ANSWER.sub("", said[: 4 * MAX_MESSAGE_CHARS]))
    return words[:MAX_MESSAGE_CHARS]
