"""
Metrics: the events folded into Prometheus series.

`SERIES` is every metric there is; docs/metrics.md lists the same, and a test holds them equal.
Counters and histograms grow with events. What can simply be looked up (calls in flight, breakers)
is read when somebody scrapes, and told to siblings once a second. Both stand in `board.Numbers`,
so whichever worker is scraped tells the truth of all; prometheus-client writes it down.

Label values come from configured or closed sets alone: what callers and upstreams invent is
`other`, what does not apply is `none`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from operator import add
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sentinel_proxy.board import Counter, Histogram, Numbers
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFailedOver,
    CallFinished,
    CallHedged,
    CallRetried,
    IncidentChanged,
    ProbeFinished,
    StreamRescued,
)
from sentinel_proxy.model import HEDGED, Endpoint, Feed, IncidentType, Load, Outcome, StateHealth
from sentinel_proxy.resilience.breaker import State

NONE: Final = "none"
OTHER: Final = "other"
ANSWERED: Final = "answered"
_BETWEEN: Final = "\x1f"  # a name and its labels, in a key


@dataclass(frozen=True, slots=True)
class Series:
    """One metric: what it is called and what it tells."""

    name: str
    kind: str  # "counter" | "gauge" | "histogram"
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    def key(self, labels: Sequence[str]) -> str:
        """Return the key of its numbers with these *labels*."""
        return _BETWEEN.join((self.name, *labels))


# Answers of language models take from tenths of a second to many minutes.
_ANSWER_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TOKEN_SECONDS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300)
_OWN_SECONDS: Final = (0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.05, 0.1)
_PROBE_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_OUTAGE_SECONDS: Final = (5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14_400, 86_400)

REQUESTS: Final = Series(
    "sentinel_requests_total",
    "counter",
    ("endpoint", "provider", "outcome"),
    "Calls that are over, by who answered and how they ended for the caller.",
)
REQUEST_DURATION: Final = Series(
    "sentinel_request_duration_seconds",
    "histogram",
    ("endpoint", "provider"),
    "From the head of a request to the end of its answer.",
    _ANSWER_SECONDS,
)
OVERHEAD: Final = Series(
    "sentinel_overhead_seconds",
    "histogram",
    ("endpoint",),
    "Time of a call that was spent in the proxy itself, not waiting for others.",
    _OWN_SECONDS,
)
FIRST_TOKEN: Final = Series(
    "sentinel_time_to_first_token_seconds",
    "histogram",
    ("provider",),
    "From the head of a streaming request to the first token that means something.",
    _TOKEN_SECONDS,
)
ATTEMPTS: Final = Series(
    "sentinel_attempts_total",
    "counter",
    ("provider", "result"),
    "Attempts that were sent: answered, given up for a quicker one, or the kind of failure.",
)
RETRIES: Final = Series(
    "sentinel_retries_total", "counter", ("provider",), "Further attempts of a call at the same provider."
)
FAILOVERS: Final = Series(
    "sentinel_failovers_total",
    "counter",
    ("source", "target", "reason"),
    "Calls that another than the first of their chain began to answer.",
)
RESCUES: Final = Series(
    "sentinel_rescues_total",
    "counter",
    ("source", "target", "result"),
    "Streams that broke after their first token: continued elsewhere, or failed to be.",
)
TRUNCATED: Final = Series(
    "sentinel_truncated_streams_total",
    "counter",
    ("provider",),
    "Answers that ended in an error after a part of them was sent.",
)
BREAKER_STATE: Final = Series(
    "sentinel_breaker_state",
    "gauge",
    ("provider",),
    "The provider's worst breaker: 0 closed, 1 half-open, 2 open or isolated.",
)
BREAKER_TRANSITIONS: Final = Series(
    "sentinel_breaker_transitions_total",
    "counter",
    ("provider", "state"),
    "How often a breaker of the provider, or of a model there, came into a state.",
)
PROVIDER_UP: Final = Series(
    "sentinel_provider_up", "gauge", ("provider",), "1 while calls may go there, 0 while they may not."
)
PROBE_DURATION: Final = Series(
    "sentinel_probe_duration_seconds",
    "histogram",
    ("provider",),
    "How long health probes took, whatever they said.",
    _PROBE_SECONDS,
)
INCIDENTS: Final = Series(
    "sentinel_incidents_total",
    "counter",
    ("type", "provider"),
    "Incidents that were opened; one that several replicas see, once.",
)
OUTAGE_DURATION: Final = Series(
    "sentinel_outage_duration_seconds",
    "histogram",
    ("provider",),
    "Time to recover: from the opening of a breaker to the trial that closed it.",
    _OUTAGE_SECONDS,
)
TOKENS: Final = Series(
    "sentinel_tokens_total", "counter", ("provider", "kind"), "Tokens as the upstreams counted them."
)
IN_FLIGHT: Final = Series("sentinel_in_flight_requests", "gauge", (), "Calls that are being served.")
OPEN_STREAMS: Final = Series(
    "sentinel_open_streams", "gauge", (), "Of these, streams that are open to their callers."
)
SHED: Final = Series(
    "sentinel_shed_total", "counter", (), "Calls refused because as many as allowed were being served."
)
RATE_LIMITED: Final = Series(
    "sentinel_rate_limited_total", "counter", (), "Calls refused because their client had made too many."
)
EVENT_SUBSCRIBERS: Final = Series(
    "sentinel_event_subscribers", "gauge", (), "Who listens to the live event feed."
)
EVENTS_DROPPED: Final = Series(
    "sentinel_events_dropped_total", "counter", (), "Events that a subscriber was too slow for."
)
STATE_UP: Final = Series(
    "sentinel_state_up", "gauge", (), "1 while the state store answers; memory always does."
)
STATE_ERRORS: Final = Series(
    "sentinel_state_errors_total", "counter", ("operation",), "Operations of the state store that failed."
)

SERIES: Final = (
    REQUESTS,
    REQUEST_DURATION,
    OVERHEAD,
    FIRST_TOKEN,
    ATTEMPTS,
    RETRIES,
    FAILOVERS,
    RESCUES,
    TRUNCATED,
    BREAKER_STATE,
    BREAKER_TRANSITIONS,
    PROVIDER_UP,
    PROBE_DURATION,
    INCIDENTS,
    OUTAGE_DURATION,
    TOKENS,
    IN_FLIGHT,
    OPEN_STREAMS,
    SHED,
    RATE_LIMITED,
    EVENT_SUBSCRIBERS,
    EVENTS_DROPPED,
    STATE_UP,
    STATE_ERRORS,
)

_KINDS: Final = {series.name: series.kind for series in SERIES}

# What is true of all workers together; other gauges are sums.
FOLDS: Final[Mapping[str, Callable[[float, float], float]]] = {
    BREAKER_STATE.name: max,
    PROVIDER_UP.name: max,
    STATE_UP.name: min,
}

STATE_VALUES: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2, State.ISOLATED: 2}

# How a trail can name what went wrong: a kind, a status, or why nothing was sent.
REASONS: Final = frozenset(
    (
        *(kind.value for kind in FailureKind),
        *(str(status.value) for status in HTTPStatus if status >= 300),
        *map(str, range(520, 531)),  # of CDNs
        "open",
        "limited",
        HEDGED,
        "timeout",
        "unknown",
    )
)

# Found once: of its class, Python 3.11 finds a member by a detour.
_RESCUED: Final = Outcome.RESCUED
_TRUNCATED: Final = Outcome.TRUNCATED

_GOOD: Final = frozenset((Outcome.SUCCESS, Outcome.FAILED_OVER, Outcome.RESCUED))
_BAD: Final = frozenset((Outcome.FAILURE, Outcome.TRUNCATED))


@dataclass(slots=True)
class Totals:
    """The few numbers that people ask for first."""

    requests: int = 0
    successes: int = 0  # whole answers, whoever gave them
    failures: int = 0  # errors of ours or of every upstream, and answers that broke off
    failovers: int = 0
    rescues: int = 0  # streams that broke off and were carried on to a good end
    hedges: int = 0  # streams that were slow to begin, so that another provider was asked too
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # that the successes took, summed

    @property
    def average_latency_ms(self) -> float | None:
        """Mean time of a successful call; None before there was one."""
        return round(self.seconds * 1000 / self.successes, 1) if self.successes else None


class _CallSeries:
    """What one call adds to, found once for its endpoint and provider."""

    __slots__ = ("completion", "duration", "first_token", "outcomes", "overhead", "prompt")

    def __init__(self, metrics: "Metrics", endpoint: Endpoint, provider: str) -> None:
        self.duration = metrics.request_duration.labels(endpoint.value, provider)
        self.overhead = metrics.overhead.labels(endpoint.value)
        self.first_token = metrics.first_token.labels(provider) if provider != NONE else None
        self.prompt = metrics.tokens.labels(provider, "prompt") if provider != NONE else None
        self.completion = metrics.tokens.labels(provider, "completion") if provider != NONE else None
        self.outcomes = {
            outcome: metrics.requests.labels(endpoint.value, provider, outcome.value) for outcome in Outcome
        }


Kind = TypeVar("Kind", Counter, Histogram)


class Labelled(Generic[Kind]):
    """A series of counters or histograms: one for each of its label values."""

    def __init__(self, series: Series, make: Callable[[str], Kind]) -> None:
        self._series = series
        self._make: Callable[[str], Kind] = make
        self._made: dict[tuple[str, ...], Kind] = {}

    def labels(self, *values: str) -> Kind:
        """Return the one with these label values; there from now on."""
        made = self._made.get(values)
        if made is None:
            made = self._made[values] = self._make(self._series.key(values))
        return made


class Metrics:
    """
    Every series of one process, and with siblings on a board the sum of all.

    Args:
        providers: The names of the chain: the label values there are.
        numbers: Where they are counted.
    """

    def __init__(self, providers: Sequence[str], numbers: Numbers | None = None) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Everybody(self))
        self.numbers = numbers if numbers is not None else Numbers()
        self.totals = Totals()
        self._live: Live | None = None
        self._providers: frozenset[str] = frozenset()
        self._answered: dict[str, Counter] = {}
        self._calls: dict[tuple[Endpoint, str | None], _CallSeries] = {}
        self.requests = self._counter(REQUESTS)
        self.request_duration = self._histogram(REQUEST_DURATION)
        self.overhead = self._histogram(OVERHEAD)
        self.first_token = self._histogram(FIRST_TOKEN)
        self.attempts = self._counter(ATTEMPTS)
        self.retries = self._counter(RETRIES)
        self.failovers = self._counter(FAILOVERS)
        self.rescues = self._counter(RESCUES)
        self.truncated = self._counter(TRUNCATED)
        self.breaker_transitions = self._counter(BREAKER_TRANSITIONS)
        self.probe_duration = self._histogram(PROBE_DURATION)
        self.incidents = self._counter(INCIDENTS)
        self.outage_duration = self._histogram(OUTAGE_DURATION)
        self.tokens = self._counter(TOKENS)
        self.know(providers)

    def __repr__(self) -> str:
        return f"<Metrics of {self.totals.requests} calls>"

    def _counter(self, series: Series) -> Labelled[Counter]:
        return Labelled(series, lambda key: Counter(self.numbers, key))

    def _histogram(self, series: Series) -> Labelled[Histogram]:
        return Labelled(series, lambda key: Histogram(self.numbers, key, series.buckets))

    def know(self, providers: Sequence[str]) -> None:
        """Count these by name from now on, beside those known before: their series go on."""
        new = [name for name in providers if name not in self._providers]
        self._providers |= frozenset(new)
        self._answered |= {name: self.attempts.labels(name, ANSWERED) for name in new}
        self._calls.clear()
        self._begin_at_zero(new)

    def _begin_at_zero(self, providers: Iterable[str]) -> None:
        """Show what an alert may watch before it first happens: from nothing to 1 is no increase."""
        for provider in providers:
            self.outage_duration.labels(provider)
            for counter in (self.retries, self.truncated):
                counter.labels(provider)
            for state in State:
                self.breaker_transitions.labels(provider, state.value)
            for type in IncidentType:
                if type is not IncidentType.NO_PROVIDER_ANSWERED:
                    self.incidents.labels(type.value, provider)
        self.incidents.labels(IncidentType.NO_PROVIDER_ANSWERED.value, NONE)

    def read_live(self, live: "Live") -> None:
        """Read the rest from *live*; call once."""
        self._live = live
        self.publish()

    def publish(self) -> None:
        """Note what is looked up, as of now: siblings are asked too, and they know only what was noted."""
        if self._live is not None:
            self._live.note(self.numbers)

    def listen(self, bus: Bus) -> None:
        """Count everything that *bus* carries from now on."""
        bus.subscribe(CallFinished, self._call_finished)
        bus.subscribe(AttemptFailed, self._attempt_failed)
        bus.subscribe(CallRetried, self._retried)
        bus.subscribe(CallFailedOver, self._failed_over)
        bus.subscribe(CallHedged, self._hedged)
        bus.subscribe(StreamRescued, self._rescued)
        bus.subscribe(BreakerChanged, self._breaker_changed)
        bus.subscribe(ProbeFinished, self._probed)
        bus.subscribe(IncidentChanged, self._incident_changed)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """
        Return every series as text, and its content type.

        Args:
            accept: The scraper's `Accept` header, which may ask for OpenMetrics; may be "".
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _provider(self, name: str | None) -> str:
        """Return *name* as a label value."""
        return (name if name in self._providers else OTHER) if name else NONE

    def _call_finished(self, event: CallFinished) -> None:
        call, outcome, usage = event.call, event.outcome, event.usage
        provider, seconds = event.provider, event.seconds
        if provider is None and call is not None:
            provider = call.answered_by
        series = self._calls.get((event.endpoint, provider))
        if series is None:
            series = self._calls_of(event.endpoint, self._provider(provider))
        series.outcomes[outcome].inc()
        series.duration.observe(seconds)
        series.overhead.observe(event.overhead_seconds)
        if call is not None:
            for attempt in call.trail:
                if attempt.answered:
                    (self._answered.get(attempt.provider) or self.attempts.labels(OTHER, ANSWERED)).inc()
                elif attempt.result == HEDGED:
                    self.attempts.labels(self._provider(attempt.provider), HEDGED).inc()
            if call.stream and event.first_token_seconds is not None and series.first_token is not None:
                series.first_token.observe(event.first_token_seconds)
        if usage is not None and series.prompt is not None and series.completion is not None:
            prompt, completion = usage.prompt_tokens, usage.completion_tokens
            series.prompt.inc(prompt)
            series.completion.inc(completion)
            self.totals.prompt_tokens += prompt
            self.totals.completion_tokens += completion
        if outcome is _TRUNCATED:
            self.truncated.labels(self._provider(provider)).inc()
        self._add_to_totals(outcome, seconds)

    def _calls_of(self, endpoint: Endpoint, provider: str) -> _CallSeries:
        key = (endpoint, None if provider == NONE else provider)
        if key not in self._calls:
            self._calls[key] = _CallSeries(self, endpoint, provider)
        return self._calls[key]

    def _add_to_totals(self, outcome: Outcome, seconds: float) -> None:
        totals = self.totals
        totals.requests += 1
        if outcome in _GOOD:
            totals.successes += 1
            totals.seconds += seconds
            totals.rescues += outcome is _RESCUED
        elif outcome in _BAD:
            totals.failures += 1

    def _attempt_failed(self, event: AttemptFailed) -> None:
        self.attempts.labels(self._provider(event.provider), event.kind.value).inc()

    def _retried(self, event: CallRetried) -> None:
        self.retries.labels(self._provider(event.provider)).inc()

    def _failed_over(self, event: CallFailedOver) -> None:
        reason = event.reason if event.reason in REASONS else OTHER
        self.failovers.labels(self._provider(event.source), self._provider(event.target), reason).inc()
        self.totals.failovers += 1

    def _hedged(self, _: CallHedged) -> None:
        self.totals.hedges += 1

    def _rescued(self, event: StreamRescued) -> None:
        self.rescues.labels(self._provider(event.source), self._provider(event.target), event.result).inc()

    def _breaker_changed(self, event: BreakerChanged) -> None:
        if event.moved_by is None:  # else it is counted there
            self.breaker_transitions.labels(self._provider(event.provider), event.after).inc()

    def _probed(self, event: ProbeFinished) -> None:
        if event.told_by is None:
            self.probe_duration.labels(self._provider(event.result.provider)).observe(event.result.seconds)

    def _incident_changed(self, event: IncidentChanged) -> None:
        incident = event.incident
        provider = self._provider(incident.provider)
        if event.change != "opened":
            return
        self.incidents.labels(incident.type.value, provider).inc()
        if incident.type is IncidentType.PROVIDER_RECOVERED:  # what an operator resets has not recovered
            self.outage_duration.labels(provider).observe(incident.details["outage_seconds"])


