"""What is sent to Ollama, beyond the worked examples."""

import json
from typing import Any

import pytest
from ollama_support import call, encoded, provider

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Endpoint, ReplyHead

Json = dict[str, Any]

PIXEL = "iVBORw0KGgo="
USER: list[Json] = [{"role": "user", "content": "x"}]
TOOL: Json = {"type": "function", "function": {"name": "ping"}}


def chat(**fields: Any) -> Json:
    return {"model": "gpt-4o-mini", "messages": USER, **fields}


def part(**fields: Any) -> Json:
    return chat(messages=[{"role": "user", "content": [fields]}])


def image(url: object) -> Json:
    return part(type="image_url", image_url={"url": url})


def called(calls: object) -> Json:
    return chat(messages=[*USER, {"role": "assistant", "tool_calls": calls}])


def schema_tool(parameters: object) -> Json:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def answers(**fields: Any) -> Json:
    return {"model": "o4-mini", "input": "x", **fields}


CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
EMBEDDINGS, RESPONSES = Endpoint.EMBEDDINGS, Endpoint.RESPONSES


@pytest.mark.parametrize(
    ("endpoint", "payload", "param"),
    [
        pytest.param(CHAT, chat(modalities=["text", "audio"]), "modalities", id="audio out"),
        pytest.param(CHAT, chat(web_search_options={}), "web_search_options", id="web search"),
        pytest.param(CHAT, chat(tools=[{"type": "custom"}]), "tools", id="custom tool"),
        pytest.param(
            CHAT, chat(tools=[TOOL], tool_choice={"type": "custom"}), "tool_choice", id="custom choice"
        ),
        pytest.param(CHAT, part(type="file", file={}), "messages", id="file"),
        pytest.param(CHAT, image("HTTPS://example.com/a.png"), "messages", id="remote image"),
        pytest.param(CHAT, image(f"data:image/gif;base64,{PIXEL}"), "messages", id="gif"),
        pytest.param(COMPLETIONS, {"prompt": ["a", "b"]}, "prompt", id="two prompts"),
        pytest.param(COMPLETIONS, {"prompt": [1, 2]}, "prompt", id="prompt of tokens"),
        pytest.param(COMPLETIONS, {"prompt": "a", "best_of": 2}, "best_of", id="best of two"),
        pytest.param(COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens", id="no tokens"),
        pytest.param(EMBEDDINGS, {"input": [[1], [2]]}, "input", id="lists of tokens"),
        pytest.param(RESPONSES, answers(conversation="conv_1"), "conversation", id="conversation"),
        pytest.param(RESPONSES, answers(prompt={"id": "p"}), "prompt", id="stored prompt"),
        pytest.param(RESPONSES, answers(background=True), "background", id="background"),
        pytest.param(RESPONSES, answers(tools=[{"type": "web_search"}]), "tools", id="built-in tool"),
        pytest.param(
            RESPONSES, answers(input=[{"type": "item_reference", "id": "i"}]), "input", id="reference"
        ),
        pytest.param(
            RESPONSES,
            answers(input=[{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]),
            "input",
            id="image by file id",
        ),
    ],
)
def test_what_ollama_cannot_do_goes_to_the_next_provider(
    endpoint: Endpoint, payload: Json, param: str
) -> None:
    with pytest.raises(UpstreamError) as refused:
        encoded(payload, endpoint)

    error = refused.value
    assert (error.kind, error.code, error.param, error.status) == (
        FailureKind.UNSUPPORTED,
        "unsupported_by_fallback",
        param,
        400,
    )


@pytest.mark.parametrize(
    ("endpoint", "payload", "code", "param"),
    [
        pytest.param(CHAT, chat(messages="hi"), "invalid_type", "messages", id="messages no list"),
        pytest.param(CHAT, chat(messages=["hi"]), "invalid_type", "messages", id="message no object"),
        pytest.param(CHAT, chat(messages=[{"role": "bot"}]), "invalid_value", "messages", id="unknown role"),
        pytest.param(CHAT, part(type="hologram"), "invalid_type", "messages", id="unknown part"),
        pytest.param(CHAT, part(type="text", text=1), "invalid_type", "messages", id="text no string"),
        pytest.param(CHAT, image("cat.png"), "invalid_image", "messages", id="no data URI"),
        pytest.param(CHAT, image("data:image/png;base64,####"), "invalid_image", "messages", id="no base64"),
        pytest.param(CHAT, image("data:image/png;base64,"), "invalid_image", "messages", id="empty image"),
        pytest.param(CHAT, chat(stop=[1]), "invalid_type", "stop", id="stop of numbers"),
        pytest.param(
            CHAT, chat(temperature="hot"), "invalid_type", "temperature", id="temperature no number"
        ),
        pytest.param(CHAT, chat(temperature=10**400), "invalid_value", "temperature", id="beyond any float"),
        pytest.param(CHAT, chat(max_tokens=0), "invalid_value", "max_tokens", id="no tokens"),
        pytest.param(CHAT, chat(max_tokens=1.5), "invalid_type", "max_tokens", id="half a token"),
        pytest.param(CHAT, chat(n=True), "invalid_type", "n", id="boolean count"),
        pytest.param(CHAT, chat(top_logprobs=2), "invalid_value", "top_logprobs", id="top without logprobs"),
        pytest.param(
            CHAT, chat(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs", id="top 21"
        ),
        pytest.param(CHAT, chat(reasoning_effort="huge"), "invalid_value", "reasoning_effort", id="effort"),
        pytest.param(
            CHAT, chat(response_format={"type": "xml"}), "invalid_value", "response_format", id="format"
        ),
        pytest.param(
            CHAT, chat(tools=[TOOL], tool_choice="maybe"), "invalid_value", "tool_choice", id="choice"
        ),
        pytest.param(
            CHAT,
            chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "pong"}}),
            "invalid_value",
            "tool_choice",
            id="choice of an unknown tool",
        ),
        pytest.param(CHAT, chat(functions=[{}]), "invalid_type", "functions", id="nameless function"),
        pytest.param(
            CHAT, chat(messages=[{"role": "user", "content": 7}]), "invalid_type", "messages", id="content"
        ),
        pytest.param(CHAT, image(7), "invalid_type", "messages", id="URL no string"),
        pytest.param(CHAT, part(type="input_audio"), "invalid_type", "messages", id="no audio"),
        pytest.param(
            CHAT,
            part(type="input_audio", input_audio={"data": "#"}),
            "invalid_value",
            "messages",
            id="bad audio",
        ),
        pytest.param(CHAT, called(7), "invalid_type", "messages", id="calls no list"),
        pytest.param(CHAT, called([7]), "invalid_type", "messages", id="call no object"),
        pytest.param(CHAT, called([{"function": {}}]), "invalid_type", "messages", id="call of nothing"),
        pytest.param(
            CHAT, chat(response_format="json"), "invalid_type", "response_format", id="format no object"
        ),
        pytest.param(
            CHAT,
            chat(response_format={"type": "json_schema", "json_schema": {"schema": []}}),
            "invalid_type",
            "response_format",
            id="schema no object",
        ),
        pytest.param(
            CHAT, chat(reasoning_effort=1), "invalid_type", "reasoning_effort", id="effort no string"
        ),
        pytest.param(CHAT, chat(reasoning={"effort": 1}), "invalid_type", "reasoning", id="nested effort"),
        pytest.param(CHAT, chat(reasoning="low"), "invalid_type", "reasoning", id="reasoning no object"),
        pytest.param(CHAT, chat(logprobs=1), "invalid_type", "logprobs", id="logprobs no boolean"),
        pytest.param(CHAT, chat(modalities="text"), "invalid_type", "modalities", id="modalities no list"),
        pytest.param(CHAT, chat(tools=[{}]), "invalid_type", "tools", id="tool of no type"),
        pytest.param(
            CHAT, chat(tools=[schema_tool("x")]), "invalid_type", "tools", id="parameters no object"
        ),
        pytest.param(
            CHAT,
            chat(tools=[TOOL], tool_choice={"type": "function"}),
            "invalid_type",
            "tool_choice",
            id="nameless choice",
        ),
        pytest.param(
            CHAT,
            chat(tools=[TOOL], tool_choice={"type": "allowed_tools", "allowed_tools": 7}),
            "invalid_type",
            "tool_choice",
            id="allowed tools no object",
        ),
        pytest.param(COMPLETIONS, {"prompt": []}, "invalid_value", "prompt", id="no prompts"),
        pytest.param(COMPLETIONS, {"prompt": 7}, "invalid_type", "prompt", id="prompt no string"),
        pytest.param(EMBEDDINGS, {"input": 7}, "invalid_type", "input", id="input no string"),
        pytest.param(COMPLETIONS, {"prompt": ""}, "invalid_value", "prompt", id="empty prompt"),
        pytest.param(COMPLETIONS, {}, "invalid_value", "prompt", id="no prompt"),
        pytest.param(
            COMPLETIONS, {"prompt": "a", "logprobs": 6}, "invalid_value", "logprobs", id="logprobs 6"
        ),
        pytest.param(EMBEDDINGS, {"input": []}, "invalid_value", "input", id="no inputs"),
        pytest.param(EMBEDDINGS, {"input": ["a", 1]}, "invalid_type", "input", id="mixed inputs"),
        pytest.param(
            EMBEDDINGS,
            {"input": "a", "encoding_format": "int8"},
            "invalid_value",
            "encoding_format",
            id="int8",
        ),
        pytest.param(RESPONSES, answers(input=[]), "invalid_value", "input", id="empty input"),
        pytest.param(RESPONSES, answers(input=None), "invalid_type", "input", id="no input"),
        pytest.param(CHAT, chat(model=""), "invalid_value", "model", id="no model"),
    ],
)
def test_what_is_wrong_everywhere_ends_the_call(
    endpoint: Endpoint, payload: Json, code: str, param: str
) -> None:
    with pytest.raises(UpstreamError) as refused:
        provider(models={}).encode(call(payload, endpoint))

    error = refused.value
    assert (error.kind, error.code, error.param, error.status) == (FailureKind.CALLER, code, param, 400)


