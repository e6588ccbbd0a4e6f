"""
Everything below `/v1` that is not inference: files, audio, images, batches, moderations.

Such calls may have side effects and often carry ids that only one provider knows. So they go
to the first provider of kind "openai" that admits them, as streams in both directions, and
never to a second one once a byte may have arrived at the first.
"""

from collections.abc import Callable, Sequence
from typing import Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.errors import BreakerOpen, FailureKind, NoReply, UpstreamError, forget_frames
from sentinel_proxy.events import AttemptFailed, Emit
from sentinel_proxy.model import Attempt, Call, Headers, UpstreamRequest
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.resilience.scopes import ScopedPermit
from sentinel_proxy.upstream.base import Exchange
from sentinel_proxy.upstream.upstream import Upstream, preferred

NOTHING_SENT: Final = {
    FailureKind.CONNECT,
    FailureKind.CERTIFICATE,
    FailureKind.CONNECT_TIMEOUT,
    FailureKind.LOCAL,
}
"""Failures that prove that the upstream has seen nothing of the request."""

_NO_MODEL: Final = ""
"""The breaker key of calls that name no model we know of."""


class RawReply:
    """An upstream's answer of any status, as it comes. Close it on every way out."""

    def __init__(
        self, call: Call, upstream: Upstream, exchange: Exchange, permit: ScopedPermit, clock: Clock
    ) -> None:
        self._call = call
        self._exchange = exchange
        self._permit = permit
        self._clock = clock
        self._closed = False
        self.upstream = upstream

    def __repr__(self) -> str:
        return f"<RawReply of {self.upstream.name} to {self._call.trace_id}>"

    @property
    def status(self) -> int:
        """The upstream's status."""
        return self._exchange.head.status

    @property
    def headers(self) -> Headers:
        """The upstream's response headers, as they came."""
        return self._exchange.head.headers

    async def read(self) -> bytes:
        """
        Return the next bytes of the body, `b""` at its end.

        Raises:
            UpstreamError: It broke; what was sent so far is not the whole.
        """
        if self._exchange.complete:
            self._settle()
            return b""
        now = self._clock.monotonic()
        try:
            data = await self._exchange.read(min(now + self.upstream.timeouts.progress, self._call.deadline))
        except UpstreamError as error:
            self._permit.fail(error, self._clock.monotonic())
            raise
        finally:
            self._call.waited_seconds += self._clock.monotonic() - now
        if not data:
            self._settle()
        return data

    def _settle(self) -> None:
        """Vote: only a server error speaks against the provider, only a success for it."""
        now = self._clock.monotonic()
        if self.status >= 500:
            error = UpstreamError(FailureKind.OVERLOADED, f"it answered {self.status}", status=self.status)
            self._permit.fail(error, now)
        elif self.status < 400:
            self._permit.succeed(now)

    def close(self) -> None:
        """Give everything back. Never waits, never raises, may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._exchange.close()
        self._permit.release(self._clock.monotonic())
        self.upstream.in_flight -= 1


class Passthrough:
    """Asks the providers of kind "openai", in order, until one has begun to listen."""

    def __init__(self, upstreams: Sequence[Upstream], clock: Clock, emit: Emit) -> None:
        self._upstreams = tuple(upstreams)
        self._clock = clock
        self._emit = emit

    async def open(self, call: Call, request_for: Callable[[OpenAIProvider], UpstreamRequest]) -> RawReply:
        """
        Return the answer that begins, whatever its status.

        Args:
            request_for: Makes the request; a streamed body is only touched once a connection
                is there, so it can be offered to the next provider after a failed connect.

        Raises:
            CallerError: The caller named a provider that is not there.
            NoReply: No provider could be asked, or the one that was failed.
        """
        failures: list[UpstreamError | BreakerOpen] = []
        for upstream in preferred(self._upstreams, call.controls):
            provider = upstream.provider
            if not isinstance(provider, OpenAIProvider):
                continue
            request = request_for(provider)
            try:
                permit = upstream.admit(_NO_MODEL, self._clock.monotonic())
            except (UpstreamError, BreakerOpen) as refused:
                label = "open" if isinstance(refused, BreakerOpen) else "limited"
                call.trail.append(Attempt(upstream.name, label, sent=False))
                forget_frames(refused)
                failures.append(refused)
                continue
            try:
                return await self._attempt(upstream, call, request, permit)
            except UpstreamError as error:
                forget_frames(error)
                failures.append(error)
                if error.kind not in NOTHING_SENT:
                    break
        raise NoReply(failures)

    async def _attempt(
        self, upstream: Upstream, call: Call, request: UpstreamRequest, permit: ScopedPermit
    ) -> RawReply:
        clock = self._clock
        started = clock.monotonic()
        upstream.in_flight += 1
        try:
            exchange = await upstream.transport.open(
                request, connect_seconds=upstream.timeouts.connect, until=call.deadline
            )
        except BaseException as error:
            upstream.in_flight -= 1
            now = clock.monotonic()
            if isinstance(error, UpstreamError):
                permit.fail(error, now)
                call.trail.append(
                    Attempt(upstream.name, error.label, error.kind, seconds=now - started, started=started)
                )
                self._emit(
                    AttemptFailed(
                        call.trace_id,
                        upstream.name,
                        "",
                        error.kind,
                        error.label,
                        error.message,
                        now - started,
                    )
                )
            else:
                call.given_up.append(
                    Attempt(upstream.name, "cancelled", seconds=now - started, started=started)
                )
                permit.release(now)
            raise
        finally:
            call.waited_seconds += clock.monotonic() - started
        seconds = clock.monotonic() - started
        call.trail.append(Attempt(upstream.name, str(exchange.head.status), seconds=seconds, started=started))
        return RawReply(call, upstream, exchange, permit, clock)
