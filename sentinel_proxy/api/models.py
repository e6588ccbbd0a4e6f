"""`GET /v1/models`: what the chain offers now, under the names that callers may use."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sentinel_proxy.api import errors
from sentinel_proxy.api.line import Service
from sentinel_proxy.errors import FailureKind, SentinelError, UpstreamError
from sentinel_proxy.model import Headers
from sentinel_proxy.providers.base import ModelEntry, Provider
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wire.json import dumps

MAX_LIST_BYTES: Final = 8 * 1024 * 1024
"""The largest public catalogue is below 1 MiB."""


def routes(service: Service) -> Sequence[BaseRoute]:
    """Return the routes of this face."""

    async def listing(request: Request) -> Response:
        entries = await _offered(service, request.scope["headers"])
        if entries is None:
            return _response(
                errors.answer(503, "no provider could list its models", code="all_providers_unavailable")
            )
        return _json({"object": "list", "data": [_entry(entry) for entry in entries]})

    async def one(request: Request) -> Response:
        wanted = request.path_params["model"]
        entries = await _offered(service, request.scope["headers"])
        if entries is None:
            return _response(
                errors.answer(503, "no provider could list its models", code="all_providers_unavailable")
            )
        found = next((entry for entry in entries if entry.id == wanted), None)
        if found is None:
            message = f"the model {wanted!r} is not offered by any provider now"
            return _response(errors.answer(404, message, code="model_not_found", param="model"))
        return _json(_entry(found))

    return [
        Route("/v1/models", listing, methods=["GET"]),
        Route("/v1/models/{model:path}", one, methods=["GET"]),
    ]


async def _offered(service: Service, headers: Headers) -> list[ModelEntry] | None:
    """Ask every provider of the chain at once; None if none of them answered."""
    until = service.clock.monotonic() + service.config.health.timeout
    catalogues = await asyncio.gather(
        *(_catalogue(upstream, headers, until) for upstream in service.failover.upstreams)
    )
    if all(catalogue is None for catalogue in catalogues):
        return None
    merged: dict[str, ModelEntry] = {}
    for upstream, catalogue in zip(service.failover.upstreams, catalogues, strict=True):
        for entry in _as_callers_name_them(upstream.provider, catalogue or ()):
            merged.setdefault(entry.id, entry)
    return list(merged.values())


async def _catalogue(upstream: Upstream, headers: Headers, until: float) -> Sequence[ModelEntry] | None:
    """Return one provider's own list, or None if it cannot be had in time."""
    provider = upstream.provider
    request = provider.probe()
    if isinstance(provider, OpenAIProvider):
        request = provider.passthrough("GET", "/models", b"", headers, b"", None)
    try:
        exchange = await upstream.transport.open(
            request, connect_seconds=upstream.timeouts.connect, until=until
        )
        try:
            body = b""
            while data := await exchange.read(until):
                body += data
                if len(body) > MAX_LIST_BYTES:
                    raise UpstreamError(FailureKind.PROTOCOL, "its model list has no end")
            return provider.catalogue(body) if exchange.head.status == 200 else None
        finally:
            exchange.close()
    except SentinelError:
        return None


def _as_callers_name_them(provider: Provider, catalogue: Sequence[ModelEntry]) -> Sequence[ModelEntry]:
    """Translate a provider's own names back through its model map; without one they are the callers'."""
    if not provider.models:
        return catalogue
    by_name = {entry.id: entry for entry in catalogue}
    by_name |= {entry.id.removesuffix(":latest"): entry for entry in catalogue}
    offered = []
    for name, target in provider.models.items():
        if (entry := by_name.get(target)) is not None:
            offered.append(ModelEntry(target if name == "*" else name, entry.created, entry.owned_by))
    return offered


def _entry(entry: ModelEntry) -> dict[str, Any]:
    return {"id": entry.id, "object": "model", "created": entry.created, "owned_by": entry.owned_by}


def _json(value: Any) -> Response:
    return Response(dumps(value), media_type="application/json")


def _response(answer: errors.ErrorAnswer) -> Response:
    return Response(
        answer.body, answer.status, {name.decode(): value.decode() for name, value in answer.headers}
    )
