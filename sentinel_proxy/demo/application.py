"""
The application of the demo: it asks questions and looks closely at the answers.

An answer counts only if it is complete and right: the simulated providers say what follows
from the question, so the application knows every word that has to come.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from sentinel_proxy.testing.answers import answer_to
from sentinel_proxy.wire.json import loads

MODEL: Final = "gpt-4o-mini"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call, as the application saw it."""

    fault: str  # why it failed; "" if the answer was complete and right
    seconds: float
    provider: str = ""  # who began to answer, as the proxy tells it; "" if nobody does
    rescued_by: str = ""  # who ended the answer, if that was somebody else

    @property
    def ok(self) -> bool:
        """Whether the application got what it asked for."""
        return not self.fault


@dataclass(slots=True)
class _Answer:
    """What an answer has said so far."""

    text: str = ""
    finish_reason: str | None = None
    ended: bool = False
    rescued_by: str = ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Read one event of a stream."""
        if error := event.get("error"):
            raise _Faulty(f"an error in the stream: {error.get('code')}")
        self.rescued_by = event.get("sentinel", {}).get("to", self.rescued_by)
        for choice in event["choices"]:
            self.text += choice["delta"].get("content") or ""
            self.finish_reason = choice["finish_reason"] or self.finish_reason


class _Faulty(Exception):
    """The answer is none."""


class Application:
    """
    Asks one server for chat completions, as any client of OpenAI's API would, but never twice.

    Args:
        client: Its limit of connections must be above the calls that are made at once.
        base_url: That of an OpenAI-compatible API, `/v1` included.
    """

    def __init__(self, client: httpx.AsyncClient, base_url: str) -> None:
        self._client = client
        self._url = f"{base_url}/chat/completions"

    async def ask(self, question: str, *, stream: bool) -> Outcome:
        """Make one call and judge its answer. Never raises but when cancelled."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        messages = [{"role": "user", "content": question}]
        body = {"model": MODEL, "messages": messages, "stream": stream}
        provider, answer = "", _Answer()
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                provider = response.headers.get("x-sentinel-provider", "")
                answer = await _read(response, stream=stream)
            fault = _judge(answer, answer_to(messages))
        except _Faulty as faulty:
            fault = str(faulty)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            fault = type(error).__name__
        return Outcome(fault, loop.time() - started, provider, answer.rescued_by)


async def _read(response: httpx.Response, *, stream: bool) -> _Answer:
    if response.status_code != 200:
        raise _Faulty(f"status {response.status_code}")
    if stream:
        return await _read_stream(response)
    choice = loads(await response.aread())["choices"][0]
    return _Answer(choice["message"]["content"], choice["finish_reason"], ended=True)


async def _read_stream(response: httpx.Response) -> _Answer:
    answer = _Answer()
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            answer.ended = True
        elif line.startswith("data: "):
            answer.take(loads(line.removeprefix("data: ").encode()))
    return answer


def _judge(answer: _Answer, right: str) -> str:
    if not answer.ended or answer.finish_reason != "stop":
        return "an incomplete answer"
    return "" if answer.text == right else "a wrong answer"
