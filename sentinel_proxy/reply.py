"""
An answer that has begun, and everything it holds.

`failover` makes replies, `api.relay` sends them on, `rescue` carries broken ones on. Whoever has
one closes it; the connection, the permit and the place at the upstream go back then.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.errors import UpstreamError, forget_frames
from sentinel_proxy.model import Call, Headers, Usage
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.resilience.deadline import FINISH_GRACE_SECONDS, Patience
from sentinel_proxy.resilience.scopes import ScopedPermit
from sentinel_proxy.upstream.base import Exchange
from sentinel_proxy.upstream.upstream import Upstream

Write = Callable[[bytes, float], bool]
"""Sends bytes to the caller at once, given the moment; returns False where the caller must be waited for."""

TRIAL_PROOF_SECONDS: Final = 5.0
"""A trial that has streamed this long has proved its point; a whole answer may take minutes."""

LINGER_SECONDS: Final = 1.0
"""After `[DONE]` the body ends at once; waiting for that keeps the connection for the next call."""


class Reply:
    """
    An answer that has begun. It owns the exchange, the permit and its place at the upstream.

    Close it on every way out; closing before the end is nobody's failure (the caller hung up).
    """

    __slots__ = (
        "_busy_seconds",
        "_call",
        "_clock",
        "_closed",
        "_exchange",
        "_first",
        "_patience",
        "_permit",
        "_progress",
        "_progress_at",
        "_proved_at",
        "_write",
        "decoder",
        "failover",
        "first_token_seconds",
        "lossy",
        "model",
        "rescued",
        "upstream",
    )

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        model: str,
        exchange: Exchange,
        decoder: Decoder,
        permit: ScopedPermit,
        first: bytes,
        *,
        waits: Patience,
        lossy: tuple[str, ...],
        clock: Clock,
    ) -> None:
        now = clock.monotonic()
        self._call = call
        self._clock = clock
        self._exchange = exchange
        self.decoder = decoder
        self._permit = permit
        self._first = first
        self._patience = waits
        self._progress = decoder.progress
        self._progress_at = now
        self._proved_at = now + TRIAL_PROOF_SECONDS if permit.trial else inf  # a trial's point, by progress
        self._write: Write | None = None  # while bytes are poured
        self._busy_seconds = 0.0  # of our own, in what was poured
        self._closed = False
        self.upstream = upstream
        self.model = model
        self.lossy = lossy
        self.failover = False  # whether any but the first of the chain answers
        self.rescued = False  # whether it goes on where another one broke off
        self.first_token_seconds = now - call.started

    def __repr__(self) -> str:
        state = "closed" if self._closed else "complete" if self.complete else "open"
        return f"<Reply of {self.upstream.name} to {self._call.trace_id}, {state}>"

    @property
    def status(self) -> int:
        """The winning upstream's status, 2xx."""
        return self._exchange.head.status

    @property
    def headers(self) -> Headers:
        """The winning upstream's response headers, as they came."""
        return self._exchange.head.headers

    @property
    def complete(self) -> bool:
        """Whether the answer has ended well."""
        return self.decoder.complete

    @property
    def usage(self) -> Usage | None:
        """Tokens, as far as the upstream has told."""
        return self.decoder.usage

    @property
    def served_model(self) -> str:
        """The model that answers, as the upstream names it, or else as we asked for it."""
        return self.decoder.model or self.model

    def belongs_to(self, call: Call) -> None:
        """Count what is waited for from now on as time of *call*, which this reply carries on."""
        self._call = call

    async def read(self) -> bytes:
        """
        Return the next bytes for the caller as soon as there are any, `b""` at the end.

        For a stream these are whole SSE events; for any other call one complete JSON body.

        Raises:
            UpstreamError: The answer broke; it has voted, and everything good that came before
                was returned. There is no way back to another provider from here but a rescue.
        """
        decoder = self.decoder
        if self._first:
            first, self._first = self._first, b""
            return first
        while not decoder.complete:
            if decoder.failure is not None:
                raise self._broken(decoder.failure)
            output = await self._next()
            self._note_progress(self._clock.monotonic())
            if output:
                return output
        self._permit.succeed(self._clock.monotonic())
        return b""

    async def pour(self, write: Write) -> None:
        """
        Give *write* the next bytes, like `read`, but each in the very callback that brings it.

        Returns where `read` must go on, at the latest at the end of the answer: when it is over
        or broken, when *write* has said by False that the caller must be waited for, and at once
        where the exchange cannot do that.
        """
        decoder, call, clock = self.decoder, self._call, self._clock
        if self._first or decoder.complete or decoder.failure is not None:
            return
        self._write = write
        self._busy_seconds = 0.0
        began = clock.monotonic()
        try:
            await self._exchange.flow(self._until(began), self._sink)
        finally:
            call.waited_seconds += clock.monotonic() - began - self._busy_seconds
            self._write = None

    def _sink(self, data: bytes) -> float:
        """Take what `pour` was brought; return how long to wait for more, 0 where `read` must go on."""
        decoder, monotonic = self.decoder, self._clock.monotonic
        assert self._write is not None
        now = monotonic()
        output = decoder.feed(data)
        self._note_progress(now)
        may_go_on = self._write(output, now) if output else True
        self._busy_seconds += monotonic() - now
        if decoder.complete or decoder.failure is not None or not may_go_on:
            return 0.0
        return self._until(now)

    async def whole(self) -> bytes:
        """
        Return all that is left of an answer that is not a stream; the attempt has voted then.

        Raises:
            UpstreamError: As `read`.
        """
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    async def _next(self) -> bytes:
        """Wait for the upstream's next bytes and return what they say."""
        decoder, exchange, clock = self.decoder, self._exchange, self._clock
        if exchange.complete:
            return decoder.close()
        now = clock.monotonic()
        try:
            data = await exchange.read(self._until(now))
        except UpstreamError as error:
            if decoder.finished:  # all was said; only the terminator is missing
                forget_frames(error)
                return decoder.close()
            raise self._broken(error) from None
        finally:
            self._call.waited_seconds += clock.monotonic() - now
        return decoder.feed(data) if data else decoder.close()

    def _until(self, now: float) -> float:
        """Return how long the next bytes may take to come."""
        waits = self._patience
        until = now + (FINISH_GRACE_SECONDS if self.decoder.finished else waits.idle)
        stalled = self._progress_at + waits.progress
        if stalled < until:  # not `min`, which takes three times as long
            until = stalled
        deadline = self._call.deadline
        return deadline if deadline < until else until

    def _note_progress(self, now: float) -> None:
        if self.decoder.progress != self._progress:
            self._progress = self.decoder.progress
            self._progress_at = now
            if now > self._proved_at:
                self._permit.succeed(now)

    def _broken(self, error: UpstreamError) -> UpstreamError:
        self._permit.fail(error, self._clock.monotonic())
        return error

    def close(self) -> None:
        """Give everything back. Never waits, never raises, may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._exchange.close(LINGER_SECONDS if self.complete else 0.0, reuse=self.complete)
        self._permit.release(self._clock.monotonic())
        self.upstream.in_flight -= 1
