"""The example of docs/providers.md is a provider like any other, and an installable package."""

import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import CHAT, chain
from hypothesis import given
from hypothesis import strategies as st
from openai_schema import assert_valid
from sentinel_gemini import WITHHELD, GeminiProvider

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import load
from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Call, Endpoint, ReplyHead
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.providers.configured import default_registry
from sentinel_proxy.server import running
from sentinel_proxy.testing import FakeClock, FaultyUpstream, json_answer, openai_error, sse, sse_stream

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "sentinel-gemini"
OK = ReplyHead(200, ())

Json = dict[str, Any]


def provider() -> GeminiProvider:
    return GeminiProvider(api_key="key-of-gemini", clock=FakeClock())


def call(stream: bool = False, **fields: Any) -> Call:
    payload = {**CHAT, "stream": stream, **fields}
    body = json.dumps(payload).encode()
    return Call("trace", Endpoint.CHAT, body, payload, "gpt-4o-mini", stream, 0.0, 600.0)


def answer(text: str, reason: str | None = "STOP") -> Json:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": reason, "index": 0}
    usage = {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7}
    return {"candidates": [candidate], "usageMetadata": usage, "responseId": "r1"}


def decoded(decoder: Decoder, *parts: bytes) -> bytes:
    output = b"".join(decoder.feed(part) for part in parts if decoder.failure is None)
    return output if decoder.complete or decoder.failure is not None else output + decoder.close()


def events(output: bytes) -> list[Json]:
    assert output.endswith(b"data: [DONE]\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in output.split(b"\n\n")[:-2]]


def test_a_call_is_asked_in_geminis_words() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello"},
    ]

    request = provider().encode(call(messages=messages, max_tokens=9, stop="END", user="me"))

    assert request.target == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert request.lossy == ("user",)
    assert isinstance(request.body, bytes)
    assert json.loads(request.body) == {
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "Hello"}]},
        ],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {"maxOutputTokens": 9, "stopSequences": ["END"]},
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "tool", "content": "4", "tool_call_id": "call_1"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
    ],
    ids=["tools", "several-choices", "json", "tool-result", "image"],
)
def test_what_it_cannot_translate_is_left_to_the_next_provider(fields: Json) -> None:
    with pytest.raises(UpstreamError) as refused:
        provider().encode(call(**fields))

    assert refused.value.kind is FailureKind.UNSUPPORTED


@pytest.mark.parametrize("messages", [["Hi"], [{"content": "Hi"}], [{"role": "user", "content": [1]}]])
def test_messages_of_no_known_shape_are_the_callers_fault(messages: Any) -> None:
    with pytest.raises(UpstreamError) as refused:
        provider().encode(call(messages=messages))

    assert refused.value.kind is FailureKind.CALLER


def test_a_whole_answer_is_a_chat_completion() -> None:
    decoder = provider().decoder(call(), OK)

    completion = json.loads(decoded(decoder, json.dumps(answer("Hello")).encode()))

    assert_valid("CreateChatCompletionResponse", completion)
    assert completion["choices"][0]["message"]["content"] == "Hello"
    assert completion["usage"]["total_tokens"] == 7
    assert decoder.complete


