"""
The story of a call: providers in order until one begins to answer.

Read it top to bottom. `open` walks the chain, `_ask` gives one provider its tries, `_attempt`
takes the permit and reports how it went, `_begin` sends the call and waits for an answer worth
committing to. Where a provider is slow and `[hedge]` allows it, `hedging` makes the first attempt
of the next one early; the walk stays the same. What follows from each failure is looked up in
`errors.CONSEQUENCES`; how long to wait comes from `resilience.deadline`; what the bytes mean from
the provider's decoder.

The commit point is the return of `open`: before it nothing has reached the caller and every
failure is a silent failover, after it the `Reply` owns the connection and the permit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.eligibility import may_go_on, overflowed_tokens, unfit
from sentinel_proxy.errors import BreakerOpen, FailureKind, NoReply, UpstreamError, forget_frames
from sentinel_proxy.events import AttemptFailed, CallFailedOver, CallRetried, Emit
from sentinel_proxy.hedging import Hedge, Hedging, Try
from sentinel_proxy.model import Attempt, Call, UpstreamRequest
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.reply import Reply
from sentinel_proxy.resilience.retry import RetryPolicy
from sentinel_proxy.resilience.scopes import ScopedPermit
from sentinel_proxy.upstream.base import Exchange
from sentinel_proxy.upstream.decoding import plain
from sentinel_proxy.upstream.upstream import Upstream, preferred

MAX_ERROR_BYTES: Final = 65_536
"""How much of an error's body is read; OpenAI's are below 1 KiB, a CDN's HTML below 16 KiB."""

MAX_PRELUDE_BYTES: Final = 65_536
"""How much may come before the first token that means something; real preludes are below 1 KiB."""

Failure = UpstreamError | BreakerOpen
Wrap = Callable[[Decoder], Decoder]


