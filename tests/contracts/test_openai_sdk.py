"""
The official `openai` package, unmodified, through the proxy: whatever the provider does, the app is well.

Six providers that speak OpenAI's dialect, each in its own condition, each with a proxy in front
and a healthy Ollama behind it. Every test makes one kind of call in every condition, and judges
what the app gets with the SDK's own types.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from harness import Harness, Start, chain, started
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from sentinel_proxy.config import (
    BreakerConfig,
    HealthConfig,
    ProviderTimeoutsConfig,
    RetryConfig,
    TimeoutsConfig,
)
from sentinel_proxy.testing import (
    Close,
    FaultyUpstream,
    Hang,
    Received,
    Reset,
    Script,
    ToolCall,
    cut,
    json_answer,
    ollama_completion,
    ollama_error,
    ollama_show,
    ollama_stream,
    ollama_tags,
    openai_completion,
    openai_error,
    openai_models,
    openai_stream,
    sse,
    sse_stream,
)

pytestmark = pytest.mark.anyio

QUICK = TimeoutsConfig(
    connect=1, first_token=0.2, first_token_reasoning=0.2, idle=0.5, progress=1, answer=0.2, total=5
)
IMPATIENT = ProviderTimeoutsConfig(first_token=0.2, first_token_reasoning=0.2, answer=0.2)
ALWAYS_ONCE: dict[str, Any] = {
    "timeouts": TimeoutsConfig(),
    "health": HealthConfig(timeout=0.5),
    "breaker": BreakerConfig(failure_threshold=100_000),  # never opens
    "retry": RetryConfig(attempts=2, backoff=0.001, budget=1),
}
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = ToolCall("weather", {"city": "Oslo"})
USAGE = {"prompt_tokens": 3, "total_tokens": 3}


class Person(BaseModel):
    name: str
    age: int


ADA = '{"name": "Ada", "age": 36}'


def text_for(request: Received) -> str:
    return ADA if "response_format" in request.json() or "format" in request.json() else "Hello there"


def as_openai(request: Received) -> Script:
    """Answer as OpenAI would."""
    path = request.target.partition("?")[0]
    if request.method == "GET":
        return openai_models("gpt-4o-mini", "gpt-4o")
    if path == "/v1/files":
        body = {
            "id": "file-1",
            "object": "file",
            "bytes": 3,
            "created_at": 1,
            "filename": "f.jsonl",
            "purpose": "batch",
            "status": "processed",
        }
        return json_answer(200, body)
    asked = request.json()
    if path == "/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
        return json_answer(200, {"object": "list", "data": data, "model": asked["model"], "usage": USAGE})
    if path == "/v1/completions":
        return legacy(asked, "Hello there")
    if path == "/v1/responses":
        return response(asked, "Hello there")
    wants_tool = "tools" in asked and asked["messages"][-1]["role"] == "user"
    calls = [CALL] if wants_tool else []
    if asked.get("stream"):
        tokens = [] if calls else pieces(text_for(request))
        finish = "tool_calls" if calls else "stop"
        return openai_stream(tokens, tool_calls=calls, finish_reason=finish)
    text = "" if calls else text_for(request)
    return openai_completion(text, tool_calls=calls, finish_reason="tool_calls" if calls else "stop")


def as_ollama(request: Received) -> Script:
    """Answer as Ollama would."""
    if request.target == "/api/tags":
        return ollama_tags("llama3.2")
    if request.target == "/api/show":
        return ollama_show("completion", "tools", "vision", "insert")
    if request.target == "/api/version":
        return json_answer(200, {"version": "0.32.15"})
    asked = request.json()
    if request.target == "/api/embed":
        return json_answer(200, {"model": "llama3.2", "embeddings": [[0.25, -0.5]], "prompt_eval_count": 3})
    if request.target == "/api/generate":
        line = {"model": "llama3.2", "created_at": "2026-03-01T10:00:00Z", "response": "Hello there"}
        done = {**line, "done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
        return json_answer(200, done)
    wants_tool = "tools" in asked and asked["messages"][-1]["role"] == "user"
    calls = [CALL] if wants_tool else []
    text = "" if calls else text_for(request)
    if asked.get("stream"):
        return ollama_stream(pieces(text), tool_calls=calls)
    return ollama_completion(text, tool_calls=calls)


def pieces(text: str) -> list[str]:
    return [text[at : at + 3] for at in range(0, len(text), 3)]


def legacy(asked: Any, text: str) -> Script:
    body = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        return json_answer(200, {**body, "choices": [choice], "usage": {**USAGE, "completion_tokens": 2}})
    events = [
        sse({**body, "choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}]})
        for piece in pieces(text)
    ]
    end = {**body, "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]}
    return sse_stream([*events, sse(end), sse("[DONE]")])


def response(asked: Any, text: str) -> Script:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    whole = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": asked["model"],
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    if not asked.get("stream"):
        return json_answer(200, whole)
    started = {**whole, "status": "in_progress", "output": []}
    deltas = [
        {
            "type": "response.output_text.delta",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": piece,
            "logprobs": [],
        }
        for piece in pieces(text)
    ]
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {
            "type": "response.content_part.added",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "part": {**part, "text": ""},
        },
        *deltas,
        {"type": "response.completed", "response": whole},
    ]
    return sse_stream(
        b"event: %b\n" % event["type"].encode() + sse({**event, "sequence_number": number})
        for number, event in enumerate(events)
    )


@dataclass(frozen=True)
class Condition:
    """How the first provider is, and how the trail tells it."""

    name: str
    trail: str

    def assert_told_by(self, headers: Mapping[str, str]) -> None:
        """Fail unless *headers* tell what has happened."""
        served = "openai" if self.name == "healthy" else "ollama"
        assert headers["x-sentinel-trail"] == self.trail
        assert headers["x-sentinel-provider"] == served
        assert headers["x-sentinel-failover"] == ("false" if served == "openai" else "true")
        assert headers["x-sentinel-attempts"] == str(len(self.trail.split(",")))
        assert len(headers["x-sentinel-trace-id"]) == 32


CONDITIONS = [
    Condition("healthy", "openai:200"),
    Condition("refusing", "openai:connect,ollama:200"),
    Condition("503", "openai:503,openai:503,ollama:200"),
    Condition("429", "openai:429,ollama:200"),
    Condition("hanging", "openai:timeout,ollama:200"),
    Condition("cutting", "openai:truncated,ollama:200"),
]


def act_of(condition: Condition) -> Any:
    def cutting(request: Received) -> Script:
        whole = as_openai(request)
        return cut(whole, 20, Close() if request.json().get("stream") else Reset(), of="body")

    acts: dict[str, Any] = {
        "503": openai_error(503, "server_is_overloaded"),
        "429": openai_error(429, "rate_limit_exceeded", headers={"retry-after-ms": "1"}),
        "hanging": [Hang()],
        "cutting": cutting,
    }
    return acts.get(condition.name, as_openai)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """As elsewhere, but for the whole module, so that its proxies can be shared."""
    return "asyncio"


@pytest.fixture(scope="module")
async def proxies(anyio_backend: str) -> AsyncIterator[dict[str, Harness]]:
    """One proxy for each condition of the first provider."""
    async with AsyncExitStack() as stack:
        backup = await stack.enter_async_context(FaultyUpstream())
        backup.always(as_ollama)
        found = {}
        for condition in CONDITIONS:
            primary = await stack.enter_async_context(FaultyUpstream())
            primary.always(act_of(condition))
            if condition.name == "refusing":
                await primary.stop_listening()
            config = chain(primary, backup, **ALWAYS_ONCE)
            if condition.name == "hanging":
                first, second = config.providers
                first = first.model_copy(update={"timeouts": IMPATIENT})
                config = config.model_copy(update={"providers": (first, second)})
            found[condition.name] = await stack.enter_async_context(started(config))
        yield found


@pytest.fixture(params=CONDITIONS, ids=lambda condition: f"primary {condition.name}")
def condition(request: pytest.FixtureRequest) -> Condition:
    found: Condition = request.param
    return found


@pytest.fixture
def harness(proxies: dict[str, Harness], condition: Condition) -> Harness:
    return proxies[condition.name]


def sdk(harness: Harness, **options: Any) -> AsyncOpenAI:
    """Return the SDK as an app has it, but for its base URL; without the environment's proxies."""
    return AsyncOpenAI(
        base_url=f"{harness.url}/v1", api_key="sk-of-the-app", max_retries=0, timeout=10, **options
    )


