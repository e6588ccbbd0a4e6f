"""Several real proxies on one real Redis: what one learns all know, and together they act as one."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import httpx
import pytest
from harness import eventually
from redis_support import RedisServer, Wire
from replicas_support import Replica, RunReplicas, run_replicas, two_providers, until

from sentinel_proxy.testing import (
    FaultyUpstream,
    Hang,
    Received,
    Script,
    ollama_completion,
    openai_completion,
    openai_error,
    openai_models,
)

__all__ = ["run_replicas"]

pytestmark = pytest.mark.anyio

SICK = openai_error(503)
ONE_ROUND_SECONDS = 3.0
"""A comparison of everything every other second, and room for a slow machine."""


def calls_of(upstream: FaultyUpstream) -> int:
    """Return how many calls an upstream has seen; probes do not count."""
    return sum(request.method == "POST" for request in upstream.requests)


def only_calls(script: Script) -> Callable[[Received], Script]:
    """Return what plays *script* to calls, and passes every probe."""
    return lambda request: openai_models("gpt-4o-mini") if request.method == "GET" else script


async def open_at(replica: Replica, primary: FaultyUpstream) -> None:
    """Have the breaker of the primary open at one replica."""
    primary.always(only_calls(SICK))
    for _ in range(3):
        assert (await replica.chat()).status_code == 200
    assert await replica.state() == "open"


async def all_are(replicas: Sequence[Replica], state: str) -> bool:
    """Whether the primary's breaker is in *state* everywhere."""
    return {await each.state() for each in replicas} == {state}


