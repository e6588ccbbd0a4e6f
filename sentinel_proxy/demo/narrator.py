"""
Tells what the proxy reports: one line an event, in words of people.

Listens to the bus like the log does. What repeats is told once: that calls pass by a resting
provider is said when it begins to rest, not at each call.
"""

from collections.abc import Callable, Mapping
from typing import Final

from sentinel_proxy.demo.terminal import Terminal
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFailedOver,
    CallFinished,
    CallRetried,
    StreamRescued,
)
from sentinel_proxy.terminal import Style

_FAILURES: Final[Mapping[FailureKind, str]] = {
    FailureKind.OVERLOADED: "says that it is overloaded",
    FailureKind.CONNECT: "refuses the connection",
    FailureKind.CONNECT_TIMEOUT: "does not take the connection",
    FailureKind.RESET: "resets the connection",
    FailureKind.TRUNCATED: "breaks off before the first word",
    FailureKind.TIMEOUT: "says nothing",
}


class Narrator:
    """
    Turns events into lines.

    Args:
        seconds: Tells how long the demo has been going on.

    Attributes:
        opened: How often a breaker has opened.
        visitors: Whether calls are told of one by one, as when the reader tries it.
    """

    def __init__(self, terminal: Terminal, seconds: Callable[[], float]) -> None:
        self.opened = 0
        self.visitors = False
        self._terminal = terminal
        self._seconds = seconds

    def listen(self, bus: Bus) -> None:
        """Subscribe to everything worth a line."""
        bus.subscribe(AttemptFailed, self._attempt_failed)
        bus.subscribe(CallRetried, self._call_retried)
        bus.subscribe(CallFailedOver, self._call_failed_over)
        bus.subscribe(StreamRescued, self._stream_rescued)
        bus.subscribe(BreakerChanged, self._breaker_changed)
        bus.subscribe(CallFinished, self._call_finished)

    def _line(self, label: str, text: str, style: Style = "plain") -> None:
        self._terminal.line(self._seconds(), label, text, style)

    def _attempt_failed(self, event: AttemptFailed) -> None:
        what = _FAILURES.get(event.kind, f"fails: {event.message}")
        waited = f" for {event.seconds:.1f} s" if event.kind is FailureKind.TIMEOUT else ""
        self._line(event.label, f"{event.provider} {what}{waited}", "bad")

    def _call_retried(self, event: CallRetried) -> None:
        pause = f"after {event.pause_seconds * 1000:.0f} ms"
        self._line("retry", f"{event.provider} is asked once more, {pause}", "warn")

    def _call_failed_over(self, event: CallFailedOver) -> None:
        if event.reason != "open":
            self._line("failover", f"{event.target} answers instead of {event.source}", "other")

    def _stream_rescued(self, event: StreamRescued) -> None:
        broke = f"{event.source} broke off at character {event.at_chars}"
        if event.result == "continued":
            self._line("rescue", f"{broke}; {event.target} goes on from there", "warn")
        else:
            self._line("rescue", f"{broke}; nobody could go on", "bad")

    def _breaker_changed(self, event: BreakerChanged) -> None:
        who = event.provider if event.model is None else f"{event.provider} ({event.model})"
        match event.after:
            case "open":
                self.opened += 1
                self._line(
                    "breaker", f"OPENED: {who} rests {event.rest_seconds:.0f} s; calls pass it by", "bad"
                )
            case "half_open":
                self._line("breaker", f"HALF-OPEN: one call may try {who} again", "warn")
            case "closed":
                self._line("breaker", f"CLOSED: {who} answers; calls go there again", "good")
            case other:
                self._line("breaker", f"{other.upper()}: {who}, {event.reason}", "warn")

    def _call_finished(self, event: CallFinished) -> None:
        if self.visitors:
            who = event.provider or "nobody"
            style: Style = "good" if event.status == 200 else "bad"
            self._line("your call", f"{who} answered: {event.status}, in {event.seconds:.2f} s", style)
