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


def message_in(error: object, wrappings: int = 3) -> str:
    """
    Find the words for people in an error body; "" if there are none.

    Args:
        wrappings: How many objects around the words are opened; what is wrapped deeper is
            shown as it is.
    """
    words = _inner(error) if isinstance(error, Mapping) else error
    wrapped = words if isinstance(words, Mapping) else _parsed(words)
    if wrapped is not None and wrappings > 0:
        return message_in(wrapped, wrappings - 1)
    return words if isinstance(words, str) else ""


def _inner(error: Mapping[str, Any]) -> object:
    for key in ("error", "message"):
        if error.get(key):
            return error[key]
    if len(error) == 1:
        (key, value), *_ = error.items()
        if isinstance(value, str):  # one version of the server used the words as the key
            return f"{key}: {value}"
    return ""


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
