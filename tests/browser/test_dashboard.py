"""
The dashboard in a real browser: Chromium, driven by Playwright.

Where Chromium is not installed (`apt-get install chromium` on Debian) these are skipped; `.ci/run`
installs it where it may. Nothing is downloaded: Playwright drives the Chromium that is there.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright.async_api", reason="Playwright is not installed (the extra `test` has it)")

from browser_support import CHROMIUM, Dashboard, calls, chromium, config
from harness import Harness, Start, eventually, started
from playwright.async_api import Browser, Route, expect

from sentinel_proxy.app import Proxy
from sentinel_proxy.clock import utc_text
from sentinel_proxy.config import BreakerConfig, ProviderConfig
from sentinel_proxy.events import BreakerChanged
from sentinel_proxy.replica.presence import Tally
from sentinel_proxy.server import running
from sentinel_proxy.testing import Outage, SimulatedOllama, SimulatedOpenAI

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.xdist_group("browser"),  # one browser for all of them
    pytest.mark.skipif(
        CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"
    ),
]

TOKEN = "a-token/that=no+subprotocol-can@hold"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop for all tests here, so that one browser serves them all."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


Show = Callable[..., Awaitable[Dashboard]]


@pytest.fixture
async def show(browser: Browser) -> AsyncIterator[Show]:
    """Open the dashboard of a proxy; *options* are the context's. Errors on the page fail the test."""
    opened: list[Dashboard] = []
    async with AsyncExitStack() as stack:

        async def show(url: str, **options: Any) -> Dashboard:
            context = await browser.new_context(viewport={"width": 1280, "height": 900}, **options)
            stack.push_async_callback(context.close)
            page = await context.new_page()
            page.set_default_timeout(10_000)
            dashboard = Dashboard(page, url)
            opened.append(dashboard)
            await dashboard.open()
            return dashboard

        yield show
    assert [error for dashboard in opened for error in dashboard.errors] == []