@pytest.fixture
async def app(harness: Harness) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(harness) as client:
        yield client


class TestChat:
    async def test_a_completion(self, app: AsyncOpenAI, condition: Condition) -> None:
        raw = await app.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=ASK)

        completion = raw.parse()

        assert completion.choices[0].message.content == "Hello there"
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage is not None
        assert completion.usage.total_tokens == 9
        condition.assert_told_by(raw.headers)

    async def test_a_stream(self, app: AsyncOpenAI, condition: Condition, harness: Harness) -> None:
        raw = await app.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=ASK, stream=True
        )

        chunks = [chunk async for chunk in raw.parse()]

        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert len({chunk.id for chunk in chunks}) == 1
        condition.assert_told_by(raw.headers)
        assert harness.idle()

    async def test_the_streaming_helper(self, app: AsyncOpenAI) -> None:
        async with app.chat.completions.stream(model="gpt-4o-mini", messages=ASK) as stream:
            kinds = [event.type async for event in stream]
            completion = await stream.get_final_completion()

        assert completion.choices[0].message.content == "Hello there"
        assert kinds.count("content.done") == 1

    @pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
    async def test_a_tool_is_called_and_its_result_is_answered(
        self, app: AsyncOpenAI, streaming: bool
    ) -> None:
        if streaming:
            async with app.chat.completions.stream(
                model="gpt-4o-mini", messages=ASK, tools=[WEATHER]
            ) as stream:
                asked: Any = await stream.get_final_completion()
        else:
            asked = await app.chat.completions.create(model="gpt-4o-mini", messages=ASK, tools=[WEATHER])
        message = asked.choices[0].message
        (call,) = message.tool_calls
        result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": call.id, "content": "rain"}

        answered = await app.chat.completions.create(
            model="gpt-4o-mini",
            messages=[*ASK, message.model_dump(exclude_none=True, exclude={"parsed"}), result],
            tools=[WEATHER],
        )

        assert asked.choices[0].finish_reason == "tool_calls"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
        assert answered.choices[0].message.content == "Hello there"

    async def test_an_image_in_a_data_uri(self, app: AsyncOpenAI) -> None:
        seen = await app.chat.completions.create(
            model="gpt-4o-mini",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": PIXEL}},
                    ],
                }
            ],
        )

        assert seen.choices[0].message.content == "Hello there"

    async def test_a_schema_is_parsed_into_its_model(self, app: AsyncOpenAI) -> None:
        parsed = await app.chat.completions.parse(model="gpt-4o-mini", messages=ASK, response_format=Person)

        assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)

    async def test_the_synchronous_client(self, harness: Harness, condition: Condition) -> None:
        def call() -> tuple[str | None, str, Any]:
            with openai.OpenAI(base_url=f"{harness.url}/v1", api_key="sk-of-the-app", max_retries=0) as app:
                whole = app.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=ASK)
                stream = app.chat.completions.create(model="gpt-4o-mini", messages=ASK, stream=True)
                streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                return whole.parse().choices[0].message.content, streamed, whole.headers

        whole, streamed, headers = await asyncio.to_thread(call)

        assert (whole, streamed) == ("Hello there", "Hello there")
        condition.assert_told_by(headers)


