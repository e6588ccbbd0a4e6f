"""
The composition root: configuration in, ASGI application out.

Everything is put together here, once, by hand; nothing else in the package constructs its own
collaborators. The middleware is one visible list, outermost first, and the lifespan opens what
needs an event loop and closes it in reverse.
"""

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sentinel_proxy import __version__
from sentinel_proxy.admin.access import Access, AccessMiddleware
from sentinel_proxy.admin.broadcast import Broadcast, Pace
from sentinel_proxy.admin.dashboard import Dashboard
from sentinel_proxy.admin.mounting import Beside
from sentinel_proxy.admin.operations import Operations
from sentinel_proxy.admin.reporter import Reporter
from sentinel_proxy.admin.routes import Desk
from sentinel_proxy.api import envelopes, health, metrics, models, passthrough, routes
from sentinel_proxy.api.line import Line, Service
from sentinel_proxy.board import Numbers
from sentinel_proxy.clock import Clock, SystemClock
from sentinel_proxy.config import Config
from sentinel_proxy.events import Bus, Noticed
from sentinel_proxy.failover import Failover
from sentinel_proxy.health import Monitor
from sentinel_proxy.hedging import Hedging
from sentinel_proxy.incidents import Incidents
from sentinel_proxy.metrics import Live, Metrics
from sentinel_proxy.middleware.auth import AuthMiddleware
from sentinel_proxy.middleware.limits import InFlightMiddleware, RateLimitMiddleware
from sentinel_proxy.middleware.mistakes import MistakeMiddleware
from sentinel_proxy.middleware.security_headers import SecurityHeadersMiddleware
from sentinel_proxy.middleware.trace import Samples, TraceMiddleware
from sentinel_proxy.model import Feed, Load, StateHealth
from sentinel_proxy.passthrough import Passthrough
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.providers.configured import default_registry
from sentinel_proxy.providers.registry import Registry
from sentinel_proxy.replica.limits import SharedLimit
from sentinel_proxy.replica.presence import Tally
from sentinel_proxy.replica.replica import Replica
from sentinel_proxy.rescue import Rescue
from sentinel_proxy.resilience.rate_limit import SlidingLog
from sentinel_proxy.resilience.retry import RetryPolicy
from sentinel_proxy.stores import store_for
from sentinel_proxy.ulid import Ulids
from sentinel_proxy.upstream.base import Transport
from sentinel_proxy.upstream.chain import Chain, default_transport
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wheel import Wheel

NORMAL_PACE: Final = Pace()

PROBES: Final = "probes"
"""The topic under which replicas tell each other what their probes found out."""


