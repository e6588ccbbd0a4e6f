"""What events come to in numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFailedOver,
    CallFinished,
    CallRetried,
    Event,
    IncidentChanged,
    ProbeFinished,
    StreamRescued,
)
from sentinel_proxy.metrics import SERIES, Live, Metrics
from sentinel_proxy.model import (
    Attempt,
    Call,
    Endpoint,
    Feed,
    Incident,
    IncidentType,
    Load,
    Outcome,
    ProbeResult,
    Severity,
    StateHealth,
    Usage,
    Verdict,
)
from sentinel_proxy.resilience.breaker import State

# Section 6 of the contract, name by name: other people's dashboards use these.
CONTRACT: dict[str, tuple[str, ...]] = {
    "sentinel_requests_total": ("endpoint", "provider", "outcome"),
    "sentinel_request_duration_seconds": ("endpoint", "provider"),
    "sentinel_overhead_seconds": ("endpoint",),
    "sentinel_time_to_first_token_seconds": ("provider",),
    "sentinel_attempts_total": ("provider", "result"),
    "sentinel_retries_total": ("provider",),
    "sentinel_failovers_total": ("source", "target", "reason"),
    "sentinel_rescues_total": ("source", "target", "result"),
    "sentinel_truncated_streams_total": ("provider",),
    "sentinel_breaker_state": ("provider",),
    "sentinel_breaker_transitions_total": ("provider", "state"),
    "sentinel_provider_up": ("provider",),
    "sentinel_probe_duration_seconds": ("provider",),
    "sentinel_incidents_total": ("type", "provider"),
    "sentinel_outage_duration_seconds": ("provider",),
    "sentinel_tokens_total": ("provider", "kind"),
    "sentinel_in_flight_requests": (),
    "sentinel_open_streams": (),
    "sentinel_shed_total": (),
    "sentinel_rate_limited_total": (),
    "sentinel_event_subscribers": (),
    "sentinel_events_dropped_total": (),
    "sentinel_state_up": (),
    "sentinel_state_errors_total": ("operation",),
}


class Desk:
    """Metrics of two providers, and the bus they hear."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.metrics = Metrics(["openai", "ollama"])
        self.metrics.listen(self.bus)
        self.load, self.feed, self.state = Load(), Feed(), StateHealth()
        self.breakers = {"openai": State.CLOSED, "ollama": State.CLOSED}
        self.metrics.read_live(
            Live(
                lambda: ["openai", "ollama"],
                self.load,
                self.feed,
                self.state,
                self.breakers.__getitem__,
                lambda name: self.breakers[name] is not State.OPEN,
            )
        )

    def hears(self, *events: Event) -> None:
        for event in events:
            self.bus.emit(event)
        assert self.bus.errors == 0

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def text(self, accept: str = "") -> str:
        return self.metrics.exposition(accept)[0].decode()


@pytest.fixture
def desk() -> Desk:
    return Desk()


ANSWER = Attempt("openai", "200", seconds=0.1)


def finished(
    outcome: Outcome = Outcome.SUCCESS,
    *trail: Attempt,
    provider: str | None = "openai",
    stream: bool = False,
    endpoint: Endpoint = Endpoint.CHAT,
    usage: Usage | None = None,
    seconds: float = 1.2,
) -> CallFinished:
    call = Call("t", endpoint, b"", {}, "a-model-from-the-wild", stream, 0, 600, trail=list(trail))
    return CallFinished("a-trace", endpoint, call, outcome, 200, provider, "m", seconds, 0.0004, 0.35, usage)


def incident(
    change: str, type: IncidentType, seconds: float | None = None, **details: float
) -> IncidentChanged:
    return IncidentChanged(
        change, Incident("i", type, Severity.CRITICAL, "openai", 0.0, "", details, seconds, seconds)
    )


