"""
Hedging over real sockets: a stream that is slow to begin is raced with the next provider.

H of the catalogue of failures. The slow ones never say a word, so that nothing here depends on
how fast a machine is; only `DELAY` is really waited.
"""

import asyncio
from typing import Any

import pytest
from harness import CHAT, Harness, Start, chain, eventually, unfinished

from sentinel_proxy.config import BreakerConfig, HedgeConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.events import CallFailedOver, CallHedged, IncidentChanged
from sentinel_proxy.model import Outcome
from sentinel_proxy.resilience.hedge import BURST
from sentinel_proxy.testing import (
    Close,
    FaultyUpstream,
    Hang,
    Pause,
    Script,
    ollama_error,
    ollama_stream,
    openai_completion,
    openai_error,
    openai_stream,
)

pytestmark = pytest.mark.anyio

DELAY = 0.04
PATIENT = TimeoutsConfig(connect=5, first_token=20, idle=20, progress=20, answer=20, total=60)
SILENT: Script = [Hang()]
ONLY_A_ROLE: Script = unfinished([], Hang())


async def hedging(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream, transport: str = "http1", **sections: Any
) -> Harness:
    """Start a proxy that hedges after `DELAY`; *sections* go to the configuration."""
    patient: dict[str, Any] = {
        "hedge": HedgeConfig(enabled=True, delay=DELAY),
        "timeouts": PATIENT,
        "retry": RetryConfig(attempts=1),
    }
    config = chain(primary, backup, **(patient | sections))
    providers = tuple(each.model_copy(update={"transport": transport}) for each in config.providers)
    return await start(config.model_copy(update={"providers": providers}))


async def ask(harness: Harness, **fields: Any) -> tuple[str, str]:
    """Ask for a stream; return the text and the trail."""
    answer = await harness.chat(stream=True, **fields)
    assert answer.status_code == 200, answer.text
    return said(answer.text), answer.headers["x-sentinel-trail"]


def said(events: str) -> str:
    """Return the text of a stream that is whole."""
    assert events.endswith("data: [DONE]\n\n")
    return "".join(word for word in ("slow", "quick") if f'"{word}"' in events)


def hedges(harness: Harness) -> list[CallHedged]:
    return [event for event in harness.events if isinstance(event, CallHedged)]