async def test_a_breaker_that_opens_in_one_is_open_in_all_within_a_second(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """J08, and back again: once a trial has succeeded anywhere, all call the provider again."""
    backup.always(ollama_completion("from the backup"))
    first, second, third = await run_replicas(
        two_providers(primary, backup, state=redis_server.url, recovery_timeout=2), 3
    )

    await open_at(first, primary)
    opened_within = await until(lambda: all_are((second, third), "open"), 1.0)
    seen = calls_of(primary)
    answers = await asyncio.gather(*(each.chat() for each in (second, third) for _ in range(5)))

    assert opened_within < 1.0
    assert {answer.headers["x-sentinel-trail"] for answer in answers} == {"openai:open,ollama:200"}
    assert calls_of(primary) == seen

    primary.always(openai_completion("well again"))
    await until(lambda: _served_by(second, "openai"), 12.0)  # the first one may hold the lease for a while
    await until(lambda: all_are((first, second, third), "closed"), 1.0)
    assert await _served_by(third, "openai")


async def _served_by(replica: Replica, provider: str) -> bool:
    return (await replica.chat()).headers["x-sentinel-provider"] == provider


async def test_two_hundred_calls_at_three_replicas_after_a_rest_send_exactly_one_trial(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """F06, for all replicas together."""
    backup.always(ollama_completion("from the backup"))
    replicas = await run_replicas(
        two_providers(primary, backup, state=redis_server.url, recovery_timeout=2, first_token=30), 3
    )
    await open_at(replicas[0], primary)
    await until(lambda: all_are(replicas, "open"), 1.0)
    opened = time.monotonic()
    before = calls_of(primary)
    primary.always([Hang()])
    await asyncio.sleep(max(0.0, opened + 2.3 - time.monotonic()))  # the rest is over by then

    calls = [asyncio.create_task(replicas[number % 3].chat()) for number in range(200)]
    await eventually(lambda: sum(call.done() for call in calls) >= 199, 15)
    answers = [call.result() for call in calls if call.done()]
    seen = calls_of(primary)
    (trial,) = [call for call in calls if not call.done()]
    trial.cancel()
    await asyncio.wait([trial])

    assert seen == before + 1
    assert {(each.status_code, each.headers["x-sentinel-provider"]) for each in answers} == {(200, "ollama")}


async def test_the_trial_of_a_killed_replica_is_free_again_after_its_lease(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """F10."""
    backup.always(ollama_completion("from the backup"))
    first, second = await run_replicas(
        two_providers(primary, backup, state=redis_server.url, recovery_timeout=1, first_token=30), 2
    )
    await open_at(first, primary)
    await until(lambda: all_are((first, second), "open"), 1.0)
    before = calls_of(primary)
    primary.always([Hang()])

    trial: asyncio.Task[httpx.Response] | None = None
    while calls_of(primary) == before:  # until a call has become the trial
        if trial is not None and trial.done():
            assert trial.result().status_code == 200
            trial = None
        trial = trial or asyncio.create_task(first.chat())
        await asyncio.sleep(0.01)
    assert trial is not None
    await first.kill()
    with suppress(httpx.HTTPError):
        await trial
    assert calls_of(primary) == before + 1
    assert not await _served_by(second, "openai")

    primary.always(openai_completion("well again"))
    took = await until(lambda: _served_by(second, "openai"), 15.0)

    assert took < 12.0  # a lease of 6 s and a round of 2
    assert calls_of(primary) == before + 2
    assert await second.state() == "closed"


async def test_a_hundred_of_two_hundred_calls_pass_whoever_is_called(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """I05: the 101st of any window is refused, the 100th is not."""
    primary.always(openai_completion("Hi"))
    replicas = await run_replicas(two_providers(primary, backup, state=redis_server.url, requests=100), 2)

    answers = await asyncio.gather(*(replicas[number % 2].chat() for number in range(200)))
    late = await asyncio.gather(*(each.chat() for each in replicas))

    assert Counter(answer.status_code for answer in answers) == {200: 100, 429: 100}
    assert [answer.status_code for answer in late] == [429, 429]
    remaining = [int(a.headers["x-sentinel-ratelimit-remaining"]) for a in answers if a.status_code == 200]
    assert sorted(remaining) == list(range(100))


async def test_replicas_that_were_parted_agree_soon_after_they_meet_again(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """J09: the older news of who was away undo nothing; what an operator has ordered stands."""
    backup.always(ollama_completion("from the backup"))
    async with Wire(redis_server.port) as wire:
        settings = two_providers(primary, backup, recovery_timeout=60)
        settings.state = redis_server.url
        (near,) = await run_replicas(settings)
        settings.state = wire.url
        (far,) = await run_replicas(settings)
        await until(lambda: _replicas_seen(near, 2), 5.0)

        wire.swallow()
        await until(lambda: _store_is(far, "away"), 10.0)
        await open_at(far, primary)  # a failure that only the far one has met
        await near.order("openai", "isolate")
        assert await far.state() == "open"
        wire.carry_on()
        wire.cut()
        await until(lambda: _store_is(far, "up"), 15.0)
        took = await until(lambda: all_are((near, far), "isolated"), ONE_ROUND_SECONDS)

        await far.order("openai", "reset")
        await until(lambda: all_are((near, far), "closed"), 1.0)
    assert took <= ONE_ROUND_SECONDS


async def _store_is(replica: Replica, status: str) -> bool:
    health = (await replica.client.get("/health")).json()
    state: str = health["state"]["status"]
    return state == status


async def _replicas_seen(replica: Replica, count: int) -> bool:
    return len((await replica.get("/api/metrics"))["replicas"]) == count


async def test_what_an_operator_ordered_outlives_every_replica(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """J10."""
    backup.always(ollama_completion("from the backup"))
    settings = two_providers(primary, backup, state=redis_server.url)
    before = await run_replicas(settings, 2)
    await before[0].order("openai", "isolate", seconds=600)
    await until(lambda: all_are(before, "isolated"), 1.0)
    for each in before:
        assert await each.end() == 0

    (after,) = await run_replicas(settings)

    answer = await after.chat()
    assert answer.headers["x-sentinel-trail"] == "openai:open,ollama:200"
    assert await after.state() == "isolated"
    assert calls_of(primary) == 0


async def test_a_redis_that_forgets_everything_is_told_again(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """FLUSHALL loses nothing that a replica still knows: whoever starts later learns it."""
    backup.always(ollama_completion("from the backup"))
    settings = two_providers(primary, backup, state=redis_server.url, recovery_timeout=60)
    (old,) = await run_replicas(settings)
    await open_at(old, primary)

    await redis_server.command("FLUSHALL")
    (new,) = await run_replicas(settings)
    await until(lambda: all_are((old, new), "open"), ONE_ROUND_SECONDS)

    (outage,) = (await new.get("/api/incidents", type="outage_detected"))["incidents"]
    assert outage["resolved_at"] is None


async def test_an_outage_that_all_see_is_one_incident_and_all_list_it(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    backup.always(ollama_completion("from the backup"))
    replicas = await run_replicas(
        two_providers(primary, backup, state=redis_server.url, recovery_timeout=2, probe_interval=1), 3
    )
    await open_at(replicas[0], primary)
    await until(lambda: all_are(replicas, "open"), 1.0)
    for each in replicas:
        for _ in range(4):
            assert (await each.chat()).status_code == 200
    primary.always(only_calls(openai_completion("well again")))
    await until(lambda: _served_by(replicas[1], "openai"), 15.0)

    async def all_list_it() -> bool:
        lists = [(await each.get("/api/incidents"))["incidents"] for each in replicas]
        over = all(incident["resolved_at"] for incident in lists[0])
        return over and len(lists[0]) == 3 and lists.count(lists[0]) == 3

    await until(all_list_it, 10.0)
    listed = await replicas[2].get("/api/incidents")
    types = {incident["type"] for incident in listed["incidents"]}
    assert types == {"outage_detected", "failover_triggered", "provider_recovered"}
    (outage,) = [each for each in listed["incidents"] if each["type"] == "outage_detected"]
    assert outage["details"]["affected_calls"] >= 3 + 3 * 4
    assert outage["details"]["lost_calls"] == 0


async def test_the_feed_of_any_replica_goes_on_where_that_of_another_stopped(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    backup.always(ollama_completion("from the backup"))
    first, second = await run_replicas(
        two_providers(primary, backup, state=redis_server.url, recovery_timeout=60), 2
    )
    await first.order("ollama", "isolate")
    half = await first.get("/api/events")
    await second.order("ollama", "reset")

    async def told_alike() -> bool:
        one, other = [(await each.get("/api/events"))["events"] for each in (first, second)]
        return [frame["id"] for frame in one] == [frame["id"] for frame in other] and len(one) > 4

    await until(told_alike, ONE_ROUND_SECONDS)
    rest = await second.get("/api/events", since=half["last_id"])
    whole = await first.get("/api/events")

    ids = [frame["id"] for frame in (*half["events"], *rest["events"])]
    assert ids == [frame["id"] for frame in whole["events"]][: len(ids)]  # more may have come since
    assert len(set(ids)) == len(ids)


async def test_totals_are_those_of_all_replicas_whoever_is_asked(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    primary.always(openai_completion("Hi"))
    replicas = await run_replicas(two_providers(primary, backup, state=redis_server.url), 3)
    for number, each in enumerate(replicas, start=1):
        for _ in range(number):
            await each.chat()

    async def all_count(calls: int) -> bool:
        totals = [await each.get("/api/metrics") for each in replicas]
        return {each["total_requests"] for each in totals} == {calls} and {
            len(each["replicas"]) for each in totals
        } == {len(replicas)}

    await until(lambda: all_count(6), 2 * ONE_ROUND_SECONDS)


async def test_a_proxy_starts_and_serves_without_its_redis(
    redis_server: RedisServer, primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas
) -> None:
    """J01, J06: it says so, and is one of several as soon as Redis is there."""
    primary.always(openai_completion("Hi"))
    await redis_server.kill()
    first, second = await run_replicas(two_providers(primary, backup, state=redis_server.url), 2)

    assert (await first.chat()).status_code == 200
    assert await _store_is(first, "away")
    assert "the state store is away; this replica goes on alone" in first.told()
    assert (await first.client.get("/readyz")).status_code == 200
    await redis_server.start()
    await until(lambda: _store_is(first, "up"), 15.0)
    await until(lambda: _store_is(second, "up"), 15.0)

    await first.order("openai", "isolate")
    await until(lambda: all_are((first, second), "isolated"), ONE_ROUND_SECONDS)
