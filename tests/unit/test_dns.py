"""A provider's names are looked up apart from everybody else's, and never more often than needed."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sentinel_proxy.upstream import dns
from sentinel_proxy.upstream.dns import MAX_THREADS, Resolver

pytestmark = pytest.mark.anyio

V4 = (socket.AF_INET, ("192.0.2.1", 443))
V6 = (socket.AF_INET6, ("2001:db8::1", 443, 0, 0))


class Directory:
    """A `getaddrinfo` that counts, and can be held up."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: list[Any] | Exception = [(V6[0], 1, 6, "", V6[1]), (V4[0], 1, 6, "", V4[1])]
        self.open = threading.Event()
        self.open.set()

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked += 1
        self.open.wait(5)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
async def directory() -> AsyncIterator[Directory]:
    subject = Directory()
    yield subject
    subject.open.set()


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


async def test_addresses_come_in_the_order_of_the_system(directory: Directory) -> None:
    assert list(await Resolver("api.example", 443, directory).addresses()) == [V6, V4]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.7", (socket.AF_INET, ("192.0.2.7", 80))),
        ("::1", (socket.AF_INET6, ("::1", 80, 0, 0))),
        ("fe80::1%7", (socket.AF_INET6, ("fe80::1", 80, 0, 7))),
        ("fe80::1%lo", (socket.AF_INET6, ("fe80::1", 80, 0, socket.if_nametoindex("lo")))),
        ("fe80::1%none0", (socket.AF_INET6, ("fe80::1", 80, 0, 0))),
    ],
    ids=["v4", "v6", "zone-number", "zone-name", "zone-unknown"],
)
async def test_an_address_is_its_own_answer(directory: Directory, host: str, expected: object) -> None:
    assert list(await Resolver(host, 80, directory).addresses()) == [expected]
    assert directory.asked == 0


async def test_all_who_wait_share_one_look_up_and_a_fresh_answer_is_used_again(directory: Directory) -> None:
    resolver = Resolver("api.example", 443, directory)

    await asyncio.gather(*(resolver.addresses() for _ in range(20)))
    await resolver.addresses()

    assert directory.asked == 1


async def test_an_answer_that_did_not_help_is_looked_up_anew(directory: Directory) -> None:
    resolver = Resolver("api.example", 443, directory)
    await resolver.addresses()

    resolver.forget()
    await resolver.addresses()

    assert directory.asked == 2


@pytest.mark.parametrize(
    "error", [socket.gaierror(-3, "try again"), UnicodeError("label too long")], ids=["temporary", "no-name"]
)
async def test_a_failure_is_everyones_and_is_not_remembered(directory: Directory, error: Exception) -> None:
    resolver, good = Resolver("api.example", 443, directory), directory.answer
    directory.answer = error

    failures = await asyncio.gather(*(resolver.addresses() for _ in range(3)), return_exceptions=True)
    directory.answer = good

    assert failures == [error] * 3
    assert list(await resolver.addresses()) == [V6, V4]


async def test_a_name_without_addresses_is_a_failure(directory: Directory) -> None:
    directory.answer = []

    with pytest.raises(OSError, match="no address"):
        await Resolver("api.example", 443, directory).addresses()


async def test_cancelling_one_leaves_the_look_up_to_the_others(directory: Directory) -> None:
    resolver = Resolver("api.example", 443, directory)
    directory.open.clear()
    first, second = (asyncio.create_task(resolver.addresses()) for _ in range(2))
    await eventually(lambda: directory.asked == 1)

    first.cancel()
    await asyncio.wait([first])
    directory.open.set()

    assert list(await second) == [V6, V4]


async def test_a_stuck_look_up_is_helped_out_but_threads_are_few(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "PATIENCE_SECONDS", -1.0)
    resolver = Resolver("api.example", 443, directory)
    directory.open.clear()

    waiting = [asyncio.create_task(resolver.addresses()) for _ in range(MAX_THREADS + 3)]
    await eventually(lambda: directory.asked == MAX_THREADS)
    await asyncio.sleep(0.01)

    assert repr(resolver) == f"<Resolver {MAX_THREADS} threads, {MAX_THREADS + 3} waiting>"
    directory.open.set()
    assert all(list(found) == [V6, V4] for found in await asyncio.gather(*waiting))
    await eventually(lambda: repr(resolver) == "<Resolver 0 threads, 0 waiting>")


def test_an_answer_for_a_loop_that_has_ended_is_dropped() -> None:
    directory = Directory()
    directory.open.clear()

    async def give_up() -> None:
        task = asyncio.create_task(Resolver("api.example", 443, directory).addresses())
        await eventually(lambda: directory.asked == 1)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(give_up())
    lookups = [thread for thread in threading.enumerate() if thread.name == "sentinel-dns"]
    directory.open.set()
    for thread in lookups:
        thread.join(5)

    assert not any(thread.is_alive() for thread in lookups)
