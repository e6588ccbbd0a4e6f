"""
Requests that are wrong: one clear error in OpenAI's shape, nothing sent upstream, nobody blamed.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from harness import CHAT, Harness, Start, chain, eventually, started
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_schema import assert_valid

from sentinel_proxy.api import relay
from sentinel_proxy.config import ServerConfig
from sentinel_proxy.events import Noticed
from sentinel_proxy.model import Call, ReplyHead, UpstreamRequest
from sentinel_proxy.providers.base import Decoder, Provider
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.providers.registry import Registry
from sentinel_proxy.testing import (
    FaultyUpstream,
    Received,
    Script,
    openai_chunks,
    openai_completion,
    openai_stream,
    sse_stream,
)

pytestmark = pytest.mark.anyio

LIMIT = 2000
CHAT_PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def as_openai(request: Received) -> Script:
    try:
        return sse_stream(openai_chunks(["ok"])) if request.json().get("stream") else openai_completion("ok")
    except ValueError:
        return openai_completion("ok")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """As elsewhere, but for the whole module, so that its proxy can be shared."""
    return "asyncio"


@pytest.fixture(scope="module")
async def upstream(anyio_backend: str) -> AsyncIterator[FaultyUpstream]:
    async with FaultyUpstream() as upstream:
        yield upstream.always(as_openai)


@pytest.fixture(scope="module")
async def shared(upstream: FaultyUpstream) -> AsyncIterator[Harness]:
    """A proxy that accepts small bodies only; a test that leaves anything behind breaks the next."""
    limits = ServerConfig(max_body_bytes=LIMIT, max_upload_bytes=LIMIT)
    async with started(chain(upstream, server=limits)) as harness:
        yield harness


@pytest.fixture
async def harness(shared: Harness, upstream: FaultyUpstream) -> AsyncIterator[Harness]:
    """The proxy, which must come out of every test as it went in, having asked nobody."""
    upstream.requests.clear()
    yield shared
    assert upstream.requests == []
    await eventually(shared.idle)
    assert shared.proxy.upstreams[0].breakers.own.failures == 0


def assert_refused(reply: httpx.Response, status: int, code: str | None, param: str | None = None) -> None:
    error = reply.json()["error"]
    assert_valid("ErrorResponse", reply.json())
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-sentinel-error-source"] == "proxy"
    assert reply.headers["x-sentinel-attempts"] == "0"
    assert reply.headers["x-sentinel-failover"] == "false"
    assert len(reply.headers["x-sentinel-trace-id"]) == 32


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CHAT.items() if key != name}


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        (CHAT_PATH, b"", "invalid_json", None),
        (CHAT_PATH, b"{", "invalid_json", None),
        (CHAT_PATH, b'{"model": "m", "messages": [NaN]}', "invalid_json", None),
        (CHAT_PATH, b"\xff\xfe", "invalid_json", None),
        (CHAT_PATH, b"[" * 1500, "invalid_json", None),
        (CHAT_PATH, b"[]", "invalid_type", None),
        (CHAT_PATH, b'"a prompt"', "invalid_type", None),
        (CHAT_PATH, b"null", "invalid_type", None),
        (CHAT_PATH, without("model"), "missing_required_parameter", "model"),
        (CHAT_PATH, without("messages"), "missing_required_parameter", "messages"),
        (CHAT_PATH, CHAT | {"model": None}, "missing_required_parameter", "model"),
        (CHAT_PATH, CHAT | {"model": 4}, "invalid_type", "model"),
        (CHAT_PATH, CHAT | {"model": ""}, "invalid_value", "model"),
        (CHAT_PATH, CHAT | {"messages": "Hi"}, "invalid_type", "messages"),
        (CHAT_PATH, CHAT | {"messages": []}, "invalid_value", "messages"),
        (CHAT_PATH, CHAT | {"stream": "yes"}, "invalid_type", "stream"),
        ("/v1/completions", {"model": "m"}, "missing_required_parameter", "prompt"),
        ("/v1/embeddings", {"model": "m", "input": 7}, "invalid_type", "input"),
        ("/v1/responses", {"model": "m"}, "missing_required_parameter", "input"),
        ("/api/chat", {}, "missing_required_parameter", "messages"),
        ("/api/chat", {"messages": [], "top_p": 1}, "unknown_parameter", "top_p"),
    ],
    ids=lambda value: None if not isinstance(value, str | bytes) else str(value)[:24],
)
async def test_a_wrong_body_is_refused_with_the_field_at_fault(
    harness: Harness, path: str, body: Any, code: str, param: str | None
) -> None:
    """E08."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    reply = await harness.client.post(path, content=content, headers=JSON)

    assert_refused(reply, 400, code, param)
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-request-id"] == reply.headers["x-sentinel-trace-id"]
    assert harness.finished()[-1].outcome == "caller_error"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x-sentinel-providers": "openai,gemini"}, "unknown_provider"),
        ({"x-sentinel-timeout": "soon"}, "invalid_value"),
        ({"x-sentinel-timeout": "-1"}, "invalid_value"),
        ({"x-sentinel-timeout": "inf"}, "invalid_value"),
        ({"x-sentinel-first-token-timeout": "0"}, "invalid_value"),
        ({"x-sentinel-no-failover": "perhaps"}, "invalid_value"),
        ({"x-sentinel-rescue": "please"}, "invalid_value"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/files"], ids=["inference", "streamed through"])
async def test_a_control_that_means_nothing_is_refused(
    harness: Harness, headers: dict[str, str], code: str, path: str
) -> None:
    reply = await harness.client.post(path, json=CHAT, headers=headers)

    assert_refused(reply, 400, code)


async def in_chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 500):
        yield b" " * 500


