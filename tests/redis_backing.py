"""Redis as what stores keep their state in: in all the ways in which it is spoken to."""

import atexit
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from redis_support import HOST, RedisServer

from sentinel_proxy.stores.redis import RedisStore
from sentinel_proxy.testing import FakeClock

NO_SCRIPTS = ("on", "nopass", "~*", "&*", "+@all", "-@scripting")
"""What a user may do whom the server forbids scripts."""


class RedisBacking:
    """The server at *url*."""

    shared = True

    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.url = url

    def store(self, *, incidents: int = 5, events: int = 5) -> RedisStore:
        """Return another store on the server, not yet open."""
        return RedisStore(self.url, "sentinel", incidents, events, now=self.clock.time)


_standing: Final = RedisServer()
"""Of hundreds of tests, one after the other: to start a server for each takes longer than the tests do."""


async def _emptied() -> RedisServer:
    """Return a server that remembers nothing of the test before."""
    if _standing.process is None:
        await _standing.__aenter__()
        atexit.register(shutil.rmtree, _standing.unix_socket.parent, ignore_errors=True)
    await _standing.forget()
    return _standing


@asynccontextmanager
async def with_scripts(directory: Path) -> AsyncIterator[RedisBacking]:
    """Keep state in a Redis that allows everything."""
    server = await _emptied()
    yield RedisBacking(server.url)


@asynccontextmanager
async def without_scripts(directory: Path) -> AsyncIterator[RedisBacking]:
    """Keep state in a Redis that forbids scripts."""
    server = await _emptied()
    await server.tell("ACL", "SETUSER", "scriptless", *NO_SCRIPTS)
    yield RedisBacking(f"redis://scriptless:any@{HOST}:{server.port}/0")
