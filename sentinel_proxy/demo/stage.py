"""
Puts the demo together and plays it.

One loop of beats drives everything: at each beat the scene may change and a call begins, and
once a second the calls that have ended are shown.
"""

import asyncio
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Final

import httpx

from sentinel_proxy.app import Proxy
from sentinel_proxy.demo import page
from sentinel_proxy.demo.application import Application
from sentinel_proxy.demo.narrator import Narrator
from sentinel_proxy.demo.scenes import (
    BEAT_SECONDS,
    BEATS,
    BEATS_A_LINE,
    PACE_SECONDS,
    QUESTIONS,
    SCENES,
    config,
)
from sentinel_proxy.demo.tally import Tally
from sentinel_proxy.demo.terminal import Terminal
from sentinel_proxy.events import Bus
from sentinel_proxy.providers.ollama import OllamaProvider
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.providers.registry import Registry
from sentinel_proxy.server import running
from sentinel_proxy.testing import SimulatedOllama, SimulatedOpenAI

_SCENES: Final = {round(scene.at_seconds / BEAT_SECONDS): scene for scene in SCENES}

CLIENT_TIMEOUT_SECONDS: Final = 10.0
"""How long the application waits for a sign of life: longer than any scene lasts."""


async def play(terminal: Terminal, *, port: int, once: bool) -> int:
    """
    Play the script, then, unless *once*, stay up until cancelled.

    Returns how many calls failed although they went through the proxy. Everything that was
    opened is closed on every way out.

    Raises:
        ConfigError: The port cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        openai = await stack.enter_async_context(SimulatedOpenAI(pace_seconds=PACE_SECONDS))
        ollama = await stack.enter_async_context(SimulatedOllama(pace_seconds=PACE_SECONDS))
        bus = Bus()
        url = await stack.enter_async_context(running(_proxy(openai, ollama, bus), port=port))
        client = await stack.enter_async_context(
            httpx.AsyncClient(timeout=CLIENT_TIMEOUT_SECONDS, limits=httpx.Limits(), trust_env=False)
        )
        page.opening(terminal, proxy=url, openai=openai.base_url, ollama=ollama.base_url)
        script = Script(
            terminal, openai, Application(client, f"{url}/v1"), Application(client, openai.base_url)
        )
        narrator = Narrator(terminal, script.seconds)
        narrator.listen(bus)
        await script.play()
        page.summary(terminal, script.through, script.direct, narrator.opened)
        if not once and not terminal.gone:
            page.farewell(terminal, url)
            narrator.visitors = True
            await asyncio.Event().wait()
        return script.through.failed


def _proxy(openai: SimulatedOpenAI, ollama: SimulatedOllama, bus: Bus) -> Proxy:
    """The real proxy, without the plugins that happen to be installed."""
    settings = config(openai, ollama)
    first, second = settings.providers
    registry = Registry()
    registry.register(OpenAIProvider.from_config(first, passes_caller_key=False))
    registry.register(OllamaProvider.from_config(second))
    return Proxy(settings, registry=registry, bus=bus)


class _Deserted(Exception):
    """Nobody reads what is printed any more."""


class Script:
    """
    The timed part of the demo.

    Attributes:
        through: The calls that go through the proxy.
        direct: The same calls, straight to the first provider.
    """

    def __init__(
        self, terminal: Terminal, openai: SimulatedOpenAI, proxied: Application, unprotected: Application
    ) -> None:
        self.through = Tally()
        self.direct = Tally()
        self._terminal = terminal
        self._openai = openai
        self._ways = ((proxied, self.through), (unprotected, self.direct))
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()

    def seconds(self) -> float:
        """How long it has been going on."""
        return self._loop.time() - self._began_at

    async def play(self) -> None:
        """Make every call of the script; return when each has ended, or when nobody reads any more."""
        self._began_at = self._loop.time()
        try:
            async with asyncio.TaskGroup() as calls:
                for beat, question in zip(range(BEATS), cycle(QUESTIONS), strict=False):
                    await self._reach(beat)
                    await self._change_scene(beat)
                    for application, tally in self._ways:
                        tally.begun += 1
                        calls.create_task(self._call(application, tally, question, stream=beat % 2 == 0))
                await self._wait_for_the_last()
        except* _Deserted:
            pass  # has ended the calls that were running

    async def _reach(self, beat: int) -> None:
        await asyncio.sleep(beat * BEAT_SECONDS - self.seconds())
        if self._terminal.gone:
            raise _Deserted
        if beat and beat % BEATS_A_LINE == 0:
            self._show_calls()

    async def _change_scene(self, beat: int) -> None:
        scene = _SCENES.get(beat)
        if scene is None:
            return
        self._terminal.rule(self.seconds(), scene.title)
        if scene.outage is None:
            await self._openai.recover()
        else:
            await self._openai.outage(scene.outage)

    async def _call(self, application: Application, tally: Tally, question: str, *, stream: bool) -> None:
        tally.outcomes.append(await application.ask(question, stream=stream))

    async def _wait_for_the_last(self) -> None:
        beat = BEATS
        while self.through.waiting or self.direct.waiting:
            await self._reach(beat)
            beat += 1
        self._show_calls()

    def _show_calls(self) -> None:
        self._terminal.calls(self.seconds(), self.through, self.direct)
