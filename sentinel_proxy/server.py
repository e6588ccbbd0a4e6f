"""
uvicorn around the application: the socket, the signals, and a shutdown that lets calls finish.

SIGTERM and SIGINT drain: readiness turns 503, new calls are refused with a hint to go
elsewhere, running ones have `drain_seconds` and are then told, in the stream or by status, that
it is over. The exit status is 0, because that is what was asked for; a second SIGINT ends at
once. SIGHUP is handed to whoever can reload the configuration.
"""

import asyncio
import gc
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sentinel_proxy.app import Proxy
from sentinel_proxy.errors import ConfigError
from sentinel_proxy.events import Noticed
from sentinel_proxy.inbound import Inbound

KEEP_ALIVE_SECONDS = 75
"""Above the idle time of HTTP clients, so that the client drops the connection first (nginx's value)."""


BACKLOG = 2048
"""Connections that may wait to be accepted."""


COLLECT_AT = (10_000, 20, 50)
"""Objects more than there were, and how many younger collections make an older one."""


FAREWELL_SECONDS = 5
"""For the last words to reach their readers, and for all to be closed, after draining has ended."""


FORCED_SECONDS = 0.5
"""For the application to close what it has, where somebody wants the end now."""


def listen(host: str, port: int) -> socket.socket:
    """
    Bind *host*:*port*; port 0 takes a free one.

    Raises:
        ConfigError: It cannot be bound; says why and what to do.
    """
    return _bound(host, port)


