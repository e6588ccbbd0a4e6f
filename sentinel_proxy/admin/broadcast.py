"""
The live feed: what happened lately, and everybody who listens for what happens next.

One ring of frames serves all. Each subscriber keeps its place in it, so a frame is written and
stored once however many listen, and whoever publishes waits for nobody. Subscribers are woken
a few at a time, because a thousand of them at once would hold up calls. One whose frames have
left the ring unread is too slow: it is cut off, so that nobody waits for it and nothing is
lost in silence.

What was told here, in the order in which it was, and what is remembered for those who come late
are the same where a process is alone. Where replicas share a feed, all remember it in one order,
the store's, so that an id that one of them gave leads on at any other; `replica.journal` sees to
that.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sentinel_proxy.clock import Clock, utc_text
from sentinel_proxy.model import Feed, Frame
from sentinel_proxy.ulid import Ulids
from sentinel_proxy.wire.json import dumps, loads

EVENT_TYPES: Final = ("provider_status", "incident", "metrics", "heartbeat", "system")

LEAST_FRAMES: Final = 256
"""How far a subscriber may fall behind where `state.events` is smaller than that."""

WOKEN_AT_ONCE: Final = 10
"""Subscribers that are served in one round of the event loop: half a millisecond's worth of work."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take on the live feed."""

    heartbeat_seconds: float = 30.0
    """Between two heartbeats; proxies on the way cut a connection that is idle for a minute or so."""

    stall_seconds: float = 3.0
    """How long one frame may wait for a client that does not read, before the client is given up."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What is still known of the time since an id."""

    frames: list[Frame]
    missed: bool  # some are forgotten, or it cannot be told


@dataclass(frozen=True, slots=True)
class Farewell:
    """Why a connection is closed (RFC 6455 §7.4)."""

    code: int
    reason: str


RESTARTING: Final = Farewell(1012, "the proxy is going down; come back with since")
TOO_SLOW: Final = Farewell(1013, "too slow; come back with since")


class TooSlow(Exception):
    """Frames have left the ring before this subscriber asked for them."""


