"""Simulated providers answer the request they get, and fail as told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest

from sentinel_proxy.testing import Outage, Simulated, SimulatedOllama, SimulatedOpenAI
from sentinel_proxy.testing.answers import answer_to, content_of, instance, reply, tokens_of
from sentinel_proxy.wire.json import loads

pytestmark = pytest.mark.anyio

ASKED = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        yield client


class Speaker:
    """Asks either dialect for a chat and understands the answer."""

    def __init__(self, client: httpx.AsyncClient, provider: Simulated) -> None:
        self._client = client
        self._native = isinstance(provider, SimulatedOllama)
        self._url = provider.base_url + ("/api/chat" if self._native else "/chat/completions")

    async def post(self, **fields: Any) -> httpx.Response:
        body = {"model": "llama3.2" if self._native else "gpt-4o-mini", "messages": ASKED, "stream": False}
        return await self._client.post(self._url, json=body | fields)

    async def message(self, **fields: Any) -> Any:
        """Return the message of a whole answer."""
        answer = (await self.post(**fields)).json()
        return answer["message"] if self._native else answer["choices"][0]["message"]

    async def streamed(self, **fields: Any) -> str:
        """Return the text of a streamed answer."""
        lines = (await self.post(stream=True, **fields)).text.splitlines()
        if self._native:
            return "".join(loads(line.encode())["message"]["content"] for line in lines)
        events = [loads(line[6:].encode()) for line in lines if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)

    async def as_far_as_it_comes(self) -> tuple[str, bool]:
        """Return the body of a streamed answer, and whether the connection broke."""
        model = "llama3.2" if self._native else "gpt-4o-mini"
        body = {"model": model, "messages": ASKED, "stream": True}
        got = ""
        try:
            async with self._client.stream("POST", self._url, json=body) as reply:
                async for text in reply.aiter_text():
                    got += text
        except httpx.ReadError:
            return got, True
        return got, False


@pytest.fixture(params=["openai", "ollama"])
def provider(request: pytest.FixtureRequest, openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Simulated:
    return openai if request.param == "openai" else ollama


@pytest.fixture
def speaker(client: httpx.AsyncClient, provider: Simulated) -> Speaker:
    return Speaker(client, provider)


async def test_the_answer_follows_from_the_question(speaker: Speaker) -> None:
    sky = await speaker.message()
    moon = await speaker.message(messages=[{"role": "user", "content": "How far is the Moon?"}])

    assert sky["content"] == answer_to(ASKED)
    assert "sky" in sky["content"]
    assert "Moon" in moon["content"]


async def test_a_stream_says_the_same_as_a_whole_answer(speaker: Speaker) -> None:
    whole = await speaker.message()

    assert await speaker.streamed() == whole["content"]


async def test_tools_are_called_with_arguments_that_fit(speaker: Speaker) -> None:
    message = await speaker.message(tools=[WEATHER])

    function = message["tool_calls"][0]["function"]
    arguments = function["arguments"]
    arguments = loads(arguments.encode()) if isinstance(arguments, str) else arguments
    assert function["name"] == "weather"
    assert arguments == {"city": "Why is the sky blue?", "days": 5}


async def test_the_result_of_a_tool_is_answered_not_called_again(speaker: Speaker) -> None:
    message = await speaker.message(
        tools=[WEATHER], messages=[*ASKED, {"role": "tool", "content": "sunny", "tool_call_id": "c"}]
    )

    assert "tool_calls" not in message
    assert "sunny" in message["content"]


async def test_an_answer_that_was_begun_is_continued(speaker: Speaker) -> None:
    whole = (await speaker.message())["content"]

    rest = await speaker.streamed(messages=[*ASKED, {"role": "assistant", "content": whole[:40]}])

    assert whole[:40] + rest == whole


async def test_a_503_outage_answers_every_path_with_503(provider: Simulated, speaker: Speaker) -> None:
    await provider.outage(Outage.UNAVAILABLE)

    reply = await speaker.post()

    assert reply.status_code == 503
    assert "error" in reply.json()


async def test_a_provider_that_is_gone_refuses_until_it_is_back(
    provider: Simulated, speaker: Speaker
) -> None:
    await provider.outage(Outage.REFUSE)
    with pytest.raises(httpx.ConnectError):
        await speaker.post()
    await provider.recover()

    assert (await speaker.post()).status_code == 200


async def test_going_away_ends_the_calls_that_were_running(provider: Simulated, speaker: Speaker) -> None:
    await provider.outage(Outage.HANG)
    running = asyncio.create_task(speaker.post())
    while not provider.asked:  # noqa: ASYNC110 - a counter has no event
        await asyncio.sleep(0.001)

    await provider.outage(Outage.REFUSE)

    with pytest.raises(httpx.ReadError):
        await running


async def test_a_hanging_provider_takes_the_call_and_says_nothing(
    client: httpx.AsyncClient, provider: Simulated, speaker: Speaker
) -> None:
    await provider.outage(Outage.HANG)
    client.timeout = 0.05

    with pytest.raises(httpx.ReadTimeout):
        await speaker.post()

    assert provider.asked.total() == 1


@pytest.mark.parametrize(
    ("mode", "share"), [(Outage.CUT_BEFORE, 0.0), (Outage.CUT_AFTER, 1 / 3)], ids=["before", "after"]
)
async def test_cut_streams_break_where_they_should_and_whole_answers_do_not(
    provider: Simulated, speaker: Speaker, mode: Outage, share: float
) -> None:
    await provider.outage(mode)
    tokens = tokens_of(answer_to(ASKED))

    got, broken = await speaker.as_far_as_it_comes()

    assert broken
    assert got.count('"content":"') - got.count('"content":""') == int(len(tokens) * share)
    assert "[DONE]" not in got
    assert '"done":true' not in got
    assert (await speaker.post()).status_code == 200


async def test_recovering_from_a_cut_lets_streams_through(provider: Simulated, speaker: Speaker) -> None:
    await provider.outage(Outage.CUT_AFTER)
    await provider.recover()

    assert await speaker.streamed() == answer_to(ASKED)


async def test_what_was_asked_is_counted(client: httpx.AsyncClient, openai: SimulatedOpenAI) -> None:
    await client.get(f"{openai.base_url}/models")
    await client.get(f"{openai.base_url}/models?limit=1")
    await client.get(f"{openai.base_url}/files")

    assert openai.asked == {"GET /v1/models": 2, "GET /v1/files": 1}


async def test_json_mode_gives_an_object(client: httpx.AsyncClient, openai: SimulatedOpenAI) -> None:
    message = await Speaker(client, openai).message(response_format={"type": "json_object"})

    assert loads(message["content"].encode())["question"] == ASKED[0]["content"]


async def test_a_schema_is_obeyed_in_both_dialects(
    client: httpx.AsyncClient, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wrapped = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    one = await Speaker(client, openai).message(response_format=wrapped)
    other = await Speaker(client, ollama).message(format=schema)

    assert one["content"] == other["content"] == '{"ok":true}'


async def test_usage_comes_with_a_stream_only_if_asked_for(
    client: httpx.AsyncClient, openai: SimulatedOpenAI
) -> None:
    speaker = Speaker(client, openai)

    bare = await speaker.post(stream=True)
    counted = await speaker.post(stream=True, stream_options={"include_usage": True})

    assert '"usage":{' not in bare.text
    assert f'"completion_tokens":{len(tokens_of(answer_to(ASKED)))}' in counted.text


async def test_a_limit_of_tokens_ends_the_answer_early(
    client: httpx.AsyncClient, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    one = (await Speaker(client, openai).post(max_tokens=3)).json()
    other = (await Speaker(client, ollama).post(options={"num_predict": 3})).json()

    assert one["choices"][0]["finish_reason"] == other["done_reason"] == "length"
    assert one["choices"][0]["message"]["content"] == other["message"]["content"] == 'You asked: "Why'


async def test_a_tool_choice_of_none_is_obeyed(client: httpx.AsyncClient, openai: SimulatedOpenAI) -> None:
    message = await Speaker(client, openai).message(tools=[WEATHER], tool_choice="none")

    assert "tool_calls" not in message


async def test_a_named_tool_is_the_one_that_is_called(
    client: httpx.AsyncClient, openai: SimulatedOpenAI
) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    choice = {"type": "function", "function": {"name": "b"}}

    message = await Speaker(client, openai).message(tools=tools, tool_choice=choice)

    assert message["tool_calls"][0]["function"]["name"] == "b"


async def test_streamed_tool_calls_add_up_to_the_whole_ones(
    client: httpx.AsyncClient, openai: SimulatedOpenAI
) -> None:
    speaker = Speaker(client, openai)
    whole = (await speaker.message(tools=[WEATHER]))["tool_calls"][0]["function"]["arguments"]

    lines = (await speaker.post(tools=[WEATHER], stream=True)).text.splitlines()

    events = [loads(line[6:].encode()) for line in lines if line.startswith("data: {")]
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(call["function"]["arguments"] for call in calls) == whole
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_ollama_lists_shows_and_names_its_models(
    client: httpx.AsyncClient, ollama: SimulatedOllama
) -> None:
    tags = (await client.get(f"{ollama.base_url}/api/tags")).json()
    loaded = (await client.get(f"{ollama.base_url}/api/ps")).json()
    shown = (await client.post(f"{ollama.base_url}/api/show", json={"model": "llama3.2:latest"})).json()
    version = (await client.get(f"{ollama.base_url}/api/version")).json()

    assert [model["name"] for model in tags["models"]] == ["llama3.2:latest"]
    assert [model["name"] for model in loaded["models"]] == ["llama3.2:latest"]
    assert "completion" in shown["capabilities"]
    assert version["version"]


async def test_openai_lists_and_finds_its_models(client: httpx.AsyncClient, openai: SimulatedOpenAI) -> None:
    listed = (await client.get(f"{openai.base_url}/models")).json()
    found = await client.get(f"{openai.base_url}/models/gpt-4o")
    missing = await client.get(f"{openai.base_url}/models/gpt-0")

    assert [model["id"] for model in listed["data"]] == ["gpt-4o", "gpt-4o-mini"]
    assert (found.json()["id"], missing.status_code) == ("gpt-4o", 404)


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"model": "nobody"}, 404), ({"messages": []}, 400), ({"messages": None}, 400)],
    ids=["unknown model", "no messages", "not a list"],
)
async def test_what_cannot_be_answered_is_refused(speaker: Speaker, fields: Any, status: int) -> None:
    reply = await speaker.post(**fields)

    assert reply.status_code == status
    assert "error" in reply.json()


async def test_more_than_one_choice_is_refused_rather_than_ignored(
    client: httpx.AsyncClient, openai: SimulatedOpenAI
) -> None:
    reply = await Speaker(client, openai).post(n=2)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "n")


async def test_an_instruction_to_go_on_is_followed_like_a_prefix() -> None:
    whole = answer_to(ASKED)
    begun = [*ASKED, {"role": "assistant", "content": whole[:50]}, {"role": "user", "content": "Go on."}]

    assert whole[:50] + answer_to(begun) == whole


async def test_an_old_answer_in_the_conversation_is_no_beginning() -> None:
    history = [*ASKED, {"role": "assistant", "content": "Because."}, {"role": "user", "content": "Really?"}]

    assert answer_to(history) == answer_to([{"role": "user", "content": "Really?"}])


async def test_nothing_asked_is_answered_too() -> None:
    assert "nothing" in reply([{"role": "user", "content": " "}]).text


async def test_content_in_parts_is_read_for_its_text() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "b"},
    ]

    assert content_of({"content": parts}) == "a b"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": ["x", "y"]}}},
        {"type": "array", "items": {"type": "number", "minimum": 100}},
        {"anyOf": [{"type": "null"}, {"type": "integer"}]},
        {"properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"const": 7}}},
        {"type": ["boolean", "null"]},
    ],
    ids=["object", "array", "any of", "reference", "several types"],
)
async def test_an_instance_fits_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(instance(schema, "some text"), schema)


async def test_a_schema_that_contains_itself_ends() -> None:
    schema = {"properties": {"next": {"$ref": "#"}}}

    assert instance(schema, "x")["next"]
