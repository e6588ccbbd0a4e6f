"""
Changes as plain commands, for servers that forbid scripts.

What a change depends on is watched and read, the change is decided here and sent as one
transaction; if anybody came between, it is done again. That takes some four round trips, and turns
within one process. Watching is bound to a connection, so these have connections of their own: one
that a cancelled change left behind can do no more harm than to have another change done twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import WatchError

from sentinel_proxy.resilience.rate_limit import Decision
from sentinel_proxy.stores.records import (
    BreakerRecord,
    Contribution,
    SharedIncident,
    joins,
    kept_seconds,
    merged,
)
from sentinel_proxy.stores.redis.client import Moments, Servers
from sentinel_proxy.stores.redis.layout import (
    ENDLESS,
    SWEPT_EVERY,
    TOLD_LENGTH,
    TOLD_SECONDS,
    Keys,
    Part,
    as_kept,
    decisions,
    entry,
    milliseconds,
    parts_json,
    presence_entry,
    read_entry,
    read_incident,
    read_key,
    read_parts,
    read_presence,
)

T = TypeVar("T")


class Plain:
    """The same changes as `scripts.Scripted` makes, on the same keys."""

    def __init__(self, servers: Servers, keys: Keys, moments: Moments, incidents: int) -> None:
        self._servers = servers
        self._keys = keys
        self._moments = moments
        self._incidents = incidents
        self._turn = asyncio.Lock()

    async def merge_breaker(self, record: BreakerRecord) -> BreakerRecord:
        """See `Store`."""
        keys, theirs = self._keys, as_kept(record)

        async def decide(pipe: Any) -> BreakerRecord:
            now = await self._moments.milliseconds(pipe)
            known = await pipe.hget(keys.breakers, record.key)
            ours = None if known is None else read_entry(known, now)
            stands = theirs if ours is None else merged(ours, theirs)
            if stands == ours:
                pipe.multi()
                return stands
            left = await pipe.pttl(keys.breakers)
            sweeps = known is None and (await pipe.hlen(keys.breakers) + 1) % SWEPT_EVERY == 0
            entries = await pipe.hgetall(keys.breakers) if sweeps else {}
            pipe.multi()
            if old := [name for name, each in entries.items() if read_entry(each, now) is None]:
                pipe.hdel(keys.breakers, *old)
            pipe.hset(keys.breakers, record.key, entry(stands, now))
            kept = milliseconds(kept_seconds(stands))
            if ENDLESS in (kept, left):
                pipe.persist(keys.breakers)
            else:
                pipe.pexpire(keys.breakers, max(kept, left))
            pipe.xadd(keys.told, {"breaker": entry(stands, now)}, maxlen=TOLD_LENGTH, approximate=True)
            pipe.expire(keys.told, TOLD_SECONDS)
            return stands

        return await self._change(decide, keys.breakers)

    async def take_lease(self, name: str, owner: str, seconds: float, places: int) -> float:
        """See `Store`."""
        key, duration = self._keys.lease(name), milliseconds(seconds)

        async def decide(pipe: Any) -> float:
            now = await self._moments.milliseconds(pipe)
            holders = await pipe.zrangebyscore(key, f"({now}", "+inf", withscores=True)
            pipe.multi()
            if len(holders) >= places and owner.encode() not in dict(holders):
                return float(holders[len(holders) - places][1] - now) / 1000
            pipe.zremrangebyscore(key, "-inf", now)
            pipe.zadd(key, {owner: now + duration})
            longest = max([now + duration, *(int(until) for _, until in holders)]) - now
            pipe.pexpire(key, longest)
            return 0.0

        return await self._change(decide, key)

    async def admit(
        self, client: str, limit: int, window_seconds: float, requests: int
    ) -> Sequence[Decision]:
        """See `Store`; *limit* is above 0."""
        key, window = self._keys.limit(client), round(window_seconds * 1_000_000)

        async def decide(pipe: Any) -> Sequence[Decision]:
            now = await self._moments.microseconds(pipe)
            known = [int(came) for came in await pipe.lrange(key, 0, -1)]
            set_back = bool(known) and known[-1] > now  # the clock; nobody is locked out for that
            log = [] if set_back else [came for came in known if came + window > now]
            admitted = [now] * min(requests, limit - len(log))
            pipe.multi()
            if admitted:
                if len(log) < len(known):
                    pipe.ltrim(key, len(known) - len(log), -1)
                pipe.rpush(key, *admitted)
                pipe.pexpire(key, window // 1000 + 1000)
            log += admitted
            excess = max(0, len(log) - limit)  # more than 0 after the limit was lowered
            retry, reset = (came + window - now for came in (log[excess], log[-1]))
            refusal = Decision(False, limit, 0, retry / 1_000_000, reset / 1_000_000)
            remaining = max(0, limit - len(log))
            return decisions(len(admitted), remaining, window_seconds, refusal, requests)

        return await self._change(decide, key)

    async def contribute(self, contribution: Contribution, alive: frozenset[str]) -> SharedIncident:
        """See `Store`."""
        keys, id = self._keys, contribution.id

        async def decide(pipe: Any) -> SharedIncident:
            order = await pipe.lrange(keys.incidents, 0, -1)
            parts_of = await pipe.hgetall(keys.parts)
            data_of = await pipe.hgetall(keys.data) | {id.encode(): contribution.data}
            latest_of = await pipe.hgetall(keys.latest)
            name = await pipe.hget(keys.of, id)
            whole = await pipe.exists(*keys.ring) == len(keys.ring)
            pipe.multi()
            if not whole:
                pipe.delete(*keys.ring)
                order, parts_of, latest_of, name = [], {}, {}, None
            if name is None:
                latest = latest_of.get(contribution.key.encode())
                if latest is not None and joins(contribution, _incident(latest, parts_of, data_of), alive):
                    name = latest
                else:
                    name = id.encode()
                    order = [name, *order]
                    pipe.lpush(keys.incidents, name)
                    pipe.hset(keys.latest, contribution.key, name)
                pipe.hset(keys.of, id, name)
            parts_of[name] = parts_json(contribution.key, _replaced(parts_of.get(name), contribution))
            pipe.hset(keys.parts, name, parts_of[name])
            pipe.hset(keys.data, id, contribution.data)
            self._make_room(pipe, order, parts_of, latest_of)
            return _incident(name, parts_of, data_of)

        return await self._change(decide, *keys.ring)

    def _make_room(
        self, pipe: Any, order: list[bytes], parts_of: dict[bytes, bytes], latest_of: dict[bytes, bytes]
    ) -> None:
        """Forget the oldest that nobody calls ongoing, or else the oldest; never the newest."""
        keys, (_, *rest) = self._keys, order
        over = [name for name in rest if not any(ongoing for _, _, ongoing in read_parts(parts_of[name]))]
        going = [*(name for name in rest if name not in over), *over]  # the last goes first
        for name in going[::-1][: max(0, len(order) - self._incidents)]:
            contributions = [contribution for contribution, _, _ in read_parts(parts_of[name])]
            pipe.hdel(keys.data, *contributions)
            pipe.hdel(keys.of, *contributions)
            pipe.hdel(keys.parts, name)
            pipe.lrem(keys.incidents, -1, name)
            if latest_of.get(key := read_key(parts_of[name])) == name:
                pipe.hdel(keys.latest, key)

    async def beat(self, replica: str, presence: bytes, seconds: float) -> Mapping[str, bytes]:
        """See `Store`."""
        key, duration = self._keys.replicas, milliseconds(seconds)

        async def decide(pipe: Any) -> Mapping[str, bytes]:
            now = await self._moments.milliseconds(pipe)
            said = {name: read_presence(data, now) for name, data in (await pipe.hgetall(key)).items()}
            left = await pipe.pttl(key)
            pipe.multi()
            if gone := [name for name, presence in said.items() if presence is None]:
                pipe.hdel(key, *gone)
            pipe.hset(key, replica, presence_entry(presence, now + duration))
            pipe.pexpire(key, max(left, duration))
            there = {name.decode(): each for name, each in said.items() if each is not None}
            return there | {replica: presence}

        return await self._change(decide, key)

    async def _change(self, decide: Callable[[Any], Awaitable[T]], *watched: str) -> T:
        """
        Do what *decide* queues if nobody has changed what is *watched* since; else ask it again.

        Args:
            decide: Reads by a pipeline, ends that with `multi`, and queues commands; returns the answer.
        """
        async with self._turn:
            client = await self._servers.of(watched[0])
            while True:
                async with client.pipeline(transaction=True) as pipe:
                    await pipe.watch(*watched)
                    answer = await decide(pipe)
                    try:
                        await pipe.execute()
                    except WatchError:
                        continue
                    return answer


def _replaced(parts: bytes | None, contribution: Contribution) -> list[Part]:
    """Return the parts of an incident with *contribution* in its own place, or at the end."""
    known = [] if parts is None else read_parts(parts)
    mine = (contribution.id, contribution.replica, contribution.ongoing)
    places = [part[0] for part in known]
    at = places.index(mine[0]) if mine[0] in places else len(known)
    return [*known[:at], mine, *known[at + 1 :]]


def _incident(name: bytes, parts_of: Mapping[bytes, bytes], data_of: Mapping[bytes, bytes]) -> SharedIncident:
    return read_incident(name.decode(), parts_of[name], data_of)