class TestOtherEndpoints:
    async def test_a_legacy_completion(self, app: AsyncOpenAI, condition: Condition) -> None:
        raw = await app.completions.with_raw_response.create(model="gpt-4o-mini", prompt="Say hello")

        assert raw.parse().choices[0].text == "Hello there"
        condition.assert_told_by(raw.headers)

    async def test_embeddings_only_move_to_the_same_model(
        self, app: AsyncOpenAI, condition: Condition
    ) -> None:
        """Vectors of two models cannot be compared: rather none than wrong ones."""
        call = app.embeddings.with_raw_response.create(
            model="text-embedding-3-small", input="hello", encoding_format="float"
        )

        if condition.name == "healthy":
            assert (await call).parse().data[0].embedding == [0.25, -0.5]
        else:
            with pytest.raises(openai.APIStatusError) as failed:
                await call
            assert failed.value.status_code in (429, 502, 503, 504)

    @pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
    async def test_a_response(self, app: AsyncOpenAI, streaming: bool) -> None:
        if not streaming:
            answered = await app.responses.create(model="gpt-4o-mini", input="Hi")
        else:
            async with app.responses.stream(model="gpt-4o-mini", input="Hi") as stream:
                deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
                answered = await stream.get_final_response()
            assert "".join(deltas) == "Hello there"

        assert answered.output_text == "Hello there"
        assert answered.status == "completed"

    async def test_the_models_of_all_who_answer(self, app: AsyncOpenAI, condition: Condition) -> None:
        listed = [model.id async for model in app.models.list()]

        openais = ["gpt-4o-mini", "gpt-4o"] if condition.name == "healthy" else []
        assert listed == [*openais, "llama3.2"]
        assert (await app.models.retrieve("llama3.2")).object == "model"
        with pytest.raises(openai.NotFoundError) as unknown:
            await app.models.retrieve("gpt-9")
        assert unknown.value.code == "model_not_found"

    async def test_a_file_is_uploaded_where_that_is_possible(
        self, app: AsyncOpenAI, condition: Condition
    ) -> None:
        """K12, G06: never to a second provider, and never twice."""
        upload = app.files.with_raw_response.create(
            file=("f.jsonl", b"{}\n"), purpose="batch", extra_headers={"x-sentinel-timeout": "0.3"}
        )

        if condition.name == "healthy":
            assert (await upload).parse().id == "file-1"
        else:
            with pytest.raises(openai.APIError):
                await upload


