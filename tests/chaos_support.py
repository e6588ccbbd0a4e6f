"""
Callers of every temper: what they ask, how they behave, and what they saw.

`Ask` is one call as a seed invents it. `Wire` is a client connection on bare httptools, since an
HTTP library would cost more than the proxy does; it reads slowly, uploads in pieces and hangs up
as its `Ask` wants. Nothing here knows what would be right to see.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from sentinel_proxy.wire.json import dumps

PATHS: Final = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "simple": "/api/chat",
}
KINDS: Final = {"chat": 70, "completions": 8, "embeddings": 5, "responses": 8, "simple": 4, "raw": 5}
NEVER_SECONDS: Final = 10.0
"""A call that takes so much longer than it may is given up."""


@dataclass(slots=True)
class Ask:
    """One call, and the temper of its caller."""

    number: int
    kind: str
    stream: bool
    parts: list[bytes]  # the request, in the pieces in which it is sent
    deadline_seconds: float
    hang_up_after_bytes: int | None = None
    hang_up_after_seconds: float | None = None
    reads_slowly: bool = False
    never_ends: bool = False  # the request itself, so nothing can follow it

    @property
    def trace_id(self) -> str:
        return f"{self.number + 1:032x}"


@dataclass(slots=True)
class Seen:
    """What the caller saw."""

    ended: str = ""  # "complete" | "cut" | "hung up" | "garbage" | "never"
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    began: float = 0.0  # monotonic seconds
    seconds: float = 0.0
    lost_seconds: float = 0.0  # of these, for which a busy machine kept the event loop from turning


def invent(number: int, seed: int, total_seconds: float, *, plain: bool = False) -> Ask:
    """
    Return call *number* of a run.

    Args:
        total_seconds: The deadline that the proxy is configured with.
        plain: Only streamed chats of plain text, from callers with patience.
    """
    rng = Random(f"{seed}/{number}")
    kind = "chat" if plain else rng.choices(list(KINDS), list(KINDS.values()))[0]
    stream = plain or (kind in ("chat", "completions", "responses") and rng.random() < 0.7)
    method, path, body = _request(number, kind, stream, rng, plain)
    headers, deadline_seconds = _controls(rng, total_seconds, plain)
    head = [f"{method} {path} HTTP/1.1", "host: proxy", f"traceparent: 00-{number + 1:032x}-{1:016x}-01"]
    ask = Ask(number, kind, stream, [], deadline_seconds)
    ask.parts = _framed([*head, *headers], body, rng)
    if not plain:
        _give_temper(ask, rng)
    return ask


def _request(number: int, kind: str, stream: bool, rng: Random, plain: bool) -> tuple[str, str, bytes]:
    """Return method, path and body."""
    prompt = f"call-{number}"
    if rng.random() < 0.03:
        prompt += " " + "lorem " * rng.choice((2_000, 30_000))
    if kind == "raw":
        method = rng.choice(("GET", "POST", "POST", "DELETE"))
        return method, f"/v1/files/call-{number}?x=%20", prompt.encode() if method == "POST" else b""
    # What is learned of a model (unknown here, resting there) outlives few calls.
    asked: dict[str, Any] = {"model": f"model-{number // 20}"}
    match kind:
        case "chat":
            asked["messages"] = [{"role": "user", "content": prompt}]
            asked.update(_shape(rng, stream) if not plain else {})
        case "simple":
            asked["messages"] = [{"role": "user", "content": prompt}]
        case "completions":
            asked |= {"prompt": prompt, "max_tokens": 50}
        case _:
            asked["input"] = prompt
    if stream:
        asked["stream"] = True
        if kind != "responses" and rng.random() < 0.3:
            asked["stream_options"] = {"include_usage": True}
    return "POST", PATHS[kind], dumps(asked)


def _shape(rng: Random, stream: bool) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}
    return rng.choice(
        (*([{}] * 6), {"tools": [tool]}, {"n": 2}, {"temperature": 0.5, "x_unknown": [1]}, {"seed": 5})
    )


def _controls(rng: Random, total_seconds: float, plain: bool) -> tuple[list[str], float]:
    """Return further headers of the call, and the seconds that it may take."""
    if plain:
        return [], total_seconds
    headers: list[str] = []
    match rng.random():
        case chance if chance < 0.03:
            headers.append("x-sentinel-providers: spare,ollama")
        case chance if chance < 0.06:
            headers.append("x-sentinel-no-failover: true")
        case chance if chance < 0.09:
            headers.append("x-stainless-retry-count: 1")
        case chance if chance < 0.12:
            return [*headers, "x-sentinel-timeout: 0.25"], 0.25
    return headers, total_seconds


def _framed(head: Sequence[str], body: bytes, rng: Random) -> list[bytes]:
    if not body:
        return ["\r\n".join([*head, "", ""]).encode()]
    pieces = [body[at : at + 20_000] for at in range(0, len(body), 20_000)] if rng.random() < 0.1 else [body]
    head = [*head, "content-type: application/json"]
    if rng.random() < 0.1:
        start = "\r\n".join([*head, "transfer-encoding: chunked", "", ""]).encode()
        return [start, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]
    start = "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode()
    return [start + pieces[0], *pieces[1:]]


def _give_temper(ask: Ask, rng: Random) -> None:
    match rng.random():
        case chance if chance < 0.05:
            ask.hang_up_after_seconds = rng.choice((0.0, rng.uniform(0.0, 0.3)))
        case chance if chance < 0.08:
            ask.hang_up_after_bytes = rng.choice((1, rng.randrange(1, 3000)))
        case chance if chance < 0.10:
            ask.reads_slowly = True
        case chance if chance < 0.11:
            ask.parts = [ask.parts[0][: rng.randrange(1, len(ask.parts[0]))]]
            ask.hang_up_after_seconds = rng.uniform(0.0, 0.05)
            ask.never_ends = True


class Wire(asyncio.Protocol):
    """One client connection, kept alive from call to call as the proxy allows."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._over: asyncio.Future[None] | None = None
        self._parser: HttpResponseParser
        self._parts: list[bytes] = []
        self._bytes = 0
        self._ask: Ask
        self._seen: Seen
        self.usable = True
        self.stray_bytes = 0  # that no call has asked for

    @classmethod
    async def connected(cls, url: str) -> "Wire":
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
        _, wire = await asyncio.get_running_loop().create_connection(cls, host, port)
        return wire

    async def call(self, ask: Ask) -> Seen:
        """Make one call and return what came of it; raises nothing."""
        loop, started = self._loop, self._loop.time()
        self._ask, self._seen, self._over = ask, Seen(), loop.create_future()
        self._parser, self._parts, self._bytes = HttpResponseParser(self), [], 0
        timers = [loop.call_later(ask.deadline_seconds + NEVER_SECONDS, self._end, "never")]
        if ask.hang_up_after_seconds is not None:
            timers.append(loop.call_later(ask.hang_up_after_seconds, self._end, "hung up"))
        for part in ask.parts:
            if not self.usable:
                self._end("cut")
                break
            self._transport.write(part)
            if len(ask.parts) > 1:
                await asyncio.sleep(0)
        await self._over
        for timer in timers:
            timer.cancel()
        self._seen.body = b"".join(self._parts)
        self._seen.began, self._seen.seconds = started, loop.time() - started
        return self._seen

    def close(self) -> None:
        """Leave, without a word."""
        self.usable = False
        self._transport.abort()

    def _end(self, how: str) -> None:
        if self._over is not None and not self._over.done():
            self._seen.ended = how
            self._over.set_result(None)
            if how != "complete" or self._ask.never_ends or not self._parser.should_keep_alive():
                self.close()

    # -- what the event loop and the parser call ----------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._over is None or self._over.done():
            self.stray_bytes += len(data) if self.usable else 0
            return
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._end("garbage")
        if self._ask.hang_up_after_bytes is not None and self._bytes >= self._ask.hang_up_after_bytes:
            self._end("hung up")
        if self._ask.reads_slowly and not self._over.done():
            self._transport.pause_reading()
            self._loop.call_later(0.004, self._read_on)

    def _read_on(self) -> None:
        if self.usable:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._end("cut")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._seen.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._seen.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._end("complete")
