"""
State in a file beside one proxy, for those who need no server: it survives restarts.

Breakers, events and incidents are in the file (`stores.file`), which one thread of its own
reads and writes: the event loop never waits for a disk. Leases, limits and presences are in
memory, for they end with the process, and no other has the file at the same time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from sentinel_proxy.clock import Clock
from sentinel_proxy.model import Frame
from sentinel_proxy.resilience.rate_limit import Decision, SlidingLog
from sentinel_proxy.stores.base import News, StoreAway
from sentinel_proxy.stores.file import File
from sentinel_proxy.stores.records import BreakerRecord, Contribution, Note, Resumed, SharedIncident

COMMAND_SECONDS: Final = 2.0
"""How long a command may take: a disk that is merely busy answers within that."""

MOST_UNREAD: Final = 1000
"""News that wait for their reader beside a whole ring of events; one who is later must read it all again."""

P = ParamSpec("P")
T = TypeVar("T")


class EmbeddedStore:
    """
    Keeps state in a file of SQLite.

    Args:
        path: The file; made if there is none, in a directory that exists.
        incidents: How many are kept.
        events: How many are kept.
    """

    kind = "sqlite"
    shared = False

    def __init__(self, path: Path, incidents: int, events: int, clock: Clock) -> None:
        self._path = path
        self._events = events
        self._clock = clock
        self._file = File(path, incidents, events, self._committed)
        self._worker: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._is_closed = False
        self._unread = Unread(0)
        self._leases: dict[tuple[str, str], float] = {}  # name and owner to when it ends
        self._logs: dict[float, SlidingLog] = {}  # by the length of the window
        self._presences: dict[str, tuple[bytes, float]] = {}  # what it says, until when

    def __repr__(self) -> str:
        return f"<EmbeddedStore {self._path}>"

    async def open(self) -> None:
        """Take the file for this process."""
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="state")
        await self._do(self._file.open)
        if self._is_closed:
            raise self._not_open()  # somebody has closed it meanwhile
        if not self._is_open:
            self._is_open = True
            self._unread.add([Resumed()])

    async def aclose(self) -> None:
        """Let what is under way end, and let go of the file; a disk that is too slow is not waited for."""
        self._is_open = False
        self._is_closed = True
        worker, self._worker = self._worker, None
        try:
            if worker is not None:
                closed = asyncio.wrap_future(worker.submit(self._file.close))
                worker.shutdown(wait=False)
                with suppress(TimeoutError):
                    async with asyncio.timeout(COMMAND_SECONDS):
                        await asyncio.shield(closed)
        finally:
            self._unread.end()

    async def ping(self) -> None:
        """Return if the file can be written to."""
        await self._do(self._file.ping)

    # Breakers.

    async def merge_breaker(self, record: BreakerRecord) -> BreakerRecord:
        """Keep what stands of *record* and what is known, and return it."""
        return await self._do(self._file.merge_breaker, record, self._clock.time())

    async def breakers(self) -> Sequence[BreakerRecord]:
        """Return every breaker that is known, aged by the wall clock."""
        return await self._do(self._file.breakers, self._clock.time())

    # Leases and limits.

    async def take_lease(self, name: str, owner: str, seconds: float, places: int = 1) -> float:
        """Take or renew a place; return the seconds until one is free if there is none."""
        self._raise_unless_open()
        now = self._clock.monotonic()
        self._leases = {lease: end for lease, end in self._leases.items() if end > now}
        ends = sorted(end for (held, _), end in self._leases.items() if held == name)
        if len(ends) >= places and (name, owner) not in self._leases:
            return ends[-places] - now
        self._leases[name, owner] = now + seconds
        return 0.0

    async def release_lease(self, name: str, owner: str) -> None:
        """Give a place back."""
        self._raise_unless_open()
        self._leases.pop((name, owner), None)

    async def admit(self, key: str, limit: int, window_seconds: float, requests: int) -> Sequence[Decision]:
        """Decide about so many requests of *key*."""
        self._raise_unless_open()
        log = self._logs.setdefault(window_seconds, SlidingLog(0, window_seconds))
        now = self._clock.monotonic()
        return [log.admit(key, now, limit=limit) for _ in range(requests)]

    # Events.

    async def append(self, frames: Sequence[Frame]) -> None:
        """Return once *frames* are on the disk."""
        await self._do(self._file.append, frames)

    async def frames(self) -> Sequence[Frame]:
        """Return the ring, oldest first."""
        return await self._do(self._file.frames)

    # Incidents.

    async def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
        """Return what is known of the incident, once it is on the disk."""
        return await self._do(self._file.contribute, contribution, alive)

    async def incidents(self) -> Sequence[SharedIncident]:
        """Return the ring, newest first."""
        return await self._do(self._file.incidents)

    # Replicas.

    async def beat(self, replica: str, presence: bytes, seconds: float) -> Mapping[str, bytes]:
        """Return what all that are there say; usually that is *replica* alone."""
        self._raise_unless_open()
        now = self._clock.monotonic()
        self._presences[replica] = presence, now + seconds
        self._presences = {who: said for who, said in self._presences.items() if said[1] > now}
        return {who: presence for who, (presence, _) in self._presences.items()}

    async def leave(self, replica: str) -> None:
        """Forget that *replica* was there."""
        self._raise_unless_open()
        self._presences.pop(replica, None)

    async def tell(self, note: Note) -> None:
        """Send a message to who listens."""
        self._raise_unless_open()
        self._unread.add([note])

    def news(self) -> AsyncIterator[News]:
        """Yield what happens from now on; ends the iterator of an earlier call."""
        self._unread.end()
        self._unread = Unread(self._events + MOST_UNREAD)
        if self._is_open:
            self._unread.add([Resumed()])
        if self._is_closed:
            self._unread.end()
        return self._unread.read()

    # The thread.

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Have the worker do it, after what it was given before.

        Who gives up waiting before it has begun finds it never done, else it is done to the end.
        """
        if self._worker is None:
            raise self._not_open()
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                return await asyncio.wrap_future(self._worker.submit(work, *args, **kwargs))
        except TimeoutError:
            raise StoreAway(f"the disk of the state file {self._path} does not answer") from None

    def _committed(self, news: Sequence[News]) -> None:
        """Hear from the worker what is on the disk now; tell it where the reader of news is."""
        assert self._loop is not None, "opened before anything is committed"
        with suppress(RuntimeError):  # the loop has ended, and with it all who read
            self._loop.call_soon_threadsafe(lambda: self._unread.add(news))

    def _raise_unless_open(self) -> None:
        if not self._is_open:
            raise self._not_open()

    def _not_open(self) -> StoreAway:
        return StoreAway(f"the state file {self._path} is not open")


class Unread:
    """
    News that wait for their reader.

    Args:
        capacity: How many wait at most; where there are more, all make way for one `Resumed`.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._news = deque[News]()
        self._changed = asyncio.Event()
        self._ended = False

    def add(self, news: Sequence[News]) -> None:
        """Let the reader have *news*, in the end."""
        self._news.extend(news)
        if len(self._news) > self._capacity:
            self._news = deque([Resumed()])
        self._changed.set()

    def end(self) -> None:
        """Let the reader have what is left, then no more."""
        self._ended = True
        self._changed.set()

    async def read(self) -> AsyncIterator[News]:
        """Yield news as they come; for one reader."""
        while self._news or not self._ended:
            if not self._news:
                self._changed.clear()
                await self._changed.wait()
            while self._news:
                yield self._news.popleft()
