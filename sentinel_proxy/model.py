"""
The data that travels: calls, attempts, and what is sent to an upstream.

Plain records on the standard library. Header names are lower-case bytes and header lists
may hold a name more than once (RFC 9110 §5.3); nothing here joins them.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Final, NamedTuple

from sentinel_proxy.clock import utc_text
from sentinel_proxy.errors import FailureKind

Header = tuple[bytes, bytes]
Headers = Sequence[Header]


def header(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of *name* (lower-case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


class Endpoint(StrEnum):
    """What the caller asked for; a closed set, so it can be a metric's label."""

    CHAT = "chat.completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    PASSTHROUGH = "passthrough"


PATHS: dict[Endpoint, str] = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETIONS: "/completions",
    Endpoint.EMBEDDINGS: "/embeddings",
    Endpoint.RESPONSES: "/responses",
}


@dataclass(frozen=True, slots=True)
class Controls:
    """What a caller may say about one call, in `x-sentinel-*` request headers."""

    providers: tuple[str, ...] = ()  # these, in this order; empty: the configured chain
    no_failover: bool = False
    timeout_seconds: float | None = None  # for the whole call
    first_token_timeout_seconds: float | None = None
    rescue: str | None = None  # "continue" | "error"


NO_CONTROLS = Controls()


HEDGED: Final = "hedged"
"""How the trail names an attempt that was given up because another provider was quicker."""


@dataclass(slots=True)
class Attempt:
    """One try of one call at one provider, or the reason why it was passed by."""

    provider: str
    result: str  # "200", "503", "timeout", "open", "limited", ...: what the trail shows
    kind: FailureKind | None = None  # None: it answered, or was never tried
    sent: bool = True  # False: passed by, nothing was sent
    seconds: float = 0.0  # until it began to answer, or failed
    started: float = 0.0  # monotonic seconds
    model: str = ""  # that was asked, as the provider names it; "" where none is known

    @property
    def answered(self) -> bool:
        """Whether an answer began."""
        return self.sent and self.kind is None and self.result != HEDGED


@dataclass(slots=True, repr=False)
class Call:
    """
    One client request as we carry it.

    `body` is the JSON as received and `payload` the same, parsed once; `payload` is shared by
    all attempts, so nobody writes to it. Prompts live here: `repr` shows none of it.
    """

    trace_id: str
    endpoint: Endpoint
    body: bytes
    payload: Mapping[str, Any]
    model: str
    stream: bool
    started: float  # monotonic seconds
    deadline: float  # monotonic seconds: the end of the whole call, all attempts included
    headers: Headers = ()  # the caller's, as they came
    query: bytes = b""  # the caller's query string, without "?"
    traceparent: bytes | None = None  # of our span, to be sent on
    client: str | None = None  # name of the authenticated client, never its key
    controls: Controls = NO_CONTROLS
    trail: list[Attempt] = field(default_factory=list)
    given_up: list[Attempt] = field(default_factory=list)  # cut short when the call was: nobody's failure
    waited_seconds: float = 0.0  # of its life, spent waiting for others: upstreams, pauses, the caller's body
    retried_by_client: bool = False  # the SDK says that this is already its own retry

    @property
    def attempts(self) -> int:
        """How many attempts were sent upstream."""
        sent = 0
        for attempt in self.trail:
            sent += attempt.sent
        return sent

    @property
    def steps(self) -> list[str]:
        """Every attempt in order, as people read it: `openai:503`, `openai:timeout`, `ollama:200`."""
        return [f"{attempt.provider}:{attempt.result}" for attempt in self.trail]

    @property
    def answered_by(self) -> str | None:
        """The provider that began to answer last, if any did."""
        answered = (attempt.provider for attempt in reversed(self.trail) if attempt.answered)
        return next(answered, None)

    def __repr__(self) -> str:
        return f"<Call {self.trace_id} {self.endpoint.value} stream={self.stream}>"


@dataclass(frozen=True, slots=True)
class Span:
    """Our place in a distributed trace (W3C Trace Context 1, §3.2): one request, one span."""

    id: str  # ours, 16 hexadecimal digits
    parent_id: str | None  # of the caller's; None: the trace begins here
    flags: int  # as they are sent on, 0 to 255

    SAMPLED: ClassVar[int] = 1

    @property
    def sampled(self) -> bool:
        """Whether those who trace should keep it."""
        return bool(self.flags & self.SAMPLED)

    def traceparent(self, trace_id: str) -> bytes:
        """Return the header that makes others our children."""
        return f"00-{trace_id}-{self.id}-{self.flags:02x}".encode()


@dataclass(slots=True)
class Trace:
    """What is known of one HTTP request before anybody looked into it; lives in the ASGI scope."""

    SCOPE_KEY: ClassVar[str] = "sentinel_proxy.trace"

    trace_id: str
    started: float  # monotonic seconds
    traceparent: bytes | None = None  # of our span, to be sent on; None if there is none
    client: str | None = None  # name of the authenticated client, never its key
    headers: list[Header] = field(default_factory=list)  # to be added to whatever is answered
    answered: bool = False  # the head of an answer was sent
    span: Span | None = None  # None: the caller sent no traceparent, and nobody traces here


