"""
Refuses early what would harm the rest: more calls than one client may make, more than fit at all.

Both happen before the body is read, and both answer in OpenAI's envelope with a wait that SDKs obey.
"""

from collections.abc import Awaitable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

from sentinel_proxy.api.address import caller_address, networks, parsed_address
from sentinel_proxy.api.errors import ErrorAnswer, answer, of_shutdown
from sentinel_proxy.api.send import send_error
from sentinel_proxy.clock import Clock
from sentinel_proxy.middleware.auth import is_call
from sentinel_proxy.model import Load, Trace
from sentinel_proxy.replica.limits import SharedLimit
from sentinel_proxy.resilience.rate_limit import Decision, SlidingLog, duration_text


class InFlightMiddleware:
    """
    Sheds calls beyond *max_in_flight* with 503 and `Retry-After: 1`, at once; all of them while draining.

    Args:
        load: Where the calls being served are counted, and those that were shed.
    """

    def __init__(self, app: ASGIApp, max_in_flight: int, load: Load) -> None:
        self.app = app
        self._max_in_flight = max_in_flight
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_call(scope["path"]):
            await self.app(scope, receive, send)
            return
        load = self._load
        if load.draining:
            refusal = of_shutdown()
            refusal.headers.append((b"connection", b"close"))
            await send_error(send, refusal)
            return
        if load.in_flight >= self._max_in_flight:
            load.shed += 1
            message = f"the proxy is serving {load.in_flight} calls, as many as it may; try again in a moment"
            await send_error(send, answer(503, message, code="proxy_overloaded", retry_after=1.0))
            return
        load.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            load.in_flight -= 1


class RateLimitMiddleware:
    """
    At most so many calls of one client in any window, counted exactly.

    A client is who it has proved to be, else its address; an IPv6 client has a whole /64. One
    call costs one, however many attempts it needs. Refused calls cost nothing.

    Args:
        log: Counts; its own limit holds for clients without one.
        limits: Limit by client name, where it has its own.
        trusted_proxies: Addresses and networks whose `X-Forwarded-For` is believed.
        load: Where refused calls are counted.
        shared: Counts over all replicas, with *log*; None: this process is alone, and nobody waits.
    """

    def __init__(
        self,
        app: ASGIApp,
        log: SlidingLog,
        limits: Mapping[str, int],
        trusted_proxies: Sequence[str],
        load: Load,
        clock: Clock,
        shared: SharedLimit | None = None,
    ) -> None:
        self.app = app
        self._load = load
        self._log = log
        self._limits = limits
        self._trusted = networks(trusted_proxies)
        self._clock = clock
        self._shared = shared

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or not is_call(scope["path"]):
            return self.app(scope, receive, send)
        trace: Trace = scope[Trace.SCOPE_KEY]
        limit = self._limits.get(trace.client, self._log.requests) if trace.client else self._log.requests
        if limit == 0:
            return self.app(scope, receive, send)
        key = trace.client or client_key(caller_address(scope, self._trusted))
        if self._shared is not None:
            return self._when_decided(self._shared.admit(key, limit), scope, receive, send)
        refusal = self._refusal(self._log.admit(key, self._clock.monotonic(), limit=limit), trace)
        return self.app(scope, receive, send) if refusal is None else send_error(send, refusal)

    async def _when_decided(
        self, decision: Awaitable[Decision], scope: Scope, receive: Receive, send: Send
    ) -> None:
        refusal = self._refusal(await decision, scope[Trace.SCOPE_KEY])
        await (self.app(scope, receive, send) if refusal is None else send_error(send, refusal))

    def _refusal(self, decision: Decision, trace: Trace) -> ErrorAnswer | None:
        """Return what to say where the decision is no; whatever it is, the answer will tell what is left."""
        allowed, limit, remaining, retry_after, reset = decision
        trace.headers += (
            (b"x-sentinel-ratelimit-limit", b"%d" % limit),
            (b"x-sentinel-ratelimit-remaining", b"%d" % remaining),
            (b"x-sentinel-ratelimit-reset", duration_text(reset).encode()),
        )
        if allowed:
            return None
        self._load.rate_limited += 1
        window = f"{self._log.window_seconds:g} s"
        message = f"more than {limit} calls in {window}; the window slides, try again later"
        return answer(429, message, code="rate_limit_exceeded", retry_after=retry_after)


@lru_cache(maxsize=4096)
def client_key(address: str) -> str:
    """Return what a caller without a key is counted by: its address, of IPv6 the /64 that it has."""
    parsed = parsed_address(address)
    if parsed is None:
        return address
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, 64), strict=False).network_address) + "/64"
    return str(parsed)
