"""
What a scenario needs to make sense: a dialect that has the fault, a chain that has somebody to go to.

Each says why a scenario is to be left out for a policy, or "" if it is not.
"""

from collections.abc import Callable
from typing import Final

from sentinel_proxy.drill.dialects import Refusal
from sentinel_proxy.drill.policy import Policy

Needs = Callable[[Policy], str]

MOST_FAILURES: Final = 20
"""More failures in a row would make a drill long, and show nothing new."""


def knows(refusal: Refusal) -> Needs:
    """The first provider's API has such a refusal."""

    def needs(policy: Policy) -> str:
        link = policy.links[0]
        return "" if refusal in link.dialect.refusals else f"{link.original.name} has no such answer"

    return needs


def all_know(refusal: Refusal) -> Needs:
    """Every API of the chain has such a refusal."""

    def needs(policy: Policy) -> str:
        unable = [link.original.name for link in policy.links if refusal not in link.dialect.refusals]
        return f"{unable[0]} has no such answer" if unable else ""

    return needs


def has_terminator(policy: Policy) -> str:
    """Streams of the first provider end with an event that says nothing else."""
    link = policy.links[0]
    return "" if link.dialect.terminated else f"streams of {link.original.name} have no such end"


def has_pings(policy: Policy) -> str:
    """Streams of the first provider can be kept alive by events that say nothing."""
    link = policy.links[0]
    return "" if link.dialect.ping is not None else f"streams of {link.original.name} have nothing like it"


def has_tools(policy: Policy) -> str:
    """Streams of the first provider can call tools."""
    link = policy.links[0]
    return "" if link.dialect.tool_call else f"{link.original.name} calls no tools"


def has_next(policy: Policy) -> str:
    """There is another provider."""
    return "there is no provider to go to" if policy.alone else ""


def can_prefill(policy: Policy) -> str:
    """Whoever carries streams on is asked to complete a beginning."""
    at = policy.rescuer()
    if at is None or policy.providers[at].continuation != "prefill":
        return "nobody is asked to go on that way"
    return "" if Refusal.PREFILL in policy.links[at].dialect.refusals else "its API has no such answer"


def opens_soon(policy: Policy) -> str:
    """The breaker opens after so few failures that they can be played."""
    threshold = policy.config.breaker.failure_threshold
    if threshold > MOST_FAILURES:
        return f"it takes {threshold} failures to open the breaker; {MOST_FAILURES} are played at most"
    return knows(Refusal.BUSY)(policy)
