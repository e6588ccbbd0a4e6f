"""Answers of Ollama in OpenAI's words, beyond the worked examples."""

import json
from typing import Any

import pytest
from ollama_support import call, data_lines, decoded, events, ndjson, provider

from sentinel_proxy.errors import FailureKind
from sentinel_proxy.model import Endpoint, ReplyHead, Usage
from sentinel_proxy.providers.ollama.replies import MAX_BODY_BYTES

Json = dict[str, Any]

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
END: Json = {"message": {"content": ""}, "done": True, "done_reason": "stop"}


def says(**message: Any) -> Json:
    return {"model": "m", "message": message, "done": False}


def calls(*names: str, **fields: Any) -> Json:
    return says(content="", tool_calls=[{"function": {"name": name}, **fields} for name in names])


def chunks(payload: Json, *lines: Json) -> list[Json]:
    """Return the choices of the chunks that *lines* become."""
    _, output = decoded({"stream": True, **payload}, ndjson(lines))
    return [chunk["choices"][0] for chunk in events(output) if chunk != "[DONE]" and chunk["choices"]]


def whole(payload: Json, native: Json, endpoint: Endpoint = Endpoint.CHAT) -> Json:
    _, output = decoded(payload, json.dumps(native).encode(), endpoint)
    answer: Json = json.loads(output)
    return answer


STREAMED = [Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES]


@pytest.mark.parametrize("endpoint", STREAMED)
def test_a_line_begins_the_answer_only_if_it_means_something(endpoint: Endpoint) -> None:
    decoder = provider().decoder(call({"stream": True, "prompt": "a"}, endpoint), ReplyHead(200, ()))
    empty = {"message": {"role": "assistant", "content": ""}, "response": "", "done": False}

    decoder.feed(ndjson([empty, empty]))
    before = (decoder.began, decoder.progress)
    decoder.feed(ndjson([{"message": {"content": "Hi"}, "response": "Hi", "done": False}]))

    assert before == (False, 0)
    assert (decoder.began, decoder.progress, decoder.finished) == (True, 1, False)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("endpoint", STREAMED)
def test_an_answer_with_nothing_in_it_is_a_failure(endpoint: Endpoint, stream: bool) -> None:
    native = {"message": {"content": ""}, "response": "", "done": True, "done_reason": "load"}

    decoder, _ = decoded({"stream": stream, "prompt": "a"}, ndjson([native]), endpoint)

    assert decoder.failure is not None
    assert (decoder.failure.kind, decoder.began, decoder.complete) == (FailureKind.EMPTY, False, False)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("endpoint", STREAMED)
def test_an_answer_cut_off_before_its_first_word_is_complete(endpoint: Endpoint, stream: bool) -> None:
    native = {
        "message": {"content": ""},
        "response": "",
        "done": True,
        "done_reason": "length",
        "eval_count": 3,
    }

    decoder, output = decoded({"stream": stream, "prompt": "a"}, ndjson([native]), endpoint)

    assert (decoder.failure, decoder.began, decoder.complete) == (None, True, True)
    assert decoder.usage == Usage(0, 3)
    assert b"length" in output or b'"incomplete"' in output


@pytest.mark.parametrize("endpoint", STREAMED)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(b"", FailureKind.PROTOCOL, id="nothing"),
        pytest.param(b"<html>", FailureKind.PROTOCOL, id="a web page"),
        pytest.param(b"[1]", FailureKind.PROTOCOL, id="a list"),
        pytest.param(b'{"done":true}', FailureKind.PROTOCOL, id="done without an answer"),
        pytest.param(
            b'{"message":{"content":"Par"},"response":"Par","done":false}',
            FailureKind.TRUNCATED,
            id="not done",
        ),
        pytest.param(b'{"error":"server busy"}', FailureKind.OVERLOADED, id="an error in a 200"),
        pytest.param(
            b'{"message":' + b"[" * 2000 + b"]" * 2000 + b"}", FailureKind.PROTOCOL, id="a deep hole"
        ),
    ],
)
def test_a_whole_answer_is_trusted_only_if_it_is_one(
    endpoint: Endpoint, body: bytes, kind: FailureKind
) -> None:
    decoder, output = decoded({"prompt": "a"}, body, endpoint)

    assert decoder.failure is not None
    assert (decoder.failure.kind, output, decoder.began, decoder.complete) == (kind, b"", False, False)


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        pytest.param(b"", FailureKind.TRUNCATED, id="the end comes early"),
        pytest.param(b'{"message":{"con', FailureKind.TRUNCATED, id="within a line"),
        pytest.param(b'{"message":{"con\n', FailureKind.PROTOCOL, id="a line that is no JSON"),
        pytest.param(b'{"a":"' + b"x" * (17 << 20), FailureKind.PROTOCOL, id="a line without end"),
    ],
)
def test_a_stream_that_breaks_keeps_what_was_good(tail: bytes, kind: FailureKind) -> None:
    decoder, output = decoded({"stream": True}, ndjson([says(content="Par")]) + tail)

    assert decoder.failure is not None
    assert (decoder.failure.kind, decoder.complete) == (kind, False)
    assert [event["choices"][0]["delta"].get("content") for event in events(output)] == ["", "Par"]
    assert decoder.feed(b"more") + decoder.close() == b""


