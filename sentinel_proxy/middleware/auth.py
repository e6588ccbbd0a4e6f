"""
Lets in only callers that are known, where `[[clients]]` are configured.

Keys are kept and compared as SHA-256 digests: the comparison takes the same time whatever the
key, and no key can be printed by accident.
"""

from collections.abc import Awaitable, Mapping
from functools import lru_cache
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from sentinel_proxy.api.errors import answer
from sentinel_proxy.api.send import send_error
from sentinel_proxy.model import Trace, header


class AuthMiddleware:
    """
    Names the client of each call, or refuses it with 401.

    Args:
        clients: Name by SHA-256 digest of the key; empty: everybody may call.
    """

    def __init__(self, app: ASGIApp, clients: Mapping[bytes, str]) -> None:
        self.app = app
        self._clients = clients

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and self._clients and is_call(scope["path"]):
            scheme, _, key = (header(scope["headers"], b"authorization") or b"").partition(b" ")
            name = self._clients.get(sha256(key.strip()).digest()) if scheme.lower() == b"bearer" else None
            if name is None:
                message = "the API key of this call is not one that this proxy lists for its clients"
                return send_error(send, answer(401, message, code="invalid_api_key", retry=False))
            scope[Trace.SCOPE_KEY].client = name
        return self.app(scope, receive, send)


@lru_cache(maxsize=64)
def is_call(path: str) -> bool:
    """
    Whether *path* belongs to the faces that applications call, and not to the operators'.

    Remembered for a few paths: it is asked again and again, for each request more than once.
    """
    return path.startswith("/v1/") or path == "/api/chat"
