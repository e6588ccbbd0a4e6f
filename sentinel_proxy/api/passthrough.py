"""Any other path below `/v1`: streamed through in both directions, bytes untouched."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from sentinel_proxy.api import errors, headers
from sentinel_proxy.api.calls import read_controls
from sentinel_proxy.api.line import Line, Service
from sentinel_proxy.api.relay import Caller
from sentinel_proxy.errors import CallerError, UpstreamError, forget_frames
from sentinel_proxy.model import Call, Endpoint, Headers, Outcome, Trace, UpstreamRequest, header
from sentinel_proxy.passthrough import Passthrough, RawReply
from sentinel_proxy.providers.openai import OpenAIProvider

METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


def routes(service: Service, passthrough: Passthrough) -> Sequence[BaseRoute]:
    """Return the one route that takes what no other has taken."""
    return [Route("/v1/{path:path}", endpoint=StreamedThrough(service, passthrough), methods=METHODS)]


class StreamedThrough:
    """`* /v1/...`"""

    def __init__(self, service: Service, passthrough: Passthrough) -> None:
        self._service = service
        self._passthrough = passthrough

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(self._service, scope, receive, send, Endpoint.PASSTHROUGH)
        reply: RawReply | None = None
        try:
            call = line.call = self._call(scope)
            limit_bytes = self._service.config.server.max_upload_bytes
            upload = Upload(scope["headers"], line.caller, limit_bytes)
            path = scope["raw_path"].decode("latin-1").removeprefix("/v1")

            def request_for(provider: OpenAIProvider) -> UpstreamRequest:
                return provider.passthrough(
                    scope["method"],
                    path,
                    call.query,
                    call.headers,
                    upload.body(),
                    upload.length,
                    traceparent=call.traceparent,
                )

            reply = await self._passthrough.open(call, request_for)
            kept = headers.relayed(reply.headers, with_body=True)
            if reply.status >= 400:
                kept += errors.advice(reply.status, kept)
            await line.caller.start(reply.status, [*kept, *line.headers()])
            while data := await reply.read():
                await line.caller.send(data, more=True)
            await line.caller.send(b"", more=False)
            line.finish(_outcome(reply.status), reply.status)
        except UpstreamError as error:
            forget_frames(error)
            # The body broke. Ending without its last byte is the only honest way to say so.
            line.finish(Outcome.TRUNCATED, reply.status if reply is not None else 502, "stream_interrupted")
        except BaseException as error:
            await line.fail(error)
        finally:
            line.close()
            if reply is not None:
                reply.close()

    def _call(self, scope: Scope) -> Call:
        trace: Trace = scope[Trace.SCOPE_KEY]
        controls = read_controls(scope["headers"])
        total_seconds = self._service.config.timeouts.total
        return Call(
            trace_id=trace.trace_id,
            endpoint=Endpoint.PASSTHROUGH,
            body=b"",
            payload={},
            model="",
            stream=True,
            started=trace.started,
            deadline=trace.started + min(controls.timeout_seconds or total_seconds, total_seconds),
            headers=scope["headers"],
            query=scope["query_string"],
            traceparent=trace.traceparent,
            client=trace.client,
            controls=controls,
        )


class Upload:
    """The request's body, handed on as it arrives."""

    def __init__(self, headers: Headers, caller: Caller, limit_bytes: int) -> None:
        declared = header(headers, b"content-length")
        self.length = int(declared) if declared is not None and declared.isdigit() else None
        self._has_body = bool(self.length) or header(headers, b"transfer-encoding") is not None
        self._caller = caller
        self._limit_bytes = limit_bytes
        if self.length is not None and self.length > limit_bytes:
            raise self._too_large()
        if not self._has_body:
            caller.watch()

    def body(self) -> bytes | AsyncIterator[bytes]:
        """Return the body to send; nothing is read before the first part is asked for."""
        return self._parts() if self._has_body else b""

    async def _parts(self) -> AsyncIterator[bytes]:
        size, more = 0, True
        while more:
            part, more = await self._caller.part()
            size += len(part)
            if size > self._limit_bytes:
                raise self._too_large()
            if part:
                yield part
        self._caller.watch()

    def _too_large(self) -> CallerError:
        message = f"the upload is larger than the {self._limit_bytes} bytes that are accepted here"
        return CallerError(message, status=413, code="request_too_large")


def _outcome(status: int) -> Outcome:
    return Outcome.SUCCESS if status < 400 else Outcome.CALLER_ERROR if status < 500 else Outcome.FAILURE
