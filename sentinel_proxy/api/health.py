"""
Three questions of three askers: is it well (people), does it live, should it get traffic (orchestrators).
"""

from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sentinel_proxy.api.line import Service
from sentinel_proxy.clock import utc_text
from sentinel_proxy.model import StateHealth
from sentinel_proxy.wire.json import dumps


def routes(service: Service, version: str) -> Sequence[BaseRoute]:
    """Return the routes of this face."""
    started = service.clock.monotonic()

    async def health(_: Request) -> Response:
        now = service.clock.monotonic()
        providers = {
            upstream.name: {
                "position": position,
                "kind": upstream.provider.kind,
                "breaker": upstream.breakers.worst(now).state.value,
                "routable": upstream.admits(upstream.provider.model_for("*"), now),
                "in_flight": upstream.in_flight,
            }
            for position, upstream in enumerate(service.failover.upstreams, start=1)
        }
        routable = [provider["routable"] for provider in providers.values()]
        status = "healthy" if all(routable) else "degraded" if any(routable) else "down"
        body = {
            "status": "draining" if service.load.draining else status,
            "version": version,
            "uptime_seconds": round(now - started, 3),
            "providers": providers,
            "state": _state(service.state),
        }
        return Response(dumps(body), media_type="application/json")

    async def livez(_: Request) -> Response:
        return Response(b'{"status":"alive"}', media_type="application/json")

    async def readyz(_: Request) -> Response:
        if service.load.draining:
            return Response(b'{"status":"draining"}', 503, media_type="application/json")
        return Response(b'{"status":"ready"}', media_type="application/json")

    return [Route("/health", health), Route("/livez", livez), Route("/readyz", readyz)]


def _state(state: StateHealth) -> Mapping[str, str]:
    """Tell of the store; that it is away concerns operators, not whether calls should come here."""
    since = {} if state.since is None else {"since": utc_text(state.since)}
    return {"kind": state.kind, "status": "up" if state.up else "away", **since}
