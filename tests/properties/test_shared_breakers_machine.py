"""Three replicas that share breakers, and everything that may keep them from it, in any order."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fake_store import FakeState
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from shared_breakers_support import MODEL, OF_MODEL, OF_PROVIDER, Replica, done, spread

from sentinel_proxy.errors import UpstreamError
from sentinel_proxy.events import BreakerChanged
from sentinel_proxy.replica.breakers import SAME_REST_SECONDS
from sentinel_proxy.replica.trials import KEPT_SECONDS, LEASE_SECONDS, ROUND_SECONDS
from sentinel_proxy.resilience.breaker import State
from sentinel_proxy.resilience.scopes import ScopedPermit
from sentinel_proxy.stores.records import BreakerRecord
from sentinel_proxy.testing import FakeClock

REPLICAS: Final = st.integers(0, 2)
KINDS: Final = st.sampled_from([OF_PROVIDER, OF_MODEL])
SECONDS: Final = st.sampled_from([1, 4, 6, 30, 36, 60])


@dataclass(eq=False)
class Leave:
    """
    A permit that is out.

    Attributes:
        shared: Whether it is a trial that was to be the only one: admitted with a lease that
            has not been lost since.
    """

    permit: ScopedPermit
    replica: Replica
    shared: bool
    given: float


@dataclass
class Order:
    """What an operator has ordered of one replica."""

    replica: Replica
    orders: int
    until: float | None  # None: a reset


class SharedBreakersMachine(RuleBasedStateMachine):
    """Calls, operators, cuts, lost news, crashes and a store that forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.state = FakeState(self.clock)
        self.started = 0
        self.replicas = [self.start() for _ in range(3)]
        self.out: list[Leave] = []
        self.given: list[Order] = []
        self.alone_until = dict.fromkeys(self.replicas, 0.0)  # until then, leases may not be worth much

    def start(self) -> Replica:
        self.started += 1
        return Replica(self.state, self.clock, f"replica-{self.started}")

    def teardown(self) -> None:
        self.run(done)
        self.loop.close()

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def run(self, step: Callable[[], Awaitable[object]]) -> None:
        async def in_a_task() -> None:
            await step()

        self.loop.run_until_complete(in_a_task())

    def act(self, act: Callable[[], None], *, soon: bool = True) -> None:
        """Do something in the loop; *soon*: what it leaves to be done is done before anything else."""

        async def step() -> None:
            act()
            if soon:
                await done()

        self.run(step)

    def excuse(self, *replicas: Replica) -> None:
        """The trials of these may have lost their lease: others may try from now on."""
        for leave in self.out:
            if leave.replica in replicas:
                leave.shared = False

    # Calls.

    @rule(calls=st.lists(REPLICAS, min_size=1, max_size=6), soon=st.booleans())
    def call(self, calls: list[int], soon: bool) -> None:
        for which in calls:
            replica = self.replicas[which]
            self.act(partial(self.one_call, replica), soon=soon)

    def one_call(self, replica: Replica) -> None:
        own = replica.own
        rests = own.state in (State.OPEN, State.ISOLATED) and (own.until or 0.0) > self.now
        permit = replica.acquire()
        if permit is None:
            return
        assert not rests, "admitted in the middle of a rest"
        cut = not replica.health.up or self.now < self.alone_until[replica]
        self.out.append(Leave(permit, replica, permit.trial and not cut, self.now))

    @rule(which=REPLICAS)
    def call_early(self, which: int) -> None:
        replica = self.replicas[which]

        def call() -> None:
            isolated = replica.state() is State.ISOLATED and replica.own.rest(self.now) > 0
            permit = replica.breakers.acquire_early(MODEL, self.now)
            assert permit is None or not isolated
            if permit is not None:
                self.out.append(Leave(permit, replica, False, self.now))

        self.act(call)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100), soon=st.booleans())
    def succeed(self, which: int, soon: bool) -> None:
        leave = self.out.pop(which % len(self.out))
        self.act(lambda: leave.permit.succeed(self.now), soon=soon)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100), kind=KINDS, soon=st.booleans())
    def fail(self, which: int, kind: object, soon: bool) -> None:
        leave = self.out.pop(which % len(self.out))
        failure = UpstreamError(OF_MODEL if kind is OF_MODEL else OF_PROVIDER, "it failed")
        self.act(lambda: leave.permit.fail(failure, self.now), soon=soon)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def hang_up(self, which: int) -> None:
        leave = self.out.pop(which % len(self.out))
        self.act(lambda: leave.permit.release(self.now))

    @rule(which=REPLICAS, kind=KINDS)
    def break_down(self, which: int, kind: object) -> None:
        """Three failures in a row, which chance alone would seldom bring about."""
        replica = self.replicas[which]
        failure = UpstreamError(OF_MODEL if kind is OF_MODEL else OF_PROVIDER, "it failed")

        def break_down() -> None:
            for _ in range(3):
                permit = replica.acquire()
                if permit is not None:
                    permit.fail(failure, self.now)

        self.act(break_down)

    @rule(which=REPLICAS, kind=KINDS, calls=st.lists(REPLICAS, max_size=4))
    def rest(self, which: int, kind: object, calls: list[int]) -> None:
        """An outage that all have heard of, some calls that are refused, and the end of the rest."""
        self.break_down(which, kind)
        self.agree()
        self.pass_time(20)
        self.call(calls, soon=True)
        self.pass_time(10)

    # Operators.

    @rule(which=REPLICAS, seconds=SECONDS)
    def isolate(self, which: int, seconds: int) -> None:
        replica, until = self.replicas[which], self.now + seconds
        self.act(lambda: replica.breakers.isolate(self.now, until, "maintenance"))
        self.given.append(Order(replica, replica.own.orders, until))

    @rule(which=REPLICAS)
    def reset(self, which: int) -> None:
        replica = self.replicas[which]
        self.act(lambda: replica.breakers.reset(self.now, "well"))
        self.given.append(Order(replica, replica.own.orders, None))

    # What goes wrong.

    @rule(which=REPLICAS, known=st.booleans())
    def cut(self, which: int, known: bool) -> None:
        replica = self.replicas[which]
        replica.store.away = True
        replica.health.up = replica.health.up and not known
        self.alone_until[replica] = float("inf")
        self.excuse(replica)

    @rule(which=REPLICAS)
    def rejoin(self, which: int) -> None:
        replica = self.replicas[which]
        if replica.store.away:
            replica.rejoin()
            self.alone_until[replica] = self.now + KEPT_SECONDS

    @rule(which=REPLICAS, deaf=st.booleans())
    def lose_news(self, which: int, deaf: bool) -> None:
        self.replicas[which].store.deaf = deaf

    @rule()
    def forget(self) -> None:
        """The store loses everything, leases as well: those that are out, and those in hand."""
        self.state.forget()
        self.excuse(*self.replicas)
        for replica in self.replicas:
            self.alone_until[replica] = max(self.alone_until[replica], self.now + KEPT_SECONDS)

    @rule(which=REPLICAS)
    def crash(self, which: int) -> None:
        """A replica is killed, and another one is started in its place."""
        killed = self.replicas[which]
        self.run(done)
        killed.store.closed = True
        killed.health.up = False
        self.out = [leave for leave in self.out if leave.replica is not killed]
        self.replicas[which] = replica = self.start()
        self.alone_until[replica] = 0.0
        self.given = [order for order in self.given if order.orders <= self.last_known_order()]

    def last_known_order(self) -> int:
        """Return the last order that anybody knows of, or will hear of."""
        told = [kept.record for kept in self.state.records.values()]
        told += [
            news
            for replica in self.replicas
            for news in replica.store.unheard()
            if isinstance(news, BreakerRecord)
        ]
        known = [replica.own.orders for replica in self.replicas]
        return max(known + [record.orders for record in told if record.model is None])

    # Time.

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: int) -> None:
        """Time passes as it does where nothing hangs: with a round of everybody every two seconds."""

        async def step() -> None:
            left = float(seconds)
            while left > 0:
                self.clock.advance(min(left, ROUND_SECONDS))
                left -= ROUND_SECONDS
                await self.round()

        self.run(step)
        self.forget_the_lost()

    @rule(seconds=SECONDS)
    def hang(self, seconds: int) -> None:
        """Everything stands still, and nobody renews anything."""
        self.clock.advance(seconds)
        if seconds >= LEASE_SECONDS - ROUND_SECONDS:
            self.excuse(*self.replicas)
        self.forget_the_lost()

    async def round(self) -> None:
        for replica in self.replicas:
            await replica.shared.tick()
            if replica.link.up and not replica.store.away:
                await replica.shared.synchronise()
        await done()

    def forget_the_lost(self) -> None:
        """A trial that took too long has given up its place, whoever still waits for it."""
        for leave in self.out:
            leave.shared = leave.shared and self.now - leave.given < 35

    @rule(which=REPLICAS)
    def hear(self, which: int) -> None:
        self.run(self.replicas[which].hear)
        self.run(done)

    @rule()
    def agree(self) -> None:
        """
        Everybody can hear everybody again: after one round all are of one mind.

        After another one also about how long it will last.
        """
        for replica in self.replicas:
            if replica.store.away:
                replica.rejoin()
                self.alone_until[replica] = self.now + KEPT_SECONDS
            replica.store.deaf = False

        async def step() -> None:
            await self.round()
            await spread(*self.replicas)

        self.run(step)
        assert len({self.mind_of(replica) for replica in self.replicas}) == 1
        self.operators_are_obeyed()
        self.run(step)
        assert len({self.mind_of(replica) for replica in self.replicas}) == 1
        rests = [self.rest_of(replica) for replica in self.replicas]
        assert max(rests) - min(rests) <= SAME_REST_SECONDS

    def mind_of(self, replica: Replica) -> tuple[object, ...]:
        """What a replica thinks of the provider and the model; of what is closed, no more than that."""
        own = replica.own
        numbers = () if own.state is State.CLOSED else (own.orders, own.era)
        return (own.state, *numbers, replica.state(MODEL))

    def rest_of(self, replica: Replica) -> float:
        return replica.own.snapshot(self.now).rest_seconds

    def operators_are_obeyed(self) -> None:
        """The last order stands until it expires; of several given at once, one does."""
        last = max((order.orders for order in self.given), default=0)
        ends = [order.until for order in self.given if order.orders == last]
        if ends and all(until is not None and until > self.now for until in ends):
            assert {replica.state() for replica in self.replicas} == {State.ISOLATED}

    # What always holds.

    @invariant()
    def one_trial_at_a_time(self) -> None:
        for scope in (None, MODEL):
            trials = [
                leave
                for leave in self.out
                if leave.shared and self.decides(leave.permit, leave.replica, scope)
            ]
            assert len(trials) <= 1, f"{len(trials)} trials of {scope or 'the provider'}"

    @staticmethod
    def decides(permit: ScopedPermit, replica: Replica, model: str | None) -> bool:
        """Whether *permit* is a trial, still valid, of the provider's breaker or that of *model*."""
        trial = permit._own if model is None else permit._model_trial
        return trial is not None and trial.trial and trial.counts

    @invariant()
    def every_change_is_told_once(self) -> None:
        """Whoever only listens knows the state of each breaker, though it moves here and elsewhere."""
        for replica in self.replicas:
            heard: dict[str | None, str] = {}
            for event in replica.events:
                if isinstance(event, BreakerChanged):
                    assert event.before == heard.get(event.model, "closed") != event.after
                    heard[event.model] = event.after
            for model in (None, MODEL):
                assert heard.get(model, "closed") == replica.state(model).value


TestSharedBreakersMachine = SharedBreakersMachine.TestCase
TestSharedBreakersMachine.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