class Live:
    """
    What is not counted but looked up.

    Args:
        providers: Returns the names of the chain.
        breaker: Returns the state of a provider's worst breaker, by its name.
        is_up: Whether calls may go to a provider, by its name.
    """

    def __init__(
        self,
        providers: Callable[[], Sequence[str]],
        load: Load,
        feed: Feed,
        state: StateHealth,
        breaker: Callable[[str], State],
        is_up: Callable[[str], bool],
    ) -> None:
        self._providers = providers
        self._load = load
        self._feed = feed
        self._state = state
        self._breaker = breaker
        self._is_up = is_up
        self._noted: dict[str, float] = {}  # keys, and what had been counted before this process

    def note(self, numbers: Numbers) -> None:
        """Write down each number as of now; those of a provider that has gone become none."""
        values = {
            series.key(labels): (series, float(value))
            for series, by_labels in self._values().items()
            for labels, value in by_labels.items()
        }
        for key in numbers.keys() - values.keys():
            if _kind(key) == "gauge":
                cells, at = numbers.cells(key)
                cells[at] = math.nan
        for key, (series, value) in values.items():
            cells, at = numbers.cells(key)
            if key not in self._noted:
                self._noted[key] = cells[at] if series.kind == "counter" else 0.0
            cells[at] = self._noted[key] + value

    def _values(self) -> Mapping[Series, Mapping[tuple[str, ...], float]]:
        load, feed, state = self._load, self._feed, self._state
        names = self._providers()
        return {
            BREAKER_STATE: {(name,): STATE_VALUES[self._breaker(name)] for name in names},
            PROVIDER_UP: {(name,): self._is_up(name) for name in names},
            IN_FLIGHT: {(): load.in_flight},
            OPEN_STREAMS: {(): load.open_streams},
            SHED: {(): load.shed},
            RATE_LIMITED: {(): load.rate_limited},
            EVENT_SUBSCRIBERS: {(): feed.subscribers},
            EVENTS_DROPPED: {(): feed.dropped},
            STATE_UP: {(): state.up},
            STATE_ERRORS: {(operation,): count for operation, count in state.errors.items()},
        }


