"""
The report card, for people and for programs.

For people it grows while the drill runs: one line a scenario, two where a call that is not
streamed ends in another way. What failed is told at the end in whole sentences.
"""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final

from sentinel_proxy.drill.chain import Chain
from sentinel_proxy.drill.runner import Report, Result, Verdict
from sentinel_proxy.terminal import WIDTH, Screen, Style

_TITLE_AT: Final = 5
_TITLE_WIDTH: Final = 32
_CALLER_WIDTH: Final = 27
_ASKED_WIDTH: Final = 7
_SECONDS_WIDTH: Final = WIDTH - _TITLE_AT - _TITLE_WIDTH - _CALLER_WIDTH - _ASKED_WIDTH - 2
_LABEL_WIDTH: Final = 14

SIGNS: Final = "✓✗·→"
_SIGNS: Final[dict[Verdict, str]] = {"passed": "✓", "failed": "✗", "skipped": "·"}
_PLAIN_SIGNS: Final[dict[Verdict, str]] = {"passed": "+", "failed": "x", "skipped": "-"}
_STYLES: Final[dict[Verdict, Style]] = {"passed": "good", "failed": "bad", "skipped": "dim"}

NOT_STREAMED: Final = "  not streamed"


def as_dict(report: Report) -> dict[str, Any]:
    """
    Return *report* as JSON types: `{scenarios: [...], passed, total}`, one entry a run.

    Runs that were left out are listed and do not count in `total`.
    """
    return {
        "scenarios": [_entry(result) for result in report.results],
        "passed": len(report.ran) - len(report.failed),
        "total": len(report.ran),
    }


def _entry(result: Result) -> dict[str, Any]:
    return {
        "id": result.key,
        "title": result.title if result.streamed else f"{result.title}, not streamed",
        "verdict": result.verdict,
        "caller": result.caller,
        "attempts": result.attempts,
        "seconds": round(result.seconds, 3),
    }


class Card:
    """
    Prints a drill as it goes.

    Args:
        source: Where the policy is from.
    """

    def __init__(self, screen: Screen, source: str) -> None:
        self._screen = screen
        self._source = source
        self._waiting: list[Result] = []  # runs of a scenario that may be told in one line

    def open(self, chain: Chain) -> None:
        """Print what is drilled, and how to read what follows."""
        screen = self._screen
        arrow = "→" if screen.has_signs else "->"
        screen.print()
        screen.print(screen.paint("  Sentinel Proxy drill: what callers get when providers fail", "bold"))
        screen.print()
        self._labelled("policy", self._source)
        self._labelled("chain", f" {arrow} ".join(chain.names))
        self._labelled("providers", "simulated on this machine; no configured address is contacted")
        self._labelled("asked", "how often each provider was, in the order of the chain")
        self._labelled("seconds", "those of the policy: waits are skipped here, not shortened")
        for sentence in chain.left_out:
            self._labelled("note", sentence)
        screen.print()
        self._row("  ", "what goes wrong", "what the caller got", "asked", "seconds", "bold")

    def take(self, result: Result) -> None:
        """Print one more run, or keep it until it is known whether the next one says the same."""
        if self._waiting and self._waiting[0].id != result.id:
            self._flush()
        self._waiting.append(result)

    def close(self, report: Report) -> None:
        """Print what failed, and the sum."""
        self._flush()
        for result in report.failed:
            self._failure(result)
        self._screen.print()
        self._screen.print(self._screen.paint(f"  {verdict(report)}", "bad" if report.failed else "good"))
        self._screen.print()

    def _flush(self) -> None:
        runs, self._waiting = self._waiting, []
        if not runs:
            return
        first, *others = runs
        self._result(first, first.title)
        for other in others:
            if not _alike(first, other):
                self._result(other, NOT_STREAMED)

    def _result(self, result: Result, title: str) -> None:
        signs = _SIGNS if self._screen.has_signs else _PLAIN_SIGNS
        sign = signs[result.verdict].ljust(2)
        if result.verdict == "skipped":
            self._row(sign, title, f"left out: {result.caller}", "", "", "dim")
            return
        asked = " ".join(str(count) for count in result.attempts.values())
        style = _STYLES[result.verdict]
        plain: Style = "bad" if result.verdict == "failed" else "plain"
        self._row(sign, title, result.caller, asked, f"{result.seconds:.1f}", plain, style)

    def _row(
        self,
        sign: str,
        title: str,
        caller: str,
        asked: str,
        seconds: str,
        style: Style,
        mark: Style | None = None,
    ) -> None:
        """Print cells side by side; what is too long for its cell goes on below."""
        paint = self._screen.paint
        indent = title[: len(title) - len(title.lstrip())]
        titles = textwrap.wrap(title.strip(), _TITLE_WIDTH, initial_indent=indent)
        callers = textwrap.wrap(caller, _CALLER_WIDTH)
        for number, (left, right) in enumerate(zip_longest(titles, callers, fillvalue="")):
            text = f"{left:<{_TITLE_WIDTH}} {right:<{_CALLER_WIDTH}} "
            if number == 0:
                text += f"{asked:<{_ASKED_WIDTH}}{seconds:>{_SECONDS_WIDTH}}"
            head = f"  {paint(sign, mark or style)} " if number == 0 else " " * _TITLE_AT
            self._screen.print(head + paint(text.rstrip(), style))

    def _failure(self, result: Result) -> None:
        screen = self._screen
        way = "streamed" if result.streamed else "not streamed"
        screen.print()
        screen.print(screen.paint(f"  {result.title}, {way}", "bad"))
        first = next(iter(result.attempts), "the first provider")
        self._labelled("what happens", f"{first} {result.injected}")
        self._labelled("caller got", f"{result.caller}, after {result.seconds:.1f} s")
        self._labelled("asked", _asked(result))
        for complaint in result.complaints:
            self._labelled("wrong", complaint)

    def _labelled(self, label: str, text: str) -> None:
        width = WIDTH - 2 - _LABEL_WIDTH
        for number, line in enumerate(textwrap.wrap(text, width)):
            head = label if number == 0 else ""
            self._screen.print(f"  {self._screen.paint(head.ljust(_LABEL_WIDTH), 'dim')}{line}")


def verdict(report: Report) -> str:
    """Say the outcome in one sentence."""
    ran, failed, left_out = len(report.ran), len(report.failed), len(report.results) - len(report.ran)
    rest = f"; {left_out} {'was' if left_out == 1 else 'were'} left out" if left_out else ""
    if failed:
        return f"{failed} of {ran} runs failed{rest}."
    return f"All {ran} runs passed: each ended in a whole answer or an honest error{rest}."


def explained(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each thing that was wrong, for those who read JSON and want to know why."""
    for result in results:
        for complaint in result.complaints:
            yield f"{result.key}: {complaint}"


def _alike(one: Result, other: Result) -> bool:
    """Whether two runs need one line only; a failure always has its own."""
    return (
        one.verdict == other.verdict != "failed"
        and one.caller == other.caller
        and one.attempts == other.attempts
        and abs(one.seconds - other.seconds) < 1.0
    )


def _asked(result: Result) -> str:
    return ", ".join(f"{name} {_times(count)}" for name, count in result.attempts.items())


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")
