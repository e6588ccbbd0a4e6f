"""Several workers as people run them: real processes, killed and drained in the middle of calls."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import CHAT, eventually
from prometheus_client.parser import text_string_to_metric_families
from redis_support import RedisServer
from test_commands import Serving, assert_one_line, free_port, run, serving

from sentinel_proxy.testing import FaultyUpstream, openai_completion, openai_error, openai_stream

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

WORKERS = 3


class Workers(Serving):
    """A proxy of several workers, its processes and its log."""

    def pids(self) -> list[int]:
        """Return the workers' own, in the order in which they were started."""
        parent = self.process.pid
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]

    async def next_line(self) -> dict[str, Any]:
        """Read one line of the log."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            raw = await self.process.stdout.readline()
        assert raw, f"it ended: {self.lines}"
        self.lines.append(json.loads(raw))
        return self.lines[-1]

    async def all_ready(self) -> str:
        """Wait until each worker has said that it is ready; return the address."""
        address = ""
        ready: set[int] = set()
        while len(ready) < WORKERS or not address:
            line = await self.next_line()
            if line["event"] == "ready":
                ready.add(line["worker"])
            if line["event"] == "listening":
                address = line["address"]
        return address

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read the log until a line is found that *holds*."""
        while not holds(line := await self.next_line()):
            pass
        return line

    async def kill(self, pid: int, sent: signal.Signals = signal.SIGKILL) -> int:
        """Kill one worker and wait until another has taken its place; return that one's number."""
        os.kill(pid, sent)
        line = await self.until(lambda line: line["event"] == "a worker has ended")
        number: int = line["worker"]
        await self.until(lambda line: line["event"] == "ready" and line["worker"] == number)
        return number


@pytest.fixture
async def workers(redis_server: RedisServer, primary: FaultyUpstream) -> AsyncIterator[Workers]:
    variables = {
        "REDIS_URL": redis_server.url,
        "OPENAI_BASE_URL": f"{primary.url}/v1",
        "OPENAI_API_KEY": "sk-of-the-proxy",
        "RATE_LIMIT_REQUESTS": "0",
    }
    async with serving("serve", "--workers", str(WORKERS), **variables) as started:
        yield Workers(started.process)


async def alone(url: str, **fields: Any) -> httpx.Response:
    """Make one call on a connection of its own."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return await client.post(f"{url}/v1/chat/completions", json=CHAT | fields)


def calls(upstream: FaultyUpstream) -> int:
    """Return how many calls it has had; probes are none."""
    return sum(request.method == "POST" for request in upstream.requests)


async def counted(url: str, name: str = "sentinel_requests_total") -> float:
    """Scrape once, on a connection of its own, and return the sum of the series *name*."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        text = (await client.get(f"{url}/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


