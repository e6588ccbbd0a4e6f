"""
The load of streams: thousands of connections, read by one loop that does next to nothing.

Every chunk is counted, every stream is followed to its end, and its end is checked: a proxy that is
quick because it loses chunks is not quick. A few streams are read the moment something comes, which
tells how long it was on its way; the others now and then, because reading costs as much as writing,
and both share a core.
"""

import math
import re
import socket
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from select import EPOLLIN, epoll
from typing import Final

from canned import END_PATH, LAST_MARK, MARK, NUMBER_DIGITS, START_PATH
from loads import NO_HEADERS, request_bytes

OPENING_SECONDS: Final = 0.001
"""Between two streams that are opened."""

PATIENCE_SECONDS: Final = 30.0
"""For all streams to begin, and for all to end."""

SAMPLED: Final = 50
"""So many streams are read at once when something comes."""

ROUND_SECONDS: Final = 0.2
"""Each of the others is read once in this time."""

TURN_SECONDS: Final = 0.005
"""The longest wait for those that are sampled before some of the others are read."""

_BUFFER: Final = bytearray(262_144)
_STAMP: Final = re.compile(rb"%b(\d{%d})" % (MARK, NUMBER_DIGITS))
_END: Final = b"\r\n0\r\n\r\n"
_FRAMING: Final = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
_LAST: Final = re.compile(rb'%b(\d{%d})".*\n\ndata: \[DONE\]\n\n\r\n' % (LAST_MARK, NUMBER_DIGITS))


@dataclass(slots=True)
class Seen:
    """What all streams of a load have brought so far."""

    chunks: int = 0
    whole: int = 0  # streams that have ended as they should
    broken: int = 0  # streams that have ended otherwise, or not at all
    delays: list[float] = field(default_factory=list)  # seconds that chunks were on their way, if sampled


class Stream:
    """One connection, with one stream after the other."""

    def __init__(self, port: int, seen: Seen, *, sampled: bool) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.sampled = sampled
        self.begun = False  # ever
        self.whole: bool | None = None  # not known before the end
        self._seen = seen

    def ask(self, request: bytes) -> None:
        """Send *request*, which is for a stream."""
        self.whole = None
        self._headless = True
        self._chunks = 0
        self._end = b""  # what has come from the mark of the last chunk on
        self.socket.send(request)

    def read(self) -> None:
        """Count what has come, and look closer where a stream begins and where it ends."""
        try:
            size = self.socket.recv_into(_BUFFER)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        came = _BUFFER.count(MARK, 0, size)
        self._chunks += came
        self._seen.chunks += came
        if self.sampled:
            now = time.monotonic_ns()
            self._seen.delays += [(now - int(stamp)) / 1e9 for stamp in _STAMP.findall(_BUFFER, 0, size)]
        if not size:
            self.whole = False
        elif self._headless or self._end or _BUFFER.find(LAST_MARK, 0, size) >= 0:
            self._look(bytes(_BUFFER[:size]))

    def _look(self, data: bytes) -> None:
        if self._headless:
            self._headless = False
            self.begun = True
            if not data.startswith(b"HTTP/1.1 200 "):
                self.whole = False
        if self._end:
            self._end += data
        elif LAST_MARK in data:
            self._end = data[data.index(LAST_MARK) :]
            self._chunks += 1
            self._seen.chunks += 1
        if self._end.endswith(_END):
            last = _LAST.fullmatch(_FRAMING.sub(b"", self._end))
            self.whole = last is not None and int(last[1]) == self._chunks


class Streams:
    """
    Connections with a stream on each. Leaving the context closes what is still open.

    Args:
        *upstream* is the port of the server behind *port*. *chunks* is how many each stream has; after
        one comes the next, and the first ones are shorter, so that their ends are spread. None: every
        stream goes on until `end`.
    """

    def __init__(
        self,
        port: int,
        upstream: int,
        count: int,
        *,
        pause_seconds: float,
        chunks: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        self.seen = Seen()
        self._port = port
        self._upstream = upstream
        self._count = count
        self._chunks = chunks
        self._pause_seconds = pause_seconds
        self._headers = headers
        self._request: bytes | None = self._asking_for(chunks)  # None: there shall be no further ones
        self._sampled: dict[int, Stream] = {}
        self._others: deque[Stream] = deque()  # whoever was read longest ago comes first
        self._others_read = time.monotonic()
        self._epoll = epoll()

    def __enter__(self) -> "Streams":
        """
        Open them; return once all have begun, which lets them go on.

        Raises:
            RuntimeError: Not all of them began.
        """
        for number in range(1, self._count + 1):
            self._open(number)
            self.read(OPENING_SECONDS)
        until = time.monotonic() + PATIENCE_SECONDS
        while (begun := sum(stream.begun for stream in self._all())) < self._count:
            if time.monotonic() > until or self.seen.broken:
                self.__exit__()
                raise RuntimeError(f"{begun} of {self._count} streams began, {self.seen.broken} broke")
            self.read(ROUND_SECONDS)
        self._tell_upstream(START_PATH)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._all():
            stream.socket.close()
        self._epoll.close()

    def read(self, seconds: float) -> None:
        """Read for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for descriptor, _ in self._epoll.poll(min(left, TURN_SECONDS)):
                if not self._goes_on(self._sampled[descriptor]):
                    del self._sampled[descriptor]
            self._read_others()

    def end(self) -> None:
        """Have the upstream end all streams, and read them to their ends."""
        self._request = None
        until = time.monotonic() + PATIENCE_SECONDS
        while self._all() and time.monotonic() < until:
            # Again and again: the last ones may have been asked for only just now.
            self._tell_upstream(END_PATH)
            self.read(ROUND_SECONDS)
        self.seen.broken += len(self._all())

    def _open(self, number: int) -> None:
        """Open a connection, and on it the stream that is *number* of all, from one on."""
        sampled = number % max(1, self._count // SAMPLED) == 0
        stream = Stream(self._port, self.seen, sampled=sampled)
        chunks = None if self._chunks is None else math.ceil(self._chunks * number / self._count)
        stream.ask(self._asking_for(chunks))
        if sampled:
            self._sampled[stream.socket.fileno()] = stream
            self._epoll.register(stream.socket, EPOLLIN)
        else:
            self._others.append(stream)

    def _tell_upstream(self, path: str) -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{self._upstream}{path}", b"").read()

    def _all(self) -> list[Stream]:
        return [*self._sampled.values(), *self._others]

    def _read_others(self) -> None:
        now = time.monotonic()
        due = int(self._count * (now - self._others_read) / ROUND_SECONDS)
        if due:
            self._others_read = now
        for _ in range(min(due, len(self._others))):
            stream = self._others.popleft()
            if self._goes_on(stream):
                self._others.append(stream)

    def _goes_on(self, stream: Stream) -> bool:
        """Read *stream*; after its end ask for another one on its connection, or close that."""
        stream.read()
        if stream.whole is None:
            return True
        self.seen.whole += stream.whole
        self.seen.broken += not stream.whole
        if stream.whole and self._request is not None:
            stream.ask(self._request)
            return True
        stream.socket.close()
        return False

    def _asking_for(self, chunks: int | None) -> bytes:
        length = "" if chunks is None else f", chunks={chunks}"
        return request_bytes(stream=True, user=f"pause={self._pause_seconds}{length}", headers=self._headers)
