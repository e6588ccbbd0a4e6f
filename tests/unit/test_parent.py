"""A parent and its workers: what is decided, and what becomes of processes that only pretend to work."""

import asyncio
import signal
import socket
import sys
from typing import Any

import pytest
from harness import eventually

from sentinel_proxy.errors import ConfigError
from sentinel_proxy.server import Port, listen
from sentinel_proxy.workers import worker as worker_module
from sentinel_proxy.workers.parent import MAX_PAUSE_SECONDS, how, pause_seconds
from sentinel_proxy.workers.serving import url
from sentinel_proxy.workers.worker import Worker

pytestmark = pytest.mark.anyio


class TestDecisions:
    def test_a_worker_that_dies_is_replaced_at_once_and_those_that_die_young_ever_later(self) -> None:
        assert [pause_seconds(died) for died in range(6)] == [0, 0, 1, 2, 4, 8]
        assert pause_seconds(50) == MAX_PAUSE_SECONDS

    @pytest.mark.parametrize(
        ("code", "words"),
        [(-signal.SIGKILL, "killed by SIGKILL"), (3, "exit status 3"), (0, "exit status 0")],
    )
    def test_how_a_worker_ended_is_said_in_words(self, code: int, words: str) -> None:
        assert how(code) == words

    def test_an_address_is_written_as_clients_write_it(self) -> None:
        assert (url("127.0.0.1", 80), url("::1", 80)) == ("http://127.0.0.1:80", "http://[::1]:80")


class TestPort:
    def test_several_listen_on_one_port(self) -> None:
        port = Port("127.0.0.1", 0)
        sockets = [port.open() for _ in range(3)]

        assert {opened.getsockname() for opened in sockets} == {port.address}
        port.close()
        for opened in sockets:
            opened.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are copies of one socket")
    def test_nobody_queues_at_one_that_is_shut_even_if_another_process_has_it_still(self) -> None:
        port = Port("127.0.0.1", 0)
        shut, serves = port.open(), port.open()
        with shut.dup(), serves:
            port.shut(shut)
            callers = [socket.create_connection(port.address) for _ in range(20)]
            serves.setblocking(False)
            for caller in callers:
                serves.accept()[0].close()
                caller.close()
        port.close()

    def test_one_that_somebody_else_listens_on_is_refused(self) -> None:
        with listen("127.0.0.1", 0) as taken:
            taken.listen()

            with pytest.raises(ConfigError, match="in use"):
                Port("127.0.0.1", taken.getsockname()[1])

    def test_nobody_else_gets_it_while_several_listen(self) -> None:
        port = Port("127.0.0.1", 0)
        with port.open():
            with pytest.raises(ConfigError, match="in use"):
                listen(*port.address)
            with pytest.raises(ConfigError, match="in use"):
                Port(*port.address)
        port.close()

    def test_it_stays_ours_while_nobody_listens(self) -> None:
        port = Port("127.0.0.1", 0)
        port.open().close()

        with pytest.raises(OSError, match="use"), socket.socket() as other:
            other.bind(port.address)
        port.open().close()
        port.close()


class TestWorker:
    async def test_it_tells_that_it_lives_and_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker_module, "BEAT_SECONDS", 0.001)
        parent, line = socket.socketpair()
        with socket.socket() as listener, parent, line:
            beats: list[int] = []
            Worker(1, listener, line).serving(lambda: beats.append(1), lambda: None)

            await eventually(lambda: len(beats) >= 3)

            assert len(parent.recv(100)) >= 3
            asyncio.get_running_loop().remove_reader(line)

    async def test_a_parent_that_does_not_listen_holds_nobody_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_module, "BEAT_SECONDS", 0)
        parent, line = socket.socketpair()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with socket.socket() as listener, parent, line:
            beats: list[int] = []
            Worker(1, listener, line).serving(lambda: beats.append(1), lambda: None)

            await eventually(lambda: len(beats) > 2000)

            assert len(parent.recv(4000)) < len(beats)
            asyncio.get_running_loop().remove_reader(line)

    async def test_it_hears_once_when_its_parent_is_gone(self) -> None:
        parent, line = socket.socketpair()
        with socket.socket() as listener, line:
            heard: list[str] = []
            Worker(1, listener, line).serving(lambda: None, lambda: heard.append("gone"))

            parent.close()
            await eventually(lambda: heard)
            await asyncio.sleep(0)

            assert heard == ["gone"]


