"""
The parent of the workers: starts them, replaces them, and ends with them.

It serves nothing, and has neither threads nor an event loop, so it may fork at any time. What
it waits for is a signal, a byte from a worker, or its next tick.
"""

import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NoReturn, Protocol

from sentinel_proxy.clock import Clock, SystemClock
from sentinel_proxy.errors import ConfigError
from sentinel_proxy.server import Port
from sentinel_proxy.workers.worker import ORDERS, Worker

TICK_SECONDS: Final = 1.0

SILENT_TICKS: Final = 30
"""A worker that says nothing for so long hangs. Ticks, not time: a machine may have been asleep."""

YOUNG_SECONDS: Final = 10.0
"""A worker that does not live so long died of something that may well be there for the next."""

MAX_PAUSE_SECONDS: Final = 30.0

TRIES: Final = 2
"""Starts, for each worker, after which there is no hope if none ever served."""

EXIT_HOPELESS: Final = 1


class Work(Protocol):
    """What a parent has its workers for."""

    def serve(self, worker: Worker) -> None:
        """Be *worker*, from its first moment to its last. Only this runs in the forked process."""

    def listening(self) -> None:
        """Called once: somebody serves."""

    def tell(self, level: str, event: str, **fields: Any) -> None:
        """Write to the log, without threads."""

    def reload(self) -> bool:
        """Read the configuration for workers to come; return whether it is good."""

    def left(self, number: int) -> None:
        """Worker *number* has ended."""


def pause_seconds(died_young: int) -> float:
    """Return how long to wait for the next start, after so many young deaths in a row."""
    return 0.0 if died_young < 2 else min(2.0 ** (died_young - 2), MAX_PAUSE_SECONDS)


@dataclass(slots=True)
class _Place:
    """The place of one worker, whoever has it now."""

    number: int
    listener: socket.socket | None  # None: closed, so that nobody queues where nobody serves
    pid: int | None = None
    line: socket.socket | None = None
    serves: bool = False
    started_at: float = 0.0
    silent_ticks: int = 0
    died_young: int = 0  # in a row
    due_at: float = 0.0  # when the next one starts

    def close(self) -> None:
        """Close what the parent has of it."""
        for mine in (self.listener, self.line):
            if mine is not None:
                mine.close()
        self.listener = self.line = None


