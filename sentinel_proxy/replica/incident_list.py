"""The incidents of all replicas, as far as one of them knows them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sentinel_proxy.incidents.merging import decoded, linked, merged
from sentinel_proxy.model import Incident
from sentinel_proxy.stores.records import Contribution, SharedIncident, joins


def whole(id: str, parts: Sequence[Contribution]) -> Incident | None:
    """Return what *parts* come to; None if there are none that this version understands."""
    known = []
    for part in parts:
        try:
            known.append(decoded(part.data)[0])
        except ValueError:
            continue  # of a newer version, during an upgrade
    return merged(known, id) if known else None


class IncidentList:
    """
    A copy of what the store keeps, which goes on without it.

    Args:
        capacity: How many are remembered; the oldest that are over go first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._shared: dict[str, SharedIncident] = {}
        self._wholes: dict[str, Incident | None] = {}
        self._places: dict[str, str] = {}  # id of a contribution -> id of the incident it is part of

    def __len__(self) -> int:
        return len(self._shared)

    def __contains__(self, contribution: str) -> bool:
        return contribution in self._places

    def newest_first(self) -> Iterator[Incident]:
        """Return every incident; times come from several clocks, so ids make the order."""
        return (
            incident
            for _, incident in sorted(self._wholes.items(), reverse=True, key=lambda item: item[0])
            if incident is not None
        )

    def linked(self, incident: Incident) -> Incident:
        """Return *incident* with the outage it belongs to as all know that."""
        id = incident.details.get("outage")
        outage = self._wholes.get(self._places.get(id, "")) if id is not None else None
        return incident if outage is None else linked(incident, outage)

    def latest(self, key: str) -> SharedIncident | None:
        """Return the incident about *key* that began last."""
        of_key = (each for each in self._shared.values() if each.contributions[0].key == key)
        return max(of_key, key=lambda each: each.id, default=None)

    def put(self, shared: SharedIncident) -> None:
        """Take over what the store says of one incident."""
        for part in shared.contributions:
            place = self._places.get(part.id, shared.id)
            if place != shared.id:  # it was put elsewhere while nobody could be asked
                self._take_away(part.id, place)
            self._places[part.id] = shared.id
        if self._shared.get(shared.id) != shared:
            self._shared[shared.id] = shared
            self._wholes[shared.id] = whole(shared.id, shared.contributions)
        while len(self._shared) > self._capacity:
            self._drop(self._oldest())

    def learn(self, shared: Sequence[SharedIncident]) -> None:
        """Take over all that the store says, newest first; what it has forgotten is still known here."""
        for incident in reversed(shared):
            self.put(incident)

    def joined(self, ours: Contribution, alive: frozenset[str]) -> SharedIncident:
        """Return the incident that *ours* is part of, as the store would find it."""
        if ours.id in self._places:
            known = self._shared[self._places[ours.id]]
            return replace(
                known,
                contributions=tuple(ours if each.id == ours.id else each for each in known.contributions),
            )
        latest = self.latest(ours.key)
        if latest is not None and joins(ours, latest, alive):
            return replace(latest, contributions=(*latest.contributions, ours))
        return SharedIncident(ours.id, (ours,))

    def _oldest(self) -> str:
        over = (
            id for id, each in self._shared.items() if not any(part.ongoing for part in each.contributions)
        )
        return min(over, default=min(self._shared))

    def _take_away(self, contribution: str, place: str) -> None:
        known = self._shared[place]
        rest = tuple(each for each in known.contributions if each.id != contribution)
        del self._places[contribution]
        if rest:
            self._shared[place] = replace(known, contributions=rest)
            self._wholes[place] = whole(place, rest)
        else:
            self._drop(place)

    def _drop(self, id: str) -> None:
        for part in self._shared.pop(id).contributions:
            self._places.pop(part.id, None)
        del self._wholes[id]
