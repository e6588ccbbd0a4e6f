"""
A pause that an upstream has asked for.

A 429 comes from a provider that works and is busy with us: no failure for a breaker, whose
rest would be too long or too short. The gate stays closed for just as long as was asked.
"""

from typing import Final

UNSAID_SECONDS: Final = 5.0
"""How long we leave an upstream alone that does not say how long."""

MAX_SECONDS: Final = 300.0
"""No longer than this: a provider's slip of the pen must not ban it for a day."""


class Gate:
    """Closed for a while, then open again by itself. Times are monotonic seconds."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<Gate closed until {self._until:.3f}>" if self._until else "<Gate never closed>"

    def close(self, seconds: float | None, now: float) -> None:
        """
        Stay closed for *seconds* from now; None if the upstream gave no number.

        A shorter wish that comes later does not shorten a longer one: answers overtake each other.
        """
        asked = UNSAID_SECONDS if seconds is None else min(seconds, MAX_SECONDS)
        self._until = max(self._until, now + asked)

    def wait(self, now: float) -> float:
        """Return the seconds until it opens, 0 if it is open."""
        return 0.0 if now >= self._until else self._until - now
