"""What operators ask and order over HTTP, of a real proxy between simulated providers."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from admin_support import BEARER, assert_as_described, described, operations, simulated_chain, with_token
from harness import Harness, Start, chain, eventually
from openai_schema import assert_valid
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from sentinel_proxy.app import Proxy
from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import BreakerConfig, ClientConfig, ServerConfig, StateConfig, load
from sentinel_proxy.events import Noticed
from sentinel_proxy.middleware.security_headers import SECURITY_HEADERS
from sentinel_proxy.model import UpstreamRequest
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.providers.registry import Registry
from sentinel_proxy.testing import FaultyUpstream, Outage, SimulatedOllama, SimulatedOpenAI

pytestmark = pytest.mark.anyio

READABLE = [
    path for path, method, _ in operations() if method == "GET" and path.startswith(("/api/", "/docs"))
]
ORDERS = ["/api/providers/openai/probe", "/api/providers/openai/breaker"]


async def status(proxy: Harness, name: str = "openai") -> dict[str, Any]:
    found: dict[str, Any] = (await proxy.client.get("/api/providers/status")).json()[name]
    return found


async def order(proxy: Harness, name: str, **fields: Any) -> httpx.Response:
    return await proxy.client.post(f"/api/providers/{name}/breaker", json=fields)


async def break_down(proxy: Harness, openai: SimulatedOpenAI) -> None:
    """Let the first of the chain fail until its breaker is open."""
    await openai.outage(Outage.REFUSE)
    for _ in range(3):
        await proxy.chat()


# What can be read, however the providers are.


@pytest.mark.parametrize("path", [*READABLE, "/health", "/livez", "/readyz", "/metrics", "/v1/models"])
@pytest.mark.parametrize("state", ["fresh", "healthy", "failing", "recovering", "recovered", "isolated"])
async def test_every_answer_is_as_described(
    proxy: Harness, openai: SimulatedOpenAI, path: str, state: str
) -> None:
    if state != "fresh":
        await proxy.chat()
        await proxy.client.post("/api/providers/openai/probe")
    if state in ("failing", "recovering", "recovered"):
        await break_down(proxy, openai)
    if state in ("recovering", "recovered"):
        await openai.recover()
        await eventually(lambda: proxy.proxy.upstreams[0].breakers.own.rest(SystemClock.monotonic()) == 0)
        proxy.proxy.upstreams[0].breakers.own.acquire(SystemClock.monotonic()).release(0)
    if state == "recovered":
        await proxy.chat()
    if state == "isolated":
        await order(proxy, "openai", action="isolate", reason="maintenance")

    reply = await proxy.client.get(path)

    assert reply.status_code == 200
    assert_as_described(reply, path)


async def test_the_status_tells_an_outage_from_its_beginning_to_its_end(
    proxy: Harness, openai: SimulatedOpenAI
) -> None:
    seen = [await status(proxy)]
    await break_down(proxy, openai)
    seen.append(await status(proxy))
    await openai.recover()
    await eventually(lambda: proxy.proxy.upstreams[0].breakers.own.rest(SystemClock.monotonic()) == 0)
    seen.append(await status(proxy))
    await proxy.chat()
    seen.append(await status(proxy))

    told = [(each["status"], each["routable"], each["circuit_breaker"]["state"]) for each in seen]
    assert told == [
        ("healthy", True, "closed"),
        ("down", False, "open"),
        ("degraded", True, "open"),
        ("healthy", True, "closed"),
    ]
    assert [each["success_rate_pct"] for each in seen] == [None, 0.0, 0.0, 25.0]
    assert [each["circuit_breaker"]["reason"] for each in seen[1:]] == [
        "connect",
        "connect",
        "a trial succeeded",
    ]


async def test_providers_are_in_the_order_of_the_chain(proxy: Harness) -> None:
    providers = (await proxy.client.get("/api/providers/status")).json()

    assert [(name, each["position"], each["kind"]) for name, each in providers.items()] == [
        ("openai", 1, "openai"),
        ("ollama", 2, "ollama"),
    ]


async def test_times_go_outward_on_the_wall_clock(proxy: Harness, openai: SimulatedOpenAI) -> None:
    before = SystemClock.time()
    await break_down(proxy, openai)

    breaker = (await status(proxy))["circuit_breaker"]

    since, until = (datetime.fromisoformat(breaker[name]).timestamp() for name in ("since", "until"))
    assert before - 0.01 <= since <= SystemClock.time()
    assert until - since == pytest.approx(0.4, abs=0.002)


async def test_the_numbers_are_those_of_the_calls(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, breaker=BreakerConfig(recovery_timeout=60)))
    await proxy.chat()
    await break_down(proxy, openai)
    await proxy.client.post("/v1/chat/completions", content=b"{")

    numbers = (await proxy.client.get("/api/metrics")).json()

    expected = {
        "total_requests": 5,
        "total_successes": 4,
        "total_failures": 0,
        "total_failovers": 3,
        "total_rescues": 0,
        "total_shed": 0,
        "total_rate_limited": 0,
        "active_provider": "ollama",
        "in_flight": 0,
        "open_streams": 0,
        "event_subscribers": 0,
    }
    assert {name: numbers[name] for name in expected} == expected
    assert numbers["tokens"]["total"] == numbers["tokens"]["prompt"] + numbers["tokens"]["completion"] > 0
    assert numbers["avg_latency_ms"] > 0
    assert numbers["uptime_seconds"] > 0


async def test_where_nobody_is_routable_nobody_is_active(proxy: Harness) -> None:
    for name in ("openai", "ollama"):
        await order(proxy, name, action="isolate", reason="maintenance")

    assert (await proxy.client.get("/api/metrics")).json()["active_provider"] is None


async def test_secrets_of_the_configuration_are_masked(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, admin=with_token()))

    reply = await proxy.client.get("/api/config", headers=BEARER)

    assert reply.json()["providers"][0]["api_key"] == reply.json()["admin"]["token"] == "****"
    assert "sk-of-the-proxy" not in reply.text
    assert BEARER["Authorization"].split()[1] not in reply.text


async def test_operators_are_answered_while_the_proxy_drains(proxy: Harness) -> None:
    proxy.proxy.load.draining = True

    assert (await proxy.client.get("/api/providers/status")).status_code == 200


# Incidents.


async def test_incidents_are_found_by_what_they_are(proxy: Harness, openai: SimulatedOpenAI) -> None:
    await break_down(proxy, openai)
    await order(proxy, "ollama", action="isolate", reason="maintenance")

    async def types(query: str) -> list[str]:
        found = (await proxy.client.get(f"/api/incidents?{query}")).json()["incidents"]
        return [incident["type"] for incident in found]

    assert await types("") == ["breaker_isolated", "outage_detected", "failover_triggered"]
    assert await types("provider=openai&type=&since=") == ["outage_detected", "failover_triggered"]
    assert await types("type=failover_triggered") == ["failover_triggered"]
    assert await types("limit=1") == ["breaker_isolated"]
    assert await types(f"since={SystemClock.time() + 60}") == []


async def test_incidents_are_read_page_by_page(proxy: Harness, openai: SimulatedOpenAI) -> None:
    await break_down(proxy, openai)
    await order(proxy, "ollama", action="isolate", reason="maintenance")

    first = (await proxy.client.get("/api/incidents?limit=2")).json()
    second = (await proxy.client.get(f"/api/incidents?limit=2&before={first['incidents'][-1]['id']}")).json()

    assert [len(page["incidents"]) for page in (first, second)] == [2, 1]
    assert first["total"] == 3
    ids = [incident["id"] for page in (first, second) for incident in page["incidents"]]
    assert ids == sorted(ids, reverse=True)


# Events over HTTP.


async def test_events_are_told_once_to_whoever_asks_again(proxy: Harness, openai: SimulatedOpenAI) -> None:
    first = (await proxy.client.get("/api/events")).json()
    await break_down(proxy, openai)
    second = (await proxy.client.get(f"/api/events?since={first['last_id']}")).json()
    third = (await proxy.client.get(f"/api/events?since={second['last_id']}")).json()

    assert [event["payload"]["message"] for event in first["events"]] == ["ready"]
    assert {event["event_type"] for event in second["events"]} == {"incident", "provider_status"}
    assert (third["events"], third["last_id"]) == ([], second["last_id"])
    assert not any(page["missed"] for page in (first, second, third))


async def test_events_are_filtered_by_type(proxy: Harness, openai: SimulatedOpenAI) -> None:
    await break_down(proxy, openai)

    told = (await proxy.client.get("/api/events?types=incident")).json()["events"]

    assert {event["event_type"] for event in told} == {"incident"}


async def test_forgotten_events_are_missed(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, state=StateConfig(events=2)))
    first = (await proxy.client.get("/api/events")).json()
    for _ in range(3):
        await order(proxy, "openai", action="reset")

    told = (await proxy.client.get(f"/api/events?since={first['last_id']}")).json()

    assert (len(told["events"]), told["missed"]) == (2, True)


# Orders.


async def test_an_isolated_provider_gets_no_calls(proxy: Harness, openai: SimulatedOpenAI) -> None:
    reply = await order(proxy, "openai", action="isolate", reason="key rotation", author="ada")

    assert_as_described(reply, "/api/providers/{name}/breaker")
    breaker = reply.json()["circuit_breaker"]
    assert (breaker["state"], breaker["reason"]) == ("isolated", "key rotation (ada)")
    answer = await proxy.chat()
    assert answer.headers["x-sentinel-trail"] == "openai:open,ollama:200"
    assert openai.asked["POST /v1/chat/completions"] == 0


async def test_an_isolation_lasts_an_hour_unless_said_otherwise(proxy: Harness) -> None:
    breaker = (await order(proxy, "openai", action="isolate", reason="x")).json()["circuit_breaker"]

    since, until = (datetime.fromisoformat(breaker[name]).timestamp() for name in ("since", "until"))
    assert until - since == pytest.approx(3600, abs=0.01)


async def test_an_isolation_ends_by_itself(proxy: Harness) -> None:
    await order(proxy, "openai", action="isolate", reason="x", seconds=0.03)
    breaker = proxy.proxy.upstreams[0].breakers.own
    await eventually(lambda: breaker.rest(SystemClock.monotonic()) == 0)

    answer = await proxy.chat()

    assert answer.headers["x-sentinel-trail"] == "openai:200"
    assert (await status(proxy))["circuit_breaker"]["state"] == "closed"


async def test_a_new_order_takes_the_place_of_the_old(proxy: Harness) -> None:
    await order(proxy, "openai", action="isolate", reason="first", seconds=10)

    breaker = (
        await order(proxy, "openai", action="isolate", reason="second", author="bob", seconds=100)
    ).json()["circuit_breaker"]

    assert breaker["reason"] == "second (bob)"
    assert datetime.fromisoformat(breaker["until"]).timestamp() > SystemClock.time() + 90


async def test_a_reset_provider_is_called_again(proxy: Harness, openai: SimulatedOpenAI) -> None:
    await break_down(proxy, openai)
    await openai.recover()

    reply = await order(proxy, "openai", action="reset", reason="fixed by hand")

    assert reply.json()["circuit_breaker"] | {"since": None} == {
        "state": "closed",
        "since": None,
        "until": None,
        "failures": 0,
        "reason": "fixed by hand (127.0.0.1)",
        "model": None,
    }
    assert (await proxy.chat()).headers["x-sentinel-trail"] == "openai:200"


async def test_a_reset_ends_an_isolation(proxy: Harness) -> None:
    await order(proxy, "openai", action="isolate", reason="x")

    await order(proxy, "openai", action="reset")

    found = (await proxy.client.get("/api/incidents?type=breaker_isolated")).json()["incidents"]
    assert [incident["resolved_at"] is not None for incident in found] == [True]
    assert (await proxy.chat()).headers["x-sentinel-provider"] == "openai"


async def test_every_order_is_reported_with_its_author(proxy: Harness) -> None:
    await order(proxy, "openai", action="isolate", reason="x", author="ada", seconds=5)
    await order(proxy, "openai", action="reset", author="bob")

    orders = [event for event in proxy.events if isinstance(event, Noticed) and "author" in event.details]
    assert [(event.message, event.details) for event in orders] == [
        ("provider isolated", {"provider": "openai", "author": "ada", "reason": "x", "seconds": 5.0}),
        ("breaker reset", {"provider": "openai", "author": "bob", "reason": "reset by an operator"}),
    ]


async def test_the_author_is_the_address_that_counts(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    server = ServerConfig(trusted_proxies=("127.0.0.1",))
    proxy = await start(simulated_chain(openai, ollama, server=server, admin=with_token()))

    reply = await proxy.client.post(
        "/api/providers/openai/breaker",
        json={"action": "reset"},
        headers=BEARER | {"X-Forwarded-For": "203.0.113.9"},
    )

    assert "203.0.113.9" in proxy.events[-1].details["author"]  # type: ignore[union-attr]
    assert reply.status_code == 200


async def test_a_probe_asks_now(proxy: Harness, openai: SimulatedOpenAI) -> None:
    reply = await proxy.client.post("/api/providers/openai/probe")

    assert_as_described(reply, "/api/providers/{name}/probe")
    assert (reply.json()["provider"], reply.json()["ok"]) == ("openai", True)
    assert openai.asked["GET /v1/models"] == 1
    assert (await status(proxy))["last_probe"]["what"] == reply.json()["what"]


async def test_a_failing_probe_says_so_and_votes(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    breaker = BreakerConfig(failure_threshold=2)
    proxy = await start(simulated_chain(openai, ollama, breaker=breaker))
    await openai.outage(Outage.UNAVAILABLE)

    replies = [await proxy.client.post("/api/providers/openai/probe") for _ in range(2)]

    assert [(reply.status_code, reply.json()["verdict"]) for reply in replies] == [(200, "failed")] * 2
    assert (await status(proxy))["circuit_breaker"]["state"] == "open"


# What is wrong is said precisely, and nothing else is affected.

BAD: list[tuple[str, str, Any, int, str, str | None]] = [
    ("POST", "/api/providers/nobody/probe", None, 404, "unknown_provider", None),
    ("POST", "/api/providers/nobody/breaker", {"action": "reset"}, 404, "unknown_provider", None),
    ("GET", "/api/incidents?limit=-1", None, 400, "invalid_value", "limit"),
    ("GET", "/api/incidents?limit=0", None, 400, "invalid_value", "limit"),
    ("GET", "/api/incidents?limit=99999999999999999999", None, 400, "invalid_value", "limit"),
    ("GET", "/api/incidents?type=nonsense", None, 400, "invalid_value", "type"),
    ("GET", "/api/incidents?provider=nobody", None, 400, "invalid_value", "provider"),
    ("GET", "/api/incidents?since=yesterday", None, 400, "invalid_value", "since"),
    ("GET", "/api/incidents?before=1", None, 400, "invalid_value", "before"),
    ("GET", "/api/incidents?offset=5", None, 400, "unknown_parameter", "offset"),
    ("GET", "/api/events?since=xyz", None, 400, "invalid_value", "since"),
    ("GET", "/api/events?types=incident,nonsense", None, 400, "invalid_value", "types"),
    ("GET", "/api/events?token=x", None, 400, "unknown_parameter", "token"),
    ("GET", "/api/metrics?x=1", None, 400, "unknown_parameter", "x"),
    ("POST", "/api/providers/openai/breaker", b"", 400, "invalid_json", None),
    ("POST", "/api/providers/openai/breaker", [], 400, "invalid_type", None),
    ("POST", "/api/providers/openai/breaker", {}, 400, "invalid_value", "action"),
    ("POST", "/api/providers/openai/breaker", {"action": "open"}, 400, "invalid_value", "action"),
    (
        "POST",
        "/api/providers/openai/breaker",
        {"action": "isolate"},
        400,
        "missing_required_parameter",
        "reason",
    ),
    (
        "POST",
        "/api/providers/openai/breaker",
        {"action": "reset", "seconds": 5},
        400,
        "invalid_value",
        "seconds",
    ),
    (
        "POST",
        "/api/providers/openai/breaker",
        {"action": "reset", "by": "me"},
        400,
        "unknown_parameter",
        "by",
    ),
    (
        "POST",
        "/api/providers/openai/breaker",
        {"action": "isolate", "reason": "x", "seconds": -1},
        400,
        "invalid_value",
        "seconds",
    ),
    ("POST", "/api/providers/openai/breaker", b"x" * 20_000, 413, "request_too_large", None),
    ("DELETE", "/api/config", None, 405, "method_not_allowed", None),
    ("GET", "/api/providers/openai/breaker", None, 405, "method_not_allowed", None),
    ("GET", "/api/chat", None, 405, "method_not_allowed", None),
    ("GET", "/api/nothing", None, 404, "unknown_url", None),
    ("GET", "/ws/system-events", None, 404, "unknown_url", None),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status_code", "code", "param"),
    BAD,
    ids=[
        f"{method} {path} {json.dumps(body)[:40] if not isinstance(body, bytes) else body[:5]!r}"
        for method, path, body, *_ in BAD
    ],
)
async def test_a_mistake_is_told_precisely_and_changes_nothing(
    proxy: Harness, method: str, path: str, body: Any, status_code: int, code: str, param: str | None
) -> None:
    before = await status(proxy)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()

    reply = await proxy.client.request(method, path, content=content)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status_code, code, param)
    assert_valid("ErrorResponse", reply.json())
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-sentinel-trace-id"]
    assert (await status(proxy)) == before
    assert (await proxy.chat()).status_code == 200


class Stumbling(OpenAIProvider):
    """A plugin with a mistake in it."""

    def probe(self) -> UpstreamRequest:
        raise RuntimeError("sk-a-secret")


async def test_a_mistake_of_ours_is_answered_and_reported(
    start: Start, primary: FaultyUpstream, openai: SimulatedOpenAI
) -> None:
    config = chain(primary)
    registry = Registry()
    registry.register(Stumbling.from_config(config.providers[0], passes_caller_key=False))
    proxy = await start(config, registry=registry)

    reply = await proxy.client.post("/api/providers/openai/probe")

    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    notices = [event for event in proxy.events if isinstance(event, Noticed) and event.level == "error"]
    assert [notice.details["kind"] for notice in notices] == ["RuntimeError"]
    assert "sk-a-secret" not in reply.text + repr(notices)


# Who may.


@pytest.fixture
async def guarded(start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Harness:
    return await start(simulated_chain(openai, ollama, admin=with_token()))


def behind_the_token() -> Iterator[tuple[str, str]]:
    """Yield every operators' face but the page without data, which asks for the token itself."""
    for path, method, operation in operations():
        wants = "401" in operation["responses"] and operation["tags"] == ["operators"]
        if wants and "x-websocket-frame" not in operation:
            yield method, path.replace("{name}", "openai")


