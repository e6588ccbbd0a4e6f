"""
The log: one structured line per call, and one for everything an operator should read.

Listens to events like any other watcher. Lines never hold prompts, answers or keys: they are
built from fields chosen here, not from what travels. Writing is gathered and handed to the
stream in batches, so that a call never waits for a terminal or a disk.
"""

import asyncio
import atexit
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, BinaryIO, Final

import orjson
import structlog

from sentinel_proxy.config import LogConfig
from sentinel_proxy.events import AttemptFailed, BreakerChanged, Bus, CallFinished, Noticed
from sentinel_proxy.model import Call, Outcome

FLUSH_SECONDS: Final = 0.1
MAX_WAITING_LINES: Final = 1000
"""Beyond it lines are written at once, so that memory stays bounded."""

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_CALL_LEVELS: Final = {Outcome.FAILURE: "warning", Outcome.TRUNCATED: "warning"}


class Sink:
    """Gathers lines and writes them together; warnings and worse go out at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting: list[bytes] = []
        self._handle: asyncio.TimerHandle | None = None
        self.lost = 0
        atexit.register(self.flush)

    def write(self, line: bytes) -> None:
        """Take one line; it is written within `FLUSH_SECONDS`, or now where no event loop runs."""
        self._waiting.append(line)
        if self._handle is not None and len(self._waiting) < MAX_WAITING_LINES:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._handle is not None:
            self._handle.cancel()
            self.flush()
        else:
            self._handle = loop.call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits. A stream that cannot be written to loses lines, never a call."""
        self._handle = None
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            self._stream.write(b"\n".join(waiting) + b"\n")
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += len(waiting)


class Log:
    """Folds events into lines."""

    def __init__(self, config: LogConfig, stream: BinaryIO | None = None) -> None:
        self.sink = Sink(stream if stream is not None else sys.stdout.buffer)
        self._least = LEVELS[config.level]
        render = _console() if config.format == "console" else _json
        self._logger = structlog.wrap_logger(
            None,
            processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), render],
            wrapper_class=_writer(self.sink),
            cache_logger_on_first_use=True,
        )

    def listen(self, bus: Bus) -> None:
        """Subscribe to everything worth a line."""
        bus.subscribe(CallFinished, self._call_finished)
        bus.subscribe(AttemptFailed, self._attempt_failed)
        bus.subscribe(BreakerChanged, self._breaker_changed)
        bus.subscribe(Noticed, self._noticed)

    def line(self, level: str, event: str, **fields: Any) -> None:
        """Write one line, unless its level is below the configured one."""
        if LEVELS[level] >= self._least:
            self._logger.write(level, event, fields)

    def _call_finished(self, event: CallFinished) -> None:
        call = event.call
        self.line(
            _CALL_LEVELS.get(event.outcome, "info"),
            "call",
            trace_id=event.trace_id,
            endpoint=event.endpoint.value,
            **(_of_call(call) if call is not None else {}),
            provider=event.provider,
            model=event.model,
            status=event.status,
            outcome=event.outcome.value,
            error=event.error_code,
            seconds=round(event.seconds, 4),
            overhead_seconds=round(event.overhead_seconds, 6),
            first_token_seconds=_rounded(event.first_token_seconds),
            prompt_tokens=event.usage.prompt_tokens if event.usage is not None else None,
            completion_tokens=event.usage.completion_tokens if event.usage is not None else None,
        )

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


def _of_call(call: Call) -> dict[str, Any]:
    return {
        "client": call.client,
        "stream": call.stream,
        "trail": [f"{attempt.provider}:{attempt.result}" for attempt in call.trail],
        "attempts": call.attempts,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _json(_: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    ordered = {"timestamp": fields.pop("timestamp"), "level": level, "event": fields.pop("event"), **fields}
    return orjson.dumps({key: value for key, value in ordered.items() if value is not None}, default=str)


def _console() -> Callable[[Any, str, MutableMapping[str, Any]], bytes]:
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())

    def render(logger: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
        present = {key: value for key, value in fields.items() if value is not None}
        return str(renderer(logger, level, {**present, "level": level})).encode()

    return render


def _writer(sink: Sink) -> type[structlog.BoundLoggerBase]:
    class Writer(structlog.BoundLoggerBase):
        """Runs structlog's processors and gives the finished line to the sink."""

        def write(self, level: str, event: str, fields: dict[str, Any]) -> None:
            line: Any = {**self._context, **fields, "event": event}
            for processor in self._processors:
                line = processor(self._logger, level, line)
            sink.write(line)

    return Writer
