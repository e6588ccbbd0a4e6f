"""Where keys may go and where they may be read: a caller's own, and those of the proxy's clients."""

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Start, chain, unfinished

from sentinel_proxy.config import (
    BreakerConfig,
    ClientConfig,
    Config,
    HedgeConfig,
    LogConfig,
    ProviderConfig,
    RateLimitConfig,
    RetryConfig,
    TimeoutsConfig,
    load,
)
from sentinel_proxy.log import Log
from sentinel_proxy.model import Outcome
from sentinel_proxy.testing import (
    FaultyUpstream,
    Hang,
    Reset,
    Script,
    answer,
    ollama_stream,
    openai_completion,
    openai_error,
    openai_models,
    openai_stream,
)

pytestmark = pytest.mark.anyio

KEY = "sk-of-the-caller-alone"
OTHERS_KEY = "sk-of-another-vendor"
WEB_KEY = "a-key-that-web-shows-us"
CREDENTIALS = {
    "authorization": f"Bearer {KEY}",
    "api-key": KEY,
    "x-api-key": KEY,
    "x-goog-api-key": KEY,
    "cookie": f"session={KEY}",
    "openai-organization": f"org-{KEY}",
    "openai-project": f"proj-{KEY}",
}
PATIENT = TimeoutsConfig(connect=5, first_token=20, idle=20, progress=20, answer=20, total=60)
BROKEN: Script = unfinished(["one", " two"], Reset())


def provider(name: str, base_url: str, *, kind: str = "openai", **more: Any) -> ProviderConfig:
    return ProviderConfig.model_validate({"name": name, "kind": kind, "base_url": base_url, **more})


class Vendors:
    """Four servers in a chain: the callers' own, another vendor's with a key, one without, an Ollama."""

    def __init__(self, servers: list[FaultyUpstream]) -> None:
        self.first, self.keyed, self.keyless, self.ollama = self.all = servers

    def config(self, **sections: Any) -> Config:
        """Return a chain over all of them; only the first gets the callers' own keys."""
        providers = (
            provider("first", f"{self.first.url}/v1"),
            provider("keyed", f"{self.keyed.url}/v1", api_key=OTHERS_KEY),
            provider("keyless", f"{self.keyless.url}/v1"),
            provider("ollama", self.ollama.url, kind="ollama", models={"*": "llama3.2"}),
        )
        config = chain(self.first, **({"retry": RetryConfig(attempts=1)} | sections))
        return config.model_copy(update={"providers": providers})

    def those_that_saw(self, key: str) -> list[FaultyUpstream]:
        """Return the servers that were sent *key*, anywhere in a request."""
        return [each for each in self.all if any(key.encode() in sent.raw for sent in each.requests)]

    def those_asked(self) -> list[FaultyUpstream]:
        return [each for each in self.all if each.requests]


@pytest.fixture
async def vendors() -> AsyncIterator[Vendors]:
    async with AsyncExitStack() as stack:
        yield Vendors([await stack.enter_async_context(FaultyUpstream()) for _ in range(4)])