def gone(pid: int) -> bool:
    """Whether there is no such process, or nothing left of it but its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_all_of_them_answer_and_whoever_is_scraped_tells_the_sum(
    workers: Workers, primary: FaultyUpstream
) -> None:
    primary.always(openai_completion("served"))
    url = await workers.all_ready()

    replies = [await alone(url) for _ in range(60)]
    sums = {await counted(url) for _ in range(20)}
    lines = [await workers.line("call") for _ in replies]

    assert {reply.status_code for reply in replies} == {200}
    assert sums == {60}
    assert {line["worker"] for line in lines} == set(range(1, WORKERS + 1))
    assert await counted(url, "sentinel_request_duration_seconds_count") == 60


async def test_it_listens_once_and_ends_with_zero_leaving_nobody(workers: Workers) -> None:
    url = await workers.all_ready()
    pids = workers.pids()

    code, err = await workers.end(signal.SIGTERM)

    assert (code, err) == (0, "")
    assert [line["event"] for line in workers.lines].count("listening") == 1
    assert len(pids) == WORKERS
    assert all(map(gone, pids))
    with pytest.raises(httpx.ConnectError):
        await alone(url)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_streams_of_all_workers_finish(
    workers: Workers, primary: FaultyUpstream, sent: signal.Signals
) -> None:
    primary.always(openai_stream(["a", "b", "c", "d"], pause=0.3))
    url = await workers.all_ready()
    streams = [asyncio.create_task(alone(url, stream=True)) for _ in range(12)]
    await eventually(lambda: calls(primary) == len(streams), seconds=10)

    code, err = await workers.end(sent)
    replies = await asyncio.gather(*streams)

    assert all(reply.text.endswith("data: [DONE]\n\n") for reply in replies)
    assert (code, err) == (0, "")


async def test_control_c_in_a_terminal_which_reaches_every_process_is_one_interrupt(
    workers: Workers, primary: FaultyUpstream
) -> None:
    primary.always(openai_stream(["a", "b", "c", "d"], pause=0.3))
    url = await workers.all_ready()
    streams = [asyncio.create_task(alone(url, stream=True)) for _ in range(12)]
    await eventually(lambda: calls(primary) == len(streams), seconds=10)

    for pid in workers.pids():
        os.kill(pid, signal.SIGINT)
    code, err = await workers.end(signal.SIGINT)
    replies = await asyncio.gather(*streams)

    assert all(reply.text.endswith("data: [DONE]\n\n") for reply in replies)
    assert (code, err) == (0, "")


async def test_a_second_interrupt_ends_at_once(workers: Workers, primary: FaultyUpstream) -> None:
    primary.always(openai_stream(["a", "b"], pause=30))
    url = await workers.all_ready()
    streams = [asyncio.create_task(alone(url, stream=True)) for _ in range(6)]
    await eventually(lambda: calls(primary) == len(streams), seconds=10)

    workers.process.send_signal(signal.SIGINT)
    for _ in range(WORKERS):
        await workers.line("draining")
    code, err = await workers.end(signal.SIGINT)
    await asyncio.gather(*streams, return_exceptions=True)

    assert (code, err) == (0, "")


async def test_a_worker_that_is_killed_under_load_costs_no_call_but_its_own(
    workers: Workers, primary: FaultyUpstream
) -> None:
    primary.always(openai_stream(["a", "b", "c"], pause=0.02))
    url = await workers.all_ready()
    going, whole, lost = True, 0, list[BaseException]()

    async def calls_on_one_connection() -> None:
        nonlocal whole
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            while going:
                try:
                    reply = await client.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True})
                except httpx.TransportError as error:
                    lost.append(error)
                    continue
                assert reply.text.endswith("data: [DONE]\n\n"), reply.text
                whole += 1

    callers = [asyncio.create_task(calls_on_one_connection()) for _ in range(12)]
    victim = workers.pids()[0]
    for _ in range(24):
        await workers.line("call")
    held = connections_of(victim, url)
    await workers.kill(victim)
    for _ in range(36):
        await workers.line("call")
    going = False
    await asyncio.gather(*callers)

    assert 0 < held < len(callers)
    assert len(lost) <= held
    assert len(workers.pids()) == WORKERS
    # A call may be whole, and its worker killed before it was counted.
    assert whole - held <= await counted(url) <= whole + held


def connections_of(pid: int, url: str) -> int:
    """Return how many connections of callers the process holds."""
    port = httpx.URL(url).port
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[9] in inodes and row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def test_what_a_killed_worker_counted_is_still_told(workers: Workers, primary: FaultyUpstream) -> None:
    primary.always(openai_completion("served"))
    url = await workers.all_ready()
    for _ in range(30):
        await alone(url)

    for pid in workers.pids():
        await workers.kill(pid)
        await alone(url)

    assert {await counted(url) for _ in range(10)} == {33}


async def test_what_one_of_them_learns_all_know(workers: Workers, primary: FaultyUpstream) -> None:
    primary.always(openai_error(401, "invalid_api_key"))
    url = await workers.all_ready()
    await alone(url)

    told = set[int]()
    while len(told) < WORKERS:
        line = await workers.until(lambda line: line["event"] == "breaker changed")
        if (line["provider"], line["after"]) == ("openai", "open"):
            told.add(line["worker"])
    for _ in range(20):
        assert "openai:open" in (await alone(url)).headers["x-sentinel-trail"]

    assert calls(primary) == 1


class TestReload:
    @pytest.fixture
    async def file(self, tmp_path: Path, primary: FaultyUpstream) -> Path:
        path = tmp_path / "sentinel.toml"
        self.write(path, "before", primary)
        return path

    def write(self, path: Path, name: str, upstream: FaultyUpstream) -> None:
        """Write a configuration with one provider of this *name*."""
        path.write_text(
            f'[[providers]]\nname = "{name}"\nkind = "openai"\nbase_url = "{upstream.url}/v1"\n'
            'api_key = "sk-of-the-proxy"\n[rate_limit]\nrequests = 0\n'
        )

    @pytest.fixture
    async def reloading(self, redis_server: RedisServer, file: Path) -> AsyncIterator[Workers]:
        variables = {"REDIS_URL": redis_server.url, "SENTINEL_CONFIG": str(file)}
        async with serving("serve", "--workers", str(WORKERS), **variables) as started:
            yield Workers(started.process)

    async def test_a_hangup_reaches_all_and_those_to_come(
        self, reloading: Workers, file: Path, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        url = await reloading.all_ready()
        assert (await alone(url)).headers["x-sentinel-provider"] == "before"

        self.write(file, "after", primary)
        reloading.process.send_signal(signal.SIGHUP)
        told = {(await reloading.line("configuration reloaded"))["worker"] for _ in range(WORKERS)}
        await reloading.kill(reloading.pids()[0])
        providers = {(await alone(url)).headers["x-sentinel-provider"] for _ in range(20)}

        assert told == set(range(1, WORKERS + 1))
        assert providers == {"after"}

    async def test_a_broken_file_is_told_once_and_changes_nothing(
        self, reloading: Workers, file: Path, primary: FaultyUpstream
    ) -> None:
        primary.always(openai_completion("served"))
        url = await reloading.all_ready()

        self.write(file, 'a "name" that breaks it', primary)
        reloading.process.send_signal(signal.SIGHUP)
        refused = await reloading.until(lambda line: line["level"] == "error")
        await reloading.kill(reloading.pids()[0])
        providers = {(await alone(url)).headers["x-sentinel-provider"] for _ in range(20)}
        await reloading.end(signal.SIGTERM)

        assert "not reloaded" in refused["event"]
        assert "TOML" in refused["problem"]
        assert "worker" not in refused
        assert providers == {"before"}


async def test_workers_whose_parent_is_killed_free_the_port_finish_and_end(
    workers: Workers, primary: FaultyUpstream
) -> None:
    primary.always(openai_stream(["a", "b", "c", "d"], pause=0.3))
    url = await workers.all_ready()
    pids = workers.pids()
    streams = [asyncio.create_task(alone(url, stream=True)) for _ in range(6)]
    await eventually(lambda: calls(primary) == len(streams), seconds=10)

    workers.process.kill()
    await workers.process.wait()
    await eventually(lambda: free(url), seconds=10)
    replies = await asyncio.gather(*streams)

    assert all(reply.text.endswith("data: [DONE]\n\n") for reply in replies)
    await eventually(lambda: all(map(gone, pids)), seconds=10)


def free(url: str) -> bool:
    """Whether somebody else could listen there."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", httpx.URL(url).port or 0))
            other.listen()
        except OSError:
            return False
    return True


async def test_a_port_in_use_is_refused_once(redis_server: RedisServer) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()

        finished = await run(
            "serve", "--workers", "3", "--port", str(port), env={"REDIS_URL": redis_server.url}
        )

    assert_one_line(finished, f"127.0.0.1:{port}", "in use")
