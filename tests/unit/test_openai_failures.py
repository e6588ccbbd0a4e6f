"""What an OpenAI-compatible server means by an error: the statuses, codes and shapes it comes in."""

import json
from typing import Any

import pytest

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Call, Endpoint, Headers, ReplyHead
from sentinel_proxy.providers.openai.failures import MAX_MESSAGE_CHARS, Failures

K = FailureKind
KEY = "sk-own-0123456789"
HTML = b"<!doctype html><html><body>Just a moment...</body></html>"


def call(*, key: str = "sk-caller-0123456789") -> Call:
    headers = [(b"authorization", b"Bearer " + key.encode())]
    return Call("t", Endpoint.CHAT, b"{}", {}, "m", False, 0, 1, headers)


def said(message: str = "no", **fields: Any) -> bytes:
    """An error in OpenAI's envelope."""
    envelope = {"message": message, "type": None, "param": None, "code": None, **fields}
    return json.dumps({"error": envelope}).encode()


def failure(
    status: int, body: bytes = b"", headers: Headers = (), *, callers_key: bool = False
) -> UpstreamError:
    failures = Failures(None if callers_key else KEY, callers_key=callers_key)
    return failures.of_answer(call(), ReplyHead(status, headers), body)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(400, said(type="invalid_request_error", param="n"), K.CALLER, id="B01-400"),
        pytest.param(400, said(code="unsupported_parameter"), K.CALLER, id="400-unsupported-parameter"),
        pytest.param(400, said(code="unsupported_value"), K.CALLER, id="400-unsupported-value"),
        pytest.param(400, b"bad request", K.CALLER, id="400-plain-text"),
        pytest.param(400, HTML, K.PROTOCOL, id="400-html"),
        pytest.param(400, said(code="context_length_exceeded"), K.CONTEXT_OVERFLOW, id="B02-overflow"),
        pytest.param(
            400, said(code=400, type="exceed_context_size_error"), K.CONTEXT_OVERFLOW, id="overflow-llama.cpp"
        ),
        pytest.param(
            400,
            said("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
            K.CONTEXT_OVERFLOW,
            id="overflow-vllm",
        ),
        pytest.param(
            400,
            said("You passed 9 tokens. However, the model's context length is only 8 tokens"),
            K.CONTEXT_OVERFLOW,
            id="overflow-newer-vllm",
        ),
        pytest.param(
            400,
            said("the request exceeds the available context size. try increasing it"),
            K.CONTEXT_OVERFLOW,
            id="overflow-older-llama.cpp",
        ),
        pytest.param(500, said("Context size has been exceeded."), K.CONTEXT_OVERFLOW, id="overflow-500"),
        pytest.param(400, said(code="content_filter"), K.CALLER, id="B04-content-filter"),
        pytest.param(
            400,
            said(code="other", innererror={"code": "ResponsibleAIPolicyViolation"}),
            K.CALLER,
            id="content-filter-inner-code",
        ),
        pytest.param(400, said(code="content_policy_violation"), K.CALLER, id="content-policy"),
        pytest.param(400, said("You have reached your spend limit"), K.QUOTA, id="400-spend-limit"),
        pytest.param(400, said("Your credit balance is too low"), K.QUOTA, id="400-credit-balance"),
        pytest.param(400, said("Model Not Exist"), K.MODEL_NOT_FOUND, id="400-model-not-exist"),
        pytest.param(401, said(code="invalid_api_key"), K.CREDENTIAL, id="B05-401"),
        pytest.param(401, b"", K.CREDENTIAL, id="401-empty"),
        pytest.param(402, said(), K.QUOTA, id="B07-402"),
        pytest.param(403, said(type="permission_error"), K.CREDENTIAL, id="403-json"),
        pytest.param(403, said(code="model_not_found"), K.MODEL_NOT_FOUND, id="403-no-access-to-model"),
        pytest.param(403, said(metadata={"flagged_input": "..."}), K.CALLER, id="403-moderation"),
        pytest.param(403, HTML, K.PROTOCOL, id="B08-403-html"),
        pytest.param(404, said(code="model_not_found"), K.MODEL_NOT_FOUND, id="B09-404-model"),
        pytest.param(404, said("The model `m` does not exist."), K.MODEL_NOT_FOUND, id="404-model-vllm"),
        pytest.param(404, said('model "m" not found, try pulling it'), K.MODEL_NOT_FOUND, id="404-ollama"),
        pytest.param(404, said(code="DeploymentNotFound"), K.MODEL_NOT_FOUND, id="404-azure"),
        pytest.param(404, said("No such File object: file-1"), K.CALLER, id="404-other-json"),
        pytest.param(404, b'{"detail":"Not Found"}', K.UNSUPPORTED, id="404-no-such-route"),
        pytest.param(404, b"", K.PROTOCOL, id="B10-404-empty"),
        pytest.param(404, HTML, K.PROTOCOL, id="404-html"),
        pytest.param(405, said(), K.UNSUPPORTED, id="405"),
        pytest.param(501, said(), K.UNSUPPORTED, id="501"),
        pytest.param(408, said(), K.TIMEOUT, id="B11-408"),
        pytest.param(409, said(), K.CONFLICT, id="B12-409"),
        pytest.param(413, said(), K.CALLER, id="B13-413"),
        pytest.param(413, HTML, K.CALLER, id="413-html"),
        pytest.param(413, said(code="rate_limit_exceeded"), K.THROTTLED, id="413-tokens-per-minute"),
        pytest.param(415, said(), K.CALLER, id="415"),
        pytest.param(422, said(), K.CALLER, id="422"),
        pytest.param(418, said(), K.CALLER, id="other-4xx"),
        pytest.param(425, said(), K.OVERLOADED, id="425"),
        pytest.param(429, said(code="rate_limit_exceeded"), K.THROTTLED, id="B15-429"),
        pytest.param(429, said(type="rate_limit_error"), K.THROTTLED, id="429-by-type"),
        pytest.param(429, said(code="slow_down"), K.THROTTLED, id="429-slow-down"),
        pytest.param(429, said("high demand", code="429"), K.THROTTLED, id="429-azure"),
        pytest.param(429, HTML, K.THROTTLED, id="429-html"),
        pytest.param(429, said(type="insufficient_quota"), K.QUOTA, id="B17-429-quota-by-type"),
        *(
            pytest.param(429, said(code=code, type="requests"), K.QUOTA, id=f"B18-429-{code}")
            for code in (
                "insufficient_quota",
                "credit_balance_exhausted",
                "organization_spend_limit_exceeded",
                "project_spend_limit_exceeded",
                "organization_usage_limit_exceeded",
                "enforced_spend_limit_reached",
                "billing_hard_limit_reached",
            )
        ),
        pytest.param(499, said(), K.PROTOCOL, id="499"),
        pytest.param(500, said(type="server_error"), K.OVERLOADED, id="B20-500"),
        pytest.param(500, said(type="invalid_request_error"), K.OVERLOADED, id="500-whatever-its-type"),
        pytest.param(502, HTML, K.OVERLOADED, id="B21-502-html"),
        pytest.param(503, said(type="unavailable_error"), K.OVERLOADED, id="B22-503"),
        pytest.param(503, said(code="server_is_overloaded"), K.OVERLOADED, id="503-overloaded"),
        pytest.param(504, said(type="server_error"), K.TIMEOUT, id="B23-504"),
        *(
            pytest.param(status, HTML, K.GATEWAY, id=str(status))
            for status in (520, 521, 522, 523, 525, 526, 527, 530)
        ),
        pytest.param(524, HTML, K.TIMEOUT, id="B24-524"),
        pytest.param(529, said(type="overloaded_error"), K.OVERLOADED, id="B25-529"),
        pytest.param(599, b"", K.OVERLOADED, id="other-5xx"),
        pytest.param(302, b"", K.PROTOCOL, id="redirect"),
        pytest.param(700, b"", K.PROTOCOL, id="no-status-at-all"),
    ],
)
def test_every_status_has_its_kind(status: int, body: bytes, kind: FailureKind) -> None:
    named = failure(status, body)

    assert (named.kind, named.status) == (kind, status)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(401, said(code="invalid_api_key"), id="B06-401"),
        pytest.param(401, b"", id="401-empty"),
        pytest.param(403, said(type="permission_error"), id="403"),
    ],
)
def test_a_refused_key_of_the_caller_is_the_callers_business(status: int, body: bytes) -> None:
    assert failure(status, body, callers_key=True).kind is K.CALLER


