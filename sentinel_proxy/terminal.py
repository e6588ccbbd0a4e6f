"""
What our pages in a terminal have in common: 80 columns, and colours where somebody may see them.

Knows of styles and of nothing that is printed in them; the demo and the drill build on it.
"""

from collections.abc import Mapping
from typing import Final, Literal, TextIO

WIDTH: Final = 80

Style = Literal["plain", "bold", "dim", "good", "other", "warn", "bad"]
_SGR: Final[Mapping[Style, str]] = {
    "bold": "1",
    "dim": "2",
    "good": "32",
    "other": "36",
    "warn": "33",
    "bad": "1;31",
}


def wants_colour(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to colour what goes to *out*: a terminal, unless NO_COLOR (no-color.org) or TERM object."""
    return out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Screen:
    """
    Prints lines, at once. Where nobody reads any more it falls silent.

    Args:
        signs: What is printed beyond ASCII, if the reader's encoding has all of it.

    Attributes:
        gone: Whether the reader has left (a closed pipe).
        has_signs: Whether the encoding has them.
    """

    def __init__(self, out: TextIO, *, colour: bool, signs: str = "") -> None:
        self.gone = False
        self.has_signs = _can_say(signs, out)
        self._out = out
        self._colour = colour

    def print(self, text: str = "") -> None:
        """Print *text* as it is."""
        if self.gone:
            return
        try:
            print(text, file=self._out, flush=True)
        except BrokenPipeError:
            self.gone = True

    def paint(self, text: str, style: Style) -> str:
        """Return *text* in *style*, or as it is where there are no colours."""
        return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if self._colour and style in _SGR else text


def _can_say(text: str, out: TextIO) -> bool:
    try:
        text.encode(getattr(out, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