class TestTooLarge:
    """E07."""

    @pytest.mark.parametrize("path", [CHAT_PATH, "/v1/files"], ids=["inference", "streamed through"])
    async def test_a_declared_length_over_the_limit_is_refused_unread(
        self, harness: Harness, path: str
    ) -> None:
        reply = await harness.client.post(path, content=b" " * (LIMIT + 1), headers=JSON)

        assert_refused(reply, 413, "request_too_large")

    async def test_a_chunked_body_is_refused_at_the_limit(self, harness: Harness) -> None:
        reply = await harness.client.post(CHAT_PATH, content=in_chunks(LIMIT + 1000), headers=JSON)

        assert_refused(reply, 413, "request_too_large")

    async def test_a_body_of_just_the_limit_is_accepted(
        self, shared: Harness, upstream: FaultyUpstream
    ) -> None:
        body = json.dumps(CHAT).encode().ljust(LIMIT)

        reply = await shared.client.post(CHAT_PATH, content=body, headers=JSON)

        assert reply.status_code == 200
        assert upstream.requests[-1].body == body


async def test_a_chunked_upload_over_the_limit_is_cut_short_upstream(
    shared: Harness, upstream: FaultyUpstream
) -> None:
    """What was sent on of it must not look like a whole request."""
    upstream.requests.clear()

    reply = await shared.client.post("/v1/files", content=in_chunks(LIMIT + 1000))

    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert upstream.requests == []
    await eventually(shared.idle)


class TestNoSuchThing:
    """K11."""

    @pytest.mark.parametrize("path", ["/", "/nothing", "/v2/chat/completions", "/api/nothing"])
    async def test_an_unknown_path(self, harness: Harness, path: str) -> None:
        reply = await harness.client.get(path)

        assert_refused(reply, 404, "unknown_url")

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "/api/chat"), ("POST", "/health"), ("PUT", "/livez")]
    )
    async def test_a_wrong_method(self, harness: Harness, method: str, path: str) -> None:
        reply = await harness.client.request(method, path)

        assert_refused(reply, 405, "method_not_allowed")
        assert reply.headers["allow"]

    @pytest.mark.parametrize("path", ["/v1/../admin", "/v1/files/%2e%2e/keys", "/v1/files/..%2f..%2fkeys"])
    async def test_a_path_that_climbs_out_of_the_api(self, harness: Harness, path: str) -> None:
        reply = await raw(harness, f"GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")

        assert reply.startswith(b"HTTP/1.1 404 ")
        assert b'"code":"unknown_url"' in reply


async def raw(harness: Harness, request: str) -> bytes:
    """Send *request* as it stands and return everything that comes until the proxy closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(harness.url.rpartition(":")[2]))
    try:
        writer.write(request.encode())
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/files"], ids=["inference", "streamed through"])
async def test_a_body_that_does_not_arrive_is_given_up(
    harness: Harness, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E06: and the connection with it, for nobody knows what the next bytes would be."""
    monkeypatch.setattr(relay, "BODY_SECONDS", 0.05)

    reply = await raw(harness, f"POST {path} HTTP/1.1\r\nhost: proxy\r\ncontent-length: 90\r\n\r\n{{")

    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert_valid("ErrorResponse", json.loads(body))
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_an_upload_may_take_its_time_as_long_as_it_goes_on(
    shared: Harness, upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "BODY_SECONDS", 0.1)

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0.04)
            yield b"part"

    reply = await shared.client.post("/v1/files", content=slowly())

    assert reply.status_code == 200
    assert upstream.requests[-1].body == b"part" * 4