def test_the_words_of_the_upstream_are_kept() -> None:
    named = failure(400, said("bad n", code="invalid_value", type="invalid_request_error", param="n"))

    assert (named.message, named.code, named.type, named.param) == (
        "bad n",
        "invalid_value",
        "invalid_request_error",
        "n",
    )


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(400, said(code="unsupported_value"), id="400"),
        pytest.param(409, said(), id="409"),
        pytest.param(400, said(code="context_length_exceeded"), id="overflow-with-the-code"),
        pytest.param(404, said(code="model_not_found"), id="404"),
        pytest.param(405, said(), id="405"),
    ],
)
def test_what_the_caller_must_mend_goes_back_as_it_came(status: int, body: bytes) -> None:
    headers = [(b"x-request-id", b"r1")]

    named = failure(status, body, headers)

    assert (named.body, named.headers) == (body, headers)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(422, b'{"detail":"nope"}', id="not-the-envelope"),
        pytest.param(413, HTML, id="html"),
        pytest.param(400, b'{"error":"nope"}', id="an-error-without-fields"),
        pytest.param(400, said("prompt is too long"), id="overflow-without-the-code"),
        pytest.param(500, said(), id="not-the-callers-fault"),
        pytest.param(400, said(f"no, {KEY}!"), id="our-key-is-in-it"),
    ],
)
def test_what_a_caller_could_not_read_or_must_not_see_does_not_go_back(status: int, body: bytes) -> None:
    assert failure(status, body).body is None


