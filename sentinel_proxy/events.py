"""
The facts the core reports, and the bus that carries them.

Past tense, frozen, no behaviour. Whoever wants to know (log, metrics, incidents, dashboard)
subscribes; the core never logs, counts or stores. Emitting is synchronous, cannot fail and
must not block, so listeners only note things down.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_args

from sentinel_proxy.errors import FailureKind
from sentinel_proxy.model import Call, Endpoint, Incident, Outcome, ProbeResult, Span, Usage


class AttemptFailed(NamedTuple):
    """One attempt at one provider failed; what follows is told by later events."""

    trace_id: str
    provider: str
    model: str
    kind: FailureKind
    label: str  # as in the trail: "503", "timeout"
    message: str
    seconds: float


class CallRetried(NamedTuple):
    """The same provider will be tried once more, after a pause."""

    trace_id: str
    provider: str
    pause_seconds: float


class CallFailedOver(NamedTuple):
    """A provider other than the first of the chain began to answer."""

    trace_id: str
    source: str  # the first provider of the chain that failed or was passed by
    target: str
    reason: str  # how the source's last attempt is named in the trail


class CallHedged(NamedTuple):
    """A stream was slow to begin, so another provider was asked as well; it is settled who answers."""

    trace_id: str
    source: str  # who was slow
    target: str
    winner: str  # one of the two; "" if neither answered
    after_seconds: float  # of silence


class StreamRescued(NamedTuple):
    """A stream that broke after its first token was carried on elsewhere, or could not be."""

    trace_id: str
    source: str
    target: str  # "" if nobody could continue
    method: str  # "prefill" | "instruct" | ""
    result: str  # "continued" | "failed"
    at_chars: int  # how much of the answer the caller had


class BreakerChanged(NamedTuple):
    """A breaker moved from one state to another."""

    provider: str
    model: str | None  # None: the provider's own breaker
    before: str  # "closed" | "open" | "half_open" | "isolated"
    after: str
    reason: str
    rest_seconds: float  # how long it will rest, 0 unless it is open now
    moved_by: str | None = None  # another replica, if it was moved there and we follow


class CallFinished(NamedTuple):
    """A call is over: its caller has the answer, an error, or is gone."""

    trace_id: str
    endpoint: Endpoint
    call: Call | None  # None: the request was so wrong that it never became a call
    outcome: Outcome
    status: int  # what the caller got; 499 if it hung up
    provider: str | None
    model: str | None
    seconds: float
    overhead_seconds: float
    first_token_seconds: float | None  # from the start of the call
    usage: Usage | None
    error_code: str | None = None
    span: Span | None = None  # None: neither the caller nor we trace


class Noticed(NamedTuple):
    """Something about the process itself that an operator should read."""

    level: str  # "info" | "warning" | "error"
    message: str
    details: dict[str, Any]


class ProbeFinished(NamedTuple):
    """A provider was asked for its health."""

    result: ProbeResult
    told_by: str | None = None  # another replica, if it was that which asked


class MappedModelsChecked(NamedTuple):
    """A fallback was found to lack models that calls would be sent to there, or to have them again."""

    provider: str
    missing: tuple[str, ...]  # as the provider knows them; empty: all are there
    told_by: str | None = None  # another replica, if it was that which asked


class HealthChecked(NamedTuple):
    """A round of probes is over."""

    probed: int  # how many providers were asked; the others have just answered a call
    seconds: float


class IncidentChanged(NamedTuple):
    """An incident began, is known better, or is over."""

    change: str  # "opened" | "updated" | "resolved"
    incident: Incident


Event = (
    AttemptFailed
    | CallRetried
    | CallFailedOver
    | CallHedged
    | StreamRescued
    | BreakerChanged
    | CallFinished
    | Noticed
    | ProbeFinished
    | MappedModelsChecked
    | HealthChecked
    | IncidentChanged
)
Emit = Callable[[Event], None]
E_ = TypeVar("E_")


class Bus:
    """Hands each event to the listeners of its type, in the order in which they subscribed."""

    def __init__(self) -> None:
        self._listeners: dict[type, tuple[Callable[[Any], None], ...]] = {}
        self.errors = 0

    def subscribe(self, kind: type[E_], listener: Callable[[E_], None]) -> None:
        """Call *listener* with every later event of exactly this *kind*."""
        self._listeners[kind] = (*self._listeners.get(kind, ()), listener)

    def subscribe_all(self, listener: Callable[[Event], None]) -> None:
        """Call *listener* with every later event of any kind."""
        for kind in get_args(Event):
            self.subscribe(kind, listener)

    def emit(self, event: Event) -> None:
        """Tell everybody. A listener that raises is counted in `errors` and harms nobody."""
        for listener in self._listeners.get(type(event), ()):
            try:
                listener(event)
            except Exception:
                self.errors += 1
