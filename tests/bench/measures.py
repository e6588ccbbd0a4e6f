"""What is measured, one function each. Nothing here judges: it returns figures."""

import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Final

from contenders import Contender, sentinel_command
from loads import Calls, OneByOne, wrk
from machine import SUBJECT_CORE, free_port
from streams import Streams

CONNECTIONS: Final = 32
CHUNKS: Final = 100
WATCHERS: Final = 100


def warm_up(subject: Contender, folder: Path) -> None:
    """Have *subject* do once what is done only once."""
    with OneByOne(subject.port, subject.headers) as caller:
        caller.call()
    _calls(subject, folder, 1)


def microseconds_per_call(subject: Contender, folder: Path, seconds: float) -> float:
    """CPU of *subject* per call that is not streamed, at `CONNECTIONS` connections."""
    before = subject.process.cpu_seconds()
    calls = _calls(subject, folder, seconds)
    return (subject.process.cpu_seconds() - before) / calls.count * 1e6


def _calls(subject: Contender, folder: Path, seconds: float) -> Calls:
    return wrk(subject.port, folder, connections=CONNECTIONS, seconds=seconds, headers=subject.headers)


@dataclass(slots=True)
class StreamFigures:
    """How a proxy carried many streams at once."""

    microseconds_per_stream: float  # of CPU, for one of `CHUNKS` chunks
    chunks_wanted_per_second: float
    chunks_per_second: float
    core_share: float  # of the proxy's core that it used
    load_share: float  # of the other core that the upstream and the load used
    delay_p50_ms: float  # of a chunk, from the upstream's write to the caller's read
    delay_p99_ms: float
    whole: int  # streams with all their chunks and a proper end
    broken: int


def streaming(
    subject: Contender,
    upstream: Contender,
    count: int,
    *,
    pause_seconds: float,
    seconds: float,
    chunks: int | None = None,
) -> StreamFigures:
    """
    Hold *count* streams open, each with one chunk a pause, and follow every one to its end.

    After so many *chunks* a stream is followed by the next one; None: it goes on until all is measured.

    Raises:
        RuntimeError: Not all of them began, or hardly a chunk came.
    """
    with Streams(
        subject.port,
        upstream.port,
        count,
        pause_seconds=pause_seconds,
        chunks=chunks,
        headers=subject.headers,
    ) as load:
        load.read(1)
        load.seen.delays.clear()
        before = _so_far(subject, upstream, load)
        load.read(seconds)
        after = _so_far(subject, upstream, load)
        delays = load.seen.delays.copy()
        load.end()
    if len(delays) < 2:
        raise RuntimeError(f"hardly a chunk came in {seconds} seconds")
    took, cpu, load_cpu, came = (later - earlier for earlier, later in zip(before, after, strict=True))
    hundredths = statistics.quantiles(delays, n=100)
    return StreamFigures(
        microseconds_per_stream=cpu / came * CHUNKS * 1e6,
        chunks_wanted_per_second=count / pause_seconds,
        chunks_per_second=came / took,
        core_share=cpu / took,
        load_share=load_cpu / took,
        delay_p50_ms=hundredths[49] * 1000,
        delay_p99_ms=hundredths[98] * 1000,
        whole=load.seen.whole,
        broken=load.seen.broken,
    )


def _so_far(subject: Contender, upstream: Contender, load: Streams) -> tuple[float, float, float, int]:
    """Return the time, the CPU seconds of *subject* and of upstream and load, and the chunks that came."""
    load_cpu = upstream.process.cpu_seconds() + time.process_time()
    return time.monotonic(), subject.process.cpu_seconds(), load_cpu, load.seen.chunks


def bytes_per_open_stream(subject: Contender, upstream: Contender, count: int) -> float:
    """Resident memory that each of *count* open streams adds."""
    with Streams(subject.port, upstream.port, count // 10, pause_seconds=1.0) as load:
        load.end()
    time.sleep(0.5)  # what is grown once is grown now, and what was open is closed
    before = subject.process.resident_bytes()
    with Streams(subject.port, upstream.port, count, pause_seconds=1.0) as load:
        load.read(1)
        added = subject.process.resident_bytes() - before
        load.end()
    return added / count


def latencies(subjects: Sequence[Contender], rounds: int) -> list[list[float]]:
    """
    Seconds of single calls at each of *subjects*, one connection each, taken in turns.

    In turns, because a machine's mood changes: what one of them meets, the others meet too.
    """
    callers = [OneByOne(subject.port, subject.headers) for subject in subjects]
    for caller in callers:
        for _ in range(200):
            caller.call()
    taken = [[caller.call() for caller in callers] for _ in range(rounds)]
    for caller in callers:
        caller.__exit__()
    return [list(column) for column in zip(*taken, strict=True)]


def seconds_to_first_answer(folder: Path, upstream: int) -> float:
    """From starting a process of ours to having its first answer."""
    port = free_port()
    command = ["taskset", "--cpu-list", str(SUBJECT_CORE), *sentinel_command(folder, port, upstream)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            with suppress(OSError, RuntimeError), OneByOne(port) as caller:
                caller.call()
                return time.monotonic() - began
            if process.poll() is not None:
                raise RuntimeError("the proxy ended before it answered")
            time.sleep(0.002)
    finally:
        process.terminate()
        process.wait()


def microseconds_per_call_while_watched(subject: Contender, folder: Path, seconds: float) -> float:
    """The same with `WATCHERS` clients at the live feed and a scrape each second."""
    with _watched(subject.port), _scraped(subject.port):
        return microseconds_per_call(subject, folder, seconds)


@contextmanager
def _watched(port: int) -> Iterator[None]:
    opening = (
        b"GET /ws/system-events HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(WATCHERS)]
    for client in clients:
        client.sendall(opening)
        if not client.recv(4096).startswith(b"HTTP/1.1 101 "):
            raise RuntimeError("the live feed did not open")
    stop = Event()
    reader = Thread(target=_drain, args=(clients, stop))
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()
        for client in clients:
            client.close()


def _drain(clients: Sequence[socket.socket], stop: Event) -> None:
    for client in clients:
        client.setblocking(False)
    while not stop.wait(0.2):
        for client in clients:
            with suppress(BlockingIOError):
                client.recv(65_536)


@contextmanager
def _scraped(port: int) -> Iterator[None]:
    stop = Event()

    def scrape() -> None:
        while not stop.wait(1):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read()

    scraper = Thread(target=scrape)
    scraper.start()
    try:
        yield
    finally:
        stop.set()
        scraper.join()
