"""What a caller is told when nobody answered: the best news, in OpenAI's shape, with honest advice."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_schema import assert_valid

from sentinel_proxy.api.errors import ErrorAnswer, advice, answer, of_caller, of_late_body, of_no_reply
from sentinel_proxy.errors import BreakerOpen, CallerError, FailureKind, NoReply, UpstreamError
from sentinel_proxy.model import Attempt, Call, Endpoint, header

Kind = FailureKind
Failure = UpstreamError | BreakerOpen


def call(*trail: Attempt) -> Call:
    made = Call("t", Endpoint.CHAT, b"", {}, "m", False, 0.0, 600.0)
    made.trail.extend(trail or [Attempt("a", "503", seconds=0.25)])
    return made


def failed(kind: FailureKind, message: str = "it said no", **more: Any) -> UpstreamError:
    return UpstreamError(kind, message, **more)


def told(*failures: Failure, too_late: bool = False) -> ErrorAnswer:
    return of_no_reply(NoReply(failures, deadline_exceeded=too_late), call())


def body(answer: ErrorAnswer) -> Any:
    return json.loads(answer.body)["error"]


def value(answer: ErrorAnswer, name: str) -> str | None:
    found = header(answer.headers, name.encode())
    return None if found is None else found.decode()


THROTTLED = failed(Kind.THROTTLED, status=429, retry_after=7.0)
OVERLOADED = failed(Kind.OVERLOADED, status=503)
CALLERS = failed(Kind.CALLER, status=400, code="invalid_value")
OVERFLOW = failed(Kind.CONTEXT_OVERFLOW, status=400, code="context_length_exceeded")
UNKNOWN = failed(Kind.MODEL_NOT_FOUND, status=404, code="model_not_found")
UNSUPPORTED = failed(Kind.UNSUPPORTED, code="unsupported_by_fallback")

# id, what everybody said, whether time is up, status, code, retry-after, x-should-retry
NEWS = [
    ("the caller's fault beats all", [OVERLOADED, CALLERS], False, 400, "invalid_value", None, "false"),
    (
        "an overflow is the caller's to mend",
        [OVERFLOW, OVERLOADED],
        True,
        400,
        "context_length_exceeded",
        None,
        "false",
    ),
    (
        "a lock conflict may be repeated",
        [failed(Kind.CONFLICT, status=409, code="busy")],
        False,
        409,
        "busy",
        None,
        "true",
    ),
    ("nobody knows the model", [UNKNOWN, UNKNOWN], False, 404, "model_not_found", None, "false"),
    (
        "nobody can serve it: the first counts",
        [UNKNOWN, UNSUPPORTED],
        False,
        404,
        "model_not_found",
        None,
        "false",
    ),
    ("time is up", [OVERLOADED], True, 504, "deadline_exceeded", None, "false"),
    ("all rest", [BreakerOpen(12.2), BreakerOpen(40)], False, 503, "all_providers_unavailable", "13", "true"),
    (
        "one rests, one failed",
        [BreakerOpen(40), OVERLOADED],
        False,
        503,
        "all_providers_unavailable",
        "40",
        "false",
    ),
    (
        "B30 all are busy",
        [THROTTLED, failed(Kind.THROTTLED, retry_after=3.0)],
        False,
        429,
        "rate_limit_exceeded",
        "3",
        "true",
    ),
    ("busy without a number", [failed(Kind.THROTTLED)], False, 429, "rate_limit_exceeded", "1", "true"),
    (
        "busy, and another cannot serve it",
        [THROTTLED, UNSUPPORTED],
        False,
        429,
        "rate_limit_exceeded",
        "7",
        "true",
    ),
    ("all are full", [failed(Kind.LOCAL), THROTTLED], False, 503, "proxy_overloaded", "1", "true"),
    (
        "all are slow",
        [failed(Kind.TIMEOUT), failed(Kind.CONNECT_TIMEOUT)],
        False,
        504,
        "upstream_timeout",
        None,
        "true",
    ),
    ("our key", [failed(Kind.CREDENTIAL, status=401)], False, 502, "provider_auth_failed", None, "false"),
    (
        "our money",
        [failed(Kind.CREDENTIAL), failed(Kind.QUOTA)],
        False,
        503,
        "provider_quota_exhausted",
        None,
        "false",
    ),
    ("nobody there", [failed(Kind.CONNECT)], False, 502, "provider_unreachable", None, "true"),
    (
        "a mixture",
        [failed(Kind.CONNECT), failed(Kind.TIMEOUT)],
        False,
        502,
        "all_providers_failed",
        None,
        "true",
    ),
    (
        "a mixture with a wait",
        [failed(Kind.CONNECT), THROTTLED],
        False,
        503,
        "all_providers_failed",
        "7",
        "true",
    ),
    (
        "B22 a long wait",
        [failed(Kind.OVERLOADED, retry_after=120.0)],
        False,
        503,
        "all_providers_failed",
        "120",
        "false",
    ),
    ("nobody is configured", [], False, 503, "all_providers_unavailable", None, "false"),
]


@pytest.mark.parametrize(
    ("failures", "too_late", "status", "code", "retry_after", "should_retry"),
    [news[1:] for news in NEWS],
    ids=[news[0] for news in NEWS],
)
def test_the_best_news_is_told(
    failures: list[Failure],
    too_late: bool,
    status: int,
    code: str,
    retry_after: str | None,
    should_retry: str,
) -> None:
    answer = told(*failures, too_late=too_late)

    assert (answer.status, body(answer)["code"]) == (status, code)
    assert value(answer, "retry-after") == retry_after
    assert value(answer, "x-should-retry") == should_retry


FAILURES = st.builds(BreakerOpen, st.floats(0, 1e6)) | st.builds(
    UpstreamError,
    st.sampled_from(FailureKind),
    st.text(max_size=20),
    status=st.none() | st.integers(300, 599),
    code=st.none() | st.text(max_size=9),
    type=st.none() | st.text(max_size=9),
    param=st.none() | st.text(max_size=9),
    retry_after=st.none() | st.floats(0, 1e6),
)


@given(failures=st.lists(FAILURES, max_size=4), too_late=st.booleans())
def test_whatever_happened_the_answer_is_one_that_sdks_read(failures: list[Failure], too_late: bool) -> None:
    answer = told(*failures, too_late=too_late)

    assert_valid("ErrorResponse", json.loads(answer.body))
    assert 400 <= answer.status <= 599 or any(getattr(f, "status", None) == answer.status for f in failures)
    assert value(answer, "content-type") == "application/json"
    assert value(answer, "x-sentinel-error-source") in ("proxy", "upstream")
    assert value(answer, "x-should-retry") in ("true", "false")
    wait = value(answer, "retry-after")
    if wait is not None:
        assert int(wait) >= 1
        assert int(value(answer, "retry-after-ms") or 0) <= int(wait) * 1000
        assert int(wait) <= 30 or value(answer, "x-should-retry") == "false"


class TestRelayedRefusals:
    def test_the_upstreams_own_bytes_and_headers_go_back(self) -> None:
        raw = b'{"error": {"message": "no",  "type": "t", "param": null, "code": null}}'
        headers = [(b"x-request-id", b"req_1"), (b"set-cookie", b"a=1"), (b"content-type", b"text/plain")]

        answer = told(failed(Kind.CALLER, status=422, body=raw, headers=headers))

        assert (answer.status, answer.body) == (422, raw)
        assert value(answer, "x-request-id") == "req_1"
        assert value(answer, "set-cookie") is None
        assert [pair for pair in answer.headers if pair[0] == b"content-type"] == [
            (b"content-type", b"application/json")
        ]
        assert value(answer, "x-sentinel-error-source") == "upstream"

    def test_what_was_found_before_anything_was_sent_is_our_own_word(self) -> None:
        passed_by = call(Attempt("a", "unsupported", sent=False))
        keyless = failed(Kind.UNSUPPORTED, status=401, code="invalid_api_key")

        answer = of_no_reply(NoReply([keyless]), passed_by)

        assert (answer.status, body(answer)["type"]) == (401, "authentication_error")
        assert value(answer, "x-sentinel-error-source") == "proxy"


class TestDetails:
    def test_the_attempts_are_told_by_name_and_time(self) -> None:
        answer = told(OVERLOADED)

        attempts = body(answer)["metadata"]["attempts"]
        assert attempts == [{"provider": "a", "result": "503", "milliseconds": 250}]

    def test_what_several_said_alike_is_said_once(self) -> None:
        answer = told(OVERLOADED, OVERLOADED, failed(Kind.CONNECT, "refused"))

        assert answer.message == "all providers failed: it said no; refused"

    def test_the_callers_mistake_names_its_field(self) -> None:
        answer = of_caller(CallerError("'model' is missing", code="missing", param="model"))

        assert (answer.status, body(answer)["param"]) == (400, "model")
        assert value(answer, "x-should-retry") == "false"

    def test_a_late_body_gives_up_the_connection(self) -> None:
        late = of_late_body()

        assert (late.status, value(late, "connection")) == (408, "close")

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (429, "rate_limit_error"),
            (500, "server_error"),
            (502, "server_error"),
            (503, "service_unavailable_error"),
            (504, "timeout_error"),
        ],
    )
    def test_the_type_follows_from_the_status(self, status: int, expected: str) -> None:
        assert body(answer(status, "no"))["type"] == expected

    @pytest.mark.parametrize(
        ("seconds", "announced", "milliseconds"),
        [(0.0, "1", "1000"), (0.2, "1", "1000"), (1.5, "2", "1500"), (30.0, "30", "30000")],
    )
    def test_a_wait_is_announced_in_whole_seconds_and_never_as_zero(
        self, seconds: float, announced: str, milliseconds: str
    ) -> None:
        """Clients read a zero as "at once", or as nothing at all."""
        refusal = answer(503, "no", retry_after=seconds)

        assert (value(refusal, "retry-after"), value(refusal, "retry-after-ms")) == (announced, milliseconds)

    @pytest.mark.parametrize(
        ("status", "theirs", "expected"),
        [(503, [], b"true"), (400, [], b"false"), (503, [(b"x-should-retry", b"false")], None)],
        ids=["can help", "cannot help", "their own advice stands"],
    )
    def test_an_upstreams_error_gains_the_advice_it_lacks(
        self, status: int, theirs: list[tuple[bytes, bytes]], expected: bytes | None
    ) -> None:
        assert header(advice(status, theirs), b"x-should-retry") == expected
