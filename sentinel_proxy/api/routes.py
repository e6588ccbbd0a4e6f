"""
The faces that applications call: `/v1/*` and `/api/chat`.

Plain ASGI endpoints, one object each. A call is read (`calls`), asked (`failover`), and its
reply or its error is sent (`relay`, `errors`); every call ends in exactly one `CallFinished`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from sentinel_proxy.api import errors, headers
from sentinel_proxy.api.calls import parse_object, read_call
from sentinel_proxy.api.relay import Caller, HungUp, relay, relayed_headers
from sentinel_proxy.clock import Clock
from sentinel_proxy.config import Config
from sentinel_proxy.errors import CallerError, NoReply, UpstreamError
from sentinel_proxy.events import CallFinished, Emit
from sentinel_proxy.failover import Failover, Reply
from sentinel_proxy.model import PATHS, Call, Endpoint, Load, Trace
from sentinel_proxy.wheel import Wheel
from sentinel_proxy.wire.json import dumps, loads
from sentinel_proxy.wire.openai import error_event

JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Service:
    """What the endpoints work with; assembled once by `app`."""

    config: Config
    failover: Failover
    load: Load
    wheel: Wheel
    clock: Clock
    emit: Emit


def routes(service: Service) -> Sequence[BaseRoute]:
    """Return the routes of this face, the busiest first."""
    calls = [
        Route(f"/v1{path}", endpoint=Inference(service, endpoint), methods=["POST"])
        for endpoint, path in PATHS.items()
    ]
    return [*calls, Route("/api/chat", endpoint=SimpleChat(service), methods=["POST"])]


class Inference:
    """`POST /v1/<endpoint>`: what the SDKs call."""

    def __init__(self, service: Service, endpoint: Endpoint) -> None:
        self._service = service
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        line = Line(service, scope, receive, send, self._endpoint)
        try:
            call = await line.read()
            if call.stream:
                timeouts = service.config.timeouts
                line.caller.watch(
                    hold_seconds=timeouts.header_hold,
                    heartbeat_seconds=timeouts.heartbeat,
                    held_headers=line.headers,
                )
            else:
                line.caller.watch()
            reply = line.reply = await service.failover.open(call)
            if call.stream:
                service.load.open_streams += 1
            try:
                own = [*relayed_headers(reply.headers), *line.headers()]
                if not call.stream:
                    own.append(JSON)
                await relay(reply, line.caller, own, streaming=call.stream)
            finally:
                if call.stream:
                    service.load.open_streams -= 1
            line.finish("failed_over" if reply.failover else "success", reply.status)
        except BaseException as error:
            await line.fail(error)
        finally:
            line.close()


class SimpleChat:
    """`POST /api/chat`: the simple form, for scripts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(self._service, scope, receive, send, Endpoint.CHAT)
        try:
            call = await line.read(self._as_chat_completion)
            line.caller.watch()
            reply = line.reply = await self._service.failover.open(call)
            completion = loads(await reply.read())
            await reply.read()
            body = dumps(self._simple(call, reply, completion, line.seconds()))
            await line.caller.start(200, [*line.headers(), JSON, (b"content-length", b"%d" % len(body))])
            await line.caller.send(body, more=False)
            line.finish("failed_over" if reply.failover else "success", 200)
        except BaseException as error:
            await line.fail(error)
        finally:
            line.close()

    def _as_chat_completion(self, body: bytes) -> bytes:
        simple = parse_object(body)
        if unknown := sorted(set(simple) - {"messages", "max_tokens", "temperature", "model"}):
            message = (
                f"unknown field {unknown[0]!r}; this form knows messages, max_tokens, temperature and model"
            )
            raise CallerError(message, code="unknown_parameter", param=unknown[0])
        if simple.get("model") is None:
            simple["model"] = self._service.config.default_model
        return dumps({key: value for key, value in simple.items() if value is not None})

    @staticmethod
    def _simple(call: Call, reply: Reply, completion: Any, seconds: float) -> dict[str, Any]:
        message = completion["choices"][0].get("message") or {}
        failed = [attempt.provider for attempt in call.trail if attempt.provider != reply.upstream.name]
        return {
            "trace_id": call.trace_id,
            "provider_used": reply.upstream.name,
            "model": reply.served_model,
            "response_text": message.get("content") or message.get("refusal") or "",
            "latency_ms": round(seconds * 1000, 1),
            "status": "success",
            "failover_occurred": reply.failover,
            "failover_chain": list(dict.fromkeys(failed)),
            "tokens_used": reply.usage.total_tokens if reply.usage is not None else 0,
        }


class Line:
    """One request from its first byte to its `CallFinished`, whatever happens in between."""

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
        body = await self.caller.body(scope, service.config.server.max_body_bytes)
        waited = service.clock.monotonic() - before
        if rewrite is not None:
            body = rewrite(body)
        self.call = read_call(
            self._endpoint,
            self._trace,
            scope["headers"],
            scope["query_string"],
            body,
            service.config.timeouts.total,
        )
        self.call.waited_seconds = waited
        return self.call

    def seconds(self) -> float:
        """How long this request has been with us."""
        return self._service.clock.monotonic() - self._trace.started

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The `x-sentinel-*` headers as of now."""
        return headers.of_call(self.call, self.reply, self.seconds())

    async def fail(self, error: BaseException) -> None:
        """
        End the request after *error*, as well as can still be done.

        Only what is nobody's plan is raised again: a cancellation from outside, or a bug.
        """
        match error:
            case CallerError():
                await self._answer(errors.of_caller(error), "caller_error")
            case NoReply() if self.call is not None:
                answer = errors.of_no_reply(error, self.call)
                await self._answer(answer, "caller_error" if answer.status < 429 else "failure")
            case UpstreamError() if self.reply is not None:
                await self._tell_break(error, self.reply)
            case HungUp():
                self.finish("hung_up", 499)
            case asyncio.CancelledError() if self.caller.gone:
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                self.finish("hung_up", 499)
            case _:
                self.finish("failure", 500)
                raise error

    async def _answer(self, answer: errors.ErrorAnswer, outcome: str) -> None:
        caller = self.caller
        if caller.started:  # kept warm: the status is spent, so the error goes in-band
            await self._end_in_band(answer.message, answer.type, answer.param, answer.code)
        else:
            await caller.start(
                answer.status,
                [*answer.headers, *self.headers(), (b"content-length", b"%d" % len(answer.body))],
            )
            await caller.send(answer.body, more=False)
        self.finish(outcome, answer.status, answer.code)

    async def _tell_break(self, error: UpstreamError, reply: Reply) -> None:
        if not self.caller.started:  # cannot happen for a complete JSON body; be honest if it does
            await self._answer(errors.answer(502, error.message, code="stream_interrupted"), "truncated")
            return
        message = f"the answer of {reply.upstream.name} broke off before it was complete: {error.message}"
        await self._end_in_band(message, "server_error", None, "stream_interrupted")
        self.finish("truncated", reply.status, "stream_interrupted")

    async def _end_in_band(self, message: str, type: str, param: str | None, code: str | None) -> None:
        await self.caller.send(error_event(self._endpoint, message, type, param, code), more=True)
        await self.caller.send(b"", more=False)

    def finish(self, outcome: str, status: int, error_code: str | None = None) -> None:
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
                max(0.0, seconds - (call.waited_seconds if call is not None else 0.0)),
                reply.first_token_seconds if reply is not None else None,
                reply.usage if reply is not None else None,
                error_code,
            )
        )

    def close(self) -> None:
        """Give everything back; on every way out."""
        self.caller.release()
        if self.reply is not None:
            self.reply.close()
