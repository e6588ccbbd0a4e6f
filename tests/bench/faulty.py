"""
The upstream of the soak: canned answers in two dialects, some of which are faults.

Every answer says the same words, so that whoever gets one can tell whether it is whole. Asked to go
on with a broken one, it says the words that are missing. Faults come alone and in runs; a run is long
enough to trip a breaker.
"""

import asyncio
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import orjson
from upstreams import Upstream

WORDS: Final = tuple(f"w{number:02d}." for number in range(8))
TEXT: Final = "".join(WORDS)

FAULTS: Final = ("unavailable", "busy", "reset", "broken off", "garbage", "slow")
ALONE_SHARE: Final = 0.046
"""Of all answers."""

RUN_SHARE: Final = 0.0002
RUN_ANSWERS: Final = 20
"""Two in ten thousand answers begin a run: with it, a twentieth of all are faults."""

PAUSE_SECONDS: Final = 0.002
"""Between two words of a stream."""

SLOW_SECONDS: Final = 0.1
"""A slow answer takes up to this long to begin: long enough to be hedged."""

_WORD: Final = re.compile(rb"w\d\d\.")
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed is reset


def _answer(status: str, body: object, *headers: str) -> bytes:
    return _whole(status, orjson.dumps(body), *headers)


def _whole(status: str, body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers))
    return f"{lines}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _stream_head(media_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()


_ERROR: Final = {"error": {"message": "not now", "type": "server_error", "code": None, "param": None}}
_UNAVAILABLE: Final = _answer("503 Service Unavailable", _ERROR)
_BUSY: Final = _answer("429 Too Many Requests", _ERROR, "retry-after-ms: 20")
_ABOUT: Final = _answer(
    "200 OK",
    {
        "object": "list",
        "data": [{"id": "gpt-4o-mini", "object": "model"}],
        "models": [{"name": "llama3.2:latest", "model": "llama3.2:latest"}],
        "capabilities": ["completion"],
        "version": "0.30.0",
    },
)
"""To all who want no completion: probes of either dialect find what they look for."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the words are said."""

    plain: bytes
    stream_head: bytes
    words: dict[str, bytes]
    end: bytes
    garbage: bytes


def openai() -> Dialect:
    """Return the words in OpenAI's form."""
    common = {"id": "chatcmpl-1", "created": 1741569952, "model": "gpt-4o-mini"}

    def event(delta: dict[str, str], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        chunk = {**common, "object": "chat.completion.chunk", "choices": [choice]}
        return b"data: %b\n\n" % orjson.dumps(chunk)

    usage = {"prompt_tokens": 19, "completion_tokens": len(WORDS), "total_tokens": 19 + len(WORDS)}
    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return Dialect(
        _answer("200 OK", {**common, "object": "chat.completion", "choices": [choice], "usage": usage}),
        _stream_head("text/event-stream"),
        {word: _chunk(event({"content": word}, None)) for word in WORDS},
        _chunk(event({}, "stop") + b"data: [DONE]\n\n") + b"0\r\n\r\n",
        _chunk(b'data: {"choices": [{"delta": \n\n'),
    )


def ollama() -> Dialect:
    """Return the words in Ollama's form."""

    def line(content: str, **more: object) -> dict[str, object]:
        message = {"role": "assistant", "content": content}
        common = {"model": "llama3.2", "created_at": "2026-03-01T10:00:00.123456789Z", "message": message}
        return {**common, "done": bool(more), **more}

    counts = {"done_reason": "stop", "prompt_eval_count": 19, "eval_count": len(WORDS)}
    return Dialect(
        _answer("200 OK", line(TEXT, **counts)),
        _stream_head("application/x-ndjson"),
        {word: _chunk(orjson.dumps(line(word)) + b"\n") for word in WORDS},
        _chunk(orjson.dumps(line("", **counts)) + b"\n") + b"0\r\n\r\n",
        _chunk(b'{"message": {"role": \n'),
    )


@dataclass(slots=True)
class Fortune:
    """Which answers of one upstream are faults, and what there was so far."""

    dice: random.Random
    answers: Counter[str] = field(default_factory=Counter)
    _run: int = 0

    def next(self) -> str:
        """Return the fault that the next answer is, or "good"."""
        fault = self._drawn()
        self.answers[fault] += 1
        return fault

    def _drawn(self) -> str:
        drawn = self.dice.random()
        if drawn < RUN_SHARE:
            self._run = RUN_ANSWERS
        if self._run:
            self._run -= 1
            return "unavailable"
        return self.dice.choice(FAULTS) if drawn < RUN_SHARE + ALONE_SHARE else "good"


class Faulty(Upstream):
    """One connection, at which every answer may be a fault."""

    def __init__(self, dialect: Dialect, fortune: Fortune) -> None:
        super().__init__()
        self._dialect = dialect
        self._fortune = fortune
        self._loop = asyncio.get_running_loop()

    def asked(self, head: bytes, body: bytes) -> None:
        if b"/chat" not in head[: head.index(b"\r\n")]:
            self.transport.write(_ABOUT)
            return
        fault = self._fortune.next()
        streams = b'"stream":true' in body
        if fault == "slow":
            seconds = self._fortune.dice.random() * SLOW_SECONDS
            self._loop.call_later(seconds, self._begin, body, streams, "good")
        else:
            self._begin(body, streams, fault)

    def _begin(self, body: bytes, streams: bool, fault: str) -> None:
        if self.transport.is_closing():
            return
        if fault == "unavailable":
            self.transport.write(_UNAVAILABLE)
        elif fault == "busy":
            self.transport.write(_BUSY)
        elif fault == "reset":
            self._reset()
        elif streams:
            self.transport.write(self._dialect.stream_head)
            words = WORDS[len(_WORD.findall(body)) :]
            said = len(words) if fault == "good" else self._fortune.dice.randrange(len(words) or 1)
            self._say(words[:said], fault)
        else:
            self._say_at_once(fault)

    def _say_at_once(self, fault: str) -> None:
        answer = self._dialect.plain
        if fault == "good":
            self.transport.write(answer)
        elif fault == "garbage":
            self.transport.write(answer[:-20] + b"?" * 20)
        else:
            self.transport.write(answer[:-20])
            self.transport.close()

    def _say(self, words: Sequence[str], fault: str) -> None:
        """Say the first of *words* and, after a pause, the next; then end well, or by *fault*."""
        if self.transport.is_closing():
            return
        if words:
            self.transport.write(self._dialect.words[words[0]])
            self._loop.call_later(PAUSE_SECONDS, self._say, words[1:], fault)
        elif fault == "good":
            self.transport.write(self._dialect.end)
        elif fault == "garbage":
            self.transport.write(self._dialect.garbage)
        else:
            self.transport.close()

    def _reset(self) -> None:
        sock = cast(socket.socket, self.transport.get_extra_info("socket"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()
