"""The far end of a call: what is sent to it while nothing comes, and what is left when it is over."""

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import Message

from sentinel_proxy.api.relay import Caller
from sentinel_proxy.clock import SystemClock
from sentinel_proxy.wheel import Wheel
from sentinel_proxy.wire.openai import COMMENT

pytestmark = pytest.mark.anyio


class Connection:
    """An ASGI server's side: takes what is sent, unless its caller has stopped reading."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.waiting = 0
        self.writable = asyncio.Event()
        self.writable.set()

    async def send(self, message: Message) -> None:
        if not self.writable.is_set():
            self.waiting += 1
            await self.writable.wait()
            self.waiting -= 1
        assert not self.ended, "something was sent after the end"
        self.sent.append(message)

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nobody hangs up here")

    @property
    def ended(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False

    @property
    def comments(self) -> int:
        return sum(message.get("body") == COMMENT for message in self.sent)


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come true")


def caller_of(connection: Connection) -> Caller:
    return Caller(connection.receive, connection.send, Wheel(), SystemClock())


async def test_a_waiting_stream_gets_its_head_and_a_comment_for_each_beat() -> None:
    connection = Connection()
    caller = caller_of(connection)

    caller.watch(hold_seconds=0.01, heartbeat_seconds=0.01, held_headers=lambda: [(b"x-held", b"1")])
    await until(lambda: connection.comments >= 2)
    caller.release()

    assert connection.sent[0]["status"] == 200
    assert (b"x-held", b"1") in connection.sent[0]["headers"]


async def test_a_caller_that_does_not_read_has_one_comment_waiting_for_it_and_no_more() -> None:
    """However many beats go by; and nothing of it comes after the end."""
    connection = Connection()
    caller = caller_of(connection)
    await caller.start(200, [], streaming=True)
    connection.writable.clear()

    caller.watch(heartbeat_seconds=0.01)
    await until(lambda: connection.waiting == 1)
    await asyncio.sleep(0.2)
    waiting = connection.waiting
    connection.writable.set()
    await caller.send(b"", more=False)
    caller.release()
    await asyncio.sleep(0)

    assert waiting == 1
    assert connection.ended
    assert connection.comments == 0


async def test_a_comment_on_its_way_ends_with_the_call() -> None:
    connection = Connection()
    caller = caller_of(connection)
    await caller.start(200, [], streaming=True)
    connection.writable.clear()
    caller.watch(heartbeat_seconds=0.01)
    await until(lambda: connection.waiting == 1)

    caller.release()
    connection.writable.set()
    await asyncio.sleep(0.02)

    assert connection.comments == 0
