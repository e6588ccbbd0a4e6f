"""What is measured, one function each. Nothing here judges: it returns figures."""

import asyncio
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
from loads import OneByOne, streams, wrk
from machine import SUBJECT_CORE, free_port

CONNECTIONS: Final = 32
CHUNKS: Final = 100
WATCHERS: Final = 100


def warm_up(subject: Contender, folder: Path) -> None:
    """Have *subject* do once what is done only once."""
    with OneByOne(subject.port) as caller:
        caller.call()
    wrk(subject.port, folder, connections=CONNECTIONS, seconds=1)


def microseconds_per_call(subject: Contender, folder: Path, seconds: float) -> float:
    """CPU of *subject* per call that is not streamed, at `CONNECTIONS` connections."""
    before = subject.process.cpu_seconds()
    calls = wrk(subject.port, folder, connections=CONNECTIONS, seconds=seconds)
    return (subject.process.cpu_seconds() - before) / calls.count * 1e6


@dataclass(slots=True)
class StreamFigures:
    """How *subject* carried many streams at once."""

    microseconds_per_stream: float  # of CPU, for one of `CHUNKS` chunks
    chunks_per_second: float
    core_share: float  # of its core that it used
    delay_p50_ms: float  # of a chunk, from the upstream's write to the caller's read
    delay_p99_ms: float
    broken: int


async def streaming(subject: Contender, count: int, pause_seconds: float, seconds: float) -> StreamFigures:
    """Hold *count* streams of `CHUNKS` chunks open, each with one chunk a pause."""
    async with streams(subject.port, count, chunks=CHUNKS, pause_seconds=pause_seconds) as seen:
        await asyncio.sleep(1)
        cpu, chunks, began = subject.process.cpu_seconds(), seen.chunks, time.monotonic()
        seen.sampling = True
        await asyncio.sleep(seconds)
        seen.sampling = False
        cpu, chunks = subject.process.cpu_seconds() - cpu, seen.chunks - chunks
        took, broken = time.monotonic() - began, seen.broken
    delays = statistics.quantiles(seen.delays, n=100)
    return StreamFigures(
        cpu / chunks * CHUNKS * 1e6,
        chunks / took,
        cpu / took,
        delays[49] * 1000,
        delays[98] * 1000,
        broken,
    )


async def bytes_per_open_stream(subject: Contender, count: int) -> float:
    """Resident memory that each of *count* open streams adds."""
    async with streams(subject.port, count // 10, chunks=1_000, pause_seconds=1.0):
        pass  # what is grown once is grown now
    before = subject.process.resident_bytes()
    async with streams(subject.port, count, chunks=1_000, pause_seconds=1.0):
        await asyncio.sleep(1)
        return (subject.process.resident_bytes() - before) / count


def latencies(ports: Sequence[int], rounds: int) -> list[list[float]]:
    """
    Seconds of single calls at each of *ports*, one connection each, taken in turns.

    In turns, because a machine's mood changes: what one of them meets, the others meet too.
    """
    callers = [OneByOne(port) for port in ports]
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
