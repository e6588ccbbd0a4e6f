"""What chat and legacy completions have in common around the answer: time and counts."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sentinel_proxy.model import Usage

Native = Mapping[str, Any]
"""A JSON object as Ollama sent it."""

FINGERPRINT: Final = "fp_ollama"


def read_usage(native: Native) -> Usage:
    """Read token counts; Ollama leaves out those that are zero."""
    return Usage(_count(native.get("prompt_eval_count")), _count(native.get("eval_count")))


def usage_body(usage: Usage) -> dict[str, int]:
    """Return token counts in the form of chat and legacy completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def unix_seconds(stamp: object) -> int:
    """Read an RFC 3339 time, as precise as it likes; 0 if it is none, or before 1970."""
    if not isinstance(stamp, str):
        return 0
    try:
        moment = datetime.fromisoformat(stamp)
        return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError):
        return 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
