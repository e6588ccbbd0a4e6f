"""How the calls of the demo ended, with the proxy and without."""

from dataclasses import dataclass, field

from sentinel_proxy.demo.application import Outcome


@dataclass(slots=True)
class Tally:
    """The calls that went one way."""

    begun: int = 0
    outcomes: list[Outcome] = field(default_factory=list)  # in the order in which the calls ended
    _shown: int = 0

    def unshown(self) -> list[Outcome]:
        """Return what has ended since this was last asked."""
        fresh = self.outcomes[self._shown :]
        self._shown = len(self.outcomes)
        return fresh

    @property
    def waiting(self) -> int:
        """How many calls have no end yet."""
        return self.begun - len(self.outcomes)

    @property
    def good(self) -> list[Outcome]:
        """The calls that got a complete and right answer."""
        return [outcome for outcome in self.outcomes if outcome.ok]

    @property
    def failed(self) -> int:
        """How many calls did not."""
        return len(self.outcomes) - len(self.good)