class TestTheCallersOwnKey:
    """It goes to the first provider of OpenAI's kind, and to nobody else on any path."""

    async def test_a_failover_does_not_take_it_along(self, start: Start, vendors: Vendors) -> None:
        for server in (vendors.first, vendors.keyed, vendors.keyless):
            server.always(openai_error(503))
        vendors.ollama.always(ollama_stream(["served"]))
        harness = await start(vendors.config())

        reply = await harness.chat(stream=True, headers=CREDENTIALS)

        assert "served" in reply.text
        assert vendors.those_asked() == vendors.all
        assert vendors.those_that_saw(KEY) == [vendors.first]
        assert vendors.those_that_saw(OTHERS_KEY) == [vendors.keyed]
        assert vendors.keyless.requests[0].header("authorization") is None

    async def test_a_hedge_does_not_take_it_along(self, start: Start, vendors: Vendors) -> None:
        vendors.first.always([Hang()])
        vendors.keyed.always(openai_stream(["quick"]))
        harness = await start(vendors.config(hedge=HedgeConfig(enabled=True, delay=0.02), timeouts=PATIENT))

        reply = await harness.chat(stream=True, headers=CREDENTIALS)

        assert reply.headers["x-sentinel-trail"] == "first:hedged,keyed:200"
        assert vendors.those_that_saw(KEY) == [vendors.first]

    @pytest.mark.parametrize("after", ["keyed", "keyless", "ollama"])
    async def test_a_rescue_does_not_take_it_along(self, after: str, start: Start, vendors: Vendors) -> None:
        vendors.first.always(BROKEN)
        for server in (vendors.keyed, vendors.keyless):
            server.always(openai_error(503))
        vendors.ollama.always(ollama_stream([" three"]))
        if after != "ollama":
            getattr(vendors, after).always(openai_stream([" three"]))
        harness = await start(vendors.config(timeouts=PATIENT))

        reply = await harness.chat(stream=True, headers=CREDENTIALS)

        assert "three" in reply.text
        assert [event.outcome for event in harness.finished()] == [Outcome.RESCUED]
        assert getattr(vendors, after).requests
        assert vendors.those_that_saw(KEY) == [vendors.first]

    async def test_a_path_that_is_streamed_through_does_not_take_it_along(
        self, start: Start, vendors: Vendors
    ) -> None:
        """The first provider rests, so the next one of its kind is asked: with its own key, or with none."""
        for server in (vendors.first, vendors.keyed, vendors.keyless):
            server.always(answer(200, b'{"data":[]}'))
        harness = await start(vendors.config())
        now = harness.proxy.clock.monotonic()

        asked = []
        for upstream in harness.proxy.upstreams[:3]:
            reply = await harness.client.post("/v1/files", content=b"a file", headers=CREDENTIALS)
            asked.append(reply.headers["x-sentinel-provider"])
            upstream.breakers.isolate(now, math.inf, "to see who is next")

        assert asked == ["first", "keyed", "keyless"]
        assert vendors.those_that_saw(KEY) == [vendors.first]

    async def test_a_list_of_all_models_and_the_simple_form_do_not_take_it_along(
        self, start: Start, vendors: Vendors
    ) -> None:
        for server in vendors.all:
            server.always(openai_models("gpt-4o-mini"))
        harness = await start(vendors.config())

        await harness.client.get("/v1/models", headers=CREDENTIALS)
        for server in vendors.all:
            server.always(openai_error(503))
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        await harness.client.post("/api/chat", json=body, headers=CREDENTIALS)

        assert vendors.those_asked() == vendors.all
        assert vendors.those_that_saw(KEY) == [vendors.first]

    async def test_a_call_that_begins_elsewhere_leaves_it_here(self, start: Start, vendors: Vendors) -> None:
        vendors.keyed.always(openai_completion("served"))
        harness = await start(vendors.config())

        reply = await harness.chat(headers=CREDENTIALS | {"x-sentinel-providers": "keyed"})

        assert reply.status_code == 200
        assert vendors.those_that_saw(KEY) == []

    async def test_a_probe_has_nobodys(self, start: Start, vendors: Vendors) -> None:
        for server in (vendors.first, vendors.keyed, vendors.keyless):
            server.always(openai_completion("served"))
        harness = await start(vendors.config())
        await harness.chat(headers=CREDENTIALS)
        before = len(vendors.first.requests)

        for upstream in harness.proxy.upstreams:
            await harness.proxy.health.probe(upstream.name)

        probes = vendors.first.requests[before:]
        assert probes
        assert not [probe for probe in probes if KEY.encode() in probe.raw]
        assert vendors.those_that_saw(KEY) == [vendors.first]


def client(name: str = "web", key: str = WEB_KEY, **more: Any) -> ClientConfig:
    return ClientConfig.model_validate({"name": name, "key": key, **more})


BEARER = {"authorization": f"Bearer {WEB_KEY}"}