class Subscription:
    """
    One listener's place in the feed; `Broadcast.subscribe` makes it.

    Attributes:
        farewell: Why the feed ends for it; what is left is still handed out.
    """

    __slots__ = ("_beat", "_broadcast", "_first", "_position", "_types", "_waiter", "farewell")

    def __init__(self, broadcast: "Broadcast", types: frozenset[str], first: list[str]) -> None:
        self._broadcast = broadcast
        self._types = types
        self._first = first
        self._position = broadcast.position
        self._beat = broadcast.beat
        self._waiter: asyncio.Future[None] | None = None
        self.farewell: Farewell | None = None

    def __repr__(self) -> str:
        return f"<Subscription to {', '.join(sorted(self._types)) or 'everything'}, {self.behind} behind>"

    @property
    def behind(self) -> int:
        """How many frames it has not been given yet, wanted or not."""
        return self._broadcast.position - self._position

    async def next(self) -> list[str]:
        """
        Wait for news and return all of it, oldest first; nothing if there will be no more.

        Raises:
            TooSlow: It has come too late for some.
        """
        while not (texts := self._news()) and self.farewell is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return texts

    def _news(self) -> list[str]:
        broadcast = self._broadcast
        frames = broadcast.after(self._position)
        if self._beat is not broadcast.beat and broadcast.beat is not None:
            frames.append(broadcast.beat)
        first, self._first = self._first, []
        self._position, self._beat = broadcast.position, broadcast.beat
        return [*first, *_wanted(frames, self._types)]

    def end(self, farewell: Farewell) -> None:
        """Hand out what is left, then no more."""
        self.farewell = self.farewell or farewell
        self.wake()

    def wake(self) -> None:
        """Let `next` look for news."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Broadcast:
    """
    Publishes frames to whoever subscribes, and remembers the latest.

    Args:
        capacity: How many frames are remembered for those who come late.
        counts: Where subscribers, and frames that they were too slow for, are counted.
        mint: Names frames, given Unix seconds.

    Attributes:
        position: How many frames there were so far.
        beat: The latest heartbeat.
        ended: Whether nobody may subscribe any more.
    """

    def __init__(
        self, capacity: int, clock: Clock, counts: Feed, mint: Callable[[float], str] | None = None
    ) -> None:
        self._capacity = capacity
        self._clock = clock
        self._counts = counts
        self._mint = mint or Ulids().mint
        self._birth = self._mint(clock.time())
        self._told: deque[Frame] = deque(maxlen=1 + max(capacity, LEAST_FRAMES))
        self._remembered: dict[str, Frame] = {}
        self._before = self._birth  # the id after which everything is remembered
        self._subscriptions: dict[Subscription, None] = {}
        self._waking = False
        self._nobody_left = asyncio.Event()
        self._nobody_left.set()
        self._ask_others: Callable[[], Awaitable[None]] | None = None
        self.position = 0
        self.beat: Frame | None = None
        self.ended = False

    def __repr__(self) -> str:
        return f"<Broadcast of {self.position} frames so far to {len(self._subscriptions)}>"

    @property
    def last_id(self) -> str:
        """Where to go on from: the id of the latest frame, or one from before the first."""
        return next(reversed(self._remembered), self._before)

    @property
    def remembered(self) -> list[Frame]:
        """What those who come late are told, oldest first."""
        return list(self._remembered.values())

    def knows(self, id: str) -> bool:
        """Whether the frame of this *id* is remembered."""
        return id in self._remembered

    def frame(self, event_type: str, payload: dict[str, Any]) -> Frame:
        """Put an event that happens now into a frame; nobody is told."""
        return self._frame(self._mint(self._clock.time()), event_type, payload)

    def renamed(self, frame: Frame) -> Frame:
        """Return the same event under a new id."""
        id = self._mint(self._clock.time())
        return Frame(id, frame.event_type, dumps(loads(frame.text.encode()) | {"id": id}).decode())

    def publish(self, event_type: str, payload: dict[str, Any]) -> None:
        """Tell everybody who listens here; returns at once."""
        self.show(self.frame(event_type, payload))

    def show(self, frame: Frame) -> None:
        """Tell everybody who listens here, and remember it; returns at once."""
        self.keep(frame)
        self._tell(frame)

    def keep(self, frame: Frame) -> None:
        """Remember as the latest what was told already."""
        self._remembered.pop(frame.id, None)
        self._remembered[frame.id] = frame
        if len(self._remembered) > self._capacity:
            self._before = next(iter(self._remembered))
            del self._remembered[self._before]

    def relearn(self, frames: Sequence[Frame], unseen: Sequence[Frame]) -> None:
        """
        Remember *frames*, oldest first, in place of all that was remembered.

        Args:
            unseen: Those of them that nobody here has been told; everybody is.
        """
        forgotten = frames[: max(0, len(frames) - self._capacity)]
        first = forgotten[-1].id if forgotten else None
        if first is None and frames and frames[0].id != next(iter(self._remembered), None):
            first = self._mint(self._clock.time())  # what was before the first is not known
        self._before = first if first is not None else self._before
        self._remembered = {frame.id: frame for frame in frames[len(forgotten) :]}
        for frame in unseen:
            self._tell(frame)

    def heartbeat(self, payload: dict[str, Any]) -> None:
        """Tell everybody that we are there. It is no event: it has the last one's id and is not kept."""
        self.beat = self._frame(self.last_id, "heartbeat", payload)
        self._spread()

    def _frame(self, id: str, event_type: str, payload: dict[str, Any]) -> Frame:
        timestamp = utc_text(self._clock.time())
        whole = {"id": id, "event_type": event_type, "timestamp": timestamp, "payload": payload}
        return Frame(id, event_type, dumps(whole).decode())

    def _tell(self, frame: Frame) -> None:
        self._told.append(frame)
        self.position += 1
        self._spread()

    # Who comes late.

    def look_elsewhere(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Have *ask* awaited where an id is not known: its frame may be on its way from another replica."""
        self._ask_others = ask

    async def look_for(self, id: str | None) -> None:
        """Learn of the frame of this *id*, if anybody knows it; before `since` and `subscribe`."""
        if id is not None and id != self._before and not self.knows(id) and self._ask_others is not None:
            await self._ask_others()

    def since(self, id: str | None) -> Replay:
        """
        Return the frames after *id*, oldest first; None: all that are remembered.

        An id that is not among them (forgotten since, or never known here) gets all of it and
        is told so.
        """
        frames = self.remembered
        if id is None or id == self._before:
            return Replay(frames, missed=False)
        if id not in self._remembered:
            return Replay(frames, missed=True)
        place = next(place for place, frame in enumerate(frames) if frame.id == id)
        return Replay(frames[place + 1 :], missed=False)

    def after(self, position: int) -> list[Frame]:
        """
        Return the frames from *position* on.

        Raises:
            TooSlow: The first of them are forgotten.
        """
        count = self.position - position
        if count > len(self._told):
            raise TooSlow
        return list(islice(self._told, len(self._told) - count, None)) if count else []

    # Who listens.

    def subscribe(self, types: frozenset[str] = frozenset(), since: str | None = None) -> Subscription:
        """
        Listen from now on; `unsubscribe` on every way out.

        Args:
            types: What to hear of; empty: everything.
            since: Begin with what came after this id, without gap or repetition. If some of
                that is forgotten, a `system` frame with `missed` comes first, whatever *types*.
        """
        first: list[str] = []
        if since is not None:
            replay = self.since(since)
            missed = [self._frame(since, "system", _MISSED).text] if replay.missed else []
            first = [*missed, *_wanted(replay.frames, types)]
        subscription = Subscription(self, types, first)
        self._subscriptions[subscription] = None
        self._nobody_left.clear()
        self._counts.subscribers = len(self._subscriptions)
        return subscription

    def unsubscribe(self, subscription: Subscription, *, too_slow: bool = False) -> None:
        """Let go of *subscription*; if it was too slow, what it did not get is counted."""
        if too_slow:
            self._counts.dropped += max(1, subscription.behind)
        self._subscriptions.pop(subscription, None)
        self._counts.subscribers = len(self._subscriptions)
        if not self._subscriptions:
            self._nobody_left.set()

    async def end(self, seconds: float) -> None:
        """Let everybody have what is left and go, for at most *seconds*; nobody may come any more."""
        self.ended = True
        for subscription in self._subscriptions:
            subscription.end(RESTARTING)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._nobody_left.wait()

    def _spread(self) -> None:
        """Have everybody woken, a few in each round of the event loop."""
        if self._subscriptions and not self._waking:
            self._waking = True
            rest = iter(list(self._subscriptions))
            asyncio.get_running_loop().call_soon(self._wake_some, rest, self.position, self.beat)

    def _wake_some(self, rest: Iterator[Subscription], position: int, beat: Frame | None) -> None:
        some = list(islice(rest, WOKEN_AT_ONCE))
        for subscription in some:
            subscription.wake()
        if some:
            asyncio.get_running_loop().call_soon(self._wake_some, rest, position, beat)
            return
        self._waking = False
        if position != self.position or beat is not self.beat:  # something new came up meanwhile
            self._spread()


def _wanted(frames: list[Frame], types: frozenset[str]) -> list[str]:
    return [frame.text for frame in frames if not types or frame.event_type in types]


_MISSED: Final = {
    "level": "warning",
    "message": "some events since then are forgotten",
    "details": {},
    "missed": True,
}