def test_a_body_without_end_is_given_up() -> None:
    decoder = provider().decoder(call({}), ReplyHead(200, ()))
    mebibyte = b"x" * (1 << 20)

    for _ in range(MAX_BODY_BYTES // len(mebibyte) + 1):
        decoder.feed(mebibyte)

    assert decoder.failure is not None
    assert (decoder.failure.kind, decoder.close()) == (FailureKind.PROTOCOL, b"")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_arguments_nested_deeply_are_told_or_a_failure(stream: bool) -> None:
    deep = b'{"a":[' * 500 + b"]}" * 500
    call = b'{"function":{"name":"f","arguments":%b}}' % deep
    native = b'{"message":{"tool_calls":[%b]},"done":true}\n' % call

    decoder, output = decoded({"stream": stream, "tools": TOOLS}, native)

    assert decoder.complete != (decoder.failure is not None)
    assert decoder.complete == (b"tool_calls" in output)


@pytest.mark.parametrize("message", [None, 7, [], {"content": 7, "thinking": [], "tool_calls": {}}])
def test_a_line_whose_message_is_none_says_nothing(message: object) -> None:
    told = chunks({"tools": TOOLS}, {"message": message, "done": False}, says(content="Hi"), END)

    assert [choice["delta"] for choice in told[1:]] == [{"content": "Hi"}, {}]


def test_a_last_line_needs_no_newline() -> None:
    whole_stream = ndjson([says(content="Hi"), END])

    decoder, output = decoded({"stream": True}, whole_stream.removesuffix(b"\n"))

    assert decoder.complete
    assert output == decoded({"stream": True}, whole_stream)[1]


def test_half_a_character_is_a_token_without_bytes() -> None:
    native = {**END, "message": {"content": "Hi"}, "logprobs": [{"token": "\ud83d", "logprob": -1}]}

    answer = whole({"logprobs": True}, native)

    assert answer["choices"][0]["logprobs"]["content"][0]["bytes"] is None


def test_what_follows_the_end_is_not_looked_at() -> None:
    good = ndjson([says(content="Hi"), END])

    decoder, output = decoded({"stream": True}, good + b'{"error":"late"}\nrubbish')

    assert decoder.complete
    assert output == decoded({"stream": True}, good)[1]
    assert decoder.feed(b"more") + decoder.close() == b""


def test_calls_on_several_lines_are_numbered_and_named_apart() -> None:
    told = chunks(
        {"tools": TOOLS}, calls("f", id="same"), calls("g", id="same"), calls("g", id="x" * 41), END
    )

    given = [choice["delta"]["tool_calls"][0] for choice in told if "tool_calls" in choice["delta"]]
    assert [call["index"] for call in given] == [0, 1, 2]
    assert given[0]["id"] == "same"
    assert len({call["id"] for call in given}) == 3
    assert all(len(call["id"]) <= 40 for call in given)
    assert told[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("done_reason", "called", "reason"),
    [
        ("stop", False, "stop"),
        ("stop", True, "tool_calls"),
        ("length", True, "length"),
        ("unload", False, "stop"),
        ("", True, "tool_calls"),
        (7, False, "stop"),
        (None, False, "stop"),
    ],
)
def test_the_finish_reason_is_one_that_clients_know(done_reason: object, called: bool, reason: str) -> None:
    first = calls("f") if called else says(content="Hi")

    told = chunks({"tools": TOOLS}, first, {**END, "done_reason": done_reason})

    assert told[-1]["finish_reason"] == reason


def test_one_call_at_a_time_is_all_that_a_caller_gets_who_wants_no_more() -> None:
    told = chunks({"tools": TOOLS, "parallel_tool_calls": False}, calls("f"), calls("g"), END)

    assert sum("tool_calls" in choice["delta"] for choice in told) == 1


def test_legacy_functions_are_called_in_legacy_words() -> None:
    told = chunks({"functions": [{"name": "f"}]}, calls("f", "g"), END)

    assert [choice["delta"] for choice in told[1:]] == [
        {"function_call": {"name": "f", "arguments": "{}"}},
        {},
    ]
    assert told[-1]["finish_reason"] == "function_call"


@pytest.mark.parametrize("payload", [{}, {"tools": TOOLS, "tool_choice": "none"}], ids=["no tools", "none"])
def test_a_call_that_nobody_offered_is_left_out(payload: Json) -> None:
    told = chunks(payload, says(content="Hi", tool_calls=[{"function": {"name": "f"}}]), END)

    assert [choice["delta"] for choice in told[1:]] == [{"content": "Hi"}, {}]
    assert told[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param({"b": "é", "a": [1.0]}, '{"b":"é","a":[1.0]}', id="an object"),
        pytest.param('{"a": 1}', '{"a": 1}', id="text already"),
        pytest.param(None, "{}", id="nothing"),
        pytest.param({"big": 2**64 - 1}, '{"big":18446744073709551615}', id="a large number"),
    ],
)
def test_arguments_become_text(arguments: object, text: str) -> None:
    native = {**END, "message": {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}}

    answer = whole({"tools": TOOLS}, native)

    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == text