@pytest.mark.parametrize(("method", "path"), [*behind_the_token()])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["missing", "wrong"])
async def test_every_face_wants_the_token(
    guarded: Harness, method: str, path: str, headers: dict[str, str]
) -> None:
    refused = await guarded.client.request(method, path, headers=headers)
    allowed = await guarded.client.request(method, path, headers=BEARER, json={"action": "reset"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_admin_token")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert allowed.status_code == 200


async def test_what_is_not_an_operators_stays_open(guarded: Harness) -> None:
    replies = [
        await guarded.client.get(path) for path in ("/health", "/livez", "/readyz", "/metrics", "/v1/models")
    ]

    assert {reply.status_code for reply in replies} == {200}
    assert (
        await guarded.client.post("/api/chat", json={"messages": [{"role": "user", "content": "Hi"}]})
    ).is_success


async def test_a_token_of_operators_is_no_key_of_clients(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    clients = (ClientConfig.model_validate({"name": "web", "key": "a-key-of-web"}),)
    proxy = await start(simulated_chain(openai, ollama, admin=with_token(), clients=clients))

    as_operator = await proxy.client.get("/api/config", headers={"Authorization": "Bearer a-key-of-web"})
    as_client = await proxy.chat(headers=BEARER)

    assert (as_operator.status_code, as_client.status_code) == (401, 401)


@pytest.mark.parametrize("path", ORDERS)
async def test_a_foreign_page_gives_no_orders(proxy: Harness, path: str) -> None:
    """CSRF: a browser sends a simple POST for any page, from its reader's own machine."""
    headers = {"Origin": "http://evil.example", "Content-Type": "text/plain"}

    reply = await proxy.client.post(path, headers=headers, content=b'{"action": "reset"}')

    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_origin")


async def test_our_own_page_may_give_them(proxy: Harness) -> None:
    reply = await proxy.client.post(ORDERS[1], headers={"Origin": proxy.url}, json={"action": "reset"})

    assert reply.status_code == 200


async def test_a_forwarded_stranger_is_refused(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, server=ServerConfig(trusted_proxies=("127.0.0.1",))))

    stranger = await proxy.client.get("/api/config", headers={"X-Forwarded-For": "203.0.113.9"})
    neighbour = await proxy.client.get("/api/config", headers={"X-Forwarded-For": "127.0.0.1"})

    assert (stranger.status_code, stranger.json()["error"]["code"]) == (403, "loopback_only")
    assert neighbour.status_code == 200


# Security headers.


@pytest.mark.parametrize("path", [*READABLE, "/api/incidents?limit=0"])
async def test_browsers_are_told_to_be_careful(proxy: Harness, path: str) -> None:
    reply = await proxy.client.get(path)

    for name, value in SECURITY_HEADERS:
        if name != b"content-security-policy":
            assert reply.headers[name.decode()] == value.decode()
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]


async def test_refusals_are_not_left_out(guarded: Harness) -> None:
    reply = await guarded.client.get("/docs")

    assert reply.status_code == 401
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_answers_of_the_api_are_left_alone(proxy: Harness) -> None:
    assert "content-security-policy" not in (await proxy.chat()).headers


# The description.


def served(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from served(route.routes)
        elif isinstance(route, WebSocketRoute):
            yield route.path, "GET"
        else:
            assert isinstance(route, Route)
            for method in (route.methods or set()) - {"HEAD"}:
                yield route.path.replace(":path", ""), method


def test_what_is_served_is_described_and_nothing_else() -> None:
    assert set(served(Proxy(load(None, {}).config).router.routes)) == {
        (path, method) for path, method, _ in operations()
    }


async def test_the_description_is_served(proxy: Harness) -> None:
    document = (await proxy.client.get("/api/openapi.json")).json()

    assert document["paths"] == described()["paths"]
    assert document["openapi"] == "3.1.0"


def test_every_reference_leads_somewhere() -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described())))

    assert names <= set(described()["components"]["schemas"])


