"""The live feed over real WebSockets: what is told, to whom, and how it ends."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest
from admin_support import TOKEN, Listener, assert_shape, feed_url, listening, simulated_chain, with_token
from harness import Harness, Start, eventually
from openai_schema import assert_valid
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sentinel_proxy.admin.broadcast import Pace
from sentinel_proxy.admin.schemas import SCHEMAS, ref
from sentinel_proxy.app import Proxy
from sentinel_proxy.clock import SystemClock
from sentinel_proxy.config import HealthConfig
from sentinel_proxy.events import Noticed
from sentinel_proxy.server import Server, listen, running
from sentinel_proxy.testing import Outage, SimulatedOllama, SimulatedOpenAI

pytestmark = pytest.mark.anyio


def notice(proxy: Harness, *numbers: int) -> None:
    for number in numbers:
        proxy.proxy.bus.emit(Noticed("info", "counted", {"number": number}))


def numbers(listener: Listener) -> list[int]:
    return [frame["payload"]["details"]["number"] for frame in listener.of("system")]


def seen(frame: dict[str, Any]) -> tuple[str, ...]:
    """Return what a frame says, without what is different each time."""
    payload = frame["payload"]
    match frame["event_type"]:
        case "provider_status":
            return payload["provider"], payload["status"], payload["circuit_breaker"]["state"]
        case "incident":
            return payload["change"], payload["type"], payload["provider"]
        case "system":
            return ("system", payload["message"])
    return (frame["event_type"],)


# What is told.


async def test_an_outage_is_told_in_order_from_its_beginning_to_its_end(
    proxy: Harness, openai: SimulatedOpenAI
) -> None:
    async with listening(proxy.url) as listener:
        await proxy.chat()
        await openai.outage(Outage.REFUSE)
        for _ in range(4):
            await proxy.chat()
        await openai.recover()
        await eventually(lambda: proxy.proxy.upstreams[0].breakers.own.rest(SystemClock.monotonic()) == 0)
        await proxy.chat()
        await proxy.proxy.health.round()
        await listener.until(lambda listener: listener.of("metrics"))

    assert list(map(seen, listener.frames)) == [
        ("opened", "failover_triggered", "openai"),
        ("opened", "outage_detected", "openai"),
        ("openai", "down", "open"),
        ("updated", "outage_detected", "openai"),
        ("openai", "degraded", "half_open"),
        ("resolved", "outage_detected", "openai"),
        ("resolved", "failover_triggered", "openai"),
        ("opened", "provider_recovered", "openai"),
        ("resolved", "provider_recovered", "openai"),
        ("openai", "healthy", "closed"),
        ("metrics",),
    ]


async def test_every_frame_is_as_described(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama), pace=Pace(heartbeat_seconds=0.02))
    async with listening(proxy.url) as listener:
        await openai.outage(Outage.REFUSE)
        for _ in range(4):
            await proxy.chat()
        await proxy.proxy.health.round()
        notice(proxy, 1)
        types = {"provider_status", "incident", "metrics", "heartbeat", "system"}
        await listener.until(lambda heard: {frame["event_type"] for frame in heard.frames} == types)

    payloads = {
        "provider_status": ref("NamedProvider"),
        "metrics": ref("Totals"),
        "incident": SCHEMAS["Incident"] | {"additionalProperties": True},
    }
    for frame in listener.frames:
        assert_shape(ref("Frame"), frame)
        assert_shape(payloads.get(frame["event_type"], {}), frame["payload"])


async def test_ids_never_go_back(proxy: Harness) -> None:
    async with listening(proxy.url) as listener:
        notice(proxy, *range(100))
        await listener.until(lambda listener: len(listener.frames) == 100)

    ids = [frame["id"] for frame in listener.frames]
    assert ids == sorted(set(ids))


async def test_an_order_is_told(proxy: Harness) -> None:
    async with listening(proxy.url) as listener:
        for seconds in (10, 20):
            await proxy.client.post(
                "/api/providers/ollama/breaker",
                json={"action": "isolate", "reason": "x", "seconds": seconds},
            )
        await listener.until(lambda listener: len(listener.of("provider_status")) == 2)

    assert list(map(seen, listener.frames)) == [
        ("opened", "breaker_isolated", "ollama"),
        ("system", "provider isolated"),
        ("ollama", "down", "isolated"),
        ("system", "provider isolated"),
        ("ollama", "down", "isolated"),
    ]


async def test_each_health_cycle_tells_the_numbers(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama, health=HealthConfig(interval=0.03)))

    async with listening(proxy.url, "?types=metrics") as listener:
        await listener.until(lambda listener: len(listener.frames) >= 3)

    assert {frame["event_type"] for frame in listener.frames} == {"metrics"}


async def test_heartbeats_go_on_when_nothing_happens(
    start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    proxy = await start(simulated_chain(openai, ollama), pace=Pace(heartbeat_seconds=0.02))

    async with listening(proxy.url) as listener:
        await listener.until(lambda listener: len(listener.of("heartbeat")) >= 3)

    last_id = (await proxy.client.get("/api/events")).json()["last_id"]
    assert {frame["id"] for frame in listener.frames} == {last_id}


# Coming back.


async def test_who_comes_back_gets_what_it_missed_once(proxy: Harness) -> None:
    async with listening(proxy.url) as before:
        notice(proxy, 1, 2)
        await before.until(lambda listener: len(listener.frames) == 2)
    notice(proxy, 3, 4)

    async with listening(proxy.url, f"?since={before.frames[-1]['id']}") as after:
        notice(proxy, 5)
        await after.until(lambda listener: len(listener.frames) == 3)

    assert (numbers(before), numbers(after)) == ([1, 2], [3, 4, 5])


async def test_without_since_only_what_comes_is_told(proxy: Harness) -> None:
    notice(proxy, 1)

    async with listening(proxy.url) as listener:
        notice(proxy, 2)
        await listener.until(lambda listener: listener.frames)

    assert numbers(listener) == [2]


async def test_who_missed_more_than_is_remembered_is_told(proxy: Harness) -> None:
    since = "0" * 26

    async with listening(proxy.url, f"?since={since}&types=incident,metrics") as listener:
        await listener.until(lambda listener: listener.frames)

    (frame,) = listener.frames
    assert (frame["event_type"], frame["payload"]["missed"], frame["id"]) == ("system", True, since)


async def test_only_the_wanted_types_come(proxy: Harness, openai: SimulatedOpenAI) -> None:
    async with listening(proxy.url, "?types=provider_status,system") as listener:
        await openai.outage(Outage.REFUSE)
        for _ in range(3):
            await proxy.chat()
        notice(proxy, 1)
        await listener.until(lambda listener: listener.of("system"))

    assert list(map(seen, listener.frames)) == [("openai", "down", "open"), ("system", "counted")]


# Who may listen.


@pytest.fixture
async def guarded(start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Harness:
    return await start(simulated_chain(openai, ollama, admin=with_token()))


@pytest.mark.parametrize(
    ("query", "options"),
    [
        (f"?token={TOKEN}", {}),
        ("", {"subprotocols": ["sentinel", f"bearer.{TOKEN}"]}),
        ("", {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}),
    ],
    ids=["query", "subprotocol", "header"],
)
async def test_the_token_can_be_shown_in_three_ways(
    guarded: Harness, query: str, options: dict[str, Any]
) -> None:
    async with listening(guarded.url, query, **options) as listener:
        notice(guarded, 1)
        await listener.until(lambda listener: listener.frames)

    chosen = "sentinel" if "subprotocols" in options else None
    assert listener.socket.subprotocol == chosen


async def refused(url: str, query: str = "", **options: Any) -> tuple[int, str]:
    """Return the status and the code that a handshake is answered with."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(feed_url(url, query), proxy=None, **options):
            pass
    response = caught.value.response
    assert response.body is not None
    body = json.loads(bytes(response.body))
    assert_valid("ErrorResponse", body)
    assert response.headers["x-content-type-options"] == "nosniff"
    return response.status_code, body["error"]["code"]


