"""
Events that are the one before again, but for a few strings.

In a stream nearly every event has the same bytes but for the word that it says. What one of them
means has been found out; of the next ones, only the strings that differ need be read. A
`Template` is what is the same, and says of an event whether it is of that kind:

    data: {"id":"1","choices":[{"delta":{"content":" word"}}],"padding":"Zx"}
    |--------------- before ----------------------|     |-- between --|  |--| after

It is never a guess. A template is kept only if the event with *other* strings in these places
parses to the same object with those strings, so the bytes before each are where a parser expects
a value, and what stands around the places means the same whatever JSON string stands in them.
And whether one JSON string stands there, from quote to quote, a parser says. Where any of this
fails the answer is None, and whoever asked reads the event in full.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add, getitem
from typing import Any, Final

import orjson

from sentinel_proxy.wire import sse
from sentinel_proxy.wire.json import dumps, loads

_OTHERWISE: Final = "?"
"""Makes another string of any string, when it is put behind it."""


class Template:
    """
    What events share that differ in one string, or in two; made by `template`.

    Args:
        before: From the beginning of the event to the quote that opens the first string.
        between: From the quote that closes it to the one that opens the second; `b""`: there is none.
        after: From the quote that closes the last string to the end of the event.
    """

    __slots__ = ("_after", "_before", "_between")

    def __init__(self, before: bytes, between: bytes, after: bytes) -> None:
        self._before = before
        self._between = between
        self._after = after

    def strings(self, events: bytes) -> list[str] | None:
        """
        Return the first string of each event, in order, if all of *events* are whole and of this kind.

        None means that there is something else among them, or that a string is empty.
        """
        rest = events.removeprefix(self._before)
        varying = rest.removesuffix(self._after)
        if rest == events or varying == rest:
            return None
        insides = [varying]
        if varying.find(b"\n") >= 0:  # which is in no JSON string, but in every end of an event
            insides = varying.split(self._after + self._before)
        strings = []
        try:
            for inside in insides:
                if self._between:
                    inside = self._first(inside)
                if not inside:
                    return None
                strings.append(orjson.loads(b'"%b"' % inside))
        except ValueError:
            return None
        return strings

    def _first(self, inside: bytes) -> bytes:
        """Return the first of two; ValueError: there are not two."""
        first, separator, second = inside.partition(self._between)
        if not separator:
            raise ValueError("only one")
        orjson.loads(b'"%b"' % second)
        return first


def template(event: bytes, parsed: Any, *places: Sequence[str | int]) -> Template | None:
    """
    Return what *event* shares with those that differ from it in the strings at *places*.

    Args:
        event: One whole event, as it came.
        parsed: What it says; is changed.
        places: One or two, in the order in which they stand there; each the keys and indices that
            lead to a string in *parsed*.

    Returns:
        None where it is not certain which bytes of *event* are these strings.
    """
    parts, others, at = [], [], 0
    try:
        for *way, key in places:
            holder = reduce(getitem, way, parsed)
            literal = dumps(holder[key])
            start = event.index(literal, event.index(dumps(key), at))
            parts.append(event[at:start])
            at = start + len(literal)
            holder[key] += _OTHERWISE
            others.append(dumps(holder[key]))
        other = b"".join(map(add, parts, others)) + event[at:]
        if [loads(payload) for payload in sse.payloads(other) or ()] != [parsed]:
            return None
    except ValueError:  # they are written in another way than we do, or are not the first of their kind
        return None
    before, *between = parts
    return Template(before + b'"', b"".join(b'"%b"' % part for part in between), b'"' + event[at:])
