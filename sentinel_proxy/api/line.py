"""
One request from its first byte to its `CallFinished`, whatever happens in between.

`Line` is where every way out of a call comes together: it sends what can still be sent, reports
how the call ended exactly once, and gives everything back.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from sentinel_proxy.api import errors, headers
from sentinel_proxy.api.calls import Told, read_call
from sentinel_proxy.api.relay import Caller, HungUp, send_whole
from sentinel_proxy.clock import Clock
from sentinel_proxy.config import Config
from sentinel_proxy.errors import CallerError, NoReply, UpstreamError, forget_frames
from sentinel_proxy.events import CallFinished, Emit
from sentinel_proxy.failover import Failover
from sentinel_proxy.model import Call, Endpoint, Header, Load, Outcome, StateHealth, Trace, header
from sentinel_proxy.reply import Reply
from sentinel_proxy.rescue import Rescue
from sentinel_proxy.wheel import Wheel
from sentinel_proxy.wire.openai import error_event


@dataclass(slots=True, eq=False)
class Service:
    """What the endpoints work with; assembled once by `app`."""

    config: Config
    failover: Failover
    rescue: Rescue
    load: Load
    wheel: Wheel
    clock: Clock
    emit: Emit
    lines: "set[Line]" = field(default_factory=set)  # the requests being served
    state: StateHealth = field(default_factory=StateHealth)
    max_body_bytes: int = field(init=False)  # these two every call looks up
    total_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.max_body_bytes = self.config.server.max_body_bytes
        self.total_seconds = self.config.timeouts.total


class Line:
    """One request, the call it becomes, and whoever waits for the answer."""

    __slots__ = ("_endpoint", "_finished", "_scope", "_service", "_trace", "call", "caller", "reply")

    def __init__(
        self, service: Service, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint
    ) -> None:
        self._service = service
        self._scope = scope
        self._endpoint = endpoint
        self._finished = False
        self._trace: Trace = scope[Trace.SCOPE_KEY]
        self.caller = Caller(receive, send, service.wheel, service.clock)
        self.call: Call | None = None
        self.reply: Reply | None = None
        service.lines.add(self)

    async def read(self, rewrite: Callable[[bytes], bytes] | None = None) -> Call:
        """
        Read the request.

        Args:
            rewrite: Makes the body of the endpoint's own form out of another form's.

        Raises:
            CallerError: It is wrong.
            HungUp: The caller left meanwhile.
        """
        service, scope = self._service, self._scope
        before = service.clock.monotonic()
        head, told = scope["headers"], scope[Told.SCOPE_KEY]
        declared = head[told.content_length][1] if told.content_length is not None else None
        body = await self.caller.body(declared, service.max_body_bytes)
        waited = service.clock.monotonic() - before
        if rewrite is not None:
            body = rewrite(body)
        call = self.call = read_call(
            self._endpoint,
            self._trace,
            head,
            told,
            scope["query_string"],
            body,
            service.total_seconds,
        )
        call.waited_seconds = waited
        return call

    def watch(self, call: Call) -> None:
        """Watch for a hang-up from here on; a stream that is long in coming is kept warm."""
        if call.stream:
            timeouts = self._service.config.timeouts
            self.caller.watch(
                hold_seconds=timeouts.header_hold,
                heartbeat_seconds=timeouts.heartbeat,
                held_headers=self.headers,
            )
        else:
            self.caller.watch()

    def seconds(self) -> float:
        """How long this request has been with us."""
        return self._service.clock.monotonic() - self._trace.started

    def headers(self) -> list[Header]:
        """The `x-sentinel-*` headers as of now."""
        return headers.of_call(self.call, self.reply, self.seconds())

    async def fail(self, error: BaseException) -> None:
        """
        End the request after *error*, as well as can still be done.

        Only what is nobody's plan is raised again: a cancellation from outside, or a bug.
        """
        try:
            await self._end(error)
        except asyncio.CancelledError:  # while we were telling the caller
            if not self.caller.cancelled():
                raise
            self.finish(Outcome.HUNG_UP, 499)
        forget_frames(error)

    async def _end(self, error: BaseException) -> None:
        match error:
            case CallerError():
                await self._answer(errors.of_caller(error), Outcome.CALLER_ERROR)
            case NoReply() if self.call is not None:
                answer = errors.of_no_reply(error, self.call)
                await self._answer(answer, Outcome.CALLER_ERROR if answer.status < 429 else Outcome.FAILURE)
            case UpstreamError() if self.reply is not None:
                await self._tell_break(error, self.reply)
            case HungUp():
                self.finish(Outcome.HUNG_UP, 499)
            case asyncio.CancelledError() if self.caller.cancelled():
                if self.caller.gone:
                    self.finish(Outcome.HUNG_UP, 499)
                elif self.caller.late:
                    await self._answer(errors.of_late_body(), Outcome.CALLER_ERROR)
                else:
                    await self._answer(errors.of_shutdown(), Outcome.FAILURE)
            case _:
                if self.caller.streaming and isinstance(error, Exception):
                    await self._end_in_band(
                        "the proxy made a mistake", "server_error", None, "internal_error"
                    )
                self.finish(Outcome.FAILURE, 500, "internal_error")
                raise error

    async def _answer(self, answer: errors.ErrorAnswer, outcome: Outcome) -> None:
        caller = self.caller
        if caller.streaming:  # kept warm: the status is spent, so the error goes in-band
            code = answer.code if self.reply is None else "stream_interrupted"
            await self._end_in_band(answer.message, answer.type, answer.param, code)
            self.finish(outcome if self.reply is None else Outcome.TRUNCATED, 200, code)
        elif caller.started:  # half of something: ending without its last byte is the honest way
            self.finish(Outcome.TRUNCATED, 200, answer.code)
        else:
            told = [*answer.headers, *self.headers()]
            if header(told, b"x-request-id") is None:  # what the SDKs show; greppable in our log
                told.append((b"x-request-id", self._trace.trace_id.encode()))
            await send_whole(caller, answer.status, told, answer.body)
            self.finish(outcome, answer.status, answer.code)

    async def _tell_break(self, error: UpstreamError, reply: Reply) -> None:
        if not self.caller.started:  # cannot happen for a complete JSON body; be honest if it does
            answer = errors.answer(502, error.message, code="stream_interrupted")
            await self._answer(answer, Outcome.TRUNCATED)
            return
        message = f"the answer of {reply.upstream.name} broke off before it was complete: {error.message}"
        await self._end_in_band(message, "server_error", None, "stream_interrupted")
        self.finish(Outcome.TRUNCATED, reply.status, "stream_interrupted")

    async def _end_in_band(self, message: str, type: str, param: str | None, code: str | None) -> None:
        await self.caller.send(error_event(self._endpoint, message, type, param, code), more=True)
        await self.caller.send(b"", more=False)

    def succeed(self) -> None:
        """Report that the caller has the whole of a good answer."""
        reply = self.reply
        assert reply is not None
        if reply.rescued:
            self.finish(Outcome.RESCUED, reply.status)
        else:
            self.finish(Outcome.FAILED_OVER if reply.failover else Outcome.SUCCESS, reply.status)

    def finish(self, outcome: Outcome, status: int, error_code: str | None = None) -> None:
        """Report how the call ended, once."""
        if self._finished:
            return
        self._finished = True
        call, reply = self.call, self.reply
        seconds = self.seconds()
        self._service.emit(
            CallFinished(
                self._trace.trace_id,
                self._endpoint,
                call,
                outcome,
                status,
                reply.upstream.name if reply is not None else None,
                reply.served_model if reply is not None else None,
                seconds,
                headers.overhead_seconds(call, seconds),
                reply.first_token_seconds if reply is not None else None,
                reply.usage if reply is not None else None,
                error_code,
                self._trace.span,
            )
        )

    def close(self) -> None:
        """Give everything back; on every way out."""
        self._service.lines.discard(self)
        self.caller.release()
        if self.reply is not None:
            self.reply.close()
