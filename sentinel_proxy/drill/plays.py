"""
Plays of one call: the first provider fails in some way, and one rule says what must come of it.

The rules are docs/failures.md, said once more. What takes more calls than one is in `stories`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from sentinel_proxy.drill import faults, stories
from sentinel_proxy.drill.dialects import Refusal
from sentinel_proxy.drill.expected import (
    INTERRUPTED,
    Expected,
    after_first_token,
    before_first_token,
    complaints,
)
from sentinel_proxy.drill.faults import Fault
from sentinel_proxy.drill.policy import Policy, Rule
from sentinel_proxy.drill.stage import Stage, Unreachable
from sentinel_proxy.drill.stories import Told, in_words
from sentinel_proxy.errors import FailureKind, Retry

Play = Callable[[Stage], Awaitable[Told]]

SHORT_WAIT_SECONDS: Final = 2.0
LONG_WAIT_SECONDS: Final = 120.0
UNSAID_SECONDS: Final = 5.0
MUCH_OF_A_LIMIT: Final = 0.8
PINGS_IN_A_LIMIT: Final = 3

# What failures mean, in the words of docs/failures.md.
THROTTLED: Final = Rule(Retry.ALONE, 429, "rate_limit_exceeded", votes=False)
OVERLOADED: Final = Rule(Retry.ALWAYS, 502, "all_providers_failed")
UNREACHABLE: Final = Rule(Retry.ALONE, 502, "provider_unreachable")
BLACK_HOLE: Final = Rule(Retry.NEVER, 504, "upstream_timeout")
RESET: Final = Rule(Retry.ALONE, 502, "all_providers_failed")
TIMEOUT: Final = Rule(Retry.NEVER, 504, "upstream_timeout")
NO_ANSWER: Final = Rule(Retry.NEVER, 502, "all_providers_failed")
UNKNOWN_MODEL: Final = Rule(Retry.NEVER, 404, None, helps=False, votes=False)
TOO_LONG: Final = Rule(Retry.NEVER, 400, "context_length_exceeded", helps=False, votes=False)
REFUSED: Final = Rule(Retry.NEVER, 400, None, helps=False, next=False, votes=False)


def one_call(
    fault: Callable[[Policy], Fault], expected: Callable[[Policy], Expected], times: int | None = None
) -> Play:
    """
    Play one call whose first provider fails.

    Args:
        fault: What befalls it.
        times: For how many calls of the provider; None: always.
    """

    async def play(stage: Stage) -> Told:
        acted = fault(stage.policy)
        if times is None:
            stage.first.always(acted)
        else:
            stage.first.plays(*[acted] * times)
        return await stories.one(stage, expected(stage.policy))

    return play


def fails(fault: Fault, rule: Rule, *, times: int | None = None, exact: bool = True) -> Play:
    """Play one call whose first provider fails at once and before the first token."""

    def expected(policy: Policy) -> Expected:
        return before_first_token(policy, rule, times=times, exact=exact)

    return one_call(lambda _: fault, expected, times)


def breaks(fault: Fault) -> Play:
    """Play one stream whose first provider breaks it off in the middle."""
    return one_call(lambda _: fault, lambda policy: after_first_token(policy, takes=faults.BREATH_SECONDS))


async def breaks_in_tool_call(stage: Stage) -> Told:
    """Nobody else can finish what another model has begun to order: half of it must not be carried out."""
    stage.first.always(faults.breaks_in_tool_call)
    asked = {0: (1, 1)} | {at: (0, 0) for at in range(1, len(stage.servers))}
    expected = Expected(None, faults.BREATH_SECONDS, asked, code=INTERRUPTED, broken=True)
    return await stories.one(stage, expected)


def stalls(fault: Callable[[Policy], Fault], takes: Callable[[Policy], float]) -> Play:
    """Play one stream that stops in the middle, which takes a while to be noticed."""
    return one_call(fault, lambda policy: after_first_token(policy, takes=takes(policy)))


def keeps_waiting(fault: Callable[[Policy], Fault]) -> Play:
    """Play one call whose first provider never says a token."""
    return one_call(fault, lambda policy: before_first_token(policy, TIMEOUT, takes=policy.waits().begin))


def throttled(seconds: float, *, told: bool = True) -> Play:
    """Play one call that is throttled once."""
    headers = {"retry-after": f"{seconds:g}"} if told else None
    helps = seconds <= 30
    rule = replace(THROTTLED, asks_seconds=seconds, helps=helps)
    return fails(faults.refuse(Refusal.RATE_LIMIT, headers), rule, times=1)


def unreachable(kind: FailureKind, message: str, rule: Rule, takes: Callable[[Policy], float]) -> Play:
    """Play one call whose first provider cannot be reached; *takes* says how long that is waited for."""

    async def play(stage: Stage) -> Told:
        stage.unreachable = Unreachable(kind, message)
        expected = before_first_token(stage.policy, rule, takes=takes(stage.policy), sees=False)
        return await stories.one(stage, expected)

    return play


def until_idle(policy: Policy) -> float:
    """Return after how long a stream that has fallen silent counts as broken."""
    waits = policy.waits()
    return min(waits.idle, waits.progress)


def until_no_progress(policy: Policy) -> float:
    """Return after how long a stream counts as broken that is alive and says nothing."""
    return policy.waits().progress


def keeps_pinging(after: int) -> Callable[[Policy], Fault]:
    """Send pings, often enough for a wire that is alive, and nothing else after so many tokens."""

    def fault(policy: Policy) -> Fault:
        waits = policy.waits()
        return faults.pings(min(waits.idle, waits.progress, waits.begin) / PINGS_IN_A_LIMIT, after)

    return fault


def well_enough(fault: Fault) -> Play:
    """Play one call whose first provider does something odd that must not matter."""

    async def play(stage: Stage) -> Told:
        stage.first.always(fault)
        return await stories.one(stage, Expected(0, 0.0, {0: (1, 1)}), by_name=False)

    return play


async def refused_connection(stage: Stage) -> Told:
    """Nothing was sent, so nothing was billed: the next is asked at once."""
    await stage.first.go_away()
    return await stories.one(stage, before_first_token(stage.policy, UNREACHABLE, sees=False))


async def slow_within_limits(stage: Stage) -> Told:
    """Slow is not broken: nobody else is asked."""
    waits = min(stage.policy.waits().begin, stage.policy.total) * MUCH_OF_A_LIMIT
    stage.first.always(faults.slow(waits))
    return await stories.one(stage, Expected(0, waits, {0: (1, 1)}), by_name=False)


async def not_a_stream(stage: Stage) -> Told:
    """It may be turned into a stream, or left for the next provider: only an empty success is wrong."""
    stage.first.always(faults.not_a_stream)
    got = await stage.call()
    by = 0 if got.right and sum(stage.asked) == 1 else 1
    expected = before_first_token(stage.policy, NO_ANSWER, by=by)
    found = complaints(expected, got, stage.asked, [1, *stage.answers[1:]], stage.policy)
    return Told(in_words(got, stage), got.seconds, found)


async def overflow(stage: Stage) -> Told:
    """Only a larger window is worth asking; without one the caller hears what it can mend."""
    policy = stage.policy
    stage.first.always(faults.refuse(Refusal.CONTEXT_OVERFLOW))
    by = policy.roomier(policy.links[0].dialect.overflow_tokens)
    return await stories.one(stage, before_first_token(policy, TOO_LONG, by=by))


async def overflow_everywhere(stage: Stage) -> Told:
    """The caller gets the code that its SDK knows, and is not told to try again."""
    for server in stage.servers:
        server.always(faults.refuse(Refusal.CONTEXT_OVERFLOW))
    return await stories.one(stage, before_first_token(stage.policy, TOO_LONG, by=None))