class Proxy:
    """
    Everything one process is made of; a server runs it as an ASGI application.

    `router` has every path there is; `app` is the middleware around it.

    Args:
        config: The effective configuration.
        registry: The chain; by default the configured providers and the installed plugins.
        bus: Where facts go; subscribe before the application starts.
        transport: Makes the transport of a provider; by default what its configuration names.
        pace: Of the live feed.
        samples: Given where traces are exported; decides which are kept.
        numbers: Where this process counts; several workers have a board for it.

    Attributes:
        name: Of this process among its replicas, a ULID.
        replica: What it shares with them; None where its own memory is all the state there is.
    """

    def __init__(
        self,
        config: Config,
        *,
        registry: Registry | None = None,
        bus: Bus | None = None,
        clock: Clock | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
        transport: Callable[[Provider, Wheel], Transport] = default_transport,
        pace: Pace = NORMAL_PACE,
        samples: Samples | None = None,
        numbers: Numbers | None = None,
    ) -> None:
        self.config = config
        self.bus = bus if bus is not None else Bus()
        self.clock = clock if clock is not None else SystemClock()
        self.wheel = Wheel()
        self.load = Load()
        self.feed = Feed()
        self.state = StateHealth()
        self.name = Ulids().mint(self.clock.time())
        self.registry = registry if registry is not None else default_registry(config)
        self._uniform = uniform
        self._pace = pace
        self._samples = samples
        self._lines: set[Line] = set()
        self._log = SlidingLog(config.rate_limit.requests, config.rate_limit.window)
        self.broadcast = Broadcast(config.state.events, self.clock, self.feed)
        self.replica = self._replica()
        leases = None if self.replica is None else self.replica.breakers.leases
        self.chain = Chain(config, self.registry, transport, self.wheel, self.clock, self.bus.emit, leases)
        self.hedging = self._hedging()
        self.failover = self._failover()
        self.health = self._monitor(uniform)
        self.metrics = self._metrics(numbers)
        self.operations = self._operations()
        self.reporter = self._reporter()
        self.incidents = self._incidents()
        self.router, self.app = self._build_app()

    def __repr__(self) -> str:
        return f"<Proxy {self.registry!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection with the configuration in force as it begins."""
        await self.app(scope, receive, send)

    def interrupt(self) -> None:
        """End every call that is being served, each as honestly as it still can be."""
        for line in list(self._lines):
            line.caller.interrupt()

    def reload(self, config: Config) -> None:
        """
        Serve by *config* from the next request on; what runs goes on as it began.

        What was learned of a provider whose settings stay the same is kept: its breakers, its
        connections. Where it listens, its log and its state cannot change while it runs.

        Raises:
            ConfigError: A plugin is refused. Nothing has changed.
        """
        registry = default_registry(config)
        if config.rate_limit != self.config.rate_limit:
            self._log = SlidingLog(config.rate_limit.requests, config.rate_limit.window)
        same_hedging = (config.hedge, config.server) == (self.config.hedge, self.config.server)
        self.config, self.registry = config, registry
        self.chain.reload(config, registry)
        self.hedging = self.hedging if same_hedging else self._hedging()
        self.failover = self._failover()
        self.health.watch_over(self.upstreams, config.health, config.breaker.recovery_timeout)
        self.metrics.know(self.chain.names())
        self.operations.upstreams = self.chain.by_name()
        self.router, self.app = self._build_app()
        self.bus.emit(Noticed("info", "configuration reloaded", {"chain": " -> ".join(self.chain.names())}))

    @property
    def upstreams(self) -> list[Upstream]:
        """The upstreams in force, in the order in which they are tried."""
        return self.chain.upstreams

    async def end_feed(self, seconds: float) -> None:
        """Let those who listen to the live feed have what is left, for at most *seconds*; nobody may come."""
        if self.replica is not None:
            self.replica.journal.hurry()
        await self.broadcast.end(seconds)

    def _replica(self) -> Replica | None:
        """Return None where the process's own memory is all the state there is."""
        config, store = self.config.state, store_for(self.config.state, self.clock)
        if store is None:
            return None
        replica = Replica(
            self.name,
            store,
            config,
            breakers=lambda: self.chain.breakers(),
            feed=self.broadcast,
            tally=lambda: self.operations.tally(),
            clock=self.clock,
            state=self.state,
            emit=self.bus.emit,
        )
        replica.breakers.listen(self.bus)
        self.broadcast.look_elsewhere(replica.journal.catch_up)
        replica.notes.hear(PROBES, lambda data, name: self.health.heard(data, name))
        return replica

    def _failover(self) -> Failover:
        retry = RetryPolicy(self.config.retry, self.clock, self._uniform)
        return Failover(self.upstreams, retry, self.clock, self.bus.emit, self.hedging)

    def _hedging(self) -> Hedging | None:
        """Return None where nothing is hedged: then a call looks no further."""
        config = self.config
        if not config.hedge.enabled:
            return None
        return Hedging(
            config.hedge, self.load, config.server.max_in_flight, self.wheel, self.clock, self.bus.emit
        )

    def _monitor(self, uniform: Callable[[float, float], float]) -> Monitor:
        config = self.config
        monitor = Monitor(
            self.upstreams,
            config.health,
            config.breaker.recovery_timeout,
            self.clock,
            self.bus.emit,
            uniform,
            leads=self._leads,
            tell=None if self.replica is None else self._tell_of_probe,
        )
        monitor.listen(self.bus)
        return monitor

    def _leads(self) -> bool:
        """Whether what concerns all replicas falls to this one."""
        return self.replica is None or self.replica.leader.leads

    def _others(self) -> Mapping[str, Tally]:
        """What the other replicas have counted, by their names."""
        return {} if self.replica is None else self.replica.presence.others

    def _tell_of_probe(self, report: bytes) -> None:
        if self.replica is not None:
            self.replica.notes.tell(PROBES, report)

    def _metrics(self, numbers: Numbers | None) -> Metrics:
        counted = Metrics(self.chain.names(), numbers)
        counted.listen(self.bus)
        health = self.health
        counted.read_live(
            Live(self.chain.names, self.load, self.feed, self.state, health.breaker, health.is_up)
        )
        return counted

    def _operations(self) -> Operations:
        return Operations(
            self.chain.by_name(),
            self.health,
            self.metrics,
            self.load,
            self.feed,
            self.clock,
            self.bus.emit,
            replica=self.name,
            others=self._others,
        )

    def _reporter(self) -> Reporter:
        operations = self.operations
        replica = self.replica
        reporter = Reporter(
            self.broadcast,
            operations.status,
            operations.totals,
            self.clock,
            self._pace.heartbeat_seconds,
            tell=None if replica is None else replica.journal.tell,
            leads=self._leads,
            replica=None if replica is None else self.name,
        )
        reporter.listen(self.bus)
        return reporter

    def _incidents(self) -> Incidents:
        """Last of those that listen: what an incident follows from has been heard by everybody else."""
        emit = self.bus.emit if self.replica is None else self.replica.incidents.take
        incidents = Incidents(self.config.state.incidents, self.clock, emit, model_for=self._model_for)
        incidents.listen(self.bus)
        return incidents

    def _model_for(self, name: str, model: str) -> str:
        provider = next((provider for provider in self.registry if provider.name == name), None)
        return provider.model_for(model) if provider is not None else model

    def _build_app(self) -> tuple[Starlette, ASGIApp]:
        rescue = Rescue(self.failover, self.config.rescue.mode, self.clock, self.bus.emit)
        service = Service(
            self.config,
            self.failover,
            rescue,
            self.load,
            self.wheel,
            self.clock,
            self.bus.emit,
            self._lines,
            self.state,
        )
        calls = routes.endpoints(service)
        router = Starlette(
            routes=[
                *routes.routes(calls),
                *models.routes(service),
                *health.routes(service, __version__),
                *metrics.routes(self.metrics),
                *passthrough.routes(service, Passthrough(self.upstreams, self.clock, self.bus.emit)),
                Beside(self._build_admin()),
            ],
            exception_handlers=envelopes.HANDLERS,
            lifespan=self._lifespan,
        )
        app: ASGIApp = routes.Shortcut(router, calls).__call__
        for middleware in reversed(self._onion()):
            layer: Any = middleware.cls(app, *middleware.args, **middleware.kwargs)
            app = layer.__call__  # a method is called faster than an object that has it
        return router, app

    def _build_admin(self) -> Starlette:
        config = self.config
        token = config.admin.token.get_secret_value() if config.admin.token is not None else None
        incidents = self.incidents if self.replica is None else self.replica.incidents
        desk = Desk(
            config, self.operations, incidents, self.broadcast, self.reporter, self._pace, __version__
        )
        return Starlette(
            routes=[*desk.routes(), *Dashboard().routes()],
            middleware=[
                Middleware(SecurityHeadersMiddleware),
                Middleware(AccessMiddleware, access=Access(token, config.server.trusted_proxies)),
            ],
            exception_handlers=envelopes.HANDLERS,
        )

    def _onion(self) -> list[Middleware]:
        config = self.config
        limits = {client.name: client.requests for client in config.clients if client.requests is not None}
        keys = {
            sha256(client.key.get_secret_value().encode()).digest(): client.name for client in config.clients
        }
        return [
            Middleware(TraceMiddleware, clock=self.clock, samples=self._samples),
            Middleware(MistakeMiddleware, emit=self.bus.emit),
            Middleware(InFlightMiddleware, max_in_flight=config.server.max_in_flight, load=self.load),
            Middleware(AuthMiddleware, clients=keys),
            Middleware(
                RateLimitMiddleware,
                log=self._log,
                limits=limits,
                trusted_proxies=config.server.trusted_proxies,
                load=self.load,
                clock=self.clock,
                shared=self._shared_limit(),
            ),
        ]

    def _shared_limit(self) -> SharedLimit | None:
        if self.replica is None or not self.replica.link.store.shared:
            return None
        return SharedLimit(self._log, self.replica.link, self.clock)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.chain.aclose)
            if self.replica is not None:
                await stack.enter_async_context(self.replica.running())
            await stack.enter_async_context(self.health.running())
            await stack.enter_async_context(self.reporter.running())
            chain = " -> ".join(self.chain.names())
            self.bus.emit(Noticed("info", "ready", {"version": __version__, "chain": chain}))
            yield
            self.bus.emit(Noticed("info", "stopped", {}))