@given(cuts=st.lists(st.integers(0, 900)))
def test_where_the_network_cuts_a_stream_does_not_matter(cuts: list[int]) -> None:
    body = sse(answer("Hel", None)) + sse(answer("lo", None)) + sse(answer("", "MAX_TOKENS"))
    edges = [0, *sorted(cuts), len(body)]
    asked = call(stream=True, stream_options={"include_usage": True})
    decoder = provider().decoder(asked, OK)

    chunks = events(decoded(decoder, *(body[a:b] for a, b in pairwise(edges))))

    for chunk in chunks:
        assert_valid("CreateChatCompletionStreamResponse", chunk)
    deltas = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert deltas == ["", "Hel", "lo", None]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert ("".join(decoder.said), decoder.progress, decoder.complete) == ("Hello", 2, True)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([answer("Hel", None)], FailureKind.TRUNCATED),
        ([answer("", "STOP")], FailureKind.EMPTY),
        ([answer("Hel", "MALFORMED_FUNCTION_CALL")], FailureKind.BAD_OUTPUT),
        ([{"promptFeedback": {"blockReason": "SAFETY"}}], FailureKind.CALLER),
        ([{}], FailureKind.PROTOCOL),
        (["garbage"], FailureKind.PROTOCOL),
        ([], FailureKind.TRUNCATED),
    ],
    ids=["cut", "empty", "broken", "blocked", "nothing-known", "no-json", "no-event"],
)
def test_a_bad_stream_is_a_failure_and_never_complete(pieces: list[Any], kind: FailureKind) -> None:
    decoder = provider().decoder(call(stream=True), OK)

    output = decoded(decoder, *map(sse, pieces))

    assert decoder.failure is not None
    assert (decoder.failure.kind, decoder.complete) == (kind, False)
    assert b"[DONE]" not in output


@pytest.mark.parametrize("reason", WITHHELD)
def test_an_answer_that_was_withheld_says_so(reason: str) -> None:
    decoder = provider().decoder(call(stream=True), OK)

    chunks = events(decoded(decoder, sse(answer("", reason))))

    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, {"status": "RESOURCE_EXHAUSTED", "message": "slow down"}, FailureKind.THROTTLED),
        (503, {"status": "UNAVAILABLE", "message": "overloaded"}, FailureKind.OVERLOADED),
        (404, {"status": "NOT_FOUND", "message": "no such model"}, FailureKind.MODEL_NOT_FOUND),
        (400, {"status": "INVALID_ARGUMENT", "message": "topP is 3"}, FailureKind.CALLER),
        (400, {"status": "INVALID_ARGUMENT", "message": "API key not valid."}, FailureKind.CREDENTIAL),
        (502, None, FailureKind.PROTOCOL),
    ],
    ids=["throttled", "overloaded", "no-model", "wrong", "wrong-key", "unreadable"],
)
def test_an_error_is_named_by_its_words(status: int, error: Json | None, kind: FailureKind) -> None:
    head = ReplyHead(status, ((b"retry-after", b"7"),))

    failure = provider().failure(call(), head, json.dumps({"error": error}).encode())

    assert (failure.kind, failure.status, failure.retry_after) == (kind, status, 7.0)


def test_the_model_list_is_read() -> None:
    entries = provider().catalogue(b'{"models": [{"name": "models/gemini-2.5-flash"}]}')

    assert [entry.id for entry in entries] == ["gemini-2.5-flash"]


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_it_answers_where_the_first_of_the_chain_is_down(
    primary: FaultyUpstream, backup: FaultyUpstream, stream: bool
) -> None:
    primary.always(openai_error(503))
    backup.always(
        sse_stream([sse(answer("Hello", None)), sse(answer("", "STOP"))])
        if stream
        else json_answer(200, answer("Hello"))
    )
    config = chain(primary)
    registry = default_registry(config)
    registry.register(GeminiProvider(api_key="key-of-gemini", base_url=backup.url), position=2)

    async with running(Proxy(config, registry=registry)) as url, httpx.AsyncClient(trust_env=False) as client:
        reply = await client.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": stream})

    assert (reply.status_code, reply.headers["x-sentinel-provider"]) == (200, "gemini")
    assert "Hello" in reply.text
    assert backup.requests[0].header("x-goog-api-key") == "key-of-gemini"


def test_once_installed_it_is_second_in_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    installed = tmp_path / f"sentinel_gemini-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    ((group, entries),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "key-of-gemini")

    registry = default_registry(load(None, {}).config)

    assert [each.name for each in registry] == ["openai", "gemini", "ollama"]
    assert "key-of-gemini" not in repr(list(registry)) + str(registry)
