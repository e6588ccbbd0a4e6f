"""`GET /metrics`: every series, for Prometheus. Open to everyone, as `/health` is."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sentinel_proxy.metrics import Metrics


def routes(metrics: Metrics) -> Sequence[BaseRoute]:
    """Return the routes of this face."""

    async def scrape(request: Request) -> Response:
        text, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return [Route("/metrics", scrape)]
