"""One process that serves: log, traces, proxy and server, from the first line to the last."""

import os
import socket
from collections.abc import Callable

from sentinel_proxy.app import Proxy
from sentinel_proxy.board import Numbers
from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import Loaded
from sentinel_proxy.errors import ConfigError
from sentinel_proxy.events import Bus, Noticed
from sentinel_proxy.log import Log
from sentinel_proxy.server import Server
from sentinel_proxy.server import serve as run_server
from sentinel_proxy.tracing import tracing_by

Again = Callable[[], Loaded]
"""Reads the configuration anew. Raises `ConfigError`."""


class Process:
    """
    What one process is made of; `run` returns when it is over.

    Args:
        again: For SIGHUP.
        worker: Which of several this is; None where it is the only one.
        numbers: Where it counts.
    """

    def __init__(
        self, loaded: Loaded, again: Again, *, worker: int | None = None, numbers: Numbers | None = None
    ) -> None:
        self._notes = loaded.notes
        self._again = again
        self.bus = Bus()
        self.log = Log(loaded.config.log, worker=worker)
        self.log.listen(self.bus)
        self._tracing = tracing_by(os.environ, self.bus, SystemClock())
        samples = self._tracing.samples if self._tracing is not None else None
        self.proxy = Proxy(loaded.config, bus=self.bus, samples=samples, numbers=numbers)

    def run(self, listener: socket.socket, on_started: Callable[[Server], None]) -> None:
        """Serve on *listener* until a signal ends it. *on_started* is called in the event loop."""
        self._note(self._notes)
        server = Server(self.proxy, lambda: on_started(server), self._reload)
        try:
            run_server(server, listener)
        finally:
            if self._tracing is not None:
                self._tracing.close()
            self.log.sink.close()

    def _reload(self) -> None:
        try:
            loaded = self._again()
            self.proxy.reload(loaded.config)
        except ConfigError as error:
            details = {"problem": str(error)}
            self.bus.emit(Noticed("error", "the configuration was not reloaded, the old one stays", details))
            return
        self._note(loaded.notes)

    def _note(self, notes: tuple[str, ...]) -> None:
        for note in notes:
            self.bus.emit(Noticed("info", note, {}))
