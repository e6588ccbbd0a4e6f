"""
The journal: one live feed for all replicas, in one order.

A frame goes to the store first and is shown when the store tells it, here as everywhere, so that
every replica shows all frames in the store's order and the id of any one leads on at any other.
While the store is away a frame is shown here at once and nobody else knows of it. It is told
later, under a new id: whoever comes back with the old one could have missed what happened
elsewhere meanwhile, and learns that instead of a gap. Nothing is shown twice to who was there.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice, takewhile
from typing import Final, Protocol

from sentinel_proxy.background import background
from sentinel_proxy.clock import Clock
from sentinel_proxy.events import Emit, Noticed
from sentinel_proxy.model import Frame
from sentinel_proxy.replica.link import Link
from sentinel_proxy.stores.base import StoreAway

MOST_WAITING: Final = 1000
"""Frames that are kept for a store that is away; the oldest go first."""

MOST_AT_ONCE: Final = 100
"""Frames in one command, so that it stays a short one."""

PATIENCE_SECONDS: Final = 1.0
"""For the store to keep a frame: longer than its own time-out, for nobody waits but other frames."""

OVERDUE_SECONDS: Final = 2.0
"""A frame that was kept and is not told again after so long has been lost on the way: the ring has it."""


class LocalFeed(Protocol):
    """The live feed of this process: who listens here, and what is remembered for latecomers."""

    @property
    def remembered(self) -> list[Frame]:
        """What latecomers are told, oldest first."""
        ...

    def knows(self, id: str) -> bool:
        """Whether the frame of this *id* is remembered."""
        ...

    def show(self, frame: Frame) -> None:
        """Tell everybody who listens here, and remember it."""

    def keep(self, frame: Frame) -> None:
        """Remember as the latest what was told already."""

    def relearn(self, frames: Sequence[Frame], unseen: Sequence[Frame]) -> None:
        """Remember *frames* in place of all that was remembered; tell those of them that are *unseen*."""

    def renamed(self, frame: Frame) -> Frame:
        """Return the same event under a new id."""
        ...


class Journal:
    """
    Between those who have something to tell, the store, and the live feed of this process.

    `tell` never waits. `take` and `synchronise` are for whoever reads the store's news.

    Args:
        capacity: How many frames the store remembers.

    Attributes:
        dropped: Frames that the other replicas will never see: too many came while the store was away.
    """

    def __init__(self, link: Link, feed: LocalFeed, capacity: int, clock: Clock, emit: Emit) -> None:
        self._link = link
        self._feed = feed
        self._capacity = capacity
        self._clock = clock
        self._emit = emit
        self._waiting: deque[Frame] = deque()  # not known to be kept, not shown yet
        self._alone: dict[str, Frame] = {}  # not known to be kept, shown here
        self._early: dict[str, None] = {}  # ids of what was shown here before the store told it
        self._expected: dict[str, float] = {}  # kept but not told yet, since when
        self._latest: str | None = None  # id of the last frame that the store told
        self._due = asyncio.Event()
        self._turn = asyncio.Lock()  # who talks to the store, so that frames stay in order
        self._hurried = False
        self._dropped_before = 0
        self.dropped = 0
        link.on_return(self.synchronise)

    def __repr__(self) -> str:
        return f"<Journal {len(self._waiting)} waiting, {len(self._alone)} shown here alone>"

    # What is told here.

    def tell(self, frame: Frame) -> None:
        """Have *frame* shown to everybody, soon; returns at once."""
        self._waiting.append(frame)
        if not self._link.up or self._hurried or len(self._waiting) > MOST_WAITING:
            self._show_waiting()
        self._due.set()

    def hurry(self) -> None:
        """From now on show at once what is told here: the feed is about to end, with this process."""
        self._hurried = True
        self._show_waiting()

    def _show_waiting(self) -> None:
        while self._waiting:
            frame = self._waiting.popleft()
            if not self._feed.knows(frame.id):  # else the store has told it, whatever it answered us
                self._feed.show(frame)
                self._alone[frame.id] = frame
                self._early[frame.id] = None
        while len(self._alone) > MOST_WAITING:
            del self._alone[next(iter(self._alone))]
            self.dropped += 1
        while len(self._early) > 2 * MOST_WAITING:
            del self._early[next(iter(self._early))]

    # What the store tells.

    def take(self, frame: Frame) -> None:
        """Hear from the store that *frame* is there, next after those it told before."""
        if frame.id in self._early:
            self._feed.keep(frame)
        elif not self._feed.knows(frame.id):
            self._feed.show(frame)
        self._heard_of((frame,))

    async def synchronise(self) -> None:
        """
        Read all that the store remembers, and tell it what it does not know.

        For the start, and for whenever news may have been lost.

        Raises:
            StoreAway: It has gone again; what it was not told is kept for the next time.
        """
        async with self._turn:
            frames = await self._link.ask("read", lambda store: store.frames())
            self._learn(frames)
            await self._tell_late()

    async def catch_up(self) -> None:
        """Learn what the store remembers, if it answers: somebody asks for what is not known here."""
        with suppress(StoreAway):
            await self.synchronise()

    def _learn(self, frames: Sequence[Frame]) -> None:
        """Remember in the store's order; show what came while nobody listened."""
        ids = [frame.id for frame in frames]
        place = ids.index(self._latest) + 1 if self._latest in ids else 0
        unseen = [
            frame
            for frame in frames[place:]
            if frame.id not in self._early and not self._feed.knows(frame.id)
        ]
        known = set(ids)  # what was before them is known here alone, if the store has lost its memory since
        older = takewhile(lambda frame: frame.id not in known, self._feed.remembered)
        before = [frame for frame in older if frame.id not in self._early]
        self._feed.relearn([*before, *frames][-self._capacity :], unseen)
        self._heard_of(frames)
        self._expected.clear()

    def _heard_of(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._early.pop(frame.id, None)
            self._alone.pop(frame.id, None)
            self._expected.pop(frame.id, None)
            self._latest = frame.id

    async def _tell_late(self) -> None:
        if not self._alone:
            return
        late = [self._feed.renamed(frame) for frame in self._alone.values()]
        self._alone = {frame.id: frame for frame in late}
        self._early |= dict.fromkeys(self._alone)
        for start in range(0, len(late), MOST_AT_ONCE):
            await self._append(late[start : start + MOST_AT_ONCE])
        if (dropped := self.dropped - self._dropped_before) > 0:
            self._dropped_before = self.dropped
            message = "events of the time without the state store are unknown to other replicas"
            self._emit(Noticed("warning", message, {"events": dropped}))

    # In the background.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hand over what is told until the context is left; what is told last is still tried."""
        try:
            async with background(self._run(), "journal"):
                yield
        finally:
            await self._flush()

    async def tick(self) -> None:
        """See to what was held up; call every other second. Never raises `StoreAway`."""
        overdue = self._clock.monotonic() - OVERDUE_SECONDS
        lost = any(since <= overdue for since in self._expected.values())
        if self._link.up and (self._alone or lost):
            with suppress(StoreAway):
                await self.synchronise()

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self._flush()

    async def _flush(self) -> None:
        try:
            if self._alone:
                await self.synchronise()
            while self._waiting:
                async with self._turn:
                    await self._append(list(islice(self._waiting, MOST_AT_ONCE)))
        except StoreAway:
            self._show_waiting()

    async def _append(self, frames: Sequence[Frame]) -> None:
        """Have *frames* kept, in order; they are shown once the store tells them."""
        self._expected |= dict.fromkeys((frame.id for frame in frames), self._clock.monotonic())
        try:
            await self._link.ask("write", lambda store: store.append(frames), PATIENCE_SECONDS)
        except StoreAway:
            for frame in frames:
                self._expected.pop(frame.id, None)
            raise
        kept = {frame.id for frame in frames}
        self._waiting = deque(frame for frame in self._waiting if frame.id not in kept)
        for id in kept:
            self._alone.pop(id, None)
