"""Every request gets a trace id, every answer shows it, and a caller's own trace is continued."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from sentinel_proxy.middleware.trace import TraceMiddleware
from sentinel_proxy.model import Header, Trace
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


async def traced(*headers: Header) -> tuple[Trace, list[Header]]:
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
    await TraceMiddleware(app, clock)({"type": "http", "headers": list(headers)}, receive, send)
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
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01".encode(),
        f"00-{TRACE_ID}-{SPAN_ID}".encode(),
        f"00-{TRACE_ID}-{SPAN_ID}-01\r\nx-evil: 1".encode(),
    ],
    ids=["empty", "nonsense", "all zeroes", "upper case", "too short", "too long"],
)
async def test_a_trace_that_is_none_is_as_good_as_absent(traceparent: bytes) -> None:
    """W3C Trace Context 1, §3.2.2: whoever cannot read it begins a new one."""
    trace, _ = await traced((b"traceparent", traceparent))

    assert trace.trace_id != TRACE_ID
    assert trace.traceparent is None


@given(value=st.binary(max_size=60))
async def test_no_header_is_a_mistake_of_ours(value: bytes) -> None:
    trace, _ = await traced((b"traceparent", value))

    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
