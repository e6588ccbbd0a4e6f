"""
What is kept where in Redis, and how it is written; the same for scripts and for plain commands. Pure.

All keys but those of limits hold the namespace in braces: a cluster then keeps them on one server,
and one change may concern several. Limits, of which there is one a caller, spread over all.

| key | type | what |
|---|---|---|
| `{sentinel}:breakers` | hash | breaker → entry: `<told at> <kept until> <era> <JSON>` |
| `{sentinel}:lease:<name>` | sorted set | owner → when it runs out |
| `sentinel:limit:<client>` | list | when each of the admitted requests came, in microseconds; oldest first |
| `{sentinel}:events` | stream | the ring: `id`, `type`, `text` |
| `{sentinel}:told` | stream | what is news and not kept: `breaker`; or `topic`, `replica`, `data` |
| `{sentinel}:incidents` | list | ids of incidents, newest first |
| `{sentinel}:incidents:parts` | hash | id → JSON `{"key", "parts": [[contribution, replica, ongoing]...]}` |
| `{sentinel}:incidents:data` | hash | contribution → its data |
| `{sentinel}:incidents:of` | hash | contribution → id of its incident |
| `{sentinel}:incidents:latest` | hash | key → id of the latest incident about it |
| `{sentinel}:replicas` | hash | replica → `<there until> <presence>` |
| `{sentinel}:birth` | string | a name that this memory was given; if it changes, the memory was lost |

Moments are milliseconds since 1970 by the server's clock, if not said otherwise.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from sentinel_proxy.model import Frame
from sentinel_proxy.resilience.rate_limit import Decision
from sentinel_proxy.stores.records import (
    RANKS,
    BreakerRecord,
    Contribution,
    Note,
    SharedIncident,
    aged,
    kept_seconds,
)
from sentinel_proxy.wire import json

TOLD_LENGTH: Final = 1000
"""So many news wait for a reader that lost its connection; whoever missed more reads the store again."""

TOLD_SECONDS: Final = 3600
"""News that nobody has read for so long are of no use."""

SWEPT_EVERY: Final = 100
"""As often as so many breakers more are known, those that were kept long enough are forgotten."""

ENDLESS: Final = -1
"""In place of a number of milliseconds: for ever."""

NOT_UNDERSTOOD: Final = (ValueError, KeyError, TypeError)
"""What reading raises where another version has written, or another program; it is passed over."""

Fields = Mapping[bytes, bytes]


class Keys:
    """The names of all keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        home = f"{{{namespace}}}"
        self.breakers = f"{home}:breakers"
        self.events = f"{home}:events"
        self.told = f"{home}:told"
        self.incidents = f"{home}:incidents"
        self.parts = f"{home}:incidents:parts"
        self.data = f"{home}:incidents:data"
        self.of = f"{home}:incidents:of"
        self.latest = f"{home}:incidents:latest"
        self.replicas = f"{home}:replicas"
        self.birth = f"{home}:birth"
        self._lease = f"{home}:lease:"
        self._limit = f"{namespace}:limit:"

    def lease(self, name: str) -> str:
        """Return where the lease *name* is kept."""
        return self._lease + name

    def limit(self, client: str) -> str:
        """Return where the requests of *client* are kept; not with everything else."""
        return self._limit + client

    @property
    def ring(self) -> tuple[str, str, str, str, str]:
        """All that a change of the incidents may concern."""
        return self.incidents, self.parts, self.data, self.of, self.latest


