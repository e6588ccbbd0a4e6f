"""What is sent to an OpenAI-compatible server, and how its answers are judged."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from sentinel_proxy.config import ProviderConfig
from sentinel_proxy.errors import CallerError, FailureKind, UpstreamError
from sentinel_proxy.model import Call, Endpoint, Headers, ReplyHead, Usage
from sentinel_proxy.providers.base import Decoder, ModelEntry
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.wire import sse
from sentinel_proxy.wire.openai import DONE

K = FailureKind
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
HTML = [(b"content-type", b"text/html; charset=utf-8")]
OWN = [(b"authorization", b"Bearer sk-own")]
CALLERS = [(b"authorization", b"Bearer sk-caller")]


def provider(**changes: Any) -> OpenAIProvider:
    defaults: dict[str, Any] = {"base_url": "https://api.openai.com/v1", "api_key": SecretStr("sk-own")}
    return OpenAIProvider(**{**defaults, **changes})


def passing(**changes: Any) -> OpenAIProvider:
    """A provider that passes the caller's key on."""
    return provider(api_key=None, passes_caller_key=True, **changes)


def call(
    endpoint: Endpoint = Endpoint.CHAT,
    *,
    stream: bool = True,
    headers: Headers = (),
    query: bytes = b"",
    traceparent: bytes | None = None,
    **payload: Any,
) -> Call:
    payload = {"model": "m", **payload}
    body = json.dumps(payload).encode()  # with spaces, as no writer of ours would
    model = payload["model"]
    return Call("t", endpoint, body, payload, model, stream, 0, 1, headers, query, traceparent)


def dump(payload: Any) -> bytes:
    return json.dumps(payload).encode()


def event(payload: Any) -> bytes:
    return b"data: " + dump(payload) + b"\n\n"


def delta(said: Any = None, finish: Any = None, index: Any = 0, **extra: Any) -> bytes:
    choice = {"index": index, "delta": said, "finish_reason": finish}
    return event({"id": "c", "model": "m-1", "choices": [choice], **extra})


def text(said: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": said, "finish_reason": finish}]})


def named(kind: str, **fields: Any) -> bytes:
    """An event of the Responses API."""
    return sse.event(dump({"type": kind, **fields}), kind.encode())


ROLE = delta({"role": "assistant", "content": ""})
HELLO = delta({"content": "hello"})
STOP = delta({}, "stop")
USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
AZURE = event({"choices": [], "prompt_filter_results": []})
COMMENT = b": OPENROUTER PROCESSING\n\n"


def read(decoder: Decoder, *pieces: bytes) -> bytes:
    """Feed *pieces* and the end of the body; return all that may leave."""
    return b"".join(decoder.feed(piece) for piece in pieces) + decoder.close()


def judged(*pieces: bytes, of: Call | None = None, headers: Headers = SSE) -> tuple[Decoder, bytes]:
    decoder = provider().decoder(of or call(), ReplyHead(200, headers))
    return decoder, read(decoder, *pieces)


def kind_of(decoder: Decoder) -> FailureKind | None:
    assert decoder.complete is (decoder.failure is None)
    return decoder.failure.kind if decoder.failure is not None else None


# --- what is sent ---


def test_bytes_that_need_no_change_go_out_as_they_came() -> None:
    wanted = call(headers=JSON)

    request = provider().encode(wanted)

    assert request.body is wanted.body
    assert (request.method, request.target) == ("POST", "/v1/chat/completions")


def test_only_the_models_name_is_replaced() -> None:
    wanted = call(model="gpt", temperature=0.5, strange={"a": [1]})

    request = provider(models={"gpt": "llama", "*": "other"}).encode(wanted)

    assert request.body == b'{"model":"llama","temperature":0.5,"strange":{"a":[1]}}'
    assert wanted.payload["model"] == "gpt"


def test_a_name_that_maps_to_itself_changes_nothing() -> None:
    wanted = call(model="gpt")

    assert provider(models={"*": "gpt"}).encode(wanted).body is wanted.body


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        (Endpoint.CHAT, "/api/v1/chat/completions"),
        (Endpoint.COMPLETIONS, "/api/v1/completions"),
        (Endpoint.EMBEDDINGS, "/api/v1/embeddings"),
        (Endpoint.RESPONSES, "/api/v1/responses"),
    ],
    ids=str,
)
def test_every_endpoint_is_served_below_the_base_url(endpoint: Endpoint, path: str) -> None:
    other = provider(base_url="http://host:1234/api/v1/")

    assert other.serves(endpoint)
    assert other.encode(call(endpoint)).target == path


def test_the_query_is_kept() -> None:
    assert provider().encode(call(query=b"a=1&b")).target == "/v1/chat/completions?a=1&b"


