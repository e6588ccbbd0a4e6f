"""
Plays of several calls, or of more than one provider: what lasts longer than one failure.

Each returns what to tell the reader, and what was wrong; the numbers are those of the last call
that matters.
"""

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from sentinel_proxy.drill import faults
from sentinel_proxy.drill.caller import Got
from sentinel_proxy.drill.dialects import Refusal
from sentinel_proxy.drill.expected import Expected, before_first_token, complaints, told
from sentinel_proxy.drill.faults import well
from sentinel_proxy.drill.policy import Rule
from sentinel_proxy.drill.stage import Stage
from sentinel_proxy.drill.standin import TOKENS
from sentinel_proxy.errors import Retry
from sentinel_proxy.events import BreakerChanged, CallFinished
from sentinel_proxy.model import Outcome
from sentinel_proxy.testing import Hang, Reset

GAP_SECONDS: Final = 1.0
"""Between two tokens, where it is watched whether they arrive as they are sent."""

CROWD: Final = 5
"""How many calls come at once after a rest."""

LEAVES_AFTER_SECONDS: Final = 1.0
LEAVES_AFTER_TOKENS: Final = 2


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a scenario."""

    caller: str  # what the caller got, in a few words
    seconds: float
    complaints: list[str] = field(default_factory=list)


def in_words(got: Got, stage: Stage) -> str:
    """Say in a few words what a caller got."""
    if got.broken:
        return f"broken off: {got.broken}"
    if got.error is not None:
        again = not got.in_band and got.headers.get("x-should-retry") == "true"
        return f"{told(got)}, may try again" if again else told(got)
    if not got.right:
        return "a wrong answer" if got.whole else "half an answer"
    if got.rescued_by:
        return f"an answer, ended by {got.rescued_by}"
    return f"an answer by {answerer(got, stage)}"


def answerer(got: Got, stage: Stage) -> str:
    """Name who answered: as the proxy says or, where it could not yet, who was asked last."""
    names = [provider.name for provider in stage.policy.providers]
    told = got.headers.get("x-sentinel-provider")
    asked = [name for name, calls in zip(names, stage.asked, strict=True) if calls]
    return told if told in names else asked[-1]


async def one(stage: Stage, expected: Expected, *, by_name: bool = True) -> Told:
    """
    Make one call and hold it against *expected*.

    Args:
        by_name: Whoever answers has to be one that is `well`; else it is not looked at.
    """
    got = await stage.call()
    answers = stage.answers if by_name else stage.asked
    return Told(
        in_words(got, stage), got.seconds, complaints(expected, got, stage.asked, answers, stage.policy)
    )


async def refused_key(stage: Stage) -> Told:
    """A refused key of ours is not the caller's business; one that the caller gave us is."""
    stage.first.always(faults.refuse(Refusal.UNAUTHORIZED))
    if stage.policy.links[0].passes_caller_key:
        theirs = Rule(Retry.NEVER, 401, None, helps=False, next=False)
        return await one(stage, before_first_token(stage.policy, theirs))
    return await _opens_at_once(stage, Rule(Retry.NEVER, 502, "provider_auth_failed", helps=False))


async def spent_quota(stage: Stage) -> Told:
    """Waiting does not help, so nobody waits; and our own account is not tried again soon."""
    stage.first.always(faults.refuse(Refusal.QUOTA))
    return await _opens_at_once(stage, Rule(Retry.NEVER, 503, "provider_quota_exhausted", helps=False))


async def _opens_at_once(stage: Stage, rule: Rule) -> Told:
    """
    What no call can heal opens the breaker at once: the next call passes the provider by.

    But for a caller's own account: it is empty for nobody else.
    """
    said = await one(stage, before_first_token(stage.policy, rule))
    asked = len(stage.first.calls)
    await stage.call()
    again = len(stage.first.calls) > asked
    name, theirs = stage.policy.providers[0].name, stage.policy.links[0].passes_caller_key
    if again and not theirs and not stage.policy.alone:
        said.complaints.append(f"{name} was asked again although no call can heal it")
    if theirs and not again:
        said.complaints.append(f"{name} is kept from everybody because one caller's own account is empty")
    return said


async def stale_connection(stage: Stage) -> Told:
    """One silent second try on a new connection: the server is well, only the connection was dead."""
    stage.first.plays(well, faults.hang_up)
    await stage.call()
    return await one(stage, Expected(0, 0.0, {0: (3, 3)}))