class TestTheKeysOfClients:
    """They are the proxy's own: nobody else sees them, on any path."""

    @pytest.mark.parametrize(
        "fault", [openai_error(503), [Hang()], BROKEN], ids=["failover", "hedge", "rescue"]
    )
    async def test_no_provider_sees_one(self, fault: Script, start: Start, vendors: Vendors) -> None:
        vendors.first.always(fault)
        vendors.keyed.always(openai_stream([" three"]))
        hedge = HedgeConfig(enabled=True, delay=0.02)
        harness = await start(vendors.config(clients=(client(),), hedge=hedge, timeouts=PATIENT))

        reply = await harness.chat(stream=True, headers=BEARER)
        for server in vendors.all:
            server.always(answer(200, b'{"data":[]}'))
        await harness.client.post("/v1/files", content=b"a file", headers=BEARER)

        assert "three" in reply.text
        assert vendors.those_that_saw(WEB_KEY) == []
        assert vendors.those_that_saw(OTHERS_KEY) == [vendors.keyed]

    @pytest.mark.parametrize(
        "authorization",
        [
            "",
            WEB_KEY,
            f"Basic {WEB_KEY}",
            f"Bearer {WEB_KEY}x",
            f"Bearer {WEB_KEY[:-1]}",
            f"Bearer {WEB_KEY.upper()}",
            "Bearer",
            f"Bearer {sha256(WEB_KEY.encode()).hexdigest()}",
        ],
        ids=["none", "bare", "basic", "longer", "shorter", "in capitals", "empty", "its digest"],
    )
    async def test_only_the_very_key_opens(self, authorization: str, start: Start, vendors: Vendors) -> None:
        harness = await start(vendors.config(clients=(client(),)))

        reply = await harness.chat(headers={"authorization": authorization} if authorization else {})

        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert vendors.those_asked() == []

    async def test_no_face_of_the_proxy_shows_one(self, start: Start, vendors: Vendors) -> None:
        """K10: not as it is, not as its digest."""
        for server in vendors.all:
            server.always(openai_error(500))
        vendors.first.plays(openai_completion("served"), openai_error(400), openai_error(401))
        rest = BreakerConfig(failure_threshold=100)
        limit = RateLimitConfig(requests=4, window=60)
        harness = await start(vendors.config(clients=(client(),), breaker=rest, rate_limit=limit))
        stream = io.BytesIO()
        log = Log(LogConfig(level="debug"), stream)
        log.listen(harness.proxy.bus)

        replies = [await harness.chat(headers=BEARER) for _ in range(6)]
        replies.append(await harness.chat(headers={"authorization": f"Bearer {WEB_KEY}-but-wrong"}))
        shown = [await harness.client.get(path) for path in FACES]
        log.sink.close()

        assert {reply.status_code for reply in replies} >= {200, 401, 429}
        assert {reply.status_code for reply in shown} == {200}
        texts = {
            "log": stream.getvalue().decode(),
            "repr": f"{harness.proxy!r} {harness.proxy.config!r} {harness.events!r} {vars(harness.proxy)!r}",
            **{f"answer {index}": whole(reply) for index, reply in enumerate(replies)},
            **{reply.request.url.path: whole(reply) for reply in shown},
        }
        digest = sha256(WEB_KEY.encode())
        for name, text in texts.items():
            for secret in (WEB_KEY, digest.hexdigest(), repr(digest.digest())):
                assert secret not in text, name

    async def test_a_caller_who_is_let_in_without_a_key_is_counted_by_its_address(
        self, start: Start, vendors: Vendors
    ) -> None:
        """Whoever may invent keys would otherwise never meet the limit."""
        vendors.first.always(openai_completion("served"))
        harness = await start(vendors.config(rate_limit=RateLimitConfig(requests=2, window=60)))

        statuses = [
            (await harness.chat(headers={"authorization": f"Bearer sk-invented-{number}"})).status_code
            for number in range(3)
        ]

        assert statuses == [200, 200, 429]


FACES = (
    "/health",
    "/metrics",
    "/api/config",
    "/api/metrics",
    "/api/events",
    "/api/incidents",
    "/api/providers/status",
    "/api/openapi.json",
    "/docs",
    "/dashboard",
)


def whole(reply: httpx.Response) -> str:
    """Return head and body of an answer."""
    return f"{reply.headers!r} {reply.text}"


FILE = f"""
[[providers]]
name = "openai"
kind = "openai"
base_url = "https://llm.example/v1"

[admin]
token = "a-token-of-operators"

[state]
url = "sqlite://"

[[clients]]
name = "web"
key = "{WEB_KEY}"
"""


def checked(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sentinel_proxy", "check-config", "--config", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={})


@pytest.mark.parametrize(
    "mistake",
    ["", "\n[log]\nlevel = 5", f'\n[[clients]]\nname = "batch"\nkey = "{WEB_KEY}"', f'\nkeys = "{WEB_KEY}"'],
    ids=["none", "of another key", "the same key twice", "in the name of a key"],
)
def test_a_check_of_the_configuration_shows_no_key(mistake: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(FILE + mistake)

    done = checked(file)

    assert (done.returncode == 0) is (mistake == "")
    assert "web" in done.stdout + done.stderr or mistake
    assert WEB_KEY not in done.stdout + done.stderr


def test_a_configuration_does_not_show_keys_when_it_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(FILE)
    config = load(file, environ={}).config

    told = f"{config!r} {config} {config.clients!r} {config.model_dump()!r} {config.model_dump_json()}"

    assert "web" in told
    assert not re.search(f"{WEB_KEY}|a-token-of-operators", told)
    assert json.loads(config.model_dump_json())["clients"][0]["name"] == "web"
