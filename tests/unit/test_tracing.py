"""What spans are made of facts, and what the environment makes of tracing."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import Bus, CallFinished, Event, Noticed
from sentinel_proxy.model import Attempt, Call, Endpoint, Outcome, Span, Usage
from sentinel_proxy.testing import FakeClock
from sentinel_proxy.tracing import export, tracing_by
from sentinel_proxy.tracing.spans import Tracing

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
PARENT_ID = "b7ad6b7169203331"
SAMPLED = Span(SPAN_ID, PARENT_ID, 1)
STARTED, SECONDS, ENDED = 1000.0, 4.0, 1_772_359_200.0

FAILED = Attempt("openai", "503", FailureKind.OVERLOADED, seconds=0.5, started=1000.25, model="gpt-4o-mini")
ANSWERED = Attempt("ollama", "200", seconds=0.5, started=1001.0, model="llama3.2")
PASSED_BY = Attempt("openai", "open", sent=False)


def call(*trail: Attempt, given_up: Sequence[Attempt] = (), **more: Any) -> Call:
    payload = {"model": "gpt-4o-mini", "messages": [{"content": "a secret prompt"}]}
    given: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "endpoint": Endpoint.CHAT,
        "body": b"a secret body",
        "payload": payload,
        "model": "gpt-4o-mini",
        "stream": False,
        "started": STARTED,
        "deadline": 2000.0,
        "headers": [(b"authorization", b"Bearer sk-secret")],
        "query": b"key=secret",
        "client": "web",
    }
    return Call(**given | more, trail=list(trail), given_up=list(given_up))


def finished(outcome: Outcome = Outcome.SUCCESS, of: Call | None = None, **more: Any) -> CallFinished:
    given: dict[str, Any] = {
        "trace_id": TRACE_ID,
        "endpoint": Endpoint.CHAT,
        "call": of,
        "outcome": outcome,
        "status": 200,
        "provider": None,
        "model": None,
        "seconds": SECONDS,
        "overhead_seconds": 0.001,
        "first_token_seconds": None,
        "usage": None,
        "span": SAMPLED,
    }
    return CallFinished(**given | more)


class Traced:
    """A `Tracing` whose spans stay in memory, and what it reported."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.memory = InMemorySpanExporter()
        self.bus = Bus()
        self.tracing = Tracing(
            [self.memory],
            self.bus.emit,
            FakeClock(time=ENDED),
            sampler=sampler,
            process=SimpleSpanProcessor,
        )
        self.tracing.listen(self.bus)

    def spans(self, event: CallFinished) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """Report *event*; return the call's span and those of its attempts, in order."""
        self.bus.emit(event)
        assert self.bus.errors == 0
        *attempts, of_call = self.memory.get_finished_spans()
        return of_call, list(attempts)


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def seconds_of(span: ReadableSpan) -> tuple[float, float]:
    """Return when a span began and ended, counted from the beginning of the call."""
    assert span.start_time is not None
    assert span.end_time is not None
    began = ENDED - SECONDS
    return round(span.start_time / 1e9 - began, 3), round(span.end_time / 1e9 - began, 3)


