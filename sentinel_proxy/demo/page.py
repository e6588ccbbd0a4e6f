"""What stands before and after the timeline: who plays, how it went, what the reader can try."""

from collections import Counter
from typing import Final

from sentinel_proxy.demo.application import MODEL
from sentinel_proxy.demo.tally import Tally
from sentinel_proxy.demo.terminal import Terminal, mark_of
from sentinel_proxy.terminal import Style

_COLUMNS: Final = (40, 17, 17)


def opening(terminal: Terminal, *, proxy: str, openai: str, ollama: str) -> None:
    """Print who plays, and how to read the timeline."""
    sign = terminal.sign
    terminal.print()
    terminal.print(terminal.paint("  Sentinel Proxy: an outage of OpenAI, survived", "bold"))
    terminal.print("  Everything is on this machine: no keys, no network, no Redis.")
    terminal.print()
    terminal.print(f"  proxy    {proxy:<28}  the real one; an application calls it")
    terminal.print(f"  openai   {openai:<28}  simulated, first of the chain")
    terminal.print(f"  ollama   {ollama:<28}  simulated, next of the chain")
    terminal.print()
    terminal.print(
        f"  {sign('first')} by openai   {sign('other')} by ollama   "
        f"{sign('both')} begun by one, finished by the other   {sign('failed')} failed"
    )
    terminal.print('  Each call also goes straight to openai, once: that is "without the proxy".')


def summary(terminal: Terminal, through: Tally, direct: Tally, opened: int) -> None:
    """Print how the script went, in numbers."""
    who = Counter(map(mark_of, through.outcomes))
    terminal.print()
    _row(terminal, "", "with the proxy", "without it", "bold")
    _row(terminal, "calls", len(through.outcomes), len(direct.outcomes))
    _row(terminal, "answered, complete and right", len(through.good), len(direct.good))
    _row(terminal, "  by openai", who["first"], len(direct.good), "dim")
    _row(terminal, "  by ollama", who["other"], "", "dim")
    _row(terminal, "  begun by one, finished by the other", who["both"], "", "dim")
    _row(terminal, "failed", through.failed, direct.failed, "bad" if through.failed else "good")
    _row(terminal, "slowest good answer", _slowest(through), _slowest(direct))
    _row(terminal, "times the breaker opened", opened, "")
    terminal.print()
    terminal.print(terminal.paint(f"  {verdict(through.failed, direct.failed)}", "bold"))


def verdict(failed: int, would_have_failed: int) -> str:
    """Say the outcome in one sentence."""
    kept = "no call did" if not failed else f"{failed} did: that is a defect of ours"
    return f"Without the proxy {would_have_failed} calls failed; with it {kept}."


def farewell(terminal: Terminal, proxy: str) -> None:
    """Print what the reader can do now."""
    terminal.print()
    terminal.print(terminal.paint("  The proxy stays up, and everybody is well. Try it:", "bold"))
    terminal.print()
    terminal.print(invitation(proxy))
    terminal.print()
    terminal.print("  Ctrl-C ends it.")
    terminal.print()


def invitation(proxy: str) -> str:
    """Return lines to paste into a shell; the second one streams."""
    return "\n\n".join(
        [
            _curl("", proxy, '"Why is the sky blue?"'),
            _curl("-N ", proxy, '"Tell me a story."', ',\n       "stream":true'),
            f"  curl {proxy}/health",
        ]
    )


def _curl(flags: str, proxy: str, question: str, more: str = "") -> str:
    return (
        f"  curl {flags}{proxy}/v1/chat/completions \\\n"
        "    -H 'content-type: application/json' \\\n"
        f'    -d \'{{"model":"{MODEL}",\n'
        f'       "messages":[{{"role":"user","content":{question}}}]{more}}}\''
    )


def _row(terminal: Terminal, label: str, left: object, right: object, style: Style = "plain") -> None:
    first, second, third = _COLUMNS
    line = f"  {label:<{first}}{left!s:>{second}}{right!s:>{third}}".rstrip()
    terminal.print(terminal.paint(line, style))


def _slowest(tally: Tally) -> str:
    return f"{max((outcome.seconds for outcome in tally.good), default=0.0):.1f} s"
