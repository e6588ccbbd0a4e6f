"""A Redis for real: how it is reached, what happens while it is away, and what is left in it."""

import asyncio
import math
import random
import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trustme
from harness import eventually
from redis_backing import NO_SCRIPTS
from redis_support import HOST, RedisCluster, RedisSentinel, RedisServer, Wire
from stores_support import listening, opened

from sentinel_proxy.model import Frame
from sentinel_proxy.stores.base import News, Store, StoreAway
from sentinel_proxy.stores.records import BreakerRecord, Contribution, Note, Resumed
from sentinel_proxy.stores.redis import RedisStore
from sentinel_proxy.stores.redis import news as news_module
from sentinel_proxy.stores.redis import store as store_module

pytestmark = pytest.mark.anyio

OPEN: Final = BreakerRecord("openai", None, "open", 0, 1, 30.0, 0.0, 1, "3 failures in a row", "A")
CONTRIBUTION: Final = Contribution("outage openai", "A", "A1", True, b"{}")
SECRET: Final = "correct-horse"
PATIENT: Final = "socket_timeout=10&socket_connect_timeout=10"
"""Part of a URL: handshakes take a busy machine longer than a command may."""


def redis_store(url: str, *, incidents: int = 500, events: int = 500) -> RedisStore:
    return RedisStore(url, "sentinel", incidents, events)


def frame(name: str) -> Frame:
    return Frame(name, "system", f'{{"id": "{name}"}}')


def frames(heard: Sequence[News]) -> list[str]:
    return [each.id for each in heard if isinstance(each, Frame)]


async def works(store: Store) -> None:
    """Ask for one thing of every kind and hold the answers to what they must be."""
    await store.ping()
    assert (await store.merge_breaker(OPEN)).reason == OPEN.reason
    assert [record.key for record in await store.breakers()] == ["openai"]
    assert await store.take_lease("trial openai", "A", 6.0) == 0.0
    assert await store.take_lease("trial openai", "B", 6.0) == pytest.approx(6.0, abs=1.0)
    await store.release_lease("trial openai", "A")
    decisions = await store.admit("a client", 2, 60.0, 3)
    assert [decision.allowed for decision in decisions] == [True, True, False]
    async with listening(store) as heard:
        await store.append([frame("1"), frame("2")])
        await store.tell(Note("probe", "A", b"\x00"))
        await eventually(lambda: len(heard) == 3)
        assert frames(heard) == ["1", "2"]
    assert [each.id for each in await store.frames()] == ["1", "2"]
    assert (await store.contribute(CONTRIBUTION, frozenset("A"))).contributions == [CONTRIBUTION]
    assert [incident.id for incident in await store.incidents()] == ["A1"]
    assert await store.beat("A", b"there", 6.0) == {"A": b"there"}
    await store.leave("A")
    assert await store.beat("B", b"", 6.0) == {"B": b""}


async def why(question: Coroutine[Any, Any, object]) -> str:
    """Return why the store is away."""
    with pytest.raises(StoreAway) as told:
        await question
    return str(told.value)


async def why_not_open(url: str) -> str:
    """Return why a store cannot be opened."""
    store = redis_store(url)
    try:
        return await why(store.open())
    finally:
        await store.aclose()


async def connections(server: RedisServer) -> int:
    """Return how many clients the server has, but for the one who asks."""
    listed: bytes = await server.command("CLIENT", "LIST")
    return listed.count(b"\n") - 1


# How it is reached.


