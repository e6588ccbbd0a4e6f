"""
A stream that is slow to begin: the next provider's turn, made early.

Off unless `[hedge]` says otherwise. `Hedging` decides which calls may be hedged and when;
`Hedge` is the race of one call. It is no second walk of the chain: a hedge *is* the first
attempt of the provider whose turn would come next, so a call whose providers all fail makes
as many attempts as without it. The rules and their reasons are in docs/decisions/0012-hedging.md.

The call's own task makes the first attempt, as ever, and an alarm on the wheel is all that a
quick call pays. Only when it rings a task is made, for the other provider. If that one is the
first to say something, the call's task is interrupted as `asyncio.timeout` does it: cancelled,
and the cancellation taken back.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.config import HedgeConfig
from sentinel_proxy.eligibility import may_go_on, unfit
from sentinel_proxy.errors import UpstreamError, forget_frames
from sentinel_proxy.events import CallHedged, Emit
from sentinel_proxy.model import HEDGED, Call, Endpoint, Load
from sentinel_proxy.reply import Reply
from sentinel_proxy.resilience.hedge import FirstTokens, HedgeBudget
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wheel import Wheel

MAX_LOAD: Final = 0.7
"""Of `server.max_in_flight`; a busier process has better uses for its places than second attempts."""

MAX_PROMPT_BYTES: Final = 32_768
"""Some 8 k tokens: a longer prompt costs too much to be paid for twice, and is slow by nature."""

_ENDPOINTS: Final = {Endpoint.CHAT, Endpoint.COMPLETIONS}

Try = Callable[[], Coroutine[Any, Any, Reply]]
"""Makes one attempt: takes a permit, votes, and leaves its mark in the call's trail."""

Prepare = Callable[[Upstream], Try]
"""Encodes the call for an upstream; raises what `Provider.encode` raises."""


