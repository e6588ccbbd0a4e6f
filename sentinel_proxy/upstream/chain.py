"""The upstreams that calls may go to, in order. One that a reload takes out stays until nobody uses it."""

import asyncio
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.config import Config, ProviderConfig
from sentinel_proxy.events import BreakerChanged
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.resilience.breaker import Leases
from sentinel_proxy.resilience.scopes import ProviderBreakers
from sentinel_proxy.upstream.base import Transport
from sentinel_proxy.upstream.http1 import Http1Transport
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wheel import Wheel

LeasesOf = Callable[[str | None], Leases | None]
"""Makes the leases of a model's breaker; of the provider's own for None."""

LEFT_SECONDS: Final = 1.0
"""Between two looks at whether an upstream that has left the chain is still in use."""


class Chain:
    """
    Makes the upstreams of a configuration, and makes them anew where a later one differs.

    Args:
        transport: Makes the transport of a provider.
        emit: Told of each transition of their breakers.
        leases: Makes what shares out the trials of a provider's breakers, so many at a time,
            among replicas.

    Attributes:
        upstreams: In the order in which they are tried.
    """

    def __init__(
        self,
        config: Config,
        providers: Iterable[Provider],
        transport: Callable[[Provider, Wheel], Transport],
        wheel: Wheel,
        clock: Clock,
        emit: Callable[[BreakerChanged], None],
        leases: Callable[[str, int], LeasesOf | None] | None = None,
    ) -> None:
        self._config = config
        self._transport = transport
        self._wheel = wheel
        self._clock = clock
        self._emit = emit
        self._leases = leases
        self._left: list[Upstream] = []
        self._closing: set[asyncio.Task[None]] = set()
        self.upstreams = [self._built(provider) for provider in providers]

    def __repr__(self) -> str:
        return f"<Chain {' -> '.join(self.names())}>"

    def names(self) -> list[str]:
        """Return the names of the upstreams, in order."""
        return [upstream.name for upstream in self.upstreams]

    def breakers(self) -> dict[str, ProviderBreakers]:
        """Return the breakers of each provider by its name."""
        return {upstream.name: upstream.breakers for upstream in self.upstreams}

    def by_name(self) -> dict[str, Upstream]:
        """Return the upstreams by name, in order."""
        return {upstream.name: upstream for upstream in self.upstreams}

    def reload(self, config: Config, providers: Iterable[Provider]) -> None:
        """
        Consist of *providers* from now on.

        One whose settings stay the same keeps its upstream, and with it all that was learned:
        its breakers, its connections. For one that has others a new time begins.
        """
        kept = {each.name: each for each in self.upstreams if self._is_unchanged(each, config)}
        before, self._config = self.by_name(), config
        self.upstreams = [kept.get(provider.name) or self._built(provider) for provider in providers]
        self._left += [upstream for upstream in before.values() if upstream not in self.upstreams]
        now = self._clock.monotonic()
        for upstream in self.upstreams:
            if (other := before.get(upstream.name, upstream)) is not upstream:
                upstream.breakers.succeed_to(other.breakers, now)
        self._close_those_that_left()

    async def aclose(self) -> None:
        """Close every connection, those of upstreams that have left included."""
        for upstream in (*self.upstreams, *self._left):
            await upstream.transport.aclose()
        if self._closing:
            await asyncio.wait(self._closing)

    def _built(self, provider: Provider) -> Upstream:
        config = self._config
        return Upstream.build(
            provider,
            self._transport(provider, self._wheel),
            timeouts=config.timeouts,
            breaker=config.breaker,
            retry=config.retry,
            emit=self._emit,
            leases=self._leases and self._leases(provider.name, config.breaker.half_open_permits),
        )

    def _is_unchanged(self, upstream: Upstream, config: Config) -> bool:
        """Whether everything that *upstream* was built from is as it was."""
        policy = (config.timeouts, config.breaker, config.retry)
        if policy != (self._config.timeouts, self._config.breaker, self._config.retry):
            return False
        settings = _settings_of(upstream.name, config)
        return settings is not None and settings == _settings_of(upstream.name, self._config)

    def _close_those_that_left(self) -> None:
        """Close the connections of upstreams that have left, once nobody uses them."""
        idle = [upstream for upstream in self._left if not upstream.in_flight]
        self._left = [upstream for upstream in self._left if upstream.in_flight]
        for upstream in idle:
            closing = asyncio.create_task(upstream.transport.aclose(), name=f"close {upstream.name}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        if self._left:
            self._wheel.set(self._clock.monotonic() + LEFT_SECONDS, self._close_those_that_left)


def _settings_of(name: str, config: Config) -> tuple[ProviderConfig, bool] | None:
    """Return what *config* says of one provider; None for a plugin, which it knows nothing of."""
    settings = next((provider for provider in config.providers if provider.name == name), None)
    return None if settings is None else (settings, name == config.caller_key_provider)


def default_transport(provider: Provider, wheel: Wheel) -> Transport:
    """Return the transport that the provider's configuration names."""
    if provider.transport == "httpx":
        from sentinel_proxy.upstream.httpx import HttpxTransport  # heavy, and rarely wanted

        return HttpxTransport(provider.base_url, http2=find_spec("h2") is not None)
    return Http1Transport(provider.base_url, wheel)