class TestContract:
    def test_every_name_is_there_with_exactly_its_labels(self) -> None:
        assert {series.name: series.labels for series in SERIES} == CONTRACT

    def test_names_say_their_unit_and_counters_that_they_count(self) -> None:
        for series in SERIES:
            assert series.name.endswith("_total") == (series.kind == "counter")
            assert series.name.endswith("_seconds") == (series.kind == "histogram")
            assert bool(series.buckets) == (series.kind == "histogram")

    def test_every_series_is_told_even_before_the_first_call(self, desk: Desk) -> None:
        families = {family.name for family in text_families(desk.text())}

        assert families == {name.removesuffix("_total") for name in CONTRACT}

    def test_every_sample_has_the_labels_of_its_series(self, desk: Desk) -> None:
        desk.hears(finished(Outcome.SUCCESS, ANSWER, stream=True, usage=Usage(1, 2)))
        labels = {series.name.removesuffix("_total"): set(series.labels) for series in SERIES}

        for family in text_families(desk.text()):
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == labels[family.name], sample.name

    def test_the_registry_is_our_own(self) -> None:
        assert Metrics(["openai"]).registry is not Metrics(["openai"]).registry


class TestCalls:
    def test_one_is_counted_by_who_answered_and_how_it_ended(self, desk: Desk) -> None:
        desk.hears(finished(Outcome.SUCCESS, ANSWER), finished(Outcome.TRUNCATED, ANSWER))

        labels = {"endpoint": "chat.completions", "provider": "openai"}
        assert desk.value("sentinel_requests_total", **labels, outcome="success") == 1
        assert desk.value("sentinel_requests_total", **labels, outcome="truncated") == 1
        assert desk.value("sentinel_truncated_streams_total", provider="openai") == 1
        assert desk.value("sentinel_truncated_streams_total", provider="ollama") == 0

    def test_its_times_fall_into_their_buckets(self, desk: Desk) -> None:
        desk.hears(finished(Outcome.SUCCESS, ANSWER))

        labels = {"endpoint": "chat.completions", "provider": "openai"}
        duration, overhead = "sentinel_request_duration_seconds", "sentinel_overhead_seconds"
        assert desk.value(f"{duration}_sum", **labels) == 1.2
        assert desk.value(f"{duration}_bucket", **labels, le="1.0") == 0
        assert desk.value(f"{duration}_bucket", **labels, le="2.5") == 1
        assert desk.value(f"{overhead}_bucket", endpoint="chat.completions", le="0.0003") == 0
        assert desk.value(f"{overhead}_bucket", endpoint="chat.completions", le="0.0005") == 1

    @pytest.mark.parametrize(("stream", "count"), [(True, 1), (False, 0)], ids=["stream", "whole"])
    def test_the_first_token_is_that_of_streams(self, desk: Desk, stream: bool, count: int) -> None:
        desk.hears(finished(Outcome.SUCCESS, ANSWER, stream=stream))

        assert desk.value("sentinel_time_to_first_token_seconds_count", provider="openai") == count

    def test_tokens_are_counted_where_they_are_known(self, desk: Desk) -> None:
        desk.hears(finished(usage=Usage(7, 2)), finished(usage=Usage(3, 1)), finished())

        assert desk.value("sentinel_tokens_total", provider="openai", kind="prompt") == 10
        assert desk.value("sentinel_tokens_total", provider="openai", kind="completion") == 3

    def test_one_that_nobody_answered_is_nobodys(self, desk: Desk) -> None:
        desk.hears(finished(Outcome.FAILURE, provider=None, usage=Usage(1, 1), stream=True))

        labels = {"endpoint": "chat.completions", "provider": "none", "outcome": "failure"}
        assert desk.value("sentinel_requests_total", **labels) == 1
        assert desk.value("sentinel_tokens_total", provider="none", kind="prompt") is None

    def test_one_that_was_streamed_through_belongs_to_who_answered(self, desk: Desk) -> None:
        desk.hears(finished(Outcome.SUCCESS, ANSWER, provider=None, endpoint=Endpoint.PASSTHROUGH))

        labels = {"endpoint": "passthrough", "provider": "openai", "outcome": "success"}
        assert desk.value("sentinel_requests_total", **labels) == 1

    def test_a_request_that_never_became_a_call_is_counted(self, desk: Desk) -> None:
        wrong = CallFinished(
            "t", Endpoint.CHAT, None, Outcome.CALLER_ERROR, 400, None, None, 0.1, 0.1, None, None
        )

        desk.hears(wrong)

        labels = {"endpoint": "chat.completions", "provider": "none", "outcome": "caller_error"}
        assert desk.value("sentinel_requests_total", **labels) == 1

    def test_the_totals_are_those_of_all(self, desk: Desk) -> None:
        desk.hears(
            finished(Outcome.SUCCESS, seconds=1.0),
            finished(Outcome.FAILED_OVER, seconds=3.0),
            finished(Outcome.FAILURE),
            finished(Outcome.HUNG_UP),
            CallFailedOver("t", "openai", "ollama", "503"),
        )

        totals = desk.metrics.totals
        assert (totals.requests, totals.successes, totals.failures, totals.failovers) == (4, 2, 1, 1)
        assert totals.average_latency_ms == 2000.0
        assert repr(desk.metrics) == "<Metrics of 4 calls>"

    def test_before_the_first_call_there_is_no_average(self, desk: Desk) -> None:
        assert desk.metrics.totals.average_latency_ms is None


