"""
The upstream of the benchmark: canned answers in OpenAI's form, for next to no CPU.

A raw protocol, no framework: it finds where a request ends and writes bytes that were made
beforehand. A request whose body asks for a stream gets an event, and from when `START_PATH` has been
asked for another one each so many seconds, until there were so many or `END_PATH` is asked for, which
ends all streams. How many stands in the body's `user`, which every proxy passes on: "pause=0.05,
chunks=100". Each event says when it was written, so that whoever reads it knows how long it was on its
way; the last one says how many there were.

    python tests/bench/canned.py PORT
"""

import asyncio
import os
import re
import sys
import time
from collections import defaultdict
from typing import Final

import uvloop
from upstreams import Upstream

TICK_SECONDS: Final = 0.001
TURN_TICKS: Final = 5
"""Then whoever else wants something is heard, even if chunks have to wait: a core may be too slow for all."""

START_PATH: Final = "/start"
END_PATH: Final = "/end"
ENDLESS: Final = 10**9  # chunks

MARK: Final = b"@"
LAST_MARK: Final = b"#"
"""Single bytes that nothing else in an answer holds: who counts them need not mind where reads are cut."""

NUMBER_DIGITS: Final = 20
"""What follows a mark: nanoseconds of the monotonic clock, or how many chunks there were."""

_ANSWER: Final = (
    b'{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion","created":1741569952,'
    b'"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"Hello! How can I assist you today?","refusal":null,"annotations":[]},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":'
    b'{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,'
    b'"rejected_prediction_tokens":0}},"service_tier":"default","system_fingerprint":"fp_06737a9306"}'
)
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Mar 2026 10:00:00 GMT\r\nserver: cloudflare\r\n"
    b"content-type: %b\r\n%b\r\n"
    b"x-request-id: req_4f1b6c0b7f6c4d0f8a2c\r\nopenai-organization: user-1\r\n"
    b"openai-processing-ms: 312\r\nopenai-version: 2020-10-01\r\n"
    b"x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n"
    b"x-ratelimit-reset-requests: 8.64s\r\n\r\n"
)
PLAIN: Final = _HEAD % (b"application/json", b"content-length: %d" % len(_ANSWER)) + _ANSWER
STREAM_HEAD: Final = _HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked")
_EVENT: Final = (
    b'data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk",'
    b'"created":1741570283,"model":"gpt-4o-mini-2024-07-18","service_tier":"default",'
    b'"system_fingerprint":"fp_06737a9306","choices":[{"index":0,"delta":{"content":"%b%020d"},'
    b'"logprobs":null,"finish_reason":%b}]}\n\n'
)
_SETTING: Final = re.compile(rb"(chunks|pause)=([0-9.]+)")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunk_of(nanoseconds: int) -> bytes:
    """Return a chunk that was written then, by the monotonic clock."""
    return _chunk(_EVENT % (MARK, nanoseconds, b"null"))


def last_chunk_of(count: int) -> bytes:
    """Return the end of a stream of *count* chunks, of which this is one."""
    return _chunk(_EVENT % (LAST_MARK, count, b'"stop"') + b"data: [DONE]\n\n") + b"0\r\n\r\n"


CHUNK: Final = chunk_of(0)
LAST_CHUNK: Final = last_chunk_of(0)


class Pacer:
    """
    Has every stream write one chunk a pause, all of them on one timer.

    Streams are dealt to the ticks of a pause in turn: however they began, they are not in step. Before
    `start` they wait, so that a load which is more than a proxy can carry can at least be opened.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: defaultdict[int, list[Canned]] = defaultdict(list)
        self._started = False
        self._waiting: list[Canned] = []
        self._dealt = 0
        self._tick = _tick_now()
        self._turn()

    def add(self, stream: "Canned") -> None:
        """Let *stream* write once every `pause_ticks`, first when its turn is."""
        if not self._started:
            self._waiting.append(stream)
            return
        self._dealt += 1
        next_tick = self._tick + 1
        self._due[next_tick + (self._dealt - next_tick) % stream.pause_ticks].append(stream)

    def start(self) -> None:
        """Let the streams that wait go on, and those that come."""
        self._started = True
        while self._waiting:
            self.add(self._waiting.pop())

    def end(self) -> None:
        """Let the next chunk of every stream be its last; those that come shall wait."""
        self.start()
        self._started = False
        for streams in self._due.values():
            for stream in streams:
                stream.end()

    def _turn(self) -> None:
        began = _tick_now()
        while self._tick < (now := _tick_now()) and now < began + TURN_TICKS:
            self._tick += 1
            if streams := self._due.pop(self._tick, None):
                chunk = chunk_of(time.monotonic_ns())  # the same for all: they write within a tick
                for stream in streams:
                    if stream.tell(chunk):
                        self._due[self._tick + stream.pause_ticks].append(stream)
        self._loop.call_later(TICK_SECONDS, self._turn)


def _tick_now() -> int:
    return int(time.monotonic() / TICK_SECONDS)


class Canned(Upstream):
    """One connection, whose requests say how they want to be answered."""

    def __init__(self, pacer: Pacer) -> None:
        super().__init__()
        self._pacer = pacer
        self._told = 0
        self._chunks = 0
        self.pause_ticks = 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._descriptor: int = transport.get_extra_info("socket").fileno()

    def asked(self, head: bytes, body: bytes) -> None:
        if b'"stream":true' in body:
            settings = dict(_SETTING.findall(body))
            self._told = 0
            self._chunks = int(settings.get(b"chunks", ENDLESS))
            self.pause_ticks = max(1, round(float(settings[b"pause"]) / TICK_SECONDS))
            self.transport.write(STREAM_HEAD)
            if self.tell(chunk_of(time.monotonic_ns())):
                self._pacer.add(self)
        else:
            path = head.split(b" ", 2)[1].decode()
            if path == START_PATH:
                self._pacer.start()
            elif path == END_PATH:
                self._pacer.end()
            self.transport.write(PLAIN)

    def tell(self, chunk: bytes) -> bool:
        """Write *chunk*, or the last one if it is time; return whether more are to come."""
        if self.transport.is_closing():
            return False
        self._told += 1
        more = self._told < self._chunks
        self._write(chunk if more else last_chunk_of(self._told))
        return more

    def end(self) -> None:
        """Let the next chunk be the last."""
        self._chunks = 0

    def _write(self, data: bytes) -> None:
        """Write past the transport while the kernel takes everything: that is a tenth cheaper."""
        if self.transport.get_write_buffer_size():
            self.transport.write(data)
            return
        try:
            written = os.write(self._descriptor, data)
        except BlockingIOError:
            written = 0
        except OSError:
            self.transport.abort()
            return
        if written < len(data):
            self.transport.write(data[written:])


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    server = await loop.create_server(lambda: Canned(pacer), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
