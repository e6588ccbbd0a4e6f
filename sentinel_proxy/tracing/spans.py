"""
Finished calls become spans, under the ids that went upstream while they ran.

Whether a trace is kept is decided as a call begins, by the library's sampler, since the
`traceparent` that goes upstream tells it. Everything else happens afterwards and in memory;
sending is the work of a thread.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from sentinel_proxy import __version__
from sentinel_proxy.clock import Clock
from sentinel_proxy.events import Bus, CallFinished, Emit, Noticed
from sentinel_proxy.model import Attempt, Outcome, Span
from sentinel_proxy.tracing import words
from sentinel_proxy.tracing.export import Delivery, ended_in_time, resource

_ERROR: Final = Status(StatusCode.ERROR)


class PromisedIds(RandomIdGenerator):
    """Makes ids like any other, but for the next span, whose ids the upstream already knows."""

    def __init__(self) -> None:
        self._trace_id: int | None = None
        self._span_id: int | None = None

    def promise(self, trace_id: str, span_id: str) -> None:
        """Let the next span have these, hexadecimal."""
        self._trace_id, self._span_id = int(trace_id, 16), int(span_id, 16)

    def generate_trace_id(self) -> int:
        """Return the promised id, then random ones. Not asked where a trace is continued."""
        promised, self._trace_id = self._trace_id, None
        return promised if promised is not None else super().generate_trace_id()

    def generate_span_id(self) -> int:
        """Return the promised id, then random ones."""
        promised, self._span_id = self._span_id, None
        return promised if promised is not None else super().generate_span_id()


class Tracing:
    """
    Folds finished calls into spans. Lives in one thread, the event loop's.

    Args:
        exporters: Who gets the spans; shut down by `close`.
        emit: Told when spans stop arriving, and when they arrive again.
        sampler: By default the one that `OTEL_TRACES_SAMPLER` names, else whatever the caller's flag says.
        process: Stands between spans and an exporter; must not block.
    """

    def __init__(
        self,
        exporters: Sequence[SpanExporter],
        emit: Emit,
        clock: Clock,
        *,
        sampler: Sampler | None = None,
        process: Callable[[SpanExporter], SpanProcessor] = BatchSpanProcessor,
    ) -> None:
        self._ids = PromisedIds()
        self._spans = TracerProvider(
            sampler, resource(__version__), shutdown_on_exit=False, id_generator=self._ids
        )
        self._deliveries = [Delivery(exporter) for exporter in exporters]
        for delivery in self._deliveries:
            self._spans.add_span_processor(process(delivery))
        self._tracer = self._spans.get_tracer("sentinel_proxy", __version__)
        self._emit = emit
        self._clock = clock
        self._told_failing = False

    def __repr__(self) -> str:
        return f"<Tracing {self.sampler}>"

    @property
    def sampler(self) -> str:
        """How it is decided which traces are kept, as the library describes it."""
        return self._spans.sampler.get_description()

    def samples(self, trace_id: str, span: Span) -> bool:
        """Whether a trace is kept, given its id and our span with the flags as the caller sent them."""
        result = self._spans.sampler.should_sample(_parent(trace_id, span), int(trace_id, 16), "")
        return result.decision is Decision.RECORD_AND_SAMPLE

    def listen(self, bus: Bus) -> None:
        """Subscribe to the end of every call."""
        bus.subscribe(CallFinished, self._call_finished)

    def close(self) -> None:
        """Send what is left, for at most `export.CLOSE_SECONDS`. Blocks: for when nobody is served now."""
        if not ended_in_time(self._spans.shutdown):
            for delivery in self._deliveries:
                delivery.shutdown()
        self._tell_delivery()

    def _call_finished(self, event: CallFinished) -> None:
        if event.span is None or not event.span.sampled:
            return
        self._tell_delivery()
        ended = _nanoseconds(self._clock.time())
        began = ended - _nanoseconds(event.seconds)
        self._ids.promise(event.trace_id, event.span.id)
        span = self._tracer.start_span(
            words.call_name(event),
            _parent(event.trace_id, event.span),
            SpanKind.SERVER,
            words.of_call(event),
            start_time=began,
        )
        self._add_attempts(event, set_span_in_context(span, Context()), began, ended)
        if event.outcome in words.FAILED:
            span.set_status(_ERROR)
        span.end(ended)

    def _add_attempts(self, event: CallFinished, parent: Context, began: int, ended: int) -> None:
        """
        Make a child of every attempt; the call *began* and *ended* at these Unix nanoseconds.

        Counted in whole numbers from there: the seconds since 1970 are too many for a float to
        tell the end of an attempt from that of its call.
        """
        if event.call is None:
            return
        answered = [attempt for attempt in event.call.trail if attempt.answered]
        started = event.call.started
        for attempt, until, broke in _attempts(event):
            error = words.error_of(attempt, broke=broke)
            served_model = event.model if attempt in answered[-1:] else None
            span = self._tracer.start_span(
                words.attempt_name(attempt),
                parent,
                SpanKind.CLIENT,
                words.of_attempt(attempt, error, served_model),
                start_time=began + _nanoseconds(attempt.started - started),
            )
            if error is not None:
                span.set_status(_ERROR)
            span.end(min(began + _nanoseconds(until - started), ended))

    def _tell_delivery(self) -> None:
        """Report from the event loop what the sending threads have found out."""
        failing = any(delivery.failing for delivery in self._deliveries)
        if failing is self._told_failing:
            return
        self._told_failing = failing
        details = {"lost_spans": sum(delivery.lost for delivery in self._deliveries)}
        if failing:
            self._emit(Noticed("warning", "traces do not arrive", details))
        else:
            self._emit(Noticed("info", "traces arrive again", details))


def _attempts(event: CallFinished) -> Iterator[tuple[Attempt, float, bool]]:
    """
    Yield every attempt that was sent, until when it lasted (monotonic), and whether its answer broke off.

    An answer lasts until the call is over, or until another begins to go on where it broke off.
    """
    call = event.call
    assert call is not None
    sent = [attempt for attempt in call.trail if attempt.sent]
    for position, attempt in enumerate(sent):
        settled = attempt.started + attempt.seconds
        if not attempt.answered:
            yield attempt, settled, False
            continue
        later = (other.started for other in (*sent[position + 1 :], *call.given_up))
        taken_over = min((started for started in later if started >= settled), default=None)
        if taken_over is not None:
            yield attempt, taken_over, True
        else:
            yield attempt, call.started + event.seconds, event.outcome is Outcome.TRUNCATED
    for attempt in call.given_up:
        yield attempt, attempt.started + attempt.seconds, False


def _parent(trace_id: str, span: Span) -> Context:
    """Return the caller's span as the library wants it; an empty context where a trace begins."""
    if span.parent_id is None:
        return Context()
    caller = SpanContext(int(trace_id, 16), int(span.parent_id, 16), True, TraceFlags(span.flags))
    return set_span_in_context(NonRecordingSpan(caller), Context())


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
