"""
Tells browsers to keep to themselves what operators see.

For faces that browsers open: nothing may frame them, guess their types, learn where they were
come from, or add to them what is not ours.
"""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sentinel_proxy.model import Header

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
"""An answer may bring a policy of its own, which then stands instead."""

SECURITY_HEADERS: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),  # for browsers that do not know frame-ancestors
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)

_HEADS: Final = frozenset(("http.response.start", "websocket.http.response.start"))


class SecurityHeadersMiddleware:
    """Adds `SECURITY_HEADERS` to every answer, those that it has already left as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] in _HEADS:
                headers = list(message.get("headers", ()))
                present = {name for name, _ in headers}
                headers += (pair for pair in SECURITY_HEADERS if pair[0] not in present)
                message["headers"] = headers
            await send(message)

        await self.app(scope, receive, send_secured)
