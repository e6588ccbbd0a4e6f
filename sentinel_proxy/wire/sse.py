"""
Event streams: finding where one event ends and what it says.

Two steps, so that the usual case pays for neither more than it must. `EventCutter` keeps the
only state, the beginning of an event that is still on its way, and hands out whole events as
the bytes they came as. What these say is read by pure functions: `payloads` where every event
is one plain `data: ` line, as the LLM servers of this world write them, and `frames` for
everything the standard allows. What the data means is not decided here.

Source: WHATWG HTML, 9.2.5 and 9.2.6, parsing and interpreting an event stream.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""
An event longer than this is not waited for: the largest honest ones (images and audio in
base64) have a few MiB, and what has not ended by then is held in memory, once per stream.
"""

_BOM: Final = b"\xef\xbb\xbf"
_NEWLINES: Final = b"\r\n"
_EVENT_END: Final = re.compile(rb"\n\r\n|\n\n|\n\r|\r\r")
"""
A line's end and the blank line after it. In `\\r\\r\\n` the blank line is taken to end before the
LF, which then leads the next event and is dropped there: so no event waits for a LF that may
never come, and where the network cuts does not matter.
"""


class Frame(NamedTuple):
    """One event, or one block of comments, in the order of the stream."""

    raw: bytes  # as it came, its blank line included; blank lines before it are left out
    data: bytes | None  # its data lines joined with LF; None: no data, so nothing is dispatched
    name: bytes = b""  # of the event
    others: tuple[tuple[bytes, bytes], ...] = ()  # further fields; the name of a comment is b""


class EventCutter:
    """
    Cuts a stream of bytes after whole events; holds back the event that has not ended.

    Args:
        limit_bytes: The longest event that is waited for.
    """

    oversize: bool = False
    """An event has passed the limit. Feed nothing more; what was handed out before is good."""

    passes_bytes: int = -1
    """So many bytes of whole events need no cutting; -1: the next byte may not be the first of an event."""

    def __init__(self, limit_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._tail = b""  # the last two held bytes: an event's end may be cut in the middle
        self._at_start = True

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream; return the events that are whole now, as they came."""
        if self.passes_bytes < 0 or not data.endswith((b"\n\n", b"\r\n\r\n")):
            data = self._cut(data)
            self.passes_bytes = -1 if self._held_bytes or self._at_start else self._limit_bytes
        return data

    def payloads(self, data: bytes) -> list[bytes] | None:
        """
        Take the next bytes if they are whole events for `payloads`, and return what these say.

        None means that nothing was taken: `feed` must have them.
        """
        if len(data) > self.passes_bytes:
            return None
        return payloads(data)

    def close(self) -> bytes:
        """Return what the end of the stream completes; an event without its blank line is dropped."""
        held = b"".join(self._held)
        self._hold(b"")
        # A final CR is a line's end, whether or not a LF could have followed.
        return held if held.endswith(b"\n\r") else b""

    def frames(self, whole: bytes) -> Iterator[Frame]:
        """Read events that `feed` returned; stops and sets `oversize` before one beyond the limit."""
        for frame in frames(whole):
            if len(frame.raw) > self._limit_bytes:
                self.oversize = True
                return
            yield frame

    def _cut(self, data: bytes) -> bytes:
        if self._at_start:
            data = self._past_the_bom(data)
        if not self._held_bytes:
            data = data.lstrip(_NEWLINES)
        seam = len(self._tail)
        end = _last_end(self._tail + data)
        if end < 0:
            self._held.append(data)
            self._held_bytes += len(data)
            self._tail = (self._tail + data)[-2:]
            self.oversize = self._held_bytes > self._limit_bytes
            return b""
        whole = b"".join(self._held) + data[: end - seam]
        self._hold(data[end - seam :].lstrip(_NEWLINES))
        return whole

    def _hold(self, data: bytes) -> None:
        self._held = [data]
        self._held_bytes = len(data)
        self._tail = data[-2:]
        self.oversize = self.oversize or self._held_bytes > self._limit_bytes

    def _past_the_bom(self, data: bytes) -> bytes:
        """Return what follows a byte order mark; nothing while there may still be one."""
        data = b"".join(self._held) + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._hold(data)
            return b""
        self._hold(b"")
        self._at_start = False
        return data.removeprefix(_BOM)


def payloads(whole: bytes) -> list[bytes] | None:
    """
    Return the data of each event if every one is a single `data: ` line, all ended alike.

    None means that there is something else in *whole*, so `frames` must look.
    """
    if whole[:6] != b"data: ":
        return None
    if whole.find(b"\r") >= 0:
        return _payloads_of_crlf(whole)
    if whole[-2:] != b"\n\n":
        return None
    if whole.find(b"\n") == len(whole) - 2:
        return [whole[6:-2]]  # nearly always: one event a read
    found = whole[6:-2].split(b"\n\ndata: ")
    return found if whole.count(b"\n") == 2 * len(found) else None


def _payloads_of_crlf(whole: bytes) -> list[bytes] | None:
    if whole[-4:] != b"\r\n\r\n":
        return None
    found = whole[6:-4].split(b"\r\n\r\ndata: ")
    # The ends of the events account for every CR and every LF.
    return found if whole.count(b"\r") == whole.count(b"\n") == 2 * len(found) else None


def frames(whole: bytes) -> Iterator[Frame]:
    """Read whole events, as `EventCutter` cuts them, with all that the standard allows."""
    start = 0
    for match in _EVENT_END.finditer(whole):
        raw = whole[start : match.end()].lstrip(_NEWLINES)
        start = match.end()
        if raw:
            yield _frame(raw)


def event(data: bytes, name: bytes = b"") -> bytes:
    """Write one event; *data* may have several lines."""
    lines = b"".join(b"data: %b\n" % line for line in data.split(b"\n"))
    return b"event: %b\n%b\n" % (name, lines) if name else lines + b"\n"


def _frame(raw: bytes) -> Frame:
    data: list[bytes] = []
    name = b""
    others: list[tuple[bytes, bytes]] = []
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif line:
            others.append((field, value))
    return Frame(raw, b"\n".join(data) if data else None, name, tuple(others))


def _last_end(data: bytes) -> int:
    """Return the index behind the last event's end in *data*, -1 if none has ended."""
    end = data.rfind(b"\n\n")
    end = end + 2 if end >= 0 else -1
    if b"\r" not in data:
        return end
    # A CR that is the very last byte may be the first half of a CRLF: wait for what follows.
    ends = (data.rfind(b"\n\r\n") + 3, data.rfind(b"\r\r") + 2, data.rfind(b"\n\r", 0, -1) + 2)
    return max(end, *(at for at, width in zip(ends, (3, 2, 2), strict=True) if at >= width), -1)
