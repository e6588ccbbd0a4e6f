"""
How long we wait: one deadline for the call, and the waits of an attempt inside it.

Every limit is a wall-clock limit: a byte now and then does not extend it. The waits are
those of failure-semantics of LLM APIs: a connection, the first token that means something,
silence on the wire, and a wire that is alive but says nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from sentinel_proxy.config import TimeoutsConfig
from sentinel_proxy.model import Call

FINISH_GRACE_SECONDS: Final = 5.0
"""After the last finish reason only usage and the terminator may follow; nobody waits longer for them."""

_REASONING_MODEL: Final = re.compile(
    r"(^|[/:_-])(o[1-9]|gpt-5|gpt-oss|deepseek-r|qwq|qwen3|magistral)|reason|think", re.IGNORECASE
)
_LONGEST_NAME: Final = 256  # characters; of a longer one, which no model has, the end counts


@dataclass(frozen=True, slots=True)
class Patience:
    """The waits of one attempt, in seconds from its start or from the last sign of life."""

    connect: float
    begin: float  # to the first token of a stream, or to the complete answer of any other call
    idle: float
    progress: float


def reasons(payload: Mapping[str, Any], model: str) -> bool:
    """Whether a long silence before the first token is normal: the request or the model reasons."""
    effort = payload.get("reasoning_effort")
    reasoning = payload.get("reasoning")
    if effort is None and isinstance(reasoning, dict):
        effort = reasoning.get("effort")
    if isinstance(effort, str):
        return effort not in ("none", "minimal")
    return reasoning is not None or _is_named_so(model[-_LONGEST_NAME:])


@lru_cache(maxsize=1024)
def _is_named_so(model: str) -> bool:
    """Whether a model's name says that it reasons; remembered, for there are few names and many calls."""
    return _REASONING_MODEL.search(model) is not None


class Waits:
    """How patient we are with one provider, by what is asked of it."""

    __slots__ = ("_stream", "_stream_reasoning", "_whole", "_whole_reasoning")

    def __init__(self, timeouts: TimeoutsConfig) -> None:
        self._stream = Patience(timeouts.connect, timeouts.first_token, timeouts.idle, timeouts.progress)
        self._stream_reasoning = replace(self._stream, begin=timeouts.first_token_reasoning)
        self._whole = replace(self._stream, begin=timeouts.answer)
        self._whole_reasoning = replace(self._stream, begin=timeouts.total)

    def of(self, call: Call, model: str) -> Patience:
        """Return the waits of an attempt of *call*, which goes to *model* there."""
        if not call.stream:
            return self._whole_reasoning if reasons(call.payload, model) else self._whole
        if (wanted_seconds := call.controls.first_token_timeout_seconds) is not None:
            return replace(self._stream, begin=wanted_seconds)
        return self._stream_reasoning if reasons(call.payload, model) else self._stream


def overridden(timeouts: TimeoutsConfig, overrides: Mapping[str, float]) -> TimeoutsConfig:
    """Return *timeouts* with a provider's own values in place."""
    return timeouts.model_copy(update=dict(overrides)) if overrides else timeouts
