"""Work beside everything else: a task that begins with a context and ends with it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

CANCELLED_SECONDS: Final = 0.1
"""Between two cancellations of a task that may have missed the first."""


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Do *work* in a task of its own until the context is left, which cancels it and sees it end."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        await _end(task)


async def _end(task: asyncio.Task[None]) -> None:
    """
    Cancel *task* until it has ended.

    Once may not be enough for one that talks to a store: before Python 3.12 `asyncio.wait_for`,
    which clients of stores use, swallows a cancellation that comes as its own wait is over.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=CANCELLED_SECONDS)