@pytest.mark.parametrize(
    "name",
    [
        *(b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"),
        *(b"proxy-authorization", b"proxy-connection", b"host", b"content-length"),
        *(b"api-key", b"x-api-key", b"cookie", b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host"),
        *(b"x-real-ip", b"origin", b"referer", b"x-sentinel-providers", b"sec-fetch-mode"),
    ],
)
def test_what_is_between_the_caller_and_us_stays_there(name: bytes) -> None:
    request = provider().encode(call(headers=[(name, b"keep-alive")]))

    assert name not in dict(request.headers)


@pytest.mark.parametrize(
    "name",
    [
        *(b"user-agent", b"openai-beta", b"x-stainless-lang", b"idempotency-key", b"tracestate", b"accept"),
        *(b"traceparent", b"anthropic-version", b"x-anything"),
    ],
)
def test_all_other_headers_go_along(name: bytes) -> None:
    request = provider().encode(call(headers=[(name, b"1"), (name, b"2")]))

    assert [value for key, value in request.headers if key == name] == [b"1", b"2"]


def test_headers_that_connection_lists_stay_here() -> None:
    headers = [(b"connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"x-end", b"2")]

    sent = dict(provider().encode(call(headers=headers)).headers)

    assert b"x-hop" not in sent
    assert b"connection" not in sent
    assert sent[b"x-end"] == b"2"


def test_answers_are_asked_for_without_compression() -> None:
    request = provider().encode(call(headers=[(b"accept-encoding", b"gzip")]))

    assert [v for k, v in request.headers if k == b"accept-encoding"] == [b"identity"]


def test_our_span_takes_the_place_of_the_callers() -> None:
    request = provider().encode(call(headers=[(b"traceparent", b"theirs")], traceparent=b"ours"))

    assert [v for k, v in request.headers if k == b"traceparent"] == [b"ours"]


def test_json_is_called_json_where_the_caller_does_not() -> None:
    assert dict(provider().encode(call()).headers)[b"content-type"] == b"application/json"
    assert (
        dict(provider().encode(call(headers=[(b"content-type", b"a/b")])).headers)[b"content-type"] == b"a/b"
    )


@pytest.mark.parametrize(
    ("sender", "headers", "sent"),
    [
        pytest.param(provider(), CALLERS, b"Bearer sk-own", id="our-own"),
        pytest.param(provider(passes_caller_key=True), CALLERS, b"Bearer sk-own", id="our-own-comes-first"),
        pytest.param(passing(), CALLERS, b"Bearer sk-caller", id="the-callers"),
        pytest.param(passing(), [], None, id="the-callers-if-there-is-one"),
        pytest.param(provider(api_key=None), CALLERS, None, id="none"),
    ],
)
def test_one_key_goes_along_at_most(sender: OpenAIProvider, headers: Headers, sent: bytes | None) -> None:
    request = sender.encode(call(headers=headers))

    found = [value for key, value in request.headers if key == b"authorization"]
    assert found == ([] if sent is None else [sent])


def test_the_callers_organisation_goes_only_where_its_key_goes() -> None:
    headers = [*CALLERS, (b"openai-organization", b"o"), (b"openai-project", b"p")]

    with_ours = dict(provider().encode(call(headers=headers)).headers)
    with_theirs = dict(passing().encode(call(headers=headers)).headers)

    assert not {b"openai-organization", b"openai-project"} & with_ours.keys()
    assert {b"openai-organization", b"openai-project"} <= with_theirs.keys()


@pytest.mark.parametrize(
    ("sender", "headers", "can"),
    [
        pytest.param(provider(), [], True, id="our-own-key"),
        pytest.param(passing(), CALLERS, True, id="the-callers-key"),
        pytest.param(passing(), [], False, id="no-key-at-openai"),
        pytest.param(passing(), [(b"authorization", b"")], False, id="an-empty-key-at-openai"),
        pytest.param(passing(base_url="http://localhost:8080/v1"), [], True, id="no-key-elsewhere"),
    ],
)
def test_a_call_without_a_key_can_tell_that_it_should_pass_by(
    sender: OpenAIProvider, headers: Headers, can: bool
) -> None:
    assert sender.can_authorize(call(headers=headers)) is can


def test_other_paths_are_passed_through_with_the_body_untouched() -> None:
    headers = [*CALLERS, (b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"3")]

    request = provider().passthrough("POST", "/files", b"a=1", headers, b"abc", 3)

    assert (request.method, request.target, request.body, request.body_length) == (
        "POST",
        "/v1/files?a=1",
        b"abc",
        3,
    )
    assert dict(request.headers)[b"content-type"] == b"multipart/form-data; boundary=x"
    assert dict(request.headers)[b"authorization"] == b"Bearer sk-own"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        pytest.param("/models/a%2Fb", "/v1/models/a%2Fb", id="escapes-stay"),
        pytest.param("models", "/v1/models", id="a-slash-is-added"),
        pytest.param("/a b\r\nx: y", "/v1/a%20b%0D%0Ax:%20y", id="nothing-is-smuggled"),
        pytest.param("/50%", "/v1/50%25", id="a-bare-percent"),
        pytest.param("/ü?#", "/v1/%C3%BC%3F%23", id="what-a-path-may-not-hold"),
        pytest.param("/a..b/...", "/v1/a..b/...", id="dots-that-climb-nowhere"),
    ],
)
def test_paths_are_made_fit_for_a_request_line(path: str, target: str) -> None:
    assert provider().passthrough("GET", path, b"", [], b"", None).target == target


@pytest.mark.parametrize("path", ["/../admin", "/a/../../b", "/%2e%2E/x", "/.", "/a\\..\\b"])
def test_no_path_climbs_out_of_the_api(path: str) -> None:
    with pytest.raises(CallerError) as caught:
        provider().passthrough("GET", path, b"", [], b"", None)

    assert caught.value.status == 404


def test_a_probe_asks_for_the_models() -> None:
    request = provider().probe()

    assert (request.method, request.target, request.body) == ("GET", "/v1/models", b"")
    assert dict(request.headers)[b"authorization"] == b"Bearer sk-own"
    assert b"authorization" not in dict(passing().probe().headers)


@pytest.mark.parametrize(
    ("body", "entries"),
    [
        pytest.param(
            b'{"object":"list","data":[{"id":"a","created":7,"owned_by":"x"},{"id":"b"}]}',
            [ModelEntry("a", 7, "x"), ModelEntry("b")],
            id="openai",
        ),
        pytest.param(b'[{"id":"a","created":null}]', [ModelEntry("a")], id="a-bare-list"),
        pytest.param(b'{"data":[]}', [], id="none"),
    ],
)
def test_model_lists_are_read(body: bytes, entries: list[ModelEntry]) -> None:
    assert provider().catalogue(body) == entries


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]", b'{"data":[{"id":1}]}', b'{"data":7}', b"7"])
def test_what_is_no_model_list_is_named_so(body: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        provider().catalogue(body)

    assert caught.value.kind is K.PROTOCOL


def test_a_configured_provider_has_all_that_was_configured() -> None:
    config = ProviderConfig.model_validate(
        {
            "name": "vllm",
            "kind": "openai",
            "base_url": "http://h:1/v1",
            "api_key": "sk-configured",
            "transport": "httpx",
            "models": {"*": "m"},
            "max_in_flight": 3,
            "context_window": 8192,
            "continuation": "prefill",
            "timeouts": {"first_token": 300},
        }
    )

    built = OpenAIProvider.from_config(config, passes_caller_key=False)

    assert (built.name, built.base_url, built.transport) == ("vllm", "http://h:1/v1", "httpx")
    assert (built.models, built.timeouts) == ({"*": "m"}, {"first_token": 300})
    assert (built.max_in_flight, built.context_window, built.continuation) == (3, 8192, "prefill")
    assert dict(built.encode(call()).headers)[b"authorization"] == b"Bearer sk-configured"


@pytest.mark.parametrize(
    ("shown", "key"),
    [(provider(), "own"), (passing(), "callers"), (provider(api_key=None), "none")],
    ids=["own", "callers", "none"],
)
def test_operators_see_whose_key_is_used_and_never_the_key(shown: OpenAIProvider, key: str) -> None:
    assert shown.settings()["key"] == key
    assert "sk-own" not in repr(shown) + repr(shown.settings()) + repr(vars(shown)["_failures"])


@pytest.mark.parametrize(
    ("asked", "kind"), [(provider(), K.CREDENTIAL), (passing(), K.CALLER)], ids=["our-own-key", "callers"]
)
def test_a_refused_key_is_the_business_of_whose_it_is(asked: OpenAIProvider, kind: FailureKind) -> None:
    failure = asked.failure(call(), ReplyHead(401, JSON), b'{"error":{"message":"no"}}')

    assert (failure.kind, failure.status, failure.message) == (kind, 401, "no")


# --- streams ---


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([ROLE, HELLO, STOP, DONE], id="usual"),
        pytest.param([AZURE, ROLE, HELLO, STOP, USAGE, DONE], id="azure-with-usage"),
        pytest.param([COMMENT, ROLE, HELLO, COMMENT, STOP, DONE], id="with-comments"),
        pytest.param([HELLO, DONE], id="done-without-a-finish"),
        pytest.param([delta({}, "length"), DONE], id="all-tokens-went-into-hidden-reasoning"),
        pytest.param([delta({}, "content_filter"), DONE], id="all-was-filtered"),
        pytest.param([delta({"content": "a"}, "eos"), DONE], id="another-word-for-stop"),
        pytest.param([delta({"content": "a"}, ""), STOP, DONE], id="an-empty-finish-reason-is-none"),
        pytest.param([event({"choices": None}), HELLO, STOP, DONE], id="no-choices"),
        pytest.param([event({"error": None, "choices": []}), HELLO, STOP, DONE], id="error-is-null"),
        pytest.param([HELLO.replace(b"data: ", b"data:"), STOP, DONE], id="without-the-space"),
        pytest.param([HELLO, STOP, b"data: [DONE]\n\n"], id="done"),
    ],
)
def test_a_good_stream_passes_as_it_came(pieces: list[bytes]) -> None:
    decoder, output = judged(*pieces)

    assert output == b"".join(pieces)
    assert (kind_of(decoder), decoder.began, decoder.finished) == (None, True, True)


