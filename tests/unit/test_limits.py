"""What is refused before anything is read: too many calls of one client, more than fit at all."""

import asyncio
import json
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
from fake_store import FakeState
from openai_schema import assert_valid
from starlette.types import Message, Receive, Scope, Send

from sentinel_proxy.middleware.limits import InFlightMiddleware, RateLimitMiddleware
from sentinel_proxy.model import Load, StateHealth, Trace
from sentinel_proxy.replica.limits import SharedLimit
from sentinel_proxy.replica.link import Link
from sentinel_proxy.resilience.rate_limit import SlidingLog
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

CHAT_PATH = "/v1/chat/completions"


class App:
    """The application behind: counts who gets there, and may do something meanwhile."""

    def __init__(self, meanwhile: Any = None) -> None:
        self.served = 0
        self._meanwhile = meanwhile

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.served += 1
        if self._meanwhile is not None:
            await self._meanwhile()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})


async def unread() -> Message:
    raise AssertionError("the body is not to be read")


def scope(
    path: str = CHAT_PATH, *, address: str = "203.0.113.9", name: str | None = None, forwarded: str = ""
) -> Scope:
    return {
        "type": "http",
        "path": path,
        "client": (address, 1),
        "headers": [(b"x-forwarded-for", forwarded.encode())] if forwarded else [],
        Trace.SCOPE_KEY: Trace("t", 0.0, client=name),
    }


async def ask(middleware: Any, scope: Scope) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and body of what is answered; the headers its layers left included."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await middleware(scope, unread, send)
    start, body = sent
    pairs = [*start["headers"], *scope[Trace.SCOPE_KEY].headers]
    headers = {key.decode(): value.decode() for key, value in pairs}
    return start["status"], headers, body["body"]


class TestRateLimit:
    def middleware(self, requests: int = 2, **options: Any) -> tuple[RateLimitMiddleware, FakeClock, Load]:
        clock, load = FakeClock(), Load()
        given: dict[str, Any] = {"limits": {}, "trusted_proxies": ()} | options
        log = SlidingLog(requests, 60.0)
        return RateLimitMiddleware(App(), log, load=load, clock=clock, **given), clock, load

    async def test_a_refusal_says_when_to_come_back_and_who_does_is_served(self) -> None:
        limit, clock, load = self.middleware()
        for _ in range(2):
            await ask(limit, scope())
        clock.advance(15)

        status, headers, body = await ask(limit, scope())
        clock.advance(float(headers["retry-after"]))
        after, *_ = await ask(limit, scope())

        assert (status, after) == (429, 200)
        assert headers["retry-after"] == "45"
        assert headers["x-should-retry"] == "false"  # longer than a caller should be made to wait
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        assert_valid("ErrorResponse", json.loads(body))
        assert load.rate_limited == 1

    async def test_every_answer_says_what_is_left(self) -> None:
        limit, _, _ = self.middleware()

        answers = [await ask(limit, scope()) for _ in range(3)]

        assert [headers["x-sentinel-ratelimit-limit"] for _, headers, _ in answers] == ["2", "2", "2"]
        assert [headers["x-sentinel-ratelimit-remaining"] for _, headers, _ in answers] == ["1", "0", "0"]
        assert answers[0][1]["x-sentinel-ratelimit-reset"] == "1m0s"

    async def test_a_process_alone_decides_without_waiting(self) -> None:
        """Nothing on the way to the application gives up the event loop."""
        limit, _, _ = self.middleware()

        async def app(*_: Any) -> None:
            pass

        limit.app = app

        with pytest.raises(StopIteration):
            limit(scope(), unread, cast(Send, None)).__await__().__next__()

    async def test_replicas_count_together_and_every_client_by_its_own_limit(self) -> None:
        state = FakeState(FakeClock())
        async with AsyncExitStack() as stack:
            replicas = []
            for _ in range(2):
                link = Link(state.store(), FakeClock(), StateHealth(), lambda _: None, "01REPLICA")
                await stack.enter_async_context(link.running())
                shared = SharedLimit(SlidingLog(2, 60.0), link, FakeClock())
                replicas.append(self.middleware(limits={"web": 3, "batch": 0}, shared=shared)[0])

            def together(name: str | None) -> Awaitable[list[tuple[int, dict[str, str], Any]]]:
                return asyncio.gather(*(ask(each, scope(name=name)) for each in replicas * 3))

            answers = {name: await together(name) for name in ("web", "batch", None)}

        served = {name: [status for status, *_ in those].count(200) for name, those in answers.items()}
        assert served == {"web": 3, "batch": 6, None: 2}
        assert {headers["x-sentinel-ratelimit-limit"] for _, headers, _ in answers["web"]} == {"3"}
        assert state.asked.count("admit") <= 12  # none for who has no limit

    @pytest.mark.parametrize("path", ["/health", "/livez", "/metrics", "/api/providers/status"])
    async def test_operators_are_not_limited(self, path: str) -> None:
        """I10."""
        limit, _, _ = self.middleware(requests=1)

        statuses = [(await ask(limit, scope(path)))[0] for _ in range(3)]

        assert statuses == [200, 200, 200]

    async def test_zero_switches_the_common_limit_off_and_not_that_of_a_client(self) -> None:
        limit, _, _ = self.middleware(requests=0, limits={"web": 1})

        free = [(await ask(limit, scope()))[0] for _ in range(3)]
        web = [(await ask(limit, scope(name="web")))[0] for _ in range(2)]

        assert (free, web) == ([200, 200, 200], [200, 429])

    @pytest.mark.parametrize(
        ("trusted", "first", "second", "same"),
        [
            ((), ("203.0.113.9", ""), ("203.0.113.8", ""), False),
            ((), ("203.0.113.9", "1.1.1.1"), ("203.0.113.9", "2.2.2.2"), True),
            (("10.0.0.0/8",), ("10.0.0.1", "1.1.1.1"), ("10.0.0.1", "2.2.2.2"), False),
            (("10.0.0.0/8",), ("10.0.0.1", "6.6.6.6, 1.1.1.1"), ("10.0.0.1", "7.7.7.7, 1.1.1.1"), True),
            (("10.0.0.0/8",), ("10.0.0.1", "1.1.1.1, 10.9.9.9"), ("10.0.0.2", "1.1.1.1"), True),
            (("10.0.0.0/8",), ("203.0.113.9", "1.1.1.1"), ("203.0.113.9", "2.2.2.2"), True),
            ((), ("2001:db8::1", ""), ("2001:db8::2", ""), True),
            ((), ("2001:db8::1", ""), ("2001:db8:0:1::1", ""), False),
            ((), ("::ffff:203.0.113.9", ""), ("203.0.113.9", ""), True),
            ((), ("a socket of this machine", ""), ("a socket of this machine", ""), True),
        ],
        ids=[
            "two addresses",
            "I07 forged by a stranger",
            "told by a trusted proxy",
            "I08 what a stranger wrote further left",
            "through several trusted proxies",
            "a stranger beside the trusted proxy",
            "one IPv6 network",
            "two IPv6 networks",
            "IPv4 in IPv6",
            "no address at all",
        ],
    )
    async def test_a_client_is_who_it_can_prove_to_be(
        self, trusted: tuple[str, ...], first: tuple[str, str], second: tuple[str, str], same: bool
    ) -> None:
        limit, _, _ = self.middleware(requests=1, trusted_proxies=trusted)

        statuses = [
            (await ask(limit, scope(address=address, forwarded=forwarded)))[0]
            for address, forwarded in (first, second)
        ]

        assert statuses == [200, 429 if same else 200]


