"""
The files of docs/operations against the real Prometheus, which scrapes the real proxy in an outage.

Where Prometheus is not installed (`apt-get install prometheus` on Debian) these are skipped;
`.ci/run` installs it where it may.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness import Harness, started

import sentinel_proxy
from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    HealthConfig,
    ProviderConfig,
    RateLimitConfig,
    RetryConfig,
)
from sentinel_proxy.metrics import SERIES
from sentinel_proxy.testing import Outage, SimulatedOllama, SimulatedOpenAI

OPERATIONS = Path(sentinel_proxy.__file__).parent.parent / "docs" / "operations"
RULES: dict[str, Any] = yaml.safe_load((OPERATIONS / "alerts.yml").read_text())
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]
}
DASHBOARD: dict[str, Any] = json.loads((OPERATIONS / "dashboards" / "sentinel.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

SCRAPE_SECONDS = 0.2
NAME = re.compile(r"\bsentinel_\w+")

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)


def queries(panel: Mapping[str, Any]) -> list[str]:
    """Return what *panel* asks, with Grafana's variables filled in for a scrape of some seconds."""
    filled = {"$__rate_interval": "20s", "$__range": "5m", "$instance": ".*", "$provider": ".*", "$job": ".*"}
    found = []
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in filled.items():
            expression = expression.replace(name, value)
        found.append(expression)
    return found


# What the files say, without Prometheus.


def series_of(expression: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in NAME.findall(expression)}


@pytest.mark.parametrize(
    "expression",
    [
        *(pytest.param(query, id=panel["title"]) for panel in PANELS for query in queries(panel)),
        *(pytest.param(rule["expr"], id=name) for name, rule in ALERTS.items()),
    ],
)
def test_every_query_is_about_metrics_that_there_are(expression: str) -> None:
    assert series_of(expression) <= {series.name for series in SERIES}


def test_every_metric_is_shown_somewhere() -> None:
    shown = {name for panel in PANELS for query in queries(panel) for name in series_of(query)}

    assert shown == {series.name for series in SERIES}


def test_no_variable_of_the_dashboard_is_unknown() -> None:
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {
        "__rate_interval",
        "__range",
    }
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))

    assert used - {"__all"} == known


