"""
Numbers that several processes count together: each in a room of its own, and everybody reads all.

The board is anonymous memory, made before the processes are forked. It has no file to find
room for, to clean up or to lose; what a killed process had counted stays, and whoever takes its
place counts on from there. A process on its own has the same `Numbers`, outside of any board.

Adding to a number is one addition in memory: no lock, since one thread of one process writes
it, and no torn reads, since eight aligned bytes are written at once.
"""

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

ROOM_BYTES: Final = 4 << 20
"""Some 30 000 series. Memory that nobody has written to costs nothing."""

_WORD: Final = 8
_USED, _ALIVE, _FIRST = 0, 1, 2  # words: how many are in use, whether its process lives, the first record
_NOTHING: Final = memoryview(b"")

Cells: TypeAlias = "memoryview[float] | array[float]"
"""Where numbers stand: in a room, or in private memory."""


class Board:
    """Rooms for *processes* processes, numbered from 0."""

    def __init__(self, processes: int, room_bytes: int = ROOM_BYTES) -> None:
        self._memory = memoryview(mmap.mmap(-1, processes * room_bytes))
        self._rooms = [
            self._memory[number * room_bytes : (number + 1) * room_bytes] for number in range(processes)
        ]

    def numbers(self, process: int) -> "Numbers":
        """Enter the room of *process*: the numbers that are there go on. One process at a time."""
        return Numbers(self._rooms[process], [*self._rooms[:process], *self._rooms[process + 1 :]])

    def left(self, process: int) -> None:
        """Note that *process* has ended: what it counted stays, what was true of it then does not."""
        self._rooms[process].cast("q")[_ALIVE] = 0


@dataclass(frozen=True, slots=True)
class Said:
    """What one process says: its numbers by their key."""

    alive: bool
    numbers: Mapping[str, Sequence[float]]


class Numbers:
    """
    The numbers of one process, each some cells under a key; they begin at 0.

    Args:
        room: Where siblings see them; by default they are private. What finds no room is
            private too: counted, but seen by this process alone.
        siblings: The rooms of the others.
    """

    def __init__(self, room: memoryview = _NOTHING, siblings: Sequence[memoryview] = ()) -> None:
        self._room, self._siblings = room, siblings
        self._words, self._doubles = room.cast("q"), room.cast("d")
        self._private = array("d")
        self._places: dict[str, tuple[Cells, int, int]] = {}
        if self._words:
            self._words[_USED] = self._words[_USED] or _FIRST
            self._places = {key: (self._doubles, at, size) for key, at, size in _records(room)}
            self._words[_ALIVE] = 1

    def __repr__(self) -> str:
        return f"<Numbers: {len(self._places)} of our own, {len(self._siblings)} siblings>"

    def cells(self, key: str, size: int = 1) -> tuple[Cells, int]:
        """Return where the *size* cells of *key* are: a sequence, and the index of the first in it."""
        if key not in self._places:
            self._places[key] = (*(self._in_room(key, size) or self._in_private(size)), size)
        cells, at, _ = self._places[key]
        return cells, at

    def keys(self) -> KeysView[str]:
        """Return the keys that this process has cells under."""
        return self._places.keys()

    def everyone(self) -> Iterator[Said]:
        """Yield what each process says: this one first, then its siblings, also those that have ended."""
        places = self._places.items()
        yield Said(True, {key: _read(*place) for key, place in places})
        for room in self._siblings:
            doubles = room.cast("d")
            said = {key: _read(doubles, at, size) for key, at, size in _records(room)}
            yield Said(bool(room.cast("q")[_ALIVE]), said)

    def _in_private(self, size: int) -> tuple[Cells, int]:
        at = len(self._private)
        self._private.extend([0.0] * size)
        return self._private, at

    def _in_room(self, key: str, size: int) -> tuple[Cells, int] | None:
        """Write a record: its sizes, its key, its cells. It counts once it is whole."""
        if not self._words:
            return None
        name = key.encode()
        begin = self._words[_USED]
        at = begin + 1 + _words_for(len(name))
        if at + size > len(self._words):
            return None
        self._room[(begin + 1) * _WORD : (begin + 1) * _WORD + len(name)] = name
        for cell in range(at, at + size):
            self._doubles[cell] = 0.0
        self._words[begin] = size << 32 | len(name)
        self._words[_USED] = at + size
        return self._doubles, at


def _records(room: memoryview) -> Iterator[tuple[str, int, int]]:
    """Yield every record of *room*: its key, the index of its first cell, and how many there are."""
    words = room.cast("q")
    begin, end = _FIRST, words[_USED]
    while begin < end:
        size, length = words[begin] >> 32, words[begin] & 0xFFFFFFFF
        name = room[(begin + 1) * _WORD : (begin + 1) * _WORD + length]
        at = begin + 1 + _words_for(length)
        yield str(name, "utf-8"), at, size
        begin = at + size


def _read(cells: Cells, at: int, size: int) -> list[float]:
    return list(cells[at : at + size])


def _words_for(length: int) -> int:
    return -(-length // _WORD)


class Counter:
    """A number that only grows."""

    __slots__ = ("_at", "_cells")

    def __init__(self, numbers: Numbers, key: str) -> None:
        self._cells, self._at = numbers.cells(key)

    def inc(self, amount: float = 1.0) -> None:
        """Add *amount*; not negative."""
        self._cells[self._at] += amount


class Histogram:
    """
    How often values fell between the *bounds*, and their sum.

    Its cells are the sum, then one for each bound (values up to it, above the one before), then
    one for what is above them all.
    """

    __slots__ = ("_at", "_bounds", "_cells")

    def __init__(self, numbers: Numbers, key: str, bounds: Sequence[float]) -> None:
        self._bounds = tuple(map(float, bounds))  # what is compared with floats all the time
        self._cells, self._at = numbers.cells(key, len(bounds) + 2)

    def observe(self, value: float) -> None:
        """Count *value*."""
        cells, at = self._cells, self._at
        cells[at] += value
        cells[at + 1 + bisect_left(self._bounds, value)] += 1.0
