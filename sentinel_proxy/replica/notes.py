"""What replicas tell each other that is not kept: who is not listening has missed it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sentinel_proxy.replica.link import Link
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.stores.records import Note

MOST_AT_ONCE: Final = 50
"""Notes on their way to the store; what comes on top of that is not told."""

Hear = Callable[[bytes, str], None]


class Notes:
    """Carries notes from those who have something to tell to those who want to hear of it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._hearers: dict[str, Hear] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Notes of {', '.join(self._hearers) or 'nothing'}>"

    def hear(self, topic: str, hearer: Hear) -> None:
        """Give *hearer* the data of every later note of *topic*, and the name of the replica that sent it."""
        self._hearers[topic] = hearer

    def tell(self, topic: str, data: bytes) -> None:
        """Send a note to the other replicas, if that is possible now; returns at once."""
        if self._link.up and self._link.store.shared and len(self._sending) < MOST_AT_ONCE:
            note = Note(topic, self._link.replica, data)
            task = asyncio.create_task(self._send(note), name=f"tell {topic}")
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, note: Note) -> None:
        with suppress(StoreAway):
            await self._link.ask("write", lambda store: store.tell(note))

    def take(self, note: Note) -> None:
        """Hear of a note from the store; one's own, and topics that nobody here knows, are passed over."""
        hearer = self._hearers.get(note.topic)
        if hearer is not None and note.replica != self._link.replica:
            hearer(note.data, note.replica)
