"""
How calls and attempts are named to those who read traces; OpenTelemetry itself is not needed.

Names follow its semantic conventions for generative AI where they have one, and begin with
`sentinel.` where not. Everything is chosen field by field: prompts, answers, keys and addresses
have no way in. `server.address` is left out on purpose, since an upstream's URL may be a secret
and its name says enough. The conventions still move; all their names stand in this one module.

Sources:
    https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ (inference, embeddings),
    https://opentelemetry.io/docs/specs/semconv/gen-ai/openai/ (`openai.api.type`),
    https://opentelemetry.io/docs/specs/semconv/http/http-spans/ (status of a server's span).
"""

from collections.abc import Mapping
from typing import Final

from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import CallFinished
from sentinel_proxy.model import Attempt, Call, Endpoint, Outcome

Value = str | int | float | bool | list[str]
Attributes = Mapping[str, Value]

MAX_MODEL_CHARS: Final = 128
"""A model's name is whatever a caller writes; real ones are shorter than this."""

_OPERATIONS: Final = {
    Endpoint.CHAT: "chat",
    Endpoint.RESPONSES: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.EMBEDDINGS: "embeddings",
}
_API_TYPES: Final = {Endpoint.CHAT: "chat_completions", Endpoint.RESPONSES: "responses"}

FAILED: Final = {Outcome.FAILURE, Outcome.TRUNCATED}
"""What makes a call's span an error; a caller's own mistake does not, as for any HTTP server."""

_NOT_SERVED: Final = FAILED | {Outcome.CALLER_ERROR}


def call_name(event: CallFinished) -> str:
    """Return the name of a call's span: `chat gpt-4o-mini`."""
    operation = _OPERATIONS.get(event.endpoint, event.endpoint.value)
    model = _requested(event.call)
    return f"{operation} {model}" if model else operation


def of_call(event: CallFinished) -> Attributes:
    """Return what is told of a call: the one inference that its caller sees, however often it was tried."""
    call, usage = event.call, event.usage
    told: dict[str, Value | None] = {
        "gen_ai.operation.name": _OPERATIONS.get(event.endpoint),
        "openai.api.type": _API_TYPES.get(event.endpoint),
        "gen_ai.provider.name": event.provider or (_last_asked(call) if call is not None else None),
        "gen_ai.request.model": _requested(call),
        "gen_ai.response.model": _short(event.model),
        "gen_ai.usage.input_tokens": usage.prompt_tokens if usage is not None else None,
        "gen_ai.usage.output_tokens": usage.completion_tokens if usage is not None else None,
        "http.response.status_code": event.status,
        "error.type": (event.error_code or str(event.status)) if event.outcome in _NOT_SERVED else None,
        "sentinel.outcome": event.outcome.value,
        "sentinel.overhead_seconds": event.overhead_seconds,
    }
    if call is not None:
        told["sentinel.client"] = call.client
        told["sentinel.trail"] = call.steps
        if call.stream and event.endpoint in _OPERATIONS:
            told["gen_ai.request.stream"] = True
            told["gen_ai.response.time_to_first_chunk"] = event.first_token_seconds
    return _known(told)


def attempt_name(attempt: Attempt) -> str:
    """Return the name of an attempt's span: `attempt openai`."""
    return f"attempt {attempt.provider}"


def of_attempt(attempt: Attempt, error: str | None, served_model: str | None) -> Attributes:
    """
    Return what is told of an attempt.

    It has no operation and no tokens: whoever adds those up would count one inference twice.

    Args:
        error: What went wrong with it, None if nothing did.
        served_model: The model that answered, as the upstream names it, if this attempt's did.
    """
    return _known(
        {
            "gen_ai.provider.name": attempt.provider,
            "gen_ai.request.model": _short(attempt.model),
            "gen_ai.response.model": _short(served_model),
            "http.response.status_code": _status(attempt),
            "error.type": error,
            "sentinel.result": attempt.result,
        }
    )


def error_of(attempt: Attempt, *, broke: bool) -> str | None:
    """
    Return what went wrong with an attempt, None if nothing did.

    Args:
        broke: Its answer began, and ended before it was complete.
    """
    if attempt.kind is not None:
        return attempt.kind.value
    if broke:
        return FailureKind.TRUNCATED.value
    status = _status(attempt)
    return str(status) if status is not None and status >= 400 else None


def _known(told: Mapping[str, Value | None]) -> Attributes:
    return {name: value for name, value in told.items() if value is not None}


def _status(attempt: Attempt) -> int | None:
    return int(attempt.result) if attempt.result.isdigit() else None


def _last_asked(call: Call) -> str | None:
    asked = [*call.trail, *call.given_up]
    return asked[-1].provider if asked else None


def _requested(call: Call | None) -> str | None:
    return _short(call.model) if call is not None else None


def _short(model: str | None) -> str | None:
    return model[:MAX_MODEL_CHARS] if model else None
