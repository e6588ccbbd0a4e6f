"""
Takes the pictures of docs/images: the dashboard in four states of one outage, and on a phone.

    .venv/bin/python tests/screenshots.py

Takes some three minutes: it is the real page, before the real proxy, with simulated providers, and
minutes are what its plots show. Chromium must be installed.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
from browser_support import Dashboard, chromium, config
from harness import Harness, started
from playwright.async_api import Browser

from sentinel_proxy.config import HealthConfig
from sentinel_proxy.testing import Outage, SimulatedOllama, SimulatedOpenAI

IMAGES: Final = Path(__file__).parent.parent / "docs" / "images"
DESKTOP: Final = {"viewport": {"width": 1360, "height": 1000}}
PHONE: Final = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}

CALLS_PER_SECOND: Final = 9.0
SEED: Final = 7


@asynccontextmanager
async def traffic(proxy: Harness) -> AsyncIterator[None]:
    """Call the proxy as applications do, two streams for each whole answer, until the context is left."""
    task = asyncio.create_task(_call_forever(proxy))
    yield
    task.cancel()
    await asyncio.wait([task])


async def _call_forever(proxy: Harness) -> None:
    chance = random.Random(SEED)
    async with asyncio.TaskGroup() as calls:
        while True:
            calls.create_task(_call(proxy, stream=chance.random() < 2 / 3))
            await asyncio.sleep(chance.expovariate(CALLS_PER_SECOND))


async def _call(proxy: Harness, *, stream: bool) -> None:
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    with suppress(httpx.HTTPError):  # a caller whose stream broke off
        await proxy.client.post("/v1/chat/completions", json=_body(stream) | usage)


def _body(stream: bool) -> dict[str, Any]:
    words = "Why does the sky turn red in the evening, and not in the morning?"
    return {"model": "gpt-4o-mini", "stream": stream, "messages": [{"role": "user", "content": words}]}


async def opened(browser: Browser, url: str, scheme: str, device: Mapping[str, Any]) -> Dashboard:
    context = await browser.new_context(color_scheme=scheme, **device)  # type: ignore[arg-type]
    dashboard = Dashboard(await context.new_page(), url)
    await dashboard.open()
    await dashboard.is_live()
    return dashboard


async def main() -> None:
    """Play the outage and take the pictures."""
    async with (
        SimulatedOpenAI(pace_seconds=0.01) as openai,
        SimulatedOllama(pace_seconds=0.02) as ollama,
        started(config(openai, ollama, health=HealthConfig(interval=5, timeout=1))) as proxy,
        chromium() as browser,
    ):
        light = await opened(browser, proxy.url, "light", DESKTOP)
        dark = await opened(browser, proxy.url, "dark", DESKTOP)
        phone = await opened(browser, proxy.url, "dark", PHONE)

        async def take(dashboard: Dashboard, name: str, *, whole: bool = True) -> None:
            await dashboard.page.screenshot(path=IMAGES / f"dashboard-{name}.png", full_page=whole)
            print(f"{name:14} {await dashboard.sentence()}", *dashboard.errors, sep="\n  ")

        IMAGES.mkdir(exist_ok=True)
        async with traffic(proxy):
            await asyncio.sleep(55)
            await take(light, "healthy")
            await openai.outage(Outage.UNAVAILABLE)
            await asyncio.sleep(44)
            await take(light, "failing-over")
            await take(phone, "phone", whole=False)
            await ollama.outage(Outage.REFUSE)
            await asyncio.sleep(17)
            await take(light, "all-down")
            await openai.recover()
            await ollama.recover()
            await asyncio.sleep(40)
            await take(light, "recovered")
            await take(dark, "dark")


if __name__ == "__main__":
    asyncio.run(main())
