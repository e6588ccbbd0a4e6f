"""What of all that happens is told on the live feed."""

import asyncio
import copy
import json
from typing import Any

import pytest

from sentinel_proxy.admin.broadcast import Broadcast
from sentinel_proxy.admin.reporter import Reporter
from sentinel_proxy.events import (
    BreakerChanged,
    Bus,
    HealthChecked,
    IncidentChanged,
    MappedModelsChecked,
    Noticed,
    ProbeFinished,
)
from sentinel_proxy.model import Feed, Frame, Incident, IncidentType, ProbeResult, Severity, Verdict
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

WELL: dict[str, Any] = {
    "status": "healthy",
    "routable": True,
    "latency_ms": 10.0,
    "success_rate_pct": 100.0,
    "circuit_breaker": {"state": "closed", "since": None, "until": None, "failures": 0, "reason": ""},
    "models": {},
    "missing_models": [],
    "in_flight": 0,
}
MOVED = BreakerChanged("openai", None, "closed", "open", "connect", 30.0)


class Desk:
    """A reporter, the bus it listens to, and what providers it finds when it looks."""

    def __init__(self, **among_others: Any) -> None:
        self.clock = FakeClock()
        self.broadcast = Broadcast(500, self.clock, Feed())
        self.providers = {"openai": copy.deepcopy(WELL), "ollama": copy.deepcopy(WELL)}
        self.bus = Bus()
        self.reporter = Reporter(
            self.broadcast,
            lambda: self.providers,
            lambda: {"uptime_seconds": 1.0},
            self.clock,
            30.0,
            **among_others,
        )
        self.reporter.listen(self.bus)

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        frames = [json.loads(frame.text) for frame in self.broadcast.since(None).frames]
        return [(frame["event_type"], frame["payload"]) for frame in frames]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def opened(breaker: dict[str, Any]) -> None:
    breaker["circuit_breaker"] |= {"state": "open", "reason": "connect"}


async def test_a_change_is_told_as_it_is_once_the_moment_is_over(desk: Desk) -> None:
    """Whoever reports an event is in the middle of something."""
    desk.bus.emit(MOVED)
    before = desk.told()
    opened(desk.providers["openai"])
    await asyncio.sleep(0)

    assert before == []
    assert desk.told() == [("provider_status", {"provider": "openai", **desk.providers["openai"]})]


