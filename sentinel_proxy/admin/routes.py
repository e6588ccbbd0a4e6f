"""
What operators ask and order over HTTP: each endpoint a few lines between a query and an answer.

Answers are JSON; every mistake is a `CallerError`, which the sub-application answers in the
usual envelope. `openapi` describes all of this, and a test holds the two together.
"""

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from sentinel_proxy.admin import manual, openapi
from sentinel_proxy.admin.broadcast import Broadcast, Pace
from sentinel_proxy.admin.live import LiveFeed
from sentinel_proxy.admin.operations import Operations
from sentinel_proxy.admin.queries import Fields, Query
from sentinel_proxy.admin.reporter import Reporter
from sentinel_proxy.api.address import caller_address, networks
from sentinel_proxy.config import Config, as_public_dict
from sentinel_proxy.errors import CallerError
from sentinel_proxy.model import Incident, IncidentType
from sentinel_proxy.wire.json import dumps

INCIDENTS: Final = 20
MAX_INCIDENTS: Final = 1000

MAX_BODY_BYTES: Final = 16_384
BODY_SECONDS: Final = 10.0
MAX_REASON_CHARS: Final = 200
MAX_AUTHOR_CHARS: Final = 100

ISOLATION_SECONDS: Final = 3600.0
"""An order that its giver forgets must not outlive the day."""

MAX_ISOLATION_SECONDS: Final = 30 * 86_400.0


@cache
def _pages(version: str) -> tuple[bytes, bytes]:
    """Return the description as JSON and as a page; both depend on nothing else, so they are made once."""
    description = openapi.description(version)
    return dumps(description), manual.page(description)


class IncidentSource(Protocol):
    """The incidents of this process, or of all replicas."""

    async def refresh(self) -> None:
        """Learn what others know, if that can be had soon."""

    def find(
        self,
        limit: int | None = None,
        type: IncidentType | None = None,
        provider: str | None = None,
        since: float | None = None,
        before: str | None = None,
    ) -> tuple[list[Incident], int]:
        """Return one page of those that match, newest first, and how many match in all."""
        ...


class Desk:
    """
    The endpoints, one method each.

    Args:
        incidents: Where they are found.
        pace: Of the live feed.
        version: Of the proxy, for the description.
    """

    def __init__(
        self,
        config: Config,
        operations: Operations,
        incidents: IncidentSource,
        broadcast: Broadcast,
        reporter: Reporter,
        pace: Pace,
        version: str,
    ) -> None:
        self._config = config
        self._operations = operations
        self._incidents = incidents
        self._broadcast = broadcast
        self._reporter = reporter
        self._pace = pace
        self._trusted = networks(config.server.trusted_proxies)
        self._description, self._manual = _pages(version)

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes of this face."""
        return [
            Route("/api/providers/status", self.status, methods=["GET"]),
            Route("/api/providers/{name}/probe", self.probe, methods=["POST"]),
            Route("/api/providers/{name}/breaker", self.breaker, methods=["POST"]),
            Route("/api/incidents", self.incidents, methods=["GET"]),
            Route("/api/metrics", self.metrics, methods=["GET"]),
            Route("/api/events", self.events, methods=["GET"]),
            Route("/api/config", self.config, methods=["GET"]),
            Route("/api/openapi.json", self.openapi, methods=["GET"]),
            Route("/docs", self.docs, methods=["GET"]),
            WebSocketRoute("/ws/system-events", LiveFeed(self._broadcast, self._pace.stall_seconds)),
        ]

    async def status(self, request: Request) -> Response:
        Query(request.scope, ())
        return _json(self._operations.status())

    async def probe(self, request: Request) -> Response:
        Query(request.scope, ())
        return _json(await self._operations.probe(request.path_params["name"]))

    async def breaker(self, request: Request) -> Response:
        Query(request.scope, ())
        name = request.path_params["name"]
        fields = Fields(await _body(request), ("action", "reason", "seconds", "author"))
        action = fields.one_of("action", ("isolate", "reset"))
        reason = fields.text("reason", MAX_REASON_CHARS)
        author = fields.text("author", MAX_AUTHOR_CHARS) or caller_address(request.scope, self._trusted)
        if action == "reset":
            if "seconds" in fields:
                message = "a reset has no end; seconds goes with isolate"
                raise CallerError(message, code="invalid_value", param="seconds")
            self._operations.reset(name, reason or "reset by an operator", author)
        else:
            if reason is None:
                message = "say why, for those who will find the provider isolated"
                raise CallerError(message, code="missing_required_parameter", param="reason")
            seconds = fields.seconds("seconds", ISOLATION_SECONDS, MAX_ISOLATION_SECONDS)
            self._operations.isolate(name, seconds, reason, author)
        self._reporter.tell_status(always=name)
        return _json({"provider": name, **self._operations.status()[name]})

    async def incidents(self, request: Request) -> Response:
        query = Query(request.scope, ("limit", "type", "provider", "since", "before"))
        await self._incidents.refresh()
        found, total = self._incidents.find(
            query.whole_number("limit", INCIDENTS, 1, MAX_INCIDENTS),
            query.member("type", IncidentType),
            query.one_of("provider", self._operations.names()),
            query.moment("since"),
            query.event_id("before"),
        )
        return _json({"incidents": [incident.public() for incident in found], "total": total})

    async def metrics(self, request: Request) -> Response:
        Query(request.scope, ())
        return _json(self._operations.totals())

    async def events(self, request: Request) -> Response:
        query = Query(request.scope, ("since", "types"))
        types = query.event_types("types")
        since = query.event_id("since")
        await self._broadcast.look_for(since)
        replay = self._broadcast.since(since)
        texts = [frame.text for frame in replay.frames if not types or frame.event_type in types]
        rest = dumps({"last_id": self._broadcast.last_id, "missed": replay.missed})
        return _answer(b'{"events":[%b],%b' % (",".join(texts).encode(), rest[1:]))

    async def config(self, request: Request) -> Response:
        Query(request.scope, ())
        return _json(as_public_dict(self._config))

    async def openapi(self, request: Request) -> Response:
        Query(request.scope, ())
        return _answer(self._description)

    async def docs(self, _: Request) -> Response:
        headers = {"content-security-policy": manual.CONTENT_SECURITY_POLICY}
        return Response(self._manual, media_type="text/html", headers=headers)


def _json(value: Any) -> Response:
    return _answer(dumps(value))


def _answer(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def _body(request: Request) -> bytes:
    """
    Read a small body.

    Raises:
        CallerError: It is large, or does not come.
    """
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    message = f"the body is larger than {MAX_BODY_BYTES} bytes"
                    raise CallerError(message, status=413, code="request_too_large")
    except TimeoutError:
        message = "the request body did not arrive in time"
        raise CallerError(message, status=408, code="request_timeout") from None
    return body
