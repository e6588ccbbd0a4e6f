"""The demo as a person sees it: a real process, what it prints, its exit status."""

import asyncio
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx
import pytest

from sentinel_proxy.demo import page, stage
from sentinel_proxy.demo.application import Application, Outcome
from sentinel_proxy.demo.narrator import Narrator
from sentinel_proxy.demo.scenes import SCENES
from sentinel_proxy.demo.tally import Tally
from sentinel_proxy.demo.terminal import Terminal, mark_of
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFailedOver,
    CallRetried,
    Event,
    StreamRescued,
)
from sentinel_proxy.terminal import WIDTH, wants_colour
from sentinel_proxy.testing import (
    FaultyUpstream,
    Outage,
    Reset,
    Script,
    answer,
    cut,
    openai_completion,
    openai_error,
    openai_stream,
    sse,
    sse_stream,
)
from sentinel_proxy.testing.answers import answer_to, tokens_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.xdist_group("demo"),  # the script of 20 s plays once for all of them
]

QUESTION = "Why is the sky blue?"
RIGHT = answer_to([{"role": "user", "content": QUESTION}])
TOKENS = tokens_of(RIGHT)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start `sentinel-proxy demo` as a shell would, with every warning an error."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "sentinel_proxy", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read what *process* prints up to the line with *words*."""
    assert process.stdout is not None
    assert any(words in line for line in process.stdout)


@pytest.fixture(scope="module", autouse=True)
def whole_script() -> Iterator[subprocess.Popen[str]]:
    """The script from end to end, at its own pace; it plays while the other tests run."""
    with start("--once", "--port", "0") as process:
        yield process
        process.kill()


async def test_ctrl_c_ends_it_quietly_and_at_once() -> None:
    with start("--port", "0") as process:
        read_until(process, "without the proxy  ")
        asked_at = asyncio.get_running_loop().time()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        took = asyncio.get_running_loop().time() - asked_at

    assert (process.returncode, err) == (0, "")
    assert took < 5


async def test_ctrl_c_before_the_first_call_is_as_quiet() -> None:
    with start("--port", "0") as process:
        read_until(process, "Sentinel Proxy")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)

    assert (process.returncode, err) == (0, "")


async def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start("--port", port) as process:
            out, err = process.communicate(timeout=10)

    assert (process.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert port in err
    assert "in use" in err


async def test_a_reader_that_leaves_ends_it_without_a_word() -> None:
    with start("--port", "0") as process:
        read_until(process, "Sentinel Proxy")
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=10)
        err = process.stderr.read() if process.stderr is not None else None

    assert (process.returncode, err) == (0, "")


# -- after the script ------------------------------------------------------------------------


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def terminal(screen: io.StringIO) -> Terminal:
    return Terminal(screen, colour=False)