async def test_h01_a_quick_provider_is_raced_with_nobody(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(openai_stream(["quick"]))
    harness = await hedging(start, primary, backup, hedge=HedgeConfig(enabled=True, delay=5))

    assert await ask(harness) == ("quick", "openai:200")

    assert backup.requests == []
    assert hedges(harness) == []


@pytest.mark.parametrize("transport", ["http1", "httpx"])
@pytest.mark.parametrize("silence", [SILENT, ONLY_A_ROLE], ids=["no head", "a role and no more"])
async def test_h02_the_first_content_wins_and_the_loser_is_cut_off(
    silence: Script, transport: str, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(silence)
    backup.always(ollama_stream(["quick"]))
    harness = await hedging(start, primary, backup, transport=transport)

    answer = await harness.chat(stream=True)

    assert said(answer.text) == "quick"
    assert answer.headers["x-sentinel-trail"] == "openai:hedged,ollama:200"
    assert answer.headers["x-sentinel-attempts"] == "2"
    assert answer.headers["x-sentinel-failover"] == "true"
    assert answer.headers["x-sentinel-provider"] == "ollama"
    await eventually(lambda: not primary.is_open(primary.requests[0].connection))
    await eventually(harness.idle)
    (hedged,) = hedges(harness)
    assert (hedged.source, hedged.target, hedged.winner) == ("openai", "ollama", "ollama")
    assert DELAY <= hedged.after_seconds < 2
    (finished,) = harness.finished()
    assert finished.outcome is Outcome.FAILED_OVER
    assert finished.overhead_seconds < finished.seconds / 2  # it has waited, and waiting counts once
    assert finished.call is not None
    assert finished.call.waited_seconds <= finished.seconds


async def test_h02_the_slow_one_may_still_be_first(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    backup.always(SILENT)

    def once_raced(_: Any) -> Script:
        return [Pause(DELAY * 3), *openai_stream(["slow"])]

    primary.always(once_raced)
    harness = await hedging(start, primary, backup)

    assert await ask(harness) == ("slow", "openai:200,ollama:hedged")

    await eventually(lambda: not backup.is_open(backup.requests[0].connection))
    await eventually(harness.idle)
    assert [event.winner for event in hedges(harness)] == ["openai"]
    (finished,) = harness.finished()
    assert (finished.outcome, finished.provider) == (Outcome.SUCCESS, "openai")


async def test_h03_a_failure_before_the_delay_is_a_failover_at_once(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(openai_error(503))
    backup.always(ollama_stream(["quick"]))
    harness = await hedging(start, primary, backup, hedge=HedgeConfig(enabled=True, delay=30))

    assert await ask(harness) == ("quick", "openai:503,ollama:200")

    assert len(backup.requests) == 1
    assert hedges(harness) == []


async def test_h04_a_spent_budget_is_no_hedge(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.plays(*[SILENT] * BURST).always([Pause(DELAY * 3), *openai_stream(["slow"])])
    backup.always(ollama_stream(["quick"]))
    harness = await hedging(
        start,
        primary,
        backup,
        hedge=HedgeConfig(enabled=True, delay=DELAY, budget=0.01),
        retry=RetryConfig(attempts=1, budget=1.0),
    )

    answers = [await ask(harness) for _ in range(BURST + 1)]

    assert answers == [("quick", "openai:hedged,ollama:200")] * BURST + [("slow", "openai:200")]
    assert len(backup.requests) == BURST


async def test_h05_both_fail_and_the_caller_hears_it_once(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always([Pause(DELAY * 3), *openai_error(500)])
    backup.always(ollama_error(503, "out of memory"))
    harness = await hedging(start, primary, backup)

    answer = await harness.chat(stream=True)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "all_providers_failed"
    assert answer.headers["x-sentinel-trail"] == "openai:500,ollama:503"
    assert (len(primary.requests), len(backup.requests)) == (1, 1)
    assert [event.winner for event in hedges(harness)] == [""]
    assert harness.idle()


async def test_h06_the_loser_is_held_nothing_against(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(SILENT)
    backup.always(ollama_stream(["quick"]))
    harness = await hedging(start, primary, backup, breaker=BreakerConfig(failure_threshold=1))

    trails = [(await ask(harness))[1] for _ in range(3)]

    assert trails == ["openai:hedged,ollama:200"] * 3
    slow = harness.proxy.upstreams[0]
    assert (slow.breakers.own.pristine, dict(slow.breakers.models_view())) == (True, {})
    assert [event for event in harness.events if isinstance(event, IncidentChanged)] == []
    assert {event.reason for event in harness.events if isinstance(event, CallFailedOver)} == {"hedged"}
    metrics = (await harness.client.get("/metrics")).text
    assert 'sentinel_attempts_total{provider="openai",result="hedged"} 3.0' in metrics
    assert 'sentinel_failovers_total{reason="hedged",source="openai",target="ollama"} 3.0' in metrics


async def test_the_caller_that_leaves_ends_both(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(SILENT)
    backup.always(SILENT)
    harness = await hedging(start, primary, backup)

    waiting = asyncio.create_task(harness.chat(stream=True))
    await eventually(lambda: backup.requests)
    waiting.cancel()
    await eventually(lambda: harness.finished() and harness.idle())

    await eventually(lambda: primary.open_connections == backup.open_connections == 0)
    (finished,) = harness.finished()
    assert (finished.outcome, finished.status) == (Outcome.HUNG_UP, 499)
    assert finished.call is not None
    assert finished.call.trail == []


async def test_a_winner_that_breaks_is_carried_on_like_any_other(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.plays(SILENT).always(openai_stream(["quick"]))
    backup.always([*ollama_stream(["slow", "never said"])[:2], Close()])
    harness = await hedging(start, primary, backup)

    answer = await harness.chat(stream=True)

    assert said(answer.text) == "slowquick"
    assert answer.headers["x-sentinel-trail"] == "openai:hedged,ollama:200"
    assert [event.outcome for event in harness.finished()] == [Outcome.RESCUED]
    await eventually(harness.idle)


async def test_it_is_off_unless_it_is_switched_on(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always([Pause(DELAY * 3), *openai_stream(["slow"])])
    harness = await hedging(start, primary, backup, hedge=HedgeConfig(delay=DELAY))

    assert await ask(harness) == ("slow", "openai:200")

    assert backup.requests == []
    assert harness.proxy.hedging is None


async def test_a_reload_that_is_about_something_else_keeps_what_is_known(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    harness = await hedging(start, primary, backup)
    proxy = harness.proxy
    before = proxy.hedging

    proxy.reload(proxy.config.model_copy(update={"default_model": "another"}))
    assert proxy.hedging is before
    proxy.reload(proxy.config.model_copy(update={"hedge": HedgeConfig(enabled=True, delay=9)}))
    assert proxy.hedging is not before
    proxy.reload(proxy.config.model_copy(update={"hedge": HedgeConfig()}))
    assert proxy.hedging is None


async def test_what_is_not_streamed_is_not_hedged(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always([Pause(DELAY * 3), *openai_completion("slow")])
    harness = await hedging(start, primary, backup)

    answer = await harness.client.post("/v1/chat/completions", json=CHAT)

    assert answer.headers["x-sentinel-trail"] == "openai:200"
    assert backup.requests == []
