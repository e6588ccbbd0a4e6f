"""Time that moves only when told to."""

import asyncio


class FakeClock:
    """
    A `clock.Clock` that moves only when told to.

    `sleep` notes the wish in `sleeps`, advances by it and returns after letting others run
    once, so what waits for minutes is tested in no time.
    """

    def __init__(self, monotonic: float = 1000.0, time: float = 1_772_359_200.0) -> None:
        self._monotonic = monotonic
        self._time = time
        self.sleeps: list[float] = []

    def __repr__(self) -> str:
        return f"<FakeClock {self._monotonic:.3f}>"

    def monotonic(self) -> float:
        """Return the seconds this clock shows."""
        return self._monotonic

    def time(self) -> float:
        """Return the Unix seconds this clock shows."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass; time never goes back."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._monotonic += seconds
        self._time += seconds

    async def sleep(self, seconds: float) -> None:
        """Note the wish, advance by it, and let other tasks run."""
        self.sleeps.append(seconds)
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)
