"""One live feed, one list of incidents and one prober: proxies that share a real Redis, or a file."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from admin_support import Listener, listening
from harness import Harness, Start, chain, eventually, started
from redis_support import RedisServer

from sentinel_proxy.config import Config, HealthConfig, StateConfig
from sentinel_proxy.events import Noticed, ProbeFinished
from sentinel_proxy.incidents.merging import GONE
from sentinel_proxy.testing import FaultyUpstream, Reset, ollama_completion, openai_models

pytestmark = pytest.mark.anyio

RETURN_SECONDS = 35.0
"""As long as a store that came back may stay unheard."""


def settings(primary: FaultyUpstream, backup: FaultyUpstream, url: str, **sections: Any) -> Config:
    return chain(primary, backup, state=StateConfig(url=url), **sections)


@pytest.fixture
async def pair(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, redis_server: RedisServer
) -> Sequence[Harness]:
    """Two proxies that share one Redis."""
    return await sharing(start, settings(primary, backup, redis_server.url))


async def sharing(start: Start, config: Config) -> Sequence[Harness]:
    """Start two proxies and wait until both are in touch with their store: a busy one starts without."""
    pair = [await start(config), await start(config)]
    await eventually(lambda: all(map(is_up, pair)), RETURN_SECONDS)
    return pair


def notice(proxy: Harness, *numbers: int) -> None:
    for number in numbers:
        proxy.proxy.bus.emit(Noticed("info", "a number", {"number": number}))


def numbers(listener: Listener) -> list[int]:
    """Return the numbers that a listener was told of."""
    details = (frame["payload"]["details"] for frame in listener.of("system"))
    return [each["number"] for each in details if "number" in each]


def heard_all(listener: Listener) -> bool:
    return {1, 2, 3, 4} <= set(numbers(listener))


def is_up(proxy: Harness) -> bool:
    return proxy.proxy.state.up


async def incidents(proxy: Harness) -> list[dict[str, Any]]:
    answer = await proxy.client.get("/api/incidents")
    listed = answer.json()["incidents"]
    assert isinstance(listed, list)
    return listed


async def lists_agree(pair: Sequence[Harness]) -> list[dict[str, Any]]:
    """Wait until both list the same incidents, and return them."""
    async with asyncio.timeout(10):
        while True:
            listed, others = [await incidents(proxy) for proxy in pair]
            if listed == others:
                return listed


async def feed(proxy: Harness, since: str = "") -> dict[str, Any]:
    answer = await proxy.client.get("/api/events", params={"since": since})
    told = answer.json()
    assert isinstance(told, dict)
    return told


async def test_whoever_tells_and_whoever_listens_all_hear_all_in_one_order(pair: Sequence[Harness]) -> None:
    one, other = pair
    async with listening(one.url) as here, listening(other.url) as there:
        for number in range(0, 200, 2):
            notice(one, number)
            notice(other, number + 1)
        for listener in (here, there):
            await listener.until(lambda listener: len(numbers(listener)) == 200)

    assert numbers(here) == numbers(there)
    assert sorted(numbers(here)) == list(range(200))
    assert {frame["payload"]["replica"] for frame in here.of("system")} == {
        proxy.proxy.name for proxy in pair
    }


async def test_a_client_that_comes_back_to_another_replica_misses_nothing(pair: Sequence[Harness]) -> None:
    one, other = pair
    async with listening(one.url) as before:
        notice(one, 1, 2, 3)
        notice(other, 4)
        await before.until(lambda listener: len(numbers(listener)) == 4)
    notice(one, 5)
    notice(other, 6)
    last = before.frames[1]["id"]

    async with listening(other.url, f"?since={last}") as after:
        await after.until(lambda listener: {5, 6} <= set(numbers(listener)))

    assert not any(frame["payload"].get("missed") for frame in after.frames)
    place = before.frames.index(next(frame for frame in before.frames if frame["id"] == last))
    assert after.frames[: len(before.frames) - place - 1] == before.frames[place + 1 :]


async def test_j06_a_redis_that_is_killed_and_comes_back_costs_no_event_and_repeats_none(
    pair: Sequence[Harness], redis_server: RedisServer
) -> None:
    one, other = pair
    async with listening(one.url) as here, listening(other.url) as there:
        notice(one, 1)
        for listener in (here, there):
            await listener.until(lambda listener: numbers(listener) == [1])
        await redis_server.kill()
        notice(one, 2)
        notice(other, 3)
        await here.until(lambda listener: 2 in numbers(listener))
        await there.until(lambda listener: 3 in numbers(listener))
        await redis_server.restart()
        await eventually(lambda: is_up(one) and is_up(other), RETURN_SECONDS)
        notice(one, 4)
        for listener in (here, there):
            await eventually(partial(heard_all, listener), RETURN_SECONDS)

    assert sorted(numbers(here)) == sorted(numbers(there)) == [1, 2, 3, 4]
    after = [event["id"] for event in (await feed(one))["events"]]
    assert after == [event["id"] for event in (await feed(other))["events"]]
    assert len(after) == len(set(after))


async def test_j07_of_600_events_all_remember_exactly_the_last_500(pair: Sequence[Harness]) -> None:
    one, other = pair
    async with listening(other.url) as listener:
        notice(one, *range(600))
        await eventually(lambda: numbers(listener)[-1:] == [599], 10.0)

    told = [(await feed(proxy))["events"] for proxy in pair]
    assert told[0] == told[1]
    assert [frame["payload"]["details"].get("number") for frame in told[0]] == list(range(100, 600))


async def test_going_down_is_told_before_the_feed_ends(
    primary: FaultyUpstream, backup: FaultyUpstream, redis_server: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        async with started(settings(primary, backup, redis_server.url)) as proxy:
            listener = await stack.enter_async_context(listening(proxy.url))
            proxy.proxy.bus.emit(Noticed("info", "draining", {}))
        await eventually(lambda: listener.close)

    assert listener.close == (1012, "the proxy is going down; come back with since")
    assert "draining" in [frame["payload"]["message"] for frame in listener.of("system")]


class TestIncidents:
    async def test_an_outage_that_both_see_is_one_in_both_lists(
        self, pair: Sequence[Harness], primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always((Reset(),))
        backup.always(ollama_completion("Hi"))
        async with listening(pair[0].url) as listener:
            for proxy in (*pair, *pair):
                for _ in range(3):
                    await proxy.chat()
            await listener.until(
                lambda listener: any(
                    each["payload"]["type"] == "outage_detected" for each in listener.of("incident")
                )
            )

        listed = await lists_agree(pair)
        outages = [each for each in listed if each["type"] == "outage_detected"]
        assert len(outages) == 1
        opened = [
            frame["payload"]["id"]
            for frame in listener.of("incident")
            if (frame["payload"]["change"], frame["payload"]["type"]) == ("opened", "outage_detected")
        ]
        assert opened == [outages[0]["id"]]

    async def test_the_list_is_there_though_the_store_is_not(
        self, pair: Sequence[Harness], redis_server: RedisServer
    ) -> None:
        one, other = pair
        body = {"action": "isolate", "reason": "maintenance"}
        await one.client.post("/api/providers/openai/breaker", json=body)
        await eventually(lambda: other.proxy.upstreams[0].breakers.own.state == "isolated")
        known = await incidents(other)
        assert [each["type"] for each in known] == ["breaker_isolated"]
        redis_server.pause()
        try:
            asked = asyncio.get_running_loop().time()
            assert await incidents(other) == known
            assert asyncio.get_running_loop().time() - asked < 1.0
        finally:
            redis_server.resume()


class TestAFile:
    @pytest.fixture
    def config(self, primary: FaultyUpstream, backup: FaultyUpstream, tmp_path: Path) -> Config:
        return settings(primary, backup, f"sqlite:///{tmp_path / 'state.db'}")

    async def test_events_go_on_over_a_restart(self, config: Config) -> None:
        async with started(config) as proxy, listening(proxy.url) as before:
            notice(proxy, 1, 2)
            await before.until(lambda listener: numbers(listener) == [1, 2])
        first = next(
            frame["id"] for frame in before.of("system") if frame["payload"]["details"] == {"number": 1}
        )

        async with started(config) as proxy:
            told = await feed(proxy, since=first)

        assert not told["missed"]
        assert told["events"][0]["payload"]["details"] == {"number": 2}

    async def test_what_went_on_at_a_restart_is_listed_as_over(self, config: Config) -> None:
        async with started(config) as proxy:
            body = {"action": "isolate", "reason": "maintenance", "seconds": 1000}
            await proxy.client.post("/api/providers/openai/breaker", json=body)
            (before,) = await incidents(proxy)
            assert before["resolved_at"] is None

        async with started(config) as proxy:
            assert proxy.proxy.upstreams[0].breakers.own.state == "isolated"
            async with asyncio.timeout(10):
                found = await incidents(proxy)
                while [each["resolved_at"] is None for each in found] != [True, False]:
                    await asyncio.sleep(0.05)
                    found = await incidents(proxy)

        assert found[1]["id"] == before["id"]
        assert found[1]["details"]["ended_by"] == GONE


class TestProbes:
    async def test_one_asks_and_both_know(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream, redis_server: RedisServer
    ) -> None:
        primary.always(openai_models("gpt-4o-mini"))
        config = settings(primary, backup, redis_server.url, health=HealthConfig(interval=3600))
        one, other = await sharing(start, config)

        def last_probe(proxy: Harness) -> object:
            return proxy.proxy.health.view()["openai"]["last_probe"]

        async with asyncio.timeout(RETURN_SECONDS):
            while not last_probe(other):  # who is slow to listen is told of the next one
                await one.client.post("/api/providers/openai/probe")
                await asyncio.sleep(0.02)

        await eventually(lambda: last_probe(one) == last_probe(other))
        heard = [event for event in other.events if isinstance(event, ProbeFinished)]
        assert {event.told_by for event in heard} == {one.proxy.name}

    async def test_one_of_them_leads(self, pair: Sequence[Harness]) -> None:
        assert sorted(proxy.proxy._leads() for proxy in pair) == [False, True]
