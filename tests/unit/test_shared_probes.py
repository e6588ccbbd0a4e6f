"""One replica asks providers for their health, and every one knows what they said."""

import asyncio
import zlib
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_health import LISTED, REFUSED, TAGS, Ward, ollama, says

from sentinel_proxy.config import HealthConfig
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import HealthChecked, MappedModelsChecked, Noticed, ProbeFinished
from sentinel_proxy.health.monitor import Monitor
from sentinel_proxy.health.telling import MAX_LIST_BYTES, Report, decoded, encoded
from sentinel_proxy.model import ProbeResult, Verdict
from sentinel_proxy.resilience.breaker import State
from sentinel_proxy.wire.json import dumps, loads

pytestmark = pytest.mark.anyio

REPORTS = st.builds(
    Report,
    st.builds(
        ProbeResult,
        st.text(min_size=1, max_size=20),
        st.floats(0, 2e9),
        st.floats(0, 60),
        st.sampled_from(Verdict),
        st.text(max_size=50),
        st.none() | st.sampled_from(FailureKind),
        st.none() | st.integers(100, 599),
    ),
    st.none() | st.floats(0, 3600),
    st.none() | st.binary(max_size=2000),
)


def pair(*acts: Any, fallback: Any = None) -> tuple[Ward, Ward]:
    """Return one that asks, and one that hears what it tells."""
    wards = (Ward(*acts), Ward(REFUSED))
    for ward in wards:
        if fallback is not None:
            ward.add(ollama(), fallback)
    asks, hears = wards
    shared(asks, tell=lambda data: hears.monitor.heard(data, "R0"))
    shared(hears, leads=lambda: False)
    return wards


def shared(ward: Ward, **seams: Any) -> None:
    """Give *ward* a monitor that is one of several."""
    ward.monitor = Monitor(
        ward.upstreams,
        HealthConfig(),
        ward.settings.recovery_timeout,
        ward.clock,
        ward.bus.emit,
        lambda low, high: (low + high) / 2,
        **seams,
    )


@given(report=REPORTS)
def test_what_is_told_is_what_is_heard(report: Report) -> None:
    assert decoded(encoded(report)) == report


def test_a_list_that_is_too_long_is_not_told() -> None:
    result = ProbeResult("openai", 0.0, 0.1, Verdict.PASSED, "it lists 9 models")

    assert decoded(encoded(Report(result, None, bytes(MAX_LIST_BYTES + 1)))).body is None


def test_a_report_that_would_fill_the_memory_is_refused() -> None:
    packed = b64encode(zlib.compress(bytes(MAX_LIST_BYTES + 1))).decode()
    data = encoded(Report(ProbeResult("openai", 0.0, 0.1, Verdict.PASSED, "it answered"), None, b""))

    with pytest.raises(ValueError, match="not a report"):
        decoded(dumps(loads(data) | {"body": packed}))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"verdict":"unheard of"}'])
def test_what_another_version_tells_is_no_news(data: bytes) -> None:
    ward = Ward(says(200, LISTED))

    ward.monitor.heard(data, "R0")

    assert ward.events == []


async def test_all_show_the_same_probe() -> None:
    asks, hears = pair(says(200, LISTED))

    await asks.monitor.probe("openai")

    assert hears.monitor.view()["openai"]["last_probe"] == asks.monitor.view()["openai"]["last_probe"]
    assert hears.monitor.view()["openai"]["latency_ms"] == 20.0
    assert not hears.transport.asked
    (heard,) = hears.said(ProbeFinished)
    assert heard.told_by == "R0"
    assert asks.said(ProbeFinished)[0].told_by is None


async def test_all_know_the_models_that_a_fallback_lacks() -> None:
    asks, hears = pair(says(200, LISTED), fallback=says(200, {"models": []}))

    await asks.monitor.round()

    assert hears.monitor.view()["ollama"]["missing_models"] == ["llama3.2"]
    assert hears.said(MappedModelsChecked) == [MappedModelsChecked("ollama", ("llama3.2",), "R0")]
    assert (len(asks.said(Noticed)), len(hears.said(Noticed))) == (1, 0)


