"""A proxy whose state lives in a file: what was shown to anybody is there after a kill."""

from pathlib import Path

import pytest
from replicas_support import RunReplicas, run_replicas, two_providers, until

from sentinel_proxy.testing import FaultyUpstream, ollama_completion, openai_error

__all__ = ["run_replicas"]

pytestmark = pytest.mark.anyio


async def test_incidents_events_and_orders_outlive_a_kill(
    primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas, tmp_path: Path
) -> None:
    primary.always(openai_error(503))
    backup.always(ollama_completion("from the backup"))
    settings = two_providers(primary, backup, state=f"sqlite://{tmp_path}/state.db", recovery_timeout=60)
    (first,) = await run_replicas(settings)
    for _ in range(3):
        assert (await first.chat()).status_code == 200
    await first.order("ollama", "isolate", seconds=600)

    async def all_is_told() -> bool:
        types = {incident["type"] for incident in (await first.get("/api/incidents"))["incidents"]}
        return types == {"outage_detected", "failover_triggered", "breaker_isolated"}

    await until(all_is_told, 5.0)
    before = (await first.get("/api/incidents"))["incidents"]
    feed = (await first.get("/api/events"))["events"]
    await first.kill()

    (second,) = await run_replicas(settings)

    assert await second.state("openai") == "open"
    assert await second.state("ollama") == "isolated"

    async def the_old_ones_are_over() -> bool:
        listed = {each["id"]: each for each in (await second.get("/api/incidents"))["incidents"]}
        return all(listed[each["id"]]["resolved_at"] is not None for each in before)

    await until(the_old_ones_are_over, 5.0)
    again = (await second.get("/api/events"))["events"]
    assert [frame["id"] for frame in again[: len(feed)]] == [frame["id"] for frame in feed]
    assert (await second.get("/health"))["state"]["kind"] == "sqlite"


async def test_a_file_that_another_process_has_is_waited_for(
    primary: FaultyUpstream, backup: FaultyUpstream, run_replicas: RunReplicas, tmp_path: Path
) -> None:
    """As in an upgrade, where the new process starts while the old one drains."""
    settings = two_providers(primary, backup, state=f"sqlite://{tmp_path}/state.db")
    (first,) = await run_replicas(settings)
    await first.order("openai", "isolate", seconds=600)

    (second,) = await run_replicas(settings)
    assert (await second.get("/health"))["state"]["status"] == "away"
    assert await second.state() == "closed"
    await first.end()

    async def has_it() -> bool:
        return await second.state() == "isolated"

    await until(has_it, 10.0)
