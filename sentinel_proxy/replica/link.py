"""
The link to a store that may be away: whoever asks is answered soon, or told at once that it is not there.

A breaker of its own, simpler than those of providers: after a few failures in a row nobody asks
any more, while one task pings until the store is back. An asker's patience ends before the
command does. The command goes on, for half a command would leave a connection in disorder, and
ends by the store's own time-out; nobody waits for it.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeVar

from sentinel_proxy.background import background
from sentinel_proxy.clock import Clock
from sentinel_proxy.events import Emit, Noticed
from sentinel_proxy.model import StateHealth
from sentinel_proxy.stores.base import Store, StoreAway

T = TypeVar("T")
Operation = Literal["read", "write"]
OnReturn = Callable[[], Awaitable[None]]

ANSWER_SECONDS: Final = 0.25
"""How long an asker waits who says nothing else; as long as a store's own time-out for one command."""

FAILURES: Final = 3
"""
So many one after the other, and the store is away. What fails together is one accident: a server
that forks holds up everybody for a moment.
"""

BYPASS_SECONDS: Final = 5.0
"""Between two pings of a store that is away."""

OPEN_SECONDS: Final = 5.0
"""For opening, which may take a store several steps, each with a time-out of its own."""

START_SECONDS: Final = 0.3
"""How long the start waits for the store, so that what it remembers is known before the first call."""

SLACK_SECONDS: Final = 0.01
"""An asker who is woken later than this was kept waiting by this process too: the command's end will tell."""

BUSY_SECONDS: Final = 0.1
"""What a busy process may add to an answer. A store that takes longer is slow in any case."""


@dataclass(slots=True)
class _Account:
    """One command, until it is known whether it was good."""

    operation: Operation
    within_seconds: float
    begun: float  # of the event loop's clock
    settled: bool = False  # it has counted already