# Breakers.


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds, `ENDLESS` for infinite *seconds*."""
    return ENDLESS if math.isinf(seconds) else round(seconds * 1000)


def as_kept(record: BreakerRecord) -> BreakerRecord:
    """Return *record* as it is after it was kept: in whole milliseconds."""
    return replace(
        record,
        rest_seconds=_seconds(milliseconds(record.rest_seconds)),
        since_seconds=_seconds(milliseconds(record.since_seconds)),
    )


def record_json(record: BreakerRecord) -> bytes:
    """Write all of a record that does not change while it is kept, and its era as it was told."""
    return json.dumps(
        {
            "provider": record.provider,
            "model": record.model,
            "state": record.state,
            "orders": record.orders,
            "era": record.era,
            "rest": milliseconds(record.rest_seconds),
            "since": milliseconds(record.since_seconds),
            "level": record.level,
            "reason": record.reason,
            "replica": record.replica,
        }
    )


def entry(record: BreakerRecord, now: int) -> bytes:
    """Write a record as it is kept; told at *now*."""
    kept = milliseconds(kept_seconds(record))
    until = ENDLESS if kept == ENDLESS else now + kept
    return b"%d %d %d %s" % (now, until, record.era, record_json(record))


def read_entry(data: bytes, now: int) -> BreakerRecord | None:
    """Return the record of an entry, aged to *now*; None if it was kept long enough or is not understood."""
    try:
        told_at, until, era, body = data.split(b" ", 3)
        if int(until) != ENDLESS and int(until) <= now:
            return None
        fields = json.loads(body)
        record = BreakerRecord(
            provider=fields["provider"],
            model=fields["model"],
            state=fields["state"],
            orders=int(fields["orders"]),
            era=int(era),  # a record that stands against another state is given a later one
            rest_seconds=_seconds(int(fields["rest"])),
            since_seconds=_seconds(int(fields["since"])),
            level=int(fields["level"]),
            reason=str(fields["reason"]),
            replica=str(fields["replica"]),
        )
        return aged(record, (now - int(told_at)) / 1000) if record.state in RANKS else None
    except NOT_UNDERSTOOD:
        return None


def _seconds(milliseconds: int) -> float:
    return math.inf if milliseconds == ENDLESS else milliseconds / 1000


# Events and news.


def frame_fields(frame: Frame) -> dict[str, str]:
    """Write a frame as an entry of the stream of events."""
    return {"id": frame.id, "type": frame.event_type, "text": frame.text}


def read_frame(fields: Fields) -> Frame | None:
    """Return the frame of such an entry; None if it is not understood."""
    try:
        return Frame(fields[b"id"].decode(), fields[b"type"].decode(), fields[b"text"].decode())
    except NOT_UNDERSTOOD:
        return None


def note_fields(note: Note) -> dict[str, str | bytes]:
    """Write a note as an entry of the stream of what is told."""
    return {"topic": note.topic, "replica": note.replica, "data": note.data}


def read_told(fields: Fields, now: int) -> BreakerRecord | Note | None:
    """Return what an entry of that stream tells; None if it is of no use any more, or not understood."""
    if (kept := fields.get(b"breaker")) is not None:
        return read_entry(kept, now)
    try:
        return Note(fields[b"topic"].decode(), fields[b"replica"].decode(), fields[b"data"])
    except NOT_UNDERSTOOD:
        return None


# Incidents.

Part = tuple[str, str, bool]
"""Of a contribution: its id, its replica, and whether it is ongoing there."""


def parts_json(key: str, parts: Sequence[Part]) -> bytes:
    """Write what is known of an incident but for the data."""
    return json.dumps({"key": key, "parts": parts})


def read_parts(data: bytes) -> list[Part]:
    """Return the parts of such JSON."""
    return [(id, replica, ongoing) for id, replica, ongoing, *_ in json.loads(data)["parts"]]


def read_key(data: bytes) -> bytes:
    """Return the key of such JSON."""
    key: str = json.loads(data)["key"]
    return key.encode()


def read_incident(id: str, parts: bytes, data: Mapping[bytes, bytes]) -> SharedIncident:
    """
    Return an incident.

    Args:
        data: Of its contributions, by their ids.

    Raises:
        KeyError: Some of it was lost: the server makes room by forgetting keys.
    """
    key = read_key(parts).decode()
    return SharedIncident(
        id,
        [
            Contribution(key, replica, contribution, ongoing, data[contribution.encode()])
            for contribution, replica, ongoing in read_parts(parts)
        ],
    )


def read_incidents(
    ids: Sequence[bytes], parts: Mapping[bytes, bytes], data: Mapping[bytes, bytes]
) -> Iterator[SharedIncident]:
    """Yield what is whole, and understood, of several incidents."""
    for id in ids:
        with suppress(*NOT_UNDERSTOOD):
            yield read_incident(id.decode(), parts[id], data)


# Limits.


def decisions(
    admitted: int, remaining: int, window_seconds: float, refusal: Decision, requests: int
) -> Sequence[Decision]:
    """
    Tell each of so many requests apart, the first *admitted* of which are let through.

    Args:
        remaining: That would be admitted after them.
        refusal: What the others are told.
    """
    left = range(remaining + admitted - 1, remaining - 1, -1)
    allowed = [Decision(True, refusal.limit, each, 0.0, window_seconds) for each in left]
    return [*allowed, *[refusal] * (requests - admitted)]


# Replicas.


def presence_entry(presence: bytes, until: int) -> bytes:
    """Write what a replica says of itself."""
    return b"%d %s" % (until, presence)


def read_presence(data: bytes, now: int) -> bytes | None:
    """Return it; None if the replica is not there any more, or has said what is not understood."""
    try:
        until, presence = data.split(b" ", 1)
        return presence if int(until) > now else None
    except NOT_UNDERSTOOD:
        return None
