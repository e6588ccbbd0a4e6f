"""
Finding where a continued text really goes on.

A model asked to continue may begin by repeating: the last words, or everything from the start.
`Seam` holds the beginning of its text back for as long as it may still be a repetition, drops
what was proven to be one, and lets everything else through unchanged. It decides after each
character, so where the network cuts does not matter.
"""

from typing import Final

TAIL_CHARS: Final = 256
"""How far back the repeated last words may begin."""

MIN_OVERLAP_CHARS: Final = 8
"""Fewer equal characters are taken for chance."""

RESTART_CHARS: Final = 60
"""So many characters like the very beginning mean that the whole text is being said again."""


class SeamError(ValueError):
    """The text began again from the start and then went another way: the two cannot be joined."""


class Seam:
    """
    Joins a second text to *sent*.

    Args:
        sent: What the reader has already; not empty.
        trims: Whether one leading space or newline goes where *sent* ends in white space: a
            model that was told to continue begins a new line of its own, one that was given
            the text to complete does not.
    """

    def __init__(self, sent: str, *, trims: bool) -> None:
        self._sent = sent
        self._trims = trims and sent[-1:].isspace()
        self._held = ""
        # Where in `sent` the held text may be a repetition from; 0 is a restart.
        self._starts = sorted({0, *range(max(0, len(sent) - TAIL_CHARS), len(sent))})
        self._overlap = 0
        self.found = False

    def push(self, text: str) -> str:
        """
        Take the next characters of the second text; return those that may be shown now.

        Raises:
            SeamError: They cannot be joined; nothing of the held text may be shown.
        """
        for at, char in enumerate(text):
            if self.found:
                return self._decided(text[at:])
            self._step(char)
        return self._decided("") if self.found else ""

    def close(self) -> str:
        """
        The second text is over; return what is still held.

        Raises:
            SeamError: It was still repeating the beginning.
        """
        if not self.found:
            if 0 in self._starts and self._overlap < len(self._sent) and len(self._held) >= RESTART_CHARS:
                raise SeamError("the continuation only repeated the beginning")
            self.found = True
        return self._decided("")

    def _step(self, char: str) -> None:
        sent, length = self._sent, len(self._held)
        alive = [start for start in self._starts if sent[start + length] == char]
        if (
            0 in self._starts
            and 0 not in alive
            and length >= RESTART_CHARS
            and not self._restarts_within_tail()
        ):
            raise SeamError("the continuation began again from the start, and went another way")
        self._held += char
        length += 1
        if any(start + length == len(sent) for start in alive) and self._means_something(length):
            self._overlap = length
        self._starts = [start for start in alive if start + length < len(sent)]
        self.found = not self._starts

    def _restarts_within_tail(self) -> bool:
        """Whether a shorter repetition has already explained what looked like a restart."""
        return self._overlap >= RESTART_CHARS

    def _means_something(self, length: int) -> bool:
        if length == len(self._sent):
            return True
        return length >= MIN_OVERLAP_CHARS and any(char.isalnum() for char in self._held[:length])

    def _decided(self, rest: str) -> str:
        text = self._held[self._overlap :] + rest
        if self._overlap:
            self._trims = False  # it took up the thread: what follows is no line of its own
        self._held, self._overlap = "", 0
        if self._trims and text:
            self._trims = False
            if text[0] in " \n":
                text = text[1:]
        return text
