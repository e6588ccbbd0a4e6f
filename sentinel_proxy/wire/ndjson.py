"""
Newline-delimited JSON: bytes in, whole lines out.

Only the framing lives here; what a line says is for whoever asked for it. Lines are found by
byte 0x0A alone. Unicode's other line ends (U+0085, U+2028) may stand raw inside a JSON string,
and a read may end inside a character, so nothing is decoded before its line is whole.
https://github.com/ndjson/ndjson-spec
"""

from typing import Final

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Twice what Ollama itself accepts from its runner as one event."""

_BLANK: Final = b" \t\r"


class LineSplitter:
    """
    Splits a body into lines, from any cut of its bytes.

    Blank lines are left out and trailing carriage returns removed. A line longer than
    *max_line_bytes* sets `too_long` and ends the splitting: what came before it was returned,
    nothing after it will be. At most one line, or what is too much of it, is kept in memory.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.too_long = False
        self._max_line_bytes = max_line_bytes
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    def __repr__(self) -> str:
        return f"<LineSplitter holding {self._held_bytes} bytes>"

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the lines that are whole now."""
        lines: list[bytes] = []
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._hold(end)
            if self.too_long:
                return lines
            line = self._release()
            if line:
                lines.append(line)
        self._hold(rest)
        return lines

    def close(self) -> bytes:
        """The body has ended: return its last line if it lacks a newline, else `b""`."""
        return b"" if self.too_long else self._release()

    def _hold(self, piece: bytes) -> None:
        self._held_bytes += len(piece)
        self.too_long = self.too_long or self._held_bytes > self._max_line_bytes
        if self.too_long:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _release(self) -> bytes:
        line = b"".join(self._pieces)
        self._pieces.clear()
        self._held_bytes = 0
        return line.rstrip(b"\r") if line.strip(_BLANK) else b""