@pytest.mark.parametrize(
    ("field", "value"),
    [("stop", "SECRET"), ("reasoning_effort", "SECRET"), ("response_format", {"type": "SECRET"})],
)
def test_a_refusal_never_quotes_what_was_sent(field: str, value: object) -> None:
    with pytest.raises(UpstreamError) as refused:
        encoded(chat(**{field: value, "n": "SECRET"}))

    assert "SECRET" not in str(refused.value) + repr(refused.value)


@pytest.mark.parametrize(
    ("fields", "lossy"),
    [
        pytest.param({"logit_bias": {}, "prediction": None}, (), id="empty fields lose nothing"),
        pytest.param({"verbosity": "low"}, ("verbosity",), id="verbosity"),
        pytest.param({"prediction": {"type": "content"}}, ("prediction",), id="prediction"),
        pytest.param({"tools": [TOOL], "tool_choice": "required"}, ("tool_choice",), id="forced call"),
        pytest.param(
            {"functions": [{"name": "f"}], "function_call": {"name": "f"}},
            ("function_call",),
            id="forced legacy call",
        ),
        pytest.param(
            {
                "tools": [TOOL],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}},
            },
            (),
            id="allowed tools",
        ),
    ],
)
def test_what_is_only_best_effort_is_said(fields: Json, lossy: tuple[str, ...]) -> None:
    assert provider().encode(call(chat(**fields))).lossy == lossy


