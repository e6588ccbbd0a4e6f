"""
The upstream of the benchmark: canned answers in OpenAI's form, for next to no CPU.

A raw protocol, no framework: it finds where a request ends and writes bytes that were made
beforehand. A request whose body asks for a stream gets `x-bench-chunks` events, one each
`x-bench-pause` seconds; each says when it was written, so that whoever reads it knows how long it
was on its way.

    python tests/bench/canned.py PORT
"""

import asyncio
import re
import sys
import time
from typing import Final, cast

import uvloop

TICK_SECONDS: Final = 0.001
STAMP: Final = b'"content":"@'
STAMP_DIGITS: Final = 20

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
    b'"system_fingerprint":"fp_06737a9306","choices":[{"index":0,"delta":{"content":"@%020d"},'
    b'"logprobs":null,"finish_reason":%b}]}\n\n'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNK: Final = _chunk(_EVENT % (0, b"null"))
LAST_CHUNK: Final = _chunk(_EVENT % (0, b'"stop"') + b"data: [DONE]\n\n") + b"0\r\n\r\n"
_SETTING: Final = re.compile(rb"x-bench-(chunks|pause): ([0-9.]+)")
_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Pacer:
    """Writes to every stream once a pause, all of them on one timer; each keeps the phase it began with."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[int, list[Canned]] = {}
        self._tick = int(loop.time() / TICK_SECONDS)
        self._turn()

    def add(self, stream: "Canned") -> None:
        """Let *stream* write its next event when its pause is over."""
        tick = max(self._tick + 1, int((self._loop.time() + stream.pause_seconds) / TICK_SECONDS))
        self._due.setdefault(tick, []).append(stream)

    def _turn(self) -> None:
        now = int(self._loop.time() / TICK_SECONDS)
        while self._tick < now:
            self._tick += 1
            for stream in self._due.pop(self._tick, ()):
                stream.tell()
        self._loop.call_later(TICK_SECONDS, self._turn)


class Canned(asyncio.Protocol):
    """One connection; requests come one at a time."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._transport: asyncio.Transport
        self._held = b""
        self._left = 0
        self.pause_seconds = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._left = 0

    def data_received(self, data: bytes) -> None:
        held = self._held = self._held + data
        end = held.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(held, 0, end)
        size = end + 4 + (int(length[1]) if length is not None else 0)
        if len(held) < size:
            return
        self._held = held[size:]
        if held.find(b'"stream":true', end) < 0:
            self._transport.write(PLAIN)
            return
        settings = dict(_SETTING.findall(held, 0, end))
        self._left = int(settings.get(b"chunks", b"100"))
        self.pause_seconds = float(settings.get(b"pause", b"0.02"))
        self._transport.write(STREAM_HEAD)
        self.tell()

    def tell(self) -> None:
        """Write the next event, if the caller is still there."""
        if not self._left or self._transport.is_closing():
            return
        self._left -= 1
        if self._left:
            self._transport.write(_chunk(_EVENT % (time.monotonic_ns(), b"null")))
            self._pacer.add(self)
        else:
            self._transport.write(LAST_CHUNK)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    server = await loop.create_server(lambda: Canned(pacer), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