@pytest.mark.parametrize(
    ("query", "options"),
    [("", {}), ("?token=wrong", {}), ("", {"subprotocols": ["sentinel", "bearer.wrong"]})],
    ids=["missing", "wrong", "wrong-subprotocol"],
)
async def test_without_the_token_there_is_no_feed(
    guarded: Harness, query: str, options: dict[str, Any]
) -> None:
    assert await refused(guarded.url, query, **options) == (401, "invalid_admin_token")


async def test_a_foreign_page_does_not_listen(proxy: Harness, guarded: Harness) -> None:
    for harness, query in ((proxy, ""), (guarded, f"?token={TOKEN}")):
        assert await refused(harness.url, query, origin="http://evil.example") == (403, "foreign_origin")


async def test_our_own_page_listens(proxy: Harness) -> None:
    async with listening(proxy.url, origin=proxy.url) as listener:
        notice(proxy, 1)
        await listener.until(lambda listener: listener.frames)

    assert numbers(listener) == [1]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?since=yesterday", "invalid_value"),
        ("?types=incident,nonsense", "invalid_value"),
        ("?sinc=x", "unknown_parameter"),
    ],
)
async def test_a_mistake_in_the_query_is_told_in_the_handshake(proxy: Harness, query: str, code: str) -> None:
    assert await refused(proxy.url, query) == (400, code)


