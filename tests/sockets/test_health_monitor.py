"""The monitor at work in a real proxy: outages found and left without a call, and nothing left over."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from harness import Harness, Start, chain

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import BreakerConfig, Config, HealthConfig, ProviderConfig, RetryConfig
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import BreakerChanged, HealthChecked, ProbeFinished
from sentinel_proxy.model import IncidentType, Verdict
from sentinel_proxy.server import running
from sentinel_proxy.testing import (
    FaultyUpstream,
    Hang,
    Received,
    Script,
    SimulatedOllama,
    SimulatedOpenAI,
    ollama_completion,
    ollama_tags,
    openai_completion,
    openai_error,
    openai_models,
)
from sentinel_proxy.testing.simulated import Outage

pytestmark = pytest.mark.anyio

QUICK = HealthConfig(interval=0.02, timeout=0.5)
SOON_RESTED = BreakerConfig(recovery_timeout=0.04, failure_threshold=3)


async def until(condition: Callable[[], Any]) -> None:
    """Wait until *condition* holds, five seconds at most."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def state(harness: Harness) -> str:
    return harness.proxy.health.breaker("openai").value


async def test_an_outage_is_found_without_a_call_and_left_by_one(start: Start) -> None:
    async with SimulatedOpenAI() as openai, SimulatedOllama() as ollama:
        harness = await start(simulated(openai, ollama, breaker=SOON_RESTED))
        await openai.outage(Outage.REFUSE)
        await until(lambda: state(harness) == "open")
        down = harness.proxy.health.view()["openai"]["status"]

        await openai.recover()
        await until(lambda: state(harness) == "half_open")
        ended_by = [event.reason for event in harness.events if isinstance(event, BreakerChanged)][-1]
        reply = await harness.chat()

    assert ended_by == "the rest was ended early"
    assert down == "down"
    assert (reply.status_code, reply.headers["x-sentinel-provider"]) == (200, "openai")
    assert state(harness) == "closed"
    (outage,), _ = harness.proxy.incidents.find(type=IncidentType.OUTAGE_DETECTED)
    assert (outage.details["cause"], outage.resolved_at is not None) == ("connect", True)


async def test_a_server_that_hangs_is_given_up_in_time(start: Start, primary: FaultyUpstream) -> None:
    primary.always([Hang()])
    harness = await start(chain(primary, health=HealthConfig(interval=3600, timeout=0.05)))

    result = await harness.proxy.health.probe("openai")

    assert (result.verdict, result.kind) == (Verdict.FAILED, FailureKind.TIMEOUT)
    assert 0.05 <= result.seconds < 1
    assert harness.idle()


async def test_probes_keep_one_connection(start: Start, primary: FaultyUpstream) -> None:
    primary.always(openai_models("gpt-4o"))
    await start(chain(primary, health=QUICK))

    await until(lambda: len(primary.requests) >= 5)

    assert primary.connections == 1
    assert {(request.method, request.target) for request in primary.requests} == {("GET", "/v1/models")}


async def test_who_answers_calls_is_not_probed(start: Start, primary: FaultyUpstream) -> None:
    primary.always(openai_completion("hello"))
    harness = await start(chain(primary))

    await harness.chat()
    await harness.proxy.health.round()

    assert any(isinstance(event, HealthChecked) for event in harness.events)
    assert [request.method for request in primary.requests] == ["POST"]


async def test_where_callers_bring_their_keys_a_probe_shows_none(
    start: Start, primary: FaultyUpstream
) -> None:
    primary.always(openai_error(401, "invalid_api_key"))
    provider = ProviderConfig.model_validate(
        {"name": "openai", "kind": "openai", "base_url": f"{primary.url}/v1"}
    )
    harness = await start(Config(providers=(provider,), health=QUICK))

    await until(lambda: len(primary.requests) >= 3)

    assert all(request.header("authorization") is None for request in primary.requests)
    assert harness.proxy.health.view()["openai"]["status"] == "healthy"
    assert harness.proxy.incidents.find() == ([], 0)


async def test_a_key_of_ours_that_is_refused_is_one_incident(start: Start, primary: FaultyUpstream) -> None:
    primary.always(openai_error(401, "invalid_api_key"))
    harness = await start(chain(primary, health=QUICK))

    await until(lambda: len(primary.requests) >= 4)

    (refused,), total = harness.proxy.incidents.find()
    assert (refused.type, total) == (IncidentType.CREDENTIAL_REFUSED, 1)
    assert state(harness) == "closed"
    assert "sk-of-the-proxy" not in repr(refused)


async def test_a_fallback_without_its_model_is_told_before_it_is_needed(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(openai_models("gpt-4o"))
    backup.always(ollama_tags("another"))
    harness = await start(chain(primary, backup, health=QUICK))

    await until(lambda: harness.proxy.incidents.find()[1])

    (missing,), _ = harness.proxy.incidents.find()
    assert missing.type is IncidentType.FALLBACK_MODEL_MISSING
    assert missing.details["models"] == ("llama3.2",)
    assert harness.proxy.health.view()["ollama"]["missing_models"] == ["llama3.2"]


async def test_the_fallback_is_warmed_up_when_the_primary_breaks(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(openai_error(401, "invalid_api_key"))
    backup.always(ollama_completion("hello"))
    config = chain(primary, backup)
    first, second = config.providers
    warm = second.model_copy(update={"keep_alive": "5m"})
    harness = await start(config.model_copy(update={"providers": (first, warm)}))

    await harness.chat()
    await until(lambda: len(backup.requests) == 2)

    assert sorted(request.target for request in backup.requests) == ["/api/chat", "/api/generate"]


@pytest.mark.parametrize("act", [[Hang()], openai_models("gpt-4o")], ids=["a probe is out", "none is out"])
async def test_stopping_leaves_nothing_behind(primary: FaultyUpstream, act: Script) -> None:
    asked = asyncio.Event()

    def answer(_: Received) -> Script:
        asked.set()
        return act

    primary.always(answer)
    before = asyncio.all_tasks()
    proxy = Proxy(chain(primary, health=QUICK, retry=RetryConfig(attempts=1)))

    async with running(proxy):
        await asked.wait()
    await until(lambda: primary.open_connections == 0)

    assert {task.get_name() for task in asyncio.all_tasks() - before} == set()
    assert proxy.upstreams[0].in_flight == 0
    assert proxy.bus.errors == 0


async def test_every_probe_is_told(start: Start, primary: FaultyUpstream) -> None:
    primary.always(openai_models("gpt-4o", "o3"))
    harness = await start(chain(primary, health=QUICK))

    await until(lambda: any(isinstance(event, ProbeFinished) for event in harness.events))

    told = next(event.result for event in harness.events if isinstance(event, ProbeFinished))
    assert (told.provider, told.ok, told.what) == ("openai", True, "it lists 2 models")


def simulated(openai: SimulatedOpenAI, ollama: SimulatedOllama, *, breaker: BreakerConfig) -> Config:
    """Return a chain of simulated providers that is probed all the time."""
    providers = [
        {"name": "openai", "kind": "openai", "base_url": openai.base_url, "api_key": "sk-of-the-proxy"},
        {"name": "ollama", "kind": "ollama", "base_url": ollama.base_url, "models": {"*": "llama3.2"}},
    ]
    return Config(
        providers=tuple(ProviderConfig.model_validate(provider) for provider in providers),
        health=QUICK,
        breaker=breaker,
    )