class Failover:
    """
    Asks the upstreams of a chain, in order, until one begins to answer.

    Args:
        upstreams: In order of preference.
        retry: Decides about further tries at the same provider.
        emit: Told every fact; must not raise or block.
        hedging: Asks a second one where the first is slow; None: nobody does.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        retry: RetryPolicy,
        clock: Clock,
        emit: Emit,
        hedging: Hedging | None = None,
    ) -> None:
        self.upstreams = tuple(upstreams)
        self._retry = retry
        self._clock = clock
        self._emit = emit
        self._hedging = hedging

    def __repr__(self) -> str:
        return f"<Failover {' -> '.join(upstream.name for upstream in self.upstreams)}>"

    async def open(self, call: Call, wrap: Wrap | None = None) -> Reply:
        """
        Return the first reply that begins.

        Cancelling closes what was opened and counts as nobody's failure.

        Args:
            wrap: Put around the decoder of each attempt; it then decides what has begun.

        Raises:
            CallerError: The caller named a provider that is not there.
            NoReply: Nobody began to answer before the call's deadline; `call.trail` tells why.
        """
        wanted = preferred(self.upstreams, call.controls)
        chain = self._strangers_last(wanted, call)
        if chain is not wanted and chain[0] is not wanted[0]:
            kind = FailureKind.MODEL_NOT_FOUND
            call.trail.append(Attempt(wanted[0].name, kind.value, kind, sent=False))
        hedge: Hedge | None = None
        if self._hedging is not None:
            hedge = self._hedging.hedge(call, chain, partial(self._tries, call=call, wrap=wrap))
        failures: list[Failure] = []
        overflowed = 0
        for position, upstream in enumerate(chain):
            if self._clock.monotonic() >= call.deadline:
                raise NoReply(failures, deadline_exceeded=True)
            try:
                if (reason := unfit(upstream.provider, call, wanted[0].provider, overflowed)) is not None:
                    raise self._passed_by(upstream, call, reason)
                reply = await self._ask(upstream, call, wrap, others=chain[position + 1 :], hedge=hedge)
            except (UpstreamError, BreakerOpen) as failure:
                forget_frames(failure)
                failures.append(failure)
                if not may_go_on(call, failure):
                    break
                overflowed = max(overflowed, overflowed_tokens(upstream.provider, failure))
            else:
                return self._opened(reply, call, wanted[0])
        if call.attempts == 0 and (resting := _first_to_rise(chain, failures)) is not None:
            reply = await self._last_resort(resting, call, wrap, failures)
            return self._opened(reply, call, wanted[0])
        raise NoReply(failures, deadline_exceeded=self._clock.monotonic() >= call.deadline)

    def chain(self, call: Call) -> Sequence[Upstream]:
        """Return the upstreams to ask for *call*, in order."""
        return self._strangers_last(preferred(self.upstreams, call.controls), call)

    def _strangers_last(self, chain: Sequence[Upstream], call: Call) -> Sequence[Upstream]:
        """
        Move back who said lately that it does not know the model.

        It is asked last, not never: if nobody knows it, the caller should hear so from the
        horse's mouth.
        """
        for upstream in chain:
            if upstream.missing:
                return sorted(chain, key=partial(_is_stranger, call.model, self._clock.monotonic()))
        return chain

    def _another(self, call: Call, rest: Sequence[Upstream]) -> bool:
        """Whether one of the *rest* of the chain could be asked now."""
        now = self._clock.monotonic()
        return any(
            upstream.provider.serves(call.endpoint)
            and upstream.admits(upstream.provider.model_for(call.model), now)
            for upstream in rest
        )

    async def _ask(
        self,
        upstream: Upstream,
        call: Call,
        wrap: Wrap | None,
        *,
        others: Sequence[Upstream] = (),
        hedge: Hedge | None = None,
        early: bool = False,
    ) -> Reply:
        """
        Give one provider its tries, as many as the retry policy and the deadline allow.

        Args:
            others: Who would be asked next: where nobody else is left, more is worth trying here.
            hedge: Makes the first try, and may give another's reply; None: the call has none.
        """
        try:
            attempt = self._tries(upstream, call, wrap, early=early)
        except UpstreamError as refused:
            raise self._passed_by(upstream, call, refused) from None
        upstream.budget.note_call(self._clock.monotonic())
        try:
            return await (attempt() if hedge is None else hedge.first(upstream, attempt))
        except UpstreamError as failure:
            forget_frames(failure)
            first = failure
        if not call.trail[-1].sent or self._rests(upstream, call):
            raise first
        try:
            return await self._retry.again(
                attempt,
                first,
                alone=not self._another(call, others),
                retried_by_client=call.retried_by_client,
                deadline=call.deadline,
                budget=upstream.budget,
                on_retry=partial(self._retrying, upstream, call),
            )
        except BreakerOpen:  # tripped by others during the pause: what we know better is why it failed us
            raise first from None

    def _tries(self, upstream: Upstream, call: Call, wrap: Wrap | None, *, early: bool = False) -> Try:
        """Encode *call* once; return what makes an attempt of it, as often as it is called."""
        request = upstream.provider.encode(call)
        return partial(self._attempt, upstream, call, request, wrap, early)

    def _rests(self, upstream: Upstream, call: Call) -> bool:
        model = upstream.provider.model_for(call.model)
        return upstream.breakers.rest(model, self._clock.monotonic()) > 0

    def _retrying(self, upstream: Upstream, call: Call, pause_seconds: float) -> None:
        call.waited_seconds += pause_seconds
        self._emit(CallRetried(call.trace_id, upstream.name, pause_seconds))

    async def _attempt(
        self, upstream: Upstream, call: Call, request: UpstreamRequest, wrap: Wrap | None, early: bool
    ) -> Reply:
        """Try once: take a permit, and see to it that the attempt votes exactly once."""
        clock = self._clock
        started = clock.monotonic()
        model = upstream.provider.model_for(call.model)
        try:
            permit = upstream.admit(model, started, early=early)
        except (UpstreamError, BreakerOpen) as refused:
            raise self._passed_by(upstream, call, refused) from None

        upstream.in_flight += 1
        try:
            reply = await self._begin(upstream, call, request, wrap, model, permit, started)
        except UpstreamError as error:
            upstream.in_flight -= 1
            now = clock.monotonic()
            call.trail.append(_ended(call, upstream, model, started, now, error.label, error.kind))
            self._emit(  # before the vote, so that whoever listens hears the cause before the effect
                AttemptFailed(
                    call.trace_id, upstream.name, model, error.kind, error.label, error.message, now - started
                )
            )
            permit.fail(error, now)
            upstream.learn(error, model, now)
            raise
        except BaseException:
            upstream.in_flight -= 1
            now = clock.monotonic()
            call.given_up.append(_ended(call, upstream, model, started, now, "cancelled"))
            permit.release(now)
            raise
        call.trail.append(_ended(call, upstream, model, started, clock.monotonic(), str(reply.status)))
        return reply

    async def _begin(
        self,
        upstream: Upstream,
        call: Call,
        request: UpstreamRequest,
        wrap: Wrap | None,
        model: str,
        permit: ScopedPermit,
        started: float,
    ) -> Reply:
        """Send the call and return once there is something worth committing to."""
        waits = upstream.waits.of(call, model)
        until = min(started + waits.begin, call.deadline)
        exchange: Exchange | None = None
        try:
            exchange = await upstream.transport.open(request, connect_seconds=waits.connect, until=until)
            exchange = plain(exchange)
            if not _is_success(exchange):
                body = await _error_body(exchange, until)
                raise upstream.provider.failure(call, exchange.head, body)
            decoder = upstream.provider.decoder(call, exchange.head)
            if wrap is not None:
                decoder = wrap(decoder)
            first = await _until_begun(exchange, decoder, until)
        except BaseException:
            if exchange is not None:
                exchange.close(reuse=not _is_success(exchange))  # a 2xx that failed was not the API's
            raise
        return Reply(
            call,
            upstream,
            model,
            exchange,
            decoder,
            permit,
            first,
            waits=waits,
            lossy=request.lossy,
            clock=self._clock,
        )

    async def _last_resort(
        self, upstream: Upstream, call: Call, wrap: Wrap | None, failures: list[Failure]
    ) -> Reply:
        """Everyone rests: one call at a time may try early, rather than all being refused by our own hand."""
        try:
            return await self._ask(upstream, call, wrap, early=True)
        except (UpstreamError, BreakerOpen) as failure:
            forget_frames(failure)
            raise NoReply([*failures, failure]) from None

    def _passed_by(self, upstream: Upstream, call: Call, failure: Failure) -> Failure:
        """Note in the trail that nothing was sent, and why."""
        if isinstance(failure, BreakerOpen):
            call.trail.append(Attempt(upstream.name, "open", sent=False))
        else:
            label = "limited" if failure.kind in _LIMITED else failure.kind.value
            call.trail.append(Attempt(upstream.name, label, failure.kind, sent=False))
        return failure

    def _opened(self, reply: Reply, call: Call, first: Upstream) -> Reply:
        if reply.upstream is not first:
            reply.failover = True
            results = [attempt.result for attempt in call.trail if attempt.provider == first.name]
            reason = results[-1] if results else "unknown"
            self._emit(CallFailedOver(call.trace_id, first.name, reply.upstream.name, reason))
        return reply


def _is_stranger(model: str, now: float, upstream: Upstream) -> bool:
    return upstream.misses(upstream.provider.model_for(model), now)


_LIMITED: Final = {FailureKind.THROTTLED, FailureKind.LOCAL}


def _first_to_rise(chain: Sequence[Upstream], failures: Sequence[Failure]) -> Upstream | None:
    """Return the upstream whose rest ends first, or None if no breaker is to blame."""
    rests = [
        (failure.retry_after, upstream)
        for upstream, failure in zip(chain, failures, strict=False)
        if isinstance(failure, BreakerOpen)
    ]
    return min(rests, key=lambda pair: pair[0])[1] if rests else None


def _ended(
    call: Call,
    upstream: Upstream,
    model: str,
    started: float,
    now: float,
    result: str,
    kind: FailureKind | None = None,
) -> Attempt:
    """Return what is noted of an attempt that has ended *now*; its time is time that *call* has waited."""
    seconds = now - started
    call.waited_seconds += seconds
    return Attempt(upstream.name, result, kind, True, seconds, started, model)


def _is_success(exchange: Exchange) -> bool:
    return 200 <= exchange.head.status < 300


async def _until_begun(exchange: Exchange, decoder: Decoder, until: float) -> bytes:
    """
    Read until the answer has begun; return everything that may be sent by then.

    Raises:
        UpstreamError: It ended, broke or said that it failed before it began.
    """
    output = b""
    while not decoder.began:
        data = b"" if exchange.complete else await exchange.read(until)
        output += decoder.feed(data) if data else decoder.close()
        if exchange.complete and data and not decoder.complete and decoder.failure is None:
            output += decoder.close()
        if decoder.failure is not None:  # also with tokens in hand: nothing of them was sent yet
            raise decoder.failure
        if decoder.complete:
            break
        if len(output) > MAX_PRELUDE_BYTES and not decoder.began:
            raise UpstreamError(FailureKind.PROTOCOL, "the stream went on and on without saying anything")
    return output


async def _error_body(exchange: Exchange, until: float) -> bytes:
    """Read what an error says, as far as it comes and no further than is useful."""
    body = b""
    try:
        while not exchange.complete and len(body) < MAX_ERROR_BYTES:
            body += await exchange.read(until)
    except UpstreamError as error:
        forget_frames(error)  # the status has said what matters
    return body[:MAX_ERROR_BYTES]
