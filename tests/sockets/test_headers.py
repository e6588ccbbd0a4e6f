"""
What travels beside the bodies: whose headers reach whom, and whose secrets reach nobody.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator

import pytest
from harness import CHAT, Start, chain
from openai_schema import assert_valid

from sentinel_proxy.config import ClientConfig, Config, LogConfig, RateLimitConfig, ServerConfig
from sentinel_proxy.log import Log
from sentinel_proxy.testing import (
    FaultyUpstream,
    Pause,
    Reset,
    Send,
    answer,
    json_answer,
    ollama_completion,
    openai_completion,
    openai_error,
    openai_stream,
)

pytestmark = pytest.mark.anyio

CALLERS_KEY = "sk-of-the-caller-0123456789"


def keyless(config: Config) -> Config:
    """Let the first provider be called with its callers' own keys."""
    first, *rest = config.providers
    return config.model_copy(update={"providers": (first.model_copy(update={"api_key": None}), *rest)})


@pytest.fixture
async def other() -> AsyncIterator[FaultyUpstream]:
    """A second provider of kind "openai", at another vendor."""
    async with FaultyUpstream() as upstream:
        yield upstream


def two_vendors(primary: FaultyUpstream, other: FaultyUpstream, *, own_keys: bool = False) -> Config:
    config = chain(primary) if own_keys else keyless(chain(primary))
    first = config.providers[0]
    second = first.model_copy(update={"name": "other", "base_url": f"{other.url}/v1"})
    return config.model_copy(update={"providers": (first, second)})


