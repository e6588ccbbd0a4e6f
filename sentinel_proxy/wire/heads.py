"""
What follows from a head: from its names, decided once, and from what `Connection` says.

The same programs send the same names in the same order again and again; only the values differ.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Final, TypeVar, TypeVarTuple

from sentinel_proxy.model import Header, Headers

MOST_NAMES: Final = 64
"""More than honest programs send; what follows from more is not remembered, however often they come."""

HEADS: Final = 64
"""Remembered for each question. A head is bounded by whoever reads it, so this is a few MB at most."""

_ORDINARY: Final = (b"keep-alive", b"close")

Names = tuple[bytes, ...]
_name: Callable[[Header], bytes] = itemgetter(0)
Ts = TypeVarTuple("Ts")
T = TypeVar("T")


def by_names(decide: Callable[[Names, *Ts], T]) -> Callable[[Headers, *Ts], T]:
    """Let *decide*, which looks at names alone, be asked about whole heads, and remember what it says."""
    remembered = lru_cache(HEADS)(decide)

    def decided(headers: Headers, *more: *Ts) -> T:
        names = tuple(map(_name, headers))
        if len(names) > MOST_NAMES:
            return decide(names, *more)
        return remembered(names, *more)  # all that is asked can be hashed

    return decided


def lists_others(connection: bytes) -> bool:
    """Whether a `Connection` of this value may name other headers as its hop's own (RFC 9110 §7.6.1)."""
    return connection.lower() not in _ORDINARY


def without_listed(headers: Headers) -> list[Header]:
    """Leave out `Connection` and every header that it names."""
    listed = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return [pair for pair in headers if pair[0] != b"connection" and pair[0] not in listed]
