"""`serve`: in this process if one is enough, else in several."""

from dataclasses import replace
from typing import Any

from sentinel_proxy.board import Board
from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import Config, Loaded
from sentinel_proxy.errors import ConfigError
from sentinel_proxy.events import Noticed
from sentinel_proxy.log import AtOnce, Log
from sentinel_proxy.providers.configured import default_registry
from sentinel_proxy.server import Port, Server, listen, prepare
from sentinel_proxy.stores import store_for
from sentinel_proxy.workers.parent import Parent
from sentinel_proxy.workers.process import Again, Process
from sentinel_proxy.workers.worker import Worker


def serve(loaded: Loaded, again: Again) -> int:
    """
    Serve by *loaded* until a signal ends it; return the exit status.

    Args:
        again: Reads the configuration anew, at SIGHUP.

    Raises:
        ConfigError: Before anything is served.
    """
    server = loaded.config.server
    if server.workers > 1:
        _prepare(loaded.config)
        port = Port(server.host, server.port)
        return Parent(server.workers, port, Several(loaded, again, port.address)).run()
    listener = listen(server.host, server.port)
    process = Process(loaded, again)

    def started(_: Server) -> None:
        details = {"address": url(*listener.getsockname()[:2])}
        process.bus.emit(Noticed("info", "listening", details))

    process.run(listener, started)
    return 0


def _prepare(config: Config) -> None:
    """Have what is refused refused once, before anything runs; import once what each worker needs."""
    default_registry(config)
    store_for(config.state, SystemClock())
    prepare()


class Several:
    """Serving, as the work of several workers."""

    def __init__(self, loaded: Loaded, again: Again, address: tuple[str, int]) -> None:
        self._loaded, self._again, self._address = loaded, again, address
        self._workers = loaded.config.server.workers
        self._board = Board(self._workers)
        self._log = Log(loaded.config.log, sink=AtOnce())

    def serve(self, worker: Worker) -> None:
        """Be *worker*, until a signal ends it or its parent dies."""
        numbers = self._board.numbers(worker.number - 1)
        process = Process(
            _untold(self._loaded), lambda: _untold(self._again()), worker=worker.number, numbers=numbers
        )
        process.run(
            worker.listener,
            lambda server: worker.serving(beat=process.proxy.metrics.publish, orphaned=server.leave),
        )

    def listening(self) -> None:
        """Say where, and what is to be said of the configuration, once for all workers."""
        self._note()
        self.tell("info", "listening", address=url(*self._address), workers=self._workers)

    def tell(self, level: str, event: str, **fields: Any) -> None:
        """Write one line of the parent's own."""
        self._log.line(level, event, **fields)

    def reload(self) -> bool:
        """Check what the workers are about to read; if it is good, those to come begin with it."""
        try:
            loaded = self._again()
            default_registry(loaded.config)
        except ConfigError as error:
            problem = str(error)
            self.tell("error", "the configuration was not reloaded, the old one stays", problem=problem)
            return False
        self._loaded = loaded
        self._note()
        return True

    def left(self, number: int) -> None:
        """What worker *number* counted stays."""
        self._board.left(number - 1)

    def _note(self) -> None:
        for note in self._loaded.notes:
            self.tell("info", note)


def _untold(loaded: Loaded) -> Loaded:
    """Return *loaded* without its notes: the parent tells them."""
    return replace(loaded, notes=())


def url(host: str, port: int) -> str:
    """Return the address as a client would write it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