def test_crlf_streams_pass_as_they_came() -> None:
    stream = (ROLE + HELLO + STOP).replace(b"\n", b"\r\n")

    decoder, output = judged(stream, b"data: [DONE]\r\n\r\n")

    assert output == stream + DONE
    assert decoder.complete


def test_a_read_of_whole_events_is_returned_itself() -> None:
    decoder, _ = judged_open(ROLE)
    data = HELLO + HELLO

    assert decoder.feed(data) is data


def judged_open(*pieces: bytes, of: Call | None = None) -> tuple[Decoder, bytes]:
    """Like `judged`, with the body still open."""
    decoder = provider().decoder(of or call(), ReplyHead(200, SSE))
    return decoder, b"".join(decoder.feed(piece) for piece in pieces)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        pytest.param([ROLE, HELLO], K.TRUNCATED, id="D02-ends-without-a-finish"),
        pytest.param([ROLE], K.TRUNCATED, id="ends-after-the-role"),
        pytest.param([AZURE], K.TRUNCATED, id="C09-ends-after-the-azure-prelude"),
        pytest.param([HELLO, STOP[:-1]], K.TRUNCATED, id="the-finish-is-cut"),
        pytest.param([], K.EMPTY, id="C05-empty-body"),
        pytest.param([COMMENT, COMMENT], K.EMPTY, id="C04-only-comments"),
        pytest.param([DONE], K.EMPTY, id="only-done"),
        pytest.param([ROLE, STOP, DONE], K.EMPTY, id="finished-with-nothing-said"),
        pytest.param([ROLE, STOP], K.EMPTY, id="finished-with-nothing-said-no-done"),
        pytest.param([ROLE, DONE], K.EMPTY, id="done-with-nothing-said"),
        pytest.param([event({"error": {"message": "no"}})], K.OVERLOADED, id="C03-first-event-is-an-error"),
        pytest.param(
            [HELLO, event({"error": {"code": "rate_limit_exceeded"}}), DONE], K.THROTTLED, id="D03-error-done"
        ),
        pytest.param([b'event: error\ndata: {"message":"no"}\n\n'], K.OVERLOADED, id="event-error-bare"),
        pytest.param(
            [b'event: error\ndata: {"error":{"code":"slow_down"}}\n\n'], K.THROTTLED, id="event-error-wrapped"
        ),
        pytest.param([b"event: error\ndata: oh\n\n"], K.OVERLOADED, id="event-error-text"),
        pytest.param([b"event: error\n\n", DONE], K.OVERLOADED, id="event-error-without-data"),
        pytest.param(
            [HELLO, b'error: {"code":500,"message":"slot"}\n\n', DONE], K.OVERLOADED, id="old-llama.cpp"
        ),
        pytest.param([event({"object": "error", "message": "no"}), DONE], K.OVERLOADED, id="old-vllm"),
        pytest.param([HELLO, b'data: {"choices":\n\n', STOP, DONE], K.PROTOCOL, id="D05-malformed"),
        pytest.param([HELLO, b"data: \n\n", STOP, DONE], K.PROTOCOL, id="empty-data"),
        pytest.param([b"data: 7\n\n"], K.PROTOCOL, id="not-an-object"),
        pytest.param([event({"choices": {"a": 1}})], K.PROTOCOL, id="choices-are-an-object"),
        pytest.param([event({"choices": 7})], K.PROTOCOL, id="choices-are-a-number"),
        pytest.param([event({"choices": [7]})], K.PROTOCOL, id="a-choice-is-a-number"),
        pytest.param([delta("hello")], K.PROTOCOL, id="a-delta-is-text"),
        pytest.param([delta({"content": "a"}, index=[])], K.PROTOCOL, id="an-index-is-a-list"),
        pytest.param([HELLO, delta({}, "error"), DONE], K.OVERLOADED, id="D18-finish-error"),
        pytest.param([delta({}, "insufficient_system_resource")], K.OVERLOADED, id="finish-no-resources"),
        pytest.param([delta({}, "abort")], K.OVERLOADED, id="finish-abort"),
        pytest.param([delta({}, "network_error")], K.OVERLOADED, id="finish-network-error"),
        pytest.param([delta({}, ["stop"])], K.PROTOCOL, id="finish-is-a-list"),
        pytest.param(
            [event({"choices": [{"delta": {}, "finish_reason": "error", "error": {"code": "slow_down"}}]})],
            K.THROTTLED,
            id="a-choice-tells-its-error",
        ),
    ],
)
def test_a_bad_stream_is_a_failure(pieces: list[bytes], kind: FailureKind) -> None:
    decoder, output = judged(*pieces)

    assert kind_of(decoder) is kind
    assert b"[DONE]" not in output


