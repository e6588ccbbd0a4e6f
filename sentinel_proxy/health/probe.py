"""
One probe: a free request, and what its answer says.

Only what would fail a call as well is a failure: no connection, no answer in time, bytes that
are not HTTP, a server error. An answer of any other kind proves that somebody is there.
"""

from dataclasses import dataclass
from typing import Final

from sentinel_proxy.errors import FailureKind, UpstreamError, forget_frames
from sentinel_proxy.model import Headers, UpstreamRequest, Verdict
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wire.retry_after import retry_after_seconds

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""The largest public model list is below 1 MiB."""

_OURS: Final = FailureKind.LOCAL  # a limit of our own: it says nothing about the provider


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What came back, whatever it was."""

    verdict: Verdict
    what: str
    kind: FailureKind | None = None
    status: int | None = None
    retry_after: float | None = None  # seconds, of a 429
    body: bytes = b""  # of a 2xx
    error: UpstreamError | None = None  # why it failed


async def ask(
    upstream: Upstream, request: UpstreamRequest, until: float, now: float
) -> tuple[int, Headers, bytes]:
    """
    Send *request* and return status, headers and body of the answer.

    Raises:
        UpstreamError: There was none by *until* (monotonic seconds), or it broke.
    """
    connect_seconds = min(upstream.timeouts.connect, until - now)
    exchange = await upstream.transport.open(request, connect_seconds=connect_seconds, until=until)
    try:
        body = b""
        while data := await exchange.read(until):
            body += data
            if len(body) > MAX_BODY_BYTES:
                raise UpstreamError(FailureKind.PROTOCOL, "its answer has no end")
        return exchange.head.status, exchange.head.headers, body
    finally:
        exchange.close()


async def probe(upstream: Upstream, until: float, now: float) -> Answer:
    """Ask *upstream* for its health; the answer is here by *until* (monotonic seconds). Never raises ours."""
    try:
        status, headers, body = await ask(upstream, upstream.provider.probe(), until, now)
    except UpstreamError as error:
        forget_frames(error)
        verdict = Verdict.UNCLEAR if error.kind is _OURS else Verdict.FAILED
        return Answer(verdict, error.message, error.kind, error=error)
    return judged(upstream, status, headers, body)


def judged(upstream: Upstream, status: int, headers: Headers, body: bytes) -> Answer:
    """Say what an answer means; 4xx never means that the provider is down."""
    if 200 <= status < 300:
        return Answer(Verdict.PASSED, f"it answered {status}", status=status, body=body)
    what = f"it answered {status}"
    match status:
        case 401 if passes_callers_key(upstream):
            return Answer(Verdict.PASSED, "it answered, and wants the caller's key", status=status)
        case 401 | 403:
            return Answer(Verdict.UNCLEAR, what, FailureKind.CREDENTIAL, status)
        case 429:
            wait = retry_after_seconds(headers)
            return Answer(Verdict.UNCLEAR, what, FailureKind.THROTTLED, status, wait)
        case _ if status >= 500:
            error = UpstreamError(FailureKind.OVERLOADED, what, status=status)
            return Answer(Verdict.FAILED, what, error.kind, status, error=error)
    return Answer(Verdict.UNCLEAR, what, status=status)


def passes_callers_key(upstream: Upstream) -> bool:
    """Whether calls go there with the callers' own keys, so that a probe has none to show."""
    provider = upstream.provider
    return isinstance(provider, OpenAIProvider) and provider.passes_caller_key