async def test_a_list_teaches_a_provider_everywhere() -> None:
    asks, hears = pair(says(200, LISTED), fallback=says(200, TAGS))
    provider = hears.upstreams[1].provider
    assert provider.offers("gpt-4o") is None

    await asks.monitor.round()

    assert provider.offers("gpt-4o") is True


async def test_a_failing_probe_is_one_vote_however_many_hear_of_it() -> None:
    asks, hears = pair(REFUSED)

    await asks.rounds(3)

    assert (asks.state, hears.state) == (State.OPEN, State.CLOSED)  # that travels by itself
    assert hears.upstream.breakers.own.failures == 0
    assert hears.monitor.status("openai") == "degraded"


async def test_who_takes_the_lead_knows_that_probes_had_failed() -> None:
    """A passing probe then ends the rest early, as it would have where they were made."""
    asks, hears = pair(REFUSED)
    await asks.rounds(3)
    hears.trips()
    hears.clock.advance(15)
    hears.transport.acts[0] = says(200, LISTED)

    await hears.monitor.round()

    assert hears.state is State.HALF_OPEN


async def test_probes_that_failed_before_the_last_good_one_are_forgotten_everywhere() -> None:
    asks, hears = pair(REFUSED, says(200, LISTED))
    await asks.rounds(2)
    hears.trips()
    hears.clock.advance(15)
    hears.transport.acts[0] = says(200, LISTED)

    await hears.monitor.round()

    assert hears.state is State.OPEN


async def test_a_429_closes_the_gate_everywhere() -> None:
    asks, hears = pair(says(429, headers=((b"retry-after", b"7"),)))

    await asks.monitor.round()

    now = hears.clock.monotonic()
    assert not hears.upstream.admits("gpt-4o", now)
    assert hears.upstream.admits("gpt-4o", now + 7)


async def test_a_list_that_could_not_be_told_is_asked_for() -> None:
    long = {"data": [{"id": "gpt-4o", "owned_by": "x" * MAX_LIST_BYTES}]}
    asks, hears = pair(says(200, long))
    hears.transport.acts[0] = says(200, long)

    await asks.monitor.round()
    await hears.monitor._round_elsewhere()
    await hears.monitor._round_elsewhere()

    assert len(hears.transport.asked) == 1


async def test_of_a_provider_that_is_not_in_this_chain_nothing_is_learned() -> None:
    asks, hears = pair(says(200, LISTED), fallback=says(200, TAGS))
    hears.monitor.watch_over(hears.upstreams[:1], HealthConfig(), 30.0)

    await asks.monitor.round()

    assert list(hears.monitor.view()) == ["openai"]
    assert len(hears.said(ProbeFinished)) == 1


async def test_a_bug_in_a_provider_does_not_end_the_listening() -> None:
    asks, hears = pair(says(200, LISTED))

    def broken(body: bytes) -> Any:
        raise ZeroDivisionError

    hears.upstream.provider.catalogue = broken  # type: ignore[method-assign]
    await asks.monitor.round()

    assert hears.notices() == ["the probe of a provider went wrong"]


class TestRounds:
    async def run(self, ward: Ward, until: int) -> None:
        """Run the monitor until that many rounds are over."""
        running = asyncio.create_task(ward.monitor.run())

        def stop(_: HealthChecked) -> None:
            if len(ward.said(HealthChecked)) == until:
                running.cancel()

        ward.bus.subscribe(HealthChecked, stop)
        await asyncio.wait([running])

    async def test_who_does_not_lead_asks_once_and_then_marks_the_time(self) -> None:
        ward = Ward(says(200, LISTED))
        shared(ward, leads=lambda: False)

        await self.run(ward, 3)

        assert [event.probed for event in ward.said(HealthChecked)] == [1, 0, 0]

    async def test_who_leads_asks_in_every_round(self) -> None:
        ward = Ward(says(200, LISTED))
        shared(ward, leads=lambda: True)

        await self.run(ward, 3)

        assert [event.probed for event in ward.said(HealthChecked)] == [1, 1, 1]
