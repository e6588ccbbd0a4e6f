"""From an HTTP request to a `Call`: what is read, what is refused, what is left to the providers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.api.calls import Told, parse_object, read_call, read_controls, told
from sentinel_proxy.errors import CallerError
from sentinel_proxy.model import NO_CONTROLS, Call, Controls, Endpoint, Trace

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
STARTED = 1000.0


def read(
    body: Any, endpoint: Endpoint = Endpoint.CHAT, headers: dict[str, str] | None = None, total: float = 600
) -> Call:
    trace = Trace("trace", STARTED, b"00-a-b-01", "web")
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return read_call(endpoint, trace, pairs, told(pairs), b"a=1", json.dumps(body).encode(), total)


class TestBodies:
    def test_a_call_keeps_the_bytes_that_came(self) -> None:
        body = b' {"model" : "m", "messages":[{}] } '

        call = read_call(Endpoint.CHAT, Trace("t", STARTED), (), told(()), b"", body, 600)

        assert call.body is body
        assert (call.model, call.stream, call.deadline) == ("m", False, STARTED + 600)

    def test_what_was_known_before_goes_along(self) -> None:
        call = read(CHAT | {"stream": True})

        assert (call.trace_id, call.started, call.traceparent) == ("trace", STARTED, b"00-a-b-01")
        assert (call.client, call.query, call.stream) == ("web", b"a=1", True)
        assert call.controls is NO_CONTROLS

    @pytest.mark.parametrize(
        ("endpoint", "body"),
        [
            (Endpoint.CHAT, CHAT | {"stream": None, "temperature": "hot", "never_heard_of": [1]}),
            (Endpoint.COMPLETIONS, {"model": "m", "prompt": ["a", "b"]}),
            (Endpoint.COMPLETIONS, {"model": "m", "prompt": ""}),
            (Endpoint.EMBEDDINGS, {"model": "m", "input": [[1, 2]]}),
            (Endpoint.RESPONSES, {"model": "m", "input": "x"}),
            (Endpoint.RESPONSES, {"prompt": {"id": "pmpt_1"}}),
            (Endpoint.RESPONSES, {"prompt": {"id": "pmpt_1"}, "model": None}),
            (Endpoint.RESPONSES, {"model": "m", "previous_response_id": "resp_1"}),
        ],
        ids=lambda value: None if isinstance(value, str) else "-".join(value),
    )
    def test_what_we_need_not_know_is_not_judged(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        call = read(body, endpoint)

        assert call.payload == body
        assert call.model == (body.get("model") or "")

    def test_there_is_no_stream_of_embeddings(self) -> None:
        call = read({"model": "m", "input": "x", "stream": True}, Endpoint.EMBEDDINGS)

        assert not call.stream

    @pytest.mark.parametrize(
        ("change", "code", "param"),
        [
            ({"model": None}, "missing_required_parameter", "model"),
            ({"model": ["m"]}, "invalid_type", "model"),
            ({"messages": {}}, "invalid_type", "messages"),
            ({"messages": []}, "invalid_value", "messages"),
            ({"stream": 1}, "invalid_type", "stream"),
        ],
        ids=str,
    )
    def test_a_mistake_names_its_field(self, change: dict[str, Any], code: str, param: str) -> None:
        with pytest.raises(CallerError) as refused:
            read(CHAT | change)

        assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)

    @given(body=st.binary(max_size=50))
    def test_a_refusal_never_quotes_the_body(self, body: bytes) -> None:
        secret = b"{a secret prompt" + body

        with pytest.raises(CallerError) as refused:
            parse_object(secret)

        assert "secret" not in refused.value.message

    def test_what_is_shown_of_a_call_holds_no_prompt(self) -> None:
        call = read({"model": "m", "messages": [{"content": "secret"}]})

        assert repr(call) == "<Call trace chat.completions stream=False>"


class TestHeaders:
    def test_controls_are_read(self) -> None:
        controls = read_controls(
            [
                (b"x-sentinel-providers", b" ollama, openai ,"),
                (b"x-sentinel-no-failover", b"TRUE"),
                (b"x-sentinel-timeout", b"2.5"),
                (b"x-sentinel-first-token-timeout", b"1e1"),
                (b"x-sentinel-rescue", b"Error"),
            ]
        )

        assert controls == Controls(("ollama", "openai"), True, 2.5, 10.0, "error")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("timeout", "soon"),
            ("timeout", "0"),
            ("timeout", "nan"),
            ("timeout", "inf"),
            ("first-token-timeout", "-3"),
            ("no-failover", "perhaps"),
            ("rescue", "always"),
        ],
    )
    def test_a_control_that_means_nothing_is_refused_by_name(self, name: str, value: str) -> None:
        with pytest.raises(CallerError, match=f"x-sentinel-{name}"):
            read_controls([(f"x-sentinel-{name}".encode(), value.encode())])

    @pytest.mark.parametrize(
        ("headers", "streams", "seconds"),
        [
            ({"x-sentinel-timeout": "20"}, False, 20),
            ({"x-sentinel-timeout": "9000"}, False, 600),
            ({"x-stainless-read-timeout": "30"}, False, 30),
            ({"x-stainless-timeout": "40"}, False, 40),
            ({"x-stainless-read-timeout": "30"}, True, 600),
            ({"x-stainless-read-timeout": "nonsense"}, False, 600),
            ({"x-sentinel-timeout": "50", "x-stainless-read-timeout": "30"}, False, 30),
        ],
        ids=[
            "a control",
            "no longer than configured",
            "the Python SDK's own patience",
            "that of the Node SDK",
            "which means each read of a stream",
            "or nothing",
            "the shorter one",
        ],
    )
    def test_the_deadline_is_the_shortest_of_all_wishes(
        self, headers: dict[str, str], streams: bool, seconds: float
    ) -> None:
        call = read(CHAT | {"stream": streams}, headers=headers)

        assert call.deadline == STARTED + seconds

    def test_of_a_header_that_comes_twice_the_last_counts_but_of_traces_the_first(self) -> None:
        names = (b"traceparent", b"x-stainless-timeout", b"x-stainless-retry-count", b"x-sentinel-rescue")
        pairs = [(name, b"") for name in (b"content-length", *names, *names)]

        assert told(pairs) == Told(
            traceparent=1, content_length=0, retry_count=7, sdk_timeout=6, controls=(4, 8)
        )
        assert told([(b"accept", b"")]) == Told(None, None, None, None, ())

    @pytest.mark.parametrize(("count", "expected"), [("0", False), ("", False), ("1", True), ("2", True)])
    def test_the_sdk_says_when_it_repeats_itself(self, count: str, expected: bool) -> None:
        call = read(CHAT, headers={"x-stainless-retry-count": count})

        assert call.retried_by_client is expected
