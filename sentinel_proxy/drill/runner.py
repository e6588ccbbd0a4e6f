"""
Runs the catalogue against one configuration.

Each run of a scenario has a stage of its own, and the runs come one after another: waiting costs
nothing here (`skipping`), so nothing is won by haste.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sentinel_proxy.app import Proxy
from sentinel_proxy.config import Config
from sentinel_proxy.drill.chain import Chain, chain_of
from sentinel_proxy.drill.scenarios import SCENARIOS, Scenario
from sentinel_proxy.drill.skipping import SkippingLoop
from sentinel_proxy.drill.stage import MakeProxy, Stage, staged
from sentinel_proxy.events import CallFinished

Verdict = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one scenario."""

    id: str
    title: str
    streamed: bool
    injected: str
    verdict: Verdict
    caller: str  # what the caller got, or why the scenario was left out
    attempts: dict[str, int] = field(default_factory=dict)  # calls that each provider saw, in order
    seconds: float = 0.0  # until the caller had what it got
    complaints: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A name for this run alone."""
        return self.id if self.streamed else f"{self.id}-whole"


@dataclass(frozen=True, slots=True)
class Report:
    """A whole drill."""

    chain: Chain
    results: Sequence[Result]

    @property
    def ran(self) -> list[Result]:
        """The runs that were not left out."""
        return [result for result in self.results if result.verdict != "skipped"]

    @property
    def failed(self) -> list[Result]:
        """The runs whose caller, or whose providers, did not get what they should."""
        return [result for result in self.results if result.verdict == "failed"]


def rehearse(
    config: Config,
    *,
    make_proxy: MakeProxy = Proxy,
    scenarios: Sequence[Scenario] = SCENARIOS,
    on_result: Callable[[Result], None] = lambda _: None,
) -> Report:
    """
    Play *scenarios* against *config* and report. No configured address is contacted.

    Args:
        make_proxy: Makes the proxy that is drilled.
        on_result: Told of each run as it ends.

    Raises:
        ConfigError: A plugin cannot be loaded, or there is no provider.
        KeyboardInterrupt: As usual; everything is closed by then.
    """
    chain = chain_of(config)
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(_rehearse(config, chain, make_proxy, scenarios, on_result))


async def _rehearse(
    config: Config,
    chain: Chain,
    make_proxy: MakeProxy,
    scenarios: Sequence[Scenario],
    on_result: Callable[[Result], None],
) -> Report:
    results = []
    for scenario in scenarios:
        for streamed in scenario.ways:
            async with staged(config, chain, make_proxy, streamed=streamed) as stage:
                result = await _played(scenario, stage)
            results.append(result)
            on_result(result)
    return Report(chain, results)


async def _played(scenario: Scenario, stage: Stage) -> Result:
    streamed = stage.policy.streamed
    if why_not := scenario.needs(stage.policy):
        return Result(scenario.id, scenario.title, streamed, scenario.injected, "skipped", why_not)
    told = await scenario.play(stage)
    complaints = [*told.complaints, *await stage.leftovers(), *_unfinished(stage)]
    names = [provider.name for provider in stage.policy.providers]
    return Result(
        scenario.id,
        scenario.title,
        streamed,
        scenario.injected,
        "failed" if complaints else "passed",
        told.caller,
        dict(zip(names, stage.asked, strict=True)),
        told.seconds,
        tuple(complaints),
    )


def _unfinished(stage: Stage) -> list[str]:
    """Each call is reported as ended, once."""
    traces = [event.trace_id for event in stage.events if isinstance(event, CallFinished)]
    return ["a call is reported as ended twice"] if len(traces) != len(set(traces)) else []
