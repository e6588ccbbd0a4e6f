"""
A reply onto ASGI, and the caller at the other end of the line.

`Caller` knows what HTTP lets us know about whoever called: that it hung up, that it reads too
slowly, that it has waited so long in silence that something on the way may cut the line. All
of it costs one alarm and, where the server cannot tell of a hang-up by itself, one task for calls
that take longer than a moment.

Nothing here decides about providers, and nothing after the first byte is ever unsaid: an
answer that breaks ends in an error inside the stream, never in silence.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from starlette.types import Message, Receive, Send

from sentinel_proxy.clock import Clock
from sentinel_proxy.errors import CallerError
from sentinel_proxy.model import Header
from sentinel_proxy.reply import Reply
from sentinel_proxy.wheel import Alarm, Wheel
from sentinel_proxy.wire import openai

WATCH_AFTER_SECONDS: Final = 0.05
"""When the watch for a hang-up begins; most answers that are quick at all are there by then."""

BODY_SECONDS: Final = 30.0
"""For a request body to arrive: the whole of it, or each part where it is handed on as it comes."""

WRITE_SECONDS: Final = 30.0
"""How long one write may wait for a reader before it is given up."""

STREAM_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class HungUp(Exception):
    """The caller has left; nobody waits for an answer any more."""


class Caller:
    """
    The far end of one call.

    Create it in the task that serves the request once its head is here, call `release` on every
    way out. That task is cancelled when a body does not arrive in time (`late`), when the proxy
    cannot wait any longer (`interrupted`) and, from `watch` on, when the caller hangs up or does
    not read for `WRITE_SECONDS` (`gone`): so the three can be told apart from a cancellation by
    somebody else.
    """

    __slots__ = (
        "_alarm",
        "_body_due",
        "_clock",
        "_heartbeat_seconds",
        "_held_headers",
        "_hold_at",
        "_keeper",
        "_last_sent",
        "_receive",
        "_send",
        "_sending_since",
        "_task",
        "_watcher",
        "_watching",
        "_wheel",
        "_when_gone",
        "_write",
        "gone",
        "interrupted",
        "late",
        "started",
        "streaming",
    )

    def __init__(self, receive: Receive, send: Send, wheel: Wheel, clock: Clock) -> None:
        self._receive = receive
        self._send = send
        self._when_gone: Callable[[Callable[[], None]], None] | None = getattr(send, "when_gone", None)
        self._write: Callable[[bytes], bool] | None = getattr(send, "write", None)
        self._wheel = wheel
        self._clock = clock
        self._alarm: Alarm | None = None
        self._body_due = 0.0  # while the body is being read
        self._task = asyncio.current_task()
        self._watching = False
        self._watcher: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._held_headers: Callable[[], Sequence[Header]] | None = None
        self._hold_at = 0.0
        self._heartbeat_seconds = 0.0
        self._sending_since: float | None = None
        self._last_sent = 0.0
        self.gone = False
        self.interrupted = False
        self.late = False
        self.started = False
        self.streaming = False

    async def body(self, declared: bytes | None, limit_bytes: int) -> bytes:
        """
        Read the whole request body.

        Args:
            declared: Its Content-Length, if there is one.

        Raises:
            CallerError: It is larger than *limit_bytes* (413); nothing more is read.
            HungUp: The caller left before it was complete.
            CancelledError: It did not arrive in time; `late` is set.
        """
        if declared is not None and declared.isdigit() and int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        now = self._clock.monotonic()
        self._body_due = now + BODY_SECONDS
        # Nearly always the body is here already; then the same alarm serves for `watch`.
        self._alarm = self._wheel.set(now + WATCH_AFTER_SECONDS, self._look)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise HungUp
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            return await self._rest_of_body(body, limit_bytes)
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        return body

    async def _rest_of_body(self, first: bytes, limit_bytes: int) -> bytes:
        parts, size, more = [first], len(first), True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise HungUp
            part = message.get("body", b"")
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def part(self) -> tuple[bytes, bool]:
        """
        Wait for a part of a body that is handed on as it arrives; return it, and whether more follow.

        Raises:
            HungUp: The caller left before it was complete.
            CancelledError: In the task that serves the request: no part came for `BODY_SECONDS`,
                `late` is set. Time that passes between two calls is not the caller's.
        """
        alarm = self._wheel.set(self._clock.monotonic() + BODY_SECONDS, self._body_is_late)
        try:
            message = await self._receive()
        finally:
            alarm.cancel()
        if message["type"] == "http.disconnect":
            raise HungUp
        return message.get("body", b""), message.get("more_body", False)

    def _body_is_late(self) -> None:
        self.late = True
        self._cancel()

    def watch(
        self,
        *,
        hold_seconds: float = 0.0,
        heartbeat_seconds: float = 0.0,
        held_headers: Callable[[], Sequence[Header]] | None = None,
    ) -> None:
        """
        Begin to watch the line; the body has been read.

        Args:
            hold_seconds: A stream that has not begun by then is kept warm with status 200,
                *held_headers* and comments; 0: never.
            heartbeat_seconds: Silence on a stream before a comment is sent; 0: never.
        """
        now = self._clock.monotonic()
        self._hold_at = now + hold_seconds if hold_seconds else 0.0
        self._heartbeat_seconds = heartbeat_seconds
        self._held_headers = held_headers
        self._body_due = 0.0
        if self._alarm is None:
            self._alarm = self._wheel.set(now + WATCH_AFTER_SECONDS, self._look)
        else:
            self._alarm.move(now + WATCH_AFTER_SECONDS)

    def _look(self) -> None:
        """See whether anything is due, and when to look again."""
        now = self._clock.monotonic()
        if self._body_due:
            self._look_at_body(now)
            return
        if not self._watching:
            self._watching = True
            if self._when_gone is not None:
                self._when_gone(self._leave)
            else:
                self._watcher = asyncio.create_task(self._wait_for_hang_up(), name="hang-up watch")
        if self._sending_since is not None and now - self._sending_since >= WRITE_SECONDS:
            self._leave()
            return
        due = now + WRITE_SECONDS / 4
        if self._hold_at and not self.started:
            if now >= self._hold_at:
                self._hold_at = 0.0
                self._keep_warm(now)
                due = min(due, now + (self._heartbeat_seconds or WRITE_SECONDS))
            else:
                due = min(due, self._hold_at)
        elif self.started and self.streaming and self._heartbeat_seconds:
            beat = self._last_sent + self._heartbeat_seconds
            if now >= beat and self._sending_since is None and not self._warming:
                self._keep_warm(now)
                beat = now + self._heartbeat_seconds
            due = min(due, max(beat, now + WATCH_AFTER_SECONDS))
        self._alarm = self._wheel.set(due, self._look)

    def _look_at_body(self, now: float) -> None:
        if now >= self._body_due:
            self._body_is_late()
        else:
            self._alarm = self._wheel.set(self._body_due, self._look)

    @property
    def _warming(self) -> bool:
        """Whether a comment is still on its way, because the caller's side is full."""
        return self._keeper is not None and not self._keeper.done()

    def _keep_warm(self, now: float) -> None:
        self._last_sent = now
        self._keeper = asyncio.create_task(self._send_comment(), name="keep a waiting caller warm")

    async def _send_comment(self) -> None:
        if not self.started:
            headers = self._held_headers() if self._held_headers is not None else ()
            await self.start(200, [*headers, *STREAM_HEADERS], streaming=True)
        await self._send({"type": "http.response.body", "body": openai.COMMENT, "more_body": True})

    async def _wait_for_hang_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self.gone = True
        self._cancel()

    def interrupt(self) -> None:
        """Make an end of it: the proxy is shutting down, and the time to finish is over."""
        if not (self.gone or self.late or self.interrupted):
            self.interrupted = True
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def cancelled(self) -> bool:
        """Take back a cancellation of our own making; False if it was somebody else's."""
        if not (self.gone or self.late or self.interrupted) or self._task is None:
            return False
        self._task.uncancel()
        return True

    async def start(self, status: int, headers: Sequence[Header], *, streaming: bool = False) -> None:
        """Send the head of the answer, unless it is spent already (a stream that was kept warm)."""
        if self.started:
            return
        self.started = True
        self.streaming = streaming
        self._last_sent = self._clock.monotonic()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes, *, more: bool) -> None:
        """Send a part of the answer's body; waits while the caller's side is full."""
        message: Message = {"type": "http.response.body", "body": data, "more_body": more}
        self._sending_since = self._last_sent = self._clock.monotonic()
        await self._send(message)
        self._sending_since = None

    @property
    def writes_at_once(self) -> bool:
        """Whether `write` works: the server has it, and nobody stands between who wants to see all."""
        return self._write is not None

    def write(self, data: bytes, now: float) -> bool:
        """
        Send a part of a stream that has begun, without waiting; *now* is the moment.

        Returns False where that must not go on: the caller's side is full, or the caller gone.
        """
        assert self._write is not None
        self._last_sent = now
        return self._write(data)

    def release(self) -> None:
        """Stop watching. Never waits; may be called twice."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._task = None
        self._held_headers = None  # they are those of the line that has us
        for task in (self._watcher, self._keeper):
            if task is not None and not task.done():
                task.cancel()


async def relay(reply: Reply, caller: Caller, headers: Sequence[Header]) -> None:
    """
    Send a stream to *caller*, bytes as they come. The reply is not closed here.

    Raises:
        UpstreamError: The answer broke; what came before it has been sent and the line is
            still open, so that the stream can be carried on or the break be told inside it.
    """
    data = await reply.read()
    await caller.start(reply.status, [*headers, *STREAM_HEADERS], streaming=True)
    while data:
        await caller.send(data, more=True)
        data = b""  # or it would be kept for as long as bytes are poured
        if caller.writes_at_once:
            await reply.pour(caller.write)
        data = await reply.read()
    await caller.send(b"", more=False)


async def send_whole(caller: Caller, status: int, headers: Sequence[Header], body: bytes) -> None:
    """Send an answer that is complete; *headers* hold its content type."""
    await caller.start(status, [*headers, (b"content-length", b"%d" % len(body))])
    await caller.send(body, more=False)


def _too_large(limit_bytes: int) -> CallerError:
    message = f"the request body is larger than the {limit_bytes} bytes that are accepted here"
    return CallerError(message, status=413, code="request_too_large")
