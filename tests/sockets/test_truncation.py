"""
A stream cut at every byte: a part of an answer is never taken for the whole of it.

Every offset is driven by a bare socket and judged by the rule that the SDKs go by; a sample of
the offsets goes through the official Python SDK here, and through the Node SDKs in
tests/contracts/test_node_sdk.py.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import openai
import pytest
from cut_streams import TEXT, Cut, every_cut, payload, telling_cuts, tireless, told
from harness import Harness, Start
from raw_caller import Answer, ask, judged

from sentinel_proxy.model import Outcome
from sentinel_proxy.testing import FaultyUpstream

pytestmark = pytest.mark.anyio

AT_ONCE = 16


async def answers(harness: Harness, cuts: Sequence[Cut]) -> list[tuple[Cut, Answer]]:
    """Ask for every one of *cuts*, some at a time."""
    waiting = iter(cuts)
    heard: list[tuple[Cut, Answer]] = []

    async def caller() -> None:
        for each in waiting:
            heard.append((each, judged(await ask(harness.url, payload(each)))))

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return heard


def honest(answer: Answer) -> bool:
    """Whether a failure says that it is one, and shows nothing but the beginning of the answer."""
    if answer.status != 200:
        return answer.whole and answer.status >= 500 and bool(answer.error["code"])
    return (
        answer.whole
        and answer.error["code"] == "stream_interrupted"
        and TEXT.startswith(answer.text)
        and not answer.done
        and not answer.finishes
    )


def right(answer: Answer) -> bool:
    """Whether it is the whole text, once, with everything that belongs to a stream, once."""
    return (
        (answer.text, answer.finishes, answer.roles) == (TEXT, ["stop"], 1)
        and answer.done
        and len({(event["id"], event["created"]) for event in answer.events}) == 1
    )


async def test_a_cut_stream_is_a_success_exactly_if_all_was_said(
    start: Start, primary: FaultyUpstream
) -> None:
    """D01, D02, at every byte: FIN and RST, chunked and delimited by the connection's end."""
    harness = await start(tireless(primary, None))
    cuts = every_cut()

    heard = await answers(harness, cuts)

    assert len(heard) == len(cuts)
    wrong = [cut.name for cut, answer in heard if answer.success is not cut.complete]
    assert wrong == [], told(wrong)
    unlike = [cut.name for cut, answer in heard if not (right if cut.complete else honest)(answer)]
    assert unlike == [], told(unlike)
    assert harness.idle()


async def test_with_a_fallback_the_text_arrives_whole_and_once(
    start: Start, primary: FaultyUpstream, backup: FaultyUpstream
) -> None:
    """C02, C05, D06, at every byte."""
    harness = await start(tireless(primary, backup))
    cuts = every_cut()

    heard = await answers(harness, cuts)

    wrong = [cut.name for cut, answer in heard if not (answer.success and right(answer))]
    assert len(heard) == len(cuts)
    assert wrong == [], told(wrong)
    outcomes = {event.outcome for event in harness.finished()}
    assert outcomes == {Outcome.SUCCESS, Outcome.FAILED_OVER, Outcome.RESCUED}
    assert harness.idle()


Heard = tuple[str, str]
"""The text that an application has, and how it ended: "" or the name of the exception."""


@pytest.fixture
async def sdk() -> AsyncIterator[Callable[[Harness], openai.AsyncOpenAI]]:
    """Make official clients for a proxy; they are closed after the test."""
    clients: list[openai.AsyncOpenAI] = []

    def client_of(harness: Harness) -> openai.AsyncOpenAI:
        clients.append(
            openai.AsyncOpenAI(base_url=f"{harness.url}/v1", api_key="sk-of-the-caller", max_retries=0)
        )
        return clients[-1]

    yield client_of
    for client in clients:
        await client.close()


async def iterated(client: openai.AsyncOpenAI, cut: Cut) -> Heard:
    """Read a stream as most applications do."""
    text = ""
    try:
        async for chunk in await client.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            user=cut.name,
        ):
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    except openai.OpenAIError as error:
        return text, type(error).__name__
    return text, ""


async def helped(client: openai.AsyncOpenAI, cut: Cut) -> Heard:
    """Read a stream with the SDK's helper, which makes one completion of it (D19)."""
    try:
        async with client.chat.completions.stream(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": "Hi"}],
            user=cut.name,
        ) as events:
            completion = await events.get_final_completion()
    except openai.OpenAIError as error:
        return "", type(error).__name__
    return completion.choices[0].message.content or "", ""


@pytest.mark.parametrize("read", [iterated, helped], ids=["iterated", "D19 the helper"])
async def test_the_python_sdk_never_sees_a_part_as_the_whole(
    start: Start,
    primary: FaultyUpstream,
    sdk: Callable[[Harness], openai.AsyncOpenAI],
    read: Callable[[openai.AsyncOpenAI, Cut], Awaitable[Heard]],
) -> None:
    """D01, D02, D19, around every boundary."""
    client = sdk(await start(tireless(primary, None)))

    heard = {cut: await read(client, cut) for cut in telling_cuts()}

    for cut, (text, error) in heard.items():
        assert (error == "") is cut.complete, f"{cut.name}: {error or 'no error'}"
        assert text == TEXT if cut.complete else TEXT.startswith(text)
        assert error in ("", "APIError", "InternalServerError")


async def test_the_python_sdk_gets_the_whole_text_where_there_is_a_fallback(
    start: Start,
    primary: FaultyUpstream,
    backup: FaultyUpstream,
    sdk: Callable[[Harness], openai.AsyncOpenAI],
) -> None:
    """D06, around every boundary."""
    client = sdk(await start(tireless(primary, backup)))

    heard = {cut.name: await iterated(client, cut) for cut in telling_cuts()}

    assert heard == dict.fromkeys(heard, (TEXT, ""))
