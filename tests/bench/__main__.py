"""
The benchmark: this proxy beside nginx, before the same upstream, in the same run.

    .venv/bin/python tests/bench [--quick] [--json FILE]

One core carries the proxy under test, another the upstream and the load. The contenders take
turns, round by round, and what counts are the medians and the ratios within a round: the machine's
mood meets both alike. What each figure means is in docs/performance.md. Nothing is asserted.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import measures
from contenders import Contender, all_of_them, canned_upstream
from inprocess import instructions_per_call, instructions_per_chunk, ratio_to_plain_python
from machine import OTHER_CORE, described, load_average, missing_programs, python_described

PAUSE_SECONDS: Final = 0.05
"""Twenty chunks a second and stream: what a fast model writes."""


class Plan:
    """How long and how often everything is measured."""

    def __init__(self, *, quick: bool) -> None:
        self.rounds = 3 if quick else 7
        self.seconds = 2.0 if quick else 5.0
        self.latencies = 1_000 if quick else 5_000
        self.streams = 200
        self.many_streams = (500, 1000, 2000, 5000)
        self.memory_streams = 500 if quick else 2000
        self.starts = 3 if quick else 7


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(prog="python tests/bench", description="This proxy beside nginx.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: three minutes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this; may be repeated")
    given = parser.parse_args(arguments)
    if missing := missing_programs():
        print(f"install first: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, {OTHER_CORE})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    plan = Plan(quick=given.quick)
    figures: dict[str, Any] = {
        "machine": described(),
        "python": python_described(),
        "load_average_before": load_average(),
    }
    print(f"{figures['machine']}; {figures['python']}; load average {load_average():.2f}")
    with tempfile.TemporaryDirectory() as name, canned_upstream(Path(name)) as upstream:
        folder = Path(name)
        with all_of_them(folder, upstream.port) as contenders:
            for part, measure in PARTS.items():
                if part in (given.only or PARTS):
                    figures[part] = measure(plan, contenders, folder, upstream)
    figures["load_average_after"] = load_average()
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


Part = Callable[[Plan, list[Contender], Path, Contender], Any]


def plain_calls(plan: Plan, contenders: list[Contender], folder: Path, _: Contender) -> dict[str, Any]:
    """CPU per call that is not streamed, at 32 connections."""
    for subject in contenders:
        measures.warm_up(subject, folder)
    return _in_turns(
        f"CPU per call, {measures.CONNECTIONS} connections",
        plan,
        contenders,
        lambda subject: measures.microseconds_per_call(subject, folder, plan.seconds),
    )


def streamed_calls(plan: Plan, contenders: list[Contender], _: Path, upstream: Contender) -> dict[str, Any]:
    """CPU per streamed call, at 200 streams of 20 chunks a second."""

    def measured(subject: Contender) -> float:
        figures = measures.streaming(
            subject,
            upstream,
            plan.streams,
            pause_seconds=PAUSE_SECONDS,
            seconds=plan.seconds,
            chunks=measures.CHUNKS,
        )
        if figures.broken:
            print(f"{subject.name}: {figures.broken} streams broken, {figures.whole} whole")
        return figures.microseconds_per_stream

    able = []
    for subject in contenders:
        try:
            measured(subject)  # to have it do once what is done only once
        except RuntimeError as trouble:
            print(f"{plan.streams} streamed calls at once, {subject.name}: {trouble}")
        else:
            able.append(subject)
    return _in_turns(f"CPU per streamed call of {measures.CHUNKS} chunks", plan, able, measured)


def many_streams(plan: Plan, contenders: list[Contender], _: Path, upstream: Contender) -> dict[str, Any]:
    """
    How many streams one core carries, and what that does to a chunk.

    Also without a proxy: what the load itself can do, which shares a core with the upstream.
    """
    found: dict[str, Any] = {}
    for count in plan.many_streams:
        for subject in (upstream, *contenders[:2]):
            try:
                figures = measures.streaming(
                    subject, upstream, count, pause_seconds=PAUSE_SECONDS, seconds=plan.seconds
                )
            except RuntimeError as trouble:
                print(f"{count} open streams, {subject.name}: {trouble}")
                continue
            found[f"{subject.name} {count}"] = asdict(figures)
            print(
                f"{count} open streams, {subject.name}:"
                f" {figures.chunks_per_second:.0f} of {figures.chunks_wanted_per_second:.0f} chunks/s,"
                f" {figures.core_share:.0%} of its core and {figures.load_share:.0%} of the load's,"
                f" a chunk takes {figures.delay_p50_ms:.2f} ms (p99 {figures.delay_p99_ms:.1f}),"
                f" {figures.whole} whole, {figures.broken} broken"
            )
    return found


def added_latency(plan: Plan, contenders: list[Contender], _: Path, upstream: Contender) -> dict[str, Any]:
    """What a call at one connection takes longer than without a proxy."""
    columns = measures.latencies([upstream, *contenders], plan.latencies)
    found: dict[str, Any] = {}
    direct, *others = (statistics.quantiles(column, n=1000) for column in columns)
    for subject, quantiles in zip(contenders, others, strict=True):
        row = {f"p{at / 10:g}_ms": (quantiles[at - 1] - direct[at - 1]) * 1000 for at in (500, 900, 990)}
        found[subject.name] = row
        told = ", ".join(f"{name.removesuffix('_ms')} {value:.3f} ms" for name, value in row.items())
        print(f"added latency at one connection, {subject.name}: {told}")
    return found


def memory(plan: Plan, _: list[Contender], folder: Path, upstream: Contender) -> dict[str, Any]:
    """Resident memory of a process that has just begun, and what an open stream adds."""
    found: dict[str, Any] = {}
    with all_of_them(folder, upstream.port) as fresh:
        measures.latencies(fresh, 10)
        for subject in fresh[:2]:
            idle = subject.process.resident_bytes()
            each = measures.bytes_per_open_stream(subject, upstream, plan.memory_streams)
            found[subject.name] = {"resident_bytes": idle, "bytes_per_stream": each}
            print(f"memory, {subject.name}: {idle / 1e6:.1f} MB, and {each / 1e3:.1f} kB per open stream")
    return found


def start(plan: Plan, _: list[Contender], folder: Path, upstream: Contender) -> dict[str, Any]:
    """From nothing to the first answer."""
    seconds = [measures.seconds_to_first_answer(folder, upstream.port) for _ in range(plan.starts)]
    print(f"start to first answer: {statistics.median(seconds):.2f} s")
    return {"seconds": seconds}


def watched(plan: Plan, contenders: list[Contender], folder: Path, _: Contender) -> dict[str, Any]:
    """What a hundred watchers and a scraper cost the calls."""
    subject = contenders[1]
    pairs = [
        (
            measures.microseconds_per_call(subject, folder, plan.seconds),
            measures.microseconds_per_call_while_watched(subject, folder, plan.seconds),
        )
        for _ in range(plan.rounds)
    ]
    ratio = statistics.median(watched / alone for alone, watched in pairs)
    print(
        f"with {measures.WATCHERS} watchers and a scrape each second, a call costs {ratio:.2f} times as much"
    )
    return {"pairs": pairs, "ratio": ratio}


def in_process(plan: Plan, _: list[Contender], __: Path, ___: Contender) -> dict[str, Any]:
    """A call without sockets: what our own code costs, whatever the machine's mood."""
    found: dict[str, Any] = {"ratio": ratio_to_plain_python()}
    print(f"in process, a call costs {found['ratio']:.2f} times the fixed piece of Python")
    found["instructions"] = instructions_per_call()
    if found["instructions"] is not None:
        print(f"in process, a call takes {found['instructions'] / 1000:.0f} thousand instructions")
    found["instructions_of_a_chunk"] = instructions_per_chunk()
    if found["instructions_of_a_chunk"] is not None:
        print(f"and a chunk of a stream {found['instructions_of_a_chunk'] / 1000:.1f} thousand")
    return found


PARTS: Final[dict[str, Part]] = {
    "plain_calls": plain_calls,
    "streamed_calls": streamed_calls,
    "added_latency": added_latency,
    "watched": watched,
    "start": start,
    "in_process": in_process,
    "many_streams": many_streams,
    "memory": memory,
}


def _in_turns(
    what: str, plan: Plan, contenders: list[Contender], measure: Callable[[Contender], float]
) -> dict[str, Any]:
    """Measure each contender once a round; the first is what the others are compared with."""
    rounds = [[measure(subject) for subject in contenders] for _ in range(plan.rounds)]
    found: dict[str, Any] = {"rounds_us": rounds}
    for at, subject in enumerate(contenders):
        middle = statistics.median(row[at] for row in rounds)
        ratio = statistics.median(row[at] / row[0] for row in rounds)
        found[subject.name] = {"microseconds": middle, "ratio": ratio}
        print(f"{what}, {subject.name}: {middle:.1f} us, {ratio:.2f} times nginx")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
