"""What Ollama's failures mean: the table, row by row, and the words."""

import json

import pytest
from ollama_support import call, decoded, ndjson, provider

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Endpoint, Headers, ReplyHead

INVALID, SERVER = "invalid_request_error", "server_error"


def failed(
    status: int, body: bytes | str, endpoint: Endpoint = Endpoint.CHAT, headers: Headers = ()
) -> UpstreamError:
    """Return the failure that an answer means; a string is what Ollama would put under `error`."""
    data = body if isinstance(body, bytes) else json.dumps({"error": body}).encode()
    return provider().failure(call({}, endpoint), ReplyHead(status, headers), data)


@pytest.mark.parametrize(
    ("status", "said", "kind", "code", "type", "param"),
    [
        (
            500,
            "input length exceeds the context length",
            "context_overflow",
            "context_length_exceeded",
            INVALID,
            "messages",
        ),
        (
            400,
            "prompt exceeds maximum context length",
            "context_overflow",
            "context_length_exceeded",
            INVALID,
            "messages",
        ),
        (
            404,
            'model "x" not found, try pulling it first',
            "model_not_found",
            "model_not_found",
            INVALID,
            "model",
        ),
        (500, "image input is not supported - hint", "unsupported", "unsupported_by_fallback", INVALID, None),
        (400, '"x" does not support tools', "unsupported", "unsupported_by_fallback", INVALID, None),
        (500, "Jinja Exception: no", "unsupported", "upstream_rejected_request", INVALID, None),
        (500, "no user query found in messages", "unsupported", "upstream_rejected_request", INVALID, None),
        (400, "json: cannot unmarshal string", "unsupported", "upstream_rejected_request", INVALID, None),
        (500, "error parsing tool call", "bad_output", "upstream_bad_output", SERVER, None),
        (500, "json: unsupported value: NaN", "bad_output", "upstream_bad_output", SERVER, None),
        (401, "unauthorized", "credential", "upstream_auth", SERVER, None),
        (403, "", "credential", "upstream_misconfigured", SERVER, None),
        (402, "pay", "quota", "insufficient_quota", SERVER, None),
        (405, "no", "protocol", "upstream_misconfigured", SERVER, None),
        (404, "file does not exist", "protocol", "upstream_misconfigured", SERVER, None),
        (429, "slow down", "throttled", "rate_limit_exceeded", "rate_limit_error", None),
        (503, "anything", "overloaded", "upstream_overloaded", SERVER, None),
        (500, "server busy", "overloaded", "upstream_overloaded", SERVER, None),
        (504, "late", "timeout", "upstream_timeout", SERVER, None),
        (408, "late", "timeout", "upstream_timeout", SERVER, None),
        (422, "what", "caller", "upstream_rejected_request", INVALID, None),
        (413, "big", "caller", "upstream_rejected_request", INVALID, None),
        (500, "model runner has unexpectedly stopped", "overloaded", "upstream_error", SERVER, None),
        (502, "remote model is unavailable", "overloaded", "upstream_error", SERVER, None),
        (302, "", "protocol", "upstream_protocol_error", SERVER, None),
        (418, "teapot", "protocol", "upstream_protocol_error", SERVER, None),
    ],
)
def test_a_failure_is_named_by_the_first_row_that_matches(
    status: int, said: str, kind: str, code: str, type: str, param: str | None
) -> None:
    error = failed(status, said)

    assert (error.kind, error.code, error.type, error.param) == (kind, code, type, param)
    assert (error.status, error.body) == (status, None)


