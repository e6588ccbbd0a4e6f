"""The failure drill: it passes for what is right, fails for what is wrong, and leaves the world alone."""

import asyncio
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sentinel_gemini import GeminiProvider
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sentinel_proxy import cli
from sentinel_proxy.app import Proxy
from sentinel_proxy.config import Config, ProviderConfig, load
from sentinel_proxy.drill import runner
from sentinel_proxy.drill.runner import Report, rehearse
from sentinel_proxy.drill.scenarios import SCENARIOS, Scenario
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.providers.registry import Registry
from sentinel_proxy.testing import FaultyUpstream

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "sentinel-gemini"

# The sixteen faults of the public catalogue of gateway failures, by our ids.
SIXTEEN = {
    *("429-retry-after", "429-no-retry-after", "500-once", "503-persistent", "reset", "silence"),
    *("slow-first-token", "cut", "stalled-stream", "malformed", "no-done", "context-overflow"),
    *("content-filter", "rejected-prefill", "flapping", "accounting"),
}
QUICK = """
[timeouts]
connect = 1
first_token = 3
idle = 3
progress = 5
answer = 4
header_hold = 1
[breaker]
recovery_timeout = 2
"""


def some(*ids: str) -> list[Scenario]:
    found = [scenario for scenario in SCENARIOS if scenario.id in ids]
    assert len(found) == len(ids)
    return found


def complaints(report: Report) -> dict[str, tuple[str, ...]]:
    return {result.key: result.complaints for result in report.failed}


def ran(report: Report) -> set[str]:
    return {result.id for result in report.ran}


def alone(kind: str, transport: str) -> Config:
    table = {"name": "only", "kind": kind, "base_url": "http://192.0.2.1/v1", "transport": transport}
    return Config(providers=(ProviderConfig.model_validate(table),))


def test_every_scenario_passes_with_the_default_policy() -> None:
    report = rehearse(load(None, {"OPENAI_API_KEY": "sk-of-the-reader"}).config)

    assert complaints(report) == {}
    assert ran(report) == {scenario.id for scenario in SCENARIOS}
    assert ran(report) >= SIXTEEN


def test_every_scenario_passes_with_the_example_of_every_key() -> None:
    report = rehearse(load(ROOT / "config.example.toml", {}).config)

    assert complaints(report) == {}
    assert ran(report) == {scenario.id for scenario in SCENARIOS}


@pytest.mark.parametrize(
    ("kind", "transport"), [("openai", "http1"), ("ollama", "http1"), ("openai", "httpx")]
)
def test_a_provider_without_another_ends_in_honest_errors(kind: str, transport: str) -> None:
    broken = some("503-persistent", "reset", "cut", "html", "empty", "connection-refused", "accounting")

    report = rehearse(alone(kind, transport), scenarios=broken)

    assert complaints(report) == {}
    caller = {result.id: result.caller for result in report.results if result.streamed}
    assert caller["503-persistent"] == "502 all_providers_failed, may try again"
    assert caller["cut"] == "stream_interrupted in the stream"
    assert caller["accounting"] == "there is no provider to go to"
    assert {result.id for result in report.results if result.verdict == "skipped"} == {"accounting"}


