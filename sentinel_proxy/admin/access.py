"""
Who may see and do what operators may.

With a token configured, whoever shows it. Without one, whoever is on this machine: that is
checked with suspicion, because a reverse proxy beside us and a web page in somebody's browser
connect from this machine too.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from sentinel_proxy.api.address import caller_address, is_trusted, networks, parsed_address, peer_address
from sentinel_proxy.api.errors import ErrorAnswer, answer
from sentinel_proxy.api.send import send_error
from sentinel_proxy.model import header

SUBPROTOCOL: Final = "sentinel"
"""What a WebSocket client may ask for, and is then answered with."""

BEARER_SUBPROTOCOL: Final = "bearer."
"""Browsers cannot send headers with a WebSocket, but they can offer subprotocols: `bearer.TOKEN`."""

PAGE: Final = "/dashboard"
"""
Served without the token, and so are its parts below it: a browser cannot send one when it opens a
page. It holds no data, and asks for the token to get some.
"""

_SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_FORWARDING: Final = frozenset((b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"))
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_TOKEN_IN_QUERY: Final = re.compile(rb"(?<![^&])(token=)[^&]*")


class Access:
    """
    Decides about one request; knows nothing of what it asks for.

    Args:
        token: What operators send; None: they have to be on this machine.
        trusted_proxies: Addresses and networks whose `X-Forwarded-For` is believed.
    """

    def __init__(self, token: str | None, trusted_proxies: Sequence[str] = ()) -> None:
        self._digest = _digest(token.encode()) if token is not None else None
        self._trusted = networks(trusted_proxies)

    def __repr__(self) -> str:
        return f"<Access for {'callers on loopback' if self._digest is None else 'the bearer of the token'}>"

    def refusal(self, scope: Scope) -> ErrorAnswer | None:
        """Return why the request of *scope* is refused, or None if it may go on."""
        if _acts(scope) and _is_foreign(scope):
            message = "this was sent by a web page of another origin; operators' requests are not for them"
            return answer(403, message, code="foreign_origin", retry=False)
        if self._digest is None:
            return self._not_here(scope)
        if scope["path"] == PAGE or scope["path"].startswith(f"{PAGE}/"):
            return None
        return self._without_token(scope, self._digest)

    def _without_token(self, scope: Scope, digest: bytes) -> ErrorAnswer | None:
        shown = _shown_token(scope)
        if shown is not None and compare_digest(_digest(shown), digest):
            return None
        what = "is not the one that admin.token holds" if shown is not None else "is missing"
        refusal = answer(
            401,
            f"the admin token {what}; send it as Authorization: Bearer",
            code="invalid_admin_token",
            retry=False,
        )
        refusal.headers.append((b"www-authenticate", b'Bearer realm="sentinel-proxy"'))
        return refusal

    def _not_here(self, scope: Scope) -> ErrorAnswer | None:
        """Return why a caller does not count as one on this machine."""
        if not _is_loopback(caller_address(scope, self._trusted)):
            why = "this caller is on another machine"
        elif self._is_forwarded_by_a_stranger(scope):
            why = "the request was forwarded by a proxy that server.trusted_proxies does not list"
        elif not _is_local_name(header(scope["headers"], b"host")):
            # DNS rebinding: a page's own host name may lead to us, and then no origin is foreign.
            why = "the Host of the request is neither an address nor a name of this machine"
        else:
            return None
        message = f"without admin.token only callers on loopback are answered, and {why}"
        return answer(403, message, code="loopback_only", retry=False)

    def _is_forwarded_by_a_stranger(self, scope: Scope) -> bool:
        names = {name for name, _ in scope["headers"]} & _FORWARDING
        known = b"x-forwarded-for" in names and is_trusted(peer_address(scope), self._trusted)
        return bool(names) and not known


class AccessMiddleware:
    """Refuses whom *access* refuses, HTTP or WebSocket; tokens go no further than here."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._access.refusal(scope)
        # Servers log the path of a WebSocket, query and all.
        scope["query_string"] = _TOKEN_IN_QUERY.sub(rb"\1****", scope["query_string"])
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await deny(scope, send, refusal)
        else:
            await send_error(send, refusal)


async def deny(scope: Scope, send: Send, error: ErrorAnswer) -> None:
    """Answer a WebSocket's handshake with *error*; a server that cannot do that just closes."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": error.code or ""})
        return
    length = (b"content-length", b"%d" % len(error.body))
    headers = [*error.headers, length, (b"connection", b"close")]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": error.body})


def _acts(scope: Scope) -> bool:
    """Whether the request may change something, or listen where no same-origin policy protects us."""
    return scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS


def _is_foreign(scope: Scope) -> bool:
    """Whether a browser sent it for a page that is not ours (RFC 6454 §7; RFC 6455 §10.2)."""
    origin = header(scope["headers"], b"origin")
    if origin is None:
        return False
    host = header(scope["headers"], b"host") or b""
    try:
        there, here = urlsplit(origin.decode("latin-1")), urlsplit(f"//{host.decode('latin-1')}")
        port = _DEFAULT_PORTS.get(there.scheme)
        ours = (here.hostname, here.port or port)
        return there.hostname is None or (there.hostname, there.port or port) != ours
    except ValueError:
        return True


def _shown_token(scope: Scope) -> bytes | None:
    scheme, _, token = (header(scope["headers"], b"authorization") or b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    if scope["type"] != "websocket":
        return None
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(BEARER_SUBPROTOCOL):
            return str(offered).removeprefix(BEARER_SUBPROTOCOL).encode()
    tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token")
    return tokens[0].encode() if tokens else None


def _digest(token: bytes) -> bytes:
    """Comparing digests takes the same time however much of the token is right, and however long it is."""
    return sha256(token).digest()


def _is_loopback(address: str) -> bool:
    parsed = parsed_address(address)
    return parsed is not None and parsed.is_loopback


def _is_local_name(host: bytes | None) -> bool:
    """Whether no stranger's DNS can have led here: an address, `localhost`, a name without a dot."""
    if not host:
        return True
    try:
        name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
    except ValueError:
        return False
    name = name.removesuffix(".")
    return "." not in name or name.endswith(".localhost") or parsed_address(name) is not None
