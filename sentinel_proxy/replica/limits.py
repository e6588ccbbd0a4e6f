"""
The rate limit of a client over all replicas: counted in the shared store, and here as well.

The one question that a call waits for. The store's count is the truth; this replica's own log
of what it has let through is what is left when no answer comes in time. A call is then let
through rather than refused: with N replicas on their own a client may make up to N times as
many calls, and never more than its limit at any one of them.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.replica.link import Link
from sentinel_proxy.resilience.rate_limit import Decision, SlidingLog
from sentinel_proxy.stores.base import StoreAway

ADMIT_SECONDS: Final = 0.025
"""
For one question. A Redis nearby answers in under 1 ms, one that is busy or in the next zone in
under 10; what is above that is trouble, and three times that in a row ends it (`link.FAILURES`):
then nobody asks any more. A call waits for two questions at most.
"""

Answer = asyncio.Future[Decision]


class SharedLimit:
    """
    At most so many calls of one client in any window, over all replicas.

    Calls of one client that come at once are asked about together, and so are those that come
    while a question about it is out: in the next one. The busier a client, the less a call costs.

    Args:
        log: What this replica has let through, while the store is there and while it is not;
            also knows how long the window is.
    """

    def __init__(self, log: SlidingLog, link: Link, clock: Clock) -> None:
        self._log = log
        self._link = link
        self._clock = clock
        self._waiting: dict[str, list[Answer]] = {}  # for the next question, by client
        self._asking: set[asyncio.Task[None]] = set()  # a task for each of them

    def __repr__(self) -> str:
        return f"<SharedLimit over {self._link!r}>"

    async def admit(self, key: str, limit: int) -> Decision:
        """
        Decide about one call of *key* and, if it is admitted, count it.

        Where this replica alone has let as many through as all may, the answer is known without
        asking: a client that knocks without end costs the store nothing.

        Args:
            limit: Above 0, and always the same for one client.
        """
        asked = self._clock.monotonic()
        refused = self._log.refusal(key, asked, limit)
        if refused is not None:
            return refused
        if not self._link.up:
            return self._log.admit(key, asked, limit=limit)
        try:
            decision = await self._ask(key, limit)
        except StoreAway:
            return self._log.admit(key, self._clock.monotonic(), limit=limit)
        if not decision.allowed:
            return decision
        # The store may have lost its memory. Then what was let through here while it answered counts.
        if (refused := self._log.refusal(key, self._clock.monotonic(), limit)) is not None:
            return refused
        # As of the asking: it ends here no later than in the store, so nobody is refused too long.
        self._log.note(key, asked)
        return decision

    def _ask(self, key: str, limit: int) -> Answer:
        """Return what will be the answer about one call; `StoreAway` if there is none."""
        answer: Answer = asyncio.get_running_loop().create_future()
        if (waiting := self._waiting.get(key)) is not None:
            waiting.append(answer)
            return answer
        self._waiting[key] = [answer]
        asking = asyncio.create_task(self._ask_on(key, limit), name="ask for a rate limit")
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        return answer

    async def _ask_on(self, key: str, limit: int) -> None:
        """Ask about all who wait, until nobody does; without an answer nobody is to wait any longer."""
        answers: list[Answer] = []
        try:
            while answers := self._waiting[key]:
                self._waiting[key] = []
                decisions = await self._question(key, limit, len(answers))
                for answer, decision in zip(answers, decisions, strict=True):
                    if not answer.done():  # its caller may have left
                        answer.set_result(decision)
        except StoreAway as away:
            for answer in (*answers, *self._waiting[key]):
                if not answer.done():
                    answer.set_exception(away)
        finally:
            del self._waiting[key]

    async def _question(self, key: str, limit: int, calls: int) -> Sequence[Decision]:
        window = self._log.window_seconds
        return await self._link.ask(
            "write", lambda store: store.admit(key, limit, window, calls), ADMIT_SECONDS
        )