async def all_down(stage: Stage) -> Told:
    """Nobody can answer: the caller hears so soon, and that it may come back."""
    for server in stage.servers:
        server.always(faults.refuse(Refusal.BUSY))
    retry = stage.policy.config.retry
    tries = len(stage.servers) * retry.attempts
    expected = Expected(
        None,
        seconds=min(tries * retry.max_backoff, stage.policy.total),
        asked={at: (1, retry.attempts) for at in range(len(stage.servers))},
        status=502,
        code="all_providers_failed",
        helps=True,
        at_most=True,
    )
    return await one(stage, expected)


async def rejected_prefill(stage: Stage) -> Told:
    """Asked to complete a beginning it refuses, asked in words it goes on; the caller sees one answer."""
    at = stage.policy.rescuer()
    assert at is not None
    stage.first.always(faults.breaks(Reset()))
    stage.servers[at].plays(faults.refuse(Refusal.PREFILL))
    return await one(stage, Expected(at, 0.0, {0: (1, 1), at: (2, 2)}))


async def _trip(stage: Stage) -> tuple[Got, list[str]]:
    """Call until the breaker of the first provider, which is down, opens."""
    stage.first.always(faults.refuse(Refusal.BUSY))
    found: list[str] = []
    got = Got(stage.policy.streamed)
    for _ in range(stage.policy.config.breaker.failure_threshold):
        got = await stage.call()
        found += _answered_or_honest(got, stage)
        if _rests(stage):
            return got, found
    return got, [*found, f"{stage.policy.providers[0].name} kept failing and was never left alone"]


def _answered_or_honest(got: Got, stage: Stage) -> list[str]:
    """With somebody else to ask every call is answered; without, it is told so."""
    if got.right:
        return []
    if stage.policy.alone and got.error is not None:
        return []
    return [f"a call that could be answered was not: {in_words(got, stage)}"]


def _rests(stage: Stage) -> float:
    """Return how long the breaker that opened last rests; 0 if none is open."""
    changes = [event for event in stage.events if isinstance(event, BreakerChanged)]
    return changes[-1].rest_seconds if changes else 0.0


async def flapping(stage: Stage) -> Told:
    """Down, it is left alone; after its rest one call tries it; well, it has its calls again."""
    name = stage.policy.providers[0].name
    got, found = await _trip(stage)
    tripped = len(stage.first.calls)
    if tripped > stage.policy.config.breaker.failure_threshold:
        found.append(f"{name} was asked {tripped} times until it was left alone")
    if not stage.policy.alone:
        got = await stage.call()
        found += _answered_or_honest(got, stage)
        if len(stage.first.calls) > tripped:
            found.append(f"{name} was asked during its rest")
    tripped = len(stage.first.calls)
    await stage.pass_time(_rests(stage))
    got = await stage.call()
    found += _answered_or_honest(got, stage)
    if len(stage.first.calls) != tripped + 1:
        found.append(f"after its rest {name} was asked {len(stage.first.calls) - tripped} times, not once")
    stage.first.always(well)
    await stage.pass_time(_rests(stage))
    for _ in range(2):
        got = await stage.call()
        found += [] if got.right else [f"it is well again, and the caller got {in_words(got, stage)}"]
    if got.headers.get("x-sentinel-provider") != name:
        found.append(f"{name} is well again, and its calls still go elsewhere")
    return Told(in_words(got, stage), got.seconds, found)


async def half_open(stage: Stage) -> Told:
    """After a rest as many calls as there are permits try the provider; the others do not wait for them."""
    name = stage.policy.providers[0].name
    permits = stage.policy.config.breaker.half_open_permits
    _, found = await _trip(stage)
    stage.first.always(faults.slow(min(stage.policy.waits().begin, stage.policy.total) / 2))
    await stage.pass_time(_rests(stage))
    before = len(stage.first.calls)
    crowd = min([CROWD, *stage.policy.places()])
    everyone = await asyncio.gather(*(stage.call() for _ in range(crowd)))
    tried = len(stage.first.calls) - before
    if tried != min(permits, crowd):
        found.append(f"{tried} of {crowd} calls tried {name} at once, not {min(permits, crowd)}")
    for got in everyone:
        found += _answered_or_honest(got, stage)
    if not any(got.right for got in everyone):
        found.append("nobody got an answer")
    quick = min(everyone, key=lambda got: got.seconds)
    return Told(in_words(quick, stage), quick.seconds, list(dict.fromkeys(found)))