class TestIds:
    def test_a_calls_span_has_the_ids_that_went_upstream(self) -> None:
        span, _ = Traced().spans(finished(of=call(ANSWERED)))

        assert (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") == (TRACE_ID, SPAN_ID)
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == PARENT_ID
        assert span.parent.is_remote

    def test_a_trace_that_begins_here_has_our_id_and_no_parent(self) -> None:
        span, _ = Traced().spans(finished(of=call(ANSWERED), span=Span(SPAN_ID, None, 1)))

        assert (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") == (TRACE_ID, SPAN_ID)
        assert span.parent is None

    def test_attempts_are_children_with_ids_of_their_own(self) -> None:
        span, attempts = Traced().spans(finished(of=call(FAILED, ANSWERED)))

        assert [each.parent and each.parent.span_id for each in attempts] == [span.context.span_id] * 2
        assert {each.context.trace_id for each in attempts} == {span.context.trace_id}
        assert len({each.context.span_id for each in (span, *attempts)}) == 3

    def test_promised_ids_are_used_once(self) -> None:
        """A trace that is continued never asks for the trace id that was promised for it."""
        traced = Traced()
        traced.spans(finished())

        other = "a" * 32
        traced.bus.emit(finished(trace_id=other, span=Span("b" * 16, None, 1)))

        spans = traced.memory.get_finished_spans()
        assert [f"{span.context.trace_id:032x}" for span in spans] == [TRACE_ID, other]


class TestTimes:
    def test_spans_lie_where_they_happened(self) -> None:
        span, attempts = Traced().spans(finished(of=call(FAILED, ANSWERED)))

        assert seconds_of(span) == (0.0, 4.0)
        assert [seconds_of(each) for each in attempts] == [(0.25, 0.75), (1.0, 4.0)]

    def test_a_broken_answer_lasts_until_another_goes_on(self) -> None:
        broken = Attempt("openai", "200", seconds=0.5, started=1000.25)
        rescuing = Attempt("ollama", "200", seconds=0.5, started=1002.0)

        _, attempts = Traced().spans(finished(Outcome.RESCUED, call(broken, rescuing)))

        assert [seconds_of(each) for each in attempts] == [(0.25, 2.0), (2.0, 4.0)]

    def test_an_attempt_that_lost_a_race_says_nothing_of_the_winners_answer(self) -> None:
        loser = Attempt("openai", "cancelled", seconds=1.3, started=1000.2)
        winner = Attempt("ollama", "200", seconds=0.5, started=1001.0)

        _, attempts = Traced().spans(finished(of=call(winner, given_up=[loser])))

        assert [seconds_of(each) for each in attempts] == [(1.0, 4.0), (0.2, 1.5)]
        assert all("error.type" not in told(each) for each in attempts)


class TestAttributes:
    def test_a_call_is_told_whole_and_without_what_it_was_about(self) -> None:
        event = finished(
            Outcome.FAILED_OVER,
            call(FAILED, ANSWERED, stream=True),
            provider="ollama",
            model="llama3.2:3b",
            usage=Usage(7, 2),
            first_token_seconds=1.5,
        )

        span, _ = Traced().spans(event)

        assert (span.name, span.kind) == ("chat gpt-4o-mini", SpanKind.SERVER)
        assert span.status.status_code is StatusCode.UNSET
        assert told(span) == {
            "gen_ai.operation.name": "chat",
            "openai.api.type": "chat_completions",
            "gen_ai.provider.name": "ollama",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.request.stream": True,
            "gen_ai.response.model": "llama3.2:3b",
            "gen_ai.response.time_to_first_chunk": 1.5,
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 2,
            "http.response.status_code": 200,
            "sentinel.outcome": "failed_over",
            "sentinel.overhead_seconds": 0.001,
            "sentinel.client": "web",
            "sentinel.trail": ("openai:503", "ollama:200"),
        }

    def test_attempts_tell_whom_they_asked_and_what_came_of_it(self) -> None:
        _, (failed, answered) = Traced().spans(
            finished(Outcome.FAILED_OVER, call(FAILED, ANSWERED), provider="ollama", model="llama3.2:3b")
        )

        assert (failed.name, failed.kind) == ("attempt openai", SpanKind.CLIENT)
        assert failed.status.status_code is StatusCode.ERROR
        assert told(failed) == {
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "http.response.status_code": 503,
            "error.type": "overloaded",
            "sentinel.result": "503",
        }
        assert answered.status.status_code is StatusCode.UNSET
        assert told(answered) == {
            "gen_ai.provider.name": "ollama",
            "gen_ai.request.model": "llama3.2",
            "gen_ai.response.model": "llama3.2:3b",
            "http.response.status_code": 200,
            "sentinel.result": "200",
        }

    @pytest.mark.parametrize("kind", list(FailureKind))
    def test_an_attempt_that_failed_names_its_kind(self, kind: FailureKind) -> None:
        _, (span,) = Traced().spans(finished(Outcome.FAILURE, call(Attempt("openai", "x", kind))))

        assert told(span)["error.type"] == kind.value

    def test_a_provider_that_was_passed_by_is_in_the_trail_and_has_no_span(self) -> None:
        span, attempts = Traced().spans(finished(of=call(PASSED_BY, ANSWERED)))

        assert told(span)["sentinel.trail"] == ("openai:open", "ollama:200")
        assert [each.name for each in attempts] == ["attempt ollama"]

    @pytest.mark.parametrize("outcome", [Outcome.RESCUED, Outcome.TRUNCATED, Outcome.HUNG_UP])
    def test_an_answer_that_another_had_to_finish_was_truncated(self, outcome: Outcome) -> None:
        broken = Attempt("openai", "200", seconds=0.5, started=1000.25)
        rescuing = Attempt("ollama", "200", seconds=0.5, started=1002.0)

        _, attempts = Traced().spans(finished(outcome, call(broken, rescuing)))

        told_last = "truncated" if outcome is Outcome.TRUNCATED else None
        assert [told(each).get("error.type") for each in attempts] == ["truncated", told_last]

    def test_an_attempt_that_was_given_up_is_nobodys_error(self) -> None:
        waiting = Attempt("openai", "cancelled", seconds=2.0, started=1000.5)

        span, (attempt,) = Traced().spans(finished(Outcome.HUNG_UP, call(given_up=[waiting]), status=499))

        assert told(span)["gen_ai.provider.name"] == "openai"
        assert span.status.status_code is StatusCode.UNSET
        assert (told(attempt)["sentinel.result"], seconds_of(attempt)) == ("cancelled", (0.5, 2.5))
        assert attempt.status.status_code is StatusCode.UNSET

    @pytest.mark.parametrize(
        ("outcome", "error", "status"),
        [
            (Outcome.SUCCESS, None, StatusCode.UNSET),
            (Outcome.FAILED_OVER, None, StatusCode.UNSET),
            (Outcome.RESCUED, None, StatusCode.UNSET),
            (Outcome.CALLER_ERROR, "418", StatusCode.UNSET),
            (Outcome.FAILURE, "418", StatusCode.ERROR),
            (Outcome.TRUNCATED, "418", StatusCode.ERROR),
            (Outcome.HUNG_UP, None, StatusCode.UNSET),
        ],
    )
    def test_a_call_is_an_error_where_its_caller_got_less_than_it_should(
        self, outcome: Outcome, error: str | None, status: StatusCode
    ) -> None:
        span, _ = Traced().spans(finished(outcome, status=418))

        assert (told(span).get("error.type"), span.status.status_code) == (error, status)

    def test_an_error_is_named_by_its_code_where_it_has_one(self) -> None:
        span, _ = Traced().spans(
            finished(Outcome.FAILURE, status=503, error_code="all_providers_unavailable")
        )

        assert told(span)["error.type"] == "all_providers_unavailable"
        assert span.status.description is None

    @pytest.mark.parametrize(
        ("endpoint", "name", "operation"),
        [
            (Endpoint.CHAT, "chat m", "chat"),
            (Endpoint.RESPONSES, "chat m", "chat"),
            (Endpoint.COMPLETIONS, "text_completion m", "text_completion"),
            (Endpoint.EMBEDDINGS, "embeddings m", "embeddings"),
            (Endpoint.PASSTHROUGH, "passthrough m", None),
        ],
    )
    def test_every_endpoint_has_its_operation(
        self, endpoint: Endpoint, name: str, operation: str | None
    ) -> None:
        span, _ = Traced().spans(finished(of=call(model="m"), endpoint=endpoint))

        assert (span.name, told(span).get("gen_ai.operation.name")) == (name, operation)

    def test_a_request_that_never_became_a_call_has_a_span_all_the_same(self) -> None:
        span, attempts = Traced().spans(finished(Outcome.CALLER_ERROR, status=400))

        assert (span.name, told(span)["http.response.status_code"], attempts) == ("chat", 400, [])

    def test_a_name_without_end_is_cut(self) -> None:
        span, _ = Traced().spans(finished(of=call(model="m" * 100_000)))

        assert span.name == "chat " + "m" * 128
        assert told(span)["gen_ai.request.model"] == "m" * 128

    def test_nothing_that_is_secret_is_told(self) -> None:
        traced = Traced()

        traced.spans(finished(of=call(FAILED, ANSWERED)))

        assert not any("secret" in span.to_json() for span in traced.memory.get_finished_spans())


class TestSampling:
    @pytest.mark.parametrize("flags", [0, 1], ids=["not sampled", "sampled"])
    def test_a_callers_decision_is_kept(self, flags: int) -> None:
        assert Traced().tracing.samples(TRACE_ID, Span(SPAN_ID, PARENT_ID, flags)) == bool(flags)

    def test_a_trace_that_begins_here_is_kept_unless_the_sampler_says_otherwise(self) -> None:
        own = Span(SPAN_ID, None, 0)

        assert Traced().tracing.samples(TRACE_ID, own)
        assert not Traced(ALWAYS_OFF).tracing.samples(TRACE_ID, own)

    def test_a_sampler_that_is_told_not_to_ask_does_not(self) -> None:
        assert Traced(ALWAYS_ON).tracing.samples(TRACE_ID, Span(SPAN_ID, PARENT_ID, 0))

    def test_what_was_promised_upstream_is_exported(self) -> None:
        """A ratio is of trace ids, so whoever asks twice hears the same."""
        traced = Traced(TraceIdRatioBased(0.5))
        ids = [f"{number:032x}" for number in range(1, 2**64, 2**59)]
        kept = [each for each in ids if traced.tracing.samples(each, Span(SPAN_ID, None, 0))]

        for each in kept:
            traced.bus.emit(finished(trace_id=each, span=Span(SPAN_ID, None, 1)))

        assert 0 < len(kept) < len(ids)
        exported = traced.memory.get_finished_spans()
        assert [f"{span.context.trace_id:032x}" for span in exported] == kept

    @pytest.mark.parametrize("span", [None, Span(SPAN_ID, None, 0)], ids=["no span", "not sampled"])
    def test_what_nobody_keeps_costs_nothing(self, span: Span | None) -> None:
        traced = Traced()

        traced.bus.emit(finished(span=span))

        assert traced.memory.get_finished_spans() == ()
        assert traced.bus.errors == 0


class Moody(SpanExporter):
    """An exporter that does as `mood` says: works, fails, raises."""

    def __init__(self) -> None:
        self.mood = "works"
        self.shutdowns = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.mood == "raises":
            raise OSError("a secret endpoint")
        return SpanExportResult.SUCCESS if self.mood == "works" else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.shutdowns += 1


class TestDelivery:
    @pytest.mark.parametrize("mood", ["fails", "raises"])
    def test_an_outage_of_the_collector_is_told_when_it_begins_and_when_it_ends(self, mood: str) -> None:
        moody, noticed = Moody(), list[Event]()
        bus = Bus()
        tracing = Tracing([moody], noticed.append, FakeClock(), process=SimpleSpanProcessor)
        tracing.listen(bus)

        for moody.mood in ("works", mood, mood, "works", "works"):
            bus.emit(finished())

        assert noticed == [
            Noticed("warning", "traces do not arrive", {"lost_spans": 1}),
            Noticed("info", "traces arrive again", {"lost_spans": 2}),
        ]
        assert bus.errors == 0

    def test_the_end_is_told_to_the_exporter_once(self) -> None:
        moody = Moody()
        tracing = Tracing([moody], lambda _: None, FakeClock())

        tracing.close()
        tracing.close()

        assert moody.shutdowns == 1

    def test_what_is_left_is_sent_at_the_end(self) -> None:
        memory, bus = InMemorySpanExporter(), Bus()
        tracing = Tracing([memory], bus.emit, FakeClock())
        tracing.listen(bus)
        bus.emit(finished(of=call(ANSWERED)))

        tracing.close()

        assert [span.name for span in memory.get_finished_spans()] == ["attempt ollama", "chat gpt-4o-mini"]


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Changes the process's environment, which has nothing of OpenTelemetry's but what a test sets."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def made_by(environ: pytest.MonkeyPatch, **variables: str) -> tuple[Tracing | None, list[Event]]:
    """Return what *variables* make of tracing, closed again, and what was said."""
    for name, value in variables.items():
        environ.setenv(name, value)
    bus, said = Bus(), list[Event]()
    bus.subscribe_all(said.append)
    tracing = tracing_by(variables, bus, FakeClock())
    if tracing is not None:
        tracing.close()
    return tracing, said


class TestEnvironment:
    @pytest.mark.parametrize(
        "variables",
        [
            {},
            {"OTEL_SERVICE_NAME": "web"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
            {"OTEL_TRACES_EXPORTER": "none"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "True"},
        ],
        ids=["nothing", "only a name", "empty", "none", "none beats an endpoint", "disabled"],
    )
    def test_nothing_is_exported_or_said_unless_it_is_asked_for(
        self, environ: pytest.MonkeyPatch, variables: dict[str, str]
    ) -> None:
        assert made_by(environ, **variables) == (None, [])

    @pytest.mark.parametrize(
        ("variables", "exporter"),
        [
            ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp"),
            ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp"),
            ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
            ({"OTEL_TRACES_EXPORTER": "otlp, console"}, "otlp,console"),
        ],
        ids=["an endpoint", "one for traces", "an exporter", "two exporters"],
    )
    def test_one_variable_is_enough(
        self, environ: pytest.MonkeyPatch, variables: dict[str, str], exporter: str
    ) -> None:
        tracing, (said,) = made_by(environ, **variables)

        assert tracing is not None
        assert isinstance(said, Noticed)
        assert (said.level, said.message) == ("info", "traces are exported")
        assert said.details == {"exporter": exporter, "sampler": tracing.sampler}

    def test_the_sampler_is_the_one_that_is_named(self, environ: pytest.MonkeyPatch) -> None:
        tracing, _ = made_by(environ, OTEL_TRACES_EXPORTER="otlp", OTEL_TRACES_SAMPLER="always_off")

        assert tracing is not None
        assert not tracing.samples(TRACE_ID, Span(SPAN_ID, PARENT_ID, 1))

    @pytest.mark.parametrize(
        ("variables", "problem"),
        [
            (
                {"OTEL_TRACES_EXPORTER": "zipkin"},
                "no exporter 'zipkin' is installed, only console, otlp_proto_http",
            ),
            (
                {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
                "no exporter 'otlp_proto_grpc' is installed, only console, otlp_proto_http",
            ),
            ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "cannot be used: ValueError"),
        ],
        ids=["an exporter that is not there", "a protocol that is not there", "a setting that is none"],
    )
    def test_a_mistake_is_said_and_means_no_traces(
        self, environ: pytest.MonkeyPatch, variables: dict[str, str], problem: str
    ) -> None:
        tracing, (said,) = made_by(environ, **variables)

        assert tracing is None
        assert isinstance(said, Noticed)
        assert (said.level, said.message) == ("warning", "traces are not exported")
        assert problem in said.details["problem"]

    def test_without_the_extra_it_is_said_what_is_missing(self, environ: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("sentinel_proxy.tracing.")]:
            environ.delitem(sys.modules, name)
        environ.setitem(sys.modules, "opentelemetry.sdk.resources", None)

        tracing, (said,) = made_by(environ, OTEL_TRACES_EXPORTER="otlp")

        assert tracing is None
        assert isinstance(said, Noticed)
        assert "the extra `otel`" in said.details["problem"]

    def test_the_library_writes_no_log_of_its_own(
        self, environ: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It would block whoever calls on standard error, and quote headers with keys in them."""
        made_by(environ, OTEL_TRACES_EXPORTER="otlp")

        logging.getLogger("opentelemetry.exporter").critical("a secret header")

        assert caplog.records == []

    @pytest.mark.parametrize(
        ("variables", "name"),
        [
            ({}, "sentinel-proxy"),
            ({"OTEL_SERVICE_NAME": "llm-gateway"}, "llm-gateway"),
            ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=from-attributes"}, "from-attributes"),
        ],
        ids=["by default", "by its variable", "among attributes"],
    )
    def test_the_service_has_a_name(
        self, environ: pytest.MonkeyPatch, variables: dict[str, str], name: str
    ) -> None:
        for variable, value in variables.items():
            environ.setenv(variable, value)

        assert export.resource("1.2.3").attributes["service.name"] == name
        assert export.resource("1.2.3").attributes["service.version"] == "1.2.3"