class Link:
    """
    The one way to a store.

    The store is up once it was opened, and until three answers, one after the other, failed or
    came too late for who had asked. It is up again when it answers a ping about as
    soon as the least patient of those had wanted, or a slow store would come back every fifth
    second to be slow. That it is back is told once an answer came quite as soon, so one that is
    a little too slow comes and goes without a word.

    Args:
        state: Told whether the store is up, and of every command that failed.
        emit: Told once that the store went, and once that it is back.
        replica: This process's name, a ULID.
    """

    def __init__(self, store: Store, clock: Clock, state: StateHealth, emit: Emit, replica: str) -> None:
        self.store = store
        self.replica = replica
        self._clock = clock
        self._state = state
        self._emit = emit
        self._on_return: list[OnReturn] = []
        self._commands: set[asyncio.Task[Any]] = set()
        self._opened = False
        self._told_away = False
        self._failures = 0  # in a row, each of a command that was begun after the failure before
        self._failed_at = -math.inf  # the last of them, by the event loop's clock
        self._patience = ANSWER_SECONDS  # the least of those who met failures, until these are forgiven
        self._went = asyncio.Event()
        self._tried = asyncio.Event()
        state.kind, state.up, state.since = store.kind, False, clock.time()

    def __repr__(self) -> str:
        return f"<Link to {self.store.kind}, {'up' if self.up else 'away'}>"

    @property
    def up(self) -> bool:
        """Whether it is worth asking."""
        return self._state.up

    def on_return(self, callback: OnReturn) -> None:
        """
        Await *callback* whenever the store is there: first, or again.

        Callbacks run one after the other, as they were added, beside everything else. One that
        raises `StoreAway` will be called at the next return.
        """
        self._on_return.append(callback)

    async def ask(
        self,
        operation: Operation,
        question: Callable[[Store], Awaitable[T]],
        within_seconds: float = ANSWER_SECONDS,
    ) -> T:
        """
        Return the answer of the store to one command.

        A cancelled asker leaves a command that goes on to its end.

        Args:
            operation: Under which a failure is counted.

        Raises:
            StoreAway: It did not answer; at once while it is known to be away, else after
                *within_seconds* at the latest, of those in which this process could listen. The
                command may have been carried out all the same.
        """
        if not self.up:
            raise StoreAway(f"{self.store.kind} is away")
        now = asyncio.get_running_loop().time
        account = _Account(operation, within_seconds, now())
        command = asyncio.create_task(_answer(question, self.store), name=f"{operation} state")
        self._commands.add(command)
        command.add_done_callback(partial(self._ended, account, now))
        await asyncio.wait((command,), timeout=within_seconds)
        if not command.done() and now() - account.begun > within_seconds + SLACK_SECONDS:
            # It was this process that was late: the answer may have lain there all the while.
            await asyncio.wait((command,), timeout=within_seconds)
        if command.cancelled():
            raise StoreAway(f"{self.store.kind} was closed")
        if command.done():
            return command.result()
        if now() - account.begun <= within_seconds + SLACK_SECONDS:
            account.settled = True
            self._failed(account, _late(within_seconds), within_seconds)
        raise _late(within_seconds)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """
        Keep the store open until the context is left, which closes it.

        Entering waits a moment for the store and for `on_return`, and goes on without them.
        """
        try:
            async with background(self._keep(), "link to the store"):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._tried.wait(), START_SECONDS)
                yield
        finally:
            self._state.up = False
            await self._close()

    # What becomes of a command.

    def _ended(self, account: _Account, now: Callable[[], float], command: asyncio.Task[Any]) -> None:
        """Count how a command ended, unless it counted as late already."""
        self._commands.discard(command)
        if command.cancelled():
            return
        error = command.exception()
        if account.settled:
            return
        seconds, within_seconds = now() - account.begun, account.within_seconds
        if error is not None:
            self._failed(account, error, ANSWER_SECONDS)
        elif seconds > within_seconds + BUSY_SECONDS:
            self._failed(account, _late(within_seconds), within_seconds)
        elif seconds <= self._patience:
            self._forgive()

    def _failed(self, account: _Account, error: BaseException, patience: float) -> None:
        self._state.errors[account.operation] += 1
        self._patience = min(self._patience, patience)
        if account.begun < self._failed_at:
            return
        self._failures += 1
        self._failed_at = asyncio.get_running_loop().time()
        if self._failures >= FAILURES and self.up:
            self._gone(error)

    # Away, and back.

    async def _keep(self) -> None:
        """Open the store; whenever it went away, find out when it is back. Ends when cancelled."""
        while True:
            try:
                seconds = await self._reach()
            except StoreAway as error:
                self._gone(error)
            else:
                await self._back(seconds)
            self._tried.set()
            await self._went.wait()
            await self._clock.sleep(BYPASS_SECONDS)

    async def _reach(self) -> float:
        """Return how many seconds the store took to answer; raises `StoreAway` if that is too long."""
        now = asyncio.get_running_loop().time
        begun = now()
        seconds = self._patience + BUSY_SECONDS if self._opened else OPEN_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await _answer(_ping if self._opened else _open, self.store)
        except TimeoutError:
            raise _late(seconds) from None
        self._opened = True
        return now() - begun

    def _gone(self, error: BaseException) -> None:
        if self.up:
            self._state.up, self._state.since = False, self._clock.time()
        self._went.set()
        if not self._told_away:
            self._told_away = True
            details = {"kind": self.store.kind, "why": str(error)}
            self._emit(Noticed("warning", "the state store is away; this replica goes on alone", details))

    def _forgive(self) -> None:
        """The store was as quick as anybody wants it to be."""
        self._failures, self._patience = 0, ANSWER_SECONDS
        if self._told_away and self.up:
            self._told_away = False
            self._emit(Noticed("info", "the state store is back", {"kind": self.store.kind}))

    async def _back(self, seconds: float) -> None:
        self._failures = 0
        self._went.clear()
        self._state.up, self._state.since = True, self._clock.time()
        if seconds <= self._patience:
            self._forgive()
        await self.catch_up()

    async def catch_up(self) -> None:
        """Await every callback of `on_return`: what is known here and there may differ. Never raises."""
        for callback in self._on_return:
            try:
                await callback()
            except StoreAway:
                continue  # it went again; there will be another return
            except Exception as error:  # a mistake in one part must not end the link of all
                details = {"kind": type(error).__name__}
                self._emit(Noticed("error", "the return of the state store went wrong", details))

    async def _close(self) -> None:
        """Let go of the store; commands that are out get the time that they may take."""
        if self._commands:
            _, stuck = await asyncio.wait(set(self._commands), timeout=ANSWER_SECONDS)
            for command in stuck:
                command.cancel()
        with suppress(StoreAway, TimeoutError):
            async with asyncio.timeout(OPEN_SECONDS):
                await self.store.aclose()


def _late(seconds: float) -> StoreAway:
    return StoreAway(f"no answer within {seconds * 1000:g} ms")


async def _answer(question: Callable[[Store], Awaitable[T]], store: Store) -> T:
    """Ask; whatever else than `StoreAway` goes wrong inside a store makes it no less away."""
    try:
        return await question(store)
    except StoreAway:
        raise
    except Exception as error:  # its text may quote what was asked
        raise StoreAway(f"{store.kind} failed with {type(error).__name__}") from None


async def _open(store: Store) -> None:
    await store.open()


async def _ping(store: Store) -> None:
    await store.ping()