def test_what_came_before_a_failure_is_good_and_nothing_after_it_leaves() -> None:
    for pieces in ([HELLO, event({"error": "x"}), HELLO, DONE], [HELLO + event({"error": "x"}) + HELLO]):
        decoder, output = judged(*pieces)

        assert (output, kind_of(decoder)) == (HELLO, K.OVERLOADED)


def test_the_missing_terminator_is_added() -> None:
    decoder, output = judged(HELLO, STOP)

    assert (output, decoder.complete) == (HELLO + STOP + DONE, True)


@pytest.mark.parametrize(
    "pieces", [[HELLO, DONE, DONE, HELLO], [HELLO + DONE + HELLO], [HELLO + DONE + b"junk"]]
)
def test_nothing_leaves_after_done(pieces: list[bytes]) -> None:
    decoder, output = judged(*pieces)

    assert (output, decoder.complete) == (HELLO + DONE, True)


def test_done_completes_at_once() -> None:
    decoder, _ = judged_open(HELLO, STOP)
    assert (decoder.finished, decoder.complete) == (True, False)

    assert decoder.feed(DONE) == DONE
    assert decoder.complete
    assert decoder.close() == b""


@pytest.mark.parametrize(
    "said",
    [
        {"content": "a"},
        {"content": " "},
        {"reasoning_content": "a"},
        {"reasoning": "a"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0}]},
        {"function_call": {"name": "f"}},
        {"audio": {"data": "AA"}},
    ],
    ids=str,
)
def test_a_delta_that_means_something_begins_the_answer(said: dict[str, Any]) -> None:
    decoder, _ = judged_open(ROLE, delta(said))

    assert (decoder.began, decoder.progress) == (True, 1)


