"""What a rescue asks for, when it must not, and how a continuation reads as the rest of a stream."""

import json
from dataclasses import replace
from typing import Any

import pytest

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Call, Controls, Endpoint, ReplyHead, Usage
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.rescue import (
    INSTRUCTION,
    MAX_SENT_CHARS,
    MIN_SECONDS_LEFT,
    MIN_TOKENS,
    REFUSALS,
    Splice,
    continue_call,
    refusal,
)
from sentinel_proxy.testing import ToolCall, openai_chunks, sse

SENT = ["The quick brown fox", " jumps over"]
HEAD = ReplyHead(200, [(b"content-type", b"text/event-stream")])
OTHER = OpenAIProvider(name="other", base_url="http://other/v1", continuation="prefill")
BROKE = UpstreamError(FailureKind.TRUNCATED, "the connection ended")


def call(**payload: Any) -> Call:
    payload = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **payload}
    return Call("t", Endpoint.CHAT, b"{}", payload, "m", True, 0.0, 600.0)


def decoder(of: Call) -> Decoder:
    return OpenAIProvider(base_url="http://upstream/v1").decoder(of, HEAD)


def broken(*events: bytes, of: Call | None = None) -> Decoder:
    """Return the decoder of a stream that said *events* and no more."""
    said = decoder(of or call())
    said.feed(b"".join(events or openai_chunks(SENT, finish_reason=None, done=False)))
    return said


def splice(method: str = "prefill", of: Call | None = None) -> Splice:
    asked = of or call()
    return Splice(decoder(asked), broken(), asked, source="openai", target="other", method=method)


