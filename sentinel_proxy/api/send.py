"""Complete answers onto ASGI, for everything that is not relayed."""

from collections.abc import Sequence

from starlette.types import Send

from sentinel_proxy.api.errors import ErrorAnswer
from sentinel_proxy.model import Header


async def send_bytes(send: Send, status: int, headers: Sequence[Header], body: bytes) -> None:
    """Send one complete answer; *headers* hold its content type."""
    framed = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": framed})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ErrorAnswer) -> None:
    """Send *error* as it stands."""
    await send_bytes(send, error.status, error.headers, error.body)
