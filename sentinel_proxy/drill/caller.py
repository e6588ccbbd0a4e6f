"""
The caller of a drill: makes one call as any application would, and takes down what it gets.

It judges nothing and never retries; `expected` says what should have come.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from sentinel_proxy.drill.standin import ANSWER, QUESTION
from sentinel_proxy.wire.json import dumps, loads

CALLERS_KEY: Final = "sk-drill-of-the-caller"
HEADERS: Final = {"content-type": "application/json", "authorization": f"Bearer {CALLERS_KEY}"}

_DONE: Final = "data: [DONE]"
_DATA: Final = "data: "


@dataclass(slots=True)
class Got:
    """What a caller got for one call."""

    streamed: bool
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    arrived_at: list[float] = field(default_factory=list)  # loop time of each token
    models: list[str] = field(default_factory=list)  # that the answer names, in order, each once
    rescued_by: str = ""  # who went on with the answer, as the stream says
    finish_reason: str | None = None
    ended: bool = False  # `[DONE]` came, or the whole JSON
    usage: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    in_band: bool = False  # the error came inside a stream
    broken: str = ""  # how the connection, or what came over it, was no answer at all
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether it looks like a complete answer; what a careful application relies on."""
        return not self.broken and self.error is None and self.finish_reason is not None and self.ended

    @property
    def right(self) -> bool:
        """Whether it is the answer, every word of it and once."""
        return self.whole and self.text == ANSWER


def payload(model: str, *, streamed: bool) -> dict[str, Any]:
    """Return the call of the drill."""
    call: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    if streamed:
        call |= {"stream": True, "stream_options": {"include_usage": True}}
    return call


class Caller:
    """
    Calls one proxy.

    Args:
        patience_seconds: Silence after which even the most patient application gives up.
    """

    def __init__(self, client: httpx.AsyncClient, model: str, *, patience_seconds: float) -> None:
        self._client = client
        self._model = model
        self._patience_seconds = patience_seconds

    async def call(self, *, streamed: bool, leaves_after: int | None = None) -> Got:
        """
        Make one call and return what came of it. Never raises but when cancelled.

        Args:
            leaves_after: Hang up once so many tokens have come.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        got = Got(streamed)
        body = dumps(payload(self._model, streamed=streamed))
        try:
            async with self._client.stream(
                "POST",
                "/v1/chat/completions",
                content=body,
                headers=HEADERS,
                timeout=httpx.Timeout(self._patience_seconds),
            ) as response:
                got.status, got.headers = response.status_code, response.headers
                if streamed and response.headers.get("content-type", "").startswith("text/event-stream"):
                    await _read_stream(response, got, leaves_after)
                else:
                    _read_whole(await response.aread(), got)
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            got.broken = type(error).__name__
        got.seconds = loop.time() - began
        return got


async def _read_stream(response: httpx.Response, got: Got, leaves_after: int | None) -> None:
    loop = asyncio.get_running_loop()
    async for line in response.aiter_lines():
        if got.ended and line:
            raise ValueError("something came after [DONE]")
        if line == _DONE:
            got.ended = True
        elif line.startswith(_DATA):
            _take(loads(line.removeprefix(_DATA).encode()), got, loop.time())
            if leaves_after is not None and len(got.arrived_at) >= leaves_after:
                return


def _take(event: Mapping[str, Any], got: Got, now: float) -> None:
    """Read one event of a stream."""
    if error := event.get("error"):
        got.error, got.in_band = error, True
        return
    got.rescued_by = (event.get("sentinel") or {}).get("to", got.rescued_by)
    got.usage = event.get("usage") or got.usage
    _named(event, got)
    for choice in event["choices"]:
        if content := choice["delta"].get("content"):
            got.text += content
            got.arrived_at.append(now)
        got.finish_reason = choice.get("finish_reason") or got.finish_reason


def _read_whole(body: bytes, got: Got) -> None:
    answer = loads(body)
    if error := answer.get("error"):
        got.error = error
        return
    (choice,) = answer["choices"]
    got.text, got.finish_reason = choice["message"]["content"], choice["finish_reason"]
    got.usage, got.ended = answer.get("usage"), not got.streamed
    _named(answer, got)


def _named(answer: Mapping[str, Any], got: Got) -> None:
    if answer["model"] not in got.models:
        got.models.append(answer["model"])