def test_panels_have_a_name_a_description_and_a_place_of_their_own() -> None:
    cells = [
        cell
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for cell in product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    identities = [panel["id"] for panel in DASHBOARD["panels"]]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    assert len(set(identities)) == len(identities)
    assert all(panel["title"] and panel["description"] for panel in PANELS)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_it_means_and_where_help_is(name: str) -> None:
    rule = ALERTS[name]
    headings = re.findall(r"^### (\w+)$", (OPERATIONS / "README.md").read_text(), re.MULTILINE)

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations/README.md#{name.lower()}"
    assert name in headings


# What Prometheus says of the files.

FIRING: dict[str, tuple[dict[str, str], str]] = {
    "SentinelProxyDown": ({'up{job="sentinel-proxy"}': "0x60"}, "2m"),
    "SentinelNoProviderUp": (
        {
            'sentinel_provider_up{provider="openai"}': "0x60",
            'sentinel_provider_up{provider="ollama"}': "0x60",
        },
        "1m",
    ),
    "SentinelCallsLost": (
        {
            'sentinel_requests_total{outcome="success"}': "0+96x60",
            'sentinel_requests_total{outcome="failure"}': "0+2x60",
            'sentinel_requests_total{outcome="truncated"}': "0+2x60",
        },
        "7m",
    ),
    "SentinelShedding": ({"sentinel_shed_total": "0+5x60"}, "3m"),
    "SentinelAccountRefused": (
        {'sentinel_incidents_total{type="quota_exhausted",provider="openai"}': "0 0 1x60"},
        "3m",
    ),
    "SentinelProviderOut": ({'sentinel_breaker_state{provider="openai"}': "2x60"}, "3m"),
    "SentinelNoFallbackLeft": (
        {
            'sentinel_provider_up{provider="openai"}': "0x60",
            'sentinel_provider_up{provider="ollama"}': "1x60",
        },
        "6m",
    ),
    "SentinelFallbackServes": (
        {
            'sentinel_requests_total{outcome="success"}': "0+40x90",
            'sentinel_requests_total{outcome="failed_over"}': "0+59x90",
            'sentinel_requests_total{outcome="rescued"}': "0+1x90",
        },
        "25m",
    ),
    "SentinelProviderFlaps": (
        {'sentinel_breaker_transitions_total{provider="openai",state="open"}': "0+1x60"},
        "12m",
    ),
    "SentinelStreamsTruncated": ({'sentinel_truncated_streams_total{provider="openai"}': "0 0 1x60"}, "3m"),
    "SentinelFallbackModelMissing": (
        {'sentinel_incidents_total{type="fallback_model_missing",provider="ollama"}': "0 0 1x60"},
        "3m",
    ),
    "SentinelFirstTokenSlow": (
        {
            'sentinel_time_to_first_token_seconds_bucket{provider="openai",le="10"}': "0+90x60",
            'sentinel_time_to_first_token_seconds_bucket{provider="openai",le="20"}': "0+100x60",
            'sentinel_time_to_first_token_seconds_bucket{provider="openai",le="+Inf"}': "0+100x60",
        },
        "15m",
    ),
    "SentinelOverheadHigh": (
        {
            'sentinel_overhead_seconds_bucket{le="0.025"}': "0+90x60",
            'sentinel_overhead_seconds_bucket{le="0.05"}': "0+100x60",
            'sentinel_overhead_seconds_bucket{le="+Inf"}': "0+100x60",
        },
        "15m",
    ),
    "SentinelStateStoreDown": ({"sentinel_state_up": "0x60"}, "2m"),
}
"""Series a minute apart, and when the alert is there."""

CALM = {
    'up{job="sentinel-proxy"}': "1x60",
    'sentinel_provider_up{provider="openai"}': "1x60",
    'sentinel_provider_up{provider="ollama"}': "1x60",
    'sentinel_breaker_state{provider="openai"}': "0 2 1 0x60",
    'sentinel_breaker_transitions_total{provider="openai",state="open"}': "0 1x60",
    'sentinel_requests_total{outcome="success"}': "0+1000x60",
    'sentinel_requests_total{outcome="failed_over"}': "0+100x60",
    'sentinel_requests_total{outcome="failure"}': "0+1x60",
    'sentinel_requests_total{outcome="caller_error"}': "0+5000x60",
    'sentinel_incidents_total{type="outage_detected",provider="openai"}': "0 1x60",
    'sentinel_incidents_total{type="quota_exhausted",provider="openai"}': "0x60",
    'sentinel_truncated_streams_total{provider="openai"}': "0x60",
    'sentinel_time_to_first_token_seconds_bucket{provider="openai",le="10"}': "0+100x60",
    'sentinel_time_to_first_token_seconds_bucket{provider="openai",le="+Inf"}': "0+100x60",
    'sentinel_overhead_seconds_bucket{le="0.001"}': "0+100x60",
    'sentinel_overhead_seconds_bucket{le="+Inf"}': "0+100x60",
    "sentinel_shed_total": "5x60",
    "sentinel_state_up": "1x60",
}
"""A short outage that the proxy survived, and callers who make mistakes."""


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run `promtool check` or `test`; return what it said."""
    run = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, check=False)
    said = (run.stdout + run.stderr).decode()
    assert run.returncode == 0, said
    return said


def rules_test(folder: Path, series: Mapping[str, str], alert: str, at: str, fires: bool) -> None:
    """Let promtool judge whether *alert* fires *at* that time of *series*."""
    test = {
        "rule_files": [str(OPERATIONS / "alerts.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                        "eval_time": at,
                        "exp_samples": [{"labels": "{}", "value": int(fires)}],
                    }
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(test))
    promtool("test", "rules", path)


@needs_prometheus
def test_the_files_are_what_prometheus_takes() -> None:
    promtool("check", "rules", OPERATIONS / "alerts.yml")
    promtool("check", "config", OPERATIONS / "prometheus.yml")


@needs_prometheus
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_it_should(alert: str, tmp_path: Path) -> None:
    series, at = FIRING[alert]

    rules_test(tmp_path, series, alert, at, fires=True)


@needs_prometheus
@pytest.mark.parametrize("alert", ALERTS)
def test_an_outage_that_was_survived_wakes_nobody(alert: str, tmp_path: Path) -> None:
    rules_test(tmp_path, CALM, alert, "30m", fires=False)


# What Prometheus says of the proxy, before, during and after an outage.


def config(openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Config:
    """Return a chain that fails over at once, and rests until probes find a provider well again."""
    return Config(
        providers=(
            ProviderConfig(name="openai", kind="openai", base_url=openai.base_url),
            ProviderConfig(name="ollama", kind="ollama", base_url=ollama.base_url, models={"*": "llama3.2"}),
        ),
        retry=RetryConfig(backoff=0.001, max_backoff=0.001),
        breaker=BreakerConfig(recovery_timeout=30),
        health=HealthConfig(interval=0.2, timeout=1),
        rate_limit=RateLimitConfig(requests=0),
    )


class Prometheus:
    """A running Prometheus: what it knows, by its HTTP API."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query; fail where Prometheus does not like it."""
        answer = (await self._client.get("/api/v1/query", params={"query": query})).json()
        assert answer["status"] == "success", (query, answer)
        assert not answer.get("warnings"), (query, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    async def value(self, query: str) -> float | None:
        """Return the only sample of a query, None if there is none."""
        samples = await self.ask(query)
        assert len(samples) < 2, (query, samples)
        return float(samples[0]["value"][1]) if samples else None

    async def until(self, query: str, holds: Callable[[float | None], bool]) -> None:
        """Wait until the value of *query* is as it should be."""
        async with asyncio.timeout(15):
            while not holds(await self.value(query)):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(SCRAPE_SECONDS / 4)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """Run Prometheus with the project's rules, scraping *target* often."""
    settings = yaml.safe_load((OPERATIONS / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": f"{SCRAPE_SECONDS * 1000:.0f}ms", "evaluation_interval": "200ms"}
    settings["rule_files"] = [str(OPERATIONS / "alerts.yml")]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "GOMAXPROCS": "1"},
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            async with asyncio.timeout(30):
                while not await _is_ready(client):  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.05)
            yield Prometheus(client)
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx.TransportError:
        return False


class Story:
    """An outage, act by act, and what Prometheus has to say after each."""

    def __init__(
        self, openai: SimulatedOpenAI, ollama: SimulatedOllama, harness: Harness, prometheus: Prometheus
    ) -> None:
        self.openai = openai
        self.ollama = ollama
        self.prometheus = prometheus
        self._harness = harness
        self._made = 0

    async def calls(self, number: int) -> set[int]:
        """Make calls, wait until Prometheus has seen the last of them, and return their statuses."""
        usage = {"include_usage": True}
        statuses = {
            (await self._harness.chat(stream=True, stream_options=usage)).status_code for _ in range(number)
        }
        self._made += number
        await self.prometheus.until("sum(sentinel_requests_total)", lambda seen: seen == self._made)
        return statuses

    async def all_is_well(self) -> None:
        assert await self.calls(4) == {200}
        assert await self.calls(4) == {200}  # a second look: now there are rates
        assert await self.shows("Providers that take calls") == 2
        assert await self.shows("Lost") == await self.shows("Saved") == 0
        assert await self.alerts() <= {"SentinelOverheadHigh"}  # which a busy machine may earn

    async def a_stream_breaks(self) -> None:
        await self.openai.outage(Outage.CUT_AFTER)
        assert await self.calls(1) == {200}
        assert await self.prometheus.value('sum(sentinel_requests_total{outcome="rescued"})') == 1
        assert await self.shows("Streams that broke") is not None

    async def the_first_is_out(self) -> None:
        await self.openai.outage(Outage.UNAVAILABLE)
        await self.prometheus.until('sentinel_breaker_state{provider="openai"}', lambda state: state == 2)
        assert await self.calls(4) == {200}
        assert await self.calls(4) == {200}
        assert await self.shows("Providers that take calls") == 1
        assert 0 < (await self.shows("Saved") or 0) < 1
        assert await self.shows("Lost") == 0
        assert await self.alerts() >= {"SentinelProviderOut", "SentinelNoFallbackLeft"}

    async def nobody_is_left(self) -> None:
        await self.ollama.outage(Outage.REFUSE)
        await self.prometheus.until("sum(sentinel_provider_up)", lambda up: up == 0)
        assert await self.calls(4) == {503}
        assert await self.calls(4) == {503}
        assert 0 < (await self.shows("Lost") or 0) < 1
        await self.prometheus.until('count(ALERTS{alertname="SentinelNoProviderUp"})', lambda seen: seen == 1)
        await self.prometheus.until('count(ALERTS{alertname="SentinelCallsLost"})', lambda seen: seen == 1)

    async def both_are_back(self) -> None:
        await self.openai.recover()
        await self.ollama.recover()
        await self.prometheus.until('sentinel_breaker_state{provider="openai"}', lambda state: state == 1)
        assert await self.calls(4) == {200}
        await self.prometheus.until("sum(sentinel_provider_up)", lambda up: up == 2)
        await self.prometheus.until('count(ALERTS{alertname="SentinelNoProviderUp"})', lambda seen: not seen)
        await self.prometheus.until(
            'sum(sentinel_outage_duration_seconds_count{provider="openai"})', lambda ended: bool(ended)
        )
        assert (await self.shows("Time to recover") or 0) > 0

    async def every_panel_shows_something(self) -> None:
        empty = [
            (panel["title"], query)
            for panel in PANELS
            for query in queries(panel)
            if not await self.prometheus.ask(query)
        ]
        assert empty == []

    async def shows(self, title: str) -> float | None:
        """Return the number in the panel *title*: the greatest, where there are several."""
        (panel,) = (panel for panel in PANELS if panel["title"] == title)
        samples = [sample for query in queries(panel) for sample in await self.prometheus.ask(query)]
        return max((float(sample["value"][1]) for sample in samples), default=None)

    async def alerts(self) -> set[str]:
        """Return the names of the alerts that are about to fire, or do, as their expressions have it now."""
        return {name for name, rule in ALERTS.items() if await self.prometheus.ask(rule["expr"])}


@needs_prometheus
@pytest.mark.anyio
async def test_prometheus_sees_an_outage_as_it_is(tmp_path: Path) -> None:
    async with (
        SimulatedOpenAI() as openai,
        SimulatedOllama() as ollama,
        started(config(openai, ollama)) as harness,
        prometheus(tmp_path, harness.url.removeprefix("http://")) as seen,
    ):
        story = Story(openai, ollama, harness, seen)

        await story.all_is_well()
        await story.a_stream_breaks()
        await story.the_first_is_out()
        await story.nobody_is_left()
        await story.both_are_back()

        await story.every_panel_shows_something()


@needs_prometheus
@pytest.mark.anyio
async def test_what_is_scraped_is_well_formed() -> None:
    async with (
        SimulatedOpenAI() as openai,
        SimulatedOllama() as ollama,
        started(config(openai, ollama)) as harness,
    ):
        await harness.chat()
        scraped = (await harness.client.get("/metrics")).content

    assert promtool("check", "metrics", stdin=scraped) == ""