async def test_there_is_no_other_websocket(proxy: Harness) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"{proxy.url.replace('http', 'ws')}/ws/nothing", proxy=None):
            pass

    assert caught.value.response.status_code == 403


# The feed only talks.


@pytest.mark.parametrize("said", ["hello", b"hello", "", "x" * 5000], ids=["text", "bytes", "empty", "much"])
async def test_a_client_that_talks_is_closed_and_nobody_else(proxy: Harness, said: str | bytes) -> None:
    async with listening(proxy.url) as quiet, listening(proxy.url) as talker:
        await talker.socket.send(said)
        await talker.until(lambda listener: listener.close)
        notice(proxy, 1)
        await quiet.until(lambda listener: listener.frames)

    assert talker.close is not None
    assert talker.close[0] == (1009 if len(said) > 4096 else 1003)
    assert (numbers(quiet), talker.frames) == ([1], [])
    assert (await proxy.chat()).status_code == 200


async def test_a_ping_is_answered(proxy: Harness) -> None:
    async with listening(proxy.url) as listener:
        async with asyncio.timeout(2):
            await (await listener.socket.ping())
        notice(proxy, 1)
        await listener.until(lambda listener: listener.frames)

    assert numbers(listener) == [1]


async def test_a_client_that_leaves_is_forgotten(proxy: Harness) -> None:
    async with listening(proxy.url):
        await eventually(lambda: proxy.proxy.feed.subscribers == 1)

    await eventually(lambda: proxy.proxy.feed.subscribers == 0)


async def test_a_client_that_vanishes_is_forgotten(proxy: Harness) -> None:
    async with listening(proxy.url) as listener:
        await eventually(lambda: proxy.proxy.feed.subscribers == 1)
        listener.socket.transport.abort()

        await eventually(lambda: proxy.proxy.feed.subscribers == 0)


# A client that does not read.