def payloads(output: bytes) -> list[Any]:
    """Return the payloads of the events, `[DONE]` as text."""
    data = [line[6:] for line in output.decode().split("\n\n") if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def text_of(events: list[Any]) -> str:
    chunks = [event for event in events if event != "[DONE]" and event["choices"]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def finishes(events: list[Any]) -> list[str]:
    chunks = [event for event in events if event != "[DONE]" and event["choices"]]
    return [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]


class TestRefusals:
    def test_plain_text_that_broke_off_may_be_carried_on(self) -> None:
        assert refusal(call(), broken(), BROKE, now=0) is None

    @pytest.mark.parametrize(
        ("asked", "events", "error", "now", "reason"),
        [
            pytest.param(
                replace(call(), endpoint=Endpoint.COMPLETIONS),
                [],
                BROKE,
                0,
                "only chat",
                id="legacy completion",
            ),
            pytest.param(
                replace(call(), controls=Controls(no_failover=True)),
                [],
                BROKE,
                0,
                "no failover",
                id="no failover",
            ),
            pytest.param(call(n=2), [], BROKE, 0, "several choices", id="several choices"),
            pytest.param(
                call(response_format={"type": "json_schema"}), [], BROKE, 0, "format", id="a promised format"
            ),
            pytest.param(call(logprobs=True), [], BROKE, 0, "log probabilities", id="log probabilities"),
            pytest.param(
                call(),
                openai_chunks(["a"], tool_calls=[ToolCall("f", {})], finish_reason=None, done=False),
                BROKE,
                0,
                "more than text",
                id="a tool call in progress",
            ),
            pytest.param(
                call(),
                openai_chunks([], finish_reason=None, done=False),
                BROKE,
                0,
                "nothing",
                id="a role alone",
            ),
            pytest.param(call(), openai_chunks(SENT, done=False), BROKE, 0, "was over", id="all was said"),
            pytest.param(
                call(),
                openai_chunks(["x" * (MAX_SENT_CHARS + 1)], finish_reason=None, done=False),
                BROKE,
                0,
                "too long",
                id="a long answer",
            ),
            pytest.param(
                call(), [], UpstreamError(FailureKind.CALLER, "filtered"), 0, "not a break", id="a refusal"
            ),
            pytest.param(call(), [], BROKE, 600 - MIN_SECONDS_LEFT + 0.1, "too late", id="no time left"),
        ],
    )
    def test_anything_else_may_not(
        self, asked: Call, events: list[bytes], error: UpstreamError, now: float, reason: str
    ) -> None:
        told = refusal(asked, broken(*events, of=asked), error, now)

        assert told is not None
        assert reason in told

    def test_each_reason_is_a_reason_of_its_own(self) -> None:
        assert len({reason for reason, _ in REFUSALS}) == len(REFUSALS)

    def test_a_format_of_text_promises_nothing(self) -> None:
        assert refusal(call(response_format={"type": "text"}), broken(), BROKE, now=0) is None


class TestContinueCall:
    def test_a_prefill_ends_with_what_was_said(self) -> None:
        continued = continue_call(call(), broken(), OTHER, "prefill")

        assert continued.payload["messages"] == [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "".join(SENT)},
        ]
        assert json.loads(continued.body) == continued.payload

    def test_an_instruction_comes_after_what_was_said_and_replaces_nothing(self) -> None:
        system = {"role": "system", "content": "Be brief."}
        asked = call(messages=[system, {"role": "user", "content": "Hi"}])

        messages = continue_call(asked, broken(), OTHER, "instruct").payload["messages"]

        assert messages[0] == system
        assert messages[-1] == {"role": "user", "content": INSTRUCTION}
        assert len(asked.payload["messages"]) == 2

    @pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
    def test_the_callers_limit_holds_for_both_parts_together(self, limit: str) -> None:
        long, short = (
            continue_call(call(**{limit: tokens}), broken(), OTHER, "prefill").payload[limit]
            for tokens in (100, 3)
        )

        assert (long, short) == (100 - len(SENT), MIN_TOKENS)

    def test_a_seed_goes_and_usage_is_asked_for(self) -> None:
        asked = call(seed=7, stop=["END"], stream_options={"include_obfuscation": False})

        payload = continue_call(asked, broken(), OTHER, "prefill").payload

        assert "seed" not in payload
        assert payload["stop"] == ["END"]
        assert payload["stream_options"] == {"include_obfuscation": False, "include_usage": True}

    def test_only_the_one_provider_is_asked_and_the_trail_goes_on(self) -> None:
        asked = call()

        continued = continue_call(asked, broken(), OTHER, "prefill")

        assert continued.controls.providers == ("other",)
        assert continued.controls.no_failover
        assert continued.trail is asked.trail

    @pytest.mark.parametrize(
        ("host", "word"),
        [
            ("api.deepseek.com/beta", {"prefix": True}),
            ("api.mistral.ai/v1", {"prefix": True}),
            ("api.moonshot.ai/v1", {"partial": True}),
            ("llama.internal/v1", {}),
        ],
    )
    def test_a_prefill_is_asked_for_in_the_vendors_own_word(self, host: str, word: dict[str, Any]) -> None:
        vendor = OpenAIProvider(base_url=f"https://{host}", continuation="prefill")

        said = continue_call(call(), broken(), vendor, "prefill").payload["messages"][-1]
        told = continue_call(call(), broken(), vendor, "instruct").payload["messages"][-2]

        assert said == {"role": "assistant", "content": "".join(SENT), **word}
        assert told == {"role": "assistant", "content": "".join(SENT)}

    def test_a_server_that_lists_its_models_as_vllms_is_asked_as_vllm_wants_it(self) -> None:
        server = OpenAIProvider(base_url="http://gpu.internal/v1", continuation="prefill")
        server.catalogue(b'{"data": [{"id": "llama", "owned_by": "vllm"}]}')

        payload = continue_call(call(), broken(), server, "prefill").payload

        assert payload["continue_final_message"] is True
        assert payload["add_generation_prompt"] is False


class TestSplice:
    def test_the_caller_reads_one_stream(self) -> None:
        spliced = splice()

        events = payloads(spliced.feed(b"".join(openai_chunks([" the", " lazy dog"], model="other-model"))))

        chunks = events[:-1]
        assert text_of(events) == " the lazy dog"
        assert not any("role" in chunk["choices"][0]["delta"] for chunk in chunks)
        assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {broken().opened_as}
        assert {chunk["model"] for chunk in chunks} == {"other-model"}
        assert finishes(events) == ["stop"]
        assert events[-1] == "[DONE]"
        assert spliced.complete

    def test_the_first_chunk_says_who_goes_on_and_from_where(self) -> None:
        output = splice().feed(b"".join(openai_chunks([" the", " lazy dog"])))

        marked = [event for event in payloads(output)[:-1] if "sentinel" in event]
        assert output.startswith(b": sentinel failover\n\n")
        assert [chunk["sentinel"] for chunk in marked] == [
            {
                "event": "midstream_failover",
                "from": "openai",
                "to": "other",
                "at_chars": len("".join(SENT)),
                "method": "prefill",
            }
        ]
        assert text_of(marked) == " the"

    def test_what_is_held_at_the_end_is_said_before_it(self) -> None:
        events = payloads(splice().feed(b"".join(openai_chunks([" jumps"]))))

        assert text_of(events) == " jumps"
        assert finishes(events) == ["stop"]

    def test_an_end_without_a_finish_reason_loses_nothing(self) -> None:
        """`[DONE]` alone ends a stream too, and the seam may still hold text then."""
        spliced = splice()

        events = payloads(spliced.feed(b"".join(openai_chunks([" jumps"], finish_reason=None))))

        assert text_of(events) == " jumps"
        assert events[-1] == "[DONE]"
        assert spliced.complete

    @pytest.mark.parametrize("piece", [1, 10_000], ids=["byte by byte", "at once"])
    def test_a_continuation_that_says_nothing_proves_nothing(self, piece: int) -> None:
        """A finish reason alone commits to nothing: there may be another way to ask."""
        spliced = splice()
        data = b"".join(openai_chunks([]))

        for at in range(0, len(data), piece):
            spliced.feed(data[at : at + piece])

        assert not spliced.began
        assert spliced.failure is not None
        assert spliced.failure.kind is FailureKind.EMPTY

    def test_a_continuation_that_only_repeats_says_that_all_was_said(self) -> None:
        spliced = splice()

        events = payloads(spliced.feed(b"".join(openai_chunks(["fox jumps", " over"]))))

        assert text_of(events) == ""
        assert finishes(events) == ["stop"]
        assert spliced.began
        assert spliced.complete

    def test_a_text_that_cannot_be_joined_is_a_failure(self) -> None:
        asked = call()
        sent = " ".join(f"word{number}" for number in range(30))
        said = broken(*openai_chunks([sent], finish_reason=None, done=False))
        spliced = Splice(decoder(asked), said, asked, source="a", target="b", method="instruct")

        output = spliced.feed(b"".join(openai_chunks([sent[:100] + "sword", " and on"])))

        assert output == b""
        assert spliced.failure is not None
        assert spliced.failure.kind is FailureKind.PROTOCOL
        assert not spliced.complete

    def test_a_second_finish_reason_is_left_out(self) -> None:
        finish = openai_chunks([], role=False, done=False)

        events = payloads(splice().feed(b"".join([*openai_chunks([" the"], done=False), *finish])))

        assert finishes(events) == ["stop"]

    @pytest.mark.parametrize("where", ["of its own", "with the finish"])
    def test_usage_adds_up_wherever_it_is_told(self, where: str) -> None:
        asked = call(stream_options={"include_usage": True})
        told = openai_chunks([" the"], usage=Usage(20, 5))
        if where == "with the finish":
            finish, usage = json.loads(told[-3][6:]), json.loads(told[-2][6:])
            told[-3:-1] = [sse({**finish, "usage": usage["usage"]})]
        spliced = splice(of=asked)

        events = payloads(spliced.feed(b"".join(told)))

        usages = [event["usage"] for event in events[:-1] if event.get("usage")]
        assert usages == [{"prompt_tokens": 18, "completion_tokens": 7, "total_tokens": 25}]
        assert spliced.usage == Usage(18, 7)

    def test_usage_that_nobody_asked_for_is_not_told(self) -> None:
        output = splice().feed(b"".join(openai_chunks([" the"], usage=Usage(20, 5))))

        assert b'"usage"' not in output

    def test_reasoning_before_the_text_is_passed_on_and_not_spliced(self) -> None:
        thought = sse({"choices": [{"index": 0, "delta": {"reasoning_content": "Where was I?"}}]})

        events = payloads(splice().feed(thought + b"".join(openai_chunks([" the"]))))

        assert events[0]["choices"][0]["delta"] == {"reasoning_content": "Where was I?"}
        assert text_of(events) == " the"

    def test_a_break_of_the_continuation_is_a_break(self) -> None:
        spliced = splice()

        spliced.feed(b"".join(openai_chunks([" the"], finish_reason=None, done=False)))
        spliced.close()

        assert spliced.failure is not None
        assert spliced.failure.kind is FailureKind.TRUNCATED