async def plainly(app: AsyncOpenAI, said: list[str]) -> None:
    async for chunk in await app.chat.completions.create(model="gpt-4o-mini", messages=ASK, stream=True):
        said += filter(None, [chunk.choices[0].delta.content])


async def by_the_helper(app: AsyncOpenAI, said: list[str]) -> None:
    async with app.chat.completions.stream(model="gpt-4o-mini", messages=ASK) as stream:
        async for event in stream:
            if event.type == "content.delta":
                said.append(event.delta)


@pytest.fixture
async def failing(start: Start, primary: FaultyUpstream, backup: FaultyUpstream) -> AsyncIterator[Any]:
    """An app before one provider with the given script, and one that is down."""
    async with AsyncExitStack() as stack:

        async def failing(script: Script, **options: Any) -> AsyncOpenAI:
            primary.always(script)
            backup.always(ollama_error(500))
            harness = await start(chain(primary, backup, timeouts=QUICK))
            return await stack.enter_async_context(sdk(harness, **options))

        yield failing


class TestErrors:
    @pytest.mark.parametrize(
        ("script", "error", "code"),
        [
            (
                openai_error(400, "invalid_value", param="temperature"),
                openai.BadRequestError,
                "invalid_value",
            ),
            (openai_error(422, "unprocessable"), openai.UnprocessableEntityError, "unprocessable"),
            (openai_error(400, "content_filter"), openai.BadRequestError, "content_filter"),
            (openai_error(409, "busy"), openai.ConflictError, "busy"),
        ],
        ids=["400", "422", "content filter", "409"],
    )
    async def test_a_mistake_of_the_apps_own_has_the_class_and_code_that_it_expects(
        self, failing: Any, script: Script, error: type[openai.APIStatusError], code: str
    ) -> None:
        """K09."""
        app = await failing(script)

        with pytest.raises(error) as raised:
            await app.chat.completions.create(model="gpt-4o-mini", messages=ASK)

        assert (raised.value.code, raised.value.request_id) == (code, "req_scripted")
        assert raised.value.response.headers["x-sentinel-error-source"] == "upstream"

    async def test_an_unknown_model_is_not_found(self, failing: Any, backup: FaultyUpstream) -> None:
        app = await failing(openai_error(404, "model_not_found", param="model"))
        backup.always(ollama_error(404, "model 'llama3.2' not found"))

        with pytest.raises(openai.NotFoundError) as raised:
            await app.chat.completions.create(model="gpt-9", messages=ASK)

        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")

    async def test_when_all_fail_the_error_can_be_traced(self, failing: Any) -> None:
        app = await failing(openai_error(503, headers={"retry-after": "60"}))

        with pytest.raises(openai.InternalServerError) as raised:
            await app.chat.completions.create(model="gpt-4o-mini", messages=ASK)

        headers = raised.value.response.headers
        assert (raised.value.status_code, raised.value.code) == (503, "all_providers_failed")
        assert raised.value.request_id == headers["x-sentinel-trace-id"]
        assert (headers["retry-after"], headers["x-should-retry"]) == ("60", "false")

    async def test_the_sdk_only_repeats_what_can_help(self, start: Start, primary: FaultyUpstream) -> None:
        """G10: its own retries are for it to decide, by what it is told."""
        primary.always(openai_error(401, "invalid_api_key"))
        harness = await start(chain(primary))
        async with sdk(harness).with_options(max_retries=2) as app:
            with pytest.raises(openai.InternalServerError):
                await app.chat.completions.create(model="gpt-4o-mini", messages=ASK)

        assert len(harness.finished()) == 1

    @pytest.mark.parametrize("listen", [plainly, by_the_helper], ids=["plainly", "D19 by the helper"])
    async def test_a_stream_that_breaks_is_never_taken_for_whole(
        self, start: Start, primary: FaultyUpstream, listen: Any
    ) -> None:
        """D01."""
        primary.always([*openai_stream(["One", " two", " three"])[:4], Reset()])
        harness = await start(chain(primary))
        said: list[str] = []

        async with sdk(harness) as app:
            with pytest.raises(openai.APIError) as raised:
                await listen(app, said)

        assert raised.value.code == "stream_interrupted"
        assert "".join(said) == "One two"
        assert harness.idle()

    async def test_a_broken_response_stream_is_raised_too(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        whole = list(response({"model": "gpt-4o-mini", "stream": True}, "Hello there"))
        primary.always([*whole[:5], Reset()])
        harness = await start(chain(primary))

        async with sdk(harness) as app:
            with pytest.raises(openai.APIError) as raised:
                async for _ in await app.responses.create(model="gpt-4o-mini", input="Hi", stream=True):
                    pass

        assert raised.value.code == "stream_interrupted"

    async def test_a_stream_kept_warm_for_nothing_is_raised(
        self, start: Start, primary: FaultyUpstream
    ) -> None:
        """C06."""
        primary.always([Hang()])
        harness = await start(chain(primary, timeouts=QUICK.model_copy(update={"header_hold": 0.05})))

        async with sdk(harness) as app:
            with pytest.raises(openai.APIError) as raised:
                async for _ in await app.chat.completions.create(
                    model="gpt-4o-mini", messages=ASK, stream=True
                ):
                    pass

        assert raised.value.code == "upstream_timeout"
