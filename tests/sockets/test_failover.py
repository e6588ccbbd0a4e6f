"""
What a caller sees when its provider fails before the first token: nothing, where another can answer.

The ids of the cases are those of the project's catalogue of failures: A transport, B statuses,
C streams before their first token, G retries and deadlines.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import trustme
from harness import CHAT, Harness, Start, chain, eventually, started
from openai_schema import assert_valid

from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    ProviderConfig,
    ProviderTimeoutsConfig,
    RetryConfig,
    TimeoutsConfig,
)
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import AttemptFailed, BreakerChanged, CallRetried
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.testing import (
    Close,
    FaultyUpstream,
    Hang,
    Pause,
    Reset,
    Script,
    Send,
    answer,
    cut,
    json_answer,
    ollama_completion,
    ollama_error,
    ollama_stream,
    openai_completion,
    openai_error,
    sse,
    sse_stream,
)
from sentinel_proxy.upstream.base import Transport
from sentinel_proxy.upstream.http1 import Http1Transport
from sentinel_proxy.wheel import Wheel

pytestmark = pytest.mark.anyio

BACKUP = "from the backup"
IMPATIENT = TimeoutsConfig(
    connect=0.1, first_token=0.1, first_token_reasoning=0.1, idle=0.1, progress=0.3, answer=0.1, total=5
)


def impatient(provider: ProviderConfig) -> ProviderConfig:
    """Wait for this one no longer than a test should; for the others, as long as a busy machine needs."""
    quick = ProviderTimeoutsConfig(connect=0.1, first_token=0.1, idle=0.1, progress=0.3, answer=0.1)
    return provider.model_copy(update={"timeouts": quick})


HTML = "<html><body>Just a moment...</body></html>"


def whole(body: Any, *, cut_short: int = 0) -> Script:
    """Return a 200 whose JSON lacks its last bytes, though its length is right."""
    text = json.dumps(body)
    return answer(200, text[: len(text) - cut_short], {"content-type": "application/json"})


def html(status: int) -> Script:
    return answer(status, HTML, {"content-type": "text/html"})


def event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return sse({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [choice]})


def prelude(*events: bytes, by: Any = None) -> Script:
    """Return a stream that says *events*, none of which means anything, and breaks off."""
    return [*sse_stream(events)[:-1], by if by is not None else Reset()]


ROLE = event({"role": "assistant", "content": ""})
AZURE_PRELUDE = sse({"id": "", "object": "", "created": 0, "choices": [], "prompt_filter_results": []})
COMPLETION = json.loads(openai_completion("never seen")[0].data.split(b"\r\n\r\n", 1)[1])  # type: ignore[union-attr]
Kind = FailureKind


@dataclass(frozen=True)
class Case:
    """A provider that fails, and what is made of it."""

    id: str
    script: Script
    results: str  # of the attempts there, as the trail tells them
    kind: FailureKind

    def trail(self, name: str) -> str:
        """Return the whole trail if the provider is called *name*."""
        attempts = [f"{name}:{result}" for result in self.results.split(",")]
        return ",".join([*attempts, "ollama:200"])


# what the primary does, how the trail tells it, what it is called
WHOLE = [
    Case("A09 reset before the head", [Reset()], "reset", Kind.RESET),
    Case("A07 accepted and closed", [Close()], "reset", Kind.RESET),
    Case("A10 half a status line", [Send(b"HTTP/1.1 2"), Close()], "protocol", Kind.PROTOCOL),
    Case("A11 garbage", [Send(b"\x16\x03\x01 no HTTP\r\n\r\n"), Close()], "protocol", Kind.PROTOCOL),
    Case("A12 no head in time", [Hang()], "timeout", Kind.TIMEOUT),
    Case("A14 a head of 200 kB", answer(200, "", {"x-long": "x" * 200_000}), "protocol", Kind.PROTOCOL),
    Case(
        "A15 shorter than its length",
        cut(openai_completion("never seen"), 40, Close(), of="body"),
        "truncated",
        Kind.TRUNCATED,
    ),
    Case(
        "A16 chunks without an end",
        cut(openai_completion("never seen", framing="chunked"), 40, Reset(), of="body"),
        "truncated",
        Kind.TRUNCATED,
    ),
    Case("B05 our key is refused", openai_error(401, "invalid_api_key"), "401", Kind.CREDENTIAL),
    Case("B07 no money", openai_error(402), "402", Kind.QUOTA),
    Case("B08 403 of a web page", html(403), "403", Kind.PROTOCOL),
    Case(
        "B08 403 with our key",
        openai_error(403, "unsupported_country_region_territory"),
        "403",
        Kind.CREDENTIAL,
    ),
    Case("B09 404 of the model", openai_error(404, "model_not_found"), "404", Kind.MODEL_NOT_FOUND),
    Case("B10 404 without a word", answer(404), "404", Kind.PROTOCOL),
    Case("B11 408", openai_error(408), "408", Kind.TIMEOUT),
    Case(
        "B16 429",
        openai_error(429, "rate_limit_exceeded", headers={"retry-after": "9"}),
        "429",
        Kind.THROTTLED,
    ),
    Case("B17 429 without quota", openai_error(429, "insufficient_quota"), "429", Kind.QUOTA),
    Case("B18 429 about billing", openai_error(429, "billing_hard_limit_reached"), "429", Kind.QUOTA),
    Case("B21 502 of a web page", html(502), "502,502", Kind.OVERLOADED),
    Case("B23 504", openai_error(504), "504", Kind.TIMEOUT),
    Case("B24 524", html(524), "524", Kind.TIMEOUT),
    Case("B24 522", html(522), "522", Kind.GATEWAY),
    Case("B25 529", openai_error(529, "overloaded_error"), "529,529", Kind.OVERLOADED),
    Case("redirect", answer(302, "", {"location": "http://elsewhere.invalid/"}), "302", Kind.PROTOCOL),
    Case(
        "B26 an error in a 200",
        json_answer(200, {"error": {"message": "engine died", "type": "server_error", "code": None}}),
        "overloaded,overloaded",
        Kind.OVERLOADED,
    ),
    Case("B27 a web page in a 200", html(200), "protocol", Kind.PROTOCOL),
    Case("B28 half a JSON of the right length", whole(COMPLETION, cut_short=9), "protocol", Kind.PROTOCOL),
    Case("no choices", whole({**COMPLETION, "choices": []}), "empty", Kind.EMPTY),
    Case("an empty body", answer(200, "", {"content-type": "application/json"}), "protocol", Kind.PROTOCOL),
]

STREAMED = [
    Case("C01 headers, then silence", prelude(by=Hang()), "timeout", Kind.TIMEOUT),
    Case("C02 a role, then a reset", prelude(ROLE), "truncated", Kind.TRUNCATED),
    Case(
        "C03 an error first",
        sse_stream([sse({"error": {"message": "no", "type": "server_error"}}), sse("[DONE]")]),
        "overloaded,overloaded",
        Kind.OVERLOADED,
    ),
    Case("C04 comments, then the end", sse_stream([b": ping\n\n"] * 3), "empty", Kind.EMPTY),
    Case("C05 nothing", sse_stream([]), "empty", Kind.EMPTY),
    Case("C09 Azure's prelude, then a reset", prelude(AZURE_PRELUDE), "truncated", Kind.TRUNCATED),
    Case("[DONE] alone", sse_stream([ROLE, sse("[DONE]")]), "empty", Kind.EMPTY),
    Case(
        "a finish without a word", sse_stream([ROLE, event({}, "stop"), sse("[DONE]")]), "empty", Kind.EMPTY
    ),
    Case("malformed JSON", sse_stream([ROLE, b"data: {nonsense\n\n"]), "protocol", Kind.PROTOCOL),
    Case("comments for ever", prelude(*[b": ping\n\n"] * 3, by=Hang()), "timeout", Kind.TIMEOUT),
    Case(
        "C10 a prelude without an end",
        prelude(*[ROLE] * 900, by=Hang()),
        "protocol",
        Kind.PROTOCOL,
    ),
    Case("B27 a web page instead", html(200), "protocol", Kind.PROTOCOL),
    Case("B21 503 of a web page", html(503), "503,503", Kind.OVERLOADED),
    Case(
        "finish_reason error",
        sse_stream([event({}, "error"), sse("[DONE]")]),
        "overloaded,overloaded",
        Kind.OVERLOADED,
    ),
]


CASES = {f"p{number}": case for number, case in enumerate([*WHOLE, *STREAMED])}


def among(cases: list[Case]) -> list[Any]:
    return [pytest.param(name, case, id=case.id) for name, case in CASES.items() if case in cases]


async def stream(harness: Harness, **fields: Any) -> tuple[dict[str, str], list[Any]]:
    """Call for a stream; return its headers and the payloads of its events, `[DONE]` as text."""
    reply = await harness.chat(stream=True, **fields)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line[6:] for line in reply.text.split("\n\n") if line.startswith("data: ")]
    return dict(reply.headers), [each if each == "[DONE]" else json.loads(each) for each in events]


def text_of(events: list[Any]) -> str:
    deltas = [chunk["choices"][0]["delta"] for chunk in events if chunk != "[DONE]" and chunk.get("choices")]
    return "".join(delta.get("content") or "" for delta in deltas)


def kinds(harness: Harness, headers: Mapping[str, str]) -> set[FailureKind]:
    """Return what the failed attempts of one call were called."""
    trace_id = headers["x-sentinel-trace-id"]
    failed = [event for event in harness.events if isinstance(event, AttemptFailed)]
    return {event.kind for event in failed if event.trace_id == trace_id}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """As elsewhere, but for the whole module, so that `gallery` can be."""
    return "asyncio"


@pytest.fixture(scope="module")
async def gallery(anyio_backend: str) -> AsyncIterator[Harness]:
    """One proxy before as many providers as there are cases, each with a failure of its own."""
    async with AsyncExitStack() as stack:
        backup = await stack.enter_async_context(FaultyUpstream())
        backup.always(
            lambda request: (
                ollama_stream(["from ", "the backup"])
                if request.json()["stream"]
                else ollama_completion(BACKUP)
            )
        )
        config = chain(backup, backup, timeouts=TimeoutsConfig())
        first, last = config.providers
        providers = []
        for name, case in CASES.items():
            upstream = await stack.enter_async_context(FaultyUpstream())
            upstream.always(case.script)
            moved = first.model_copy(update={"name": name, "base_url": f"{upstream.url}/v1"})
            providers.append(impatient(moved) if case.kind is Kind.TIMEOUT else moved)
        config = config.model_copy(update={"providers": (*providers, last)})
        yield await stack.enter_async_context(started(config))


@pytest.mark.parametrize(("name", "case"), among(WHOLE))
async def test_a_failed_answer_is_never_seen(gallery: Harness, name: str, case: Case) -> None:
    reply = await gallery.chat(headers={"x-sentinel-providers": f"{name},ollama"})

    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == BACKUP
    assert reply.headers["x-sentinel-trail"] == case.trail(name)
    assert reply.headers["x-sentinel-provider"] == "ollama"
    assert reply.headers["x-sentinel-failover"] == "true"
    assert kinds(gallery, reply.headers) == {case.kind}
    assert gallery.finished()[-1].outcome == "failed_over"
    assert gallery.idle()


@pytest.mark.parametrize(("name", "case"), among(STREAMED))
async def test_a_stream_that_fails_before_its_first_token_is_never_seen(
    gallery: Harness, name: str, case: Case
) -> None:
    headers, events = await stream(gallery, headers={"x-sentinel-providers": f"{name},ollama"})

    assert text_of(events) == BACKUP
    assert events.count("[DONE]") == 1
    roles = [chunk for chunk in events if chunk != "[DONE]" and "role" in chunk["choices"][0]["delta"]]
    assert roles == events[:1]
    assert headers["x-sentinel-trail"] == case.trail(name)
    assert kinds(gallery, headers) == {case.kind}
    assert gallery.idle()


class TestBeforeAnythingIsSent:
    """A01 to A06: no connection, so nothing was processed and nothing billed."""

    async def test_a_refused_connection_moves_the_call_at_once(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """A03."""
        await primary.stop_listening()
        backup.always(ollama_completion(BACKUP))
        harness = await start(chain(primary, backup))

        reply = await harness.chat()

        assert reply.headers["x-sentinel-trail"] == "openai:connect,ollama:200"
        assert float(reply.headers["x-sentinel-overhead-ms"]) < 500
        assert kinds(harness, reply.headers) == {Kind.CONNECT}

    @pytest.mark.parametrize(
        "error",
        [socket.gaierror(socket.EAI_NONAME, "unknown"), socket.gaierror(socket.EAI_AGAIN, "try again")],
        ids=["A01 no such name", "A02 resolver out of order"],
    )
    async def test_a_name_that_does_not_resolve_moves_the_call(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream, error: OSError
    ) -> None:
        def lookup(host: Any, *rest: Any, **more: Any) -> Any:
            if host == "nowhere.invalid":
                raise error
            return socket.getaddrinfo(host, *rest, **more)

        def transport(provider: Provider, wheel: Wheel) -> Transport:
            return Http1Transport(provider.base_url, wheel, lookup=lookup)

        backup.always(ollama_completion(BACKUP))
        config = with_base_url(chain(primary, backup), "http://nowhere.invalid:1/v1")
        harness = await start(config, transport=transport)

        reply = await harness.chat()

        assert reply.headers["x-sentinel-trail"] == "openai:connect,ollama:200"

    async def test_a_black_hole_costs_the_connect_limit_and_no_more(
        self, start: Start, backup: FaultyUpstream, black_hole: int, primary: FaultyUpstream
    ) -> None:
        """A04."""
        backup.always(ollama_completion(BACKUP))
        config = with_base_url(chain(primary, backup), f"http://127.0.0.1:{black_hole}/v1")
        first, second = config.providers
        harness = await start(config.model_copy(update={"providers": (impatient(first), second)}))
        began = asyncio.get_running_loop().time()

        reply = await harness.chat()

        assert reply.headers["x-sentinel-trail"] == "openai:timeout,ollama:200"
        assert kinds(harness, reply.headers) == {Kind.CONNECT_TIMEOUT}
        assert 0.09 < asyncio.get_running_loop().time() - began < 2

    async def test_a_certificate_that_does_not_verify_opens_the_breaker_at_once(
        self, start: Start, backup: FaultyUpstream
    ) -> None:
        """A05."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        async with FaultyUpstream(ssl=context) as primary:
            backup.always(ollama_completion(BACKUP))
            harness = await start(chain(primary, backup))

            first = await harness.chat()
            second = await harness.chat()

        assert first.headers["x-sentinel-trail"] == "openai:certificate,ollama:200"
        assert second.headers["x-sentinel-trail"] == "openai:open,ollama:200"
        assert primary.requests == []

    async def test_a_tls_handshake_that_ends_early_moves_the_call(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """A06."""
        primary.greets([Close()])
        backup.always(ollama_completion(BACKUP))
        config = with_base_url(chain(primary, backup), f"https://127.0.0.1:{primary.port}/v1")
        harness = await start(config)

        reply = await harness.chat()

        assert reply.headers["x-sentinel-trail"] == "openai:connect,ollama:200"


@pytest.fixture
def black_hole() -> Any:
    """A port whose backlog is full: connects to it hang, as behind a dropping firewall."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.socket() as first, socket.socket() as second:
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(address)
            yield address[1]


def with_base_url(config: Config, base_url: str) -> Config:
    """Point the first provider of *config* elsewhere."""
    first, *rest = config.providers
    moved = ProviderConfig.model_validate({**first.model_dump(exclude_none=True), "base_url": base_url})
    return config.model_copy(update={"providers": (moved, *rest)})


class TestConnections:
    async def test_small_writes_wait_for_nobody(self, start: Start, primary: FaultyUpstream) -> None:
        """Nagle's algorithm and delayed acknowledgements would cost every call some 40 ms."""
        primary.always(openai_completion("quick"))
        harness = await start(chain(primary))
        loop, seconds = asyncio.get_running_loop(), []

        for _ in range(20):
            began = loop.time()
            await harness.chat()
            seconds.append(loop.time() - began)

        assert sorted(seconds)[5] < 0.03  # the machine may be busy now and then, but not each time

    async def test_a_stale_connection_is_replaced_silently(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """A08: the server closes its idle connection just as the next request is written."""
        primary.plays(openai_completion("one"), [Close()], openai_completion("two"))
        harness = await start(chain(primary))

        await harness.chat()
        reply = await harness.chat()

        assert reply.json()["choices"][0]["message"]["content"] == "two"
        assert reply.headers["x-sentinel-trail"] == "openai:200"
        assert not [event for event in harness.events if isinstance(event, AttemptFailed)]
        assert primary.connections == 2

    async def test_a_provider_that_is_full_is_passed_by(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """A13, H08: our own limit says nothing about the provider."""
        primary.always([Pause(0.8), *openai_completion("late")])
        backup.always(ollama_completion(BACKUP))
        config = chain(primary, backup)
        full = config.providers[0].model_copy(update={"max_in_flight": 1})
        harness = await start(config.model_copy(update={"providers": (full, config.providers[1])}))

        slow = asyncio.create_task(harness.chat())
        await eventually(lambda: primary.requests)
        passed = await harness.chat()
        alone = await harness.chat(headers={"x-sentinel-no-failover": "true"})
        await slow

        assert passed.headers["x-sentinel-trail"] == "openai:limited,ollama:200"
        assert (alone.status_code, alone.json()["error"]["code"]) == (503, "proxy_overloaded")
        assert alone.headers["retry-after"] == "1"
        assert (await slow).json()["choices"][0]["message"]["content"] == "late"
        assert not [event for event in harness.events if isinstance(event, AttemptFailed)]


class TestWhatGoesBackToTheCaller:
    @pytest.mark.parametrize(
        ("script", "status", "code"),
        [
            (
                openai_error(400, "invalid_value", "'temperature' is too hot", param="temperature"),
                400,
                "invalid_value",
            ),
            (openai_error(400, "content_filter", "refused"), 400, "content_filter"),
            (openai_error(413, "request_too_large", "too large"), 413, "request_too_large"),
            (openai_error(415, None, "no such media type"), 415, None),
            (openai_error(422, "unprocessable", "cannot be processed"), 422, "unprocessable"),
        ],
        ids=["B01 400", "B04 content filter", "B13 413", "415", "B14 422"],
    )
    async def test_the_callers_own_mistake_goes_back_byte_for_byte(
        self,
        start: Start,
        primary: FaultyUpstream,
        backup: FaultyUpstream,
        script: Script,
        status: int,
        code: str | None,
    ) -> None:
        primary.always(script)
        harness = await start(chain(primary, backup))

        reply = await harness.chat()

        assert reply.status_code == status
        assert reply.content == script[0].data.split(b"\r\n\r\n", 1)[1]  # type: ignore[union-attr]
        assert reply.json()["error"]["code"] == code
        assert reply.headers["x-sentinel-error-source"] == "upstream"
        assert reply.headers["x-should-retry"] == "false"
        assert reply.headers["x-request-id"] == "req_scripted"
        assert (len(primary.requests), len(backup.requests)) == (1, 0)
        assert [event.outcome for event in harness.finished()] == ["caller_error"]
        assert_nobody_is_blamed(harness)

    async def test_fastapis_details_come_in_the_envelope_and_without_the_prompt(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """B14."""
        detail = [{"loc": ["body", "top_k"], "msg": "must be positive", "input": {"messages": "a secret"}}]
        primary.always(json_answer(422, {"detail": detail}))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert reply.status_code == 422
        assert_valid("ErrorResponse", reply.json())
        assert "body.top_k: must be positive" in reply.json()["error"]["message"]
        assert "a secret" not in reply.text

    async def test_a_lock_conflict_is_tried_once_more(self, start: Start, primary: FaultyUpstream) -> None:
        """B12."""
        primary.plays(openai_error(409), openai_completion("second"))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert reply.headers["x-sentinel-trail"] == "openai:409,openai:200"
        assert reply.headers["x-sentinel-failover"] == "false"

    async def test_a_refused_key_of_the_callers_own_is_the_callers_business(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """B06."""
        primary.always(openai_error(401, "invalid_api_key"))
        config = chain(primary, backup)
        keyless = config.providers[0].model_copy(update={"api_key": None})
        harness = await start(config.model_copy(update={"providers": (keyless, config.providers[1])}))

        reply = await harness.chat(headers={"authorization": "Bearer sk-of-the-caller"})

        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"
        assert primary.requests[0].header("authorization") == "Bearer sk-of-the-caller"
        assert backup.requests == []
        assert_nobody_is_blamed(harness)

    async def test_our_own_refused_key_is_never_shown_as_the_callers(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """B05, alone."""
        primary.always(openai_error(401, "invalid_api_key", "Incorrect API key provided: sk-of-the-proxy"))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "provider_auth_failed")
        assert reply.headers["x-should-retry"] == "false"
        assert "sk-of-the-proxy" not in reply.text

    async def test_spent_quota_is_no_reason_to_retry(self, start: Start, primary: FaultyUpstream) -> None:
        """B17, alone: an SDK retries every 429 by its status, so it gets another."""
        primary.always(openai_error(429, "insufficient_quota"))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "provider_quota_exhausted")
        assert reply.headers["x-should-retry"] == "false"
        assert len(primary.requests) == 1


def assert_nobody_is_blamed(harness: Harness) -> None:
    for upstream in harness.proxy.upstreams:
        assert upstream.breakers.own.failures == 0
        assert not upstream.breakers.models_view()


class TestModels:
    async def test_a_model_unknown_at_one_provider_is_asked_for_elsewhere_first_from_then_on(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """B09: asked last, not never; the trail says why, and it still counts as a failover."""
        primary.always(openai_error(404, "model_not_found"))
        backup.always(ollama_completion(BACKUP))
        harness = await start(chain(primary, backup))

        first = await harness.chat()
        second = await harness.chat()

        assert first.headers["x-sentinel-trail"] == "openai:404,ollama:200"
        assert second.headers["x-sentinel-trail"] == "openai:model_not_found,ollama:200"
        assert second.headers["x-sentinel-failover"] == "true"
        assert len(primary.requests) == 1
        assert_nobody_is_blamed(harness)

    async def test_a_model_unknown_to_all_is_what_the_first_says_it_is(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always(
            openai_error(404, "model_not_found", "The model `gpt-9` does not exist", param="model")
        )
        backup.always(ollama_error(404, "model 'llama3.2' not found"))
        harness = await start(chain(primary, backup))

        replies = [await harness.chat(), await harness.chat()]

        for reply in replies:
            assert reply.status_code == 404
            assert reply.json()["error"]["code"] == "model_not_found"
        assert "gpt-9" in replies[0].json()["error"]["message"]

    @pytest.mark.parametrize(
        ("windows", "trail", "status"),
        [
            ((None, 200_000), "openai:400,ollama:200", 200),
            ((8192, 8192), "openai:400,ollama:context_overflow", 400),
            ((None, 4096), "openai:400,ollama:context_overflow", 400),
            ((None, None), "openai:400,ollama:200", 200),
        ],
        ids=["B02 a larger one", "B03 one as large", "B03 a smaller one than the upstream says", "unknown"],
    )
    async def test_what_overflows_one_context_only_goes_to_a_larger_one(
        self,
        start: Start,
        primary: FaultyUpstream,
        backup: FaultyUpstream,
        windows: tuple[int | None, int | None],
        trail: str,
        status: int,
    ) -> None:
        message = "This model's maximum context length is 8192 tokens. Your messages have 9001."
        primary.always(openai_error(400, "context_length_exceeded", message, param="messages"))
        backup.always(ollama_completion(BACKUP))
        config = chain(primary, backup)
        providers = [
            provider.model_copy(update={"context_window": window})
            for provider, window in zip(config.providers, windows, strict=True)
        ]
        harness = await start(config.model_copy(update={"providers": tuple(providers)}))

        reply = await harness.chat()

        assert reply.status_code == status
        assert reply.headers["x-sentinel-trail"] == trail
        if status == 400:
            assert reply.json()["error"]["code"] == "context_length_exceeded"
        assert_nobody_is_blamed(harness)


class TestWaiting:
    async def test_a_busy_provider_is_waited_for_where_it_is_the_only_one(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """B15, B19: `retry-after-ms` counts more than `retry-after`."""
        busy = openai_error(429, "rate_limit_exceeded", headers={"retry-after-ms": "60", "retry-after": "9"})
        primary.plays(busy, openai_completion("patience"))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert reply.headers["x-sentinel-trail"] == "openai:429,openai:200"
        assert primary.requests[1].arrived - primary.requests[0].arrived >= 0.055
        assert [event.pause_seconds for event in harness.events if isinstance(event, CallRetried)] == [0.06]

    async def test_a_busy_provider_is_left_alone_for_as_long_as_it_asks(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """B16."""
        primary.plays(openai_error(429, headers={"retry-after-ms": "400"}), openai_completion("again"))
        backup.always(ollama_completion(BACKUP))
        harness = await start(chain(primary, backup))

        first = await harness.chat()
        second = await harness.chat()
        await asyncio.sleep(0.4)
        third = await harness.chat()

        assert [reply.headers["x-sentinel-trail"] for reply in (first, second, third)] == [
            "openai:429,ollama:200",
            "openai:limited,ollama:200",
            "openai:200",
        ]
        assert_nobody_is_blamed(harness)

    async def test_a_server_error_is_tried_once_more(self, start: Start, primary: FaultyUpstream) -> None:
        """B20."""
        primary.plays(openai_error(500), openai_completion("second"))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert reply.headers["x-sentinel-trail"] == "openai:500,openai:200"
        assert reply.headers["x-sentinel-attempts"] == "2"

    async def test_a_long_wait_is_passed_on_and_not_to_be_retried(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """B22."""
        primary.always(openai_error(503, headers={"retry-after": "120"}))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "120"
        assert reply.headers["x-should-retry"] == "false"
        assert len(primary.requests) == 1

    async def test_where_all_are_busy_the_shortest_wait_counts(self, start: Start) -> None:
        """B30, and again while all of them want to be left alone."""
        async with AsyncExitStack() as stack:
            waits = ("7", "3", "20")
            upstreams = [await stack.enter_async_context(FaultyUpstream()) for _ in waits]
            for upstream, wait in zip(upstreams, waits, strict=True):
                upstream.always(openai_error(429, "rate_limit_exceeded", headers={"retry-after": wait}))
            config = chain(upstreams[0])
            first = config.providers[0]
            providers = tuple(
                first.model_copy(update={"name": f"p{at}", "base_url": f"{upstream.url}/v1"})
                for at, upstream in enumerate(upstreams)
            )
            harness = await start(config.model_copy(update={"providers": providers}))

            replies = [await harness.chat(), await harness.chat()]

            assert [reply.status_code for reply in replies] == [429, 429]
            assert [reply.headers["retry-after"] for reply in replies] == ["3", "3"]
            assert replies[0].json()["error"]["code"] == "rate_limit_exceeded"
            assert replies[0].headers["x-should-retry"] == "true"
            assert replies[1].headers["x-sentinel-trail"] == "p0:limited,p1:limited,p2:limited"
            assert [len(upstream.requests) for upstream in upstreams] == [1, 1, 1]

    async def test_no_pause_reaches_the_deadline(self, start: Start, primary: FaultyUpstream) -> None:
        """G03."""
        primary.always(openai_error(429, headers={"retry-after": "4"}))
        harness = await start(chain(primary))
        began = asyncio.get_running_loop().time()

        reply = await harness.chat(headers={"x-sentinel-timeout": "3"})

        assert reply.status_code == 429
        assert asyncio.get_running_loop().time() - began < 2

    async def test_a_call_is_over_by_its_deadline(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always([Hang()])
        backup.always([Hang()])
        harness = await start(chain(primary, backup))
        began = asyncio.get_running_loop().time()

        reply = await harness.chat(headers={"x-sentinel-timeout": "0.15"})

        assert 0.14 < asyncio.get_running_loop().time() - began < 2
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert reply.headers["x-should-retry"] == "false"
        assert backup.requests == []
        assert harness.idle()

    async def test_the_caller_decides_how_long_the_first_token_may_take(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always(prelude(ROLE, by=Hang()))
        backup.always(ollama_stream([BACKUP]))
        harness = await start(chain(primary, backup, timeouts=TimeoutsConfig()))
        began = asyncio.get_running_loop().time()

        _, events = await stream(harness, headers={"x-sentinel-first-token-timeout": "0.1"})

        assert text_of(events) == BACKUP
        assert asyncio.get_running_loop().time() - began < 1


class TestRetriesAndBudgets:
    async def test_a_full_outage_is_served_by_the_backup_whatever_the_budget(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """G04, G05: the budget limits retries, never failover."""
        primary.always(openai_error(503))
        backup.always(ollama_completion(BACKUP))
        breaker = BreakerConfig(failure_threshold=1000)
        harness = await start(chain(primary, backup, breaker=breaker))

        replies = [await harness.chat() for _ in range(60)]

        assert {reply.status_code for reply in replies} == {200}
        retried = sum(reply.headers["x-sentinel-trail"].count("openai") == 2 for reply in replies)
        assert 3 <= retried <= 3 + 0.2 * 60

    async def test_a_retry_of_the_sdks_own_is_not_multiplied(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """G11."""
        primary.always(openai_error(500))
        backup.always(ollama_completion(BACKUP))
        harness = await start(chain(primary, backup))

        reply = await harness.chat(headers={"x-stainless-retry-count": "2"})

        assert reply.headers["x-sentinel-trail"] == "openai:500,ollama:200"

    async def test_attempts_are_bounded_when_everything_fails(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """G01."""
        primary.always(openai_error(500))
        backup.always(ollama_error(500))
        harness = await start(chain(primary, backup, retry=RetryConfig(attempts=2, backoff=0.001)))

        reply = await harness.chat()

        assert reply.status_code == 502
        assert reply.headers["x-sentinel-attempts"] == "4"
        assert reply.headers["x-sentinel-trail"] == "openai:500,openai:500,ollama:500,ollama:500"
        assert_valid("ErrorResponse", reply.json())


class TestBreakers:
    async def test_a_resting_provider_is_not_asked(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always([Reset()])
        backup.always(ollama_completion(BACKUP))
        harness = await start(chain(primary, backup))

        replies = [await harness.chat() for _ in range(5)]

        trails = [reply.headers["x-sentinel-trail"] for reply in replies]
        assert trails == ["openai:reset,ollama:200"] * 3 + ["openai:open,ollama:200"] * 2
        assert [event.after for event in harness.events if isinstance(event, BreakerChanged)] == ["open"]

    async def test_where_all_rest_one_call_at_a_time_tries_early(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """F14 and decision 7: the others are refused at once, with the smallest rest."""
        primary.plays([Reset()], [Pause(0.6), *openai_completion("back")])
        breaker = BreakerConfig(failure_threshold=1, recovery_timeout=25)
        harness = await start(chain(primary, breaker=breaker, retry=RetryConfig(attempts=1)))
        await harness.chat()

        early = asyncio.create_task(harness.chat())
        await eventually(lambda: len(primary.requests) == 2)
        refused = await harness.chat()

        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "all_providers_unavailable")
        assert refused.headers["retry-after"] == "25"
        assert refused.headers["x-should-retry"] == "true"
        assert refused.headers["x-sentinel-attempts"] == "0"
        assert (await early).json()["choices"][0]["message"]["content"] == "back"
        assert (await early).headers["x-sentinel-failover"] == "false"


class TestCommitPoint:
    async def test_reasoning_is_an_answer_that_has_begun(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """C08."""
        primary.always(prelude(ROLE, event({"reasoning_content": "Let me think"})))
        harness = await start(chain(primary, backup))

        _, events = await stream(harness, headers={"x-sentinel-rescue": "error"})

        assert events[-1]["error"]["code"] == "stream_interrupted"
        assert "[DONE]" not in events
        assert backup.requests == []

    async def test_an_error_after_the_prelude_keeps_its_status(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """C11."""
        primary.always(
            sse_stream([ROLE, sse({"error": {"message": "full", "code": "server_is_overloaded"}})])
        )
        harness = await start(chain(primary))

        reply = await harness.chat(stream=True)

        assert reply.status_code == 502
        assert_valid("ErrorResponse", reply.json())

    async def test_a_complete_answer_in_place_of_a_stream_becomes_one(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """B29."""
        primary.always(openai_completion("all at once"))
        harness = await start(chain(primary))

        headers, events = await stream(harness)

        assert text_of(events) == "all at once"
        assert events[-1] == "[DONE]"
        assert headers["x-sentinel-trail"] == "openai:200"

    @pytest.mark.parametrize("hold", [0, 10], ids=["not held", "held longer than it takes"])
    async def test_a_quick_failure_keeps_its_status(
        self, start: Start, primary: FaultyUpstream, hold: float
    ) -> None:
        primary.always(prelude(ROLE, by=Hang()))
        timeouts = IMPATIENT.model_copy(update={"header_hold": hold})
        harness = await start(chain(primary, timeouts=timeouts))

        reply = await harness.chat(stream=True)

        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "upstream_timeout")

    async def test_a_stream_that_waits_is_kept_warm_and_still_fails_over(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """C07: the status is spent by then, the failover is not."""
        primary.always(prelude(ROLE, by=Hang()))
        backup.always(ollama_stream([BACKUP]))
        timeouts = TimeoutsConfig(first_token=0.6, header_hold=0.06, heartbeat=0.06)
        harness = await start(chain(primary, backup, timeouts=timeouts))

        reply = await harness.chat(stream=True)

        assert reply.text.count(": keep-alive\n\n") >= 2
        events = [line[6:] for line in reply.text.split("\n\n") if line.startswith("data: ")]
        assert text_of([json.loads(each) for each in events[:-1]]) == BACKUP
        assert events[-1] == "[DONE]"
        assert harness.idle()

    async def test_a_stream_kept_warm_for_nothing_ends_in_an_error_that_sdks_raise(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """C06."""
        primary.always(prelude(ROLE, by=Hang()))
        timeouts = TimeoutsConfig(first_token=0.2, header_hold=0.06, heartbeat=0.06)
        harness = await start(chain(primary, timeouts=timeouts))

        _, events = await stream(harness)

        assert events[-1]["error"]["code"] == "upstream_timeout"
        assert "[DONE]" not in events
        assert [(event.outcome, event.status) for event in harness.finished()] == [("failure", 200)]


class TestControls:
    async def test_the_caller_may_choose_the_order(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        backup.always(ollama_error(500))
        primary.always(openai_completion("second choice"))
        harness = await start(chain(primary, backup))

        reply = await harness.chat(headers={"x-sentinel-providers": "ollama, openai"})

        assert reply.headers["x-sentinel-trail"] == "ollama:500,ollama:500,openai:200"
        assert reply.headers["x-sentinel-failover"] == "true"

    async def test_the_caller_may_refuse_to_be_moved(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always(openai_error(504))
        harness = await start(chain(primary, backup))

        reply = await harness.chat(headers={"x-sentinel-no-failover": "true"})

        assert reply.status_code == 504
        assert backup.requests == []


class TestResponses:
    """What a provider keeps cannot be asked for elsewhere."""

    @pytest.fixture
    async def second(self) -> AsyncIterator[FaultyUpstream]:
        async with FaultyUpstream() as upstream:
            yield upstream

    @pytest.mark.parametrize(
        "field",
        [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}],
        ids=["previous response", "conversation", "background"],
    )
    async def test_a_call_about_what_one_provider_keeps_goes_nowhere_else(
        self, start: Start, primary: FaultyUpstream, second: FaultyUpstream, field: dict[str, Any]
    ) -> None:
        """G06."""
        primary.always(openai_error(504))
        config = chain(primary)
        other = config.providers[0].model_copy(update={"name": "other", "base_url": f"{second.url}/v1"})
        harness = await start(config.model_copy(update={"providers": (config.providers[0], other)}))

        body = {"model": "gpt-4o-mini", "input": "go on", **field}
        reply = await harness.client.post("/v1/responses", json=body)

        assert reply.status_code == 504
        assert second.requests == []


async def test_every_caller_of_a_healthy_provider_gets_its_bytes_as_they_came(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """K06: unknown fields of request, answer and chunks are preserved."""
    odd = {**COMPLETION, "service_tier": "default", "x_future": {"deep": [1, 2.5, None]}}
    chunks = [event({"content": "hi", "x_future": {"a": 1}}), event({}, "stop"), sse("[DONE]")]
    primary.plays(json_answer(200, odd), sse_stream(chunks))
    harness = await start(chain(primary, backup))
    body = json.dumps({**CHAT, "x_unheard_of": [1.0, {"é": "\U0001f600"}]}, indent=3).encode()

    whole_reply = await harness.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    streamed = await harness.chat(stream=True)

    assert whole_reply.json() == odd
    assert primary.requests[0].body == body
    assert streamed.content == b"".join(chunks)
    assert streamed.headers["x-sentinel-failover"] == "false"
