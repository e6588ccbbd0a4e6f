"""`GET /metrics` of a real proxy: names, and values after real calls."""

import asyncio
from collections.abc import Iterator, Mapping

import pytest
from harness import CHAT, Harness, Start, chain
from prometheus_client.parser import text_string_to_metric_families

from sentinel_proxy.config import BreakerConfig, ClientConfig, RateLimitConfig, RetryConfig, TimeoutsConfig
from sentinel_proxy.metrics import SERIES
from sentinel_proxy.testing import (
    FaultyUpstream,
    Hang,
    Received,
    Script,
    cut,
    ollama_completion,
    ollama_stream,
    openai_completion,
    openai_error,
    openai_models,
    openai_stream,
)

pytestmark = pytest.mark.anyio

Scrape = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(harness: Harness) -> Scrape:
    reply = await harness.client.get("/metrics")
    assert reply.status_code == 200
    return dict(_samples(reply.text))


def _samples(text: str) -> Iterator[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield (sample.name, frozenset(sample.labels.items())), sample.value


def value(scraped: Scrape, name: str, **labels: str) -> float:
    return scraped.get((f"sentinel_{name}", frozenset(labels.items())), 0.0)


def requests(scraped: Scrape, provider: str, outcome: str) -> float:
    return value(scraped, "requests_total", endpoint="chat.completions", provider=provider, outcome=outcome)


async def test_a_mix_of_calls_comes_to_the_right_numbers(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.plays(
        openai_completion("one"),
        openai_stream(["t", "w", "o"]),
        openai_error(500),  # and once more: a retry
        openai_completion("three"),
        openai_error(401, "invalid_api_key"),  # fails over, and opens the breaker at once
    )
    backup.plays(ollama_completion("four"), ollama_stream(["f", "i", "v", "e"]))
    harness = await start(chain(primary, backup, retry=RetryConfig(backoff=0, max_backoff=0)))

    await harness.chat()
    await harness.chat(stream=True)
    await harness.chat()
    await harness.chat()
    await harness.chat(stream=True)  # passes the primary by
    wrong = await harness.client.post("/v1/chat/completions", content=b"{")
    scraped = await scrape(harness)

    assert wrong.status_code == 400
    assert requests(scraped, "openai", "success") == 3
    assert requests(scraped, "ollama", "failed_over") == 2
    assert requests(scraped, "none", "caller_error") == 1
    chat, openai, ollama = "chat.completions", "openai", "ollama"
    assert value(scraped, "request_duration_seconds_count", endpoint=chat, provider=openai) == 3
    assert 0 < value(scraped, "request_duration_seconds_sum", endpoint=chat, provider=ollama) < 10
    assert value(scraped, "overhead_seconds_count", endpoint=chat) == 6
    assert value(scraped, "time_to_first_token_seconds_count", provider=openai) == 1
    assert value(scraped, "time_to_first_token_seconds_count", provider=ollama) == 1
    assert value(scraped, "attempts_total", provider=openai, result="answered") == 3
    assert value(scraped, "attempts_total", provider=openai, result="overloaded") == 1
    assert value(scraped, "attempts_total", provider=openai, result="credential") == 1
    assert value(scraped, "attempts_total", provider=ollama, result="answered") == 2
    assert value(scraped, "retries_total", provider=openai) == 1
    assert value(scraped, "failovers_total", source=openai, target=ollama, reason="401") == 1
    assert value(scraped, "failovers_total", source=openai, target=ollama, reason="open") == 1
    assert value(scraped, "breaker_state", provider=openai) == 2
    assert value(scraped, "breaker_state", provider=ollama) == 0
    assert value(scraped, "breaker_transitions_total", provider=openai, state="open") == 1
    assert value(scraped, "provider_up", provider=openai) == 0
    assert value(scraped, "provider_up", provider=ollama) == 1
    for type in ("outage_detected", "credential_refused", "failover_triggered"):
        assert value(scraped, "incidents_total", type=type, provider=openai) == 1
    assert value(scraped, "tokens_total", provider=openai, kind="prompt") == 14
    assert value(scraped, "tokens_total", provider=ollama, kind="completion") == 4
    assert value(scraped, "in_flight_requests") == 0
    assert value(scraped, "state_up") == 1
    assert value(scraped, "state_errors_total", operation="read") == 0


async def test_a_stream_that_breaks_is_a_rescue_or_a_truncation(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    primary.always(cut(openai_stream(["half ", "an ", "answer"], framing="close"), 500, of="body"))
    backup.always(ollama_stream([" and", " the", " rest"]))
    timeouts = TimeoutsConfig(total=60)  # a rescue needs time to be worth it
    harness = await start(chain(primary, backup, timeouts=timeouts))

    await harness.chat(stream=True)
    await harness.chat(stream=True, headers={"x-sentinel-rescue": "error"})
    scraped = await scrape(harness)

    both = {"source": "openai", "target": "ollama", "result": "continued"}
    assert value(scraped, "rescues_total", **both) == 1
    assert requests(scraped, "ollama", "rescued") == 1
    assert requests(scraped, "openai", "truncated") == 1
    assert value(scraped, "truncated_streams_total", provider="openai") == 1
    assert value(scraped, "open_streams") == 0


async def test_an_outage_is_timed_when_the_breaker_closes(start: Start, primary: FaultyUpstream) -> None:
    primary.plays(openai_error(503), openai_completion("well again"))
    breaker = BreakerConfig(failure_threshold=1, recovery_timeout=0.02)
    harness = await start(chain(primary, breaker=breaker, retry=RetryConfig(attempts=1)))

    await harness.chat()
    await harness.chat()  # the only provider there is: an early trial, or one after its rest
    scraped = await scrape(harness)

    assert value(scraped, "outage_duration_seconds_count", provider="openai") == 1
    assert value(scraped, "breaker_state", provider="openai") == 0
    assert value(scraped, "incidents_total", type="provider_recovered", provider="openai") == 1


async def test_what_is_refused_at_the_door_is_counted(start: Start, primary: FaultyUpstream) -> None:
    primary.always(openai_completion("one"))
    harness = await start(chain(primary, rate_limit=RateLimitConfig(requests=1)))

    statuses = [(await harness.chat()).status_code for _ in range(3)]
    scraped = await scrape(harness)

    assert statuses == [200, 429, 429]
    assert value(scraped, "rate_limited_total") == 2
    assert requests(scraped, "openai", "success") == 1


async def test_a_probe_by_hand_is_timed(start: Start, primary: FaultyUpstream) -> None:
    primary.always(openai_models("gpt-4o"))
    harness = await start(chain(primary))

    await harness.proxy.health.probe("openai")

    assert value(await scrape(harness), "probe_duration_seconds_count", provider="openai") == 1


async def test_a_call_in_flight_is_seen(start: Start, primary: FaultyUpstream) -> None:
    asked = asyncio.Event()

    def hang(_: Received) -> Script:
        asked.set()
        return [Hang()]

    primary.always(hang)
    harness = await start(chain(primary))
    call = asyncio.create_task(harness.chat())
    await asked.wait()

    scraped = await scrape(harness)

    call.cancel()
    await asyncio.wait([call])
    assert value(scraped, "in_flight_requests") == 1


async def test_it_is_open_to_everyone_also_where_calls_need_a_key(
    start: Start, primary: FaultyUpstream
) -> None:
    clients = (ClientConfig.model_validate({"name": "web", "key": "sk-web"}),)
    harness = await start(chain(primary, clients=clients))

    refused = await harness.client.post("/v1/chat/completions", json=CHAT)
    scraped = await harness.client.get("/metrics")

    assert (refused.status_code, scraped.status_code) == (401, 200)
    assert "sk-" not in scraped.text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("*/*", "text/plain"), ("application/openmetrics-text", "application/openmetrics-text")],
    ids=["text", "OpenMetrics"],
)
async def test_it_answers_in_the_format_that_was_asked_for(
    start: Start, primary: FaultyUpstream, accept: str, content_type: str
) -> None:
    harness = await start(chain(primary))

    reply = await harness.client.get("/metrics", headers={"accept": accept})

    assert reply.headers["content-type"].startswith(content_type)
    assert all(series.name.removesuffix("_total") in reply.text for series in SERIES)
    assert reply.text.endswith("# EOF\n") == (content_type != "text/plain")