class TestAttempts:
    def test_they_are_counted_by_what_came_of_them(self, desk: Desk) -> None:
        failed = Attempt("openai", "503", FailureKind.OVERLOADED)
        passed_by = Attempt("openai", "open", sent=False)
        answered = Attempt("ollama", "200")
        desk.hears(
            AttemptFailed("t", "openai", "m", FailureKind.OVERLOADED, "503", "it failed", 0.1),
            finished(Outcome.FAILED_OVER, passed_by, failed, answered, provider="ollama"),
        )

        assert desk.value("sentinel_attempts_total", provider="openai", result="overloaded") == 1
        assert desk.value("sentinel_attempts_total", provider="openai", result="answered") == 0
        assert desk.value("sentinel_attempts_total", provider="ollama", result="answered") == 1

    def test_retries_failovers_and_rescues_are_counted(self, desk: Desk) -> None:
        desk.hears(
            CallRetried("t", "openai", 0.1),
            CallFailedOver("t", "openai", "ollama", "503"),
            StreamRescued("t", "openai", "ollama", "prefill", "continued", 10),
            StreamRescued("t", "openai", "", "", "failed", 10),
        )

        both = {"source": "openai", "target": "ollama"}
        nobody = {"source": "openai", "target": "none"}
        assert desk.value("sentinel_retries_total", provider="openai") == 1
        assert desk.value("sentinel_failovers_total", **both, reason="503") == 1
        assert desk.value("sentinel_rescues_total", **both, result="continued") == 1
        assert desk.value("sentinel_rescues_total", **nobody, result="failed") == 1


class TestHealth:
    def test_transitions_of_breakers_are_counted_and_begin_at_zero(self, desk: Desk) -> None:
        desk.hears(
            BreakerChanged("openai", None, "closed", "open", "connect", 30.0),
            BreakerChanged("openai", "gpt-4o", "closed", "open", "timeout", 30.0),
        )

        assert desk.value("sentinel_breaker_transitions_total", provider="openai", state="open") == 2
        assert desk.value("sentinel_breaker_transitions_total", provider="ollama", state="open") == 0

    def test_probes_are_timed(self, desk: Desk) -> None:
        desk.hears(ProbeFinished(ProbeResult("openai", 0.0, 0.2, Verdict.FAILED, "it answered 503")))

        assert desk.value("sentinel_probe_duration_seconds_sum", provider="openai") == 0.2

    def test_an_incident_is_counted_when_it_is_opened(self, desk: Desk) -> None:
        for change in ("opened", "updated", "resolved"):
            desk.hears(incident(change, IncidentType.STREAM_TRUNCATED, 1.0))

        assert desk.value("sentinel_incidents_total", type="stream_truncated", provider="openai") == 1

    def test_an_outage_is_timed_when_the_provider_has_recovered(self, desk: Desk) -> None:
        desk.hears(
            incident("opened", IncidentType.OUTAGE_DETECTED),
            incident("resolved", IncidentType.OUTAGE_DETECTED, 62.0),
            incident("opened", IncidentType.PROVIDER_RECOVERED, outage_seconds=62.0),
            incident("resolved", IncidentType.PROVIDER_RECOVERED, 0.0, outage_seconds=62.0),
        )

        assert desk.value("sentinel_outage_duration_seconds_count", provider="openai") == 1
        assert desk.value("sentinel_outage_duration_seconds_sum", provider="openai") == 62.0

    @pytest.mark.parametrize(
        ("state", "value"),
        [(State.CLOSED, 0), (State.HALF_OPEN, 1), (State.OPEN, 2), (State.ISOLATED, 2)],
    )
    def test_a_breaker_is_a_number(self, desk: Desk, state: State, value: float) -> None:
        desk.breakers["openai"] = state

        assert desk.value("sentinel_breaker_state", provider="openai") == value

    def test_what_is_looked_up_is_as_of_the_scrape(self, desk: Desk) -> None:
        desk.load.in_flight, desk.load.open_streams, desk.load.shed, desk.load.rate_limited = 5, 3, 2, 1
        desk.feed.subscribers, desk.feed.dropped = 4, 6
        desk.state.up, desk.state.errors["write"] = False, 8
        desk.breakers["openai"] = State.OPEN

        values = {
            name: desk.value(f"sentinel_{name}")
            for name in (
                "in_flight_requests",
                "open_streams",
                "shed_total",
                "rate_limited_total",
                "event_subscribers",
                "events_dropped_total",
                "state_up",
            )
        }
        assert list(values.values()) == [5, 3, 2, 1, 4, 6, 0]
        assert desk.value("sentinel_state_errors_total", operation="write") == 8
        assert desk.value("sentinel_state_errors_total", operation="read") == 0
        assert desk.value("sentinel_provider_up", provider="openai") == 0
        assert desk.value("sentinel_provider_up", provider="ollama") == 1


