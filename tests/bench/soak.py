"""
A soak: a million calls through one process, to see that nothing is left of them.

    .venv/bin/python tests/bench/soak.py [--calls N] [--json FILE]

The proxy (`soaked`) has a core of its own; the callers and a faulty upstream (`faulty`) share the
other. A tenth of the calls are streams, a twentieth of the upstream's answers are faults, and some callers
hang up in the middle; meanwhile the live feed is watched and the metrics are scraped. Every answer is
judged. Ends with 1 if an answer was neither whole nor an honest error, or if anything was left.
"""

import argparse
import asyncio
import json
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from os import sched_setaffinity
from pathlib import Path
from random import Random
from typing import Any, Final

import uvloop
from callers import Load
from faulty import Dialect, Faulty, Fortune, ollama, openai
from machine import OTHER_CORE, SUBJECT_CORE, described
from soaked import COLLECT
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

CONNECTIONS: Final = 64
WATCHERS: Final = 3
WATCH_SECONDS: Final = 10
SCRAPE_SECONDS: Final = 3

IDLE_SECONDS: Final = 3
"""From the start until the first probes are over."""

REST_SECONDS: Final = 30
"""For all to be as before: a connection to an upstream may stay idle for 15 seconds."""

FLAT_BYTES: Final = 8 * 2**20
"""Growth that is no leak: half of what a million calls would leave that left one small object each."""

LEFT: Final = (
    "descriptors",
    "threads",
    "alarms",
    "timers",
    "callers",
    "watchers",
    "in_flight",
    "open_streams",
    "attempts",
    "exchanges",
    "idle_connections",
    "trials",
)


class Subject:
    """The proxy's process, as seen from outside and, through its witness, from inside."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader, self._writer = reader, writer
        self.lines = 0

    async def sample(self, *, collect: bool = False) -> dict[str, Any]:
        """Return how it is now."""
        self._writer.write(COLLECT if collect else b"look\n")
        seen: dict[str, Any] = json.loads(await self._reader.readline())
        about = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":\t") for line in (about / "status").read_text().splitlines())
        return {
            "resident_bytes": int(status["VmRSS"].split()[0]) * 1024,
            "descriptors": len(list((about / "fd").iterdir())),
            "threads": int(status["Threads"]),
            **seen,
        }

    async def read_log(self) -> None:
        """Read its lines and count them."""
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(1 << 20):
            self.lines += data.count(b"\n")


@asynccontextmanager
async def soaked(*upstreams: int) -> AsyncIterator[Subject]:
    """Run the proxy before those who listen on *upstreams*."""
    here, there = socket.socketpair()
    arguments = [str(Path(__file__).with_name("soaked.py")), *map(str, (there.fileno(), *upstreams))]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=PIPE, pass_fds=[there.fileno()]
    )
    there.close()
    sched_setaffinity(process.pid, {SUBJECT_CORE})
    reader, writer = await asyncio.open_connection(sock=here)
    subject = Subject(process, reader, writer)
    log = asyncio.create_task(subject.read_log(), name="log")
    try:
        yield subject
    finally:
        process.terminate()
        await process.wait()
        await log
        writer.close()


async def watch(port: int) -> None:
    """Listen to the live feed; leave now and then, and come back."""
    while True:
        async with connect(f"ws://127.0.0.1:{port}/ws/system-events") as feed:
            with suppress(TimeoutError, ConnectionClosed):
                async with asyncio.timeout(WATCH_SECONDS):
                    async for _ in feed:
                        pass


async def scrape(port: int) -> None:
    """Read the metrics as Prometheus does, each time on a new connection."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        if not (await reader.read()).startswith(b"HTTP/1.1 200 "):
            raise RuntimeError("the metrics could not be read")
        writer.close()
        await asyncio.sleep(SCRAPE_SECONDS)


async def _soak(calls: int) -> dict[str, Any]:
    """Return all that was seen; `problems` is what should not have been."""
    fortunes = {"openai": Fortune(Random(1)), "ollama": Fortune(Random(2))}
    ports = [
        await _upstream(openai(), fortunes["openai"]),
        await _upstream(ollama(), fortunes["ollama"]),
    ]
    async with soaked(*ports) as subject:
        port = (await subject.sample())["port"]
        await asyncio.sleep(IDLE_SECONDS)
        before = await subject.sample(collect=True)
        load = Load(port, calls, Random(3))
        samples = await _loaded(subject, load)
        after = await _rested(subject, before)
    answers = {name: dict(fortune.answers) for name, fortune in fortunes.items()}
    problems = [*_of_answers(load, answers, subject.lines), *_of_memory(samples), *_left(before, after)]
    return {
        "machine": described(),
        "outcomes": dict(load.outcomes),
        "slowest_seconds": load.slowest_seconds,
        "upstreams": answers,
        "log_lines": subject.lines,
        "before": before,
        "samples": samples,
        "after": after,
        "wrong": load.wrong,
        "problems": problems,
    }


