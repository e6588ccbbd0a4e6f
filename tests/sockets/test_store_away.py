"""A Redis that dies, hangs, forgets or dawdles in the middle of calls: none fails, none waits long."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

import pytest
from harness import eventually
from redis_support import RedisServer, Wire
from starlette.types import Message, Receive, Scope, Send

from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import StateConfig
from sentinel_proxy.events import Event, Noticed
from sentinel_proxy.middleware.limits import RateLimitMiddleware
from sentinel_proxy.model import Load, StateHealth, Trace
from sentinel_proxy.replica import limits, link
from sentinel_proxy.replica.limits import ADMIT_SECONDS, SharedLimit
from sentinel_proxy.replica.link import FAILURES, Link
from sentinel_proxy.resilience.rate_limit import SlidingLog
from sentinel_proxy.stores import store_for

pytestmark = pytest.mark.anyio

CALLERS = 8
CALLS = 200
TOLERATED_SECONDS = 0.05
"""By which an outage of the store may slow a call."""

TICK_SECONDS = 0.002
WENT = "the state store is away; this replica goes on alone"
BACK = "the state store is back"


@dataclass
class Answer:
    """How one call went."""

    began: float
    ended: float
    status: int
    while_away: bool  # the store was known to be away when it came


@dataclass
class Replica:
    """A process that counts its clients' calls in a Redis, and callers that never stop calling it."""

    url: str
    limit: int
    answers: list[Answer] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        clock, self.state = SystemClock(), StateHealth()
        store = store_for(StateConfig(url=self.url), clock)
        assert store is not None
        log = SlidingLog(self.limit, 60.0)
        self.link = Link(store, clock, self.state, self.events.append, "01REPLICA")
        shared = SharedLimit(log, self.link, clock)
        self._serve = RateLimitMiddleware(_application, log, {}, (), Load(), clock, shared)

    @property
    def told(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Noticed)]

    async def call(self) -> int:
        """Make one call, and return the status that was answered."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {
            "type": "http",
            "path": "/v1/chat/completions",
            "client": ("203.0.113.9", 1),
            "headers": [],
            Trace.SCOPE_KEY: Trace("t", 0.0),
        }
        now, away = asyncio.get_running_loop().time, not self.link.up
        began = now()
        await self._serve(scope, _unread, send)
        status: int = sent[0]["status"]
        self.answers.append(Answer(began, now(), status, away))
        return status

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Have callers call without end, a few at a time."""
        tasks = [asyncio.create_task(self._call_on()) for _ in range(CALLERS)]
        tasks.append(asyncio.create_task(self._note_stalls()))
        try:
            yield
            assert not [task for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def calls_more(self, calls: int = CALLS) -> None:
        """Wait until so many more were answered."""
        enough = len(self.answers) + calls
        await eventually(lambda: len(self.answers) >= enough, 20)

    async def _call_on(self) -> None:
        while True:
            await self.call()
            await asyncio.sleep(TICK_SECONDS)

    async def _note_stalls(self) -> None:
        """Note when the event loop did not turn: that is a busy machine's fault, and nobody else's."""
        now = asyncio.get_running_loop().time
        while True:
            due = now() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.stalls.append((due, now()))

    def waited(self, answer: Answer) -> float:
        """Return how many seconds a call took while the event loop turned."""
        stalled = (min(answer.ended, end) - max(answer.began, begin) for begin, end in self.stalls)
        return answer.ended - answer.began - sum(max(0.0, seconds) for seconds in stalled)


async def _application(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def _unread() -> Message:
    raise AssertionError("the body is not to be read")


@asynccontextmanager
async def counting(url: str, limit: int = 1_000_000) -> AsyncIterator[Replica]:
    replica = Replica(url, limit)
    async with replica.link.running():
        yield replica


@dataclass
class Network:
    """A Redis and the way to it."""

    server: RedisServer
    wire: Wire

    async def pause(self) -> None:
        self.server.pause()

    async def resume(self) -> None:
        self.server.resume()

    async def kill(self) -> None:
        await self.server.kill()

    async def start(self) -> None:
        await self.server.start()

    async def swallow(self) -> None:
        self.wire.swallow()

    async def carry_on(self) -> None:
        self.wire.carry_on()

    async def slow(self) -> None:
        self.wire.delay_seconds = 0.1

    async def quick(self) -> None:
        self.wire.delay_seconds = 0.0


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    async with RedisServer() as server, Wire(server.port) as wire:
        yield Network(server, wire)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BYPASS_SECONDS", 0.1)


Order = Callable[[Network], Awaitable[None]]


@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        (Network.kill, Network.start),
        (Network.pause, Network.resume),
        (Network.swallow, Network.carry_on),
        (Network.slow, Network.quick),
    ],
    ids=["J02 killed", "stopped", "J03 black hole", "J04 200 ms slow"],
)
async def test_a_store_that_goes_in_the_middle_of_calls_costs_none_of_them_much(
    break_it: Order, mend_it: Order, network: Network
) -> None:
    async with counting(network.wire.url) as replica, replica.under_load():
        await replica.calls_more()
        calm = median(replica.waited(answer) for answer in replica.answers)
        begin = len(replica.answers)

        await break_it(network)
        await eventually(lambda: not replica.link.up, 20)
        await replica.calls_more()
        away = replica.told == [WENT]
        await mend_it(network)
        await eventually(lambda: replica.link.up, 20)
        await replica.calls_more()

    disturbed = replica.answers[begin:]
    slowed = [replica.waited(answer) - calm for answer in disturbed]
    unasked = [replica.waited(answer) for answer in disturbed if answer.while_away]
    assert away
    assert replica.told == [WENT, BACK]
    assert {answer.status for answer in replica.answers} == {200}
    assert max(slowed) <= TOLERATED_SECONDS
    assert sum(seconds > ADMIT_SECONDS / 2 for seconds in slowed) <= (FAILURES + 1) * CALLERS
    assert len(unasked) >= CALLS
    assert max(unasked) <= ADMIT_SECONDS / 2
    assert replica.state.errors["write"] >= FAILURES


async def test_a_store_that_forgets_everything_is_no_outage(network: Network) -> None:
    async with counting(network.wire.url) as replica, replica.under_load():
        await replica.calls_more()
        await network.server.command("FLUSHALL")
        await network.server.command("SCRIPT", "FLUSH")
        await replica.calls_more()

        assert replica.link.up

    assert {answer.status for answer in replica.answers} == {200}
    assert replica.told == []


async def test_j01_a_replica_starts_without_its_store_and_finds_it_later(network: Network) -> None:
    await network.kill()
    async with counting(network.wire.url) as replica:
        statuses = [await replica.call() for _ in range(10)]
        await network.start()
        await eventually(lambda: replica.link.up, 20)
        statuses += [await replica.call() for _ in range(10)]

    assert statuses == [200] * 20
    assert replica.told == [WENT, BACK]


async def test_i05_two_replicas_let_exactly_as_many_through_as_one(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ADMIT_SECONDS", 10)  # a busy machine is no reason to go without
    url = network.server.url
    async with counting(url, limit=100) as one, counting(url, limit=100) as other:
        statuses = await asyncio.gather(*(replica.call() for replica in (one, other) for _ in range(100)))

    assert Counter(statuses) == {200: 100, 429: 100}
