"""
Gives every request its trace id, and every answer the headers that its layers have left for it.

A caller's `traceparent` (W3C Trace Context, level 1) is continued: its trace id becomes ours
and our span id goes upstream. Without one a random trace id is minted, and nothing is sent on
unless this proxy exports traces itself: what needs no change passes unchanged.
"""

import re
from collections.abc import Awaitable, Callable
from os import urandom
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sentinel_proxy.api.calls import Told, told
from sentinel_proxy.clock import Clock
from sentinel_proxy.model import Span, Trace

# Version ff and ids of zeroes alone are nobody's (§3.2.2).
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)


class _TracedSend:
    """`send`, with a trace's headers added to the head of the answer."""

    __slots__ = ("_send", "_trace", "when_gone", "write")

    def __init__(self, send: Send, trace: Trace) -> None:
        self._send = send
        self._trace = trace
        # Of a server that has them: see `inbound.Turn`.
        self.write = getattr(send, "write", None)
        self.when_gone = getattr(send, "when_gone", None)

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self._trace.answered = True
            message["headers"] = [*message.get("headers", ()), *self._trace.headers]
        return self._send(message)


Samples = Callable[[str, Span], bool]
"""Decides whether a trace is kept, given its id and our span with the flags as the caller sent them."""


class TraceMiddleware:
    """
    Outermost of ours: everything further in may rely on a `Trace` and on what is `Told` in the scope.

    Args:
        samples: Given where traces are exported: every request then has a span, which is sent on.
            Must not raise or block.
    """

    def __init__(self, app: ASGIApp, clock: Clock, samples: Samples | None = None) -> None:
        self.app = app
        self._clock = clock
        self._samples = samples

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        headers = scope["headers"]
        heard = scope[Told.SCOPE_KEY] = told(headers)
        trace = self._trace(headers[heard.traceparent][1] if heard.traceparent is not None else None)
        scope[Trace.SCOPE_KEY] = trace
        return self.app(scope, receive, _TracedSend(send, trace))

    def _trace(self, traceparent: bytes | None) -> Trace:
        started = self._clock.monotonic()
        caller = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
        trace_id = caller[1].decode() if caller is not None else urandom(16).hex()
        trace = Trace(trace_id, started)
        trace.headers.append((b"x-sentinel-trace-id", trace_id.encode()))
        if caller is not None or self._samples is not None:
            trace.span = self._span(trace_id, caller)
            trace.traceparent = trace.span.traceparent(trace_id)
        return trace

    def _span(self, trace_id: str, caller: re.Match[bytes] | None) -> Span:
        """Begin our span; whoever gets its flags is told what was decided, not what was asked for."""
        parent_id, flags = (None, 0) if caller is None else (caller[2].decode(), int(caller[3], 16))
        span = Span(urandom(8).hex(), parent_id, flags)
        if self._samples is None:
            return span
        decided = flags | Span.SAMPLED if self._samples(trace_id, span) else flags & ~Span.SAMPLED
        return Span(span.id, parent_id, decided)
