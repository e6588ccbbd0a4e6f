"""Who does what needs doing only once, such as asking providers for their health."""

from contextlib import suppress
from typing import Final

from sentinel_proxy.replica.link import Link
from sentinel_proxy.stores.base import StoreAway

LEASE: Final = "probes"
LEASE_SECONDS: Final = 6.0
"""Renewed every other second; when its owner is killed another replica leads after so long at most."""


class Leader:
    """
    Whether this replica leads: one of all does, while they hear of each other.

    Without the store nobody knows whether another one leads, so each does: a provider that is
    asked twice is no harm, one that nobody asks is.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._has_lease = False
        link.on_return(self.stand)

    def __repr__(self) -> str:
        return f"<Leader {'here' if self.leads else 'elsewhere'}>"

    @property
    def leads(self) -> bool:
        """Whether it falls to this one."""
        return self._has_lease or not self._link.up or not self._link.store.shared

    async def stand(self) -> None:
        """
        Take the lead if nobody has it, or keep it.

        Raises:
            StoreAway: It cannot be known; as it was before.
        """
        if self._link.store.shared:
            me = self._link.replica
            wait = await self._link.ask("write", lambda store: store.take_lease(LEASE, me, LEASE_SECONDS))
            self._has_lease = wait == 0.0

    async def tick(self) -> None:
        """Stand; call every other second. Never raises `StoreAway`."""
        with suppress(StoreAway):
            await self.stand()

    async def leave(self) -> None:
        """Make room, so that the others need not wait for the lease to end."""
        if self._has_lease:
            self._has_lease = False
            with suppress(StoreAway):
                await self._link.ask("write", lambda store: store.release_lease(LEASE, self._link.replica))
