"""What only a store in a file may meet: other files, other clocks, and disks that do not answer."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from harness import eventually
from stores_support import listening, opened

from sentinel_proxy.model import Frame
from sentinel_proxy.stores import embedded
from sentinel_proxy.stores.base import News, StoreAway
from sentinel_proxy.stores.embedded import EmbeddedStore
from sentinel_proxy.stores.file import APPLICATION_ID, SCHEMA, File
from sentinel_proxy.stores.records import BreakerRecord, Contribution, Note, Resumed
from sentinel_proxy.testing import FakeClock

pytestmark = pytest.mark.anyio

OPEN: Final = BreakerRecord("openai", "gpt-4o", "open", 2, 7, 30.0, 1.5, 3, "3 failures in a row", "A")
NOTE: Final = Note("probe", "A", b"{}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is, or will be."""
    return tmp_path / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[EmbeddedStore]:
    """An open store on the file, for 5 incidents and 5 events."""
    store = store_at(path)
    async with opened(store):
        yield store


def store_at(path: Path, clock: FakeClock | None = None) -> EmbeddedStore:
    return EmbeddedStore(path, 5, 5, clock or FakeClock())


def frame(number: int) -> Frame:
    return Frame(f"{number}", "system", "{}")


def contents(path: Path) -> bytes | None:
    """Return what is in the file, if there is one."""
    return path.read_bytes() if path.is_file() else None


def no_database(path: Path) -> None:
    """Put something else where the file should be."""
    path.write_text("Dear diary, today the provider was down again. " * 100)


def rotten(path: Path) -> None:
    """Spoil one page of the file, which nobody reads for the time being: that of the breakers."""
    sound = path.read_bytes()
    path.write_bytes(sound[:4096] + b"\xff" * 4096 + sound[8192:])