class Page(HTMLParser):
    """Checks that tags are closed as they were opened, and collects text and links."""

    EMPTY = frozenset(("meta", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if (link := values.get("href") or values.get("src")) is not None:
            self.links.append(link)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_is_whole_and_mentions_every_path(proxy: Harness) -> None:
    page = Page()
    page.feed((await proxy.client.get("/docs")).text)
    page.close()

    assert page.open == []
    assert [path for path, _, _ in operations() if path not in page.text] == []


async def test_the_page_needs_nothing_from_anywhere(proxy: Harness) -> None:
    page = Page()
    page.feed((await proxy.client.get("/docs")).text)

    assert [link for link in page.links if not link.startswith("#")] == ["/api/openapi.json"]
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids


async def test_the_page_may_have_its_own_style_and_no_other(proxy: Harness) -> None:
    reply = await proxy.client.get("/docs")
    style = reply.text.partition("<style>")[2].partition("</style>")[0]

    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in reply.headers["content-security-policy"]
    assert "default-src 'none'" in reply.headers["content-security-policy"]


async def test_a_usual_answer_is_as_described(proxy: Harness) -> None:
    reply = await proxy.client.post("/api/chat", json={"messages": [{"role": "user", "content": "Hi"}]})

    assert_as_described(reply, "/api/chat")