@pytest.mark.parametrize(
    ("endpoint", "param"),
    [(Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input"), (Endpoint.RESPONSES, "input")],
)
def test_an_overflow_blames_the_field_that_is_too_long(endpoint: Endpoint, param: str) -> None:
    assert failed(400, "prompt exceeds maximum context length", endpoint).param == param


def test_broken_machinery_behind_embeddings_is_the_servers_fault() -> None:
    said = 'do embedding request: Post "http://127.0.0.1:4321/embedding": EOF'

    assert failed(400, said, Endpoint.EMBEDDINGS).kind is FailureKind.OVERLOADED
    assert failed(400, said, Endpoint.CHAT).kind is FailureKind.CALLER


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        pytest.param(404, b"404 page not found", "protocol", "404 page not found", id="a text"),
        pytest.param(404, b"model x not found", "protocol", "model x not found", id="not Ollama's own words"),
        pytest.param(
            502,
            b"<html>Bad gateway</html>",
            "gateway",
            "the upstream answered with status 502 and a web page",
            id="HTML",
        ),
        pytest.param(
            403, b"", "credential", "the upstream answered with status 403 and no reason", id="nothing"
        ),
        pytest.param(500, b"\xff\xfe", "overloaded", "\ufffd\ufffd", id="no text"),
        pytest.param(
            500, b"[]", "overloaded", "the upstream answered with status 500 and no reason", id="a list"
        ),
        pytest.param(500, b'{"error":{"message":"m"}}', "overloaded", "m", id="an object"),
        pytest.param(500, b'{"message":"m","code":1}', "overloaded", "m", id="a message"),
        pytest.param(
            500, b'{"error":"{\\"error\\":{\\"message\\":\\"m\\"}}"}', "overloaded", "m", id="JSON in JSON"
        ),
        pytest.param(500, b'{"error":"{not json"}', "overloaded", "{not json", id="almost JSON in JSON"),
        pytest.param(500, b'{"boom":"it broke"}', "overloaded", "boom: it broke", id="the text is the key"),
    ],
)
def test_the_words_are_found_wherever_they_are(status: int, body: bytes, kind: str, message: str) -> None:
    error = failed(status, body)

    assert (error.kind, error.message) == (kind, message)


def test_words_wrapped_again_and_again_are_left_in_their_last_wrapping() -> None:
    words = "m"
    for _ in range(6):
        words = json.dumps({"error": words})

    assert failed(500, words.encode()).message == json.dumps({"error": json.dumps({"error": "m"})})


def test_long_words_are_cut() -> None:
    assert len(failed(500, "x" * 5000).message) == 500


@pytest.mark.parametrize(
    "said",
    [
        'Post "http://10.0.0.7:11434/embedding": gone',
        "dial tcp 10.0.0.7:11434: refused",
        "dial tcp [fe80::10.0.0.7]:11434: refused",
        'error parsing tool call: raw=\'{"card":"10.0.0.7"\', err=EOF',
    ],
)
def test_words_show_neither_addresses_nor_answers(said: str) -> None:
    assert "10.0.0.7" not in failed(500, said).message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param([(b"retry-after", b"7")], 7.0, id="seconds"),
        pytest.param([(b"retry-after", b"Sun, 01 Mar 2026 12:00:09 GMT")], 9.0, id="a date"),
        pytest.param([], None, id="none"),
    ],
)
def test_a_throttling_says_how_long_to_wait(headers: Headers, seconds: float | None) -> None:
    assert failed(429, "slow down", headers=headers).retry_after == seconds


HELLO = {"model": "llama3.2", "message": {"content": "Hi"}, "done": False}


@pytest.mark.parametrize(
    ("line", "kind", "code"),
    [
        pytest.param({"error": "server busy"}, "overloaded", "upstream_overloaded", id="words of the table"),
        pytest.param({"error": 'model "x" not found'}, "model_not_found", "model_not_found", id="a model"),
        pytest.param({"error": "anything"}, "overloaded", "upstream_error", id="unknown words"),
        pytest.param(
            {"error parsing tool call": "EOF"}, "bad_output", "upstream_bad_output", id="text as the key"
        ),
        pytest.param({"status": 1, "x": 2}, "protocol", "upstream_protocol_error", id="nothing known"),
        pytest.param({}, "protocol", "upstream_protocol_error", id="empty object"),
        pytest.param("text", "protocol", "upstream_protocol_error", id="no object"),
    ],
)
def test_an_error_line_is_a_failure(line: object, kind: str, code: str) -> None:
    first, silence = decoded({"stream": True}, ndjson([line]))
    later, _ = decoded({"stream": True}, ndjson([HELLO, line, HELLO]))

    assert first.failure is not None
    assert later.failure is not None
    assert (first.failure.kind, first.failure.code, first.began, silence) == (kind, code, False, b"")
    assert (later.failure.kind, later.failure.code, later.began) == (kind, code, True)
    assert (later.failure.type, later.failure.param) == (SERVER, None)


def test_a_model_that_refuses_to_think_in_a_stream_is_remembered() -> None:
    ollama = provider()
    request = call({"stream": True, "messages": [{"role": "user"}], "reasoning_effort": "low"})

    ollama.decoder(request, ReplyHead(200, ())).feed(ndjson([{"error": "m does not support thinking"}]))

    assert ollama.facts.about("LLAMA3.2:latest").refused_thinking