class Parent:
    """
    Keeps *count* workers at *work* on *port*.

    Raises:
        ConfigError: The port cannot be listened on.
    """

    def __init__(self, count: int, port: Port, work: Work, clock: Clock | None = None) -> None:
        self._port, self._work = port, work
        self._clock = clock if clock is not None else SystemClock()
        self._places = [_Place(number, port.open()) for number in range(1, count + 1)]
        self._signals, self._noted = socket.socketpair()
        self._tick_at = 0.0
        self._served = False  # somebody, ever
        self._failed_starts = 0  # while nobody had
        self._ending = False

    def __repr__(self) -> str:
        return f"<Parent of {len(self._alive())}/{len(self._places)} workers>"

    def run(self) -> int:
        """Start the workers and keep them until a signal ends them all; return the exit status."""
        gc.collect()
        gc.freeze()  # what is never written to is never copied
        with self._orders():
            while True:
                self._start_due()
                self._obey(self._wait())
                self._reap()
                if self._ending and not self._alive():
                    return 0
                if self._failed_starts >= TRIES * len(self._places):
                    return self._give_up()

    def _alive(self) -> list[_Place]:
        return [place for place in self._places if place.pid is not None]

    # Starting.

    def _start_due(self) -> None:
        now = self._clock.monotonic()
        for place in self._places:
            if place.pid is None and not self._ending and now >= place.due_at:
                self._start(place)

    def _start(self, place: _Place) -> None:
        try:
            place.listener = place.listener or self._port.open()
            place.line, theirs = socket.socketpair()
        except (OSError, ConfigError) as error:
            self._not_started(place, str(error))
            return
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
        try:
            place.pid = os.fork() or self._become(place, theirs)
        except OSError as error:
            place.line.close()
            self._not_started(place, str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
            theirs.close()
        place.line.setblocking(False)
        place.started_at, place.serves, place.silent_ticks = self._clock.monotonic(), False, 0

    def _become(self, place: _Place, line: socket.socket) -> NoReturn:
        """Be the worker of *place*, in the process that was just forked, and never come back."""
        status = 1
        try:
            listener, place.listener = place.listener, None
            assert listener is not None
            self._forget()
            self._work.serve(Worker(place.number, listener, line))
            status = 0
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 1
        except ConfigError as error:
            print(f"sentinel-proxy: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _forget(self) -> None:
        """Let go, in a worker, of everything that is the parent's."""
        signal.set_wakeup_fd(-1)
        for order in ORDERS:
            signal.signal(order, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for place in self._places:
            place.close()
        self._close()

    # Waiting.

    @contextmanager
    def _orders(self) -> Iterator[None]:
        """Have signals wake `_wait`, and do nothing else."""
        self._signals.setblocking(False)
        self._noted.setblocking(False)
        before = {order: signal.signal(order, _nothing) for order in (*ORDERS, signal.SIGCHLD)}
        signal.set_wakeup_fd(self._noted.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for order, handler in before.items():
                signal.signal(order, handler)
            self._close()

    def _wait(self) -> bytes:
        """Wait for a signal, a worker or the next tick; return the numbers of signals that came."""
        now = self._clock.monotonic()
        until = min([self._tick_at, *(place.due_at for place in self._places if place.pid is None)])
        lines = {place.line: place for place in self._places if place.line is not None}
        ready, _, _ = select.select([self._signals, *lines], [], [], max(0.0, until - now))
        for line in ready:
            if line is not self._signals:
                self._heard(lines[line])
        if self._clock.monotonic() >= self._tick_at:
            self._tick()
        return self._signals.recv(1024) if self._signals in ready else b""

    def _heard(self, place: _Place) -> None:
        assert place.line is not None
        try:
            said = place.line.recv(64)
        except OSError:
            return
        if not said:
            return  # it ends; `_reap` hears of that as well
        place.silent_ticks = 0
        if not place.serves:
            place.serves = True
            if not self._served:
                self._served, self._failed_starts = True, 0
                self._work.listening()

    def _tick(self) -> None:
        """Kill who has been silent for too long."""
        self._tick_at = self._clock.monotonic() + TICK_SECONDS
        for place in self._alive():
            place.silent_ticks += 1
            if place.silent_ticks == SILENT_TICKS:
                self._work.tell("error", "a worker does not answer and is killed", worker=place.number)
                self._send(place, signal.SIGKILL)

    # Signals.

    def _obey(self, signals: bytes) -> None:
        for order in signals:
            if order == signal.SIGHUP and not self._ending and self._work.reload():
                self._send_all(signal.SIGHUP)
            elif order == signal.SIGINT and self._ending:
                self._send_all(signal.SIGINT)  # who drains and hears it ends at once
            elif order in (signal.SIGTERM, signal.SIGINT) and not self._ending:
                self._end()

    def _end(self) -> None:
        """Have all drain. The sockets are theirs alone now: who is done leaves, the others answer."""
        self._ending = True
        self._send_all(signal.SIGTERM)
        for place in self._places:
            if place.listener is not None:
                place.listener.close()
        self._port.close()

    def _send_all(self, order: signal.Signals) -> None:
        for place in self._alive():
            self._send(place, order)

    def _send(self, place: _Place, order: signal.Signals) -> None:
        assert place.pid is not None  # not reaped yet, so the number is still its own
        os.kill(place.pid, order)

    # Ending.

    def _reap(self) -> None:
        for place in self._alive():
            assert place.pid is not None
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if pid:
                self._ended(place, os.waitstatus_to_exitcode(status))

    def _ended(self, place: _Place, code: int) -> None:
        assert place.line is not None
        place.line.close()
        pid, place.pid, place.line = place.pid, None, None
        self._work.left(place.number)
        if self._ending:
            return
        if place.serves:
            young = self._clock.monotonic() - place.started_at < YOUNG_SECONDS
            place.died_young = place.died_young + 1 if young else 0
            self._pause(place)
            self._work.tell("error", "a worker has ended", worker=place.number, pid=pid, how=how(code))
        else:
            self._not_started(place, how(code))

    def _not_started(self, place: _Place, why: str) -> None:
        place.died_young += 1
        self._failed_starts += not self._served
        self._pause(place)
        self._work.tell("error", "a worker did not start", worker=place.number, problem=why)

    def _pause(self, place: _Place) -> None:
        """Set when the next one starts; until then nobody shall queue for it in vain."""
        pause = pause_seconds(place.died_young)
        place.due_at = self._clock.monotonic() + pause
        if pause and place.listener is not None:
            self._port.shut(place.listener)
            place.listener = None

    def _give_up(self) -> int:
        self._send_all(signal.SIGKILL)
        for place in self._alive():
            assert place.pid is not None
            os.waitpid(place.pid, 0)
        print("sentinel-proxy: no worker could be started; the log says why", file=sys.stderr)
        return EXIT_HOPELESS

    def _close(self) -> None:
        for mine in (self._signals, self._noted, self._port):
            mine.close()


def how(code: int) -> str:
    """Say how a process ended, by its exit code as Python has it: negative for a signal."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _nothing(_: int, __: FrameType | None) -> None:
    """A signal was noted; `_wait` returns it."""
