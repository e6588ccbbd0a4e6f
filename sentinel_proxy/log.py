"""
The log: one structured line per call, and one for everything an operator should read.

Listens to events like any other watcher. Lines never hold prompts, answers or keys: they are
built from fields chosen here, not from what travels. Lines are gathered and written in
batches by a thread of their own: whoever reads them may be slow, or stuck, and no call waits.
"""

import asyncio
import atexit
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from select import PIPE_BUF, select
from typing import Any, BinaryIO, Final, Protocol, cast

import orjson
import structlog

from sentinel_proxy.clock import utc_now
from sentinel_proxy.config import LogConfig
from sentinel_proxy.events import AttemptFailed, BreakerChanged, Bus, CallFinished, CallHedged, Noticed
from sentinel_proxy.model import Outcome

FLUSH_SECONDS: Final = 0.1
"""How long a line waits for others to be written with."""

MAX_WAITING_LINES: Final = 10_000
"""Some 5 MB; what comes while so many wait for a stuck reader is lost, and counted."""

CLOSE_SECONDS: Final = 1.0
"""How long the end of the process waits for the last lines to be written."""

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_CALL_LEVELS: Final = {Outcome.FAILURE: "warning", Outcome.TRUNCATED: "warning"}


class Writes(Protocol):
    """Takes lines, and never makes who logs them wait."""

    lost: int  # lines that could not be written, or not in time

    def write(self, line: bytes) -> None:
        """Take one line."""

    def close(self) -> None:
        """Write what is left. May be called twice."""


class AtOnce:
    """
    Writes each line as it comes, without a thread: for a process that forks others and serves nobody.

    What its reader has no room for is lost, and counted.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream if stream is not None else _stdout()
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Write one line if that can be done now."""
        try:
            _, ready, _ = select([], [self._stream], [], 0)
            if ready:
                self._stream.write(line + b"\n")
        except (OSError, ValueError):
            ready = []
        self.lost += not ready

    def close(self) -> None:
        """Nothing is ever left."""


