"""
What several replicas know of one incident, put together. Pure.

Every replica sees its own calls and, sooner or later, every breaker. So what is counted adds up,
what is listed is united, and an incident lasts until the last of those who saw it says that it is
over. The order in which the parts come does not matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sentinel_proxy.incidents.words import MESSAGES, SEVERITIES
from sentinel_proxy.model import Incident, IncidentType
from sentinel_proxy.wire.json import dumps, loads

GONE: Final = "the replica that saw it is gone"
"""What ended an incident of which nobody can tell any more: it is over since that replica's last word."""

_GREATEST: Final = frozenset(("openings", "outage_seconds"))
"""Numbers that every replica counts for all; other numbers are each one's own, and add up."""

_STATES: Final = ("closed", "half_open", "open", "isolated")  # the graver the later
_OF_OUTAGE: Final = ("affected_calls", "rescued_calls", "lost_calls")


def merged(parts: Sequence[Incident], id: str | None = None) -> Incident:
    """
    Return one incident made of *parts*, of which there is at least one, all of one type and provider.

    Args:
        id: Of the whole; that of the earliest part unless given.
    """
    parts = sorted(parts, key=lambda part: (part.timestamp, part.id))
    first = parts[0]
    lasting = [part for part in parts if part.resolved_at is None]
    last = max(parts, key=lambda part: (part.resolved_at or 0.0, part.id))
    resolved_at = None if lasting else last.resolved_at
    seconds = _duration(parts, resolved_at)
    details: dict[str, Any] = {}
    for part in parts:
        for name, value in part.details.items():
            details[name] = _joined(name, details[name], value) if name in details else value
    if "state" in details:
        states = [part.details["state"] for part in lasting or [last]]
        details["state"] = max(states, key=_gravity)
    details.pop("ended_by", None)
    if resolved_at is not None and "ended_by" in last.details:
        details["ended_by"] = last.details["ended_by"]
    return _worded(
        replace(
            first,
            id=first.id if id is None else id,
            details=details,
            resolved_at=resolved_at,
            duration_seconds=seconds,
        )
    )


def _gravity(state: str) -> int:
    return _STATES.index(state) if state in _STATES else -1


def _duration(parts: Sequence[Incident], resolved_at: float | None) -> float | None:
    """Return how long it lasted; of one part as that replica has measured it."""
    if resolved_at is None:
        return None
    if len(parts) == 1:
        return parts[0].duration_seconds
    return max(0.0, round(resolved_at - parts[0].timestamp, 3))


def _joined(name: str, one: Any, other: Any) -> Any:
    """Join two values of a detail; of two texts the first one stands."""
    if name in _GREATEST:
        return max(one, other)
    match one, other:
        case int(), int():
            return one + other
        case Mapping(), Mapping():
            return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
        case tuple(), tuple():
            return tuple(dict.fromkeys((*one, *other)))
    return one


def ended(incident: Incident, at: float, by: str = GONE) -> Incident:
    """Return *incident* as it is if nobody can say more of it than was said *at* (Unix seconds)."""
    if incident.resolved_at is not None:
        return incident
    at = max(at, incident.timestamp)
    return _worded(
        replace(
            incident,
            details={**incident.details, "ended_by": by},
            resolved_at=at,
            duration_seconds=round(at - incident.timestamp, 3),
        )
    )


def linked(incident: Incident, outage: Incident) -> Incident:
    """Return *incident* as part of *outage*; a recovery tells what the whole of that came to."""
    details = {**incident.details, "outage": outage.id}
    if incident.type is IncidentType.PROVIDER_RECOVERED:
        details |= {name: outage.details[name] for name in _OF_OUTAGE if name in outage.details}
    return replace(incident, details=details)


def _worded(incident: Incident) -> Incident:
    say = MESSAGES[incident.type]
    return replace(
        incident, message=say(incident.provider or "", incident.details, incident.duration_seconds)
    )


# As replicas tell it to each other.


def encoded(incident: Incident, now: float) -> bytes:
    """Write *incident*, and that this was known at *now* (Unix seconds)."""
    return dumps(
        {
            "id": incident.id,
            "type": incident.type.value,
            "provider": incident.provider,
            "timestamp": incident.timestamp,
            "details": dict(incident.details),
            "resolved_at": incident.resolved_at,
            "duration_seconds": incident.duration_seconds,
            "told_at": now,
        }
    )


def decoded(data: bytes) -> tuple[Incident, float]:
    """
    Read what `encoded` wrote: the incident, and when it was told.

    Raises:
        ValueError: It is of a proxy that knows other incidents than this one.
    """
    try:
        read = loads(data)
        type = IncidentType(read["type"])
        details = {name: _frozen(value) for name, value in read["details"].items()}
        incident = Incident(
            str(read["id"]),
            type,
            SEVERITIES[type],
            read["provider"],
            float(read["timestamp"]),
            "",
            details,
            read["resolved_at"],
            read["duration_seconds"],
        )
        return _worded(incident), float(read["told_at"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an incident as this version knows them ({error.__class__.__name__})") from None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
