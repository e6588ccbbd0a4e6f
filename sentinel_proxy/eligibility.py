"""
Which providers may be asked for a call, as far as that is known before they are.

Pure decisions about one provider and one call; the order of the chain and everything about
breakers is `failover`'s. A provider that may not be asked is passed by: nothing is sent to it,
nothing is held against it, and the next one has its turn.
"""

import re
from typing import Final

from sentinel_proxy.errors import BreakerOpen, FailureKind, UpstreamError
from sentinel_proxy.model import Call, Endpoint
from sentinel_proxy.providers.base import Provider

_KEPT_ELSEWHERE: Final = ("previous_response_id", "conversation", "background")
"""Fields of a Responses call about what the provider itself keeps: nobody else knows the ids."""

_WINDOW: Final = re.compile(r"context (?:length|size|window)\D{0,30}(\d+)", re.IGNORECASE)
"""Where servers say how long their window is: "maximum context length is 8192 tokens"."""


def unfit(
    provider: Provider, call: Call, first: Provider, overflowed_tokens: int = 0
) -> UpstreamError | None:
    """
    Return why *provider* cannot serve *call*, or None if nothing is known against it.

    Args:
        first: Of the call's chain; its model is the one that is meant.
        overflowed_tokens: The largest context window that was too small for the call already.
    """
    if not provider.serves(call.endpoint):
        message = f"{provider.name} does not serve {call.endpoint.value}"
        return UpstreamError(FailureKind.UNSUPPORTED, message, code="unsupported_by_fallback")
    if not provider.can_authorize(call):
        message = f"the call brings no API key, and the proxy has none for {provider.name}"
        return UpstreamError(FailureKind.UNSUPPORTED, message, status=401, code="invalid_api_key")
    if (
        provider is not first
        and call.endpoint is Endpoint.EMBEDDINGS
        and _model(provider, call) != _model(first, call)
    ):
        message = (
            f"{provider.name} has another model: its vectors cannot be compared with those of {first.name}"
        )
        return UpstreamError(FailureKind.UNSUPPORTED, message, code="unsupported_by_fallback", param="model")
    if provider.context_window is not None and provider.context_window <= overflowed_tokens:
        message = f"the context window of {provider.name} is no larger"
        return UpstreamError(FailureKind.CONTEXT_OVERFLOW, message, code="context_length_exceeded")
    return None


def may_go_on(call: Call, failure: UpstreamError | BreakerOpen) -> bool:
    """Whether the next of the chain may be asked after *failure*."""
    if isinstance(failure, UpstreamError) and failure.kind is FailureKind.UNSUPPORTED:
        return True
    return not _tied(call) and (isinstance(failure, BreakerOpen) or failure.consequence.failover)


def overflowed_tokens(provider: Provider, failure: UpstreamError | BreakerOpen) -> int:
    """Return the window that *failure* says was too small; 0 if it says nothing of the kind."""
    if not isinstance(failure, UpstreamError) or failure.kind is not FailureKind.CONTEXT_OVERFLOW:
        return 0
    said = _WINDOW.search(failure.message)
    return provider.context_window or (int(said[1]) if said is not None else 0)


def _model(provider: Provider, call: Call) -> str:
    """Return which model *call* goes to; Ollama's default tag says nothing."""
    return provider.model_for(call.model).removesuffix(":latest")


def _tied(call: Call) -> bool:
    """Whether the call is about something that only the provider that made it can know."""
    return call.endpoint is Endpoint.RESPONSES and any(call.payload.get(name) for name in _KEPT_ELSEWHERE)
