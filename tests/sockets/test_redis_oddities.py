"""What another version, another program, or a server short of memory has left in Redis harms nobody."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from harness import eventually
from redis_backing import NO_SCRIPTS
from redis_support import HOST, RedisServer
from stores_support import listening, opened

from sentinel_proxy.model import Frame
from sentinel_proxy.stores.records import BreakerRecord, Contribution, Note
from sentinel_proxy.stores.redis import RedisStore

pytestmark = pytest.mark.anyio

OPEN: Final = BreakerRecord("openai", None, "open", 0, 1, 30.0, 0.0, 1, "3 failures in a row", "A")
ELSEWHERE: Final = BreakerRecord("ollama", None, "open", 0, 1, 30.0, 0.0, 1, "3 failures in a row", "B")
FOR_EVER: Final = b"1 -1 7 "
ODD_ENTRIES: Final = {
    "a state that we do not know": FOR_EVER
    + b'{"provider":"openai","model":null,"state":"throttled","orders":0,'
    b'"era":7,"rest":1,"since":1,"level":1,"reason":"","replica":"Z"}',
    "fields that are missing": FOR_EVER + b'{"provider":"openai"}',
    "numbers that are none": FOR_EVER + b'{"provider":"openai","model":null,"state":"open","orders":"many",'
    b'"era":7,"rest":1,"since":1,"level":1,"reason":"","replica":"Z"}',
    "no record": b"1",
    "no JSON": FOR_EVER + b"what is this",
}


@pytest.fixture(params=["scripts", "no scripts"])
async def user(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    """Return how the server is reached, with and without scripts."""
    if request.param == "scripts":
        return redis_server.url
    await redis_server.command("ACL", "SETUSER", "scriptless", *NO_SCRIPTS)
    return f"redis://scriptless:any@{HOST}:{redis_server.port}/0"


@asynccontextmanager
async def a_store(url: str) -> AsyncIterator[RedisStore]:
    async with opened(RedisStore(url, "sentinel", 500, 500)) as store:
        assert isinstance(store, RedisStore)
        yield store


@pytest.mark.parametrize("entry", ODD_ENTRIES.values(), ids=ODD_ENTRIES)
async def test_a_breaker_that_cannot_be_read_hides_no_other_and_gives_way(
    redis_server: RedisServer, user: str, entry: bytes
) -> None:
    await redis_server.command("HSET", "{sentinel}:breakers", "openai", entry)
    async with a_store(user) as store:
        await store.merge_breaker(ELSEWHERE)

        assert [record.provider for record in await store.breakers()] == ["ollama"]
        assert (await store.merge_breaker(OPEN)).replica == "A"
        assert {record.provider for record in await store.breakers()} == {"openai", "ollama"}


async def test_news_that_cannot_be_read_are_passed_over(redis_server: RedisServer) -> None:
    async with a_store(redis_server.url) as store, listening(store) as heard:
        await redis_server.command("XADD", "{sentinel}:told", "*", "kind", "unheard of")
        await redis_server.command("XADD", "{sentinel}:told", "*", "breaker", "1")
        await redis_server.command("XADD", "{sentinel}:events", "*", "kind", "unheard of")
        frame, note = Frame("1", "system", "{}"), Note("probe", "A", b"{}")
        await store.append([frame])
        await store.tell(note)
        await eventually(lambda: len(heard) == 2)

        assert frame in heard
        assert note in heard
        assert await store.frames() == [frame]


async def test_a_replica_that_says_what_cannot_be_read_is_not_there(
    redis_server: RedisServer, user: str
) -> None:
    await redis_server.command("HSET", "{sentinel}:replicas", "Z", b"here")
    async with a_store(user) as store:
        assert await store.beat("A", b"{}", 6.0) == {"A": b"{}"}


@pytest.mark.parametrize("lost", ["", ":parts", ":data", ":of", ":latest"])
async def test_incidents_go_on_where_a_server_short_of_memory_has_forgotten_a_part(
    redis_server: RedisServer, user: str, lost: str
) -> None:
    """J05, as with `maxmemory-policy allkeys-lru`: one key is gone, the others are there."""
    old = Contribution("outage openai", "A", "A1", True, b"{}")
    new = Contribution("outage ollama", "A", "A2", True, b"{}")
    async with a_store(user) as store:
        await store.contribute(old, frozenset("A"))
        await redis_server.command("DEL", f"{{sentinel}}:incidents{lost}")

        await store.incidents()
        await store.contribute(new, frozenset("A"))
        await store.contribute(old, frozenset("A"))

        assert [incident.contributions for incident in await store.incidents()] == [[old], [new]]


async def test_breakers_of_many_models_are_told_without_a_look_at_all_others(
    redis_server: RedisServer, user: str
) -> None:
    """And yet those that are of no use any more do not pile up."""
    async with a_store(user) as store:
        for number in range(99):
            old = b'1 2 1 {"provider":"openai"}'
            await redis_server.command("HSET", "{sentinel}:breakers", f"openai model-{number}", old)
        await store.merge_breaker(OPEN)

        assert await redis_server.command("HKEYS", "{sentinel}:breakers") == [b"openai"]