class TestKeys:
    @pytest.mark.parametrize(
        "path", ["/v1/chat/completions", "/v1/files"], ids=["inference", "streamed through"]
    )
    async def test_the_callers_key_never_reaches_another_vendor(
        self, start: Start, primary: FaultyUpstream, other: FaultyUpstream, path: str
    ) -> None:
        """G08."""
        await primary.stop_listening()
        other.always(openai_completion("served"))
        harness = await start(two_vendors(primary, other))
        secrets = {
            "authorization": f"Bearer {CALLERS_KEY}",
            "api-key": CALLERS_KEY,
            "x-api-key": CALLERS_KEY,
            "cookie": f"session={CALLERS_KEY}",
            "openai-organization": "org-of-the-caller",
            "openai-project": "proj-of-the-caller",
        }

        reply = await harness.client.post(path, json=CHAT, headers=secrets)

        assert reply.status_code == 200
        assert CALLERS_KEY.encode() not in other.requests[0].raw
        assert b"of-the-caller" not in other.requests[0].raw

    async def test_it_reaches_the_first_and_with_it_the_account(
        self, start: Start, primary: FaultyUpstream, other: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        harness = await start(two_vendors(primary, other))

        await harness.chat(headers={"authorization": f"Bearer {CALLERS_KEY}", "openai-organization": "org-1"})

        assert primary.requests[0].header("authorization") == f"Bearer {CALLERS_KEY}"
        assert primary.requests[0].header("openai-organization") == "org-1"

    async def test_our_own_key_takes_the_place_of_the_callers(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        harness = await start(chain(primary))

        await harness.chat(headers={"authorization": f"Bearer {CALLERS_KEY}"})

        sent = [value for name, value in primary.requests[0].headers if name.lower() == b"authorization"]
        assert sent == [b"Bearer sk-of-the-proxy"]

    async def test_a_key_of_the_proxys_own_clients_stays_here(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        client = ClientConfig.model_validate({"name": "web", "key": CALLERS_KEY})
        harness = await start(keyless(chain(primary, clients=(client,))))

        known = await harness.chat(headers={"authorization": f"Bearer {CALLERS_KEY}"})
        stranger = await harness.chat(headers={"authorization": "Bearer sk-of-a-stranger"})
        nobody = await harness.client.get("/v1/models")

        assert known.status_code == 200
        assert primary.requests[0].header("authorization") is None
        (served,) = harness.finished()
        assert served.call is not None
        assert served.call.client == "web"
        for refused in (stranger, nobody):
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert_valid("ErrorResponse", refused.json())
            assert refused.headers["x-should-retry"] == "false"
        assert (await harness.client.get("/health")).status_code == 200


class TestRequests:
    async def test_what_belongs_to_one_hop_goes_no_further(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        harness = await start(chain(primary))

        await harness.chat(
            headers={
                "connection": "keep-alive, x-hop",
                "x-hop": "1",
                "te": "trailers",
                "x-forwarded-for": "10.0.0.1",
                "x-sentinel-timeout": "20",
                "accept-encoding": "gzip, br",
                "idempotency-key": "abc",
                "openai-beta": "assistants=v2",
            }
        )

        sent = primary.requests[0]
        for name in ("x-hop", "te", "x-forwarded-for", "x-sentinel-timeout"):
            assert sent.header(name) is None, name
        assert sent.header("accept-encoding") == "identity"
        assert sent.header("host") == primary.url.removeprefix("http://")
        assert (sent.header("idempotency-key"), sent.header("openai-beta")) == ("abc", "assistants=v2")

    async def test_a_trace_is_continued_and_one_of_our_own_is_not_sent_on(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        harness = await start(chain(primary))
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"

        reply = await harness.chat(headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})
        await harness.chat()

        version, continued, span, flags = (primary.requests[0].header("traceparent") or "").split("-")
        assert reply.headers["x-sentinel-trace-id"] == trace_id
        assert (version, continued, flags) == ("00", trace_id, "01")
        assert span != "00f067aa0ba902b7"
        assert primary.requests[1].header("traceparent") is None

    async def test_the_query_goes_along(self, start: Start, primary: FaultyUpstream) -> None:
        primary.always(openai_completion("served"))
        harness = await start(chain(primary))

        await harness.client.post("/v1/chat/completions?api-version=2024-10-21", json=CHAT)

        assert primary.requests[0].target == "/v1/chat/completions?api-version=2024-10-21"

    async def test_only_the_models_name_is_changed_for_another_provider(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """G09."""
        primary.always(openai_completion("served"))
        config = chain(primary)
        renamed = config.providers[0].model_copy(update={"models": {"*": "gpt-local"}})
        harness = await start(config.model_copy(update={"providers": (renamed,)}))

        await harness.chat(x_future={"deep": [1.5, None]})

        assert primary.requests[0].json() == CHAT | {"model": "gpt-local", "x_future": {"deep": [1.5, None]}}


class TestAnswers:
    async def test_the_winners_headers_pass_and_its_cookies_do_not(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """K07: and what is sent twice arrives twice, never joined."""
        headers = {
            "x-request-id": "req_1",
            "openai-processing-ms": "12",
            "x-ratelimit-remaining-requests": "9",
            "set-cookie": "__cf_bm=1",
            "server": "cloudflare",
            "strict-transport-security": "max-age=1",
            "x-sentinel-provider": "forged",
            "connection": "keep-alive, x-hop",
            "x-hop": "1",
        }
        (whole,) = openai_completion("served", headers=headers)
        assert isinstance(whole, Send)
        doubled = b"\r\nset-cookie: b=2\r\nx-twice: 1\r\nx-twice: 2\r\n\r\n"
        primary.always([Send(whole.data.replace(b"\r\n\r\n", doubled, 1))])
        harness = await start(chain(primary))

        reply = await harness.chat()

        for name in ("x-request-id", "openai-processing-ms", "x-ratelimit-remaining-requests"):
            assert reply.headers[name] == headers[name]
        for name in ("set-cookie", "server", "strict-transport-security", "x-hop"):
            assert name not in reply.headers, name
        assert reply.headers.get_list("x-sentinel-provider") == ["openai"]
        assert reply.headers.get_list("x-twice") == ["1", "2"]
        assert len(reply.headers.get_list("content-type")) == 1

    async def test_the_losers_headers_are_never_seen(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        primary.always(openai_error(503, headers={"x-request-id": "req_lost", "x-lost": "1"}))
        backup.always(ollama_completion("served"))
        harness = await start(chain(primary, backup))

        reply = await harness.chat()

        assert "x-lost" not in reply.headers
        assert reply.headers.get("x-request-id") != "req_lost"

    @pytest.mark.parametrize(
        "name",
        ["gpt\r\nx-evil: 1", "modèle", "\x00\x7f", "m" * 5000],
        ids=["newline", "accent", "controls", "long"],
    )
    async def test_a_models_name_cannot_break_the_headers(
        self, start: Start, primary: FaultyUpstream, name: str
    ) -> None:
        primary.always(openai_completion("served", model=name))
        harness = await start(chain(primary))

        reply = await harness.chat()

        assert reply.status_code == 200
        assert "x-evil" not in reply.headers
        assert len(reply.headers["x-sentinel-model"]) <= 200

    async def test_what_the_fallback_cannot_honour_is_named(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        await primary.stop_listening()
        backup.always(ollama_completion("served"))
        harness = await start(chain(primary, backup))

        reply = await harness.chat(logit_bias={"50256": -100})

        assert reply.headers["x-sentinel-lossy"] == "logit_bias"
        assert reply.headers["x-sentinel-model"] == "llama3.2"

    async def test_streams_say_that_nobody_may_hold_them_back(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_stream(["a"]))
        harness = await start(chain(primary))

        reply = await harness.chat(stream=True)

        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["cache-control"] == "no-cache, no-transform"
        assert reply.headers["x-accel-buffering"] == "no"
        assert "content-length" not in reply.headers

    async def test_time_spent_waiting_for_others_is_not_our_overhead(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        primary.plays([Pause(0.1), *openai_error(500)], [Pause(0.1), *openai_completion("served")])
        harness = await start(chain(primary))

        reply = await harness.chat()

        (finished,) = harness.finished()
        assert finished.seconds > 0.2
        assert finished.overhead_seconds < finished.seconds / 2
        assert float(reply.headers["x-sentinel-overhead-ms"]) < finished.seconds * 500


class TestStreamedThrough:
    async def test_an_upload_arrives_as_it_was_sent(self, start: Start, primary: FaultyUpstream) -> None:
        """K12: the boundary of a multipart body stays intact."""
        primary.always(json_answer(200, {"text": "hello"}, {"set-cookie": "a=1", "x-request-id": "req_2"}))
        harness = await start(chain(primary))
        audio = bytes(range(256)) * 4000

        reply = await harness.client.post(
            "/v1/audio/transcriptions?x=1", data={"model": "whisper-1"}, files={"file": ("a.wav", audio)}
        )

        received = primary.requests[0]
        assert reply.json() == {"text": "hello"}
        assert received.target == "/v1/audio/transcriptions?x=1"
        assert (received.header("content-type") or "").startswith("multipart/form-data; boundary=")
        assert audio in received.body
        assert reply.headers["x-sentinel-trail"] == "openai:200"
        assert reply.headers["x-request-id"] == "req_2"
        assert "set-cookie" not in reply.headers

    async def test_answers_pass_byte_for_byte_with_what_describes_them(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        packed = b"\x1f\x8b not really gzip"
        primary.always(answer(206, packed, {"content-type": "audio/mpeg", "content-range": "bytes 0-1/9"}))
        harness = await start(chain(primary))

        reply = await harness.client.get("/v1/files/file-1/content")

        assert (reply.status_code, reply.content) == (206, packed)
        assert reply.headers["content-type"] == "audio/mpeg"
        assert reply.headers["content-range"] == "bytes 0-1/9"

    async def test_an_error_keeps_its_status_and_gains_our_advice(
        self, start: Start, primary: FaultyUpstream, other: FaultyUpstream
    ) -> None:
        """G06: whatever it was, it may have been processed, so nobody else is asked."""
        primary.always(openai_error(500, headers={"x-should-retry": "false"}))
        harness = await start(two_vendors(primary, other))

        reply = await harness.client.post("/v1/images/generations", json={"prompt": "a cat"})

        assert reply.status_code == 500
        assert reply.headers["x-sentinel-error-source"] == "upstream"
        assert reply.headers.get_list("x-should-retry") == ["false"]
        assert other.requests == []

    async def test_a_connection_that_was_refused_was_never_asked(
        self, start: Start, primary: FaultyUpstream, other: FaultyUpstream
    ) -> None:
        """G07."""
        await primary.stop_listening()
        other.always(json_answer(200, {"ok": True}))
        harness = await start(two_vendors(primary, other))

        reply = await harness.client.post("/v1/images/generations", json={"prompt": "a cat"})

        assert reply.json() == {"ok": True}
        assert reply.headers["x-sentinel-trail"] == "openai:connect,other:200"

    async def test_one_that_wants_to_be_left_alone_is_passed_by(
        self, start: Start, primary: FaultyUpstream, other: FaultyUpstream
    ) -> None:
        primary.always(openai_error(429, headers={"retry-after": "9"}))
        other.always(openai_completion("served"))
        harness = await start(two_vendors(primary, other, own_keys=True))
        await harness.chat()

        reply = await harness.client.get("/v1/files")

        assert reply.headers["x-sentinel-trail"] == "openai:limited,other:200"
        assert len(primary.requests) == 1

    @pytest.mark.parametrize(
        ("headers", "trail"),
        [
            ({"x-sentinel-providers": "other"}, "other:200"),
            ({"x-sentinel-no-failover": "true"}, "openai:connect"),
        ],
        ids=["another provider", "no other"],
    )
    async def test_the_callers_controls_hold_here_too(
        self,
        start: Start,
        primary: FaultyUpstream,
        other: FaultyUpstream,
        headers: dict[str, str],
        trail: str,
    ) -> None:
        await primary.stop_listening()
        other.always(json_answer(200, {"ok": True}))
        harness = await start(two_vendors(primary, other))

        reply = await harness.client.get("/v1/files", headers=headers)

        assert reply.headers["x-sentinel-trail"] == trail

    async def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_whole(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        whole = answer(200, b"x" * 1000, framing="chunked")
        primary.always([*whole[:2], Reset()])
        harness = await start(chain(primary))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(harness.url.rpartition(":")[2]))

        writer.write(b"GET /v1/files/file-1/content HTTP/1.1\r\nhost: proxy\r\n\r\n")
        received = await reader.read()
        writer.close()

        assert b"x" * 1000 in received
        assert not received.endswith(b"0\r\n\r\n")
        assert [event.outcome for event in harness.finished()] == ["truncated"]
        assert harness.idle()


class TestLimits:
    async def test_a_client_has_so_many_calls_in_a_window(
        self, start: Start, primary: FaultyUpstream, backup: FaultyUpstream
    ) -> None:
        """I01, I03, I09, I10: a failover costs one, a refused call and the operators' pages none."""
        primary.always(openai_error(504))
        backup.always(ollama_completion("served"))
        harness = await start(chain(primary, backup, rate_limit=RateLimitConfig(requests=3, window=60)))

        served = [await harness.chat() for _ in range(3)]
        refused = [await harness.chat() for _ in range(2)]

        assert [reply.headers["x-sentinel-ratelimit-remaining"] for reply in served] == ["2", "1", "0"]
        for reply in refused:
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert_valid("ErrorResponse", reply.json())
            assert reply.headers["x-sentinel-ratelimit-limit"] == "3"
            assert 55 <= int(reply.headers["retry-after"]) <= 60
            assert reply.headers["x-should-retry"] == "false"
        assert [(await harness.client.get("/health")).status_code for _ in range(9)] == [200] * 9
        assert len(backup.requests) == 3

    async def test_the_call_at_the_announced_time_passes(self, start: Start, primary: FaultyUpstream) -> None:
        """I04."""
        primary.always(openai_completion("served"))
        harness = await start(chain(primary, rate_limit=RateLimitConfig(requests=1, window=0.5)))

        first, refused = await harness.chat(), await harness.chat()
        await asyncio.sleep(0.51)
        after = await harness.chat()

        assert [reply.status_code for reply in (first, refused, after)] == [200, 429, 200]

    async def test_a_forged_address_is_the_same_client(self, start: Start, primary: FaultyUpstream) -> None:
        """I07, I08."""
        primary.always(openai_completion("served"))
        one_each = RateLimitConfig(requests=1, window=60)
        strict = await start(chain(primary, rate_limit=one_each))
        trusting = await start(
            chain(primary, rate_limit=one_each, server=ServerConfig(trusted_proxies=("127.0.0.1",)))
        )
        forged = [{"x-forwarded-for": f"6.6.6.6, 10.0.0.{number}"} for number in (1, 1, 2)]

        assert [(await strict.chat(headers=each)).status_code for each in forged] == [200, 429, 429]
        assert [(await trusting.chat(headers=each)).status_code for each in forged] == [200, 429, 200]

    async def test_clients_are_counted_each_for_itself(self, start: Start, primary: FaultyUpstream) -> None:
        """I06."""
        primary.always(openai_completion("served"))
        clients = tuple(
            ClientConfig.model_validate({"name": name, "key": f"key-of-{name}", "requests": requests})
            for name, requests in (("one", 1), ("two", 2), ("free", 0))
        )
        harness = await start(
            chain(primary, clients=clients, rate_limit=RateLimitConfig(requests=9, window=60))
        )

        async def statuses(name: str) -> list[int]:
            headers = {"authorization": f"Bearer key-of-{name}"}
            return [(await harness.chat(headers=headers)).status_code for _ in range(3)]

        assert await statuses("one") == [200, 429, 429]
        assert await statuses("two") == [200, 200, 429]
        assert await statuses("free") == [200, 200, 200]

    async def test_more_than_fits_is_shed_unread(self, start: Start, primary: FaultyUpstream) -> None:
        """H07."""
        primary.always([Pause(0.5), *openai_completion("served")])
        harness = await start(chain(primary, server=ServerConfig(max_in_flight=2)))

        replies = await asyncio.gather(*(harness.chat() for _ in range(5)))

        refused = [reply for reply in replies if reply.status_code == 503]
        assert len(refused) == 3
        assert {reply.json()["error"]["code"] for reply in refused} == {"proxy_overloaded"}
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert {reply.headers["x-should-retry"] for reply in refused} == {"true"}
        assert harness.proxy.load.shed == 3
        assert len(primary.requests) == 2


SECRETS = {
    "the caller's key": CALLERS_KEY,
    "our key": "sk-of-the-proxy",
    "the prompt": "what nobody else may read",
    "the answer": "an answer in confidence",
    "the upstream's address": "http://127.0.0.1",
}


async def test_no_secret_is_in_what_we_say_of_calls(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """K10: a whole scripted run, its log, its errors and every `repr` along the way."""
    echo = f"bad key {CALLERS_KEY} sk-of-the-proxy"
    primary.plays(
        openai_completion(SECRETS["the answer"]),
        openai_error(401, "invalid_api_key", echo),
        [Reset()],
        openai_error(500, None, echo),
        openai_error(500, None, echo),
        [*openai_stream([SECRETS["the answer"]])[:3], Reset()],
        openai_error(400, "invalid_value", "no"),
    )
    backup.always(openai_error(500))
    harness = await start(chain(primary, backup))
    stream = io.BytesIO()
    log = Log(LogConfig(level="debug"), stream)
    log.listen(harness.proxy.bus)
    headers = {"authorization": f"Bearer {CALLERS_KEY}"}
    asked = [{"role": "user", "content": SECRETS["the prompt"]}]

    said, answered = [], ""
    for streaming in (False, False, False, False, True, False):
        reply = await harness.chat(stream=streaming, messages=asked, headers=headers)
        said.append(reply.text if reply.status_code >= 400 else "")
        answered += reply.text if reply.status_code == 200 else ""
        harness.proxy.upstreams[0].breakers.reset(harness.proxy.clock.monotonic(), "the next scene")
    calls = [event.call for event in harness.finished()]
    health = (await harness.client.get("/health")).text
    log.sink.close()

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {line["event"] for line in lines} >= {"call", "attempt failed", "breaker changed"}
    assert SECRETS["the answer"] in answered
    everything = [stream.getvalue().decode(), *said, health, *map(repr, calls), *map(repr, harness.events)]
    everything += [repr(harness.proxy), repr(harness.proxy.failover), *map(repr, harness.proxy.registry)]
    for name, secret in SECRETS.items():
        assert not [text for text in everything if secret in text], name
