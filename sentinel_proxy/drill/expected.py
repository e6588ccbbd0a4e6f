"""
What has to come of a call, and what is wrong with what came.

The caller of a proxy like this can rely on one thing: a whole and right answer, or an honest
error that says whether to try again. Never a part that looks whole, and never silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sentinel_proxy.drill.caller import Got
from sentinel_proxy.drill.policy import Policy, Rule
from sentinel_proxy.drill.skipping import LATE_SHARE

SLACK_SECONDS: Final = 2.0
"""What a call may take beyond its waits: far more than the proxy needs, and room for a slow machine."""

EARLY_SECONDS: Final = 0.05
"""What a wait may be short of: loops count in milliseconds."""

INTERRUPTED: Final = "stream_interrupted"

Bounds = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Expected:
    """
    What one call must end in.

    Args:
        by: Who answers, or says the end of the answer, from 0; None: an error.
        seconds: How long that takes by the waits of the policy.
        asked: How often each provider may be asked, least and most, by its place from 0.
        status: Of the error; where the status is spent the error comes inside the stream.
        code: Of the error; None: the provider's own.
        helps: Whether the error says that a retry can help; None: it says so or not.
        broken: The caller has a part of the answer already.
        at_most: It may be sooner.
    """

    by: int | None = None
    seconds: float = 0.0
    asked: Mapping[int, Bounds] = field(default_factory=dict)
    status: int = 0
    code: str | None = None
    helps: bool | None = None
    broken: bool = False
    at_most: bool = False


def before_first_token(
    policy: Policy,
    rule: Rule,
    *,
    times: int | None = None,
    takes: float = 0.0,
    by: int | None = 1,
    sees: bool = True,
    exact: bool = True,
) -> Expected:
    """
    Return what must come of a call whose first provider fails before its first token.

    Args:
        times: How often it fails until it is well; None: always.
        takes: How long each failure takes.
        by: Who is next; None: nobody can be.
        sees: Whether the provider notices that it is asked.
        exact: Whether it is asked again as often as the rule allows, and not only at most.
    """
    able = by is not None and by < len(policy.providers) and rule.next
    pauses = policy.pauses(rule, alone=policy.alone)
    tries = 1 + len(pauses)
    if times is not None and times < tries:
        waits = sum(pauses[:times]) + times * takes
        return Expected(0, waits, {0: (times + 1, times + 1)} if sees else {}, at_most=not rule.asks_seconds)
    spent = sum(pauses) + tries * takes
    asked = {0: (tries if exact else 1, tries) if sees else (0, 0)}
    if spent >= policy.total:
        return Expected(
            None, policy.total, asked, status=504, code="deadline_exceeded", helps=False, at_most=True
        )
    if able:
        return Expected(by, spent, asked, at_most=bool(pauses))
    return Expected(None, spent, asked, rule.status, rule.code, rule.helps, at_most=bool(pauses))


def after_first_token(policy: Policy, *, takes: float = 0.0) -> Expected:
    """
    Return what must come of a stream whose first provider breaks it off in the middle.

    Args:
        takes: How long that takes to be noticed.
    """
    rescuer = policy.rescuer()
    seconds = min(takes, policy.total)
    if rescuer is None or not policy.in_time_for_rescue(seconds):
        return Expected(None, seconds, {0: (1, 1)}, code=INTERRUPTED, broken=True)
    return Expected(rescuer, seconds, {0: (1, 1), rescuer: (1, 2)})


def complaints(
    expected: Expected, got: Got, asked: Sequence[int], answers: Sequence[int], policy: Policy
) -> list[str]:
    """
    Return what is wrong with what came; nothing if all is well.

    Args:
        asked: How often each provider was asked.
        answers: How often each provider answered well.
    """
    names = [provider.name for provider in policy.providers]
    if got.broken:
        return [f"the caller got no answer and no error, but {got.broken}"]
    found = (
        _of_answer(expected, got, answers, names)
        if expected.by is not None
        else _of_error(expected, got, policy)
    )
    for at, (least, most) in expected.asked.items():
        if not least <= asked[at] <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            found.append(f"{names[at]} was asked {asked[at]} times, not {wanted}")
    return found + _of_time(expected, got)


def _of_answer(expected: Expected, got: Got, answers: Sequence[int], names: Sequence[str]) -> list[str]:
    assert expected.by is not None
    if got.error is not None:
        return [f"an answer was possible, the caller got the error {told(got)}"]
    if not got.whole:
        return ["the caller got an answer without an end, and no error"]
    if not got.right:
        return ["the answer is not the one that was given: it lacks words, or repeats some"]
    who = [name for name, count in zip(names, answers, strict=True) if count]
    if names[expected.by] not in who:
        return [f"{' and '.join(who) or 'nobody'} answered, not {names[expected.by]}"]
    return []


def _of_error(expected: Expected, got: Got, policy: Policy) -> list[str]:
    if got.error is None:
        whole = (
            "a whole answer"
            if got.right
            else "what looks like a whole answer"
            if got.whole
            else "half an answer"
        )
        return [f"no answer was possible, yet the caller got {whole} and no error"]
    found = []
    if got.finish_reason is not None or (got.ended and got.in_band):
        found.append("the error is followed by what ends good answers")
    if missing := [key for key in ("message", "type", "param", "code") if key not in got.error]:
        found.append(f"the error lacks {', '.join(missing)}")
    if expected.code is not None and got.error.get("code") != expected.code:
        found.append(f"the error is {told(got)}, not {expected.code}")
    if not got.in_band:
        found += _of_status(expected, got)
    elif not expected.broken and (policy.hold is None or got.seconds < policy.hold - EARLY_SECONDS):
        found.append("the error came inside a stream, where its status could still be told")
    return found


def _of_status(expected: Expected, got: Got) -> list[str]:
    found = []
    if expected.broken:
        found.append(f"the caller got status {got.status} in the middle of an answer")
    elif got.status != expected.status:
        found.append(f"the status is {got.status}, not {expected.status}")
    advice = got.headers.get("x-should-retry")
    if advice not in ("true", "false"):
        found.append("the error does not say whether a retry can help")
    elif expected.helps is not None and (advice == "true") is not expected.helps:
        found.append(f"the caller is told x-should-retry: {advice}")
    return found


def _of_time(expected: Expected, got: Got) -> list[str]:
    if got.seconds > expected.seconds * (1 + LATE_SHARE) + SLACK_SECONDS:
        return [f"it took {got.seconds:.1f} s; the policy's waits are {expected.seconds:.1f} s"]
    if not expected.at_most and got.seconds < expected.seconds - EARLY_SECONDS:
        return [f"it took {got.seconds:.1f} s only; the policy waits {expected.seconds:.1f} s"]
    return []


def told(got: Got) -> str:
    """Return an error in a few words."""
    assert got.error is not None
    code = got.error.get("code") or got.error.get("type")
    return f"{code} in the stream" if got.in_band else f"{got.status} {code}"
