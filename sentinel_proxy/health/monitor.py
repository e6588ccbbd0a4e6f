"""
The monitor: asks every provider now and then, and listens to how calls go.

One task. Every round asks those providers that have not just answered a call, all at once and
each within `health.timeout`; how one of them answers never keeps the others waiting for their
next round. Rounds are jittered so that replicas do not march in step.

Where replicas hear of each other one of them leads: it asks, and tells the others what it found
out, which then know it as if they had asked. Only the breakers are not voted on twice; they are
shared by themselves. A replica that has just come asks once for itself, for nobody repeats what
was told before.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import takewhile
from typing import Any, Final

from sentinel_proxy.background import background
from sentinel_proxy.clock import Clock
from sentinel_proxy.config import HealthConfig
from sentinel_proxy.errors import CONSEQUENCES, FailureKind, UpstreamError, Vote
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFinished,
    Emit,
    HealthChecked,
    MappedModelsChecked,
    Noticed,
    ProbeFinished,
)
from sentinel_proxy.health.probe import ask, probe
from sentinel_proxy.health.telling import Report, decoded, encoded
from sentinel_proxy.health.view import Moment, provider_view, status_of
from sentinel_proxy.health.watch import Watch
from sentinel_proxy.model import Outcome, ProbeResult
from sentinel_proxy.providers.base import ModelEntry
from sentinel_proxy.resilience.breaker import State
from sentinel_proxy.upstream.upstream import Upstream

JITTER: Final = 0.2
"""Rounds come up to this share of the interval earlier or later."""

FIRST_ROUND_SHARE: Final = 0.2
"""The first round comes after this share of the interval: what is started together needs a moment."""

_GOOD: Final = frozenset((Outcome.SUCCESS, Outcome.FAILED_OVER, Outcome.RESCUED))
_BAD: Final = frozenset((Outcome.FAILURE, Outcome.TRUNCATED))


class Monitor:
    """
    Knows how every provider is.

    Args:
        upstreams: The chain, in order.
        recovery_timeout: Of the breakers, in seconds.
        emit: Told every fact; must not raise or block.
        uniform: Returns a random number between two.
        leads: Whether this replica asks in rounds; else it listens.
        tell: Given what was found out here, for the `heard` of the others; None: there are none.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        config: HealthConfig,
        recovery_timeout: float,
        clock: Clock,
        emit: Emit,
        uniform: Callable[[float, float], float],
        *,
        leads: Callable[[], bool] = lambda: True,
        tell: Callable[[bytes], None] | None = None,
    ) -> None:
        self._watches: dict[str, Watch] = {}
        self.watch_over(upstreams, config, recovery_timeout)
        self._clock = clock
        self._emit = emit
        self._uniform = uniform
        self._leads = leads
        self._tell = tell
        self._errands: asyncio.TaskGroup | None = None

    def watch_over(
        self, upstreams: Sequence[Upstream], config: HealthConfig, recovery_timeout: float
    ) -> None:
        """Watch this chain from now on; what is known of an upstream that stays is kept."""
        known = {watch.upstream: watch for watch in self._watches.values()}
        self._watches = {
            upstream.name: known.get(upstream) or Watch(upstream, recovery_timeout) for upstream in upstreams
        }
        self._config = config

    def __repr__(self) -> str:
        now = self._clock.monotonic()
        told = (f"{name} {status_of(watch, now)}" for name, watch in self._watches.items())
        return f"<Monitor {', '.join(told)}>"

    # What others ask.

    def view(self) -> dict[str, dict[str, Any]]:
        """Return everything about every provider as JSON has it, by name and in the order of the chain."""
        at = Moment.of(self._clock)
        return {
            name: provider_view(watch, position, at)
            for position, (name, watch) in enumerate(self._watches.items(), start=1)
        }

    def status(self, name: str) -> str:
        """Return "healthy", "degraded" or "down"."""
        return status_of(self._watches[name], self._clock.monotonic())

    def is_up(self, name: str) -> bool:
        """Whether calls may go to a provider."""
        return self.status(name) != "down"

    def breaker(self, name: str) -> State:
        """Return the state of a provider's worst breaker: its own, or that of a model in use."""
        return self._watches[name].upstream.breakers.worst(self._clock.monotonic()).state

    async def probe(self, name: str) -> ProbeResult:
        """
        Ask one provider now, with every consequence of a regular probe.

        While it is being asked already, the question waits for that to end.

        Raises:
            KeyError: There is no such provider.
        """
        watch = self._watches[name]
        async with watch.busy:
            return await self._check(watch)

    # What it hears of calls.

    def listen(self, bus: Bus) -> None:
        """Hear how calls go, and of breakers that move."""
        bus.subscribe(CallFinished, self._call_finished)
        bus.subscribe(AttemptFailed, self._attempt_failed)
        bus.subscribe(BreakerChanged, self._breaker_changed)

    def _call_finished(self, event: CallFinished) -> None:
        """The attempts that began to answer: the last one is how the call ended, earlier ones broke off."""
        call, outcome = event.call, event.outcome
        if call is None:
            return
        now = self._clock.monotonic()
        broke_off = outcome in _BAD
        for attempt in reversed(call.trail):
            if not attempt.answered:
                continue
            watch = self._watches.get(attempt.provider)
            if watch is None:
                pass  # it left the chain while the call went on
            elif broke_off:
                watch.traffic.bad(now)
            elif outcome in _GOOD:
                watch.heard_good(attempt.seconds, now)
            broke_off = True

    def _attempt_failed(self, event: AttemptFailed) -> None:
        watch = self._watches.get(event.provider)
        counts = CONSEQUENCES[event.kind].vote is Vote.FAILURE or event.kind is FailureKind.THROTTLED
        if watch is not None and counts:
            watch.traffic.bad(self._clock.monotonic())

    def _breaker_changed(self, event: BreakerChanged) -> None:
        if event.after == State.CLOSED:
            for watch in self._behind(event.provider):
                watch.warmed = False
        elif self._errands is not None:
            for watch in self._behind(event.provider):
                if self._is_next_in_line(watch) and not watch.warmed:
                    watch.warmed = True
                    self._errands.create_task(self._warm_up(watch), name=f"warm up {watch.name}")

    def _behind(self, name: str) -> list[Watch]:
        watches = list(self._watches.values())
        return watches[list(self._watches).index(name) + 1 :] if name in self._watches else []

    def _is_next_in_line(self, watch: Watch) -> bool:
        """Whether calls come here now because no breaker of those before it is closed."""
        now = self._clock.monotonic()
        before = takewhile(lambda other: other is not watch, self._watches.values())
        return watch.upstream.breakers.own.state is State.CLOSED and all(
            other.upstream.breakers.worst(now).state is not State.CLOSED for other in before
        )

    async def _warm_up(self, watch: Watch) -> None:
        """Make a provider ready before the calls that are about to come. Nothing is learned from it."""
        now = self._clock.monotonic()
        try:
            if (request := watch.upstream.provider.warm_up()) is not None:
                await ask(watch.upstream, request, now + watch.upstream.timeouts.first_token, now)
        except UpstreamError:
            pass  # the calls will tell
        except Exception as error:
            self._emit(_went_wrong("the warm-up of a provider went wrong", watch, error))

    # What it does by itself.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in a task of its own until the context is left."""
        async with background(self.run(), "health monitor"):
            yield

    async def run(self) -> None:
        """Ask everybody, again and again, until cancelled."""
        interval = self._config.interval
        async with asyncio.TaskGroup() as errands:
            self._errands = errands
            try:
                await self._clock.sleep(self._jittered(interval * FIRST_ROUND_SHARE))
                await self.round()
                while True:
                    await self._clock.sleep(self._jittered(interval))
                    await (self.round() if self._leads() else self._round_elsewhere())
            finally:
                self._errands = None

    def _jittered(self, seconds: float) -> float:
        return seconds * self._uniform(1 - JITTER, 1 + JITTER)

    async def round(self) -> None:
        """Ask every provider that is due, all at once."""
        started = self._clock.monotonic()
        await self._ask_all([watch for watch in self._watches.values() if self._is_due(watch, started)])

    async def _round_elsewhere(self) -> None:
        """Mark the time as the one who leads does; ask only for what could not be told."""
        await self._ask_all([watch for watch in self._watches.values() if watch.untold])

    async def _ask_all(self, due: Sequence[Watch]) -> None:
        started = self._clock.monotonic()
        async with asyncio.TaskGroup() as probes:
            for watch in due:
                probes.create_task(self._regular(watch), name=f"probe {watch.name}")
        self._emit(HealthChecked(len(due), self._clock.monotonic() - started))

    def _is_due(self, watch: Watch, now: float) -> bool:
        """Whether there is something to ask: no call was answered lately, nobody is asking now."""
        last_good = watch.traffic.last_good
        answered_lately = last_good is not None and now - last_good < self._config.interval
        return not answered_lately and not watch.busy.locked()

    async def _regular(self, watch: Watch) -> None:
        """Ask one provider; what goes wrong inside a provider's own code concerns nobody else."""
        async with watch.busy:
            try:
                await self._check(watch)
            except Exception as error:
                self._emit(_went_wrong("the probe of a provider went wrong", watch, error))

    async def _check(self, watch: Watch) -> ProbeResult:
        """Ask one provider, let the answer have its consequences, and tell."""
        clock = self._clock
        started = clock.monotonic()
        era = watch.upstream.breakers.own.era
        answer = await probe(watch.upstream, started + self._config.timeout, started)
        entries, what = _catalogue(watch.upstream, answer.body, answer.what)
        now = clock.monotonic()
        watch.take(answer, era, now)
        watch.untold = False
        result = ProbeResult(
            watch.name, clock.time(), now - started, answer.verdict, what, answer.kind, answer.status
        )
        before, watch.last = watch.last, result
        if result.kind is FailureKind.CREDENTIAL and (before is None or before.kind is not result.kind):
            details = {"provider": watch.name, "status": result.status}
            self._emit(Noticed("error", "the provider refuses the proxy's credential", details))
        self._emit(ProbeFinished(result))
        if self._tell is not None:
            self._tell(encoded(Report(result, answer.retry_after, answer.body)))
        if entries is not None:
            self._look_for_models(watch, entries)
        if result.ok:
            await self._ask_more(watch)
        return result

    def heard(self, data: bytes, replica: str) -> None:
        """
        Take what another replica found out as if it had been found out here, but for the vote.

        Args:
            data: What its monitor told.
            replica: Its name.
        """
        try:
            report = decoded(data)
        except ValueError:
            return  # of another version, during an upgrade; a replica of this one will lead soon
        watch = self._watches.get(report.result.provider)
        if watch is None:
            return
        try:
            self._take_over(watch, report, replica)
        except Exception as error:
            self._emit(_went_wrong("the probe of a provider went wrong", watch, error))

    def _take_over(self, watch: Watch, report: Report, replica: str) -> None:
        result, watch.last = report.result, report.result
        watch.hear(result.verdict, result.kind, report.retry_after, self._clock.monotonic())
        watch.untold = report.body is None
        entries, _ = _catalogue(watch.upstream, report.body or b"", "")
        self._emit(ProbeFinished(result, told_by=replica))
        if entries is not None:
            self._look_for_models(watch, entries, told_by=replica)
        if result.ok and self._errands is not None and watch.upstream.provider.questions():
            self._errands.create_task(self._learn_more(watch), name=f"ask more of {watch.name}")

    async def _learn_more(self, watch: Watch) -> None:
        async with watch.busy:
            try:
                await self._ask_more(watch)
            except Exception as error:
                self._emit(_went_wrong("the probe of a provider went wrong", watch, error))

    def _look_for_models(
        self, watch: Watch, entries: Sequence[ModelEntry], told_by: str | None = None
    ) -> None:
        """Say so, once, if a fallback lacks what calls would be sent to there: better now than then."""
        if watch is next(iter(self._watches.values())):
            return  # the first of the chain is not a fallback: its calls tell at once
        missing = watch.missed(entries)
        if missing == watch.missing:
            return
        watch.missing = missing
        if missing and told_by is None:
            details = {"provider": watch.name, "models": missing}
            self._emit(Noticed("warning", "a fallback lacks models that calls would be sent to", details))
        self._emit(MappedModelsChecked(watch.name, missing, told_by))

    async def _ask_more(self, watch: Watch) -> None:
        """Let the provider learn what it wants to know; an answer it cannot use does no harm."""
        for request, read in watch.upstream.provider.questions():
            now = self._clock.monotonic()
            with suppress(UpstreamError):
                status, _, body = await ask(watch.upstream, request, now + self._config.timeout, now)
                if 200 <= status < 300:
                    read(body)


def _catalogue(upstream: Upstream, body: bytes, what: str) -> tuple[Sequence[ModelEntry] | None, str]:
    """Return the models of a good answer, None where it holds no list, and what to say of it."""
    if not body:
        return None, what
    try:
        entries = upstream.provider.catalogue(body)
    except UpstreamError:
        return None, f"{what}, but with no list of models"
    return entries, f"it lists {len(entries)} models"


def _went_wrong(message: str, watch: Watch, error: Exception) -> Noticed:
    """Tell of a bug in a provider's own code; only its type, for its text may quote anything."""
    return Noticed("error", message, {"provider": watch.name, "error": type(error).__name__})
