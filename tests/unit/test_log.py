"""One line a call: structured, gathered, and never a reason to wait."""

import asyncio
import io
import json
import os
import select
import threading
from typing import Any, cast

import pytest

from sentinel_proxy import log as logging
from sentinel_proxy.config import LogConfig
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import AttemptFailed, BreakerChanged, Bus, CallFinished, Event, Noticed
from sentinel_proxy.log import AtOnce, Log, Sink
from sentinel_proxy.model import Attempt, Call, Endpoint, Outcome, Usage

pytestmark = pytest.mark.anyio


def lines_of(*events: Event, level: Any = "debug") -> list[dict[str, Any]]:
    """Return what a log makes of *events*."""
    stream = io.BytesIO()
    log, bus = Log(LogConfig(level=level), stream), Bus()
    log.listen(bus)
    for event in events:
        bus.emit(event)
    log.sink.close()
    assert bus.errors == 0
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def finished(outcome: Outcome = Outcome.SUCCESS, call: Call | None = None, **more: Any) -> CallFinished:
    given: dict[str, Any] = {
        "trace_id": "t",
        "endpoint": Endpoint.CHAT,
        "call": call,
        "outcome": outcome,
        "status": 200,
        "provider": None,
        "model": None,
        "seconds": 1.23456,
        "overhead_seconds": 0.00123456,
        "first_token_seconds": None,
        "usage": None,
    }
    return CallFinished(**given | more)


def secret_call() -> Call:
    body = {"model": "m", "messages": [{"content": "a secret prompt"}]}
    headers = [(b"authorization", b"Bearer sk-secret")]
    call = Call("t", Endpoint.CHAT, b"a secret body", body, "m", True, 0.0, 9.0, headers, client="web")
    call.trail += [Attempt("openai", "503"), Attempt("ollama", "open", sent=False), Attempt("other", "200")]
    return call


class TestLines:
    def test_a_call_is_told_whole_and_without_what_it_was_about(self) -> None:
        (line,) = lines_of(
            finished(
                call=secret_call(),
                outcome=Outcome.FAILED_OVER,
                provider="other",
                model="gpt",
                first_token_seconds=0.5,
                usage=Usage(7, 2),
            )
        )

        assert line.pop("timestamp").endswith("Z")
        assert line == {
            "level": "info",
            "event": "call",
            "trace_id": "t",
            "endpoint": "chat.completions",
            "client": "web",
            "stream": True,
            "trail": ["openai:503", "ollama:open", "other:200"],
            "attempts": 2,
            "provider": "other",
            "model": "gpt",
            "status": 200,
            "outcome": "failed_over",
            "seconds": 1.2346,
            "overhead_seconds": 0.001235,
            "first_token_seconds": 0.5,
            "prompt_tokens": 7,
            "completion_tokens": 2,
        }

    def test_what_never_became_a_call_has_a_line_too(self) -> None:
        (line,) = lines_of(finished(Outcome.CALLER_ERROR, status=400, error_code="invalid_json"))

        assert (line["outcome"], line["status"], line["error"]) == ("caller_error", 400, "invalid_json")
        assert "trail" not in line

    def test_a_failed_attempt_is_told_without_the_upstreams_words(self) -> None:
        event = AttemptFailed("t", "openai", "m", FailureKind.TIMEOUT, "504", "it echoed sk-secret", 0.25)

        (line,) = lines_of(event)

        assert (line["event"], line["kind"], line["result"]) == ("attempt failed", "timeout", "504")
        assert "secret" not in json.dumps(line)

    @pytest.mark.parametrize(
        ("after", "level"), [("open", "warning"), ("half_open", "warning"), ("closed", "info")]
    )
    def test_a_breaker_that_moves_is_news(self, after: str, level: str) -> None:
        (line,) = lines_of(BreakerChanged("openai", None, "closed", after, "timeout", 30.0))

        assert (line["level"], line["after"], line["rest_seconds"]) == (level, after, 30.0)

    @pytest.mark.parametrize(
        ("outcome", "level"),
        [
            (Outcome.SUCCESS, "info"),
            (Outcome.HUNG_UP, "info"),
            (Outcome.CALLER_ERROR, "info"),
            (Outcome.FAILURE, "warning"),
            (Outcome.TRUNCATED, "warning"),
        ],
    )
    def test_only_what_failed_a_caller_is_a_warning(self, outcome: Outcome, level: str) -> None:
        (line,) = lines_of(finished(outcome))

        assert line["level"] == level

    def test_lines_below_the_level_are_not_written(self) -> None:
        events = [Noticed(level, level, {}) for level in ("debug", "info", "warning", "error")]

        lines = lines_of(*events, level="warning")

        assert [line["event"] for line in lines] == ["warning", "error"]

    def test_the_console_shows_the_same_to_people(self) -> None:
        stream = io.BytesIO()
        log = Log(LogConfig(format="console"), stream)

        log.line("warning", "breaker changed", provider="openai", model=None)
        log.sink.close()

        shown = stream.getvalue().decode()
        assert "breaker changed" in shown
        assert "provider=openai" in shown
        assert "model" not in shown

    def test_a_worker_names_itself_in_each_line(self) -> None:
        stream = io.BytesIO()
        log = Log(LogConfig(), stream, worker=2)

        log.line("info", "ready")
        log.sink.close()

        assert json.loads(stream.getvalue())["worker"] == 2


