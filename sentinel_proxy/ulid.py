"""
Names that sort by time: ULIDs (https://github.com/ulid/spec).

48 bits of Unix milliseconds, then 80 of chance, in 26 letters that people can read out. They
are unique across restarts and replicas, and in order within one process even if its clock is
set back or stands still.
"""

import secrets
from collections.abc import Callable
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CHANCE_BITS: Final = 80


class Ulids:
    """
    Mints ULIDs, each greater than the one before.

    Args:
        randbits: Returns a random number of so many bits.
    """

    def __init__(self, randbits: Callable[[int], int] = secrets.randbits) -> None:
        self._randbits = randbits
        self._milliseconds = -1
        self._chance = 0

    def mint(self, unix_seconds: float) -> str:
        """Return the next one, for a moment that is *unix_seconds* or later."""
        milliseconds = int(unix_seconds * 1000)
        if milliseconds > self._milliseconds:
            self._milliseconds = milliseconds
            self._chance = self._randbits(_CHANCE_BITS - 1)  # one bit less: room to count up
        else:
            self._chance += 1
        number = self._milliseconds << _CHANCE_BITS | self._chance
        return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
