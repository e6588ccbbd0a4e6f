"""Incidents as operators ask for them: filtered, newest first, a page at a time."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from sentinel_proxy.model import IncidentType


class Listed(Protocol):
    """What an incident is found by."""

    @property
    def id(self) -> str: ...
    @property
    def type(self) -> IncidentType: ...
    @property
    def provider(self) -> str | None: ...
    @property
    def timestamp(self) -> float: ...


T = TypeVar("T", bound=Listed)


def page(
    newest_first: Iterable[T],
    limit: int | None = None,
    type: IncidentType | None = None,
    provider: str | None = None,
    since: float | None = None,
    before: str | None = None,
) -> tuple[list[T], int]:
    """
    Return one page of the incidents that match, newest first, and how many match in all.

    Args:
        limit: At most so many; None: all.
        since: Unix seconds; only those that began then or later.
        before: An id; only those that are older: the last one of a page leads to the next.
    """
    matching = [
        incident
        for incident in newest_first
        if (type is None or incident.type is type)
        and (provider is None or incident.provider == provider)
        and (since is None or incident.timestamp >= since)
    ]
    older = [incident for incident in matching if before is None or incident.id < before]
    return older[:limit], len(matching)
