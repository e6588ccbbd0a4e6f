"""
What the benchmark knows of the machine: cores, processes, their CPU time and their memory.

Linux only: it reads /proc. CPU time is the kernel's own account of a process, all its threads, in
ticks of 10 ms: exact enough over seconds, and blind to what else the machine does.
"""

import os
import platform
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
START_SECONDS: Final = 60.0

SUBJECT_CORE: Final = min(os.sched_getaffinity(0))
"""Where the proxy runs that is being measured, and nothing else of ours."""

OTHER_CORE: Final = max(os.sched_getaffinity(0))
"""Where the upstream and the load run."""


class Process:
    """A process of the benchmark, on one core. Leaving the context ends it."""

    def __init__(
        self, command: Sequence[str], core: int, output: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        with output.open("wb") as sink:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command],
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        self.output = output
        self.pid = self._process.pid

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, in user mode and for system calls."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def resident_bytes(self) -> int:
        """Return how much of its memory is in RAM."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def wait_until_listening(self, port: int) -> None:
        """
        Wait until something accepts connections on *port*.

        Raises:
            RuntimeError: The process has ended, or nothing does; quotes what it wrote.
        """
        until = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.005)
            else:
                return
        raise RuntimeError(f"{self.output.stem} does not listen:\n{self.output.read_text()[-2000:]}")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def missing_programs() -> list[str]:
    """Return what must be installed first, by the names of Debian's packages."""
    packages = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}
    return [package for program, package in packages.items() if shutil.which(program) is None]


def described() -> str:
    """Return what kind of machine this is, in a few words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return f"{model}, {os.cpu_count()} cores, Linux {os.uname().release}"


def python_described() -> str:
    """
    Return which Python this is, and that it was built with optimisation, if it says so.

    Builds without are a sixth slower; some that have it, Debian's among them, do not say.
    """
    said = " ".join(
        str(sysconfig.get_config_var(name)) for name in ("CONFIG_ARGS", "PY_CFLAGS", "PY_LDFLAGS")
    )
    signs = ("--enable-optimizations", "--with-lto", "-fprofile-use", "-flto")
    optimised = ", optimised" if any(sign in said for sign in signs) else ""
    return f"Python {platform.python_version()} ({platform.python_compiler()}{optimised})"


def load_average() -> float:
    """Return how busy the machine has been in the last minute, with us or without."""
    return os.getloadavg()[0]
