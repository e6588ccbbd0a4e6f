"""A process that is killed while it writes takes nothing with it that it was promised."""

import asyncio
import random
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import embedded_writer
import pytest
from stores_support import opened

from sentinel_proxy.clock import SystemClock
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.stores.embedded import EmbeddedStore

pytestmark = pytest.mark.anyio

ROUNDS: Final = 6


@asynccontextmanager
async def writer(path: Path, name: str) -> AsyncIterator[Process]:
    """Run a process that writes into *path*; it is killed in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, embedded_writer.__file__, path, name, stdout=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def killed_after(process: Process, lines: int) -> list[list[str]]:
    """Kill *process* once it has said so many things; return all that it said, each in words."""
    assert process.stdout is not None
    said = [await process.stdout.readline() for _ in range(lines)]
    process.kill()
    said += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    return [line.decode().split() for line in said if line.endswith(b"\n")]


def store_at(path: Path) -> EmbeddedStore:
    return EmbeddedStore(path, 10_000, 10_000, SystemClock())


async def test_what_was_acknowledged_survives_being_killed_in_the_middle_of_writes(tmp_path: Path) -> None:
    chance, path = random.Random(), tmp_path / "state.db"
    versions: dict[str, int] = {}
    frames: list[str] = []
    era = 0

    for number in range(ROUNDS):
        async with writer(path, f"{number}") as process:
            for kind, what, *version in await killed_after(process, chance.randrange(1, 100)):
                if kind == "incident":
                    versions[what] = int(*version)
                elif kind == "frames":
                    frames.append(what)
                else:
                    era = int(what)

        async with opened(store_at(path)) as store:  # which looks whether the file is sound
            kept = {
                contribution.id: contribution
                for incident in await store.incidents()
                for contribution in incident.contributions
            }
            assert all(int(kept[id].data) >= version for id, version in versions.items())
            assert all(each.ongoing is (int(each.data) == 0) for each in kept.values())
            ids = [frame.id for frame in await store.frames()]
            assert [id for id in ids if id in set(frames)] == frames
            assert [id.rpartition("-")[2] for id in ids[2::3]] == [last(id) for id in ids[::3]], "torn apart"
            assert max((record.era for record in await store.breakers()), default=0) >= era

    assert versions
    assert frames
    assert era


def last(first: str) -> str:
    """Return the number of the last of the three frames that *first* begins."""
    return f"{int(first.rpartition('-')[2]) + 2}"


async def test_a_file_is_of_one_process_at_a_time_until_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = store_at(path)

    async with writer(path, "A") as process:
        assert process.stdout is not None
        await process.stdout.readline()
        with pytest.raises(StoreAway, match=r"state\.db is in use by another process"):
            await store.open()
        with pytest.raises(StoreAway, match="is not open"):
            await store.ping()
        await killed_after(process, 5)

    async with opened(store):
        await store.ping()
        assert await store.frames()


async def test_a_file_that_was_killed_is_sound_to_others_too(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with writer(path, "A") as process:
        await killed_after(process, 50)

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