class Stuck(io.RawIOBase):
    """A stream that nobody reads until `released`."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.entered = threading.Event()
        self.written = b""

    def write(self, data: Any) -> int:
        self.entered.set()
        self.released.wait(5)
        self.written += bytes(data[:7])  # a pipe may take less than it is given
        return min(7, len(data))


class Pieces(io.RawIOBase):
    """A stream that remembers what it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        self.pieces.append(bytes(data))
        return len(data)


def sink_on(stream: Any) -> Sink:
    return Sink(cast(Any, stream))


class TestSink:
    async def test_lines_are_gathered_and_keep_their_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logging, "FLUSH_SECONDS", 0.01)
        reading, writing = os.pipe()
        with io.FileIO(reading) as reader, io.FileIO(writing, "w") as writer:
            sink = sink_on(writer)

            for number in range(5):
                sink.write(b"%d" % number)
            await asyncio.sleep(0.03)

            assert reader.read(100) == b"0\n1\n2\n3\n4\n"
            sink.close()

    async def test_a_stuck_reader_holds_nobody_up_and_costs_lines_in_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging, "MAX_WAITING_LINES", 10)
        stream = Stuck()
        sink = sink_on(stream)
        sink.write(b"first")
        sink.flush()
        assert await asyncio.to_thread(stream.entered.wait, 5)

        for number in range(20):
            sink.write(b"%d" % number)
            sink.flush()

        assert sink.lost == 11
        stream.released.set()
        await asyncio.to_thread(sink.close)
        assert stream.written == b"first\n" + b"".join(b"%d\n" % number for number in range(9))

    def test_a_closed_stream_loses_lines_and_raises_nothing(self) -> None:
        stream = io.BytesIO()
        sink = sink_on(stream)
        stream.close()

        sink.write(b"one")
        sink.close()
        sink.close()

        assert sink.lost == 1

    def test_a_stuck_reader_does_not_keep_the_process_alive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logging, "CLOSE_SECONDS", 0.01)
        stream = Stuck()
        sink = sink_on(stream)

        sink.write(b"one")
        sink.close()

        assert stream.written == b""
        stream.released.set()

    def test_lines_for_a_shared_pipe_are_written_in_pieces_that_it_takes_whole(self) -> None:
        stream = Pieces()
        lines = [b"%d" % number * (40 * number) for number in range(1, 100)] + [b"long" * 2000, b"last"]
        sink = Sink(cast(Any, stream), shared=True)
        sink._gathered = list(lines)

        sink.close()

        pieces = stream.pieces
        assert b"".join(pieces) == b"\n".join(lines) + b"\n"
        assert all(piece.endswith(b"\n") for piece in pieces)
        assert all(len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1 for piece in pieces)
        assert 1 < len(pieces) < len(lines)


class TestAtOnce:
    def test_a_line_is_there_when_it_was_written_and_no_thread_was_needed(self) -> None:
        threads = threading.active_count()
        reading, writing = os.pipe()
        with io.FileIO(reading) as reader, io.FileIO(writing, "w") as writer:
            sink = AtOnce(cast(Any, writer))

            sink.write(b"one")
            sink.write(b"two")

            assert reader.read(100) == b"one\ntwo\n"
        assert threading.active_count() == threads

    def test_what_a_stuck_reader_has_no_room_for_is_lost_without_waiting(self) -> None:
        reading, writing = os.pipe()
        with io.FileIO(reading), io.FileIO(writing, "w") as writer:
            os.set_blocking(writing, False)
            while writer.write(b"x" * 4096):
                pass
            os.set_blocking(writing, True)
            sink = AtOnce(cast(Any, writer))

            sink.write(b"one")

            assert sink.lost == 1

    def test_a_closed_stream_loses_lines_and_raises_nothing(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        with io.FileIO(writing, "w") as writer:
            sink = AtOnce(cast(Any, writer))
            sink.write(b"nobody reads")
        sink.write(b"closed")
        sink.close()

        assert sink.lost == 2