HANDSHAKE = (
    b"GET /ws/system-events HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
async def impatient(start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Harness:
    """A proxy that gives up a client that does not read for 50 ms."""
    return await start(simulated_chain(openai, ollama), pace=Pace(stall_seconds=0.05))


async def stuck(url: str) -> socket.socket:
    """Return a socket that has listened to the feed and does not read what it is told."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.setblocking(False)
    host, port = url.removeprefix("http://").split(":")
    await loop.sock_connect(client, (host, int(port)))
    await loop.sock_sendall(client, HANDSHAKE)
    assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 101")
    return client


async def flood(proxy: Harness, frames: int = 60) -> None:
    """Publish some megabytes, as fast as those who read can take them."""
    for number in range(frames):
        details = {"number": number, "text": "x" * 100_000}
        proxy.proxy.bus.emit(Noticed("info", "counted", details))
        await asyncio.sleep(0.002)


async def test_a_client_that_does_not_read_is_cut_off_and_counted(impatient: Harness) -> None:
    """J12."""
    async with listening(impatient.url, max_size=None) as reader:
        client = await stuck(impatient.url)
        await flood(impatient)
        await eventually(lambda: impatient.proxy.feed.subscribers == 1)
        answer = await impatient.chat()
        await reader.until(lambda listener: len(listener.frames) == 60)
        client.close()

    assert numbers(reader) == list(range(60))
    assert (answer.status_code, impatient.proxy.feed.dropped > 0) == (200, True)
    assert f"sentinel_events_dropped_total {impatient.proxy.feed.dropped:.1f}" in (
        (await impatient.client.get("/metrics")).text
    )


async def test_if_it_reads_after_all_it_learns_why(impatient: Harness) -> None:
    loop = asyncio.get_running_loop()
    client = await stuck(impatient.url)
    await flood(impatient)
    await eventually(lambda: impatient.proxy.feed.subscribers == 0)

    farewell = (1013).to_bytes(2, "big") + b"too slow"
    received = b""
    try:
        async with asyncio.timeout(5):
            while farewell not in received[-200:] and (data := await loop.sock_recv(client, 1 << 20)):
                received += data
    finally:
        client.close()

    assert farewell in received[-200:]
    assert len(received) < 60 * 100_000


async def test_if_it_never_does_it_is_not_kept(
    openai: SimulatedOpenAI, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer with a closed window is alive for TCP, and would be for ever."""
    monkeypatch.setattr("sentinel_proxy.admin.live.CLOSE_SECONDS", 0.02)
    monkeypatch.setattr("sentinel_proxy.server.FAREWELL_SECONDS", 0.02)
    proxy = Proxy(simulated_chain(openai, ollama), pace=Pace(stall_seconds=0.02))
    server = Server(proxy)
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(server._serve(sockets=[listener]))
    await eventually(lambda: server.started)
    client = await stuck(f"http://127.0.0.1:{listener.getsockname()[1]}")

    for number in range(60):
        proxy.bus.emit(Noticed("info", "counted", {"number": number, "text": "x" * 100_000}))
        await asyncio.sleep(0.002)

    await eventually(lambda: not server.server_state.connections)
    client.close()
    server.stop()
    await serving


# Many.


async def test_many_clients_are_told_everything_while_calls_go_on(proxy: Harness) -> None:
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(proxy.url)) for _ in range(200)]
        calls = []
        for number in range(10):
            notice(proxy, number)
            calls.append(await proxy.chat())
        for listener in listeners:
            await listener.until(lambda listener: len(listener.frames) == 10)
        subscribers = (await proxy.client.get("/api/metrics")).json()["event_subscribers"]

    assert all(numbers(listener) == list(range(10)) for listener in listeners)
    assert {call.status_code for call in calls} == {200}
    assert subscribers == 200


# The end.


async def test_a_drain_is_told_and_then_the_feed_is_closed(
    openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    """K05, as SIGTERM does it."""
    server = Server(Proxy(simulated_chain(openai, ollama)))
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(server._serve(sockets=[listener]))
    await eventually(lambda: server.started)

    async with listening(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        server.drain()
        await client.until(lambda listener: listener.close)
    await serving

    assert list(map(seen, client.frames)) == [("system", "draining")]
    assert client.close == (1012, "the proxy is going down; come back with since")


async def test_whoever_stops_the_proxy_at_once_does_not_silence_it(
    openai: SimulatedOpenAI, ollama: SimulatedOllama
) -> None:
    async with AsyncExitStack() as stack:
        proxy = Proxy(simulated_chain(openai, ollama))
        url = await stack.enter_async_context(running(proxy))
        client = await AsyncExitStack().enter_async_context(listening(url))
        await eventually(lambda: proxy.feed.subscribers == 1)

    await client.until(lambda listener: listener.close)
    assert list(map(seen, client.frames)) == [("system", "draining")]
    assert client.close is not None
    assert client.close[0] == 1012


async def test_who_comes_after_the_end_is_told_so(proxy: Harness) -> None:
    await proxy.proxy.broadcast.end(0.01)

    assert await refused(proxy.url) == (503, "proxy_draining")
