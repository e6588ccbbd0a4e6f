"""
`GET /dashboard`: the page that shows one proxy, live.

Plain files of `web/`, read when first asked for and served as they are: no build step, and
nothing from any other host. They hold no data and ask for the token themselves, so they are
served without it; what they show comes from the same endpoints that everybody may ask.
"""

import gzip
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

PAGE: Final = "dashboard.html"

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Own scripts and styles from own files; nothing inline, nothing from elsewhere."""

_MEDIA_TYPES: Final = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


class Dashboard:
    """The page and its parts, kept in memory once somebody has asked for them."""

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes of this face."""
        return [
            Route("/dashboard", self.page, methods=["GET"]),
            Route("/dashboard/{file}", self.part, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        return self._answer(PAGE, request)

    async def part(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name == PAGE or name not in _files():
            raise HTTPException(404)
        return self._answer(name, request)

    def _answer(self, name: str, request: Request) -> Response:
        headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "vary": "accept-encoding"}
        body = _files()[name]
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["content-encoding"] = _compressed(name), "gzip"
        return Response(body, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)


@cache
def _files() -> Mapping[str, bytes]:
    folder = files("sentinel_proxy.admin") / "web"
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@cache
def _compressed(name: str) -> bytes:
    return gzip.compress(_files()[name], mtime=0)