@pytest.fixture
async def stayed_up(
    screen: io.StringIO, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """The demo after a script of two calls; what it has printed until then."""
    monkeypatch.setattr(stage, "BEATS", 2)
    playing = asyncio.create_task(stage.play(terminal, port=0, once=False))
    while "Ctrl-C" not in screen.getvalue():
        assert not playing.done()
        await asyncio.sleep(0.01)
    yield screen.getvalue()
    playing.cancel()
    with suppress(asyncio.CancelledError):
        await playing


async def test_what_it_offers_to_paste_works(stayed_up: str) -> None:
    commands = pasted(stayed_up)
    async with httpx.AsyncClient(trust_env=False) as client:
        replies = [await client.request(method, url, content=body) for method, url, body in commands]

    assert [reply.status_code for reply in replies] == [200, 200, 200]
    whole, streamed, health = replies
    assert "sky" in whole.json()["choices"][0]["message"]["content"]
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert health.json()["status"] == "healthy"


async def test_the_calls_of_the_reader_are_told_one_by_one(stayed_up: str, screen: io.StringIO) -> None:
    method, url, body = pasted(stayed_up)[0]
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.request(method, url, content=body)

    told = screen.getvalue().removeprefix(stayed_up)
    assert re.fullmatch(r" +[\d.]+  your call   openai answered: 200, in \d\.\d\d s\n", told)


def pasted(text: str) -> list[tuple[str, str, str]]:
    """Read the curl commands in *text* as a shell and curl would: method, URL, body."""
    commands = []
    for command in re.findall(r"^  curl (?:.|\n)+?(?=\n\n)", text, re.MULTILINE):
        words = shlex.split(command)
        body = words[words.index("-d") + 1] if "-d" in words else ""
        url = next(word for word in words if word.startswith("http://"))
        commands.append(("POST" if body else "GET", url, body))
    return commands


# -- how answers are judged ------------------------------------------------------------------


@pytest.fixture
async def application(primary: FaultyUpstream) -> AsyncIterator[Application]:
    async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
        yield Application(client, f"{primary.url}/v1")


@pytest.mark.parametrize(
    ("stream", "script"),
    [(False, openai_completion(RIGHT)), (True, openai_stream(TOKENS))],
    ids=["whole", "streamed"],
)
async def test_a_complete_and_right_answer_counts(
    application: Application, primary: FaultyUpstream, stream: bool, script: Script
) -> None:
    primary.always(script)

    outcome = await application.ask(QUESTION, stream=stream)

    assert (outcome.ok, outcome.fault) == (True, "")


@pytest.mark.parametrize(
    ("stream", "script", "fault"),
    [
        (False, openai_error(503), "status 503"),
        (False, openai_completion("Because."), "a wrong answer"),
        (False, openai_completion(RIGHT, finish_reason="length"), "an incomplete answer"),
        (False, answer(200, "<html>"), "JSONDecodeError"),
        (False, answer(200, "{}"), "KeyError"),
        (False, [Reset()], "ReadError"),
        (True, openai_stream(TOKENS, done=False), "an incomplete answer"),
        (True, openai_stream(TOKENS, finish_reason=None), "an incomplete answer"),
        (True, openai_stream([*TOKENS, "!"]), "a wrong answer"),
        (True, cut(openai_stream(TOKENS), 900), "ReadError"),
        (True, sse_stream([sse({"error": {"code": "cut"}})]), "an error in the stream: cut"),
    ],
    ids=[
        "503", "other words", "too short", "html", "no completion", "reset",
        "no terminator", "no finish reason", "a word too many", "cut", "an error in band",
    ],
)  # fmt: skip
async def test_anything_else_is_a_failed_call(
    application: Application, primary: FaultyUpstream, stream: bool, script: Script, fault: str
) -> None:
    primary.always(script)

    outcome = await application.ask(QUESTION, stream=stream)

    assert (outcome.ok, outcome.fault) == (False, fault)


async def test_who_answered_is_read_from_the_answer(
    application: Application, primary: FaultyUpstream
) -> None:
    marked = {"choices": [], "sentinel": {"to": "ollama"}}
    primary.always(sse_stream([sse(marked)], headers={"x-sentinel-provider": "openai"}))

    outcome = await application.ask(QUESTION, stream=True)

    assert (outcome.provider, outcome.rescued_by) == ("openai", "ollama")


# -- what it looks like ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "mark"),
    [
        (Outcome("", 1, "openai"), "first"),
        (Outcome("", 1), "first"),
        (Outcome("", 1, "ollama"), "other"),
        (Outcome("", 1, "openai", "ollama"), "both"),
        (Outcome("status 503", 1, "openai", "ollama"), "failed"),
    ],
    ids=["first", "direct", "other", "both", "failed"],
)
async def test_a_call_is_marked_by_who_answered(outcome: Outcome, mark: str) -> None:
    assert mark_of(outcome) == mark


