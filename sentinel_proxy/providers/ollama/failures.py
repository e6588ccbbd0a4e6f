"""
What Ollama's failures mean.

The status says little: many mistakes in a request are answered with 500, and `/api/embed`
reports broken machinery as 400. So the words are read first. One table, first match wins; the
same table reads an error status, an error in a 200 and an error line in a stream.
"""

import re
from dataclasses import dataclass
from typing import Final

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Endpoint, ReplyHead
from sentinel_proxy.providers.ollama.words import message_in, presentable
from sentinel_proxy.wire.json import loads
from sentinel_proxy.wire.retry_after import retry_after_seconds

INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"

OVERFLOW_PARAMS: Final = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.EMBEDDINGS: "input",
    Endpoint.RESPONSES: "input",
}
"""The field that is too long, by what was asked for."""


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; a condition that is None matches everything."""

    kind: FailureKind
    code: str
    type: str = SERVER
    says: re.Pattern[str] | None = None
    statuses: frozenset[int] | None = None
    in_stream: bool = False  # matches an error that came without a status of its own, too
    json: bool | None = None  # whether the body is JSON
    endpoint: Endpoint | None = None

    def matches(self, status: int | None, message: str, json: bool, endpoint: Endpoint) -> bool:
        if status is None:
            right_status = self.statuses is None or self.in_stream
        else:
            right_status = self.statuses is None or status in self.statuses
        return (
            right_status
            and (self.says is None or self.says.search(message) is not None)
            and self.json in (None, json)
            and self.endpoint in (None, endpoint)
        )


def _status(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


_SERVER_ERRORS: Final = frozenset(range(500, 600))
_FROM_A_GATEWAY: Final = frozenset({502, *range(520, 531)})

TOO_LONG: Final = _words(
    "exceeds the available context size",
    "exceed_context_size_error",
    "longer than the context length",
    "input length exceeds the context length",
    "exceeds maximum context length",
)
CANNOT: Final = _words(
    "does not support (tools|thinking|vision|insert|chat|generate)",
    "is not supported for this model",
    "image input is not supported",
    "does not support image input",
    "missing data required for image input",
    "only supports one image",
)
OUR_MISTAKE: Final = _words(
    'option "[^"]*" must be',
    "cannot unmarshal",
    "illegal base64",
    "invalid format",
    "failed to parse grammar",
    "Jinja Exception",
    "no user query found",
    "template error",
    "invalid model name",
    "invalid think value",
    "top_logprobs must be",
    "invalid input type",
    "missing unit in duration",
)
BAD_OUTPUT: Final = _words(
    "error parsing tool call", "token repeat limit", "contains NaN", "unsupported value: NaN"
)
EMBEDDER_DOWN: Final = _words(
    "do embedding request", "unexpected server status", r"\bEOF\b", "connection refused"
)
NO_THINKING: Final = _words("does not support thinking")

TABLE: Final = (
    Row(FailureKind.CONTEXT_OVERFLOW, "context_length_exceeded", INVALID, TOO_LONG),
    Row(
        FailureKind.MODEL_NOT_FOUND,
        "model_not_found",
        INVALID,
        _words(r"\bmodel .{0,300}not found"),
        _status(404),
        in_stream=True,
        json=True,
    ),
    Row(FailureKind.UNSUPPORTED, "unsupported_by_fallback", INVALID, CANNOT),
    Row(FailureKind.UNSUPPORTED, "upstream_rejected_request", INVALID, OUR_MISTAKE),
    Row(FailureKind.BAD_OUTPUT, "upstream_bad_output", says=BAD_OUTPUT),
    Row(FailureKind.CREDENTIAL, "upstream_auth", statuses=_status(401)),
    Row(FailureKind.CREDENTIAL, "upstream_misconfigured", statuses=_status(403)),
    Row(FailureKind.QUOTA, "insufficient_quota", statuses=_status(402)),
    Row(FailureKind.PROTOCOL, "upstream_misconfigured", statuses=_status(404, 405)),
    Row(FailureKind.THROTTLED, "rate_limit_exceeded", "rate_limit_error", statuses=_status(429)),
    Row(FailureKind.OVERLOADED, "upstream_overloaded", statuses=_status(503)),
    Row(FailureKind.OVERLOADED, "upstream_overloaded", says=_words("server busy")),
    Row(FailureKind.TIMEOUT, "upstream_timeout", statuses=_status(408, 504)),
    Row(
        FailureKind.OVERLOADED,
        "upstream_error",
        says=EMBEDDER_DOWN,
        statuses=_status(400),
        endpoint=Endpoint.EMBEDDINGS,
    ),
    Row(FailureKind.CALLER, "upstream_rejected_request", INVALID, statuses=_status(400, 413, 422)),
    Row(FailureKind.GATEWAY, "upstream_error", statuses=_FROM_A_GATEWAY, json=False),
    Row(FailureKind.OVERLOADED, "upstream_error", statuses=_SERVER_ERRORS, in_stream=True),
    Row(FailureKind.PROTOCOL, "upstream_protocol_error"),
)


def classify(endpoint: Endpoint, status: int | None, said: str, *, json: bool = True) -> UpstreamError:
    """
    Name the failure behind Ollama's words.

    Args:
        status: None for an error that came inside a 200.
        said: As extracted by `message_in`; may be empty.
        json: Whether the words came as JSON, that is: from Ollama itself.
    """
    row = next(row for row in TABLE if row.matches(status, said, json, endpoint))
    param = {
        FailureKind.CONTEXT_OVERFLOW: OVERFLOW_PARAMS.get(endpoint),
        FailureKind.MODEL_NOT_FOUND: "model",
    }.get(row.kind)
    return UpstreamError(
        row.kind, presentable(said, status), status=status, code=row.code, type=row.type, param=param
    )


def of_answer(endpoint: Endpoint, head: ReplyHead, body: bytes, now_unix: float) -> UpstreamError:
    """Name the failure that a non-2xx answer means."""
    try:
        said, json = message_in(loads(body)), True
    except ValueError:
        said, json = body.decode("utf-8", "replace").strip(), False
    error = classify(endpoint, head.status, said, json=json)
    error.retry_after = retry_after_seconds(head.headers, now_unix)
    return error


def protocol(message: str) -> UpstreamError:
    """What came is not Ollama's API, or lacks what was asked for."""
    return UpstreamError(FailureKind.PROTOCOL, message, code="upstream_protocol_error", type=SERVER)


def incomplete() -> UpstreamError:
    """The answer ended before Ollama said that it was done."""
    message = "the upstream's answer ended before it was complete"
    return UpstreamError(FailureKind.TRUNCATED, message, code="upstream_incomplete", type=SERVER)


def empty() -> UpstreamError:
    """A complete answer with nothing in it."""
    return UpstreamError(
        FailureKind.EMPTY, "the upstream's answer is empty", code="upstream_empty_answer", type=SERVER
    )
