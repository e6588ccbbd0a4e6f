"""
A process that writes into a state file until it is killed, and says on stdout what it may rely on.

`python embedded_writer.py FILE ROUND` prints a line for each change once the store has
acknowledged it: `incident ID VERSION`, `frames ID` (the last of three) or `breaker ERA`.
"""

import asyncio
import sys
from itertools import count
from pathlib import Path

from sentinel_proxy.clock import SystemClock
from sentinel_proxy.model import Frame
from sentinel_proxy.stores.embedded import EmbeddedStore
from sentinel_proxy.stores.records import BreakerRecord, Contribution


async def incidents(store: EmbeddedStore, name: str) -> None:
    """Begin incidents, and end each."""
    for number in count():
        id = f"{name}-{number}"
        for version, ongoing in enumerate([True, False]):
            data = b"%d" % version + b" " * 2000  # more than fits beside the next on a page
            await store.contribute(Contribution(f"outage {id}", name, id, ongoing, data), frozenset([name]))
            print("incident", id, version, flush=True)


async def frames(store: EmbeddedStore, name: str) -> None:
    """Append three frames at a time."""
    for number in count(step=3):
        ids = [f"{name}-{number + part}" for part in range(3)]
        await store.append([Frame(id, "system", "{}") for id in ids])
        print("frames", ids[-1], flush=True)


async def breakers(store: EmbeddedStore, name: str) -> None:
    """Move one breaker, from the era on that is known."""
    known = await store.breakers()
    for era in count(1 + max((record.era for record in known), default=0)):
        await store.merge_breaker(BreakerRecord("openai", None, "open", 0, era, 30.0, 0.0, 1, "", name))
        print("breaker", era, flush=True)


async def main(path: str, name: str) -> None:
    """Write until the end."""
    store = EmbeddedStore(Path(path), 10_000, 10_000, SystemClock())
    await store.open()
    await asyncio.gather(incidents(store, name), frames(store, name), breakers(store, name))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