class Sink:
    """
    Gathers lines and writes them together, in order, from a thread of its own.

    Args:
        stream: Unbuffered, or else nobody sees the last lines until it is closed.
        shared: Whether other processes write to it too. Lines are then written in pieces that a
            pipe takes whole, so that none is torn.

    Attributes:
        lost: Lines that could not be written, or not in time.
    """

    def __init__(self, stream: BinaryIO, *, shared: bool = False) -> None:
        self._stream = stream
        self._piece_bytes = PIPE_BUF if shared else sys.maxsize
        self._gathered: list[bytes] = []
        self._handle: asyncio.TimerHandle | None = None
        self._batches: SimpleQueue[list[bytes]] = SimpleQueue()
        self._handed_over = self._settled = 0  # lines; the first is ours, the second the thread's
        self._writer: threading.Thread | None = None
        self.lost = 0
        atexit.register(self.close)

    def write(self, line: bytes) -> None:
        """Take one line; it is handed over within `FLUSH_SECONDS`, or now where no event loop runs."""
        if self._handed_over - self._settled + len(self._gathered) >= MAX_WAITING_LINES:
            self.lost += 1
            return
        self._gathered.append(line)
        if self._handle is not None:
            return
        try:
            self._handle = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        except RuntimeError:
            self.flush()

    def flush(self) -> None:
        """Hand what was gathered to the writer; never waits."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if not self._gathered:
            return
        batch, self._gathered = self._gathered, []
        self._handed_over += len(batch)
        self._batches.put(batch)
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_batches, name="log", daemon=True)
            self._writer.start()

    def close(self) -> None:
        """Write what is left and end the writer; gives up after `CLOSE_SECONDS`. May be called twice."""
        self.flush()
        atexit.unregister(self.close)
        if self._writer is not None:
            self._batches.put([])
            self._writer.join(CLOSE_SECONDS)
            self._writer = None

    def _write_batches(self) -> None:
        while batch := self._batches.get():
            for lines in _pieces(batch, self._piece_bytes):
                left = memoryview(b"\n".join(lines) + b"\n")
                try:
                    while left:
                        left = left[self._stream.write(left) :]
                except (OSError, ValueError):  # closed, or full: lines are lost, never a call
                    self.lost += len(lines)
                self._settled += len(lines)


def _pieces(batch: Sequence[bytes], most_bytes: int) -> Iterator[Sequence[bytes]]:
    """Cut *batch* into runs of lines of at most *most_bytes*; a longer line stands alone."""
    begin = size = 0
    for index, line in enumerate(batch):
        if size and size + len(line) + 1 > most_bytes:
            yield batch[begin:index]
            begin, size = index, 0
        size += len(line) + 1
    yield batch[begin:]


class Log:
    """
    Folds events into lines.

    Args:
        stream: Where they go; by default standard output.
        sink: Writes them; by default a `Sink`.
        worker: Which worker this is, told in each line; None where there is one process.
    """

    def __init__(
        self,
        config: LogConfig,
        stream: BinaryIO | None = None,
        *,
        sink: Writes | None = None,
        worker: int | None = None,
    ) -> None:
        shared = worker is not None
        self.sink = sink or Sink(stream if stream is not None else _stdout(), shared=shared)
        self._least = LEVELS[config.level]
        self._render = _console() if config.format == "console" else _json
        self._always = {} if worker is None else {"worker": worker}

    def listen(self, bus: Bus) -> None:
        """Subscribe to everything worth a line."""
        bus.subscribe(CallFinished, self._call_finished)
        bus.subscribe(AttemptFailed, self._attempt_failed)
        bus.subscribe(CallHedged, self._call_hedged)
        bus.subscribe(BreakerChanged, self._breaker_changed)
        bus.subscribe(Noticed, self._noticed)

    def line(self, level: str, event: str, **fields: Any) -> None:
        """Write one line, unless its level is below the configured one; a field of None is left out."""
        if LEVELS[level] >= self._least:
            known = {key: value for key, value in fields.items() if value is not None}
            self._write({"timestamp": utc_now(), "level": level, "event": event, **self._always, **known})

    def _write(self, fields: dict[str, Any]) -> None:
        self.sink.write(self._render(fields))

    def _call_finished(self, event: CallFinished) -> None:
        """
        Write the line of a call.

        It is the one that is written all the time, so what is None is never put in, rather than
        sorted out afterwards.
        """
        call, usage = event.call, event.usage
        level = _CALL_LEVELS.get(event.outcome, "info")
        if LEVELS[level] < self._least:
            return
        fields: dict[str, Any] = {
            "timestamp": utc_now(),
            "level": level,
            "event": "call",
            **self._always,
            "trace_id": event.trace_id,
            "endpoint": event.endpoint,
        }
        if call is not None:
            if call.client is not None:
                fields["client"] = call.client
            fields["stream"] = call.stream
            fields["trail"] = call.steps
            fields["attempts"] = call.attempts
        if event.provider is not None:
            fields["provider"] = event.provider
        if event.model is not None:
            fields["model"] = event.model
        fields["status"] = event.status
        fields["outcome"] = event.outcome
        if event.error_code is not None:
            fields["error"] = event.error_code
        # Whole parts of a second: `round(seconds, 4)` writes it down and reads it, and costs more.
        fields["seconds"] = round(event.seconds * 1e4) / 1e4
        fields["overhead_seconds"] = round(event.overhead_seconds * 1e6) / 1e6
        if event.first_token_seconds is not None:
            fields["first_token_seconds"] = round(event.first_token_seconds * 1e4) / 1e4
        if usage is not None:
            fields["prompt_tokens"] = usage.prompt_tokens
            fields["completion_tokens"] = usage.completion_tokens
        self._write(fields)

    def _attempt_failed(self, event: AttemptFailed) -> None:
        self.line(
            "info",
            "attempt failed",
            trace_id=event.trace_id,
            provider=event.provider,
            kind=event.kind.value,
            result=event.label,
            seconds=round(event.seconds, 4),
        )

    def _call_hedged(self, event: CallHedged) -> None:
        self.line(
            "info",
            "call hedged",
            trace_id=event.trace_id,
            source=event.source,
            target=event.target,
            winner=event.winner or None,
            after_seconds=round(event.after_seconds, 4),
        )

    def _breaker_changed(self, event: BreakerChanged) -> None:
        self.line(
            "info" if event.after == "closed" else "warning",
            "breaker changed",
            provider=event.provider,
            model=event.model,
            before=event.before,
            after=event.after,
            reason=event.reason,
            rest_seconds=round(event.rest_seconds, 1),
        )

    def _noticed(self, event: Noticed) -> None:
        self.line(event.level, event.message, **event.details)


def _stdout() -> BinaryIO:
    """Return standard output unbuffered: a thread stuck in a buffer's lock would abort the exit."""
    return cast(BinaryIO, open(sys.stdout.fileno(), "wb", buffering=0, closefd=False))


_json: Final = partial(orjson.dumps, default=str, option=orjson.OPT_UTC_Z)


def _console() -> Callable[[dict[str, Any]], bytes]:
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())

    def render(fields: dict[str, Any]) -> bytes:
        fields["timestamp"] = fields["timestamp"].isoformat().replace("+00:00", "Z")
        return str(renderer(None, fields["level"], fields)).encode()

    return render