async def test_calls_are_shown_once_and_those_that_wait_are_counted(
    screen: io.StringIO, terminal: Terminal
) -> None:
    through, direct = Tally(begun=2, outcomes=[Outcome("", 1, "openai")]), Tally(begun=3)

    terminal.calls(1, through, direct)
    terminal.calls(2, through, direct)

    first, second = screen.getvalue().splitlines()
    assert first.split() == ["1.0", "calls", "*", "without", "the", "proxy", "3", "waiting"]
    assert second.split() == ["2.0", "calls", "1", "waiting", "without", "the", "proxy", "3", "waiting"]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (AttemptFailed("t", "openai", "m", FailureKind.OVERLOADED, "503", "", 0.1), ["503", "overloaded"]),
        (AttemptFailed("t", "openai", "m", FailureKind.TIMEOUT, "timeout", "", 1.5), ["timeout", "1.5 s"]),
        (AttemptFailed("t", "openai", "m", FailureKind.QUOTA, "429", "no money", 0), ["429", "no money"]),
        (CallRetried("t", "openai", 0.06), ["retry", "60 ms"]),
        (CallFailedOver("t", "openai", "ollama", "503"), ["failover", "ollama"]),
        (StreamRescued("t", "openai", "ollama", "prefill", "continued", 54), ["54", "ollama goes on"]),
        (StreamRescued("t", "openai", "", "", "failed", 54), ["54", "nobody"]),
        (BreakerChanged("openai", "m", "closed", "open", "", 3), ["OPENED", "openai (m)", "3 s"]),
        (BreakerChanged("openai", None, "open", "half_open", "", 0), ["HALF-OPEN", "openai again"]),
        (BreakerChanged("openai", "m", "half_open", "closed", "", 0), ["CLOSED"]),
        (BreakerChanged("openai", None, "closed", "isolated", "by hand", 0), ["ISOLATED", "by hand"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else value[0],
)
async def test_events_are_told_in_one_line(
    screen: io.StringIO, terminal: Terminal, event: Event, told: list[str]
) -> None:
    bus = Bus()
    Narrator(terminal, lambda: 12.3).listen(bus)

    bus.emit(event)

    (line,) = screen.getvalue().splitlines()
    assert line.startswith("  12.3  ")
    assert all(words in line for words in told)
    assert bus.errors == 0


async def test_calls_that_pass_by_a_resting_provider_are_not_told_each(
    screen: io.StringIO, terminal: Terminal
) -> None:
    bus = Bus()
    Narrator(terminal, lambda: 0).listen(bus)

    bus.emit(CallFailedOver("t", "openai", "ollama", "open"))

    assert screen.getvalue() == ""


async def test_what_is_too_long_for_a_line_is_wrapped(screen: io.StringIO, terminal: Terminal) -> None:
    terminal.line(1, "label", "word " * 30)

    first, *more = screen.getvalue().splitlines()
    assert more
    assert all(len(line) <= WIDTH for line in (first, *more))
    assert all(line.index("word") == first.index("word") for line in more)


@pytest.mark.parametrize(
    ("tty", "environ", "colour"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
    ids=["terminal", "NO_COLOR is empty", "NO_COLOR", "dumb", "pipe"],
)
async def test_colours_are_for_terminals_that_want_them(
    tty: bool, environ: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: tty)

    assert wants_colour(out, environ) is colour
    assert ("\x1b[" in Terminal(out, colour=colour).paint("x", "bad")) is colour


async def test_a_terminal_without_the_signs_gets_others() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="iso-8859-1")
    terminal = Terminal(out, colour=False)

    page.opening(terminal, proxy="p", openai="o", ollama="l")
    terminal.rule(0, "title")

    assert b"* by openai" in raw.getvalue()
    assert b"-- title ---" in raw.getvalue()


@pytest.mark.parametrize(("failed", "said"), [(0, "no call did"), (2, "2 did: that is a defect")], ids=str)
async def test_a_lost_call_would_be_admitted(failed: int, said: str) -> None:
    assert said in page.verdict(failed, 40)


# -- the whole script, which has been playing meanwhile --------------------------------------


@pytest.fixture(scope="module")
def seen(whole_script: subprocess.Popen[str]) -> str:
    """What a reader of the whole script saw."""
    out, err = whole_script.communicate(timeout=60)
    assert (whole_script.returncode, err) == (0, "")
    return out


async def test_no_call_is_lost_that_would_have_been_without_the_proxy(seen: str) -> None:
    numbers = {
        label.strip(): counts.split()
        for label, counts in re.findall(r"^  (\S.{38})(.+)$", seen, re.MULTILINE)
    }

    with_proxy, without = map(int, numbers["failed"])
    assert numbers["calls"] == ["80", "80"]
    assert with_proxy == 0
    assert without > 20


async def test_the_breaker_is_seen_to_open_to_try_and_to_close(seen: str) -> None:
    states = re.findall(r"breaker +(OPENED|HALF-OPEN|CLOSED):", seen)

    assert states[:2] == ["OPENED", "HALF-OPEN"]
    assert states[-2:] == ["HALF-OPEN", "CLOSED"]
    assert states.count("CLOSED") == 1


async def test_every_scene_and_what_it_does_is_told_in_order(seen: str) -> None:
    order = [seen.index(scene.title) for scene in SCENES]
    after = dict(zip((scene.outage for scene in SCENES), order, strict=True))

    assert order == sorted(order)
    for outage, words in [
        (Outage.CUT_BEFORE, "breaks off before the first word"),
        (Outage.CUT_AFTER, "ollama goes on from there"),
        (Outage.UNAVAILABLE, "503         openai"),
        (Outage.HANG, "timeout     openai says nothing"),
        (Outage.REFUSE, "connect     openai refuses"),
    ]:
        assert words in seen[after[outage] :]


async def test_it_fits_eighty_columns_without_colours(seen: str) -> None:
    lines = seen.splitlines()

    assert all(len(line) <= WIDTH and line == line.rstrip() for line in lines)
    assert "\x1b" not in seen
