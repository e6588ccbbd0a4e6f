"""
What the demo looks like: 80 columns; a time, a label, a sentence.

Colours where somebody may see them, and signs that the reader's encoding has.
"""

import textwrap
from collections.abc import Mapping
from typing import Final, Literal, TextIO

from sentinel_proxy.demo.application import Outcome
from sentinel_proxy.demo.tally import Tally
from sentinel_proxy.terminal import WIDTH, Screen, Style

_LABEL_WIDTH: Final = 10
_TEXT_AT: Final = 6 + 2 + _LABEL_WIDTH + 2
_CALLS_WIDTH: Final = 16

Mark = Literal["first", "other", "both", "failed"]
_STYLES: Final[Mapping[Mark, Style]] = {"first": "good", "other": "other", "both": "warn", "failed": "bad"}
_SIGNS: Final[Mapping[Mark, str]] = {"first": "●", "other": "○", "both": "◐", "failed": "✗"}
_PLAIN_SIGNS: Final[Mapping[Mark, str]] = {"first": "*", "other": "o", "both": "%", "failed": "x"}


class Terminal(Screen):
    """Prints the timeline."""

    def __init__(self, out: TextIO, *, colour: bool) -> None:
        super().__init__(out, colour=colour, signs="".join(_SIGNS.values()) + "─")

    def rule(self, seconds: float, title: str) -> None:
        """Print a line across the page: a new scene."""
        dash = "─" if self.has_signs else "-"
        head = f"{seconds:6.1f}  {dash}{dash} {title} "
        self.print()
        self.print(self.paint(head.ljust(WIDTH, dash), "bold"))

    def line(self, seconds: float, label: str, text: str, style: Style = "plain") -> None:
        """Print one thing that happened; what is too long for a line is wrapped."""
        time, label = self.paint(f"{seconds:6.1f}", "dim"), self.paint(label.ljust(_LABEL_WIDTH), style)
        first, *more = textwrap.wrap(text, WIDTH - _TEXT_AT)
        self.print(f"{time}  {label}  {first}")
        for rest in more:
            self.print(" " * _TEXT_AT + rest)

    def calls(self, seconds: float, through: Tally, direct: Tally) -> None:
        """Print how the calls ended that nobody has been told of yet, one sign each, in two columns."""
        head = f"{seconds:6.1f}  {'calls':<{_LABEL_WIDTH}}"
        left, right = self._ended(through, _CALLS_WIDTH), self._ended(direct)
        self.print(f"{self.paint(head, 'dim')}  {left}{self.paint('without the proxy', 'dim')}  {right}")

    def sign(self, mark: Mark) -> str:
        """Return the sign of a call that ended so."""
        return self.paint((_SIGNS if self.has_signs else _PLAIN_SIGNS)[mark], _STYLES[mark])

    def _ended(self, tally: Tally, width: int = 0) -> str:
        marks = [mark_of(outcome) for outcome in tally.unshown()]
        if not marks and tally.waiting:
            return self.paint(f"{tally.waiting} waiting".ljust(width), "dim")
        return "".join(map(self.sign, marks)) + " " * (width - len(marks))


def mark_of(outcome: Outcome) -> Mark:
    """Sort a call by who answered; a call without the proxy can only be answered by the first."""
    if not outcome.ok:
        return "failed"
    if outcome.rescued_by:
        return "both"
    return "first" if outcome.provider in ("", "openai") else "other"