@settings(max_examples=150)
@given(body=st.binary(max_size=300))
async def test_no_bytes_are_a_mistake_of_ours(shared: Harness, body: bytes) -> None:
    reply = await shared.client.post(CHAT_PATH, content=body, headers=JSON)

    assert reply.status_code == 400
    assert_valid("ErrorResponse", reply.json())


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "stream", "n", "stop", "stream_options", "reasoning", "input", "prompt", "tools"]
)


@settings(max_examples=150)
@given(
    path=st.sampled_from([CHAT_PATH, "/v1/completions", "/v1/embeddings", "/v1/responses", "/api/chat"]),
    fields=st.dictionaries(FIELDS, ANYTHING),
)
async def test_no_json_is_a_mistake_of_ours(shared: Harness, path: str, fields: dict[str, Any]) -> None:
    right = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
    body = json.dumps(right | fields).encode()[:LIMIT]

    reply = await shared.client.post(path, content=body, headers=JSON)

    assert reply.status_code in (200, 400, 502)  # 502: the scripted answer fits chat completions alone
    if reply.status_code != 200:
        assert_valid("ErrorResponse", reply.json())
    assert not [event for event in shared.events if isinstance(event, Noticed) and event.level == "error"]
    shared.proxy.upstreams[0].breakers.reset(shared.proxy.clock.monotonic(), "the next example")


class Wrong(Provider):
    """A plugin with a mistake in it, whose exceptions quote what they should not."""

    name = "wrong"
    base_url = "http://127.0.0.1:1"

    def encode(self, call: Call) -> UpstreamRequest:
        raise RuntimeError(f"cannot cope with {call.body!r}")

    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        raise AssertionError("nothing was sent")

    def failure(self, call: Call, head: ReplyHead, body: bytes) -> Any:
        raise AssertionError("nothing was sent")

    def probe(self) -> UpstreamRequest:
        raise RuntimeError("no probe")


class TestMistakesOfOurOwn:
    @pytest.mark.parametrize("path", [CHAT_PATH, "/v1/models"])
    async def test_a_mistake_in_a_plugin_is_answered_and_reported_and_quoted_nowhere(
        self, start: Start, primary: FaultyUpstream, path: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        registry = Registry()
        registry.register(Wrong())
        harness = await start(chain(primary), registry=registry)

        if path == CHAT_PATH:
            reply = await harness.chat(messages=[{"role": "user", "content": "the secret prompt"}])
        else:
            reply = await harness.client.get(path)

        assert_refused(reply, 500, "internal_error")
        (notice,) = [e for e in harness.events if isinstance(e, Noticed) and e.level == "error"]
        assert notice.details["trace_id"] == reply.headers["x-sentinel-trace-id"]
        assert notice.details["kind"] == "RuntimeError"
        assert any("test_bad_input.py" in place for place in notice.details["at"])
        assert "secret" not in f"{notice} {reply.text} {capfd.readouterr()}"
        assert harness.idle()


class WrongLater(OpenAIProvider):
    """A plugin whose decoder breaks down in the middle of a stream."""

    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        inner = super().decoder(call, head)
        feed = inner.feed

        def wrong(data: bytes) -> bytes:
            if b"two" in data:
                raise RuntimeError(f"cannot cope with {data!r}")
            return feed(data)

        inner.feed = wrong  # type: ignore[method-assign]
        return inner


async def test_a_mistake_inside_a_stream_ends_it_in_an_error_that_sdks_raise(
    start: Start, primary: FaultyUpstream
) -> None:
    primary.always(openai_stream(["one", "two"], pause=0.02))
    registry = Registry()
    registry.register(WrongLater(base_url=f"{primary.url}/v1"))
    harness = await start(chain(primary), registry=registry)

    reply = await harness.chat(stream=True)

    *_, last, rest = reply.text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert (rest, "[DONE]" in reply.text, "two" in reply.text) == ("", False, False)
    assert [(event.outcome, event.error_code) for event in harness.finished()] == [
        ("failure", "internal_error")
    ]
    assert harness.idle()


async def test_many_wrong_requests_at_once_leave_nothing(harness: Harness) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=harness.url, trust_env=False))
            for _ in range(10)
        ]

        replies = await asyncio.gather(
            *(client.post(CHAT_PATH, content=b"{", headers=JSON) for client in clients for _ in range(5))
        )

    assert {reply.status_code for reply in replies} == {400}
    assert len({reply.headers["x-sentinel-trace-id"] for reply in replies}) == 50