class UpstreamRequest(NamedTuple):
    """
    What one attempt sends, without its framing.

    Host, Content-Length, Transfer-Encoding, Connection and Expect belong to the transport;
    `headers` holds none of them.
    """

    method: str
    target: str  # path and query in origin-form, the base URL's path included
    headers: Headers
    body: bytes | AsyncIterator[bytes] = b""
    body_length: int | None = None  # of a streamed body, if known; else it is sent chunked
    lossy: tuple[str, ...] = ()  # fields of the call that this provider cannot honour

    @property
    def replayable(self) -> bool:
        """Whether the same bytes can be sent a second time."""
        return isinstance(self.body, bytes)

    def __repr__(self) -> str:
        return f"<UpstreamRequest {self.method} {self.target}>"


class ReplyHead(NamedTuple):
    """How an upstream's answer begins."""

    status: int
    headers: Headers  # names in lower case, as they came otherwise

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; "" if there is none."""
        value = header(self.headers, b"content-type") or b""
        return value.split(b";", 1)[0].strip().lower().decode("latin-1")


class Outcome(StrEnum):
    """How a call ended for its caller; a closed set, so it can be a metric's label."""

    SUCCESS = "success"  # a whole answer from the first of the chain
    FAILED_OVER = "failed_over"  # a whole answer from another one
    RESCUED = "rescued"  # a whole answer, the end of it from another one
    CALLER_ERROR = "caller_error"  # the request was wrong, and the caller was told so
    FAILURE = "failure"  # an error of ours or of every upstream
    TRUNCATED = "truncated"  # a part of an answer, and an honest error after it
    HUNG_UP = "hung_up"  # the caller did not wait for the end


@dataclass(slots=True)
class Usage:
    """Tokens as the upstream counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Load:
    """How busy this process is, and what it has refused because of that."""

    in_flight: int = 0  # calls being served
    open_streams: int = 0  # of these, streams that have begun
    shed: int = 0
    rate_limited: int = 0
    draining: bool = False  # nothing new is admitted; what runs may finish


@dataclass(slots=True)
class Feed:
    """The live event feed, counted."""

    subscribers: int = 0  # listening now
    dropped: int = 0  # events that a subscriber was too slow for


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of the live feed as it is sent."""

    id: str  # a ULID: sorts by time
    event_type: str
    text: str  # the whole JSON object


@dataclass(slots=True)
class StateHealth:
    """How the state that outlives a call is doing; what is kept in memory is always up."""

    kind: str = "memory"  # | "sqlite" | "redis"
    up: bool = True
    since: float | None = None  # Unix seconds; None: from the start
    errors: dict[str, int] = field(default_factory=lambda: {"read": 0, "write": 0})  # by operation


class Verdict(StrEnum):
    """What a probe says about a provider."""

    PASSED = "passed"
    FAILED = "failed"  # as a call would have failed there
    UNCLEAR = "unclear"  # something answers, but not with what was asked for


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How one probe ended."""

    provider: str
    at: float  # Unix seconds, when it ended
    seconds: float
    verdict: Verdict
    what: str  # for people: what was answered, or why it was not
    kind: FailureKind | None = None
    status: int | None = None  # of the answer, if there was one

    @property
    def ok(self) -> bool:
        """Whether it passed."""
        return self.verdict is Verdict.PASSED

    def public(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "time": utc_text(self.at),
            "ok": self.ok,
            "verdict": self.verdict.value,
            "latency_ms": round(self.seconds * 1000, 1),
            "what": self.what,
            "status": self.status,
        }


class Severity(StrEnum):
    """How much an incident should worry."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class IncidentType(StrEnum):
    """What an incident is about; a closed set, described in docs/incidents.md."""

    OUTAGE_DETECTED = "outage_detected"
    FAILOVER_TRIGGERED = "failover_triggered"
    PROVIDER_RECOVERED = "provider_recovered"
    STREAM_RESCUED = "stream_rescued"
    STREAM_TRUNCATED = "stream_truncated"
    BREAKER_ISOLATED = "breaker_isolated"
    CREDENTIAL_REFUSED = "credential_refused"
    QUOTA_EXHAUSTED = "quota_exhausted"
    RATE_LIMITED_UPSTREAM = "rate_limited_upstream"
    FALLBACK_MODEL_MISSING = "fallback_model_missing"
    NO_PROVIDER_ANSWERED = "no_provider_answered"


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident as of some moment; what is known of it later has the same `id`."""

    id: str  # a ULID: sorts by the time at which it began
    type: IncidentType
    severity: Severity
    provider: str | None
    timestamp: float  # Unix seconds, when it began
    message: str
    details: Mapping[str, Any]
    resolved_at: float | None  # Unix seconds; None while it lasts
    duration_seconds: float | None  # None while it lasts

    def public(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "id": self.id,
            "type": self.type.value,
            "severity": self.severity.value,
            "provider": self.provider,
            "timestamp": utc_text(self.timestamp),
            "message": self.message,
            "details": dict(self.details),
            "resolved_at": None if self.resolved_at is None else utc_text(self.resolved_at),
            "duration_seconds": self.duration_seconds,
        }