async def through(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> list[Message]:
    """Run *app* and keep what it sends."""
    kept: list[Message] = []

    async def keep(message: Message) -> None:
        kept.append(message)

    await app(scope, receive, keep)
    return kept


class Buffering:
    """A proxy that collects whole answers before it sends anything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for message in await through(self.app, scope, receive, send):
            await send(message)


class Flattering:
    """A proxy that ends broken streams as if all had been said."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def flatter(message: Message) -> None:
            if b'"stream_interrupted"' in message.get("body", b""):
                message = {**message, "body": b"data: [DONE]\n\n"}
            await send(message)

        await self.app(scope, receive, flatter)


class Unadvised:
    """A proxy that does not say whether a retry can help."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hide(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0] != b"x-should-retry"]
                message = {**message, "headers": kept}
            await send(message)

        await self.app(scope, receive, hide)


def wrapped_in(middleware: Any) -> Callable[..., Proxy]:
    def make(config: Config, **parts: Any) -> Proxy:
        proxy = Proxy(config, **parts)
        proxy.app = middleware(proxy.app)
        return proxy

    return make


def insistent(config: Config, **parts: Any) -> Proxy:
    """A proxy that asks more often than the policy allows."""
    retry = config.retry.model_copy(update={"attempts": config.retry.attempts + 1})
    return Proxy(config.model_copy(update={"retry": retry}), **parts)


def hasty(config: Config, **parts: Any) -> Proxy:
    """A proxy that waits for half of every limit."""
    waits = {name: seconds / 2 for name, seconds in config.timeouts.model_dump().items()}
    return Proxy(config.model_copy(update={"timeouts": config.timeouts.model_copy(update=waits)}), **parts)


def leaking(config: Config, **parts: Any) -> Proxy:
    """A proxy that does not give back what it took."""
    proxy = Proxy(config, **parts)
    proxy.upstreams[0].in_flight += 1
    return proxy


def never_opening(config: Config, **parts: Any) -> Proxy:
    """A proxy whose breakers hold far longer than they should."""
    breaker = config.breaker.model_copy(update={"failure_threshold": 1000})
    return Proxy(config.model_copy(update={"breaker": breaker}), **parts)


WHERE_STREAMS_BREAK = {
    *("cut", "cut-cleanly", "cut-tool-call", "stalled-stream", "stalled-with-pings"),
    *("malformed", "error-later"),
}


@pytest.mark.parametrize(
    ("make_proxy", "rescue", "wrong"),
    [
        pytest.param(
            wrapped_in(Buffering),
            "continue",
            {"live-tokens", "live-tokens-failover", "hang-up-mid-stream"},
            id="it buffers",
        ),
        pytest.param(wrapped_in(Flattering), "error", WHERE_STREAMS_BREAK, id="it hides that streams broke"),
        pytest.param(
            wrapped_in(Unadvised),
            "continue",
            {"all-down", "content-filter", "context-overflow-everywhere"},
            id="it gives no advice",
        ),
        pytest.param(
            insistent, "continue", {"503-persistent", "all-down", "error-first"}, id="it asks too often"
        ),
        pytest.param(never_opening, "continue", {"flapping", "half-open"}, id="its breakers never open"),
    ],
)
def test_a_proxy_that_is_wrong_fails_where_it_is_wrong_and_nowhere_else(
    tmp_path: Path, make_proxy: Callable[..., Proxy], rescue: str, wrong: set[str]
) -> None:
    path = tmp_path / "sentinel.toml"
    path.write_text(f'{QUICK}\n[rescue]\nmode = "{rescue}"\n')
    config = load(path, {"OPENAI_API_KEY": "sk-of-the-reader"}).config

    report = rehearse(config, make_proxy=make_proxy)

    assert {result.id for result in report.failed} == wrong, complaints(report)


def test_a_proxy_that_gives_up_too_early_fails_what_takes_time() -> None:
    waits = some("slow-first-token", "silence", "stalled-stream", "cut", "reset")

    report = rehearse(load(None, {}).config, make_proxy=hasty, scenarios=waits)

    assert {result.id for result in report.failed} == {"slow-first-token", "silence", "stalled-stream"}


def test_a_proxy_that_leaks_is_found_out_by_every_scenario() -> None:
    report = rehearse(load(None, {}).config, make_proxy=leaking, scenarios=some("500-once"))

    assert all(
        "holds a connection to openai" in told for result in report.failed for told in result.complaints
    )
    assert len(report.failed) == 2


def test_nothing_is_open_after_a_drill_that_is_interrupted() -> None:
    seen = []

    def interrupt(result: runner.Result) -> None:
        seen.append(result)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rehearse(load(None, {}).config, on_result=interrupt)

    assert len(seen) == 1


# As a person runs it


async def drill(*arguments: str, cwd: Path, **environ: str) -> tuple[int, str, str]:
    """Run the command; return its exit status and what it printed."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sentinel_proxy", "drill", *arguments),
        cwd=cwd,
        env=kept | {"PYTHONPATH": str(ROOT)} | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def watched(*upstreams: FaultyUpstream) -> str:
    """Return a configuration whose providers are *upstreams*."""
    first, second = upstreams
    return f"""{QUICK}
[[providers]]
name = "openai"
kind = "openai"
base_url = "{first.url}/v1"
api_key = "sk-of-the-reader"
[[providers]]
name = "ollama"
kind = "ollama"
base_url = "{second.url}"
"""


