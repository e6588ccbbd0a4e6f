"""
One small stream, cut wherever one likes, and a provider that can go on with it.

The question says where: `user` of a call is the name of a `Cut`, and the primary acts it out.
So any number of cuts go through one proxy at once, from whatever caller.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from harness import CHAT, chain

from sentinel_proxy.config import BreakerConfig, Config, RetryConfig, TimeoutsConfig
from sentinel_proxy.testing import (
    Close,
    FaultyUpstream,
    Framing,
    Received,
    Reset,
    Script,
    Send,
    cut,
    ollama_stream,
    sse,
    stream,
)

TOKENS: Final = ("One \U0001f642 ", "two.")
TEXT: Final = "".join(TOKENS)


def _event(delta: dict[str, Any], **ends: str) -> bytes:
    """As short as an event can be that every SDK reads: each byte of it is a case."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1}
    return sse({**chunk, "choices": [{"index": 0, "delta": delta, **ends}]})


EVENTS: Final = (
    _event({"role": "assistant"}),
    *(_event({"content": token}) for token in TOKENS),
    _event({}, finish_reason="stop"),
    sse("[DONE]"),
)
BREAKS: Final[dict[str, Close | Reset]] = {"fin": Close(), "rst": Reset()}
FRAMINGS: Final[tuple[Framing, ...]] = ("chunked", "close")


def whole(framing: Framing) -> Script:
    """Return the stream as it should be."""
    return stream(EVENTS, headers={"content-type": "text/event-stream"}, framing=framing)


@cache
def wire(framing: Framing) -> bytes:
    """Return every byte of it, head and framing included."""
    return b"".join(step.data for step in whole(framing) if isinstance(step, Send))


@dataclass(frozen=True, slots=True)
class Cut:
    """The stream under one framing, broken off at one byte."""

    framing: Framing
    by: str  # a key of BREAKS
    at: int

    @property
    def name(self) -> str:
        """What a call has as its `user` to be cut like this."""
        return f"{self.framing}-{self.by}-{self.at}"

    @property
    def script(self) -> Script:
        """What the primary plays."""
        return cut(whole(self.framing), self.at, BREAKS[self.by])

    @property
    def complete(self) -> bool:
        """Whether all was said: the event with the finish reason went out whole."""
        sent = wire(self.framing)
        return self.at >= sent.index(EVENTS[-2]) + len(EVENTS[-2])


def every_cut() -> list[Cut]:
    """Return a cut at every byte, by either kind of end, under either framing."""
    return [Cut(f, by, at) for f in FRAMINGS for by in BREAKS for at in range(len(wire(f)) + 1)]


def telling_cuts() -> list[Cut]:
    """Return a cut at each boundary and on either side of it, in the head and in the terminator."""
    return [Cut(f, by, at) for f in FRAMINGS for by in BREAKS for at in _boundaries(f)]


def _boundaries(framing: Framing) -> Sequence[int]:
    sent = wire(framing)
    ends = [sent.index(event) + len(event) for event in EVENTS]
    head = sent.index(b"\r\n\r\n")
    around = {end + by for end in ends for by in (-1, 0, 1)}
    return sorted(at for at in {0, 9, head, head + 4, *around, len(sent) - 2, len(sent)} if at <= len(sent))


def payload(of: Cut) -> dict[str, Any]:
    """Return the call that is cut like this."""
    return {**CHAT, "stream": True, "user": of.name}


def cuts_what_is_asked(request: Received) -> Script:
    """What the primary does."""
    framing, by, at = request.json()["user"].split("-")
    return Cut(framing, by, int(at)).script


def goes_on(request: Received) -> Script:
    """What the backup does: it completes the text it is given, and says all of it if nothing is missing."""
    last = request.json()["messages"][-1]
    said = last["content"] if last["role"] == "assistant" else ""
    rest = TEXT.removeprefix(said) or TEXT
    return ollama_stream([rest[:3], rest[3:]] if len(rest) > 3 else [rest])


def tireless(primary: FaultyUpstream, backup: FaultyUpstream | None) -> Config:
    """Return a configuration that never tires of broken streams: no breaker opens, nothing is retried."""
    primary.always(cuts_what_is_asked)
    if backup is not None:
        backup.always(goes_on)
    return chain(
        primary,
        backup,
        breaker=BreakerConfig(failure_threshold=1_000_000),
        retry=RetryConfig(attempts=1),
        timeouts=TimeoutsConfig(total=60),
    )


def told(names: Sequence[str]) -> str:
    """Return some of *names*, for the message of an assertion."""
    return f"{len(names)} cuts, among them {json.dumps(list(names[:8]))}"
