"""
The catalogue: what goes wrong, and how it is played.

The table is the contents of docs/drill.md, which a test holds equal to it. What must come of a
row follows from the reader's own configuration: `plays` for one call, `stories` for several.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sentinel_proxy.drill import faults, needs, plays, stories
from sentinel_proxy.drill.dialects import Refusal
from sentinel_proxy.drill.needs import Needs, knows
from sentinel_proxy.drill.plays import NO_ANSWER, OVERLOADED, RESET, Play, breaks, fails
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.testing import Hang, Reset

STREAMED, WHOLE = True, False
BOTH: Final = (STREAMED, WHOLE)
STREAMS: Final = (STREAMED,)
WHOLES: Final = (WHOLE,)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the catalogue."""

    id: str
    title: str
    injected: str  # what the first provider of the chain does, or who does it instead
    play: Play
    ways: Sequence[bool] = BOTH  # streamed or not
    needs: Needs = lambda _: ""


SCENARIOS: Final[tuple[Scenario, ...]] = (
    # Refused and limited.
    Scenario(
        "429-retry-after",
        "429 with Retry-After",
        f"answers 429 once and asks for {plays.SHORT_WAIT_SECONDS:g} s",
        plays.throttled(plays.SHORT_WAIT_SECONDS),
        needs=knows(Refusal.RATE_LIMIT),
    ),
    Scenario(
        "429-long-retry-after",
        "429 with a long Retry-After",
        f"answers 429 once and asks for {plays.LONG_WAIT_SECONDS:g} s",
        plays.throttled(plays.LONG_WAIT_SECONDS),
        needs=knows(Refusal.RATE_LIMIT),
    ),
    Scenario(
        "429-no-retry-after",
        "429 without Retry-After",
        "answers 429 once and asks for nothing",
        plays.throttled(plays.UNSAID_SECONDS, told=False),
        needs=knows(Refusal.RATE_LIMIT),
    ),
    Scenario(
        "401-own-key",
        "401: our own key is refused",
        "answers 401 to every call",
        stories.refused_key,
        needs=knows(Refusal.UNAUTHORIZED),
    ),
    Scenario(
        "quota",
        "429: our quota is spent",
        "says that there is no money left, to every call",
        stories.spent_quota,
        needs=knows(Refusal.QUOTA),
    ),
    Scenario(
        "unknown-model",
        "404: unknown model",
        "answers 404 to every call",
        fails(faults.refuse(Refusal.UNKNOWN_MODEL), plays.UNKNOWN_MODEL),
        needs=knows(Refusal.UNKNOWN_MODEL),
    ),
    Scenario(
        "context-overflow",
        "Context overflow",
        "says that the conversation is longer than its window",
        plays.overflow,
        needs=knows(Refusal.CONTEXT_OVERFLOW),
    ),
    Scenario(
        "context-overflow-everywhere",
        "Context overflow everywhere",
        "and all others say that the conversation is longer than their windows",
        plays.overflow_everywhere,
        needs=needs.all_know(Refusal.CONTEXT_OVERFLOW),
    ),
    Scenario(
        "content-filter",
        "Content filter",
        "refuses the prompt for what it says",
        fails(faults.refuse(Refusal.CONTENT_FILTER), plays.REFUSED),
        needs=knows(Refusal.CONTENT_FILTER),
    ),
    # Broken and gone.
    Scenario(
        "500-once",
        "500, once",
        "answers 500 once",
        fails(faults.refuse(Refusal.BROKEN), OVERLOADED, times=1),
        needs=knows(Refusal.BROKEN),
    ),
    Scenario(
        "503-persistent",
        "503, again and again",
        "answers 503 to every call",
        fails(faults.refuse(Refusal.BUSY), OVERLOADED),
        needs=knows(Refusal.BUSY),
    ),
    Scenario(
        "connection-refused",
        "Connection refused",
        "is gone",
        plays.refused_connection,
    ),
    Scenario(
        "unresolved-name",
        "Its name does not resolve",
        "is gone from the DNS",
        plays.unreachable(FailureKind.CONNECT, "the name does not resolve", plays.UNREACHABLE, lambda _: 0.0),
    ),
    Scenario(
        "black-hole",
        "Connections vanish",
        "takes no connection and refuses none",
        plays.unreachable(
            FailureKind.CONNECT_TIMEOUT,
            "no connection in time",
            plays.BLACK_HOLE,
            lambda policy: policy.waits().connect,
        ),
    ),
    Scenario(
        "reset", "Connection reset", "resets the connection instead of answering", fails(faults.reset, RESET)
    ),
    Scenario(
        "hang-up",
        "Connection closed",
        "closes the connection instead of answering",
        fails(faults.hang_up, RESET),
    ),
    Scenario(
        "stale-connection",
        "Dead kept-alive connection",
        "closes a connection just as it is used again",
        stories.stale_connection,
    ),
    Scenario(
        "all-down",
        "Everybody is down",
        "and all others answer 503 to every call",
        stories.all_down,
        needs=needs.all_know(Refusal.BUSY),
    ),
    # Silent and slow.
    Scenario(
        "silence",
        "Silence",
        "takes the call and never answers",
        plays.keeps_waiting(lambda _: faults.silence),
    ),
    Scenario(
        "slow-first-token",
        "A slow first token",
        f"takes {plays.MUCH_OF_A_LIMIT:.0%} of the time it has to its first token",
        plays.slow_within_limits,
    ),
    Scenario(
        "no-first-token",
        "A first token that never comes",
        "begins its answer and then says nothing",
        plays.keeps_waiting(lambda _: faults.breaks(Hang(), after=0)),
        STREAMS,
    ),
    Scenario(
        "pings-only",
        "Pings instead of tokens",
        "keeps the wire alive and says nothing",
        plays.keeps_waiting(plays.keeps_pinging(0)),
        STREAMS,
        needs.has_pings,
    ),
    Scenario(
        "stalled-stream",
        "Stalled stream",
        "falls silent in the middle of its answer",
        plays.stalls(lambda _: faults.breaks(Hang()), plays.until_idle),
        STREAMS,
    ),
    Scenario(
        "stalled-with-pings",
        "Stalled stream with pings",
        "says nothing more in the middle of its answer, and keeps the wire alive",
        plays.stalls(plays.keeps_pinging(faults.SPOKEN_TOKENS), plays.until_no_progress),
        STREAMS,
        needs.has_pings,
    ),
    # Broken answers.
    Scenario(
        "cut-before",
        "Cut before the first token",
        "resets the connection before its first token",
        fails(faults.breaks(Reset(), after=0), NO_ANSWER),
        STREAMS,
    ),
    Scenario(
        "cut",
        "Cut stream",
        "resets the connection in the middle of its answer",
        breaks(faults.breaks(Reset())),
        STREAMS,
    ),
    Scenario(
        "cut-cleanly",
        "Stream that just ends",
        "ends the stream in the middle of its answer, as if that were all",
        breaks(faults.breaks(None)),
        STREAMS,
    ),
    Scenario(
        "cut-tool-call",
        "Cut in a tool call",
        "resets the connection while it calls a tool",
        plays.breaks_in_tool_call,
        STREAMS,
        needs.has_tools,
    ),
    Scenario(
        "malformed-first",
        "Malformed first event",
        "sends half an event in the place of the first token",
        fails(faults.garbles(after=0), NO_ANSWER),
        STREAMS,
    ),
    Scenario(
        "malformed",
        "Malformed event",
        "sends half an event in the middle of its answer, and goes on",
        breaks(faults.garbles()),
        STREAMS,
    ),
    Scenario(
        "error-first",
        "200, then an error",
        "begins its answer with an error",
        fails(faults.says_error(after=0), OVERLOADED, exact=False),
        STREAMS,
    ),
    Scenario(
        "error-later",
        "An error in the middle",
        "says in the middle of its answer that it has failed",
        breaks(faults.says_error()),
        STREAMS,
    ),
    Scenario(
        "no-done",
        "Missing [DONE]",
        "says all it has to say and leaves out the terminator",
        plays.well_enough(faults.unterminated),
        STREAMS,
        needs.has_terminator,
    ),
    Scenario(
        "empty",
        "Empty answer",
        "answers well, with nothing in it",
        fails(faults.empty, NO_ANSWER),
    ),
    Scenario("html", "200 with a web page", "answers 200 with HTML", fails(faults.web_page, NO_ANSWER)),
    Scenario(
        "not-a-stream",
        "JSON in the place of a stream",
        "answers a stream with whole JSON",
        plays.not_a_stream,
        STREAMS,
    ),
    Scenario(
        "truncated-json",
        "Truncated JSON",
        "answers with half of the JSON",
        fails(faults.half_json, NO_ANSWER),
        WHOLES,
    ),
    Scenario(
        "short-body",
        "Body shorter than declared",
        "closes the connection in the middle of the JSON",
        fails(faults.short_body, NO_ANSWER),
        WHOLES,
    ),
    # What lasts longer than a call.
    Scenario(
        "rejected-prefill",
        "Fallback that rejects prefill",
        "breaks its answer off, and the next refuses to complete it",
        stories.rejected_prefill,
        STREAMS,
        needs.can_prefill,
    ),
    Scenario(
        "flapping",
        "A flapping primary",
        "fails, is well, and fails again",
        stories.flapping,
        needs=needs.opens_soon,
    ),
    Scenario(
        "half-open",
        "Many calls after a rest",
        "is well again, but slow, when everybody comes at once",
        stories.half_open,
        needs=needs.opens_soon,
    ),
    Scenario(
        "accounting",
        "Accounting after failover",
        "fails, so another is to be paid",
        stories.accounting,
        needs=needs.has_next,
    ),
    Scenario(
        "live-tokens",
        "Tokens arrive as they are sent",
        "is well, and says one token after the other",
        stories.live_tokens,
        STREAMS,
    ),
    Scenario(
        "live-tokens-failover",
        "Fallback tokens as they are sent",
        "is down; the next says one token after the other",
        stories.live_tokens_of_the_next,
        STREAMS,
        needs.has_next,
    ),
    # Callers who leave.
    Scenario(
        "early-hang-up",
        "The caller leaves while it waits",
        "takes the call and never answers; the caller leaves",
        stories.left_waiting,
    ),
    Scenario(
        "hang-up-mid-stream",
        "The caller leaves in mid-stream",
        "is well; the caller leaves after some tokens",
        stories.left_listening,
        STREAMS,
    ),
)