@pytest.mark.parametrize("calls", [7, [7], [{}], [{"function": {}}], [{"function": {"name": ""}}]])
def test_a_call_of_nothing_is_left_out(calls: object) -> None:
    native = {**END, "message": {"content": "Hi", "tool_calls": calls}}

    assert "tool_calls" not in whole({"tools": TOOLS}, native)["choices"][0]["message"]


@pytest.mark.parametrize(
    ("stamp", "created"),
    [
        ("2026-03-01T11:00:00+01:00", 1772359200),
        ("2026-03-01T10:00:00", 1772359200),
        ("0001-01-01T00:00:00Z", 1772366400),
        ("yesterday", 1772366400),
        (None, 1772366400),
    ],
)
def test_an_answer_without_a_date_is_dated_now(stamp: object, created: int) -> None:
    assert whole({}, {**END, "message": {"content": "Hi"}, "created_at": stamp})["created"] == created


def test_counts_that_are_missing_or_odd_are_zero() -> None:
    native = {**END, "message": {"content": "Hi"}, "prompt_eval_count": -1, "eval_count": "many"}

    assert whole({}, native)["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_log_probabilities_go_with_the_first_chunk_of_their_line() -> None:
    entry = {"token": "x", "logprob": -1}
    lines = [
        {**says(thinking="hm", content="x"), "logprobs": [entry]},
        {**END, "logprobs": [entry, {"token": 1}, {"token": "y", "logprob": True}, 7]},
    ]

    told = chunks({"logprobs": True}, *lines)

    assert [("logprobs" in choice, choice["delta"]) for choice in told] == [
        (False, {"role": "assistant", "content": ""}),
        (True, {"reasoning": "hm", "reasoning_content": "hm"}),
        (False, {"content": "x"}),
        (True, {"content": ""}),
        (False, {}),
    ]
    assert told[3]["logprobs"]["content"] == [{**entry, "bytes": [120], "top_logprobs": []}]


def test_a_completion_stream_echoes_counts_and_locates_its_tokens() -> None:
    payload = {
        "prompt": "ab",
        "echo": True,
        "logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    lines = [
        {"response": "cd", "logprobs": [{"token": "cd", "logprob": -1}], "done": False},
        {"response": "", "logprobs": [{"token": "", "logprob": -2}], "done": True, "eval_count": 1},
    ]

    decoder, output = decoded(payload, ndjson(lines), Endpoint.COMPLETIONS)

    *told, counted, done = events(output)
    texts = [choice["text"] for chunk in told for choice in chunk["choices"]]
    offsets = [(chunk["choices"][0]["logprobs"] or {}).get("text_offset") for chunk in told]
    assert (texts, offsets) == (["ab", "cd", "", ""], [None, [2], [4], None])
    assert [chunk["usage"] for chunk in told] == [None] * 4
    assert (counted["choices"], counted["usage"]["completion_tokens"], done) == ([], 1, "[DONE]")
    assert decoder.usage == Usage(0, 1)


@pytest.mark.parametrize(
    ("payload", "native", "kind"),
    [
        pytest.param({}, {"embeddings": []}, FailureKind.PROTOCOL, id="no vector"),
        pytest.param({}, {"embeddings": [[1.0], [1.0]]}, FailureKind.PROTOCOL, id="one too many"),
        pytest.param({}, {"embeddings": [[]]}, FailureKind.PROTOCOL, id="an empty vector"),
        pytest.param({}, {"embeddings": [["a"]]}, FailureKind.PROTOCOL, id="no numbers"),
        pytest.param({}, {"embeddings": None}, FailureKind.PROTOCOL, id="null"),
        pytest.param({}, {"embedding": [1.0]}, FailureKind.PROTOCOL, id="the older endpoint's answer"),
        pytest.param(
            {"dimensions": 2}, {"embeddings": [[1.0]]}, FailureKind.UNSUPPORTED, id="another length"
        ),
        pytest.param(
            {"encoding_format": "base64"},
            {"embeddings": [[1e300]]},
            FailureKind.PROTOCOL,
            id="beyond float32",
        ),
    ],
)
def test_vectors_are_checked_before_they_are_passed_on(
    payload: Json, native: Json, kind: FailureKind
) -> None:
    decoder, output = decoded({"input": "a", **payload}, json.dumps(native).encode(), Endpoint.EMBEDDINGS)

    assert decoder.failure is not None
    assert (decoder.failure.kind, output) == (kind, b"")


def test_vectors_are_floats_unless_asked_for_otherwise() -> None:
    answer = whole({"input": "a"}, {"embeddings": [[1, 0.5]], "prompt_eval_count": 2}, Endpoint.EMBEDDINGS)

    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": [1, 0.5]}]
    assert answer["model"] == "llama3.2"


def test_a_response_tells_its_items_one_after_another() -> None:
    lines = [
        says(thinking="h"),
        says(thinking="m"),
        says(content="a"),
        calls("f", id="c"),
        says(content="b"),
        END,
    ]

    _, output = decoded(
        {"stream": True, "tools": [{"type": "function", "name": "f"}]}, ndjson(lines), Endpoint.RESPONSES
    )

    told = [json.loads(data) for data in data_lines(output)]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    opened = [
        (event["output_index"], event["item"]["type"])
        for event in told
        if event["type"].endswith("item.added")
    ]
    closed = [
        (event["output_index"], event["item"]["type"])
        for event in told
        if event["type"].endswith("item.done")
    ]
    assert opened == closed == [(0, "reasoning"), (1, "message"), (2, "function_call"), (3, "message")]
    assert told[-1]["response"]["output"] == [e["item"] for e in told if e["type"].endswith("item.done")]
    assert told[-1]["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert [line for line in output.split(b"\n") if line.startswith(b"event: ")] == [
        b"event: " + event["type"].encode() for event in told
    ]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_response_that_was_cut_off_says_where(stream: bool) -> None:
    native = {"message": {"thinking": "hm", "content": "Par"}, "done": True, "done_reason": "length"}

    _, output = decoded({"stream": stream, "input": "x"}, ndjson([native]), Endpoint.RESPONSES)

    response = json.loads(data_lines(output)[-1])["response"] if stream else json.loads(output)
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert [item.get("status") for item in response["output"]] == [None, "incomplete"]


def test_a_response_repeats_what_was_asked() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    asked = {
        "instructions": "Be kind.",
        "temperature": 0,
        "metadata": {"k": "v"},
        "tools": [tool],
        "top_p": None,
    }

    response = whole(asked, {**END, "message": {"content": "Hi"}}, Endpoint.RESPONSES)

    assert {key: response[key] for key in asked} == {**asked, "top_p": 1}


def test_a_response_leaves_out_calls_when_the_caller_wants_none() -> None:
    native = {**END, "message": {"content": "Hi", "tool_calls": [{"function": {"name": "f"}}]}}

    response = whole({"tool_choice": "none"}, native, Endpoint.RESPONSES)

    assert [item["type"] for item in response["output"]] == ["message"]


def test_repr_of_a_decoder_shows_nothing_of_the_answer() -> None:
    decoder = provider().decoder(call({"stream": True}), ReplyHead(200, ()))
    states = [repr(decoder)]

    decoder.feed(ndjson([says(content="secret")]))
    decoder.close()

    assert [*states, repr(decoder)] == ["<ChatStreamDecoder open>", "<ChatStreamDecoder failed>"]
