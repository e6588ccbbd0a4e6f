"""
The commands as people type them: real processes, real sockets, real signals.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import CHAT

from sentinel_proxy import __version__
from sentinel_proxy.testing import FaultyUpstream, ollama_completion, openai_completion, openai_stream

pytestmark = pytest.mark.anyio

OUR_KEY = "sk-of-the-proxy-0123456789"


def environment(**variables: str) -> dict[str, str]:
    """Return what a process needs to run, and *variables*; nothing of this machine's settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | variables


@dataclass
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


async def run(*arguments: str, env: Mapping[str, str] | None = None) -> Finished:
    """Run one command to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sentinel_proxy",
        *arguments,
        env=environment(**(env or {})),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return Finished(process.returncode or 0, out.decode(), err.decode())


class Serving:
    """A proxy in a process of its own, and its log so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def line(self, event: str) -> dict[str, Any]:
        """Read the log until *event* is told."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while raw := await self.process.stdout.readline():
                self.lines.append(json.loads(raw))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]
        raise AssertionError(f"it ended without {event!r}: {self.lines}")

    async def url(self) -> str:
        address: str = (await self.line("listening"))["address"]
        return address

    async def end(self, sent: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit status and what is on stderr."""
        self.process.send_signal(sent)
        async with asyncio.timeout(20):
            _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


@asynccontextmanager
async def serving(*arguments: str, **variables: str) -> AsyncIterator[Serving]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sentinel_proxy",
        *arguments,
        "--port",
        "0",
        env=environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Serving(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        yield client


async def test_the_version_is_the_packages() -> None:
    finished = await run("--version")

    assert (finished.code, finished.out.strip()) == (0, f"sentinel-proxy {__version__}")


class TestServe:
    async def test_it_serves_says_where_and_ends_with_zero(
        self, primary: FaultyUpstream, client: httpx.AsyncClient
    ) -> None:
        primary.always(openai_completion("served"))
        variables = {"OPENAI_BASE_URL": f"{primary.url}/v1", "OPENAI_API_KEY": "sk-of-the-proxy"}

        async with serving(**variables) as proxy:
            url = await proxy.url()
            reply = await client.post(f"{url}/v1/chat/completions", json=CHAT)
            line = await proxy.line("call")
            code, err = await proxy.end(signal.SIGTERM)

        assert reply.json()["choices"][0]["message"]["content"] == "served"
        assert line["trail"] == ["openai:200"]
        assert line["trace_id"] == reply.headers["x-sentinel-trace-id"]
        assert (code, err) == (0, "")

    @pytest.mark.parametrize("command", [(), ("serve",)], ids=["no command", "serve"])
    async def test_with_no_file_and_no_key_it_serves_from_ollama_and_says_so(
        self, backup: FaultyUpstream, client: httpx.AsyncClient, command: tuple[str, ...]
    ) -> None:
        backup.always(ollama_completion("served by Ollama"))

        async with serving(*command, OLLAMA_BASE_URL=backup.url) as proxy:
            url = await proxy.url()
            reply = await client.post(f"{url}/v1/chat/completions", json=CHAT)
            await proxy.end(signal.SIGINT)

        assert reply.json()["choices"][0]["message"]["content"] == "served by Ollama"
        assert reply.headers["x-sentinel-trail"] == "openai:unsupported,ollama:200"
        told = " ".join(line["event"] for line in proxy.lines)
        assert "no OPENAI_API_KEY" in told
        assert "served by ollama" in told

    async def test_the_file_the_environment_names_is_read(
        self, primary: FaultyUpstream, client: httpx.AsyncClient, tmp_path: Path
    ) -> None:
        primary.always(openai_completion("served"))
        file = tmp_path / "sentinel.toml"
        file.write_text(
            f'[[providers]]\nname = "mine"\nkind = "openai"\nbase_url = "{primary.url}/v1"\n'
            'api_key = "env:MY_KEY"\n'
        )

        async with serving(SENTINEL_CONFIG=str(file), MY_KEY="sk-mine") as proxy:
            reply = await client.post(f"{await proxy.url()}/v1/chat/completions", json=CHAT)

        assert reply.headers["x-sentinel-trail"] == "mine:200"
        assert primary.requests[0].header("authorization") == "Bearer sk-mine"

    async def test_a_stream_that_runs_at_the_end_is_completed(
        self, primary: FaultyUpstream, client: httpx.AsyncClient
    ) -> None:
        """K02, K04."""
        primary.always(openai_stream(["a", "b", "c", "d"], pause=0.1))
        variables = {"OPENAI_BASE_URL": f"{primary.url}/v1", "OPENAI_API_KEY": "sk-of-the-proxy"}

        async with serving(**variables) as proxy:
            url = await proxy.url()
            async with client.stream(
                "POST", f"{url}/v1/chat/completions", json=CHAT | {"stream": True}
            ) as reply:
                parts = aiter(reply.aiter_text())
                text = await anext(parts)
                ending = asyncio.create_task(proxy.end(signal.SIGTERM))
                text += "".join([part async for part in parts])
            code, err = await ending

        assert text.endswith("data: [DONE]\n\n")
        assert (code, err) == (0, "")

    async def test_a_log_that_nobody_reads_holds_up_no_call(
        self, primary: FaultyUpstream, client: httpx.AsyncClient
    ) -> None:
        primary.always(openai_completion("served"))
        variables = {
            "OPENAI_BASE_URL": f"{primary.url}/v1",
            "OPENAI_API_KEY": "sk-of-the-proxy",
            "RATE_LIMIT_REQUESTS": "0",
        }
        reading, writing = os.pipe()
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sentinel_proxy", "--port", str(port)),
            env=environment(**variables),
            stdout=writing,
            stderr=asyncio.subprocess.DEVNULL,
        )
        os.close(writing)
        try:
            await ready(client, f"http://127.0.0.1:{port}")
            for _ in range(180):  # some 450 bytes a line, and a pipe holds 64 KiB
                reply = await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT)
                assert reply.status_code == 200
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        finally:
            os.close(reading)
            if process.returncode is None:
                process.kill()
                await process.wait()


