"""Traces of real calls: what goes upstream, what is exported, and what a dead collector changes (nothing)."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from harness import CHAT, Harness, Start, chain, eventually
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import StatusCode

from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import BreakerConfig, Config, RetryConfig
from sentinel_proxy.events import Event, Noticed
from sentinel_proxy.testing import (
    FaultyUpstream,
    Hang,
    Received,
    Reset,
    answer,
    json_answer,
    ollama_stream,
    openai_chunks,
    openai_completion,
    openai_error,
    sse_stream,
)
from sentinel_proxy.tracing import export
from sentinel_proxy.tracing.spans import Tracing

pytestmark = pytest.mark.anyio

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLERS_SPAN = "00f067aa0ba902b7"
CALLERS_OWN = {"traceparent": f"00-{TRACE_ID}-{CALLERS_SPAN}-01"}
ONE_TRY: dict[str, Any] = {"retry": RetryConfig(attempts=1), "breaker": BreakerConfig(failure_threshold=100)}


class Traced:
    """A running proxy that exports its traces into memory."""

    def __init__(self, harness: Harness, memory: InMemorySpanExporter) -> None:
        self.harness = harness
        self._memory = memory

    async def trace(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """Wait until a call is over; return its span and those of its attempts."""
        await eventually(self.harness.finished)
        *attempts, of_call = self._memory.get_finished_spans()
        assert all(each.parent and each.parent.span_id == of_call.context.span_id for each in attempts)
        return of_call, attempts

    def spans(self) -> int:
        return len(self._memory.get_finished_spans())


async def traced(start: Start, config: Config, sampler: Sampler | None = None) -> Traced:
    memory = InMemorySpanExporter()
    tracing = Tracing([memory], lambda _: None, SystemClock(), sampler=sampler, process=SimpleSpanProcessor)
    harness = await start(config, samples=tracing.samples)
    tracing.listen(harness.proxy.bus)
    return Traced(harness, memory)


def sent_on(request: Received) -> list[str]:
    """Return version, trace id, span id and flags as they went upstream."""
    return (request.header("traceparent") or "").split("-")


def ids(span: ReadableSpan) -> list[str]:
    return [f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"]


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


class TestTraceparent:
    async def test_the_exported_span_is_the_one_that_went_upstream(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        proxy = await traced(start, chain(primary))

        await proxy.harness.chat(headers=CALLERS_OWN)

        span, _ = await proxy.trace()
        assert sent_on(primary.requests[0]) == ["00", TRACE_ID, ids(span)[1], "01"]
        assert ids(span)[0] == TRACE_ID
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == CALLERS_SPAN

    async def test_without_a_trace_of_the_callers_ours_goes_upstream(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        proxy = await traced(start, chain(primary))

        reply = await proxy.harness.chat()

        span, _ = await proxy.trace()
        assert sent_on(primary.requests[0]) == ["00", *ids(span), "01"]
        assert reply.headers["x-sentinel-trace-id"] == ids(span)[0]
        assert span.parent is None

    async def test_every_attempt_continues_the_same_span(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always(openai_error(503))
        backup.always(ollama_stream(["served"]))
        proxy = await traced(start, chain(primary, backup))

        await proxy.harness.chat(stream=True)

        span, _ = await proxy.trace()
        assert {tuple(sent_on(each)[1:3]) for each in (*primary.requests, *backup.requests)} == {
            tuple(ids(span))
        }

    @pytest.mark.parametrize(
        ("headers", "sampler"),
        [({"traceparent": f"00-{TRACE_ID}-{CALLERS_SPAN}-00"}, None), ({}, ParentBased(ALWAYS_OFF))],
        ids=["the caller keeps it not", "the sampler keeps it not"],
    )
    async def test_what_is_not_kept_is_said_upstream_and_exported_by_nobody(
        self, start: Start, primary: FaultyUpstream, headers: dict[str, str], sampler: Sampler | None
    ) -> None:
        primary.always(openai_completion("served"))
        proxy = await traced(start, chain(primary), sampler)

        await proxy.harness.chat(headers=headers)

        await eventually(proxy.harness.finished)
        assert sent_on(primary.requests[0])[3] == "00"
        assert proxy.spans() == 0

    async def test_what_is_streamed_through_continues_a_callers_trace_without_tracing_too(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(json_answer(200, {"data": []}))
        harness = await start(chain(primary))

        await harness.client.get("/v1/files", headers=CALLERS_OWN)
        await harness.client.get("/v1/files")

        version, trace_id, span_id, flags = sent_on(primary.requests[0])
        assert (version, trace_id, flags) == ("00", TRACE_ID, "01")
        assert span_id != CALLERS_SPAN
        assert primary.requests[1].header("traceparent") is None

    async def test_a_new_configuration_traces_on(self, start: Start, primary: FaultyUpstream) -> None:
        primary.always(openai_completion("served"))
        proxy = await traced(start, chain(primary))

        proxy.harness.proxy.reload(chain(primary))
        await proxy.harness.chat()

        span, _ = await proxy.trace()
        assert sent_on(primary.requests[0])[1:3] == ids(span)


class TestSpans:
    async def test_a_success_is_one_call_and_one_attempt(self, start: Start, primary: FaultyUpstream) -> None:
        primary.always(openai_completion("served"))
        proxy = await traced(start, chain(primary))

        await proxy.harness.chat()

        span, (attempt,) = await proxy.trace()
        usage = proxy.harness.finished()[0].usage
        assert usage is not None
        assert span.name == "chat gpt-4o-mini"
        assert told(span)["gen_ai.provider.name"] == "openai"
        assert told(span)["gen_ai.usage.input_tokens"] == usage.prompt_tokens
        assert told(span)["gen_ai.usage.output_tokens"] == usage.completion_tokens
        assert told(attempt)["gen_ai.response.model"] == told(span)["gen_ai.response.model"]
        assert span.status.status_code is attempt.status.status_code is StatusCode.UNSET
        assert span.start_time <= attempt.start_time < attempt.end_time <= span.end_time  # type: ignore[operator]
        assert abs((span.end_time or 0) / 1e9 - time.time()) < 10

    async def test_a_failover_shows_who_failed_and_how(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always(openai_error(503))
        backup.always(ollama_stream(["served"]))
        proxy = await traced(start, chain(primary, backup, **ONE_TRY))

        await proxy.harness.chat(stream=True)

        span, attempts = await proxy.trace()
        assert told(span)["sentinel.outcome"] == "failed_over"
        assert told(span)["sentinel.trail"] == ("openai:503", "ollama:200")
        assert told(span)["gen_ai.response.time_to_first_chunk"] > 0
        assert [
            (each.name, told(each)["gen_ai.request.model"], told(each).get("error.type")) for each in attempts
        ] == [("attempt openai", "gpt-4o-mini", "overloaded"), ("attempt ollama", "llama3.2", None)]

    async def test_a_rescue_shows_where_one_broke_off_and_another_went_on(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        events = openai_chunks(["The quick", " brown fox"], finish_reason=None, done=False)
        primary.always([*sse_stream(events)[:-1], Reset()])
        backup.always(ollama_stream([" jumps"]))
        config = chain(primary, backup, **ONE_TRY)
        patient = config.timeouts.model_copy(update={"total": 60.0})
        proxy = await traced(start, config.model_copy(update={"timeouts": patient}))

        await proxy.harness.chat(stream=True)

        span, (broken, rescuing) = await proxy.trace()
        assert told(span)["sentinel.outcome"] == "rescued"
        assert (told(broken)["error.type"], told(broken)["sentinel.result"]) == ("truncated", "200")
        assert "error.type" not in told(rescuing)
        assert broken.end_time == rescuing.start_time
        assert span.end_time is not None
        assert rescuing.end_time == pytest.approx(span.end_time, abs=1000)

    async def test_an_error_is_one(self, start: Start, primary: FaultyUpstream) -> None:
        primary.always(openai_error(500))
        proxy = await traced(start, chain(primary, **ONE_TRY))

        reply = await proxy.harness.chat()

        span, (attempt,) = await proxy.trace()
        assert span.status.status_code is attempt.status.status_code is StatusCode.ERROR
        assert told(span)["http.response.status_code"] == reply.status_code
        assert told(span)["sentinel.outcome"] == "failure"
        assert told(span)["error.type"]

    async def test_a_request_that_is_wrong_has_a_span_without_attempts(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        proxy = await traced(start, chain(primary))

        await proxy.harness.client.post("/v1/chat/completions", content=b"{")

        span, attempts = await proxy.trace()
        assert (told(span)["sentinel.outcome"], told(span)["http.response.status_code"]) == (
            "caller_error",
            400,
        )
        assert span.status.status_code is StatusCode.UNSET
        assert attempts == []

    async def test_a_caller_that_hangs_up_leaves_the_attempt_it_waited_for(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always([Hang()])
        proxy = await traced(start, chain(primary))

        with pytest.raises(httpx.ReadTimeout):
            await proxy.harness.client.post("/v1/chat/completions", json=CHAT, timeout=0.1)

        span, (attempt,) = await proxy.trace()
        assert (told(span)["sentinel.outcome"], told(span)["http.response.status_code"]) == ("hung_up", 499)
        assert (attempt.name, told(attempt)["sentinel.result"]) == ("attempt openai", "cancelled")
        assert span.status.status_code is attempt.status.status_code is StatusCode.UNSET

    @pytest.mark.parametrize(
        ("act", "result"),
        [(json_answer(200, {"data": []}), "200"), (json_answer(404, {}), "404"), (None, "cancelled")],
        ids=["answered", "refused", "hung up"],
    )
    async def test_what_is_streamed_through_is_traced_too(
        self, start: Start, primary: FaultyUpstream, act: Any, result: str
    ) -> None:
        primary.always(act if act is not None else [Hang()])
        proxy = await traced(start, chain(primary))

        try:
            await proxy.harness.client.get("/v1/files", timeout=0.1 if act is None else 5)
        except httpx.ReadTimeout:
            assert result == "cancelled"

        span, (attempt,) = await proxy.trace()
        assert (span.name, told(span)["gen_ai.provider.name"]) == ("passthrough", "openai")
        assert "gen_ai.operation.name" not in told(span)
        assert told(attempt)["sentinel.result"] == result
        assert told(attempt).get("error.type") == ("404" if result == "404" else None)
        assert sent_on(primary.requests[0])[1:3] == ids(span)

    async def test_no_span_knows_what_was_said_or_with_which_key(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("a secret answer"))
        proxy = await traced(start, chain(primary))

        await proxy.harness.chat(
            messages=[{"role": "user", "content": "a secret prompt"}],
            headers={"authorization": "Bearer sk-secret"},
        )

        span, attempts = await proxy.trace()
        whole = "".join(each.to_json() for each in (span, *attempts))
        for secret in ("secret", "sk-", primary.url, "127.0.0.1"):
            assert secret not in whole


@pytest.fixture
async def collector() -> AsyncIterator[FaultyUpstream]:
    """Takes OTLP over HTTP."""
    async with FaultyUpstream() as upstream:
        upstream.always(answer(200, b""))
        yield upstream


def received(collector: FaultyUpstream) -> list[str]:
    """Return the names of the spans that a collector got."""
    return [
        span.name
        for request in collector.requests
        for of_resource in ExportTraceServiceRequest.FromString(request.body).resource_spans
        for scope in of_resource.scope_spans
        for span in scope.spans
    ]


def exporting(endpoint: str, said: list[Event], seconds: float) -> Tracing:
    """Export to *endpoint*, twenty times a second, giving up after *seconds*."""
    return Tracing(
        [OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=seconds)],
        said.append,
        SystemClock(),
        process=lambda exporter: BatchSpanProcessor(exporter, schedule_delay_millis=50),
    )


class TestCollectors:
    async def test_spans_arrive_while_the_proxy_runs(
        self, start: Start, primary: FaultyUpstream, collector: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        tracing = exporting(collector.url, [], seconds=5)
        harness = await start(chain(primary), samples=tracing.samples)
        tracing.listen(harness.proxy.bus)

        await harness.chat()
        await eventually(lambda: received(collector))

        await anyio.to_thread.run_sync(tracing.close)
        assert sorted(received(collector)) == ["attempt openai", "chat gpt-4o-mini"]
        assert [request.target for request in collector.requests] == ["/v1/traces"]

    async def test_a_dead_collector_is_told_once_and_costs_spans_only(
        self, start: Start, primary: FaultyUpstream, collector: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        await collector.stop_listening()
        said: list[Event] = []
        tracing = exporting(collector.url, said, seconds=0.05)
        harness = await start(chain(primary), samples=tracing.samples)
        tracing.listen(harness.proxy.bus)

        async def call() -> bool:
            return (await harness.chat()).status_code == 200

        served = []
        async with asyncio.timeout(5):
            while not said:
                served.append(await call())
        served += [await call() for _ in range(3)]

        await anyio.to_thread.run_sync(tracing.close)
        assert all(served)
        assert [(each.level, each.message) for each in said if isinstance(each, Noticed)] == [
            ("warning", "traces do not arrive")
        ]
        assert harness.proxy.bus.errors == 0

    async def test_a_collector_that_takes_spans_and_says_nothing_holds_nobody_up(
        self,
        start: Start,
        primary: FaultyUpstream,
        collector: FaultyUpstream,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(export, "CLOSE_SECONDS", 0.05)
        primary.always(openai_completion("served"))
        collector.always([Hang()])
        tracing = exporting(collector.url, [], seconds=2)
        harness = await start(chain(primary), samples=tracing.samples)
        tracing.listen(harness.proxy.bus)
        await harness.chat()
        await eventually(lambda: collector.open_connections)

        reply = await harness.chat()
        before = time.monotonic()
        await anyio.to_thread.run_sync(tracing.close)

        assert time.monotonic() - before < 1
        assert reply.status_code == 200


async def test_the_environment_alone_makes_a_proxy_trace_to_its_last_call(
    tmp_path: Path, primary: FaultyUpstream, collector: FaultyUpstream
) -> None:
    """As a process: the last spans are sent at its end."""
    primary.always(openai_completion("served"))
    config = tmp_path / "config.toml"
    config.write_text(
        f'[server]\nport = 0\n[[providers]]\nname = "openai"\nkind = "openai"\n'
        f'base_url = "{primary.url}/v1"\napi_key = "sk-of-the-proxy"\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sentinel_proxy", "serve", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
    )
    assert process.stdout is not None
    said: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(20):
            while not said or said[-1]["event"] != "listening":
                said.append(json.loads(await process.stdout.readline()))
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            reply = await client.post(f"{said[-1]['address']}/v1/chat/completions", json=CHAT)
    finally:
        process.send_signal(signal.SIGTERM)
        _, complaints = await asyncio.wait_for(process.communicate(), 10)

    assert reply.headers["x-sentinel-trace-id"] == sent_on(primary.requests[-1])[1]
    assert "traces are exported" in [line["event"] for line in said]
    assert sorted(received(collector)) == ["attempt openai", "chat gpt-4o-mini"]
    assert (process.returncode, complaints) == (0, b"")
