"""
Who is there, and what each has counted: every replica says so every other second.

Numbers are summed when somebody asks, one's own as they are now and those of the others as they
last said. Whoever falls silent is taken for gone, and its numbers go with it: for counters that
never go back there is `/metrics`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sentinel_proxy.replica.link import Link
from sentinel_proxy.stores.base import StoreAway
from sentinel_proxy.wire.json import dumps, loads

ALIVE_SECONDS: Final = 6.0
"""How long a word holds: two of three may get lost."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What one replica has counted since its start, and what it is doing now."""

    uptime_seconds: float = 0.0
    requests: int = 0
    successes: int = 0
    failures: int = 0
    failovers: int = 0
    rescues: int = 0
    hedges: int = 0
    shed: int = 0
    rate_limited: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # that the successes took, summed
    in_flight: int = 0
    open_streams: int = 0
    subscribers: int = 0

    @property
    def average_latency_ms(self) -> float | None:
        """Mean time of a successful call; None before there was one."""
        return round(self.seconds * 1000 / self.successes, 1) if self.successes else None


def summed(tallies: Iterable[Tally]) -> Tally:
    """Return what *tallies* come to together; the uptimes as well, which mean nothing then."""
    known = list(tallies)
    return Tally(**{field.name: sum(getattr(each, field.name) for each in known) for field in fields(Tally)})


def _read(said: bytes) -> Tally:
    """Read what a replica said, as far as this version understands it."""
    try:
        numbers = loads(said)
    except ValueError:
        numbers = None
    if not isinstance(numbers, dict):
        return Tally()
    names = [each.name for each in fields(Tally)]
    known: dict[str, Any] = {
        name: numbers[name] for name in names if isinstance(numbers.get(name), int | float)
    }
    return Tally(**known)


class Presence:
    """
    The replicas that are there.

    Args:
        own: Returns what this one has counted.
    """

    def __init__(self, link: Link, own: Callable[[], Tally]) -> None:
        self._link = link
        self._own = own
        self._others: Mapping[str, Tally] = {}
        self._alive = frozenset[str]()
        link.on_return(self.beat)

    def __repr__(self) -> str:
        return f"<Presence of {len(self._alive) or 'nobody we know of'}>"

    @property
    def alive(self) -> frozenset[str]:
        """Who is there, this one included; nobody as long as that cannot be known."""
        return self._alive if self._link.up else frozenset()

    @property
    def others(self) -> Mapping[str, Tally]:
        """What the others have counted, by their names; none while they cannot be heard."""
        return self._others if self._link.up else {}

    async def beat(self) -> None:
        """
        Say that this one is there, and hear who else is.

        Raises:
            StoreAway: It was not heard.
        """
        me, store = self._link.replica, self._link.store
        if not store.shared:
            self._alive = frozenset((me,))
            return
        said = dumps(asdict(self._own()))
        heard = await self._link.ask("write", lambda store: store.beat(me, said, ALIVE_SECONDS))
        self._alive = frozenset((me, *heard))
        self._others = {name: _read(said) for name, said in sorted(heard.items()) if name != me}

    async def tick(self) -> None:
        """Beat; call every other second. Never raises `StoreAway`."""
        with suppress(StoreAway):
            await self.beat()

    async def leave(self) -> None:
        """Say that this one goes, so that the others need not wait for its silence."""
        if self._link.store.shared:
            with suppress(StoreAway):
                await self._link.ask("write", lambda store: store.leave(self._link.replica))