def free_port() -> int:
    with socket.socket() as claim:
        claim.bind(("127.0.0.1", 0))
        port: int = claim.getsockname()[1]
        return port


async def ready(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


class TestMistakes:
    """One clear line on stderr for each mistake, nothing on stdout, exit status 2."""

    async def test_a_port_in_use(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]

            finished = await run("serve", "--port", str(port))

        assert_one_line(finished, f"127.0.0.1:{port}", "in use", "--port")

    async def test_an_address_that_is_not_this_machines(self) -> None:
        finished = await run("serve", "--host", "192.0.2.1", "--port", "0")

        assert_one_line(finished, "192.0.2.1", "no such address", "--host")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, ("no such file",)),
            ("[[providers", ("TOML",)),
            ("[server]\nprot = 8000\n", ("server.prot", "port")),
            ('[server]\nport = "many"\n', ("server.port",)),
            ("\xff", ("UTF-8",)),
        ],
        ids=["absent", "broken", "unknown key", "wrong type", "not text"],
    )
    @pytest.mark.parametrize("command", ["serve", "check-config"])
    async def test_an_unusable_configuration(
        self, tmp_path: Path, command: str, text: str | None, words: tuple[str, ...]
    ) -> None:
        file = tmp_path / "sentinel.toml"
        if text is not None:
            file.write_bytes(text.encode("latin-1"))

        finished = await run(command, "--config", str(file))

        assert_one_line(finished, str(file), *words)

    async def test_several_workers_without_shared_state(self) -> None:
        finished = await run("serve", "--workers", "2")

        assert_one_line(finished, "workers", "redis://")

    async def test_an_unknown_command(self) -> None:
        finished = await run("sevre")

        assert finished.code == 2
        assert "sevre" in finished.err


def assert_one_line(finished: Finished, *words: str) -> None:
    assert (finished.code, finished.out) == (2, "")
    assert len(finished.err.splitlines()) == 1, finished.err
    assert "Traceback" not in finished.err
    for word in words:
        assert word in finished.err


class TestCheckConfig:
    async def test_it_shows_what_holds_and_masks_the_secrets(self) -> None:
        secrets = {"OPENAI_API_KEY": OUR_KEY, "SENTINEL_ADMIN_TOKEN": "token-of-the-operator"}

        finished = await run("check-config", env={**secrets, "SENTINEL_PORT": "8123"})

        assert (finished.code, finished.err) == (0, "")
        assert "8123" in finished.out
        for secret in secrets.values():
            assert secret not in finished.out

    async def test_a_reader_that_leaves_early_is_no_mistake(self) -> None:
        process = await asyncio.create_subprocess_shell(
            f"{sys.executable} -m sentinel_proxy check-config | head -n 1",
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

        _, err = await process.communicate()

        assert err == b""