async def _upstream(dialect: Dialect, fortune: Fortune) -> int:
    """Listen until the event loop ends; return the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Faulty(dialect, fortune), "127.0.0.1", 0, backlog=1024)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _loaded(subject: Subject, load: Load) -> list[dict[str, Any]]:
    """Make all calls, with everybody else around; return what was seen on the way."""
    samples: list[dict[str, Any]] = []
    async with asyncio.TaskGroup() as group:
        others = [group.create_task(watch(load.port)) for _ in range(WATCHERS)]
        others.append(group.create_task(scrape(load.port)))
        callers = [group.create_task(load.caller()) for _ in range(CONNECTIONS)]
        began = time.monotonic()
        while load.done < load.calls:
            await load.progress.wait()
            load.progress.clear()
            seconds = time.monotonic() - began
            sample = {"calls": load.done, "seconds": seconds, **await subject.sample()}
            _print_sample(sample, load, samples[-1] if samples else {"calls": 0, "seconds": 0.0})
            samples.append(sample)
        await asyncio.wait(callers)
        for task in others:
            task.cancel()
    return samples


async def _rested(subject: Subject, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return how it is once nothing is left, or at the latest after `REST_SECONDS`."""
    for _ in range(REST_SECONDS):
        after = await subject.sample(collect=True)
        if not _left(before, after):
            break
        await asyncio.sleep(1)
    return after


def _of_answers(load: Load, answers: Mapping[str, Mapping[str, int]], lines: int) -> list[str]:
    problems = [f"wrong: {what[:1000]}" for what in load.wrong]
    problems += [f"{name} was never asked" for name, given in answers.items() if not given]
    if lines < load.calls:
        problems.append(f"only {lines} lines of log for {load.calls} calls")
    return problems


def _of_memory(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    grown = samples[-1]["resident_bytes"] - samples[0]["resident_bytes"]
    return [f"resident memory grew by {grown / 2**20:.1f} MiB"] if grown > FLAT_BYTES else []


def _left(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what there is more of than before the load."""
    tasks = Counter(after["tasks"]) - Counter(before["tasks"])
    return [
        *(
            f"{name}: {before[name]} before, {after[name]} after"
            for name in LEFT
            if after[name] > before[name]
        ),
        *(f"task {name}: {count} more" for name, count in tasks.items()),
    ]


def _print_sample(sample: Mapping[str, Any], load: Load, last: Mapping[str, Any]) -> None:
    rate = (sample["calls"] - last["calls"]) / (sample["seconds"] - last["seconds"])
    print(
        f"{sample['calls']:9,} calls {rate:6.0f}/s {sample['resident_bytes'] / 2**20:7.1f} MiB"
        f" {sample['descriptors']:4} fds {sum(sample['tasks'].values()):4} tasks {sample['alarms']:4} alarms"
        f" {sample['objects']:8,} objects  {dict(load.outcomes)}",
        flush=True,
    )


def _print_end(seen: Mapping[str, Any]) -> None:
    for name in (*LEFT, "objects", "collected", "tasks"):
        print(f"{name:18}{seen['before'][name]!s:>10}{seen['after'][name]!s:>10}")
    samples = seen["samples"]
    grown = (samples[-1]["resident_bytes"] - samples[0]["resident_bytes"]) / 2**20
    print(f"\nmemory {grown:+.1f} MiB from {samples[0]['calls']:,} to {samples[-1]['calls']:,} calls")
    print(f"slowest answer {seen['slowest_seconds']:.2f} s; {seen['log_lines']:,} lines of log")
    print(f"upstreams answered {seen['upstreams']}")
    print("\n".join(seen["problems"]) or "nothing is left")


def main(arguments: Sequence[str]) -> int:
    """Soak, print and judge."""
    parser = argparse.ArgumentParser(prog="python tests/bench/soak.py", description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--json", type=Path, help="where to write all samples")
    given = parser.parse_args(arguments)
    sched_setaffinity(0, {OTHER_CORE})
    seen = uvloop.run(_soak(given.calls))
    _print_end(seen)
    if given.json is not None:
        given.json.write_text(json.dumps(seen, indent=2))
    return 1 if seen["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
