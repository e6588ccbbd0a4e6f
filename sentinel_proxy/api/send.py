"""A refusal onto ASGI, for requests that never become a call."""

from starlette.types import Send

from sentinel_proxy.api.errors import ErrorAnswer
from sentinel_proxy.api.headers import NOTHING_ASKED


async def send_error(send: Send, error: ErrorAnswer) -> None:
    """Send *error*, complete."""
    length = (b"content-length", b"%d" % len(error.body))
    headers = [*error.headers, *NOTHING_ASKED, length]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.body})
