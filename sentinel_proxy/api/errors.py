"""
Our errors as OpenAI's error bodies and the statuses that its SDKs expect.

The only module that knows which HTTP status a failure has for the caller. When several
providers failed, the caller gets the *best* news, not the last: what it can mend itself comes
first, then when to come back, then what broke.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from sentinel_proxy.api.headers import relayed
from sentinel_proxy.errors import BreakerOpen, CallerError, FailureKind, NoReply, UpstreamError
from sentinel_proxy.model import Call, Header, Headers, header
from sentinel_proxy.wire.json import dumps
from sentinel_proxy.wire.openai import error_body

MAX_RETRY_WAIT_SECONDS: Final = 30.0
"""A longer wait is not worth a caller's retry: the SDKs ignore or refuse waits above a minute or two."""

TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_RETRYABLE: Final = {408, 409, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """A complete error, ready to be sent."""

    status: int
    body: bytes
    headers: list[Header]
    code: str | None
    message: str
    type: str
    param: str | None = None


def error_type(status: int) -> str:
    """Return the `type` that OpenAI's error object has for *status*."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def answer(
    status: int,
    message: str,
    *,
    code: str | None = None,
    type: str | None = None,
    param: str | None = None,
    source: str = "proxy",
    retry_after: float | None = None,
    retry: bool | None = None,
    metadata: dict[str, Any] | None = None,
) -> ErrorAnswer:
    """
    Build an error with the headers that tell an SDK what to do next.

    Args:
        source: "proxy" if the error is ours, "upstream" if an upstream said so.
        retry_after: Seconds after which trying again makes sense; at least one is announced,
            because clients read a zero as "at once" or as nothing.
        retry: Whether a retry can help; by default what the status says.
    """
    type = type or error_type(status)
    wait = None if retry_after is None else max(1, math.ceil(retry_after))
    helps = (status in _RETRYABLE if retry is None else retry) and (wait or 0) <= MAX_RETRY_WAIT_SECONDS
    headers = [
        (b"content-type", b"application/json"),
        (b"x-sentinel-error-source", source.encode()),
        (b"x-should-retry", b"true" if helps else b"false"),
    ]
    if wait is not None and retry_after is not None:
        headers.append((b"retry-after", str(wait).encode()))
        headers.append((b"retry-after-ms", str(max(1000, math.ceil(retry_after * 1000))).encode()))
    body = dumps(error_body(message, type, param, code, metadata))
    return ErrorAnswer(status, body, headers, code, message, type, param)


def advice(status: int, headers: Headers) -> list[Header]:
    """Return what an SDK should be told beside an upstream's own error; its own advice stands."""
    told = [(b"x-sentinel-error-source", b"upstream")]
    if header(headers, b"x-should-retry") is None:
        told.append((b"x-should-retry", b"true" if status in _RETRYABLE else b"false"))
    return told


def of_caller(error: CallerError) -> ErrorAnswer:
    """The caller's own mistake, found by us."""
    return answer(error.status, error.message, code=error.code, param=error.param, retry=False)


def of_late_body() -> ErrorAnswer:
    """The request's body did not arrive in time (RFC 9110 §15.5.9: the connection is given up)."""
    late = answer(408, "the request body did not arrive in time", code="request_timeout")
    late.headers.append((b"connection", b"close"))
    return late


def of_mistake() -> ErrorAnswer:
    """A mistake of ours, or of a plugin."""
    message = "the proxy made a mistake; its log has more under this trace id"
    return answer(500, message, code="internal_error")


def of_shutdown() -> ErrorAnswer:
    """The proxy goes down before the call is done; another replica, or the next start, can serve it."""
    return answer(503, "the proxy is shutting down", code="proxy_draining", retry_after=1.0)


def of_no_reply(error: NoReply, call: Call) -> ErrorAnswer:
    """Nobody answered: pick the best news out of what everybody said."""
    news = News(error, call)
    return next(answer for rule in _RULES if (answer := rule(news)) is not None)


class News:
    """What came of a call, sorted for the rules below."""

    def __init__(self, error: NoReply, call: Call) -> None:
        self.failures = [failure for failure in error.failures if isinstance(failure, UpstreamError)]
        self.rests = [failure.retry_after for failure in error.failures if isinstance(failure, BreakerOpen)]
        self.too_late = error.deadline_exceeded
        self.sent = call.attempts > 0
        self.kinds = {failure.kind for failure in self.failures} - _UNSERVABLE
        attempts = [
            {
                "provider": attempt.provider,
                "result": attempt.result,
                "milliseconds": round(attempt.seconds * 1000),
            }
            for attempt in call.trail
        ]
        self.metadata: dict[str, Any] = {"attempts": attempts}

    @property
    def wait_seconds(self) -> float | None:
        """The shortest wait that an upstream asked for."""
        return min((f.retry_after for f in self.failures if f.retry_after is not None), default=None)

    @property
    def words(self) -> str:
        """What the upstreams said, each thing once."""
        return "; ".join(dict.fromkeys(failure.message for failure in self.failures))

    def only(self, *kinds: FailureKind) -> bool:
        """Whether everybody who could have served failed in one of these ways."""
        return not self.rests and bool(self.kinds) and self.kinds <= set(kinds)


def _callers_fault(news: News) -> ErrorAnswer | None:
    """What the caller can mend goes back as the upstream put it."""
    mine = [failure for failure in news.failures if failure.kind in _FOR_THE_CALLER]
    return _refusal(mine[0], news) if mine else None


def _unserved(news: News) -> ErrorAnswer | None:
    """Nobody can serve this at all: the first provider's word counts, it is the one that was meant."""
    if news.rests or news.kinds or not news.failures:
        return None
    return _refusal(news.failures[0], news)


def _too_late(news: News) -> ErrorAnswer | None:
    if not news.too_late:
        return None
    message = "the call's deadline passed before a provider answered"
    return answer(504, message, code="deadline_exceeded", retry=False, metadata=news.metadata)


def _all_resting(news: News) -> ErrorAnswer | None:
    if not news.rests:
        return None
    message = "all providers are unavailable; they are being left alone to recover"
    code = "all_providers_unavailable"
    return answer(503, message, code=code, retry_after=min(news.rests), metadata=news.metadata)


def _all_limiting(news: News) -> ErrorAnswer | None:
    if not news.only(FailureKind.THROTTLED):
        return None
    return answer(
        429,
        f"every provider is limiting our rate: {news.words}",
        code="rate_limit_exceeded",
        source="upstream",
        retry_after=news.wait_seconds or 1.0,
        metadata=news.metadata,
    )


def _all_full(news: News) -> ErrorAnswer | None:
    if not news.only(FailureKind.LOCAL, FailureKind.THROTTLED):
        return None
    message = "every provider has as many calls as it may have"
    return answer(503, message, code="proxy_overloaded", retry_after=1.0, metadata=news.metadata)


def _all_slow(news: News) -> ErrorAnswer | None:
    if not news.only(FailureKind.TIMEOUT, FailureKind.CONNECT_TIMEOUT):
        return None
    return answer(504, "no provider answered in time", code="upstream_timeout", metadata=news.metadata)


def _all_locked(news: News) -> ErrorAnswer | None:
    if not news.only(FailureKind.CREDENTIAL, FailureKind.QUOTA):
        return None
    if FailureKind.QUOTA in news.kinds:
        message = "the account at the provider has no quota left"
        return answer(503, message, code="provider_quota_exhausted", retry=False, metadata=news.metadata)
    message = "the provider refuses the proxy's own credential; the caller's key is not at fault"
    return answer(502, message, code="provider_auth_failed", retry=False, metadata=news.metadata)


def _unreachable(news: News) -> ErrorAnswer | None:
    if len(news.failures) != 1 or not news.only(FailureKind.CONNECT, FailureKind.CERTIFICATE):
        return None
    message = f"the provider cannot be reached: {news.words}"
    return answer(502, message, code="provider_unreachable", metadata=news.metadata)


def _all_failed(news: News) -> ErrorAnswer:
    if not news.failures:
        return answer(
            503, "no provider is configured for this", code="all_providers_unavailable", retry=False
        )
    return answer(
        502 if news.wait_seconds is None else 503,
        f"all providers failed: {news.words}",
        code="all_providers_failed",
        source="upstream",
        retry_after=news.wait_seconds,
        metadata=news.metadata,
    )


_FOR_THE_CALLER: Final = {FailureKind.CALLER, FailureKind.CONFLICT, FailureKind.CONTEXT_OVERFLOW}
_UNSERVABLE: Final = {FailureKind.UNSUPPORTED, FailureKind.MODEL_NOT_FOUND}

# First match wins: what the caller can mend, then when to come back, then what broke.
_RULES: Final[tuple[Callable[[News], ErrorAnswer | None], ...]] = (
    _callers_fault,
    _unserved,
    _too_late,
    _all_resting,
    _all_limiting,
    _all_full,
    _all_slow,
    _all_locked,
    _unreachable,
    _all_failed,
)


def _refusal(failure: UpstreamError, news: News) -> ErrorAnswer:
    """An upstream's refusal: its own bytes if they are OpenAI's shape, else its words in our envelope."""
    status = _status_for_caller(failure)
    plain = answer(
        status,
        failure.message,
        code=failure.code,
        type=failure.type,
        param=failure.param,
        source="upstream" if failure.status and news.sent else "proxy",
        retry=status in (408, 409),
        retry_after=failure.retry_after,
    )
    told = [*plain.headers, *relayed(failure.headers)]
    return replace(plain, headers=told, body=failure.body if failure.body is not None else plain.body)


def _status_for_caller(failure: UpstreamError) -> int:
    """Return what a refusal is to the caller; Ollama reports many of them as 500."""
    if failure.kind is FailureKind.MODEL_NOT_FOUND:
        return 404
    if failure.status is not None and 400 <= failure.status < 500:
        return failure.status
    return 400