def written(path: Path, *statements: str) -> None:
    """Do what another program, or an older version, may have done to the file."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


async def refusal(path: Path) -> str:
    """Return what is said of a file that cannot be used, which must not be touched by that."""
    before = contents(path)
    with pytest.raises(StoreAway) as refused:
        await store_at(path).open()
    assert contents(path) == before
    assert str(path) in str(refused.value)
    return str(refused.value).removeprefix(f"the state file {path} ")


# Files.


async def test_a_file_is_made_where_there_is_none(path: Path) -> None:
    async with opened(store_at(path)):
        assert contents(path)


async def test_a_closed_store_leaves_one_file_behind(path: Path) -> None:
    async with opened(store_at(path)) as store:
        await store.append([frame(1)])

    assert [each.name for each in path.parent.iterdir()] == ["state.db"]


async def test_a_closed_store_leaves_no_thread_behind(path: Path) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("state")]

    async with opened(store_at(path)):
        assert threads()

    await eventually(lambda: not threads())


async def test_an_empty_file_is_taken_for_a_new_one(path: Path) -> None:
    written(path)
    assert contents(path) == b""

    async with opened(store_at(path)) as store:
        await store.append([frame(1)])


async def test_a_file_is_not_made_in_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    said = await refusal(tmp_path / "no such directory" / "state.db")

    assert said == "cannot be opened: its directory must exist and be writable"


async def test_what_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    no_database(path)

    assert await refusal(path) == "is damaged, or no state at all: move it away to begin with a new one"


async def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    written(path, "CREATE TABLE bookmarks (address TEXT)")

    assert await refusal(path) == "is a database of another program; name another file"


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    async with opened(store_at(path)) as store:
        await store.append([frame(1)])
    newer = len(SCHEMA) + 1
    written(path, "CREATE TABLE wonders (name TEXT)", f"PRAGMA user_version = {newer}")

    said = await refusal(path)

    assert f"written by a newer version of Sentinel Proxy (it has schema {newer}, this" in said


async def test_a_file_of_an_older_version_is_brought_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(store_at(path)) as store:
        await store.append([frame(1)])
    monkeypatch.setattr("sentinel_proxy.stores.file.SCHEMA", (*SCHEMA, ["CREATE TABLE wonders (name TEXT)"]))

    for _ in range(2):  # once is enough
        async with opened(store_at(path)) as store:
            assert list(await store.frames()) == [frame(1)]

    written(path, "INSERT INTO wonders VALUES ('there it is')")


async def test_a_step_of_the_schema_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(store_at(path)) as store:
        await store.append([frame(1)])
    broken = [["CREATE TABLE wonders (name TEXT)", "CREATE TABLE wonders (name TEXT)"]]
    monkeypatch.setattr("sentinel_proxy.stores.file.SCHEMA", (*SCHEMA, *broken))

    assert "already exists" in await refusal(path)

    monkeypatch.undo()
    async with opened(store_at(path)) as store:
        assert list(await store.frames()) == [frame(1)]


async def test_a_file_that_rotted_on_the_disk_is_refused(path: Path) -> None:
    async with opened(store_at(path)) as store:
        await store.append([replace(frame(1), text="x" * 20_000)])
    rotten(path)

    assert "is damaged" in await refusal(path)


async def test_a_store_that_was_refused_may_be_opened_once_the_reason_is_gone(path: Path) -> None:
    no_database(path)
    store = store_at(path)
    with pytest.raises(StoreAway, match="is damaged"):
        await store.open()
    os.remove(path)

    async with opened(store):
        await store.append([frame(1)])


async def test_two_stores_do_not_have_one_file(store: EmbeddedStore, path: Path) -> None:
    with pytest.raises(StoreAway, match=r"state\.db is in use by another process"):
        await store_at(path).open()

    await store.append([frame(1)])


async def test_a_file_says_whose_it_is(path: Path) -> None:
    async with opened(store_at(path)):
        pass

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(SCHEMA),)


async def test_each_change_is_synced_to_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []

    class Traced(sqlite3.Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.set_trace_callback(statements.append)

    monkeypatch.setattr(sqlite3, "connect", Traced)
    async with opened(store_at(path)) as store:
        await store.append([frame(1)])

    assert [each for each in statements if "synchronous" in each] == ["PRAGMA synchronous = FULL"]
    assert statements.index("PRAGMA synchronous = FULL") < statements.index("COMMIT")


async def test_the_file_does_not_grow_for_ever(store: EmbeddedStore, path: Path) -> None:
    async def write(number: int) -> None:
        await store.append([replace(frame(number), text="x" * 1000)])
        ongoing = number % 2 == 0
        await store.contribute(
            Contribution(f"{number}", "A", f"{number}", ongoing, b"x" * 1000), frozenset("A")
        )
        await store.merge_breaker(replace(OPEN, era=number))

    for number in range(50):
        await write(number)
    await store.aclose()
    size = len(contents(path) or b"")
    await store.open()
    for number in range(50, 400):
        await write(number)
    await store.aclose()

    assert len(contents(path) or b"") <= size + 8192


# Clocks.


async def test_a_clock_that_was_set_back_makes_no_rest_longer(path: Path) -> None:
    late, early = FakeClock(time=2e9), FakeClock(time=1e9)
    async with opened(store_at(path, late)) as store:
        await store.merge_breaker(OPEN)

    async with opened(store_at(path, early)) as store:
        assert list(await store.breakers()) == [OPEN]


async def test_a_machine_that_was_off_for_long_has_forgotten_its_breakers(path: Path) -> None:
    async with opened(store_at(path, FakeClock(time=1e9))) as store:
        await store.merge_breaker(OPEN)

    async with opened(store_at(path, FakeClock(time=2e9))) as store:
        assert list(await store.breakers()) == []


async def test_breakers_that_are_forgotten_leave_the_file(path: Path) -> None:
    clock = FakeClock()
    async with opened(store_at(path, clock)) as store:
        for number in range(10):
            await store.merge_breaker(replace(OPEN, model=f"a model that nobody asks for any more {number}"))
        clock.advance(10_000.0)
        await store.merge_breaker(OPEN)

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT key FROM breakers").fetchall() == [(OPEN.key,)]


# Disks.


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], threading.Event]:
    """Have a method of the file wait, like one whose disk does not answer, until the event is set."""

    def stick(name: str) -> threading.Event:
        released = threading.Event()
        method = getattr(File, name)

        def wait(file: File, *args: object) -> object:
            assert released.wait(10.0), "nobody set it free"
            return method(file, *args)

        monkeypatch.setattr(File, name, wait)
        return released

    return stick


async def test_a_disk_that_does_not_answer_is_given_up(
    store: EmbeddedStore, stuck: Callable[[str], threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "COMMAND_SECONDS", 0.02)
    released = stuck("append")

    with pytest.raises(StoreAway, match=r"the disk of the state file .* does not answer"):
        await store.append([frame(1)])
    with pytest.raises(StoreAway, match="does not answer"):
        await store.append([frame(2)])  # waits behind the other, and is not begun any more

    released.set()
    monkeypatch.undo()
    await store.append([frame(3)])
    assert list(await store.frames()) == [frame(1), frame(3)]


async def test_what_needs_no_disk_does_not_wait_for_it(
    store: EmbeddedStore, stuck: Callable[[str], threading.Event]
) -> None:
    released = stuck("append")
    appending = asyncio.create_task(store.append([frame(1)]))
    await asyncio.sleep(0)

    assert await store.take_lease("probes", "A", 6.0) == 0.0
    assert [decision.allowed for decision in await store.admit("a client", 1, 60.0, 1)] == [True]
    assert await store.beat("A", b"{}", 6.0) == {"A": b"{}"}

    assert not appending.done()
    released.set()
    await appending


async def test_a_store_that_is_closed_while_it_opens_is_closed(
    path: Path, stuck: Callable[[str], threading.Event]
) -> None:
    released = stuck("open")
    store = store_at(path)
    opening = asyncio.create_task(store.open())
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)

    released.set()
    await closing

    with pytest.raises(StoreAway, match="is not open"):
        await opening
    with pytest.raises(StoreAway, match="is not open"):
        await store.take_lease("probes", "A", 6.0)
    async with opened(store_at(path)):
        pass


async def test_a_store_does_not_wait_for_ever_to_be_closed(
    store: EmbeddedStore, stuck: Callable[[str], threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "COMMAND_SECONDS", 0.02)
    released = stuck("close")

    async with asyncio.timeout(5.0):
        await store.aclose()

    released.set()


async def test_what_is_under_way_when_the_store_closes_is_done_and_told(
    path: Path, stuck: Callable[[str], threading.Event]
) -> None:
    released = stuck("append")
    store = store_at(path)
    await store.open()
    async with listening(store) as heard:
        appending = asyncio.create_task(store.append([frame(1)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)

        released.set()
        await appending
        await closing

        assert heard == [frame(1)]


async def test_a_change_that_fails_is_no_news(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(store) as heard:
        monkeypatch.setattr("sentinel_proxy.stores.file._TRIM_FRAMES", "DELETE FROM nowhere WHERE ?")
        with pytest.raises(StoreAway, match="cannot be used: no such table: nowhere"):
            await store.append([frame(1)])
        monkeypatch.undo()
        await store.append([frame(2)])
        await eventually(lambda: heard)

        assert heard == [frame(2)]
        assert list(await store.frames()) == [frame(2)]


# Readers.


async def test_readers_are_woken_by_their_own_thread(store: EmbeddedStore) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)  # has the loop refuse whoever comes from another thread
    try:
        async with listening(store) as heard:
            await store.append([frame(1)])
            await eventually(lambda: heard)
    finally:
        loop.set_debug(False)


async def test_a_reader_that_is_much_too_slow_is_told_to_read_it_all_again(store: EmbeddedStore) -> None:
    news = store.news()
    assert await anext(news) == Resumed()

    for _ in range(2 * embedded.MOST_UNREAD):
        await store.tell(NOTE)
    await store.tell(replace(NOTE, topic="the last"))

    heard: list[News] = []
    while not heard or heard[-1] != replace(NOTE, topic="the last"):
        heard.append(await anext(news))
    assert heard[0] == Resumed()
    assert len(heard) <= embedded.MOST_UNREAD + 5


async def test_a_second_reader_takes_the_place_of_the_first(store: EmbeddedStore) -> None:
    first = store.news()
    second = store.news()

    async with asyncio.timeout(5.0):
        assert [each async for each in first] == [Resumed()]
        assert await anext(second) == Resumed()


async def test_a_store_in_a_file_says_which(store: EmbeddedStore, path: Path) -> None:
    assert repr(store) == f"<EmbeddedStore {path}>"
