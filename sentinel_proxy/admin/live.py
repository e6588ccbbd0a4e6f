"""
`WS /ws/system-events`: the live feed over a WebSocket.

The proxy talks and the client listens. Pings are answered by the server (RFC 6455 §5.5.2); a
client that sends anything else has mistaken us for something else and is told so with 1003.
"""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.types import Receive, Scope, Send

from sentinel_proxy.admin.access import SUBPROTOCOL, deny
from sentinel_proxy.admin.broadcast import TOO_SLOW, Broadcast, Farewell, Subscription, TooSlow
from sentinel_proxy.admin.queries import Query
from sentinel_proxy.api.errors import of_caller, of_shutdown
from sentinel_proxy.errors import CallerError

CLOSE_SECONDS: Final = 5.0
"""For a close frame to be sent: where a client has not read, it comes behind all that it has not read."""

ONLY_TALKS: Final = Farewell(1003, "this feed only talks")
GONE: Final = Farewell(1005, "")
"""The client has closed; nothing is sent to it any more."""


class LiveFeed:
    """
    The endpoint: one instance serves every client.

    Args:
        stall_seconds: How long one frame may wait for a client that does not read.
    """

    def __init__(self, broadcast: Broadcast, stall_seconds: float) -> None:
        self._broadcast = broadcast
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        if self._broadcast.ended:
            await deny(scope, send, of_shutdown())
            return
        try:
            query = Query(scope, {"since", "types", "token"})
            types, since = query.event_types("types"), query.event_id("since")
        except CallerError as error:
            await deny(scope, send, of_caller(error))
            return
        await self._broadcast.look_for(since)
        chosen = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        await self._serve(types, since, receive, send)

    async def _serve(self, types: frozenset[str], since: str | None, receive: Receive, send: Send) -> None:
        subscription = self._broadcast.subscribe(types, since)
        listener = asyncio.create_task(_listen(subscription, receive), name="live feed, listening")
        too_slow = False
        try:
            await self._talk(subscription, send)
        except (TimeoutError, TooSlow):
            too_slow = True
        except OSError:
            pass  # it has gone in the middle of a frame
        finally:
            listener.cancel()
            self._broadcast.unsubscribe(subscription, too_slow=too_slow)
        if too_slow:
            await _close(send, TOO_SLOW)

    async def _talk(self, subscription: Subscription, send: Send) -> None:
        """
        Send what there is to send, until the end.

        Raises:
            TimeoutError, TooSlow: The client does not read.
            OSError: It has gone.
        """
        while texts := await subscription.next():
            for text in texts:
                async with asyncio.timeout(self._stall_seconds):
                    await send({"type": "websocket.send", "text": text})
        if subscription.farewell is not None and subscription.farewell is not GONE:
            await _close(send, subscription.farewell)


async def _listen(subscription: Subscription, receive: Receive) -> None:
    """Wait until the client leaves, or says something."""
    message = await receive()
    subscription.end(GONE if message["type"] == "websocket.disconnect" else ONLY_TALKS)


async def _close(send: Send, farewell: Farewell) -> None:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await send({"type": "websocket.close", "code": farewell.code, "reason": farewell.reason})