PRETENDER = """
import asyncio, os, signal, sys
from sentinel_proxy.server import Port
from sentinel_proxy.workers import parent

class Pretender:
    told = 0

    def listening(self):
        print("listening", flush=True)

    def tell(self, level, event, **fields):
        print(event, fields.get("worker"), fields.get("how", fields.get("problem", "")), flush=True)
        Pretender.told += 1
        if Pretender.told == {ends_after}:
            os.kill(os.getpid(), signal.SIGTERM)

    def reload(self):
        return True

    def left(self, number):
        print("left", number, flush=True)

    def serve(self, worker):
        async def serve():
            ended = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
            {serves}
            await ended.wait()
        asyncio.run(serve())

parent.TICK_SECONDS = {tick_seconds}
parent.pause_seconds = lambda died: {pause_seconds}
port = Port("127.0.0.1", 0)
print(port.address[1], flush=True)
sys.exit(parent.Parent({count}, port, Pretender()).run())
"""

SERVES = "worker.serving(lambda: None, ended.set)"


async def started(
    serves: str,
    count: int = 2,
    ends_after: int = 0,
    tick_seconds: float = 1.0,
    pause_seconds: float = 0.0,
) -> tuple[asyncio.subprocess.Process, int]:
    """Start a parent whose workers do *serves*; return it, and its port."""
    program = PRETENDER.format(
        serves=serves,
        count=count,
        ends_after=ends_after,
        tick_seconds=tick_seconds,
        pause_seconds=pause_seconds,
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return process, int(await process.stdout.readline())


async def pretend(serves: str, **how: Any) -> tuple[int, list[str], str]:
    """Run such a parent to its end; return its exit status, what it said, and its stderr."""
    process, _ = await started(serves, **how)
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode().splitlines(), err.decode()


class TestParent:
    async def test_it_gives_up_if_no_worker_ever_serves(self) -> None:
        code, said, err = await pretend("sys.exit(3)")

        assert code == 1
        failures = [line for line in said if line.startswith("a worker did not start")]
        assert len(failures) in (4, 5)  # two that fail together are both told
        assert set(failures) == {f"a worker did not start {number} exit status 3" for number in (1, 2)}
        assert "listening" not in said
        assert err == "sentinel-proxy: no worker could be started; the log says why\n"

    async def test_it_never_gives_up_while_one_serves(self) -> None:
        code, said, err = await pretend(
            f"sys.exit(3) if worker.number == 1 else {SERVES}", count=2, ends_after=12
        )

        assert (code, err) == (0, "")
        assert said.count("listening") == 1
        assert said.count("a worker did not start 1 exit status 3") == 12

    async def test_one_that_says_nothing_is_killed_and_replaced(self) -> None:
        code, said, _ = await pretend(
            "os.kill(os.getpid(), signal.SIGSTOP)", count=1, ends_after=2, tick_seconds=0.01
        )

        assert code == 0
        assert said[:3] == [
            "a worker does not answer and is killed 1 ",
            "left 1",
            "a worker did not start 1 killed by SIGKILL",
        ]

    async def test_one_that_ends_by_itself_is_replaced(self) -> None:
        code, said, err = await pretend(f"{SERVES}; ended.set()", count=1, ends_after=3)

        assert (code, err) == (0, "")
        assert said.count("a worker has ended 1 exit status 0") == 3

    async def test_an_error_in_one_is_shown_and_it_is_replaced(self) -> None:
        code, said, err = await pretend(f"{SERVES}; 1 / 0", count=1, ends_after=1)

        assert code == 0
        assert "a worker has ended 1 exit status 1" in said
        assert "ZeroDivisionError" in err

    async def test_while_it_waits_with_one_nobody_queues_for_it_in_vain(self) -> None:
        answers = "await asyncio.start_server(lambda _, writer: writer.close(), sock=worker.listener)"
        process, port = await started(
            f"sys.exit(3) if worker.number == 1 else {SERVES}; {answers}", pause_seconds=600.0
        )
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b"did not start 1" not in await process.stdout.readline():
                pass
            for _ in range(50):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()
            process.terminate()
            await process.communicate()

        assert process.returncode == 0