class _Everybody(Collector):
    """What all workers say, folded into one answer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its values as of now."""
        self._metrics.publish()
        folded = _folded(self._metrics.numbers)
        for series in SERIES:
            yield _family(series, folded[series.name])


def _folded(numbers: Numbers) -> dict[str, dict[tuple[str, ...], Sequence[float]]]:
    """Return the numbers of each series by their labels: sums, but for `FOLDS`, and no gauges of the dead."""
    by_key: dict[str, Sequence[float]] = {}
    for said in numbers.everyone():
        for key, values in said.numbers.items():
            if math.isnan(values[0]) or (not said.alive and _kind(key) == "gauge"):
                continue
            before = by_key.get(key)
            by_key[key] = values if before is None else list(map(_fold(key), before, values))
    folded: dict[str, dict[tuple[str, ...], Sequence[float]]] = {series.name: {} for series in SERIES}
    for key, values in by_key.items():
        name, *labels = key.split(_BETWEEN)
        folded[name][tuple(labels)] = values
    return folded


def _fold(key: str) -> Callable[[float, float], float]:
    return FOLDS.get(key.partition(_BETWEEN)[0], add)


def _kind(key: str) -> str:
    return _KINDS[key.partition(_BETWEEN)[0]]


def _family(series: Series, numbers: Mapping[tuple[str, ...], Sequence[float]]) -> Metric:
    """Return *series* as prometheus-client writes it down."""
    if series.kind == "histogram":
        histogram = HistogramMetricFamily(series.name, series.help, labels=series.labels)
        bounds = [*(str(float(bound)) for bound in series.buckets), "+Inf"]
        for labels, (total, *counts) in numbers.items():
            histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    family = (GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily)(
        series.name, series.help, labels=series.labels
    )
    for labels, (value,) in numbers.items():
        family.add_metric(labels, value)
    return family
