"""
Trials that replicas share: all of them together try a provider that rests as often as one alone would.

Whoever wants to try asks the store for a lease. A breaker cannot wait for the answer, so it is
refused until the lease is in hand; to have it in hand as the rest ends, it is asked for a
little ahead. A lease is short and renewed for as long as it is needed, so that it is soon free
if its holder is killed. While the store is away, each replica tries by itself.
"""

from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.replica.link import Link
from sentinel_proxy.resilience.breaker import BUSY_SECONDS, Lease
from sentinel_proxy.stores.base import StoreAway

ROUND_SECONDS: Final = 2.0
"""How often `tick` is to be called; so long before the end of a rest a lease may be asked for."""

LEASE_SECONDS: Final = 6.0
"""A lease that is not renewed for so long is free: three rounds, so that one may be late."""

KEPT_SECONDS: Final = 5.0
"""A lease in hand that no call has wanted for so long since it was asked for is given back."""

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class _Alone:
    """The lease of who has nobody to ask."""

    def give_back(self) -> None:
        """Nobody else was waiting for it."""


_ALONE: Final = _Alone()


class _Held:
    """
    A lease that this replica holds.

    Attributes:
        owner: Its name, unlike that of any other lease.
        since: When it was asked for, in monotonic seconds.
        renewed: When it was last asked for; it ends `LEASE_SECONDS` later.
        until: When its trial is lost; None while it is in hand.
    """

    __slots__ = ("_trials", "owner", "renewed", "since", "until")

    def __init__(self, trials: "Trials", owner: str, since: float) -> None:
        self._trials = trials
        self.owner = owner
        self.since = self.renewed = since
        self.until: float | None = None

    def give_back(self) -> None:
        """Keep it in hand for the next trial, if it is fresh; or else let go of it."""
        self._trials.given_back(self)


class Trials:
    """
    The leases for the trials of one breaker; a `resilience.breaker.Leases`.

    Args:
        name: Of the breaker, the same in all replicas.
        places: How many trials may be out at a time, in all replicas together.
        owners: Names for leases, each unlike any other.
        spawn: Runs what has to wait for the store, by and by.
        note: Told, before anything is held or wished, that `tick` is needed until `idle`.
    """

    def __init__(
        self,
        name: str,
        places: int,
        link: Link,
        clock: Clock,
        owners: Iterator[str],
        spawn: Spawn,
        note: Callable[["Trials"], None],
    ) -> None:
        self._name = f"trial {name}"
        self._places = places
        self._link = link
        self._clock = clock
        self._spawn = spawn
        self._note = note
        self._owners = owners
        self._held: list[_Held] = []
        self._asking = False
        self._ask_again_at = 0.0
        self._elsewhere_until = 0.0  # all places are taken, as far as we know
        self._alone_until = 0.0  # the store did not answer, so nobody is asked
        self._wanted_at: float | None = None

    def __repr__(self) -> str:
        out = sum(lease.until is not None for lease in self._held)
        return f"<Trials {self._name!r}: {out} out, {len(self._held) - out} in hand>"

    @property
    def idle(self) -> bool:
        """Whether nothing is held, and nothing is to be asked for."""
        return not self._held and self._wanted_at is None

    # What the breaker asks; at once.

    def take(self, now: float, until: float) -> Lease | None:
        """Hand out a lease that is in hand; else ask for one and return None."""
        if self._is_alone(now):
            return _ALONE
        lease = next(self._in_hand(now), None)
        if lease is None:
            self._ask(now)
        else:
            lease.until = until
        return lease

    def wait(self, now: float) -> float:
        """Return the seconds for which all places are known to be elsewhere."""
        if self._is_alone(now) or any(self._in_hand(now)):
            return 0.0
        return max(0.0, self._elsewhere_until - now)

    def foresee(self, now: float, at: float) -> None:
        """Ask for a lease a little before *at*."""
        if at - now > ROUND_SECONDS:
            self._wanted_at = at
            self._note(self)
        else:
            self._prepare(now)

    def given_back(self, lease: _Held) -> None:
        """Take *lease* into the hand again, or let go of it."""
        if lease not in self._held:
            return  # lost, or given back before
        lease.until = None
        if self._clock.monotonic() - lease.since >= KEPT_SECONDS:
            self._held.remove(lease)
            self._spawn(partial(self._release, lease))

    # What is done now and then.

    async def tick(self) -> None:
        """
        Renew what is needed, give back what is not, ask for what soon will be.

        Raises:
            StoreAway: The rest is left as it is.
        """
        now = self._clock.monotonic()
        if self._wanted_at is not None and self._wanted_at - now <= ROUND_SECONDS:
            self._wanted_at = None
            self._prepare(now)
        for lease in list(self._held):
            if lease not in self._held:
                continue  # given back while another one was renewed
            needed_until = lease.since + KEPT_SECONDS if lease.until is None else lease.until
            if now < needed_until:
                await self._renew(lease)
            else:
                self._held.remove(lease)
                await self._release(lease)

    async def leave(self) -> None:
        """Let go of everything."""
        self._wanted_at = None
        while self._held:
            await self._release(self._held.pop())

    def _is_alone(self, now: float) -> bool:
        return not self._link.up or now < self._alone_until

    def _in_hand(self, now: float) -> Iterator[_Held]:
        """Yield what is held, is not in use, and will surely be ours until the next round."""
        oldest = now + ROUND_SECONDS - LEASE_SECONDS
        return (lease for lease in self._held if lease.until is None and lease.renewed > oldest)

    def _prepare(self, now: float) -> None:
        if not self._is_alone(now) and not any(self._in_hand(now)):
            self._ask(now)

    def _ask(self, now: float) -> None:
        if not self._asking and now >= self._ask_again_at:
            self._asking = True
            self._spawn(self._asked)

    async def _asked(self) -> None:
        """Ask for a lease. A store that does not answer keeps nobody from trying."""
        now = self._clock.monotonic()
        lease = _Held(self, next(self._owners), now)
        try:
            taken_for = await self._take(lease)
        except StoreAway:
            self._alone_until = self._clock.monotonic() + KEPT_SECONDS
        else:
            if taken_for > 0:
                self._elsewhere_until, self._ask_again_at = now + taken_for, now + BUSY_SECONDS
            else:
                self._elsewhere_until = 0.0
                self._held.append(lease)
                self._note(self)
        finally:
            self._asking = False

    async def _renew(self, lease: _Held) -> None:
        now = self._clock.monotonic()
        lost = await self._take(lease) > 0  # we were away too long, and somebody else has it
        if lease not in self._held:
            await self._release(lease)  # given back meanwhile, and perhaps taken again by this
        elif lost:
            self._held.remove(lease)
        else:
            lease.renewed = now

    async def _take(self, lease: _Held) -> float:
        return await self._link.ask(
            "write",
            lambda store: store.take_lease(self._name, lease.owner, LEASE_SECONDS, self._places),
        )

    async def _release(self, lease: _Held) -> None:
        await self._link.ask("write", lambda store: store.release_lease(self._name, lease.owner))
