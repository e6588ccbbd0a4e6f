"""
The callers of the soak, who judge every answer: whole, an honest error, or neither.

Nothing here is shared with the proxy, so a mistake of its own is not made twice.
"""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, cast

from faulty import TEXT
from httptools import HttpResponseParser
from loads import request_bytes

STREAM_SHARE: Final = 0.1
HANG_UP_SHARE: Final = 0.01
HANG_UP_SECONDS: Final = 0.05
"""A caller that hangs up does so after up to this long, most of them in the middle of an answer."""

REOPEN_SHARE: Final = 0.002
"""So often a caller closes its connection after an answer and opens another."""

STALL_SECONDS: Final = 120
"""No answer takes so long: whoever still waits for one then has been forgotten."""

SAMPLE_CALLS: Final = 50_000
HONEST: Final = {429, 502, 503, 504}
PLAIN: Final = request_bytes()
STREAM: Final = request_bytes(stream=True)


class Caller(asyncio.Protocol):
    """One connection to the proxy, kept alive; calls come one at a time."""

    def __init__(self) -> None:
        self._body: list[bytes] = []
        self.on_body = self._body.append  # the parser's callback, which it looks up once
        self._parser = HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport
        self.open = True

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        """Return what will be status and body of the answer, or `ConnectionError` if it is cut off."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Leave; an answer that is under way becomes a `TimeoutError`."""
        self.open = False
        self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(TimeoutError())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the answer was cut off"))

    def on_message_complete(self) -> None:
        self.open = self.open and self._parser.should_keep_alive()
        body = b"".join(self._body)
        self._body.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), body))


@dataclass(slots=True)
class Load:
    """All callers together."""

    port: int
    calls: int
    dice: random.Random
    begun: int = 0
    done: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # the first few answers that should not have been
    slowest_seconds: float = 0.0
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def caller(self) -> None:
        """Call again and again until there were enough calls."""
        loop = asyncio.get_running_loop()
        caller: Caller | None = None
        while self.begun < self.calls:
            self.begun += 1
            if caller is None or not caller.open:
                _, caller = await loop.create_connection(Caller, "127.0.0.1", self.port)
            began = loop.time()
            self._note(await self._call(caller))
            self.slowest_seconds = max(self.slowest_seconds, loop.time() - began)
            if self.dice.random() < REOPEN_SHARE:
                caller.close()
        if caller is not None:
            caller.close()

    async def _call(self, caller: Caller) -> str:
        streams = self.dice.random() < STREAM_SHARE
        hangs_up = self.dice.random() < HANG_UP_SHARE
        patience = self.dice.random() * HANG_UP_SECONDS if hangs_up else STALL_SECONDS
        answer = caller.ask(STREAM if streams else PLAIN)
        leave = asyncio.get_running_loop().call_later(patience, caller.close)
        try:
            status, body = await answer
        except TimeoutError:
            return "hung up" if hangs_up else self._wrong("no answer")
        except ConnectionError as error:
            return self._wrong(str(error))
        finally:
            leave.cancel()
        outcome = judged(status, body, streams=streams)
        return outcome or self._wrong(f"{status} {body.decode(errors='replace')}")

    def _note(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.done += 1
        if self.done % SAMPLE_CALLS == 0 or self.done == self.calls:
            self.progress.set()

    def _wrong(self, what: str) -> str:
        if len(self.wrong) < 5:
            self.wrong.append(what)
        return "wrong"


def judged(status: int, body: bytes, *, streams: bool) -> str | None:
    """Return "whole" or "error" for an answer that an application can go by, None for any other."""
    try:
        if status != 200:
            return "error" if status in HONEST and json.loads(body)["error"]["message"] else None
        if streams:
            return _judged_events(body)
        return "whole" if json.loads(body)["choices"][0]["message"]["content"] == TEXT else None
    except (ValueError, LookupError, TypeError):
        return None


def _judged_events(body: bytes) -> str | None:
    *events, last = (event[6:] for event in body.split(b"\n\n") if event.startswith(b"data: "))
    said, finished = "", False
    for event in map(json.loads, events if last == b"[DONE]" else (*events, last)):
        if "error" in event:
            return "error" if TEXT.startswith(said) and not finished else None
        for choice in event["choices"]:
            said += choice["delta"].get("content") or ""
            finished = finished or choice["finish_reason"] == "stop"
    return "whole" if said == TEXT and finished and last == b"[DONE]" else None
