"""State that replicas share, in a Redis."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol, TypeVar

from sentinel_proxy.config.redis_url import parse_redis_url
from sentinel_proxy.model import Frame
from sentinel_proxy.resilience.rate_limit import UNLIMITED, Decision
from sentinel_proxy.stores.base import News, StoreAway
from sentinel_proxy.stores.records import BreakerRecord, Contribution, Note, SharedIncident
from sentinel_proxy.stores.redis.client import Elsewhere, Moments, Refused, Servers, in_plain_words, patience
from sentinel_proxy.stores.redis.layout import (
    TOLD_LENGTH,
    TOLD_SECONDS,
    Keys,
    frame_fields,
    note_fields,
    read_entry,
    read_frame,
    read_incidents,
)
from sentinel_proxy.stores.redis.news import SILENCE_SECONDS, Listener
from sentinel_proxy.stores.redis.plain import Plain
from sentinel_proxy.stores.redis.scripts import Scripted

T = TypeVar("T")

PLACES: Final = 16
"""Commands at a time; beyond that there are more waiting than a connection more would help."""

PATIENCE_SECONDS: Final = 0.05
"""How long one waits for a place."""

OPEN_SECONDS: Final = 2.0
"""For all that opening takes."""

FIRST_PAUSE_SECONDS: Final = 0.1
STEADY_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
"""
Between a listener's attempts: doubled from the first on. Beyond the steady one it ends early when
any command was answered, so a listener is back soon after whoever pings.
"""


class Way(Protocol):
    """How changes are made that need more than one command; nobody comes between."""

    async def merge_breaker(self, record: BreakerRecord) -> BreakerRecord: ...
    async def take_lease(self, name: str, owner: str, seconds: float, places: int) -> float: ...
    async def admit(
        self, client: str, limit: int, window_seconds: float, requests: int
    ) -> Sequence[Decision]: ...
    async def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident: ...
    async def beat(self, replica: str, presence: bytes, seconds: float) -> Mapping[str, bytes]: ...


class RedisStore:
    """
    A `Store` on a Redis; belongs to the event loop that opens it.

    Changes are scripts; on a server that forbids them, they are plain commands from then on.

    Args:
        url: See `config.redis_url`.
        namespace: Begins every key.
        incidents: How many are kept.
        events: How many are kept.
        now: Unix seconds in place of the server's clock, in tests.

    Raises:
        ValueError: *url* cannot be read; the configuration has seen to that.
    """

    kind = "redis"
    shared = True

    def __init__(
        self,
        url: str,
        namespace: str,
        incidents: int,
        events: int,
        *,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._url = parse_redis_url(url)
        self._keys = Keys(namespace)
        self._moments = Moments(now)
        self._events = events
        self._incidents = incidents
        self._servers = Servers(self._url)
        self._way: Way = Scripted(self._servers, self._keys, self._moments, incidents)
        self._watching: Servers | None = None  # connections of their own, of the way without scripts
        self._listening: set[Servers] = set()
        self._places = asyncio.Semaphore(PLACES)
        self._answered = asyncio.Event()
        self._closed = asyncio.Event()
        self._is_open = False

    def __repr__(self) -> str:
        return f"<RedisStore {self._url!r}, {type(self._way).__name__.lower()}>"

    # Coming and going.

    async def open(self) -> None:
        """See `Store`."""
        if self._closed.is_set():
            raise StoreAway("redis is not open any more")
        await self._asked(self._try, OPEN_SECONDS)
        self._is_open = True

    async def _try(self) -> None:
        """Return if the server answers; find out whether it allows scripts."""
        client = await self._servers.of(self._keys.birth)
        await self._write(client)
        try:
            with in_plain_words():
                await client.execute_command("EVAL", "return 1", 1, self._keys.birth)
        except Refused:
            self._go_on_without_scripts()

    def _go_on_without_scripts(self) -> None:
        if self._watching is None:
            self._watching = Servers(self._url)
            self._way = Plain(self._watching, self._keys, self._moments, self._incidents)

    async def aclose(self) -> None:
        """See `Store`."""
        self._is_open = False
        self._closed.set()
        self._answered.set()
        for servers in (self._servers, self._watching, *self._listening):
            if servers is not None:
                await servers.aclose()

    async def ping(self) -> None:
        """See `Store`."""

        async def question() -> None:
            await self._write(await self._servers.of(self._keys.birth))

        await self._ask(question)

    async def _write(self, client: Any) -> None:
        """Return if *client* can write: one that is full or only reads answers any `PING`."""
        await client.set(self._keys.birth, secrets.token_hex(8), nx=True)

    # Breakers.

    async def merge_breaker(self, record: BreakerRecord) -> BreakerRecord:
        """See `Store`."""
        return await self._change(lambda way: way.merge_breaker(record))

    async def breakers(self) -> Sequence[BreakerRecord]:
        """See `Store`."""

        async def question() -> Sequence[BreakerRecord]:
            client = await self._servers.of(self._keys.breakers)
            entries = await client.hgetall(self._keys.breakers)
            now = await self._moments.milliseconds(client)
            records = (read_entry(data, now) for data in entries.values())
            return [record for record in records if record is not None]

        return await self._ask(question)

    # Leases.

    async def take_lease(self, name: str, owner: str, seconds: float, places: int = 1) -> float:
        """See `Store`."""
        return await self._change(lambda way: way.take_lease(name, owner, seconds, places))

    async def release_lease(self, name: str, owner: str) -> None:
        """See `Store`."""

        async def question() -> None:
            key = self._keys.lease(name)
            await (await self._servers.of(key)).zrem(key, owner)

        await self._ask(question)

    # Limits.

    async def admit(self, key: str, limit: int, window_seconds: float, requests: int) -> Sequence[Decision]:
        """See `Store`."""
        if limit <= 0:
            return [await self._ask(_no_limit)] * requests
        return await self._change(lambda way: way.admit(key, limit, window_seconds, requests))

    # Events.

    async def append(self, frames: Sequence[Frame]) -> None:
        """See `Store`."""

        async def question() -> None:
            client = await self._servers.of(self._keys.events)
            async with client.pipeline(transaction=True) as pipe:
                for frame in frames:
                    pipe.xadd(self._keys.events, frame_fields(frame), maxlen=self._events, approximate=False)
                await pipe.execute()

        await self._ask(question)

    async def frames(self) -> Sequence[Frame]:
        """See `Store`."""

        async def question() -> Sequence[Frame]:
            client = await self._servers.of(self._keys.events)
            newest_first = await client.xrevrange(self._keys.events, count=self._events)
            read = (read_frame(fields) for _, fields in reversed(newest_first))
            return [frame for frame in read if frame is not None]

        return await self._ask(question)

    # Incidents.

    async def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
        """See `Store`."""
        return await self._change(lambda way: way.contribute(contribution, alive))

    async def incidents(self) -> Sequence[SharedIncident]:
        """See `Store`."""
        keys = self._keys

        async def question() -> Sequence[SharedIncident]:
            client = await self._servers.of(keys.incidents)
            async with client.pipeline(transaction=True) as pipe:
                pipe.lrange(keys.incidents, 0, self._incidents - 1)
                pipe.hgetall(keys.parts)
                pipe.hgetall(keys.data)
                ids, parts, data = await pipe.execute()
            return list(read_incidents(ids, parts, data))

        return await self._ask(question)

    # Replicas.

    async def beat(self, replica: str, presence: bytes, seconds: float) -> Mapping[str, bytes]:
        """See `Store`."""
        return await self._change(lambda way: way.beat(replica, presence, seconds))

    async def leave(self, replica: str) -> None:
        """See `Store`."""

        async def question() -> None:
            key = self._keys.replicas
            await (await self._servers.of(key)).hdel(key, replica)

        await self._ask(question)

    async def tell(self, note: Note) -> None:
        """See `Store`."""

        async def question() -> None:
            client = await self._servers.of(self._keys.told)
            async with client.pipeline(transaction=True) as pipe:
                pipe.xadd(self._keys.told, note_fields(note), maxlen=TOLD_LENGTH, approximate=True)
                pipe.expire(self._keys.told, TOLD_SECONDS)
                await pipe.execute()

        await self._ask(question)

    async def news(self) -> AsyncIterator[News]:
        """See `Store`."""
        servers = Servers(self._url)
        listener = Listener(servers, self._keys, self._moments)
        self._listening.add(servers)
        pause, is_there = FIRST_PAUSE_SECONDS, False
        try:
            while not self._closed.is_set():
                try:
                    with in_plain_words():
                        async with patience(SILENCE_SECONDS):
                            heard = await listener.hear() if is_there else await listener.resume()
                except StoreAway:
                    is_there = False
                    servers.forget()
                    await self._wait_for_it(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    continue
                pause, is_there = FIRST_PAUSE_SECONDS, heard is not None
                for each in heard or ():
                    yield each
        finally:
            self._listening.discard(servers)
            await servers.aclose()

    async def _wait_for_it(self, seconds: float) -> None:
        """Wait so long, or after a steady while until any command is answered; not if we are closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, STEADY_PAUSE_SECONDS)):
                await self._closed.wait()
        if not self._closed.is_set() and (rest := seconds - STEADY_PAUSE_SECONDS) > 0:
            self._answered.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._answered.wait()

    # Asking.

    async def _change(self, change: Callable[[Way], Awaitable[T]]) -> T:
        """Make a change; again and without scripts, where the server refuses these."""
        try:
            return await self._ask(lambda: change(self._way))
        except Refused:
            if isinstance(self._way, Plain):
                raise
        self._go_on_without_scripts()
        return await self._ask(lambda: change(self._way))

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        if not self._is_open:
            raise StoreAway("redis is not open")
        return await self._asked(question)

    async def _asked(self, question: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        async with self._place():
            try:
                with in_plain_words():
                    async with patience(seconds or self._servers.seconds):
                        answer = await question()
            except Elsewhere:
                self._servers.forget()
                raise
        self._answered.set()
        return answer

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Have one of the places for as long as the context; raises `StoreAway` if none is free soon."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise StoreAway("redis has too much to do") from None
        try:
            yield
        finally:
            self._places.release()


async def _no_limit() -> Decision:
    return UNLIMITED