@pytest.mark.parametrize(
    "nothing",
    [
        pytest.param(COMMENT, id="comment"),
        pytest.param(ROLE, id="role"),
        pytest.param(delta({}), id="empty-delta"),
        pytest.param(delta(None), id="null-delta"),
        pytest.param(delta({"content": None, "tool_calls": [], "audio": {}}), id="empty-fields"),
        pytest.param(AZURE, id="azure-prelude"),
        pytest.param(USAGE, id="usage"),
        pytest.param(event({}), id="empty-object"),
        pytest.param(text(""), id="empty-text"),
    ],
)
def test_what_means_nothing_neither_begins_nor_progresses(nothing: bytes) -> None:
    decoder, output = judged_open(nothing)

    assert (decoder.began, decoder.progress, decoder.finished) == (False, 0, False)
    assert output == nothing


def test_every_choice_must_finish() -> None:
    first, second = delta({"content": "a"}, "stop"), delta({"content": "b"}, "stop", 1)

    assert kind_of(judged(first, of=call(n=2))[0]) is K.TRUNCATED
    assert kind_of(judged(first, second, of=call(n=2))[0]) is None
    assert kind_of(judged(first, delta({"content": "b"}, index=1))[0]) is K.TRUNCATED
    assert kind_of(judged(first, DONE, of=call(n=2))[0]) is None  # the server knows no n


@pytest.mark.parametrize("n", [None, 0, "2", True], ids=str)
def test_an_odd_n_means_one_choice(n: Any) -> None:
    assert kind_of(judged(HELLO, STOP, of=call(n=n))[0]) is None


def test_a_stop_sequence_may_leave_nothing_to_say() -> None:
    assert kind_of(judged(ROLE, STOP, DONE, of=call(stop=["\n"]))[0]) is None


def test_what_was_said_is_kept_in_few_pieces() -> None:
    decoder, _ = judged_open(ROLE, *[delta({"content": str(count % 10)}) for count in range(1000)])

    assert "".join(decoder.said) == "0123456789" * 100
    assert len(decoder.said) < 260