def _bound(host: str, port: int, *, among_others: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that say they are TCP; without it, each answer
    # that is written in two parts waits for the caller's delayed acknowledgement, some 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if among_others:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"{host}:{port}", _why_not(error)) from None
    listener.setblocking(False)
    return listener


def _why_not(error: Exception) -> str:
    match getattr(error, "errno", None):
        case 98 | 48:
            return "the address is in use; stop what listens there, or choose another with --port"
        case 13:
            return "not allowed; ports below 1024 need privileges, choose another with --port"
        case 99 | 49 | -2 | 8:
            return "this machine has no such address; choose another with --host"
    return f"cannot be listened on: {getattr(error, 'strerror', None) or error}"


class Port:
    """
    An address that several processes listen on, each at a socket of its own.

    On Linux the kernel spreads connections evenly over the sockets. Elsewhere the option means
    something else, and they are copies of one.

    Raises:
        ConfigError: Somebody else listens there, or it cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        self._claim = listen(host, port)  # refuses a port in use, and keeps it while nobody listens
        self.address: tuple[str, int] = self._claim.getsockname()[:2]

    def open(self) -> socket.socket:
        """Listen: connections queue at the new socket from now on. Raises `ConfigError`."""
        spreads = sys.platform == "linux"
        listener = _bound(*self.address, among_others=True) if spreads else self._claim.dup()
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise ConfigError("{}:{}".format(*self.address), _why_not(error)) from None
        return listener

    def shut(self, listener: socket.socket) -> None:
        """Let nothing queue at *listener* any more, though one that was just forked may have it still."""
        if sys.platform == "linux":  # elsewhere it is one socket with the others
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    def close(self) -> None:
        """Let go of the port; sockets that are open stay so."""
        self._claim.close()


PING_SECONDS = 20.0
"""How often a WebSocket is asked whether it is still there, and how long it may take to say so."""

MAX_MESSAGE_BYTES = 4096
"""What a WebSocket client may send: nothing, but it gets a better answer than a cut connection."""

LIVE_END_SECONDS = 1.0
"""For those who listen to the live feed to have its last words."""


class LiveConnection(WebSocketsSansIOProtocol):
    """A WebSocket that, once it is done with, does not wait for ever for a client that no longer reads."""

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.loop.call_later(FAREWELL_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """
    Runs one `Proxy` until a signal, or `stop`, ends it.

    Args:
        on_started: Called once the socket is being listened on.
        on_hangup: Called at each SIGHUP.
    """

    def __init__(
        self,
        proxy: Proxy,
        on_started: Callable[[], None] | None = None,
        on_hangup: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                proxy,
                http=cast(Any, partial(Inbound, wheel=proxy.wheel)),
                ws=LiveConnection,
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_interval=PING_SECONDS,
                ws_ping_timeout=PING_SECONDS,
                ws_per_message_deflate=False,  # its windows cost more memory than all the rest of a client
                loop="auto",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=FAREWELL_SECONDS,
                backlog=BACKLOG,
            )
        )
        self._proxy = proxy
        self._on_started = on_started
        self._on_hangup = on_hangup
        self._drained_at = math.inf
        self._ending = asyncio.Event()
        self._told = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._on_hangup is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        await super().startup(sockets=sockets)
        if self.started and self._on_started is not None:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second SIGINT ends at once. No signal is raised again, so the exit status is 0."""
        if self._proxy.load.draining and sig == signal.SIGINT:
            self.force_exit = True
            self.stop()
        else:
            self.drain()

    def drain(self) -> None:
        """
        Admit nothing new and end when what runs is done, or has had its time.

        The socket stays open meanwhile: whoever calls learns from a 503 to go elsewhere, and an
        orchestrator that asks sees that we are not ready.
        """
        load = self._proxy.load
        if not load.draining:
            load.draining = True
            self._drained_at = self._proxy.clock.monotonic() + self._proxy.config.server.drain_seconds

    def leave(self) -> None:
        """Drain behind a closed door: whoever calls from now on is refused by the system."""
        for listening in self.servers:
            listening.close()
        self.drain()

    def stop(self) -> None:
        """End now: what still runs is told so."""
        self._proxy.load.draining = True
        self._proxy.interrupt()
        self.should_exit = True
        self._ending.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """
        Close everything, as uvicorn does, but without its fixed pauses: an idle proxy ends at once.

        The live feed goes last of what is heard and first of what is closed. Whoever is still
        there has `FAREWELL_SECONDS` to read its last words.
        """
        if not self._told:
            self._tell()
        await self._proxy.end_feed(0.0 if self.force_exit else LIVE_END_SECONDS)
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        until = asyncio.get_running_loop().time() + FAREWELL_SECONDS
        while (state.connections or state.tasks) and not self.force_exit:
            if asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(0.005)
        for task in list(state.tasks):
            task.cancel(msg="the proxy has shut down")
        with suppress(TimeoutError):  # whatever holds it up: nobody waits for a process that will not end
            async with asyncio.timeout(FORCED_SECONDS if self.force_exit else FAREWELL_SECONDS):
                await self.lifespan.shutdown()

    async def main_loop(self) -> None:
        """Tick ten times a second, and at once when it is time to end."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._ending.wait()

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether draining is over."""
        load = self._proxy.load
        if load.draining and not self._told:
            self._tell()
        if load.draining and not self.should_exit:
            if load.in_flight == 0:
                self.should_exit = True
            elif self._proxy.clock.monotonic() >= self._drained_at:
                self.stop()
        return await super().on_tick(counter)

    def _tell(self) -> None:
        """Report the drain. Not where it begins: a signal comes in the middle of anything."""
        self._told = True
        details = {
            "in_flight": self._proxy.load.in_flight,
            "seconds": self._proxy.config.server.drain_seconds,
        }
        self._proxy.bus.emit(Noticed("info", "draining", details))


def prepare() -> None:
    """Import what a server imports when it starts, so that processes which are forked need not."""
    uvicorn.Config("", loop="auto", log_config=None).get_loop_factory()
    import_module("uvicorn.lifespan.on")


def _calm_the_collector() -> None:
    """
    Let the garbage collector look rarely, and only at what is made from now on.

    A call leaves no cycles behind, so counting references frees all of it; by default the collector
    would still go through the live objects of every call in flight hundreds of times a second,
    and now and then through all that was imported.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)


def serve(server: Server, listener: socket.socket) -> None:
    """Run *server* on *listener* until a signal ends it; returns when everything is closed."""
    _calm_the_collector()
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))


@asynccontextmanager
async def running(proxy: Proxy, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """
    Run *proxy* inside the current event loop, on a real socket, and yield its base URL.

    For the demo and for tests: signals stay with whoever runs the loop. Leaving drains.

    Raises:
        ConfigError: The address cannot be bound.
    """
    listener = listen(host, port)
    started = asyncio.Event()
    server = Server(proxy, started.set)
    task = asyncio.create_task(server._serve(sockets=[listener]), name="proxy")
    task.add_done_callback(lambda _: started.set())
    try:
        await started.wait()
        if task.done():
            await task
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await task
