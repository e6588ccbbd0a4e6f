"""A Redis that dies, hangs, forgets or dawdles in the middle of calls: none fails, none waits long."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
from harness import Start, chain, eventually
from redis_support import RedisServer, Wire
from starlette.types import Message, Receive, Scope, Send

from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import RateLimitConfig, StateConfig, TimeoutsConfig
from sentinel_proxy.events import Event, Noticed
from sentinel_proxy.middleware.limits import RateLimitMiddleware
from sentinel_proxy.model import Load, StateHealth, Trace
from sentinel_proxy.replica import limits, link
from sentinel_proxy.replica.limits import SharedLimit
from sentinel_proxy.replica.link import FAILURES, Link
from sentinel_proxy.resilience.rate_limit import SlidingLog
from sentinel_proxy.stores import store_for
from sentinel_proxy.testing import FaultyUpstream, openai_completion

pytestmark = pytest.mark.anyio

CALLERS = 8
CALLS = 200
TOLERATED_SECONDS = 0.05
"""By which an outage of the store may slow a call."""

COMMAND_SECONDS = 0.25
"""What a call would wait if it waited for a command to end."""

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


class Traffic:
    """Callers that never stop calling, a few at a time, and how their calls went."""

    def __init__(self, call: Callable[[], Awaitable[int]], state: StateHealth) -> None:
        self.answers: list[Answer] = []
        self._call = call
        self._state = state
        self._stalls: list[tuple[float, float]] = []

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
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

    def statuses(self) -> set[int]:
        return {answer.status for answer in self.answers}

    def waited(self, answer: Answer) -> float:
        """Return how many seconds a call took while the event loop turned."""
        stalled = (min(answer.ended, end) - max(answer.began, begin) for begin, end in self._stalls)
        return answer.ended - answer.began - sum(max(0.0, seconds) for seconds in stalled)

    async def _call_on(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            began, away = now(), not self._state.up
            status = await self._call()
            self.answers.append(Answer(began, now(), status, away))
            await asyncio.sleep(TICK_SECONDS)

    async def _note_stalls(self) -> None:
        """Note when the event loop did not turn: that is a busy machine's fault, and nobody else's."""
        now = asyncio.get_running_loop().time
        while True:
            due = now() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self._stalls.append((due, now()))


class Replica:
    """A process that counts its clients' calls in a Redis."""

    def __init__(self, url: str, limit: int) -> None:
        clock, self.state = SystemClock(), StateHealth()
        store = store_for(StateConfig(url=url), clock)
        assert store is not None
        self.events: list[Event] = []
        self.link = Link(store, clock, self.state, self.events.append, "01REPLICA")
        log = SlidingLog(limit, 60.0)
        shared = SharedLimit(log, self.link, clock)
        self._serve = RateLimitMiddleware(_application, log, {}, (), Load(), clock, shared)
        self.traffic = Traffic(self.call, self.state)

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
        await self._serve(scope, _unread, send)
        status: int = sent[0]["status"]
        return status


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


FAULTS = pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        (Network.kill, Network.start),
        (Network.pause, Network.resume),
        (Network.swallow, Network.carry_on),
        (Network.slow, Network.quick),
    ],
    ids=["J02 killed", "stopped", "J03 black hole", "J04 200 ms slow"],
)


@FAULTS
async def test_a_store_that_goes_in_the_middle_of_calls_costs_none_of_them_much(
    break_it: Order, mend_it: Order, network: Network
) -> None:
    async with counting(network.wire.url) as replica, replica.traffic.flowing():
        traffic = replica.traffic
        await traffic.calls_more()
        calm = median(traffic.waited(answer) for answer in traffic.answers)
        begin = len(traffic.answers)

        await break_it(network)
        await eventually(lambda: not replica.link.up, 20)
        await traffic.calls_more()
        await mend_it(network)
        await eventually(lambda: replica.link.up, 20)
        await traffic.calls_more()

    disturbed = traffic.answers[begin:]
    slowed = [traffic.waited(answer) - calm for answer in disturbed]
    unasked = [traffic.waited(answer) for answer in disturbed if answer.while_away]
    assert replica.told[0::2] == [WENT] * len(replica.told[0::2])  # once, but a busy machine makes for more
    assert replica.told[1::2] == [BACK] * len(replica.told[1::2])
    assert traffic.statuses() == {200}
    assert max(slowed) <= TOLERATED_SECONDS
    accidents = FAILURES * len(replica.told) + 1
    assert sum(seconds > limits.ADMIT_SECONDS / 2 for seconds in slowed) <= accidents * CALLERS
    assert len(unasked) >= CALLS
    assert max(unasked) <= limits.ADMIT_SECONDS / 2
    assert replica.state.errors["write"] >= FAILURES


@FAULTS
async def test_no_call_through_a_proxy_fails_while_its_store_does(
    break_it: Order, mend_it: Order, network: Network, start: Start, primary: FaultyUpstream
) -> None:
    primary.always(openai_completion("served"))
    shared: dict[str, Any] = {
        "state": StateConfig(url=network.wire.url),
        "rate_limit": RateLimitConfig(requests=1_000_000),
    }
    patient = TimeoutsConfig(connect=20, first_token=20, idle=20, progress=20, answer=20, total=60)
    harness = await start(chain(primary, timeouts=patient, **shared))

    async def call() -> int:
        return (await harness.chat()).status_code

    async def shows(status: str, metric: str) -> None:
        """Wait until `/health` and `/metrics` say so; the proxy stays in service all the while."""
        async with asyncio.timeout(20):
            while True:
                health, metrics = [await harness.client.get(path) for path in ("/health", "/metrics")]
                assert (health.status_code, (await harness.client.get("/readyz")).status_code) == (200, 200)
                assert health.json()["state"]["kind"] == "redis"
                if health.json()["state"]["status"] == status and metric in metrics.text:
                    return

    traffic = Traffic(call, harness.proxy.state)
    async with traffic.flowing():
        await traffic.calls_more(40)
        await shows("up", "sentinel_state_up 1.0")
        calm = median(traffic.waited(answer) for answer in traffic.answers)
        await break_it(network)
        await shows("away", "sentinel_state_up 0.0")
        await traffic.calls_more(40)
        await mend_it(network)
        await shows("up", "sentinel_state_up 1.0")
        await traffic.calls_more(40)

    assert traffic.statuses() == {200}
    assert max(traffic.waited(answer) for answer in traffic.answers) - calm <= COMMAND_SECONDS


async def test_j05_a_store_that_forgets_everything_is_no_outage(network: Network) -> None:
    async with counting(network.wire.url) as replica, replica.traffic.flowing():
        await replica.traffic.calls_more()
        await network.server.command("FLUSHALL")
        await network.server.command("SCRIPT", "FLUSH")
        await replica.traffic.calls_more()

        assert replica.link.up

    assert replica.traffic.statuses() == {200}
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