class Hedging:
    """
    Which calls may be hedged, after how long, and what that has cost; shared by all calls.

    Args:
        load: How busy the process is.
        max_in_flight: How busy it may be.
        emit: Told of every hedge; must not raise or block.
    """

    def __init__(
        self,
        settings: HedgeConfig,
        load: Load,
        max_in_flight: int,
        wheel: Wheel,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self.first_tokens = FirstTokens()
        self.budget = HedgeBudget(settings.budget)
        self.wheel = wheel
        self.clock = clock
        self.emit = emit
        self._delay_seconds = settings.delay
        self._load = load
        self._max_in_flight = max_in_flight

    def __repr__(self) -> str:
        return f"<Hedging, {self.budget!r}>"

    def hedge(self, call: Call, chain: Sequence[Upstream], prepare: Prepare) -> "Hedge | None":
        """Return the race that *call* may become, or None if it may not."""
        if len(chain) < 2 or not may_be_hedged(call):
            return None
        self.budget.note_call()
        return Hedge(self, call, chain, prepare)

    def late_after(self, provider: str, model: str, now: float) -> float | None:
        """Return after how many seconds a stream is slow; None as long as nobody can say."""
        return self._delay_seconds or self.first_tokens.late_after(provider, model, now)

    def allows(self, call: Call, chain: Sequence[Upstream]) -> bool:
        """Whether this is no time of trouble: then a second request could be the one too many."""
        return (
            not self.budget.spent
            and self._load.in_flight <= MAX_LOAD * self._max_in_flight
            and all(_untroubled(upstream, call) for upstream in chain)
        )


class Hedge:
    """
    The one hedge of one call: whether it was made, and how it goes.

    Ask `first` for the first attempt at every upstream that is asked. Nothing of it is left once
    that has returned or raised, but for a failure that the other upstream's turn begins with.
    """

    __slots__ = (
        "_after_seconds",
        "_both_since",
        "_call",
        "_chain",
        "_leader",
        "_overtaken",
        "_place",
        "_policy",
        "_prepare",
        "_target",
        "_task",
    )

    def __init__(self, policy: Hedging, call: Call, chain: Sequence[Upstream], prepare: Prepare) -> None:
        self._policy = policy
        self._call = call
        self._chain = chain
        self._prepare = prepare
        self._target: Upstream | None = None  # where the hedge goes, once it is made
        self._task: asyncio.Task[Reply] | None = None
        self._after_seconds = 0.0  # how long the other one had said nothing when it was made
        self._both_since: float | None = None  # monotonic seconds, while two attempts are under way
        self._place = 0  # in the trail, of the attempt that was made before the hedge
        self._leader: asyncio.Task[Any] | None = None  # the call's task, while it makes that attempt
        self._overtaken = False

    def __repr__(self) -> str:
        at = "not made" if self._target is None else f"at {self._target.name}"
        return f"<Hedge of {self._call.trace_id}, {at}>"

    async def first(self, upstream: Upstream, attempt: Try) -> Reply:
        """
        Return the first reply to *attempt*, the call's first at *upstream*, or to its hedge.

        Cancelling ends both and counts as nobody's failure.

        Raises:
            UpstreamError: *attempt* failed, and so did the hedge if there was one.
            BreakerOpen: *attempt* was refused.
        """
        if self._task is not None:
            return await (self._task if upstream is self._target else attempt())
        if self._call.attempts:  # it has failed once: from here on it fails over as ever
            return await attempt()
        started = self._policy.clock.monotonic()
        try:
            reply = await self._lead(upstream, attempt, started)
        except _Overtaken:
            return self._won_by_hedge(upstream)
        except UpstreamError as failure:
            return await self._after(failure, upstream)
        except BaseException:
            await self._stop()
            self._tell(upstream, "")
            raise
        self._note(upstream, self._policy.clock.monotonic() - started)
        return await self._won_by_leader(reply)

    async def _lead(self, upstream: Upstream, attempt: Try, started: float) -> Reply:
        """Make the first attempt, until the hedge has won."""
        late_after = self._policy.late_after(upstream.name, self._model(upstream), started)
        if late_after is None:
            return await attempt()
        leader = self._leader = asyncio.current_task()
        assert leader is not None
        cancelling = leader.cancelling()
        alarm = self._policy.wheel.set(started + late_after, partial(self._make, upstream, started))
        try:
            return await attempt()
        except asyncio.CancelledError:
            if self._overtaken and leader.uncancel() <= cancelling:
                raise _Overtaken from None
            raise  # the caller hung up, whoever else may have won at the same moment
        finally:
            alarm.cancel()
            self._leader = None
            self._one_has_ended()

    def _make(self, slow: Upstream, started: float) -> None:
        """It is late: ask the next one too, if this is a time for it. Rung by the wheel: never raises."""
        policy, call = self._policy, self._call
        try:
            target = self._next_after(slow)
            if target is None or not policy.allows(call, self._chain):
                return
            attempt = self._prepare(target)
        except Exception:  # a plugin's mistake, or it cannot express the call: its own turn will tell
            return
        now = policy.clock.monotonic()
        if not slow.budget.take(now) or not policy.budget.take():
            return
        self._target, self._place = target, len(call.trail)
        self._after_seconds, self._both_since = now - started, now
        self._task = asyncio.create_task(attempt(), name=f"hedge at {target.name}")
        self._task.add_done_callback(self._hedge_ended)

    def _next_after(self, slow: Upstream) -> Upstream | None:
        """Return whose turn would come if *slow* failed, unless it would be refused now."""
        call, first = self._call, self._chain[0].provider
        rest = self._chain[self._chain.index(slow) + 1 :]
        target = next((other for other in rest if unfit(other.provider, call, first) is None), None)
        if target is None or not target.admits(self._model(target), self._policy.clock.monotonic()):
            return None
        return target

    def _hedge_ended(self, task: asyncio.Task[Reply]) -> None:
        self._one_has_ended()
        won = not task.cancelled() and task.exception() is None
        if won and self._leader is not None:
            self._overtaken = True
            self._leader.cancel()

    def _one_has_ended(self) -> None:
        """From here on at most one of them waits. What both have waited is one wait to the caller."""
        if self._both_since is not None:
            self._call.waited_seconds -= self._policy.clock.monotonic() - self._both_since
            self._both_since = None

    # How it ends.

    def _won_by_hedge(self, slow: Upstream) -> Reply:
        assert self._task is not None
        assert self._target is not None
        loser = self._call.given_up.pop()
        self._note(slow, loser.seconds)  # at least so long: without it, the slowest would never count
        loser.result = HEDGED
        self._call.trail.insert(self._place, loser)
        self._tell(slow, self._target.name)
        return self._task.result()

    async def _won_by_leader(self, reply: Reply) -> Reply:
        if self._task is not None:
            self._put_in_order()
            try:
                await self._stop()
            except BaseException:
                reply.close()
                raise
            self._mark_loser()
            self._tell(reply.upstream, reply.upstream.name)
        return reply

    async def _after(self, failure: UpstreamError, upstream: Upstream) -> Reply:
        """The first attempt has failed: its failover is on its way already, so see what comes of that."""
        if self._task is None or self._target is None:
            raise failure
        self._put_in_order()
        if not may_go_on(self._call, failure):
            await self._stop()
            self._mark_loser()
            self._tell(upstream, "")
            raise failure
        try:
            reply = await self._task
        except asyncio.CancelledError:
            await self._stop()
            self._tell(upstream, "")
            raise
        except Exception as error:  # told when its turn comes
            forget_frames(error)
            self._tell(upstream, "")
            raise failure from None
        self._tell(upstream, self._target.name)
        return reply

    async def _stop(self) -> None:
        """
        End the hedge and give back everything that it holds; that takes a turn of the event loop.

        Unless it has failed by itself it is as if it had not been made, should its turn come yet.
        """
        task = self._task
        if task is None:
            return
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        if task.cancelled():
            self._task = None
        elif task.exception() is None:
            self._task = None
            task.result().close()

    def _put_in_order(self) -> None:
        """Attempts enter the trail as they end; the one that was made before the hedge stands before it."""
        trail = self._call.trail
        trail.insert(self._place, trail.pop())

    def _mark_loser(self) -> None:
        """Say in the trail that the hedge was given up, unless it had failed by itself."""
        call, target = self._call, self._target
        assert target is not None
        call.trail += call.given_up
        call.given_up.clear()
        for attempt in call.trail[self._place + 1 :]:
            if attempt.provider == target.name and attempt.kind is None and attempt.sent:
                attempt.result = HEDGED

    # What is told.

    def _note(self, upstream: Upstream, seconds: float) -> None:
        now = self._policy.clock.monotonic()
        self._policy.first_tokens.note(upstream.name, self._model(upstream), seconds, now)

    def _tell(self, slow: Upstream, winner: str) -> None:
        if self._target is not None:
            told = CallHedged(self._call.trace_id, slow.name, self._target.name, winner, self._after_seconds)
            self._policy.emit(told)

    def _model(self, upstream: Upstream) -> str:
        return upstream.provider.model_for(self._call.model)


class _Overtaken(Exception):
    """The hedge was first to say something."""


def may_be_hedged(call: Call) -> bool:
    """Whether a second request for *call* does no harm and is worth its price, as far as the call tells."""
    return (
        call.stream
        and call.endpoint in _ENDPOINTS
        and len(call.body) <= MAX_PROMPT_BYTES
        and not call.payload.get("store")  # or the provider that loses would keep it too
    )


def _untroubled(upstream: Upstream, call: Call) -> bool:
    """Whether neither the breaker of *upstream* nor that of the model called there has moved."""
    return upstream.breakers.undisturbed(upstream.provider.model_for(call.model))