async def test_it_is_reached_by_tcp(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        await works(store)


async def test_it_is_reached_by_a_unix_socket(redis_server: RedisServer) -> None:
    async with opened(redis_store(f"unix://{redis_server.unix_socket}?db=1")) as store:
        await works(store)

    assert await redis_server.command("DBSIZE") == 0  # it is in the other database


async def test_it_is_reached_with_a_user_and_a_password(redis_server: RedisServer) -> None:
    await redis_server.command(
        "ACL", "SETUSER", "proxy", "on", f">{SECRET}", "~{sentinel}:*", "~sentinel:*", "+@all", "-@dangerous"
    )
    await redis_server.command("ACL", "SETUSER", "default", "resetkeys")

    async with opened(redis_store(f"redis://proxy:{SECRET}@{HOST}:{redis_server.port}/0")) as store:
        await works(store)


@pytest.fixture
def certificates(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS, and beside it the file `ca.pem` of who vouches for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    return context


async def test_it_is_reached_by_tls(
    redis_server: RedisServer, certificates: ssl.SSLContext, tmp_path: Path
) -> None:
    async with (
        Wire(redis_server.port, ssl=certificates) as wire,
        opened(redis_store(f"{wire.url}?ssl_ca_certs={tmp_path}/ca.pem&{PATIENT}")) as store,
    ):
        await works(store)


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(
    redis_server: RedisServer, certificates: ssl.SSLContext
) -> None:
    async with Wire(redis_server.port, ssl=certificates) as wire:
        assert "its certificate was not accepted" in await why_not_open(f"{wire.url}?{PATIENT}")

        unverified = "ssl_cert_reqs=none&ssl_check_hostname=no"
        async with opened(redis_store(f"{wire.url}?{unverified}&{PATIENT}")) as store:
            await works(store)


async def test_the_server_that_the_sentinels_name_is_reached(redis_server: RedisServer) -> None:
    async with RedisSentinel(redis_server) as sentinel, opened(redis_store(sentinel.url)) as store:
        await works(store)

    assert await redis_server.command("EXISTS", "{sentinel}:events") == 1


async def test_a_server_that_the_sentinels_put_in_place_of_the_first_is_found(
    redis_server: RedisServer,
) -> None:
    async with (
        RedisServer("--replicaof", HOST, str(redis_server.port)) as second,
        RedisSentinel(redis_server) as sentinel,
        opened(redis_store(sentinel.url)) as store,
    ):
        async with listening(store) as heard:
            await knows_of_a_replica(sentinel)
            await redis_server.kill()
            await succeeds(lambda: store.append([frame("after")]))
            await eventually(lambda: frames(heard), 10)

        assert heard[0] == Resumed()
        assert frames(heard) == ["after"]
        assert await second.command("XLEN", "{sentinel}:events") == 1


async def knows_of_a_replica(sentinel: RedisSentinel) -> None:
    """Wait until *sentinel* could put somebody in the master's place."""
    async with asyncio.timeout(30):
        while not any(
            replica.get(b"master-link-status") == b"ok"
            for replica in await sentinel.command("SENTINEL", "REPLICAS", sentinel.service)
        ):
            await sentinel.command("PING")


async def succeeds(change: Callable[[], Coroutine[Any, Any, object]], seconds: float = 20.0) -> None:
    """Try until the store is there."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await change()
                return
            except StoreAway:
                await asyncio.sleep(0.02)


async def test_a_cluster_is_reached_at_the_server_that_has_the_keys() -> None:
    async with RedisCluster() as cluster, opened(redis_store(cluster.url)) as store:
        await works(store)


async def test_a_cluster_is_reached_without_scripts() -> None:
    async with RedisCluster() as cluster:
        await cluster.command("ACL", "SETUSER", "default", *NO_SCRIPTS)
        async with opened(redis_store(cluster.url)) as store:
            await works(store)
            assert "plain" in repr(store)


async def test_in_a_cluster_all_is_kept_at_one_place_but_for_limits() -> None:
    async with RedisCluster() as cluster, opened(redis_store(cluster.url)) as store:
        await works(store)
        for number in range(5):
            await store.admit(f"client {number}", 1, 60.0, 1)

        limits, others = set[int](), set[int]()
        for key in await cluster.command("KEYS", "*"):
            slot = await cluster.command("CLUSTER", "KEYSLOT", key)
            (limits if b":limit:" in key else others).add(slot)

    assert len(others) == 1
    assert len(limits) > 1


# Without scripts.


async def test_a_server_that_does_not_know_scripts_is_spoken_to_without() -> None:
    async with (
        RedisServer("--rename-command", "EVAL", "", "--rename-command", "EVALSHA", "") as server,
        opened(redis_store(server.url)) as store,
    ):
        assert "plain" in repr(store)
        await works(store)


async def test_a_server_that_stops_allowing_scripts_is_spoken_to_without(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        assert "scripted" in repr(store)
        await redis_server.command("ACL", "SETUSER", "default", "-@scripting")

        await works(store)


async def test_with_and_without_scripts_the_same_is_meant(redis_server: RedisServer) -> None:
    await redis_server.command("ACL", "SETUSER", "scriptless", *NO_SCRIPTS)
    plain_url = f"redis://scriptless:any@{HOST}:{redis_server.port}/0"
    async with opened(redis_store(redis_server.url)) as one, opened(redis_store(plain_url)) as other:
        for first, second, provider in ((one, other, "a"), (other, one, "b")):
            await first.merge_breaker(replace(OPEN, provider=provider, orders=1, rest_seconds=math.inf))
            stands = await second.merge_breaker(replace(OPEN, provider=provider, state="closed", era=7))
            assert (stands.state, stands.era, stands.rest_seconds) == ("open", 8, math.inf)
            assert provider in {record.key for record in await first.breakers()}

            assert await first.take_lease(provider, "A", 6.0, places=2) == 0.0
            assert await second.take_lease(provider, "B", 6.0, places=2) == 0.0
            assert await first.take_lease(provider, "C", 6.0, places=2) > 0.0

            await first.admit(provider, 3, 60.0, 2)
            decisions = await second.admit(provider, 3, 60.0, 2)
            assert [decision.allowed for decision in decisions] == [True, False]

            began = await first.contribute(
                Contribution(provider, "A", f"{provider}A", True, b"1"), frozenset("AB")
            )
            joined = await second.contribute(
                Contribution(provider, "B", f"{provider}B", True, b"2"), frozenset("AB")
            )
            assert (joined.id, len(joined.contributions)) == (began.id, 2)

            await first.beat(f"{provider}A", b"1", 6.0)
            there = await second.beat(f"{provider}B", b"2", 6.0)
            assert there.items() >= {f"{provider}A": b"1", f"{provider}B": b"2"}.items()


@pytest.mark.parametrize("forget", ["SCRIPT FLUSH", "FLUSHALL"])
async def test_a_server_that_has_forgotten_goes_on(redis_server: RedisServer, forget: str) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        await store.admit("a client", 5, 60.0, 1)
        await redis_server.command(*forget.split())

        (decision,) = await store.admit("a client", 5, 60.0, 1)

        assert decision.allowed
        assert "scripted" in repr(store)


# While it is away.


async def test_a_server_that_is_not_there_is_said_to_be_away_at_once() -> None:
    async with RedisServer() as server:
        store = redis_store(server.url)
        await server.kill()

        assert await why(store.open()) == "redis cannot be reached: connection refused"

        await server.start()
        async with opened(store):
            await works(store)


async def test_a_store_goes_on_after_a_restart(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        await store.append([frame("before")])
        await redis_server.kill()
        assert "cannot be reached" in await why(store.ping())
        await redis_server.start()

        await succeeds(store.ping)

        await works(store)


async def test_a_server_that_says_nothing_keeps_nobody_waiting_for_long(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        redis_server.pause()
        begun = asyncio.get_running_loop().time()

        answers = await asyncio.gather(*(why(store.ping()) for _ in range(100)))

        redis_server.resume()
        seconds = asyncio.get_running_loop().time() - begun
        assert {*answers} == {"redis did not answer in time", "redis has too much to do"}
        assert answers.count("redis did not answer in time") <= store_module.PLACES
        assert seconds < 2.0
        await succeeds(store.ping)


async def test_who_gives_up_waiting_gives_his_place_back(redis_server: RedisServer) -> None:
    async with Wire(redis_server.port) as wire, opened(redis_store(wire.url)) as store:
        for _ in range(10):
            tasks = [asyncio.create_task(store.ping()) for _ in range(store_module.PLACES)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

        await works(store)


@pytest.mark.parametrize("user", ["default", "scriptless"])
@pytest.mark.parametrize("seed", range(2))
async def test_cancelled_commands_leave_no_wrong_answers(
    redis_server: RedisServer, user: str, seed: int
) -> None:
    """The network takes a while, so that commands are cancelled between question and answer."""
    chance = random.Random(seed)
    await redis_server.command("ACL", "SETUSER", "scriptless", *NO_SCRIPTS)
    async with (
        Wire(redis_server.port) as wire,
        opened(redis_store(f"redis://{user}:any@{HOST}:{wire.port}/0")) as store,
    ):
        wire.delay_seconds = 0.002

        async def ask(name: str) -> None:
            assert (await store.beat(name, name.encode(), 60.0))[name] == name.encode()
            stands = await store.merge_breaker(replace(OPEN, provider=name, reason=name))
            assert (stands.provider, stands.reason) == (name, name)
            assert await store.take_lease(name, name, 6.0) == 0.0

        for start in range(0, 80, 8):
            tasks = [asyncio.create_task(ask(f"{number}")) for number in range(start, start + 8)]
            for task in chance.sample(tasks, 5):
                await asyncio.sleep(chance.random() * 0.006)
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                # Without scripts changes take turns, and on this network some take too long.
                assert result is None or isinstance(result, asyncio.CancelledError | StoreAway)

        wire.delay_seconds = 0.0
        await redis_server.command("FLUSHALL")
        await works(store)
        assert await connections(redis_server) <= 2 * store_module.PLACES


async def test_a_closed_store_leaves_no_connection(redis_server: RedisServer) -> None:
    await redis_server.command("ACL", "SETUSER", "scriptless", *NO_SCRIPTS)
    for user in ("default", "scriptless"):
        async with opened(redis_store(f"redis://{user}:any@{HOST}:{redis_server.port}/0")) as store:
            await works(store)
            assert await connections(redis_server) > 0
        await redis_server.command("FLUSHALL")

        async with asyncio.timeout(5):
            while await connections(redis_server):
                pass  # the server has yet to notice


async def test_a_store_is_closed_while_its_server_says_nothing(redis_server: RedisServer) -> None:
    store = redis_store(redis_server.url)
    await store.open()
    news = store.news()
    assert await anext(news) == Resumed()
    redis_server.pause()
    waiting = [asyncio.create_task(why(store.ping())) for _ in range(3)]

    async with asyncio.timeout(2.0):
        await store.aclose()
        assert [each async for each in news] == []
        await asyncio.gather(*waiting)


# What people are told.


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (f"on >{SECRET} ~* +@all", "redis refuses the user or the password"),
        ("off >any ~* +@all", "redis refuses the user or the password"),
        ("on >any ~other:* +@all", "redis does not permit its user a command or a key that is needed"),
        ("on >any ~* +@all -xadd", "redis does not permit its user a command or a key that is needed"),
        ("on >any ~* +@all -set", "redis does not permit its user a command or a key that is needed"),
    ],
    ids=["wrong password", "not active", "no key", "no command", "no word to begin with"],
)
async def test_people_are_told_what_the_server_refuses(
    redis_server: RedisServer, setting: str, said: str
) -> None:
    await redis_server.command("ACL", "SETUSER", "proxy", *setting.split())
    store = redis_store(f"redis://proxy:any@{HOST}:{redis_server.port}/0")

    async def use() -> None:
        await store.open()
        await store.merge_breaker(OPEN)

    assert await why(use()) == said
    await store.aclose()


async def test_people_are_told_that_a_server_only_reads(redis_server: RedisServer) -> None:
    async with RedisServer("--replicaof", HOST, str(redis_server.port)) as replica:
        assert await why_not_open(replica.url) == "redis is a replica that only reads"

    async with opened(redis_store(redis_server.url)) as store:
        await redis_server.command("REPLICAOF", HOST, "1")

        assert await why(store.append([frame("1")])) == "redis is a replica that only reads"
        assert await why(store.merge_breaker(OPEN)) == "redis is a replica that only reads"


async def test_people_are_told_that_memory_is_full(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        await redis_server.command("CONFIG", "SET", "maxmemory", "1")

        assert await why(store.append([frame("1")])) == "redis has no memory left"
        assert await why(store.admit("a client", 5, 60.0, 1)) == "redis has no memory left"


@pytest.mark.parametrize(
    ("ails", "heals"),
    [
        (("REPLICAOF", HOST, "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    ],
    ids=["it only reads", "its memory is full"],
)
async def test_a_server_that_answers_but_keeps_nothing_is_away(
    redis_server: RedisServer, ails: tuple[str, ...], heals: tuple[str, ...]
) -> None:
    """Or it would come back every five seconds, to refuse whatever it is told."""
    async with opened(redis_store(redis_server.url)) as store:
        await redis_server.command(*ails)
        with pytest.raises(StoreAway):
            await store.ping()

        await redis_server.command(*heals)
        await store.ping()


async def test_people_are_told_that_a_key_is_something_else(redis_server: RedisServer) -> None:
    await redis_server.command("SET", "{sentinel}:breakers", SECRET)
    async with opened(redis_store(redis_server.url)) as store:
        assert await why(store.breakers()) == "redis refuses (WRONGTYPE)"


async def test_people_are_told_that_sentinels_know_no_such_server(redis_server: RedisServer) -> None:
    async with RedisSentinel(redis_server) as sentinel:
        url = sentinel.url.replace("mymaster", "other")

        assert await why_not_open(url) == "redis has no master that the sentinels know of"


async def test_nobody_is_told_a_secret(redis_server: RedisServer) -> None:
    url = f"redis://{SECRET}:{SECRET}@{HOST}:{redis_server.port}/0?password={SECRET}"

    assert SECRET not in await why_not_open(url)
    assert SECRET not in repr(redis_store(url))


# News.


async def test_news_go_on_after_a_cut_without_gap_or_repetition(redis_server: RedisServer) -> None:
    async with (
        Wire(redis_server.port) as wire,
        opened(redis_store(redis_server.url)) as teller,
        opened(redis_store(wire.url)) as store,
        listening(store) as heard,
    ):
        await teller.append([frame("1"), frame("2")])
        await eventually(lambda: len(heard) == 2)
        wire.swallow()
        wire.cut()
        await teller.append([frame("3")])
        await teller.tell(Note("probe", "A", b""))
        wire.carry_on()

        await eventually(lambda: len(heard) == 5, 5)

        assert heard[2] == Resumed()
        assert frames(heard) == ["1", "2", "3"]
        assert Note("probe", "A", b"") in heard


async def test_news_go_on_after_a_network_was_silent(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(news_module, "BLOCK_SECONDS", 0.1)
    async with (
        Wire(redis_server.port) as wire,
        opened(redis_store(redis_server.url)) as teller,
        opened(redis_store(wire.url)) as store,
        listening(store) as heard,
    ):
        wire.swallow()
        made = wire.connections
        await teller.append([frame("1")])
        await eventually(lambda: wire.connections > made, 5)  # it has given the old one up
        wire.carry_on()

        await eventually(lambda: frames(heard), 10)

        assert heard[0] == Resumed()
        assert frames(heard) == ["1"]


async def test_news_are_back_within_seconds_after_a_restart(redis_server: RedisServer) -> None:
    """However long it was away: whoever pings tells the listener."""
    async with opened(redis_store(redis_server.url)) as store, listening(store) as heard:
        await store.append([frame("before")])
        await eventually(lambda: frames(heard))
        await redis_server.restart()
        await succeeds(lambda: store.append([frame("after")]))

        await eventually(lambda: "after" in frames(heard), 5)

        assert frames(heard) == ["before", "after"]
        assert heard[1] == Resumed()


async def test_a_listener_that_waits_long_is_woken_by_an_answer(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FIRST_PAUSE_SECONDS", 600.0)
    monkeypatch.setattr(store_module, "LONGEST_PAUSE_SECONDS", 600.0)
    monkeypatch.setattr(store_module, "STEADY_PAUSE_SECONDS", 0.1)
    async with opened(redis_store(redis_server.url)) as store, listening(store) as heard:
        await redis_server.kill()
        assert "cannot be reached" in await why(store.ping())
        await redis_server.start()

        async def ping_until_heard() -> None:
            while not heard:
                await succeeds(store.ping)
                await asyncio.sleep(0.02)

        await asyncio.wait_for(ping_until_heard(), 10)

        assert heard == [Resumed()]


async def test_a_memory_that_was_lost_is_noticed_without_any_news(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news_module, "BLOCK_SECONDS", 0.05)
    async with opened(redis_store(redis_server.url)) as store, listening(store) as heard:
        await redis_server.command("FLUSHALL")

        await eventually(lambda: heard)

        assert heard == [Resumed()]


async def test_what_is_told_after_a_loss_comes_after_the_word_of_it(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store, listening(store) as heard:
        await store.append([frame("before")])
        await eventually(lambda: heard)
        await redis_server.command("FLUSHALL")
        await store.append([frame("after")])
        await store.merge_breaker(OPEN)

        await eventually(lambda: len(heard) >= 4)

        assert heard[:2] == [frame("before"), Resumed()]
        assert frames(heard) == ["before", "after"]


async def test_who_missed_more_than_the_ring_holds_hears_what_it_holds(redis_server: RedisServer) -> None:
    async with (
        Wire(redis_server.port) as wire,
        opened(redis_store(redis_server.url, events=3)) as teller,
        opened(redis_store(wire.url, events=3)) as store,
        listening(store) as heard,
    ):
        wire.swallow()
        wire.cut()
        await teller.append([frame(f"{number}") for number in range(10)])
        wire.carry_on()

        await eventually(lambda: len(frames(heard)) == 3, 5)

        assert heard == [Resumed(), frame("7"), frame("8"), frame("9")]


# What is left.


async def test_what_is_of_no_use_any_more_vanishes(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        await works(store)
        await store.take_lease("trial openai", "A", 6.0)
        seconds = {
            key.decode(): await redis_server.command("TTL", key)
            for key in await redis_server.command("KEYS", "*")
        }

    ends = {key: seconds for key, seconds in seconds.items() if seconds >= 0}
    assert ends == {
        "{sentinel}:breakers": pytest.approx(3600, abs=5),
        "{sentinel}:told": pytest.approx(3600, abs=5),
        "{sentinel}:lease:trial openai": pytest.approx(6, abs=5),
        "{sentinel}:replicas": pytest.approx(6, abs=5),
        "sentinel:limit:a client": pytest.approx(61, abs=5),
    }
    rings = ("events", "birth", "incidents", "incidents:parts", "incidents:data", "incidents:of")
    assert {*seconds} - {*ends} == {f"{{sentinel}}:{name}" for name in (*rings, "incidents:latest")}


@pytest.mark.parametrize("user", ["default", "scriptless"])
async def test_a_breaker_is_kept_for_twice_its_rest_and_an_order_for_ever(
    redis_server: RedisServer, user: str
) -> None:
    await redis_server.command("ACL", "SETUSER", "scriptless", *NO_SCRIPTS)
    async with opened(redis_store(f"redis://{user}:any@{HOST}:{redis_server.port}/0")) as store:
        await store.merge_breaker(replace(OPEN, provider="a", rest_seconds=7200.0))
        await store.merge_breaker(replace(OPEN, provider="b"))
        assert await redis_server.command("TTL", "{sentinel}:breakers") == pytest.approx(14400, abs=5)

        await store.merge_breaker(replace(OPEN, provider="c", state="isolated", rest_seconds=math.inf))
        await store.merge_breaker(replace(OPEN, provider="d"))
        assert await redis_server.command("TTL", "{sentinel}:breakers") == -1


async def test_of_600_events_exactly_500_are_left(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        for start in range(0, 600, 100):
            await store.append([frame(f"{number}") for number in range(start, start + 100)])

        assert [each.id for each in await store.frames()] == [f"{number}" for number in range(100, 600)]
        assert await redis_server.command("XLEN", "{sentinel}:events") == 500


async def test_what_is_told_is_not_kept_for_ever(redis_server: RedisServer) -> None:
    async with opened(redis_store(redis_server.url)) as store:
        for _ in range(30):
            await asyncio.gather(*(store.tell(Note("probe", "A", b"")) for _ in range(8)))
        for number in range(1, 1000):
            await store.merge_breaker(replace(OPEN, era=number))

        assert await redis_server.command("XLEN", "{sentinel}:told") <= 1100


@pytest.mark.parametrize("user", ["default", "scriptless"])
async def test_incidents_leave_nothing_behind(redis_server: RedisServer, user: str) -> None:
    await redis_server.command("ACL", "SETUSER", "scriptless", *NO_SCRIPTS)
    url = f"redis://{user}:any@{HOST}:{redis_server.port}/0"
    async with opened(redis_store(url, incidents=3)) as store:
        for number in range(12):
            for replica in "AB":
                contribution = Contribution(
                    f"{number}", replica, f"{number}{replica}", number % 2 == 0, b"{}"
                )
                await store.contribute(contribution, frozenset("AB"))

        assert len(await store.incidents()) == 3
        assert await redis_server.command("HLEN", "{sentinel}:incidents:parts") == 3
        assert await redis_server.command("HLEN", "{sentinel}:incidents:data") <= 6
        assert await redis_server.command("HLEN", "{sentinel}:incidents:of") <= 6
        assert await redis_server.command("HLEN", "{sentinel}:incidents:latest") <= 3