@pytest.mark.anyio
async def test_the_configured_providers_are_left_alone(
    primary: FaultyUpstream, backup: FaultyUpstream, tmp_path: Path
) -> None:
    (tmp_path / "sentinel.toml").write_text(watched(primary, backup))

    code, out, err = await drill("--config", "sentinel.toml", "--json", cwd=tmp_path)

    assert (primary.connections, backup.connections) == (0, 0)
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert set(document) == {"scenarios", "passed", "total"}
    assert document["passed"] == document["total"] > len(SCENARIOS)
    assert {tuple(entry) for entry in document["scenarios"]} == {
        ("id", "title", "verdict", "caller", "attempts", "seconds")
    }
    assert "sk-of-the-reader" not in out


def played(monkeypatch: pytest.MonkeyPatch, *ids: str, **parts: Any) -> None:
    """Let the command play these scenarios only."""
    monkeypatch.setattr("sentinel_proxy.drill.rehearse", partial(rehearse, scenarios=some(*ids), **parts))


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["drill", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_card_says_who_was_drilled_and_how_it_went(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played(monkeypatch, "500-once", "cut")

    code = command("--config", str(ROOT / "config.example.toml"))

    out = capsys.readouterr().out
    assert code == 0
    for words in ("config.example.toml", "openai", "no configured address", "500, once", "All 3 runs passed"):
        assert words in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_failed_scenario_is_told_by_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played(monkeypatch, "503-persistent", make_proxy=insistent)

    as_card, card = command(), capsys.readouterr().out
    as_json, (document, err) = command("--json"), capsys.readouterr()

    assert (as_card, as_json) == (1, 1)
    assert "openai was asked 3 times, not 2" in card
    assert [entry["verdict"] for entry in json.loads(document)["scenarios"]] == ["failed", "failed"]
    assert err.splitlines()[0] == "503-persistent: openai was asked 3 times, not 2"


def test_a_mistake_in_the_configuration_is_told_as_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sentinel.toml"
    path.write_text("[retry]\natempts = 3\n")

    code = command("--config", str(path))

    assert code == 2
    assert "attempts" in capsys.readouterr().err


def test_an_interrupted_drill_is_quiet_and_has_not_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr("sentinel_proxy.drill.rehearse", interrupted)

    code = command("--json")

    assert code == 130
    assert capsys.readouterr() == ("", "")


# Plugins


@pytest.fixture
def gemini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the example plugin."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    installed = tmp_path / f"sentinel_gemini-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    ((group, entries),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "key-of-gemini")


@pytest.mark.usefixtures("gemini")
def test_a_plugin_is_drilled_with_the_others() -> None:
    report = rehearse(
        load(None, {"OPENAI_API_KEY": "sk-of-the-reader"}).config,
        scenarios=some("503-persistent", "cut", "context-overflow", "live-tokens-failover", "accounting"),
    )

    assert complaints(report) == {}
    assert report.chain.names == ["openai", "gemini", "ollama"]
    assert {result.caller for result in report.ran} == {
        "an answer by gemini",
        "an answer, ended by gemini",
        "tokens of gemini, at once",
    }


def test_a_plugin_can_be_the_first_of_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    def gemini_first(registry: Registry) -> None:
        registry.register(GeminiProvider(api_key="key-of-gemini"), position=1)

    monkeypatch.setattr(Registry, "load_plugins", gemini_first)

    report = rehearse(
        load(None, {"OPENAI_API_KEY": "sk-of-the-reader"}).config,
        scenarios=some(
            "500-once",
            "reset",
            "cut",
            "cut-cleanly",
            "cut-tool-call",
            "malformed",
            "pings-only",
            "quota",
            "no-done",
        ),
    )

    assert complaints(report) == {}
    assert {result.id: result.caller for result in report.results if result.verdict == "skipped"} == {
        "cut-tool-call": "gemini calls no tools",
        "quota": "gemini has no such answer",
        "no-done": "streams of gemini have no such end",
    }


def test_a_plugin_that_cannot_be_drilled_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def undrillable(registry: Registry) -> None:
        registry.register(OpenAIProvider(name="of-a-plugin", base_url="http://192.0.2.1/v1"), position=2)

    monkeypatch.setattr(Registry, "load_plugins", undrillable)
    played(monkeypatch, "500-once")

    code = command()

    card = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert code == 0
    assert "of-a-plugin is left out: its plugin does not say how it can be drilled" in card
    assert re.search("openai (→|->) ollama", card)
