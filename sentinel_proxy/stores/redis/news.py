"""
Listening to a Redis: two streams, read on from where one was.

A stream tells a reader that was cut off what it has missed; publish and subscribe would have lost
it. That the memory itself was lost, by `FLUSHALL` or a restart without a disk, shows in its birth
name, which whoever comes first gives it.
"""

import secrets
from collections.abc import Iterable
from typing import Any, Final

from sentinel_proxy.stores.base import News
from sentinel_proxy.stores.records import Resumed
from sentinel_proxy.stores.redis.client import Moments, Servers
from sentinel_proxy.stores.redis.layout import Fields, Keys, read_frame, read_told

BLOCK_SECONDS: Final = 2.0
"""An answer comes at least this often, news or not; so silence means that the connection is dead."""

SILENCE_SECONDS: Final = 4.0
"""Nothing for so long, and the connection is given up: no FIN comes from a network that is gone."""

AT_ONCE: Final = 100
"""So many news of each kind are taken into the memory of this process at a time."""

NOTHING: Final = b"0-0"


class Listener:
    """A place in the streams of one namespace. Every method raises what redis-py raises."""

    def __init__(self, servers: Servers, keys: Keys, moments: Moments) -> None:
        self._servers = servers
        self._keys = keys
        self._moments = moments
        self._birth: bytes | None = None
        self._events = self._told = NOTHING  # the last of each stream that was read

    def __repr__(self) -> str:
        return f"<Listener after {self._events.decode()} and {self._told.decode()}>"

    async def resume(self) -> list[News]:
        """Find the place to read on from, which is the end if this is the first time; say so."""
        keys, client = self._keys, await self._servers.of(self._keys.events)
        async with client.pipeline(transaction=True) as pipe:
            pipe.set(keys.birth, secrets.token_hex(8), nx=True)
            pipe.get(keys.birth)
            pipe.xrevrange(keys.events, count=1)
            pipe.xrevrange(keys.told, count=1)
            _, birth, events, told = await pipe.execute()
        if self._birth is None:
            self._events, self._told = _last(events), _last(told)
        else:
            lost = birth != self._birth
            self._events = _place(self._events, _last(events), lost)
            self._told = _place(self._told, _last(told), lost)
        self._birth = birth
        return [Resumed()]

    async def hear(self) -> list[News] | None:
        """
        Wait for news, for a while; return none after that.

        Returns:
            None if the memory was lost: `resume` before anything else.
        """
        keys, client = self._keys, await self._servers.of(self._keys.events)
        streams = {keys.events: self._events, keys.told: self._told}
        answer = await client.xread(streams, count=AT_ONCE, block=int(BLOCK_SECONDS * 1000))
        if await client.get(keys.birth) != self._birth:
            return None
        if not answer:
            return []
        now = await self._moments.milliseconds(client)
        entries: dict[bytes, list[tuple[bytes, Fields]]] = dict(answer)
        told = entries.get(keys.told.encode(), [])
        events = entries.get(keys.events.encode(), [])
        self._told, self._events = _read(told, self._told), _read(events, self._events)
        heard = [
            *(read_told(fields, now) for _, fields in told),
            *(read_frame(fields) for _, fields in events),
        ]
        return [each for each in heard if each is not None]


def _place(mine: bytes, last: bytes, lost: bool) -> bytes:
    """
    Return where to read on in a stream whose last entry is *last*.

    Its ids are times, so what is added after a loss comes after what was read before. If it does
    not, a clock was set back with it: then all of it is new. If nothing was lost but the end of
    it, by a server that took over in haste, nothing is new.
    """
    if _order(last) >= _order(mine):
        return mine
    return NOTHING if lost else last


def _order(id: bytes) -> tuple[int, int]:
    time, _, number = id.partition(b"-")
    return int(time), int(number)


def _last(entries: Iterable[Any]) -> bytes:
    """Return the id of the first of *entries*, which came newest first."""
    return next((id for id, _ in entries), NOTHING)


def _read(entries: list[tuple[bytes, Fields]], before: bytes) -> bytes:
    return entries[-1][0] if entries else before
