"""
The faces that applications call: `/v1/*` and `/api/chat`.

Plain ASGI endpoints, one object each. A call is read (`calls`), asked (`failover`), and its
reply or its error is sent (`relay`, `errors`); every call ends in exactly one `CallFinished`.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sentinel_proxy.api import headers
from sentinel_proxy.api.calls import parse_object
from sentinel_proxy.api.line import Line, Service
from sentinel_proxy.api.relay import relay, send_whole
from sentinel_proxy.errors import CallerError, UpstreamError
from sentinel_proxy.model import PATHS, Call, Endpoint, Header
from sentinel_proxy.reply import Reply
from sentinel_proxy.wire.json import dumps, loads

JSON = (b"content-type", b"application/json")


def endpoints(service: Service) -> "dict[str, Inference | SimpleChat]":
    """Return what answers a POST, by its path."""
    calls: dict[str, Inference | SimpleChat] = {
        f"/v1{path}": Inference(service, endpoint) for endpoint, path in PATHS.items()
    }
    return calls | {"/api/chat": SimpleChat(service)}


def routes(endpoints: Mapping[str, ASGIApp]) -> Sequence[BaseRoute]:
    """Return the routes of this face."""
    return [Route(path, endpoint=endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]


class Shortcut:
    """
    Takes calls straight to their endpoint; the router has everything else, other methods included.

    Finding a path among all that there are costs a router more than many a whole middleware, and
    its own two layers of error handling have nothing to do here: `Line` ends every call.
    """

    def __init__(self, router: ASGIApp, endpoints: "Mapping[str, Inference | SimpleChat]") -> None:
        self._router = router
        # A method is called faster than an object that has it.
        self._endpoints: dict[str, ASGIApp] = {path: each.__call__ for path, each in endpoints.items()}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope.get("method") == "POST":  # only HTTP has methods
            endpoint = self._endpoints.get(scope["path"], self._router)
        else:
            endpoint = self._router
        return endpoint(scope, receive, send)


class Inference:
    """`POST /v1/<endpoint>`: what the SDKs call."""

    def __init__(self, service: Service, endpoint: Endpoint) -> None:
        self._service = service
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(self._service, scope, receive, send, self._endpoint)
        try:
            call = await line.read()
            line.watch(call)
            reply = line.reply = await self._service.failover.open(call)
            own = headers.relayed(reply.headers)
            own += line.headers()
            if call.stream:
                await self._stream(line, call, reply, own)
            else:
                own.append(JSON)
                await send_whole(line.caller, reply.status, own, await reply.whole())
            line.succeed()
        except BaseException as error:
            await line.fail(error)
        finally:
            line.close()

    async def _stream(self, line: Line, call: Call, reply: Reply, own: list[Header]) -> None:
        """Relay a stream; where it breaks off, go on with what the rescue comes up with."""
        load = self._service.load
        load.open_streams += 1
        try:
            while True:
                try:
                    await relay(reply, line.caller, own)
                    return
                except UpstreamError as broke:
                    reply = line.reply = await self._service.rescue.resume(call, reply, broke)
        finally:
            load.open_streams -= 1


class SimpleChat:
    """`POST /api/chat`: the simple form, for scripts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(self._service, scope, receive, send, Endpoint.CHAT)
        try:
            call = await line.read(self._as_chat_completion)
            line.watch(call)
            reply = line.reply = await self._service.failover.open(call)
            body = dumps(self._simple(call, reply, loads(await reply.whole()), line.seconds()))
            await send_whole(line.caller, 200, [*line.headers(), JSON], body)
            line.succeed()
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