async def test_many_changes_of_one_moment_are_told_once(desk: Desk) -> None:
    opened(desk.providers["openai"])
    for _ in range(5):
        desk.bus.emit(MOVED)
    await asyncio.sleep(0)
    desk.bus.emit(MOVED)
    await asyncio.sleep(0)

    assert len(desk.told()) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status",), "degraded"),
        (("routable",), False),
        (("circuit_breaker", "state"), "half_open"),
        (("circuit_breaker", "reason"), "another"),
        (("models",), {"gpt-4o": {"state": "open"}}),
        (("missing_models",), ["llama3.2"]),
    ],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else "",
)
async def test_what_matters_is_told(desk: Desk, path: tuple[str, ...], value: Any) -> None:
    place = desk.providers["ollama"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value

    desk.bus.emit(MOVED)
    await asyncio.sleep(0)

    assert [payload["provider"] for _, payload in desk.told()] == ["ollama"]


@pytest.mark.parametrize(
    "drift",
    [
        {"latency_ms": 99.0},
        {"success_rate_pct": 50.0},
        {"in_flight": 7},
        {"models": {"gpt-4o": {"state": "closed"}}},
    ],
    ids=lambda drift: next(iter(drift)),
)
async def test_numbers_that_drift_are_not(desk: Desk, drift: dict[str, Any]) -> None:
    desk.providers["openai"] |= drift

    desk.bus.emit(MOVED)
    await asyncio.sleep(0)

    assert desk.told() == []


PROBED = ProbeFinished(ProbeResult("openai", 0.0, 0.1, Verdict.FAILED, "it answered 503"))


@pytest.mark.parametrize(
    "event",
    [MOVED, PROBED, MappedModelsChecked("ollama", ("llama3.2",)), HealthChecked(2, 0.1)],
    ids=lambda event: type(event).__name__,
)
async def test_whatever_may_have_changed_a_status_is_a_reason_to_look(desk: Desk, event: Any) -> None:
    opened(desk.providers["openai"])

    desk.bus.emit(event)
    await asyncio.sleep(0)

    assert "provider_status" in [event_type for event_type, _ in desk.told()]


async def test_a_round_of_probes_tells_the_numbers(desk: Desk) -> None:
    desk.bus.emit(HealthChecked(2, 0.1))

    assert desk.told() == [("metrics", {"uptime_seconds": 1.0})]


async def test_incidents_and_notices_are_told_as_they_are(desk: Desk) -> None:
    incident = Incident(
        "I", IncidentType.OUTAGE_DETECTED, Severity.CRITICAL, "openai", 0.0, "out", {"cause": "x"}, None, None
    )

    desk.bus.emit(IncidentChanged("opened", incident))
    desk.bus.emit(Noticed("info", "ready", {"version": "1"}))

    assert desk.told() == [
        ("incident", {"change": "opened", **incident.public()}),
        ("system", {"level": "info", "message": "ready", "details": {"version": "1"}}),
    ]


async def test_heartbeats_come_in_their_time(desk: Desk) -> None:
    subscription = desk.broadcast.subscribe()

    async with desk.reporter.running():
        texts = await subscription.next()

    assert json.loads(texts[0])["event_type"] == "heartbeat"
    assert set(desk.clock.sleeps) == {30.0}


def test_what_is_emitted_before_the_loop_runs_does_no_harm(desk: Desk) -> None:
    desk.bus.emit(MOVED)
    desk.bus.emit(Noticed("info", "a note of the configuration", {}))

    assert [event_type for event_type, _ in desk.told()] == ["system"]


# Where replicas share the feed.


class TestAmongOthers:
    @pytest.mark.parametrize(
        "event",
        [
            MOVED._replace(moved_by="R1"),
            PROBED._replace(told_by="R1"),
            MappedModelsChecked("ollama", ("llama3.2",), "R1"),
        ],
        ids=lambda event: type(event).__name__,
    )
    async def test_what_happened_elsewhere_is_told_there(self, desk: Desk, event: Any) -> None:
        opened(desk.providers["openai"])
        desk.bus.emit(event)
        await asyncio.sleep(0)
        desk.bus.emit(HealthChecked(0, 0.0))
        await asyncio.sleep(0)

        assert "provider_status" not in [event_type for event_type, _ in desk.told()]

    async def test_what_happened_here_as_well_is_told(self, desk: Desk) -> None:
        opened(desk.providers["openai"])
        desk.bus.emit(MOVED._replace(moved_by="R1"))
        desk.bus.emit(MOVED)
        await asyncio.sleep(0)

        assert len(desk.told()) == 1

    async def test_an_order_given_here_is_told_whatever_else_has_happened(self, desk: Desk) -> None:
        desk.bus.emit(MOVED._replace(moved_by="R1"))
        desk.reporter.tell_status(always="ollama")

        assert [payload["provider"] for _, payload in desk.told()] == ["ollama"]

    async def test_only_the_one_that_leads_tells_the_numbers_of_all(self) -> None:
        desk = Desk(leads=lambda: False)
        opened(desk.providers["openai"])
        desk.bus.emit(HealthChecked(0, 0.0))
        await asyncio.sleep(0)

        assert desk.told() == []

    async def test_notices_are_signed(self) -> None:
        desk = Desk(replica="R0")
        desk.bus.emit(Noticed("info", "ready", {}))

        assert desk.told() == [
            ("system", {"level": "info", "message": "ready", "details": {}, "replica": "R0"})
        ]

    async def test_frames_go_where_they_are_to_go(self) -> None:
        frames: list[Frame] = []
        desk = Desk(tell=frames.append)
        desk.bus.emit(Noticed("info", "ready", {}))

        assert ([frame.event_type for frame in frames], desk.told()) == (["system"], [])
