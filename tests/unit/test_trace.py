"""Every request gets a trace id, every answer shows it, and a caller's own trace is continued."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from sentinel_proxy.middleware.trace import Samples, TraceMiddleware
from sentinel_proxy.model import Header, Span, Trace
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


async def traced(*headers: Header, samples: Samples | None = None) -> tuple[Trace, list[Header]]:
    """Send one request through; return its trace and the headers of its answer."""
    seen: list[Trace] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        trace: Trace = scope[Trace.SCOPE_KEY]
        seen.append(trace)
        trace.headers.append((b"x-left-by-a-layer", b"1"))
        assert not trace.answered
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is to be read")

    clock = FakeClock(monotonic=77.0)
    await TraceMiddleware(app, clock, samples)({"type": "http", "headers": list(headers)}, receive, send)
    return seen[0], sent[0]["headers"]


async def test_a_request_without_a_trace_gets_an_id_of_its_own() -> None:
    first, headers = await traced()
    second, _ = await traced()

    assert re.fullmatch("[0-9a-f]{32}", first.trace_id)
    assert first.trace_id != second.trace_id
    assert (first.started, first.traceparent) == (77.0, None)
    assert (b"x-sentinel-trace-id", first.trace_id.encode()) in headers


async def test_what_the_layers_leave_is_added_to_the_answer() -> None:
    trace, headers = await traced()

    assert [name for name, _ in headers] == [b"x-own", b"x-sentinel-trace-id", b"x-left-by-a-layer"]
    assert trace.answered


@pytest.mark.parametrize("flags", ["00", "01"], ids=["not sampled", "sampled"])
async def test_a_callers_trace_goes_on_under_a_span_of_ours(flags: str) -> None:
    trace, headers = await traced((b"traceparent", f"00-{TRACE_ID}-{SPAN_ID}-{flags}".encode()))

    assert trace.trace_id == TRACE_ID
    version, continued, span, kept = (trace.traceparent or b"").decode().split("-")
    assert (version, continued, kept) == ("00", TRACE_ID, flags)
    assert re.fullmatch("[0-9a-f]{16}", span)
    assert span != SPAN_ID
    assert (b"x-sentinel-trace-id", TRACE_ID.encode()) in headers


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"nonsense",
        f"00-{'0' * 32}-{SPAN_ID}-01".encode(),
        f"00-{TRACE_ID}-{'0' * 16}-01".encode(),
        f"ff-{TRACE_ID}-{SPAN_ID}-01".encode(),
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01".encode(),
        f"00-{TRACE_ID}-{SPAN_ID}".encode(),
        f"00-{TRACE_ID}-{SPAN_ID}-01\r\nx-evil: 1".encode(),
    ],
    ids=[
        "empty",
        "nonsense",
        "all zeroes",
        "a parent of zeroes",
        "a version that is none",
        "upper case",
        "too short",
        "too long",
    ],
)
async def test_a_trace_that_is_none_is_as_good_as_absent(traceparent: bytes) -> None:
    """W3C Trace Context 1, §3.2.2: whoever cannot read it begins a new one."""
    trace, _ = await traced((b"traceparent", traceparent))

    assert trace.trace_id != TRACE_ID
    assert (trace.traceparent, trace.span) == (None, None)


async def test_our_span_remembers_whose_child_it_is() -> None:
    trace, _ = await traced((b"traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01".encode()))

    assert trace.span is not None
    assert (trace.span.parent_id, trace.span.flags) == (SPAN_ID, 1)
    assert trace.traceparent == f"00-{TRACE_ID}-{trace.span.id}-01".encode()


@pytest.mark.parametrize("kept", [False, True], ids=["not kept", "kept"])
async def test_where_traces_are_exported_one_that_begins_here_goes_upstream_too(kept: bool) -> None:
    trace, _ = await traced(samples=lambda _, __: kept)

    assert trace.span == Span(trace.span.id if trace.span is not None else "", None, int(kept))
    assert trace.traceparent == f"00-{trace.trace_id}-{trace.span.id}-0{int(kept)}".encode()


@pytest.mark.parametrize(
    ("flags", "kept", "sent"),
    [("00", True, "01"), ("01", True, "01"), ("01", False, "00"), ("03", False, "02"), ("02", True, "03")],
)
async def test_what_goes_upstream_says_what_was_decided(flags: str, kept: bool, sent: str) -> None:
    """W3C Trace Context 1, §3.3: the other flags are passed on as they came."""
    asked: list[tuple[str, Span]] = []

    def samples(trace_id: str, span: Span) -> bool:
        asked.append((trace_id, span))
        return kept

    trace, _ = await traced((b"traceparent", f"00-{TRACE_ID}-{SPAN_ID}-{flags}".encode()), samples=samples)

    assert [(trace_id, span.parent_id, span.flags) for trace_id, span in asked] == [
        (TRACE_ID, SPAN_ID, int(flags, 16))
    ]
    assert (trace.traceparent or b"").decode().split("-")[3] == sent
    assert trace.span is not None
    assert trace.span.sampled == kept


@given(value=st.binary(max_size=60))
async def test_no_header_is_a_mistake_of_ours(value: bytes) -> None:
    trace, _ = await traced((b"traceparent", value))

    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
