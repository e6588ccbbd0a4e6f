"""
What follows from the names in a head, decided once.

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