def test_content_in_parts_passes_however_long_it_is() -> None:
    parts = [delta({"content": [{"type": "text", "text": "a"}]})] * 600

    decoder, output = judged(*parts, STOP, DONE)

    assert (output, decoder.complete, decoder.plain) == (b"".join(parts) + STOP + DONE, True, False)


def test_the_end_of_the_body_may_be_what_ends_the_last_event() -> None:
    decoder, output = judged(HELLO, STOP, b"data: [DONE]\n\r")

    assert (output, decoder.complete) == (HELLO + STOP + DONE, True)


def test_legacy_completions_are_judged_by_their_text() -> None:
    decoder, output = judged(text(""), text("a"), text("", "stop"), DONE, of=call(Endpoint.COMPLETIONS))

    assert (decoder.complete, decoder.progress) == (True, 2)
    assert output.endswith(DONE)


def test_model_and_usage_are_picked_up_on_the_way() -> None:
    decoder, _ = judged(HELLO, STOP, USAGE, DONE)

    assert (decoder.model, decoder.usage) == ("m-1", Usage(3, 2))


@pytest.mark.parametrize("usage", [7, "many", {"prompt_tokens": "x"}, []], ids=str)
def test_odd_usage_harms_nothing(usage: Any) -> None:
    decoder, _ = judged(HELLO, delta({}, "stop", usage=usage, model=7), DONE)

    assert decoder.complete


@pytest.mark.parametrize(
    ("came", "left"),
    [
        pytest.param(b"id: 7\n" + HELLO, HELLO, id="id"),
        pytest.param(b"retry: 10\n\n" + HELLO, HELLO, id="retry-alone"),
        pytest.param(b"event: ping\n\n" + HELLO, HELLO, id="ping-without-data"),
        pytest.param(b"event: ping\ndata: {}\n\n" + HELLO, HELLO, id="ping"),
        pytest.param(b"event: completion\n" + HELLO, HELLO, id="name"),
        pytest.param(b"\xef\xbb\xbf" + HELLO, HELLO, id="byte-order-mark"),
        pytest.param(b": c\n" + HELLO, b": c\n" + HELLO, id="comment-within"),
        pytest.param(b"\n\n" + HELLO, HELLO, id="blank-lines"),
    ],
)
def test_what_sdks_stumble_over_is_left_out(came: bytes, left: bytes) -> None:
    assert judged(came, STOP, DONE)[1] == left + STOP + DONE


def test_D17_an_event_of_a_mebibyte_passes() -> None:
    big = delta({"content": "x" * 2**20})

    decoder, output = judged(big[:1000], big[1000:], STOP, DONE)

    assert (output, decoder.complete) == (big + STOP + DONE, True)


