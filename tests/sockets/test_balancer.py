"""Replicas behind the balancer of docs/operations: one leaves in the middle of calls, and nobody notices."""

import asyncio
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from harness import CHAT, eventually
from test_commands import free_port, ready, serving

from sentinel_proxy.testing import FaultyUpstream, openai_stream

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx"),
]

NGINX = Path(__file__).parent.parent.parent / "docs" / "operations" / "replicas" / "nginx.conf"


@asynccontextmanager
async def balancing(urls: list[str], directory: Path) -> AsyncIterator[str]:
    """Run nginx as documented, but before the replicas at *urls* and on a port of its own."""
    port = free_port()
    servers = " ".join(f"server {httpx.URL(url).netloc.decode()} max_fails=0;" for url in urls)
    text = re.sub(r"server proxy:8000 .*;", servers, await anyio.Path(NGINX).read_text())
    text = text.replace("listen 8000", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{directory}/")
    await anyio.Path(directory / "nginx.conf").write_text(text)
    nginx = await asyncio.create_subprocess_exec(
        *("nginx", "-c", str(directory / "nginx.conf"), "-e", str(directory / "log")),
        *("-g", "daemon off;"),
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        nginx.terminate()
        await nginx.wait()


class Load:
    """Callers who call without a pause, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.whole = 0
        self.broken: list[str] = []
        self._ending = False

    async def call_on(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20) as client:
            while not self._ending:
                try:
                    reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
                except httpx.TransportError as error:
                    self.broken.append(repr(error))
                    continue
                if reply.text.endswith("data: [DONE]\n\n"):
                    self.whole += 1
                else:
                    self.broken.append(f"{reply.status_code} {reply.text}")

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """Yield what waits until so many more calls are whole."""

        async def more(calls: int) -> None:
            wanted = self.whole + calls
            await eventually(lambda: self.whole >= wanted or self.broken, seconds=20)

        tasks = [asyncio.create_task(self.call_on()) for _ in range(callers)]
        try:
            yield more
        finally:
            self._ending = True
            await asyncio.gather(*tasks)


async def test_a_replica_that_drains_under_load_costs_no_call(
    primary: FaultyUpstream, tmp_path: Path
) -> None:
    primary.always(openai_stream(["a", "b", "c"], pause=0.02))
    variables = {
        "OPENAI_BASE_URL": f"{primary.url}/v1",
        "OPENAI_API_KEY": "sk-of-the-proxy",
        "RATE_LIMIT_REQUESTS": "0",
    }
    async with serving(**variables) as first, serving(**variables) as second:
        urls = [await first.url(), await second.url()]
        async with balancing(urls, tmp_path) as url, httpx.AsyncClient(trust_env=False) as client:
            await ready(client, url)
            load = Load(url)
            async with load.running(callers=12) as more:
                await more(50)
                for replica in (first, second):  # both serve
                    await replica.line("call")
                code, err = await first.end(signal.SIGTERM)
                await more(50)

    assert (code, err) == (0, "")
    assert load.broken == []
