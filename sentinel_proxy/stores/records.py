"""What stores keep, and how two replicas' news of one breaker become one truth. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

RANKS: Final = {"closed": 0, "half_open": 1, "open": 2, "isolated": 3}
"""Of two states of one era the graver one stands."""

KEPT_SECONDS: Final = 3600.0
"""The least time for which a breaker's state is of use to a replica that comes back."""


@dataclass(frozen=True, slots=True)
class BreakerRecord:
    """
    A breaker's state as replicas tell it to each other.

    Durations, not moments: the clocks of two machines are never compared. They count from when
    the record was handed over; a store ages what it keeps by its own clock.

    Attributes:
        model: None for the provider's own breaker.
        orders: How many orders of operators it has had; a later order beats every state.
        era: How many transitions it has had; of the same order the later era stands.
        rest_seconds: Until the rest or the isolation ends; 0 where nothing is to end, infinite
            where only an operator ends it.
        since_seconds: Since the transition.
        level: How often it has opened since it was last calm.
    """

    provider: str
    model: str | None
    state: str  # "closed" | "open" | "half_open" | "isolated"
    orders: int
    era: int
    rest_seconds: float
    since_seconds: float
    level: int
    reason: str
    replica: str  # who moved it

    @property
    def key(self) -> str:
        """Name the breaker: `openai`, `openai gpt-4o`; names of providers have no spaces."""
        return self.provider if self.model is None else f"{self.provider} {self.model}"


def can_be_kept(name: str) -> bool:
    """Whether a store can keep *name*: callers may send half of a surrogate pair, which is no UTF-8."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def merged(ours: BreakerRecord, theirs: BreakerRecord) -> BreakerRecord:
    """
    Return what stands of two records of one breaker; the order of the arguments does not matter.

    Operators come first, then the later era, then the graver state, then the longer rest. What
    stands is of no earlier era than either, or permits of long ago would vote again; and of a
    later one than a record of another state, for whoever held that has then seen a transition.
    """
    winner, loser = sorted((ours, theirs), key=_weight, reverse=True)
    least = loser.era + (winner.state != loser.state)
    return replace(winner, era=max(winner.era, least))


def _weight(record: BreakerRecord) -> tuple[int, int, int, float, str, float, int, str]:
    """All that two records may differ in, the decisive first; texts compare by code point."""
    return (
        record.orders,
        record.era,
        RANKS[record.state],
        record.rest_seconds,
        record.replica,
        record.since_seconds,
        record.level,
        record.reason,
    )


def aged(record: BreakerRecord, seconds: float) -> BreakerRecord:
    """Return *record* as it is *seconds* later; none pass where a clock was set back."""
    passed = max(0.0, seconds)
    return replace(
        record,
        rest_seconds=max(0.0, record.rest_seconds - passed),
        since_seconds=record.since_seconds + passed,
    )


def kept_seconds(record: BreakerRecord) -> float:
    """Return how long a store keeps *record* if nothing changes it: old outages must not come back."""
    return max(KEPT_SECONDS, 2.0 * record.rest_seconds)


@dataclass(frozen=True, slots=True)
class Contribution:
    """
    What one replica knows of an incident.

    Attributes:
        key: What the incident is about; replicas that report the same key at the same time
            speak of one incident.
        id: The replica's own name for it, a ULID.
        data: The incident as JSON; a store does not look into it.
    """

    key: str
    replica: str
    id: str
    ongoing: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class SharedIncident:
    """
    One incident as all replicas know it together.

    Attributes:
        id: The id of the contribution that began it.
        contributions: One a replica, in the order in which they came.
    """

    id: str
    contributions: Sequence[Contribution]


def joins(contribution: Contribution, latest: SharedIncident, alive: frozenset[str]) -> bool:
    """Whether a new contribution belongs to the latest incident of its key."""
    return any(each.ongoing and each.replica in alive for each in latest.contributions) and not any(
        each.replica == contribution.replica for each in latest.contributions
    )


@dataclass(frozen=True, slots=True)
class Note:
    """A message of one replica to the others, about something that is not kept."""

    topic: str
    replica: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Resumed:
    """The store was away, or has lost what it kept: read it again, and tell it what you know."""