@pytest.fixture
async def proxy(start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Harness:
    """The usual chain, and rests that no test waits for."""
    return await start(config(openai, ollama))


async def goes_out(proxy: Harness, openai: SimulatedOpenAI) -> None:
    """Let the first of the chain fail until its breaker opens."""
    await openai.outage(Outage.UNAVAILABLE)
    assert await calls(proxy, 6) == [200] * 6


class TestOneLook:
    async def test_when_all_is_well_it_says_so(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        assert await dashboard.sentence() == "All is well; openai takes the next call."
        assert await dashboard.page.title() == "✓ all is well · Sentinel Proxy"
        assert await dashboard.page.locator("#chain h3").all_text_contents() == ["1: openai", "2: ollama"]
        assert await dashboard.page.locator("#chain .status").all_inner_texts() == ["healthy", "healthy"]

    async def test_an_outage_is_there_within_a_second(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        injected = monotonic()

        await goes_out(proxy, openai)

        await dashboard.says("gpt-4o-mini at openai is resting since", seconds=1)
        assert monotonic() - injected < 1
        assert await dashboard.page.title() == "▲ openai rests · Sentinel Proxy"
        assert await dashboard.by_id("truth").get_attribute("data-level") == "coping"

    async def test_it_tells_what_broke_since_when_who_serves_who_was_saved_and_when_it_is_tried_again(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        await goes_out(proxy, openai)
        for _ in range(3):  # calls that pass it by, so that there is a rate
            await calls(proxy, 4)
        await dashboard.says("ollama serves everything", seconds=8)

        sentence = re.fullmatch(
            r"gpt-4o-mini at openai is resting since \d\d:\d\d \(overloaded, 503\); "
            r"ollama serves everything; (\d+) calls rescued; next trial in \d+ s\.",
            await dashboard.sentence(),
        )
        assert sentence is not None
        assert int(sentence[1]) >= 12

    async def test_it_counts_down_to_the_trial(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        await goes_out(proxy, openai)
        await dashboard.says("next trial in")

        dial = dashboard.card("openai").locator(".dial b")
        before = int(await dial.inner_text())

        await expect(dial).to_have_text(str(before - 2))
        assert before <= 30

    async def test_when_nobody_is_left_it_says_since_when_and_what_was_lost(
        self, proxy: Harness, openai: SimulatedOpenAI, ollama: SimulatedOllama, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        for name, reason in (("ollama", "it is being moved"), ("openai", "so is this")):
            await proxy.client.post(
                f"/api/providers/{name}/breaker", json={"action": "isolate", "reason": reason}
            )

        await dashboard.says("No provider answers since", seconds=1)
        assert "openai (so is this (127.0.0.1)) and ollama (it is being moved (127.0.0.1))" in (
            await dashboard.sentence()
        )
        assert await dashboard.by_id("truth").get_attribute("data-level") == "down"
        assert (await dashboard.page.title()).startswith("✕ no provider answers")

    async def test_a_recovery_is_told_with_what_became_of_the_calls(
        self, start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama, show: Show
    ) -> None:
        proxy = await start(config(openai, ollama, breaker=BreakerConfig(recovery_timeout=0.5)))
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        await goes_out(proxy, openai)
        await dashboard.says("is resting")

        await openai.recover()
        await asyncio.sleep(0.5)
        assert await calls(proxy, 2) == [200, 200]

        await dashboard.says("openai is back since", seconds=1)
        assert re.search(r"after \d+ s; \d+ calls rescued, none lost", await dashboard.sentence())
        assert await dashboard.by_id("truth").get_attribute("data-level") == "well"

    async def test_screen_readers_hear_of_changes_but_not_of_every_second(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        await goes_out(proxy, openai)

        announced = dashboard.by_id("announce")
        await expect(announced).to_contain_text("gpt-4o-mini at openai is resting since")
        await expect(announced).not_to_contain_text("next trial")
        await expect(announced).not_to_contain_text("rescued")


class TestTheParts:
    async def test_incidents_stand_newest_first_and_count_on(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        await goes_out(proxy, openai)

        incidents = dashboard.page.locator("#incidents > li")
        await expect(incidents).to_have_count(2)
        failover, outage = await incidents.all_inner_texts()

        assert "calls go to ollama instead of openai" in failover
        assert re.search(r"critical\s+gpt-4o-mini at openai is out: overloaded \(503\)", outage)
        assert re.search(r"for \d+ s\s+ongoing", outage)

    async def test_an_incident_opens_to_its_details(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        await goes_out(proxy, openai)
        dashboard = await show(proxy.url)
        outage = dashboard.page.locator("#incidents > li").last

        await outage.locator("summary").click()

        text = await outage.locator(".inside").inner_text()
        assert re.search(r"cause\s+overloaded", text)
        assert re.search(r"openings\s+1", text)

    async def test_the_timeline_has_a_bar_for_what_lasts(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await goes_out(proxy, openai)

        await dashboard.page.wait_for_selector("#timeline .bar.outage.ongoing", state="attached")

        label = await dashboard.by_id("timeline").get_attribute("aria-label")
        assert label is not None
        assert "gpt-4o-mini at openai is out: overloaded (503)" in label

    async def test_events_come_as_they_happen_and_can_be_filtered(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        await goes_out(proxy, openai)
        status = dashboard.page.locator("#events > li", has_text="openai is degraded")
        await status.first.wait_for()

        await dashboard.page.get_by_role("button", name="provider status").click()

        assert await status.count() == 0
        assert await dashboard.page.locator("#events > li", has_text="is out").count() == 1

    async def test_what_happened_before_the_page_was_opened_is_there(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        await goes_out(proxy, openai)

        dashboard = await show(proxy.url)

        await dashboard.says("gpt-4o-mini at openai is resting since")
        assert (
            await dashboard.page.locator("#events > li", has_text="gpt-4o-mini at openai is out").count() == 1
        )

    async def test_plots_show_what_was_called_and_can_be_read_by_keyboard(
        self, proxy: Harness, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        await calls(proxy, 4)
        plot = dashboard.page.locator(".plot").first
        await plot.locator("path.area.hue-1").wait_for(state="attached", timeout=8000)

        picture = plot.locator("svg[role=img]")
        await picture.focus()
        await dashboard.page.keyboard.press("ArrowLeft")

        label = await picture.get_attribute("aria-label")
        assert label is not None
        assert re.match(
            r"Calls a second, by who answered at \d\d:\d\d:\d\d: openai .+, ollama 0, lost 0\.", label
        )
        assert await dashboard.page.locator(".plot .cursor").count() == 4

    async def test_text_from_outside_stays_text(self, proxy: Harness, show: Show) -> None:
        reason = "<img src=x onerror=alert(1)>"
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        await proxy.client.post("/api/providers/openai/breaker", json={"action": "isolate", "reason": reason})

        await dashboard.says(reason)
        assert await dashboard.page.locator("main img").count() == 0


class TestOrders:
    async def test_a_probe_is_asked_for_and_its_answer_shown(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        await dashboard.page.get_by_role("button", name="Probe now openai").click()

        await dashboard.page.get_by_role("status").get_by_text("openai: the probe passed").wait_for()
        assert openai.asked["GET /v1/models"] == 1

    async def test_everything_can_be_done_by_keyboard(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        keyboard = dashboard.page.keyboard

        await keyboard.press("Tab")
        assert await dashboard.focused() == "Skip to how things are"
        await keyboard.press("Enter")
        for expected in ("Probe now openai", "Isolate… openai"):
            await keyboard.press("Tab")
            assert await dashboard.focused() == expected
        await keyboard.press("Enter")
        assert await dashboard.focused() == "Why"
        await keyboard.type("its bill is wrong")
        await keyboard.press("Enter")

        await dashboard.says("openai is taken out since")
        assert await dashboard.focused() == "Isolate… openai"
        assert proxy.proxy.health.view()["openai"]["circuit_breaker"]["state"] == "isolated"
        await keyboard.press("Tab")
        assert await dashboard.focused() == "Reset openai"
        await keyboard.press("Enter")
        await keyboard.press("Enter")
        await dashboard.says("All is well")
        assert proxy.proxy.health.view()["openai"]["circuit_breaker"]["state"] == "closed"

    async def test_an_order_that_is_cancelled_is_not_given(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        await dashboard.page.get_by_role("button", name="Isolate… openai").click()
        await dashboard.page.keyboard.type("never mind")
        await dashboard.page.keyboard.press("Escape")

        assert await dashboard.page.locator("dialog[open]").count() == 0
        assert [event for event in proxy.events if isinstance(event, BreakerChanged)] == []

    async def test_an_isolation_is_given_with_its_end_and_its_author(
        self, proxy: Harness, show: Show
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        await dashboard.page.get_by_role("button", name="Isolate… ollama").click()
        await dashboard.page.get_by_label("Why", exact=True).fill("new disks")
        await dashboard.page.get_by_label("For how long").select_option("15 minutes")
        await dashboard.page.locator("dialog[open]").get_by_label("Your name").fill("Ada")

        await dashboard.page.get_by_role("button", name="Isolate ollama", exact=True).click()

        await dashboard.says("ollama, a fallback, is taken out since")
        breaker = proxy.proxy.health.view()["ollama"]["circuit_breaker"]
        assert breaker["reason"] == "new disks (Ada)"
        await expect(dashboard.card("ollama").locator(".dial")).to_have_text(re.compile("^1[45]min$"))


class TestToken:
    @pytest.fixture
    async def guarded(self, start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Harness:
        return await start(config(openai, ollama, token=TOKEN))

    async def test_it_is_asked_for_and_then_used_for_everything(self, guarded: Harness, show: Show) -> None:
        dashboard = await show(guarded.url)
        asked = dashboard.page.get_by_role("textbox", name="Token")

        await asked.fill("not the token")
        await dashboard.page.keyboard.press("Enter")
        await dashboard.page.get_by_text("does not accept that token").wait_for()
        await asked.fill(TOKEN)
        await dashboard.page.keyboard.press("Enter")
        await dashboard.is_live()
        await dashboard.page.get_by_role("button", name="Probe now openai").click()

        await dashboard.page.get_by_role("status").get_by_text("the probe passed").wait_for()
        assert "All is well" in await dashboard.sentence()

    async def test_it_lasts_as_long_as_the_tab_and_is_nowhere_else(
        self, guarded: Harness, show: Show
    ) -> None:
        dashboard = await show(guarded.url)
        await dashboard.page.get_by_role("textbox", name="Token").fill(TOKEN)
        await dashboard.page.keyboard.press("Enter")
        await dashboard.is_live()

        await dashboard.page.reload()
        await dashboard.is_live()

        stored = await dashboard.page.evaluate("JSON.stringify([{...localStorage}, document.cookie])")
        assert json.loads(stored)[1] == ""
        assert TOKEN not in stored
        assert TOKEN not in await dashboard.page.content()
        await dashboard.page.get_by_role("button", name="Forget the token").click()
        await dashboard.page.get_by_role("textbox", name="Token").wait_for()

    async def test_who_does_not_know_it_may_leave_the_question(self, guarded: Harness, show: Show) -> None:
        dashboard = await show(guarded.url)
        await dashboard.page.get_by_role("textbox", name="Token").wait_for()

        await dashboard.page.keyboard.press("Escape")

        await dashboard.page.get_by_role("alert").get_by_text("the admin token is missing").wait_for()
        await dashboard.page.get_by_role("button", name="Enter the token").click()
        await dashboard.page.get_by_role("textbox", name="Token").wait_for()


class TestConnection:
    async def test_it_says_when_it_is_stale_and_comes_back_by_itself(
        self, openai: SimulatedOpenAI, ollama: SimulatedOllama, show: Show
    ) -> None:
        settings = config(openai, ollama)
        async with started(settings) as proxy:
            dashboard = await show(proxy.url)
            await dashboard.is_live()
            address = urlsplit(proxy.url)

        await expect(dashboard.by_id("banner")).to_contain_text("What you see is of", timeout=1000)
        await expect(dashboard.by_id("link")).not_to_have_text("live")
        assert (await dashboard.sentence()).startswith("As of ")
        assert await dashboard.page.locator("html.stale").count() == 1

        async with running(Proxy(settings), port=address.port or 0):
            await dashboard.is_live()
            assert await dashboard.by_id("banner").is_hidden()
            assert (await dashboard.sentence()).startswith("All is well")

    async def test_a_proxy_that_falls_silent_is_noticed(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        async def never(_: Any) -> None: ...

        await dashboard.page.route("**/api/**", never)
        await dashboard.page.route("**/metrics", never)
        moved = "() => { const real = Date.now; Date.now = () => real() + 8000; }"
        await dashboard.page.evaluate(moved)

        await dashboard.page.get_by_text("What you see is of").wait_for(timeout=4000)

    async def test_a_shutdown_is_announced(
        self, openai: SimulatedOpenAI, ollama: SimulatedOllama, show: Show
    ) -> None:
        async with started(config(openai, ollama)) as proxy:
            dashboard = await show(proxy.url)
            await dashboard.is_live()

        await dashboard.page.get_by_text("The proxy is going down.").wait_for(timeout=2000)

    async def test_a_page_that_is_closed_leaves_nothing_behind(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        assert proxy.proxy.feed.subscribers == 1

        await dashboard.page.close()

        await eventually(lambda: proxy.proxy.feed.subscribers == 0)


CONTRAST = """() => {
  const channel = (value) => ((value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
      if (colour[3] > 0) throw new Error("a background that is seen through");
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const inSvg = element instanceof SVGElement;
    const left = "title, .unseen, dialog:not([open])";
    if (!own || !element.checkVisibility() || element.closest(left)) continue;
    const style = getComputedStyle(element);
    const text = rgba(inSvg ? style.fill : style.color);
    const bar = element.matches(".bar text") && element.parentElement.querySelector(".fill");
    const ground = bar ? rgba(getComputedStyle(bar).fill) : behind(inSvg ? element.closest("svg") : element);
    const [one, two] = [light(text), light(ground)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (two + 0.05);
    if (ratio < 4.5) found.push(`${element.outerHTML.slice(0, 80)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


class TestReplicas:
    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            (
                "redis",
                r"The shared state is out of reach since \d\d:\d\d: this page shows this replica alone\.",
            ),
            ("sqlite", r"The state file is out of reach since \d\d:\d\d: what happens now is not kept .+\."),
        ],
    )
    async def test_while_the_state_store_is_away_it_says_what_is_not_shown(
        self, proxy: Harness, show: Show, kind: str, words: str
    ) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()
        banner = dashboard.by_id("alone")
        await expect(banner).to_be_hidden()
        state = {"kind": kind, "status": "away", "since": utc_text(proxy.proxy.clock.time())}

        async def answer(route: Route) -> None:
            health = await (await route.fetch()).json()
            await route.fulfill(json={**health, "state": state})

        await dashboard.page.route("**/health", answer)
        await expect(banner).to_have_text(re.compile(words))
        state["status"] = "up"

        await expect(banner).to_be_hidden()

    async def test_it_says_whose_numbers_it_shows(self, proxy: Harness, show: Show) -> None:
        proxy.proxy.operations._others = lambda: {"R1": Tally(requests=7, in_flight=2)}

        dashboard = await show(proxy.url)
        await dashboard.is_live()

        await expect(dashboard.by_id("uptime")).to_contain_text("one of 2 replicas")
        await expect(dashboard.by_id("calls").locator(".note")).to_have_text("7 since the start")
        await expect(dashboard.by_id("flight")).to_contain_text("2")


class TestEverybody:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    async def test_every_text_can_be_read(
        self, scheme: str, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url, color_scheme=scheme)
        await dashboard.is_live()
        found = await dashboard.page.evaluate(CONTRAST)
        await goes_out(proxy, openai)
        await proxy.client.post(
            "/api/providers/ollama/breaker", json={"action": "isolate", "reason": "for the colours"}
        )
        await dashboard.says("so is ollama")

        assert found + await dashboard.page.evaluate(CONTRAST) == []

    async def test_it_follows_the_system_until_the_reader_chooses(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url, color_scheme="dark")
        scheme = "getComputedStyle(document.documentElement).colorScheme"
        colour = "getComputedStyle(document.body).backgroundColor"
        dark = await dashboard.page.evaluate(colour)

        await dashboard.page.get_by_role("button", name="Switch between light and dark").click()
        chosen = await dashboard.page.evaluate(scheme)
        await dashboard.page.reload()

        assert chosen == await dashboard.page.evaluate(scheme) == "light"
        assert await dashboard.page.evaluate(colour) != dark

    @pytest.mark.parametrize("width", [320, 390, 768])
    async def test_nothing_is_wider_than_a_small_screen(
        self, width: int, start: Start, openai: SimulatedOpenAI, ollama: SimulatedOllama, show: Show
    ) -> None:
        first, second = config(openai, ollama).providers
        renamed = ProviderConfig.model_validate(
            first.model_dump() | {"name": "a-provider-with-a-very-long-name"}
        )
        proxy = await start(config(openai, ollama).model_copy(update={"providers": (renamed, second)}))
        dashboard = await show(proxy.url)
        await dashboard.page.set_viewport_size({"width": width, "height": 800})
        await goes_out(proxy, openai)
        await dashboard.says("is resting")
        for summary in await dashboard.page.locator("#incidents summary").all():
            await summary.click()

        widths = await dashboard.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")

        assert widths == [width, width]

    async def test_nothing_moves_for_those_who_do_not_want_it(
        self, proxy: Harness, openai: SimulatedOpenAI, show: Show
    ) -> None:
        dashboard = await show(proxy.url, reduced_motion="reduce")
        await goes_out(proxy, openai)
        await dashboard.says("is resting")

        assert await dashboard.page.evaluate("document.getAnimations().length") == 0

    async def test_every_control_and_picture_has_a_name(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url)
        await dashboard.is_live()

        tree = await dashboard.page.locator("body").aria_snapshot()

        assert not re.search(r"- (button|link|img|textbox|combobox|region|log)$", tree, re.MULTILINE)
        assert re.findall(r'heading "([^"]+)" \[level=2\]', tree) == [
            "Providers in the order in which they are tried",
            "The last minutes outages are shaded; point, or use the arrow keys, to read off a moment",
            "Timeline",
            "Incidents newest first",
            "Live events",
        ]

    async def test_the_whole_page_is_small(self, proxy: Harness, show: Show) -> None:
        sizes: list[int] = []
        dashboard = await show(proxy.url)
        dashboard.page.on(
            "response",
            lambda answer: (
                sizes.append(int(answer.headers["content-length"])) if "/dashboard" in answer.url else None
            ),
        )

        await dashboard.page.reload()
        await dashboard.is_live()

        assert len(sizes) > 5
        assert sum(sizes) < 60_000


class TestWords:
    """What the page's own modules make of numbers, asked of the modules themselves."""

    async def test_of_numbers_and_causes(self, proxy: Harness, show: Show) -> None:
        dashboard = await show(proxy.url)
        expected = {
            "duration(0.0421)": "42 ms",
            "duration(9.44)": "9.4 s",
            "duration(59.6)": "1 min",
            "coarse(92)": "1 min 32 s",
            "coarse(3599.6)": "1 h",
            "coarse(7500)": "2 h 5 min",
            "coarse(273600)": "3 d 4 h",
            "amount(0)": "0",
            "amount(0.01)": "<0.1",
            "amount(12.34)": "12.3",
            "amount(48211)": "48\u202f211",
            "cause('overloaded (503)')": "overloaded, 503",
            "cause('overloaded (probe)')": "overloaded",
            "cause('timeout')": "timeouts",
            "cause('a trial succeeded')": "a trial succeeded",
            "listed(['a', 'b', 'c'])": "a, b and c",
        }

        asked = ", ".join(f"words.{call}" for call in expected)
        said = await dashboard.page.evaluate(f"import('/dashboard/words.js').then((words) => [{asked}])")

        assert dict(zip(expected, said, strict=True)) == expected

    async def test_of_latencies_they_make_what_prometheus_does(self, proxy: Harness, show: Show) -> None:
        await calls(proxy, 1)
        dashboard = await show(proxy.url)
        script = """async () => {
          const { quantiles } = await import("/dashboard/series.js");
          const of = (one, two, count) =>
            ({ buckets: new Map([[1, one], [2, two], [Infinity, count]]), count });
          const before = of(5, 10, 10);
          return [[before, of(0, 0, 0)], [of(5, 10, 20), before], [before, before]]
            .map(([now, then]) => quantiles(now, then));
        }"""

        within, beyond, none = await dashboard.page.evaluate(script)

        assert within == {"half": 1, "most": 1.9}
        assert beyond == {"half": 2, "most": 2}
        assert none is None

    async def test_of_the_exposition_they_make_the_same_sums(self, proxy: Harness, show: Show) -> None:
        await calls(proxy, 3)
        dashboard = await show(proxy.url)
        script = """async () => {
          const { read } = await import("/dashboard/series.js");
          const sums = read(await (await fetch("/metrics")).text());
          return [sums.calls, sums.answered, sums.lost, sums.whole.count, sums.own.count];
        }"""

        assert await dashboard.page.evaluate(script) == [3, {"openai": 3}, 0, 3, 3]