@pytest.mark.parametrize("cut", [0, 40], ids=["whole", "cut"])
def test_an_event_beyond_the_limit_is_a_failure(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    decoder = provider().decoder(call(), ReplyHead(200, SSE))
    monkeypatch.setattr(vars(decoder)["_events"], "_limit_bytes", len(HELLO))
    big = delta({"content": "x" * 200})

    output = read(decoder, HELLO + big[:cut], big[cut:], STOP)

    assert (output, kind_of(decoder)) == (HELLO, K.PROTOCOL)


# --- streams that are something else ---


COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


@pytest.mark.parametrize("headers", [JSON, []], ids=["declared", "undeclared"])
def test_B29_a_completion_in_place_of_a_stream_becomes_one(headers: Headers) -> None:
    decoder, output = judged(dump(COMPLETION), headers=headers)

    events = [frame.data or b"" for frame in sse.frames(output)]
    assert (decoder.complete, decoder.began, decoder.model) == (True, True, "m-1")
    assert json.loads(events[0])["choices"][0]["delta"]["content"] == "hello"
    assert (len(events), events[-1]) == (3, b"[DONE]")


def test_the_stream_of_a_completion_has_its_usage_if_it_was_asked_for() -> None:
    asked = call(stream_options={"include_usage": True})

    _, output = judged(dump(COMPLETION), of=asked, headers=JSON)

    assert b'"total_tokens":5' in output


@pytest.mark.parametrize(
    ("headers", "body", "kind"),
    [
        pytest.param(JSON, b'{"error":{"code":"slow_down"}}', K.THROTTLED, id="an-error"),
        pytest.param([], b'\n {"error":{"code":"slow_down"}}', K.THROTTLED, id="an-undeclared-error"),
        pytest.param(JSON, b'{"choices":[{"index":0}]}', K.EMPTY, id="a-choice-of-nothing"),
        pytest.param(JSON, b'{"choices":[{"text":"a"},{"x":1}]}', K.PROTOCOL, id="no-completion"),
        pytest.param(JSON, b'{"hello":1}', K.PROTOCOL, id="another-object"),
        pytest.param(JSON, b"[1]", K.PROTOCOL, id="a-list"),
        pytest.param(HTML, b"<html>", K.PROTOCOL, id="a-web-page"),
        pytest.param([], b"\xef\xbb\xbf <html>", K.PROTOCOL, id="an-undeclared-web-page"),
        pytest.param([], b"  ", K.EMPTY, id="white-space"),
        pytest.param([], b"hello", K.EMPTY, id="text"),
    ],
)
def test_anything_else_in_place_of_a_stream_is_a_failure(
    headers: Headers, body: bytes, kind: FailureKind
) -> None:
    decoder, output = judged(body, headers=headers)

    assert (kind_of(decoder), output) == (kind, b"")


def test_a_stream_that_does_not_say_that_it_is_one_is_read_all_the_same() -> None:
    decoder, output = judged(b"\n", HELLO, STOP, DONE, headers=[])

    assert (output, decoder.complete, decoder.progress) == (HELLO + STOP + DONE, True, 2)


# --- answers in one piece ---


def whole(body: bytes, endpoint: Endpoint = Endpoint.CHAT, **payload: Any) -> tuple[Decoder, bytes]:
    return judged(
        *(body[at : at + 7] for at in range(0, len(body), 7)),
        of=call(endpoint, stream=False, **payload),
        headers=JSON,
    )


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        pytest.param(Endpoint.CHAT, COMPLETION, id="chat"),
        pytest.param(
            Endpoint.CHAT,
            {"choices": [{"message": {"content": None, "tool_calls": [{"id": "1"}]}}]},
            id="tool-calls",
        ),
        pytest.param(
            Endpoint.CHAT, {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}, id="length"
        ),
        pytest.param(Endpoint.COMPLETIONS, {"choices": [{"text": "a", "finish_reason": "stop"}]}, id="text"),
        pytest.param(Endpoint.EMBEDDINGS, {"data": [{"embedding": [0.1]}]}, id="embeddings"),
        pytest.param(
            Endpoint.RESPONSES, {"output": [{"type": "message"}], "status": "completed"}, id="response"
        ),
        pytest.param(
            Endpoint.RESPONSES, {"output": [], "status": "queued", "error": None}, id="queued-response"
        ),
    ],
)
def test_a_good_answer_leaves_as_it_came(endpoint: Endpoint, answer: dict[str, Any]) -> None:
    body = dump(answer)

    decoder, output = whole(body, endpoint)

    assert (output, kind_of(decoder)) == (body, None)
    assert decoder.began
    assert decoder.finished


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        pytest.param(Endpoint.CHAT, b'{"error":{"code":"slow_down"}}', K.THROTTLED, id="B26-error"),
        pytest.param(Endpoint.CHAT, b'{"object":"error","message":"x"}', K.OVERLOADED, id="old-vllm"),
        pytest.param(Endpoint.CHAT, b"<html>", K.PROTOCOL, id="B27-html"),
        pytest.param(Endpoint.CHAT, dump(COMPLETION)[:-1], K.PROTOCOL, id="B28-truncated"),
        pytest.param(Endpoint.CHAT, b"", K.PROTOCOL, id="nothing"),
        pytest.param(Endpoint.CHAT, b"[]", K.PROTOCOL, id="a-list"),
        pytest.param(Endpoint.CHAT, b'{"data":[1]}', K.PROTOCOL, id="another-field"),
        pytest.param(Endpoint.CHAT, b'{"choices":null}', K.PROTOCOL, id="choices-are-null"),
        pytest.param(Endpoint.CHAT, b'{"choices":[1]}', K.PROTOCOL, id="a-choice-is-a-number"),
        pytest.param(Endpoint.CHAT, b'{"choices":[]}', K.EMPTY, id="no-choices"),
        pytest.param(
            Endpoint.CHAT,
            b'{"choices":[{"message":{"content":""},"finish_reason":"stop"}]}',
            K.EMPTY,
            id="says-nothing",
        ),
        pytest.param(
            Endpoint.CHAT,
            b'{"choices":[{"message":{"content":"a"},"finish_reason":"error"}]}',
            K.OVERLOADED,
            id="bad-finish",
        ),
        pytest.param(Endpoint.EMBEDDINGS, b'{"data":[]}', K.EMPTY, id="no-embeddings"),
        pytest.param(Endpoint.RESPONSES, b'{"output":[],"status":"completed"}', K.EMPTY, id="empty-response"),
        pytest.param(
            Endpoint.RESPONSES,
            b'{"output":[],"status":"failed","error":{"code":"rate_limit_exceeded","message":"x"}}',
            K.THROTTLED,
            id="failed-response",
        ),
    ],
)
def test_a_bad_answer_is_a_failure(endpoint: Endpoint, body: bytes, kind: FailureKind) -> None:
    decoder, output = whole(body, endpoint)

    assert (kind_of(decoder), output) == (kind, b"")