def test_allowed_tools_leave_the_others_at_home() -> None:
    other = {"type": "function", "function": {"name": "pong"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [other]}}

    sent = provider().encode(call(chat(tools=[TOOL, other], tool_choice=choice)))

    assert isinstance(sent.body, bytes)
    assert [tool["function"]["name"] for tool in json.loads(sent.body)["tools"]] == ["pong"]
    assert sent.lossy == ("tool_choice",)


@pytest.mark.parametrize(
    ("url", "data"),
    [
        pytest.param("data:;base64,-_-_", "+/+/", id="URL-safe alphabet"),
        pytest.param("DATA:image/JPEG;base64,QUI", "QUI=", id="no padding, capitals"),
        pytest.param("data:image/webp;charset=x;base64,QU\n I=", "QUI=", id="white space, parameters"),
    ],
)
def test_image_data_becomes_bare_standard_base64(url: str, data: str) -> None:
    assert encoded(image(url))["messages"][0]["images"] == [data]


def test_a_tools_result_learns_the_name_of_the_nearest_call_before_it() -> None:
    def asked(name: str) -> Json:
        return {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": name}}]}

    result = {"role": "tool", "tool_call_id": "c", "content": ""}
    turns = [result, asked("first"), result, asked("second"), result, {**result, "name": "own"}]

    messages = encoded(chat(messages=turns))["messages"]

    names = [message.get("tool_name") for message in messages if message["role"] == "tool"]
    assert names == ["first", "first", "second", "own"]


def test_a_result_of_an_unknown_call_has_no_name() -> None:
    turns = [{"role": "tool", "tool_call_id": "lost", "content": "4"}]

    assert encoded(chat(messages=turns))["messages"] == [
        {"role": "tool", "content": "4", "tool_call_id": "lost"}
    ]


@pytest.mark.parametrize(
    ("arguments", "native"),
    [
        pytest.param(None, {}, id="missing"),
        pytest.param("  ", {}, id="blank"),
        pytest.param("null", {}, id="null"),
        pytest.param("[1]", {"_raw": "[1]"}, id="a list"),
        pytest.param({"a": 1}, {"a": 1}, id="already an object"),
        pytest.param('{"b":1,"a":2}', {"b": 1, "a": 2}, id="an object"),
        pytest.param("\ud800", {"_raw": "\ud800"}, id="half a character"),
        pytest.param("[" * 5000, {"_raw": "[" * 5000}, id="a deep hole"),
    ],
)
def test_arguments_become_an_object_whatever_they_are(arguments: object, native: Json) -> None:
    turns = [
        *USER,
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
    ]

    messages = encoded(chat(messages=turns))["messages"]

    assert messages[1]["tool_calls"] == [{"function": {"name": "f", "arguments": native}}]


@pytest.mark.parametrize(
    ("message", "native"),
    [
        pytest.param({"refusal": "No."}, {"content": "No."}, id="a refusal is what was said"),
        pytest.param({"reasoning_content": "hm"}, {"content": "", "thinking": "hm"}, id="thoughts"),
        pytest.param(
            {"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]},
            {
                "content": "",
                "tool_calls": [{"id": "c", "function": {"name": "sh", "arguments": {"input": "ls"}}}],
            },
            id="a custom call",
        ),
    ],
)
def test_what_an_assistant_said_is_kept(message: Json, native: Json) -> None:
    turns = [*USER, {"role": "assistant", "content": None, **message}]

    assert encoded(chat(messages=turns))["messages"][1] == {"role": "assistant", **native}


@pytest.mark.parametrize(
    ("effort", "model", "version", "think"),
    [
        ("xhigh", "o4-mini", "0.22.0", "max"),
        ("xhigh", "o4-mini", "0.21.9", "high"),
        ("xhigh", "o4-mini", "0.17.6", True),
        ("none", "o4-mini", "0.17.6", False),
        ("max", "gpt-5", "0.22.0", "high"),
        ("minimal", "gpt-5", "0.12.0", "low"),
        ("max", "o4-mini", "0.0.0", "max"),
        ("max", "o4-mini", "garbage", "max"),
    ],
)
def test_effort_follows_the_servers_version(effort: str, model: str, version: str, think: object) -> None:
    ollama = provider()
    ollama.learn_version(json.dumps({"version": version}).encode())

    sent = ollama.encode(call(chat(model=model, reasoning_effort=effort)))

    assert isinstance(sent.body, bytes)
    assert json.loads(sent.body)["think"] == think


@pytest.mark.parametrize(
    ("model", "capabilities", "think"),
    [
        pytest.param("o4-mini", ["completion", "thinking"], False, id="thinking model"),
        pytest.param("gpt-5", None, "low", id="gpt-oss"),
        pytest.param("gpt-4o-mini", ["completion"], None, id="no thinking"),
        pytest.param("o4-mini", None, None, id="not known"),
    ],
)
def test_a_legacy_completion_asks_for_no_thoughts(
    model: str, capabilities: list[str] | None, think: object
) -> None:
    ollama = provider()
    ollama.learn_show(ollama.model_for(model), json.dumps({"capabilities": capabilities}).encode())

    sent = ollama.encode(call({"model": model, "prompt": "a"}, COMPLETIONS))

    assert isinstance(sent.body, bytes)
    assert json.loads(sent.body).get("think") == think


def test_a_legacy_completion_carries_its_suffix() -> None:
    body = encoded({"prompt": "a", "suffix": "b", "logprobs": 0, "max_tokens": 4}, COMPLETIONS)

    assert (body["suffix"], body["logprobs"], body["options"]) == ("b", True, {"num_predict": 4})
    assert "top_logprobs" not in body


@pytest.mark.parametrize(
    ("payload", "endpoint", "param"),
    [
        (chat(tools=[TOOL]), CHAT, "tools"),
        (chat(functions=[{"name": "f"}]), CHAT, "functions"),
        (image(f"data:image/png;base64,{PIXEL}"), CHAT, "messages"),
        (part(type="input_audio", input_audio={"data": PIXEL, "format": "wav"}), CHAT, "messages"),
        ({"prompt": "a", "suffix": "b", "model": "gpt-4o-mini"}, COMPLETIONS, "suffix"),
    ],
)
def test_what_the_model_is_known_to_lack_is_refused(payload: Json, endpoint: Endpoint, param: str) -> None:
    ollama = provider()
    ollama.learn_show("llama3.2:latest", b'{"capabilities": ["completion"]}')

    with pytest.raises(UpstreamError) as refused:
        ollama.encode(call(payload, endpoint))

    assert (refused.value.kind, refused.value.param) == (FailureKind.UNSUPPORTED, param)


def test_a_model_without_thinking_is_remembered_after_its_refusal() -> None:
    ollama = provider()
    request = call(chat(reasoning_effort="high"))
    before = ollama.encode(request)

    ollama.failure(request, ReplyHead(400, ()), b'{"error":"\\"llama3.2\\" does not support thinking"}')
    after = ollama.encode(request)

    assert isinstance(before.body, bytes)
    assert isinstance(after.body, bytes)
    assert ("think" in json.loads(before.body), "think" in json.loads(after.body)) == (True, False)


def test_calls_and_texts_of_one_turn_become_one_assistant_message() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Two?"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "1", "name": "a", "arguments": ""},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One moment."}]},
        {"type": "function_call", "call_id": "2", "name": "b", "arguments": "{}"},
        {"type": "web_search_call", "id": "ws"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "ok"}]},
    ]

    body = encoded(answers(input=items), RESPONSES)

    assert body["messages"] == [
        {"role": "user", "content": "Two?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "thinking": "hm",
            "tool_calls": [
                {"id": "1", "function": {"name": "a", "arguments": {}}},
                {"id": "2", "function": {"name": "b", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "ok", "tool_name": "b", "tool_call_id": "2"},
    ]


def test_thoughts_without_a_turn_of_the_model_after_them_are_dropped() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    items = [thought, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

    messages = encoded(answers(input=items), RESPONSES)["messages"]

    assert messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_effort_may_be_nested_as_in_the_responses_api() -> None:
    assert encoded(chat(reasoning={"effort": "low"}))["think"] == "low"


@pytest.mark.parametrize(
    ("options", "native"),
    [
        pytest.param({"seed": -1}, {"seed": 2**31 - 1}, id="a negative seed"),
        pytest.param({"max_tokens": 10**12}, {"num_predict": 2**31 - 1}, id="a bound beyond 31 bits"),
        pytest.param({"max_tokens": 8.0}, {"num_predict": 8}, id="a whole number as a float"),
        pytest.param({"stop": ["", "a"]}, {"stop": ["a"]}, id="empty stops"),
        pytest.param({"stop": [""], "seed": None}, None, id="nothing left"),
    ],
)
def test_options_stay_in_the_range_that_ollama_means(options: Json, native: object) -> None:
    assert encoded(chat(**options)).get("options") == native


@pytest.mark.parametrize(
    ("format", "native"),
    [
        ({"type": "json_schema", "name": "p", "schema": {"type": "object"}}, {"type": "object"}),
        ({"type": "json_object"}, "json"),
        ({"type": "text"}, None),
    ],
)
def test_a_responses_text_format_constrains_the_output(format: Json, native: object) -> None:
    assert encoded(answers(text={"format": format}), RESPONSES).get("format") == native


def test_what_responses_cannot_honour_is_said() -> None:
    sent = provider().encode(call(answers(top_logprobs=2, text={"verbosity": "low"}), RESPONSES))

    assert sent.lossy == ("top_logprobs", "verbosity")


def test_embeddings_keep_the_operators_keep_alive_but_not_the_chat_models_context() -> None:
    body = encoded({"input": ""}, EMBEDDINGS, keep_alive="300", num_ctx=4096)

    assert body == {"model": "llama3.2", "input": [""], "truncate": False, "keep_alive": 300}


def test_the_callers_payload_stays_as_it_was() -> None:
    tool = {
        "function": {"name": "f", "strict": True, "parameters": {"properties": {"a": True}}},
        "type": "function",
    }
    payload = chat(tools=[tool], messages=[{"role": "system", "content": "s"}, *USER], stop="a")
    before = json.dumps(payload)

    encoded(payload)

    assert json.dumps(payload) == before


def test_a_request_nested_too_deeply_is_refused() -> None:
    schema: Json = {}
    for _ in range(3000):
        schema = {"a": schema}
    payload = chat(response_format={"type": "json_schema", "json_schema": {"schema": schema}})

    with pytest.raises(UpstreamError) as refused:
        encoded(payload)

    assert refused.value.kind is FailureKind.UNSUPPORTED