def test_an_overflow_has_the_code_that_callers_look_for() -> None:
    assert failure(400, said("prompt is too long", code="other")).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b'{"error":"text"}', "text", id="text"),
        pytest.param(b'[{"error":{"message":"text"}}]', "text", id="google"),
        pytest.param(b'{"object":"error","message":"text"}', "text", id="flat"),
        pytest.param(b'{"detail":"text"}', "text", id="fastapi"),
        pytest.param(
            b'{"detail":[{"loc":["body","n"],"msg":"too small","input":"secret prompt"}]}',
            "body.n: too small",
            id="B14-fastapi-validation",
        ),
        pytest.param(b'{"detail":[{}]}', "request: refused", id="fastapi-says-nothing"),
        pytest.param(b'{"detail":7}', "the upstream answered 422 with no readable error", id="detail-is-odd"),
        pytest.param(b"[]", "the upstream answered 422 with no readable error", id="an-empty-list"),
        pytest.param(b"oh no", "the upstream answered 422 with no readable error", id="not-json"),
        pytest.param(HTML, "the upstream answered 422 with a web page", id="html"),
        pytest.param(
            said("<html>oh</html>"), "the upstream answered 422 with no readable error", id="html-in-json"
        ),
    ],
)
def test_errors_of_any_shape_are_read(body: bytes, message: str) -> None:
    assert failure(422, body).message == message


@pytest.mark.parametrize(
    "text",
    [
        f"Incorrect API key provided: {KEY}.",
        "Incorrect API key provided: sk-abc***wxyz. See the docs.",
        "no: sk-proj-abcdefgh",
        "header was 'Bearer abc.def.ghi'",
        "key sk-caller-0123456789 is wrong",
        "gsk_abcdef was refused",
    ],
)
def test_keys_in_messages_are_masked(text: str) -> None:
    message = failure(500, said(text)).message

    assert "****" in message
    assert not any(secret in message for secret in (KEY, "abc", "0123456789"))


def test_a_key_that_looks_like_none_is_masked_too() -> None:
    named = Failures("correct horse").of_answer(
        call(key="battery staple"),
        ReplyHead(500, ()),
        said("neither correct horse nor battery staple will do"),
    )

    assert named.message == "neither **** nor **** will do"


def test_a_placeholder_for_a_key_garbles_no_message() -> None:
    named = Failures("none").of_answer(call(key="x"), ReplyHead(500, ()), said("none of the six"))

    assert named.message == "none of the six"


def test_messages_are_cut() -> None:
    assert len(failure(500, said("x" * 10_000)).message) == MAX_MESSAGE_CHARS


def test_the_wait_that_the_upstream_asks_for_is_kept() -> None:
    assert failure(429, said(), [(b"retry-after-ms", b"300"), (b"retry-after", b"9")]).retry_after == 0.3


@pytest.mark.parametrize(
    ("payload", "kind", "status"),
    [
        pytest.param({"error": {"code": "rate_limit_exceeded"}}, K.THROTTLED, None, id="by-code"),
        pytest.param({"error": {"type": "overloaded_error"}}, K.OVERLOADED, None, id="by-type"),
        pytest.param({"error": {"type": "timeout_error"}}, K.TIMEOUT, None, id="timeout"),
        pytest.param({"error": {"type": "invalid_request_error"}}, K.CALLER, 400, id="by-generic-type"),
        pytest.param({"error": {"code": 502, "message": "x"}}, K.OVERLOADED, None, id="by-number"),
        pytest.param({"error": {"code": "429"}}, K.THROTTLED, None, id="by-number-as-text"),
        pytest.param({"error": {"code": 404}}, K.CALLER, 404, id="number-of-a-callers-fault"),
        pytest.param({"error": {"code": 7}}, K.OVERLOADED, None, id="number-that-is-no-status"),
        pytest.param({"error": "oh"}, K.OVERLOADED, None, id="text"),
        pytest.param({"error": True}, K.OVERLOADED, None, id="no-text"),
        pytest.param({"error": {"code": "insufficient_quota"}}, K.QUOTA, None, id="money"),
        pytest.param({"error": {"code": "context_length_exceeded"}}, K.CONTEXT_OVERFLOW, 400, id="overflow"),
        pytest.param(None, K.OVERLOADED, None, id="unreadable"),
    ],
)
def test_errors_inside_an_answer_are_named_by_the_same_tables(
    payload: Any, kind: FailureKind, status: int | None
) -> None:
    named = Failures(KEY).in_band(call(), payload)

    assert (named.kind, named.status, named.body) == (kind, status, None)
    assert named.message


def test_failures_that_we_find_ourselves_have_codes_of_ours() -> None:
    assert Failures().of_kind(K.TRUNCATED, "m").code == "upstream_incomplete"
    assert Failures().of_kind(K.OVERLOADED, "m").code is None


@pytest.mark.parametrize("code", ["insufficient_quota", "rate_limit_exceeded"])
@pytest.mark.parametrize("callers_key", [True, False], ids=["the caller's key", "our own key"])
def test_what_an_account_lacks_is_personal_only_with_the_callers_own_key(
    code: str, callers_key: bool
) -> None:
    assert failure(429, said(code=code), callers_key=callers_key).personal is callers_key