def test_an_answer_has_its_model_and_usage() -> None:
    decoder, _ = whole(dump(COMPLETION))

    assert (decoder.model, decoder.usage) == ("m-1", Usage(3, 2))


def test_embeddings_have_no_stream_even_if_one_is_asked_for() -> None:
    body = b'{"data":[1]}'

    assert judged(body, of=call(Endpoint.EMBEDDINGS), headers=JSON)[1] == body


def test_an_answer_without_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentinel_proxy.providers.openai.wholes.MAX_JSON_BYTES", 10)

    assert kind_of(whole(dump(COMPLETION))[0]) is K.PROTOCOL


# --- the Responses API ---


CREATED = named("response.created", response={"model": "m-1", "output": []})
ADDED = named("response.output_item.added", item={"type": "message"})
SAID = named("response.output_text.delta", delta="hello")
COMPLETED = named(
    "response.completed",
    response={"model": "m-1", "output": [1], "usage": {"input_tokens": 3, "output_tokens": 2}},
)
FAILED = named("response.failed", response={"error": {"code": "rate_limit_exceeded", "message": "slow"}})


def response(*pieces: bytes) -> tuple[Decoder, bytes]:
    return judged(*pieces, of=call(Endpoint.RESPONSES))


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([CREATED, ADDED, SAID, COMPLETED], id="completed"),
        pytest.param([CREATED, SAID, named("response.incomplete", response={})], id="incomplete"),
        pytest.param(
            [CREATED, named("response.incomplete", response={"output": []})], id="incomplete-at-once"
        ),
        pytest.param([CREATED, SAID, FAILED], id="failed-after-it-began"),
        pytest.param([CREATED, COMPLETED], id="completed-without-deltas"),
        pytest.param([COMMENT, SAID, COMPLETED], id="with-comments"),
        pytest.param(
            [event({"type": "response.output_text.delta", "delta": "a"}), COMPLETED], id="without-names"
        ),
    ],
)
def test_a_good_stream_of_a_response_passes_as_it_came(pieces: list[bytes]) -> None:
    decoder, output = response(*pieces, b"data: [DONE]\n\n")

    assert (output, kind_of(decoder)) == (b"".join(pieces), None)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        pytest.param([CREATED, FAILED], K.THROTTLED, id="failed-before-it-began"),
        pytest.param(
            [CREATED, SAID, named("error", code="server_is_overloaded", message="x")],
            K.OVERLOADED,
            id="error-event",
        ),
        pytest.param([event({"type": "error", "code": "slow_down"})], K.THROTTLED, id="error-without-name"),
        pytest.param([event({"error": {"code": "slow_down"}})], K.THROTTLED, id="error-object"),
        pytest.param([CREATED, SAID], K.TRUNCATED, id="ends-early"),
        pytest.param([CREATED, SAID, DONE], K.TRUNCATED, id="done-proves-nothing-here"),
        pytest.param([], K.EMPTY, id="nothing"),
        pytest.param(
            [CREATED, named("response.completed", response={"output": []})], K.EMPTY, id="says-nothing"
        ),
        pytest.param([SAID, b"event: x\ndata: {\n\n"], K.PROTOCOL, id="malformed"),
        pytest.param([event([1])], K.PROTOCOL, id="not-an-object"),
    ],
)
def test_a_bad_stream_of_a_response_is_a_failure(pieces: list[bytes], kind: FailureKind) -> None:
    assert kind_of(response(*pieces)[0]) is kind


@pytest.mark.parametrize(
    ("came", "began", "progress"),
    [
        pytest.param(CREATED, False, 0, id="created"),
        pytest.param(ADDED, False, 1, id="an-empty-message"),
        pytest.param(named("response.output_text.delta", delta=""), False, 1, id="an-empty-delta"),
        pytest.param(SAID, True, 1, id="text"),
        pytest.param(named("response.reasoning_summary_text.delta", delta="a"), True, 1, id="reasoning"),
        pytest.param(
            named("response.output_item.added", item={"type": "function_call"}), True, 1, id="function-call"
        ),
    ],
)
def test_a_response_begins_with_what_means_something(came: bytes, began: bool, progress: int) -> None:
    decoder, _ = judged_open(came, of=call(Endpoint.RESPONSES))

    assert (decoder.began, decoder.progress) == (began, progress)


def test_a_response_has_its_model_and_usage() -> None:
    decoder, _ = response(CREATED, SAID, COMPLETED)

    assert (decoder.model, decoder.usage) == ("m-1", Usage(3, 2))


def test_names_stay_in_streams_of_responses() -> None:
    decoder, output = response(b"id: 7\n" + SAID, COMPLETED)

    assert (output, decoder.complete) == (SAID + COMPLETED, True)
