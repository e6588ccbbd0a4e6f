"""A real Chromium before a real proxy: what the browser tests and the screenshots share."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from harness import Harness
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from sentinel_proxy.config import (
    AdminConfig,
    BreakerConfig,
    Config,
    HealthConfig,
    ProviderConfig,
    RateLimitConfig,
    RetryConfig,
)
from sentinel_proxy.testing import SimulatedOllama, SimulatedOpenAI

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")

FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # containers have no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# What Chromium itself writes to the console when a server is away or refuses: the page can't help it.
LOSSES: Final = re.compile(r"ERR_|WebSocket connection|the server responded with a status of (401|404|503)")


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run Chromium, with a profile of its own that is thrown away."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        await browser.close()


def config(openai: SimulatedOpenAI, ollama: SimulatedOllama, **sections: Any) -> Config:
    """Return the usual chain of two, quick to fail over; probes only where *sections* say so."""
    token = sections.pop("token", None)
    usual: dict[str, Any] = {
        "retry": RetryConfig(backoff=0.001, max_backoff=0.001),
        "breaker": BreakerConfig(),
        "health": HealthConfig(interval=3600),
        "rate_limit": RateLimitConfig(requests=0),
        "admin": AdminConfig(token=token),
    }
    return Config(
        providers=(
            ProviderConfig(name="openai", kind="openai", base_url=openai.base_url),
            ProviderConfig(name="ollama", kind="ollama", base_url=ollama.base_url, models={"*": "llama3.2"}),
        ),
        **(usual | sections),
    )


class Dashboard:
    """
    The page in a browser.

    Attributes:
        errors: What the page threw, logged as an error, or asked of others than its proxy.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.losses: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(f"thrown: {error}"))
        page.on("console", lambda message: self._logged(message.type, message.text))
        page.on("request", lambda request: self._requested(request.url))

    def _logged(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            (self.losses if LOSSES.search(text) else self.errors).append(f"{kind}: {text}")

    def _requested(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", f"{self.url.replace('http', 'ws', 1)}/")):
            self.errors.append(f"asked for {url}")

    async def open(self) -> None:
        """Load the page."""
        await self.page.goto(f"{self.url}/dashboard")

    async def is_live(self) -> None:
        """Wait until it hears the proxy."""
        await expect(self.by_id("link")).to_have_text("live")

    def by_id(self, name: str) -> Locator:
        """Return the element of that id."""
        return self.page.locator(f"#{name}")

    def card(self, name: str) -> Locator:
        """Return the card of a provider."""
        return self.page.locator("#chain > li").filter(has=self.page.locator("h3", has_text=name))

    async def sentence(self) -> str:
        """Return what stands at the top."""
        return await self.by_id("sentence").inner_text()

    async def says(self, words: str, seconds: float = 5.0) -> None:
        """Wait until the sentence at the top holds *words*."""
        await expect(self.by_id("sentence")).to_contain_text(words, timeout=seconds * 1000)

    async def focused(self) -> str:
        """Return the name of what has the keyboard's focus."""
        script = """() => { const at = document.activeElement;
            return at.getAttribute("aria-label") ?? at.labels?.[0]?.innerText ?? at.innerText; }"""
        name: str = await self.page.evaluate(script)
        return " ".join(name.split())


async def calls(harness: Harness, number: int) -> list[int]:
    """Make calls at the same time, every other one as a stream; return their statuses."""
    answers = await asyncio.gather(*(harness.chat(stream=bool(each % 2)) for each in range(number)))
    return [answer.status_code for answer in answers]