class TestInFlight:
    async def test_a_call_is_counted_while_it_is_served_and_however_it_ends(self) -> None:
        load = Load()
        seen: list[int] = []

        async def fail() -> None:
            seen.append(load.in_flight)
            raise RuntimeError("a mistake")

        with pytest.raises(RuntimeError):
            await ask(InFlightMiddleware(App(fail), 5, load), scope())

        assert (seen, load.in_flight) == ([1], 0)

    async def test_more_than_fits_is_shed(self) -> None:
        load = Load(in_flight=5)
        app = App()

        status, headers, body = await ask(InFlightMiddleware(app, 5, load), scope())

        assert (status, headers["retry-after"], headers["x-should-retry"]) == (503, "1", "true")
        assert json.loads(body)["error"]["code"] == "proxy_overloaded"
        assert (app.served, load.shed, load.in_flight) == (0, 1, 5)

    async def test_operators_are_served_all_the_same(self) -> None:
        status, *_ = await ask(InFlightMiddleware(App(), 5, Load(in_flight=5)), scope("/health"))

        assert status == 200

    async def test_nothing_new_is_admitted_while_draining(self) -> None:
        """K04."""
        load = Load(draining=True)

        status, headers, body = await ask(InFlightMiddleware(App(), 5, load), scope())

        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        assert_valid("ErrorResponse", json.loads(body))
        assert load.shed == 0


async def test_what_is_no_http_request_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def send(message: Message) -> None:
        raise AssertionError("nothing is to be sent")

    for kind in ("lifespan", "websocket"):
        await InFlightMiddleware(app, 0, Load())({"type": kind, "path": CHAT_PATH}, unread, send)
        log = SlidingLog(1, 60.0)
        limit = RateLimitMiddleware(app, log, {}, (), Load(), FakeClock())
        await limit({"type": kind, "path": CHAT_PATH}, unread, send)

    assert seen == ["lifespan", "lifespan", "websocket", "websocket"]
