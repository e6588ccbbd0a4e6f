"""What operators may learn and order, whatever face they do it through."""

from collections.abc import Callable, Mapping
from typing import Any

from sentinel_proxy.clock import Clock
from sentinel_proxy.errors import CallerError
from sentinel_proxy.events import Emit, Noticed
from sentinel_proxy.health import Monitor
from sentinel_proxy.metrics import Metrics
from sentinel_proxy.model import Feed, Load
from sentinel_proxy.replica.presence import Tally, summed
from sentinel_proxy.ulid import Ulids
from sentinel_proxy.upstream.upstream import Upstream


class Operations:
    """
    Readings and orders about a running proxy.

    Args:
        upstreams: By name, in the order of the chain.
        emit: Told of every order, with its author.
        replica: The name of this process among others.
        others: Returns what the other replicas have counted, by name.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        health: Monitor,
        metrics: Metrics,
        load: Load,
        feed: Feed,
        clock: Clock,
        emit: Emit,
        *,
        replica: str | None = None,
        others: Callable[[], Mapping[str, Tally]] = dict,
    ) -> None:
        self.upstreams = upstreams
        self._health = health
        self._metrics = metrics
        self._load = load
        self._feed = feed
        self._clock = clock
        self._emit = emit
        self._started = clock.monotonic()
        self._replica = replica if replica is not None else Ulids().mint(clock.time())
        self._others = others

    def __repr__(self) -> str:
        return f"<Operations of {', '.join(self.upstreams)}>"

    def names(self) -> list[str]:
        """Return the names of the providers, in the order of the chain."""
        return list(self.upstreams)

    def status(self) -> dict[str, dict[str, Any]]:
        """Return everything about every provider, by name and in the order of the chain."""
        return self._health.view()

    def uptime_seconds(self) -> float:
        """Return how long this process has been there."""
        return round(self._clock.monotonic() - self._started, 3)

    def tally(self) -> Tally:
        """Return what this process has counted since its start, and what it is doing now."""
        totals, load = self._metrics.totals, self._load
        return Tally(
            uptime_seconds=self.uptime_seconds(),
            requests=totals.requests,
            successes=totals.successes,
            failures=totals.failures,
            failovers=totals.failovers,
            rescues=totals.rescues,
            hedges=totals.hedges,
            shed=load.shed,
            rate_limited=load.rate_limited,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            seconds=totals.seconds,
            in_flight=load.in_flight,
            open_streams=load.open_streams,
            subscribers=self._feed.subscribers,
        )

    def totals(self) -> dict[str, Any]:
        """
        Return the few numbers that people ask for first: of all replicas that are there, since they are.

        `active_provider` is the first that calls would be sent to now, None if there is none.
        """
        replicas = {self._replica: self.tally(), **self._others()}
        total = summed(replicas.values())
        routable = (name for name, status in self.status().items() if status["routable"])
        return {
            "total_requests": total.requests,
            "total_successes": total.successes,
            "total_failures": total.failures,
            "total_failovers": total.failovers,
            "total_rescues": total.rescues,
            "total_hedges": total.hedges,
            "total_shed": total.shed,
            "total_rate_limited": total.rate_limited,
            "tokens": {
                "prompt": total.prompt_tokens,
                "completion": total.completion_tokens,
                "total": total.prompt_tokens + total.completion_tokens,
            },
            "avg_latency_ms": total.average_latency_ms,
            "active_provider": next(routable, None),
            "in_flight": total.in_flight,
            "open_streams": total.open_streams,
            "event_subscribers": total.subscribers,
            "uptime_seconds": self.uptime_seconds(),
            "replica": self._replica,
            "replicas": [_replica_view(name, replicas[name]) for name in sorted(replicas)],
        }

    async def probe(self, name: str) -> dict[str, Any]:
        """
        Ask a provider for its health now, with every consequence of a regular probe.

        Raises:
            CallerError: There is no such provider.
        """
        self._upstream(name)
        result = await self._health.probe(name)
        return {"provider": name, **result.public()}

    def isolate(self, name: str, seconds: float, reason: str, author: str) -> None:
        """
        Send no calls to a provider for *seconds*; those that run may end.

        Raises:
            CallerError: There is no such provider.
        """
        upstream, now = self._upstream(name), self._clock.monotonic()
        upstream.breakers.isolate(now, now + seconds, f"{reason} ({author})")
        self._order("provider isolated", name, reason, author, seconds=seconds)

    def reset(self, name: str, reason: str, author: str) -> None:
        """
        Declare a provider well: all its breakers close and forget.

        Raises:
            CallerError: There is no such provider.
        """
        upstream, now = self._upstream(name), self._clock.monotonic()
        upstream.breakers.reset(now, f"{reason} ({author})")
        self._order("breaker reset", name, reason, author)

    def _order(self, what: str, name: str, reason: str, author: str, **more: Any) -> None:
        self._emit(Noticed("warning", what, {"provider": name, "author": author, "reason": reason, **more}))

    def _upstream(self, name: str) -> Upstream:
        try:
            return self.upstreams[name]
        except KeyError:
            known = ", ".join(self.upstreams)
            message = f"there is no provider {name[:64]!r}; there are {known}"
            raise CallerError(message, status=404, code="unknown_provider") from None


def _replica_view(name: str, tally: Tally) -> dict[str, Any]:
    return {
        "id": name,
        "uptime_seconds": round(tally.uptime_seconds, 3),
        "total_requests": tally.requests,
        "in_flight": tally.in_flight,
    }