class TestLabels:
    @pytest.mark.parametrize(
        "event",
        [
            lambda name: finished(Outcome.TRUNCATED, Attempt(name, "200"), provider=name, usage=Usage(1, 1)),
            lambda name: AttemptFailed("t", name, "m", FailureKind.RESET, "reset", "", 0.1),
            lambda name: CallRetried("t", name, 0.1),
            lambda name: CallFailedOver("t", name, name, name),
            lambda name: StreamRescued("t", name, name, "prefill", "continued", 1),
            lambda name: BreakerChanged(name, name, "closed", "open", name, 1.0),
            lambda name: ProbeFinished(ProbeResult(name, 0.0, 0.1, Verdict.PASSED, name)),
        ],
        ids=["finished", "failed", "retried", "failed over", "rescued", "breaker", "probed"],
    )
    def test_what_nobody_configured_is_other(self, desk: Desk, event: Callable[[str], Event]) -> None:
        desk.hears(event("invented"))

        text = desk.text()
        assert "invented" not in text
        assert '"other"' in text

    @given(reasons=st.lists(st.text(min_size=1) | st.integers(100, 999).map(str)))
    def test_reasons_from_outside_make_few_series(self, reasons: list[str]) -> None:
        desk = Desk()

        desk.hears(*(CallFailedOver("t", "openai", "ollama", reason) for reason in reasons))

        samples = [
            sample
            for family in desk.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "sentinel_failovers_total"
        ]
        assert len(samples) <= 120
        assert sum(sample.value for sample in samples) == len(reasons)

    def test_no_model_key_or_trace_is_told(self, desk: Desk) -> None:
        desk.hears(finished(Outcome.SUCCESS, ANSWER))

        assert "a-model-from-the-wild" not in desk.text()
        assert "a-trace" not in desk.text()


class TestText:
    @pytest.mark.parametrize(
        ("accept", "content_type", "parse"),
        [
            ("", "text/plain; version=0.0.4; charset=utf-8", text_families),
            ("*/*", "text/plain; version=0.0.4; charset=utf-8", text_families),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
                "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
                openmetrics_families,
            ),
        ],
        ids=["nothing asked", "anything", "OpenMetrics"],
    )
    def test_it_is_in_the_format_that_was_asked_for(
        self, desk: Desk, accept: str, content_type: str, parse: Any
    ) -> None:
        desk.hears(finished(Outcome.SUCCESS, ANSWER))

        text, told = desk.metrics.exposition(accept)

        assert told == content_type
        found: Mapping[str, Any] = {family.name: family for family in parse(text.decode())}
        assert set(found) == {name.removesuffix("_total") for name in CONTRACT}
        assert all(family.documentation for family in found.values())

    def test_when_series_were_created_is_not_told(self, desk: Desk) -> None:
        assert "_created" not in desk.text()
