"""
What can go wrong with one call, as scripts that a `testing.FaultyUpstream` plays.

A fault is a function of what was asked, so that it fails in the right dialect. `well` is the
one that is none.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sentinel_proxy.drill.dialects import Dialect, Refusal
from sentinel_proxy.model import Usage
from sentinel_proxy.testing import Close, Hang, Pause, Reset, Script, Step, answer, cut, json_answer, stream

SPOKEN_TOKENS: Final = 3
"""After so many tokens a stream breaks, where it breaks in the middle."""

BREATH_SECONDS: Final = 0.1
"""Between those tokens and the break, so that the caller has them by then."""

_WEB_PAGE: Final = "<!doctype html><title>We will be back soon</title><h1>Maintenance</h1>"


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, as a simulated server understands it."""

    dialect: Dialect
    streamed: bool
    tokens: Sequence[str]  # what is left to be said
    usage: Usage

    def events(self, tokens: Sequence[str] | None = None) -> list[bytes]:
        """Return the events of a good stream, or of one that says *tokens*."""
        return self.dialect.events(self.tokens if tokens is None else tokens, self.usage)

    def begun(self, tokens: int) -> list[bytes]:
        """Return the events until so many tokens are said."""
        return self.events()[: self.dialect.opening + tokens]

    def played(self, events: Iterable[bytes]) -> Script:
        """Return the head of a stream, *events*, and the end of its framing."""
        return stream(events, headers={"content-type": self.dialect.stream_type})

    def whole(self) -> bytes:
        """Return the body of a good answer that is not streamed."""
        return self.dialect.completion("".join(self.tokens), self.usage)


Fault = Callable[[Asked], Iterable[Step]]


def well(asked: Asked) -> Script:
    """Answer what was asked."""
    if asked.streamed:
        return asked.played(asked.events())
    return answer(200, asked.whole(), {"content-type": "application/json"})


def reset(asked: Asked) -> Script:
    """Reset the connection instead of answering."""
    return [Reset()]


def hang_up(asked: Asked) -> Script:
    """Close the connection instead of answering."""
    return [Close()]


def silence(asked: Asked) -> Script:
    """Take the call and say nothing, for ever."""
    return [Hang()]


def refuse(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with an error in the words of the API."""

    def play(asked: Asked) -> Script:
        status, body = asked.dialect.refusals[refusal]
        return json_answer(status, body, headers)

    return play


def web_page(asked: Asked) -> Script:
    """Answer 200 with HTML, as whatever stands before a server that is down."""
    return answer(200, _WEB_PAGE, {"content-type": "text/html"})


def half_json(asked: Asked) -> Script:
    """Answer with half of the JSON, as if that were all of it."""
    body = asked.whole()
    return answer(200, body[: len(body) // 2], {"content-type": "application/json"})


def short_body(asked: Asked) -> Script:
    """Close the connection in the middle of the JSON."""
    script = well(asked)
    return cut(script, len(asked.whole()) // 2, Close(), of="body")


def not_a_stream(asked: Asked) -> Script:
    """Answer with whole JSON although a stream was asked for."""
    return answer(200, asked.whole(), {"content-type": "application/json"})


def empty(asked: Asked) -> Script:
    """Answer well, with nothing in it."""
    return well(Asked(asked.dialect, asked.streamed, (), asked.usage))


def breaks(by: Step | None, after: int = SPOKEN_TOKENS) -> Fault:
    """Break the stream off after so many tokens; None: it ends as if that were all."""

    def play(asked: Asked) -> Script:
        script = _then(asked, after, ())
        return script if by is None else [*script[:-1], by]

    return play


def breaks_in_tool_call(asked: Asked) -> Script:
    """Reset the connection once a tool call has begun."""
    *said, _ = asked.played(asked.dialect.tool_call)
    return [*said, Pause(BREATH_SECONDS), Reset()]


def garbles(after: int = SPOKEN_TOKENS) -> Fault:
    """Send half of an event in the place of one, and go on."""

    def play(asked: Asked) -> Script:
        event, *rest = asked.events()[asked.dialect.opening + after :]
        good = event.rstrip(b"\r\n")
        return _then(asked, after, [good[: len(good) // 2] + event[len(good) :], *rest])

    return play


def says_error(after: int = SPOKEN_TOKENS) -> Fault:
    """Say inside the stream that the server has failed."""
    return lambda asked: _then(asked, after, [asked.dialect.error_event])


def pings(every_seconds: float, after: int = SPOKEN_TOKENS) -> Fault:
    """Keep the wire alive and say nothing more."""

    def play(asked: Asked) -> Iterator[Step]:
        ping = asked.dialect.ping
        assert ping is not None
        yield from _then(asked, after, ())[:-1]
        while True:
            yield Pause(every_seconds)
            yield asked.played([ping])[1]

    return play


def _then(asked: Asked, after: int, events: Iterable[bytes]) -> Script:
    """Begin well, take a breath after so many tokens, and say *events* instead of the rest."""
    begun = asked.begun(after)
    script = asked.played([*begun, *events])
    at = 1 + len(begun)
    return [*script[:at], Pause(BREATH_SECONDS), *script[at:]] if after else script


def unterminated(asked: Asked) -> Script:
    """Leave out what ends the stream; all has been said."""
    return asked.played(asked.events()[:-1])


def slow(seconds: float) -> Fault:
    """Begin at once, and take so long to the first token (or to the whole of an answer)."""

    def play(asked: Asked) -> Script:
        script = list(well(asked))
        at = 1 + asked.dialect.opening if asked.streamed else 0
        return [*script[:at], Pause(seconds), *script[at:]]

    return play


def paced(gap_seconds: float, sent_at: list[float]) -> Fault:
    """Say one token after the other, and note when each was sent."""

    def play(asked: Asked) -> Iterator[Step]:
        loop = asyncio.get_running_loop()
        opening, tokens = asked.dialect.opening, len(asked.tokens)
        for number, step in enumerate(well(asked)):
            if opening < number <= opening + tokens:
                yield Pause(gap_seconds)
                sent_at.append(loop.time())
            yield step

    return play
