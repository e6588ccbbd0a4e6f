"""A worker's own side: which one it is, where it listens, and its line to the parent."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

BEAT_SECONDS: Final = 1.0
"""How often a worker says that its event loop turns."""

ORDERS: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Signals that mean something to us; blocked in a worker until it can obey them."""


class Worker:
    """
    One of several processes that serve.

    Args:
        number: Counted from 1.
        line: The parent hears here that we live; we hear when it does not.
    """

    def __init__(self, number: int, listener: socket.socket, line: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self._line = line
        line.setblocking(False)

    def __repr__(self) -> str:
        return f"<Worker {self.number}>"

    def serving(self, beat: Callable[[], None], orphaned: Callable[[], None]) -> None:
        """
        Tell the parent that this worker serves, and go on telling; call once, in the event loop.

        Signals that came before are delivered now, so their handlers must be there.

        Args:
            beat: Called every `BEAT_SECONDS`.
            orphaned: Called once, when the parent is gone without having said so.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line, self._heard, loop, orphaned)
        self._beat(loop, beat)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)

    def _beat(self, loop: asyncio.AbstractEventLoop, beat: Callable[[], None]) -> None:
        loop.call_later(BEAT_SECONDS, self._beat, loop, beat)
        with suppress(OSError):  # nobody reads: that is not for us to judge
            self._line.send(b".")
        beat()

    def _heard(self, loop: asyncio.AbstractEventLoop, orphaned: Callable[[], None]) -> None:
        """The parent never says anything: what there is to hear is the end of it."""
        loop.remove_reader(self._line)
        orphaned()
