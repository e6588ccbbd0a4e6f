"""
Gives every request its trace id, and every answer the headers that its layers have left for it.

A caller's `traceparent` (W3C Trace Context, level 1) is continued: its trace id becomes ours
and our span id goes upstream. Without one a random trace id is minted and nothing is sent on.
"""

import re
import secrets
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sentinel_proxy.clock import Clock
from sentinel_proxy.model import Trace, header

_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")
_NO_TRACE: Final = b"0" * 32


class TraceMiddleware:
    """Outermost of ours: everything further in may rely on a `Trace` in the scope."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self.app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trace = self._trace(header(scope["headers"], b"traceparent"))
        scope[Trace.SCOPE_KEY] = trace

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.answered = True
                message["headers"] = [*message.get("headers", ()), *trace.headers]
            await send(message)

        await self.app(scope, receive, send_traced)

    def _trace(self, traceparent: bytes | None) -> Trace:
        started = self._clock.monotonic()
        match = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
        if match is None or match[1] == _NO_TRACE:
            trace = Trace(secrets.token_hex(16), started)
        else:
            ours = b"00-%b-%b-%b" % (match[1], secrets.token_hex(8).encode(), match[2])
            trace = Trace(match[1].decode(), started, ours)
        trace.headers.append((b"x-sentinel-trace-id", trace.trace_id.encode()))
        return trace
