"""
Names to addresses, one resolver a provider.

The event loop's own look-ups share a few threads: asyncio's default executor, or the four of
libuv under uvloop. One provider whose name hangs would then starve the look-ups of all others,
the healthy fallback included. So each resolver uses daemon threads of its own, few of them,
and a hung one harms nobody else and does not keep the process from ending.
"""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

Address = tuple[int, Any]
"""Address family and socket address, as `socket.connect` wants them."""

Lookup = Callable[..., Sequence[tuple[Any, ...]]]
"""`socket.getaddrinfo`, or something that answers like it; runs in a thread and may block."""

FRESH_SECONDS: Final = 10.0
"""How long an answer is used again: spares a burst of connects the look-ups, yet follows DNS failover."""

PATIENCE_SECONDS: Final = 2.0
"""A look-up older than this may be stuck: whoever comes then starts another beside it."""

MAX_THREADS: Final = 4


class Resolver:
    """
    Looks up one host, for one event loop.

    All who ask at the same time share one look-up; the first answer, good or bad, is everyone's.
    """

    def __init__(self, host: str, port: int, lookup: Lookup = socket.getaddrinfo) -> None:
        self._host = host
        self._port = port
        self._lookup = lookup
        self._literal = _literal(host, port)
        self._known: Sequence[Address] = ()
        self._known_until = 0.0
        self._waiters: set[asyncio.Future[Sequence[Address]]] = set()
        self._threads = 0
        self._newest = 0.0

    def __repr__(self) -> str:
        return f"<Resolver {self._threads} threads, {len(self._waiters)} waiting>"

    async def addresses(self) -> Sequence[Address]:
        """
        Return at least one address, in the order in which the system prefers them.

        An IP address is its own answer. Cancelling leaves the look-up to the others who wait.

        Raises:
            OSError: The name cannot be resolved (`socket.gaierror`).
            UnicodeError: It is not a name at all (IDNA).
        """
        if self._literal:
            return self._literal
        loop = asyncio.get_running_loop()
        if loop.time() < self._known_until:
            return self._known
        waiter: asyncio.Future[Sequence[Address]] = loop.create_future()
        self._waiters.add(waiter)
        self._ensure_lookup(loop)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)

    def forget(self) -> None:
        """Look it up anew next time: nothing answered at the addresses known so far."""
        self._known_until = 0.0

    def _ensure_lookup(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        if self._threads and (self._threads >= MAX_THREADS or now - self._newest < PATIENCE_SECONDS):
            return
        self._threads += 1
        self._newest = now
        threading.Thread(target=self._look_up, args=(loop,), name="sentinel-dns", daemon=True).start()

    def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread; touches nothing but the event loop's inbox."""
        found: Sequence[Address] | Exception
        try:
            rows = self._lookup(self._host, self._port, type=socket.SOCK_STREAM)
            found = tuple(dict.fromkeys((row[0], row[4]) for row in rows)) or OSError("no address")
        except Exception as error:
            found = error
        with suppress(RuntimeError):  # the loop has ended meanwhile: nobody is waiting
            loop.call_soon_threadsafe(self._settle, loop, found)

    def _settle(self, loop: asyncio.AbstractEventLoop, found: Sequence[Address] | Exception) -> None:
        self._threads -= 1
        if not isinstance(found, Exception):
            self._known, self._known_until = found, loop.time() + FRESH_SECONDS
        for waiter in self._waiters:
            if waiter.done():
                continue
            if isinstance(found, Exception):
                waiter.set_exception(found)
            else:
                waiter.set_result(found)


def _literal(host: str, port: int) -> Sequence[Address]:
    """Return the address that *host* spells out, if it does."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return ()
    if version == 4:
        return [(socket.AF_INET, (host, port))]
    address, _, scope = host.partition("%")
    return [(socket.AF_INET6, (address, port, 0, _scope_id(scope)))]


def _scope_id(scope: str) -> int:
    """Return the number of an IPv6 zone (RFC 4007 §11.2); 0 where there is none."""
    if not scope or scope.isdigit():
        return int(scope or 0)
    try:
        return socket.if_nametoindex(scope)
    except OSError:
        return 0
