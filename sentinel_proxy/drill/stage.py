"""
One scenario's own world: simulated servers, the real proxy before them, and a caller.

Everything is on loopback and of one scenario only, so none can disturb another. Leaving the
stage closes all of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import Config
from sentinel_proxy.drill.caller import Caller, Got
from sentinel_proxy.drill.chain import Chain, drilled
from sentinel_proxy.drill.policy import Policy
from sentinel_proxy.drill.skipping import STEP_SECONDS, LoopClock, SkippingLoop
from sentinel_proxy.drill.standin import StandIn
from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.events import Bus, Event
from sentinel_proxy.model import UpstreamRequest
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.providers.registry import Registry
from sentinel_proxy.server import running
from sentinel_proxy.upstream.base import Exchange, Transport
from sentinel_proxy.upstream.chain import default_transport
from sentinel_proxy.wheel import Wheel

SETTLE_SECONDS: Final = 2.0
"""How long after a call something of it may still be open."""

LOOKS: Final = 20


MakeProxy = Callable[..., Proxy]
"""How a proxy is made, with the arguments of `Proxy`; `Proxy` itself, unless another one is drilled."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """How a server cannot be reached: acted out before the socket, for loopback has no such thing."""

    kind: FailureKind
    message: str

    async def strike(self, connect_seconds: float) -> None:
        """Fail as a dialler does, after as long."""
        if self.kind is FailureKind.CONNECT_TIMEOUT:
            await asyncio.sleep(connect_seconds)
        raise UpstreamError(self.kind, self.message)


class _Unreached(Transport):
    """A transport whose server cannot be reached while the stage says so."""

    def __init__(self, inner: Transport, why: Callable[[], Unreachable | None]) -> None:
        self._inner = inner
        self._why = why

    @property
    def active(self) -> int:
        """How many exchanges are open, where the transport tells."""
        return int(getattr(self._inner, "active", 0))

    async def open(self, request: UpstreamRequest, *, connect_seconds: float, until: float) -> Exchange:
        if (why := self._why()) is not None:
            await why.strike(connect_seconds)
        return await self._inner.open(request, connect_seconds=connect_seconds, until=until)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Stage:
    """
    What a scenario plays on.

    Attributes:
        servers: The simulated servers, in the order of the chain.
        unreachable: Why the first provider cannot be reached; None: it can.
        events: What the proxy has reported.
    """

    def __init__(self, policy: Policy, servers: Sequence[StandIn]) -> None:
        self.policy = policy
        self.servers = servers
        self.first = servers[0]
        self.unreachable: Unreachable | None = None
        self.events: list[Event] = []
        self.proxy: Proxy
        self.caller: Caller

    @property
    def asked(self) -> list[int]:
        """How often each server was asked."""
        return [len(server.calls) for server in self.servers]

    @property
    def answers(self) -> list[int]:
        """How often each server answered well."""
        return [server.answers for server in self.servers]

    async def call(self) -> Got:
        """Make one call, as this run makes them."""
        return await self.caller.call(streamed=self.policy.streamed)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in which nobody calls."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)
        loop.skip(seconds)
        await asyncio.sleep(STEP_SECONDS)  # what became due meanwhile has its turn first

    def transport(self, provider: Provider, wheel: Wheel) -> Transport:
        """Make a provider's own transport; the first one's can be cut off."""
        inner = default_transport(provider, wheel)
        if provider is self.policy.providers[0]:
            return _Unreached(inner, lambda: self.unreachable)
        return inner

    async def leftovers(self) -> list[str]:
        """Return what is still held although every call is over; waits a little for it to be let go."""
        await self.settled(lambda: not self._held())
        return self._held()

    async def settled(self, done: Callable[[], object]) -> None:
        """Wait until *done* is true, or should be."""
        for _ in range(LOOKS):
            if done():
                return
            await asyncio.sleep(SETTLE_SECONDS / LOOKS)

    def _held(self) -> list[str]:
        held = ["the proxy holds a call that is over"] if self.proxy.load.in_flight else []
        for upstream in self.proxy.upstreams:
            if upstream.in_flight or getattr(upstream.transport, "active", 0):
                held.append(f"the proxy holds a connection to {upstream.name} that nobody uses")
        return held


@asynccontextmanager
async def staged(
    config: Config, chain: Chain, make_proxy: MakeProxy, *, streamed: bool
) -> AsyncIterator[Stage]:
    """Set up a stage for one run of one scenario."""
    async with AsyncExitStack() as stack:
        servers = [StandIn(at + 1, streamed=streamed) for at in range(len(chain.links))]
        for server in servers:
            await stack.enter_async_context(server)
        providers = [
            link.pointed_at(server.server.url) for link, server in zip(chain.links, servers, strict=True)
        ]
        policy = Policy(drilled(config), providers, chain.links, streamed)
        registry = Registry()
        for provider, link, server in zip(providers, chain.links, servers, strict=True):
            registry.register(provider)
            server.take_the_place_of(provider, link.dialect, policy.call())
        stage = Stage(policy, servers)
        bus = Bus()
        bus.subscribe_all(stage.events.append)
        stage.proxy = make_proxy(
            policy.config,
            registry=registry,
            bus=bus,
            clock=LoopClock(),
            uniform=lambda _, longest: longest,
            transport=stage.transport,
        )
        url = await stack.enter_async_context(running(stage.proxy))
        limits = httpx.Limits(max_keepalive_connections=0)  # each call is somebody else's
        client = httpx.AsyncClient(base_url=url, limits=limits, trust_env=False, verify=False)
        await stack.enter_async_context(client)
        stage.caller = Caller(client, config.default_model, patience_seconds=policy.total + 60)
        yield stage