async def accounting(stage: Stage) -> Told:
    """The tokens, the model and the name are those of whoever answered; failed tries are told, not paid."""
    stage.first.always(faults.reset)
    said = await stage.call()
    found = complaints(Expected(1, at_most=True), said, stage.asked, stage.answers, stage.policy)
    payee, server = stage.policy.providers[1].name, stage.servers[1]
    wanted = {
        "prompt_tokens": server.usage.prompt_tokens,
        "completion_tokens": server.usage.completion_tokens,
        "total_tokens": server.usage.total_tokens,
    }
    usage = {key: (said.usage or {}).get(key) for key in wanted}
    if usage != wanted:
        found.append(f"the usage is {usage}, not that of {payee}")
    if len(said.models) != 1:
        found.append(f"the answer names {len(said.models)} models, not one")
    told_by_headers = (said.headers.get("x-sentinel-provider"), said.headers.get("x-sentinel-failover"))
    if told_by_headers != (payee, "true"):
        found.append(f"the headers name {told_by_headers[0]} and failover {told_by_headers[1]}")
    for event in (event for event in stage.events if isinstance(event, CallFinished)):
        if (event.provider, event.outcome) != (payee, Outcome.FAILED_OVER):
            found.append(f"the call is booked as {event.outcome.value} by {event.provider}")
        if event.usage != server.usage:
            found.append("the call is booked with other tokens than were used")
    return Told(in_words(said, stage), said.seconds, found)


async def live_tokens(stage: Stage) -> Told:
    """Each token is with the caller before the next one is sent."""
    return await _live(stage, 0)


async def live_tokens_of_the_next(stage: Stage) -> Told:
    """The same where the answer is another provider's, and is translated if it has to be."""
    stage.first.always(faults.reset)
    return await _live(stage, 1)


async def _live(stage: Stage, at: int) -> Told:
    sent_at: list[float] = []
    gap = stage.policy.unhurried(GAP_SECONDS, times=len(TOKENS))
    stage.servers[at].always(faults.paced(gap, sent_at))
    got = await stage.call()
    names = [provider.name for provider in stage.policy.providers]
    found = []
    if not got.right:
        found.append(f"the caller got {in_words(got, stage)}")
    late = [
        number
        for number, ((_, next_sent), arrived) in enumerate(
            zip(pairwise(sent_at), got.arrived_at, strict=False), start=1
        )
        if arrived >= next_sent
    ]
    if late:
        found.append(f"{len(late)} of {len(sent_at)} tokens arrived only after the next one was sent")
    if len(got.arrived_at) != len(sent_at):
        found.append(f"{len(sent_at)} tokens were sent, {len(got.arrived_at)} arrived")
    first = got.arrived_at[0] - sent_at[0] if got.arrived_at and sent_at else 0.0
    words = in_words(got, stage) if not got.right else f"tokens of {names[at]}, at once"
    return Told(words, max(0.0, first), found)


async def left_waiting(stage: Stage) -> Told:
    """Nobody waits any more: the upstream's connection is closed, nobody is blamed, nobody else is asked."""
    stage.first.always(faults.silence)
    call = asyncio.create_task(stage.call(), name="a caller that leaves")
    seconds = stage.policy.unhurried(LEAVES_AFTER_SECONDS, times=1)
    await asyncio.sleep(seconds)
    call.cancel()
    await asyncio.wait({call})
    return Told("nothing; it left", seconds, await _let_go(stage))


async def left_listening(stage: Stage) -> Told:
    """The same in the middle of an answer."""
    stage.first.always(faults.breaks(Hang()))
    got = await stage.caller.call(streamed=True, leaves_after=LEAVES_AFTER_TOKENS)
    return Told("a part; it left", got.seconds, await _let_go(stage))


async def _let_go(stage: Stage) -> list[str]:
    """Return what is wrong with how a hang-up was taken."""
    name = stage.policy.providers[0].name
    await stage.settled(lambda: not stage.first.is_heard())
    found = []
    if stage.first.is_heard():
        found.append(f"the caller has left, and {name} is still kept at work")
    if sum(stage.asked) != 1:
        found.append(f"{sum(stage.asked)} calls were made for a caller that had left")
    if any(isinstance(event, BreakerChanged) for event in stage.events):
        found.append(f"{name} is blamed for a caller that left")
    return found
