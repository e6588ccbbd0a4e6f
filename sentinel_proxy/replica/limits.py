"""
The rate limit of a client over all replicas: counted in the shared store, and here as well.

The one question that a call waits for. The store's count is the truth; this replica's own log
of what it has let through is what is left when no answer comes in time. A call is then let
through rather than refused: with N replicas on their own a client may make up to N times as
many calls, and never more than its limit at any one of them.
"""

from typing import Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.replica.link import Link
from sentinel_proxy.resilience.rate_limit import Decision, SlidingLog
from sentinel_proxy.stores.base import StoreAway

ADMIT_SECONDS: Final = 0.025
"""
How long a call waits for the count. A Redis nearby answers in under 1 ms, one that is busy or in
the next zone in under 10; what is above that is trouble, and three times that in a row ends it
(`link.FAILURES`): then nobody asks any more.
"""


class SharedLimit:
    """
    At most so many calls of one client in any window, over all replicas.

    Args:
        log: What this replica has let through, while the store is there and while it is not;
            also knows how long the window is.
        within_seconds: How long a call waits at most.
    """

    def __init__(
        self, log: SlidingLog, link: Link, clock: Clock, within_seconds: float = ADMIT_SECONDS
    ) -> None:
        self._log = log
        self._link = link
        self._clock = clock
        self._within_seconds = within_seconds

    def __repr__(self) -> str:
        return f"<SharedLimit over {self._link!r}>"

    async def admit(self, key: str, limit: int) -> Decision:
        """
        Decide about one call of *key* and, if it is admitted, count it.

        Where this replica alone has let as many through as all may, the answer is known without
        asking: a client that knocks without end costs the store nothing.

        Args:
            limit: Above 0.
        """
        asked = self._clock.monotonic()
        refused = self._log.refusal(key, asked, limit)
        if refused is not None:
            return refused
        window = self._log.window_seconds
        try:
            decision = await self._link.ask(
                "write", lambda store: store.admit(key, limit, window), self._within_seconds
            )
        except StoreAway:
            return self._log.admit(key, self._clock.monotonic(), limit=limit)
        if decision.allowed:
            # As of the asking: it ends here no later than in the store, so nobody is refused too long.
            self._log.note(key, asked)
        return decision
