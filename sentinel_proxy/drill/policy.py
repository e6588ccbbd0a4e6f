"""
What follows from a configuration, computed apart from the code that is drilled.

The rules of failures are stated again here, in the catalogue's own words, and not looked up in
`errors.CONSEQUENCES`: a drill that asked the proxy what is right could not find it wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sentinel_proxy.config import Config
from sentinel_proxy.drill.caller import payload
from sentinel_proxy.drill.chain import Link
from sentinel_proxy.errors import Retry
from sentinel_proxy.model import Call, Endpoint
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.rescue import MIN_SECONDS_LEFT
from sentinel_proxy.resilience.budget import FREE_RETRIES
from sentinel_proxy.resilience.deadline import Patience, Waits, overridden
from sentinel_proxy.resilience.retry import PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Rule:
    """
    What a failure before the first token means.

    Args:
        again: Whether the same provider may be asked once more.
        status: What the caller gets where nobody else can be asked.
        code: The code with it.
        helps: Whether the caller should be told that a retry can help.
        next: Whether the next provider is asked.
        votes: Whether it counts against the breaker.
        asks_seconds: How long the provider is to be left alone.
    """

    again: Retry
    status: int
    code: str | None
    helps: bool = True
    next: bool = True
    votes: bool = True
    asks_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """
    One configuration and one way to call, streamed or not.

    Args:
        providers: The drilled ones, in order.
        links: What they stand for.
    """

    config: Config
    providers: Sequence[Provider]
    links: Sequence[Link]
    streamed: bool

    @property
    def alone(self) -> bool:
        """Whether there is nobody to fail over to."""
        return len(self.providers) == 1

    @property
    def total(self) -> float:
        """Seconds that a call may take."""
        return self.config.timeouts.total

    @property
    def hold(self) -> float | None:
        """Seconds after which a waiting stream is answered 200 and kept warm; None: never."""
        return (self.config.timeouts.header_hold or None) if self.streamed else None

    def call(self) -> Call:
        """Return the call of the drill as the proxy carries it."""
        model = self.config.default_model
        asked = payload(model, streamed=self.streamed)
        return Call("drill", Endpoint.CHAT, b"{}", asked, model, self.streamed, 0.0, self.total)

    def waits(self, position: int = 0) -> Patience:
        """Return how long the proxy waits for the provider at *position*, from 0."""
        provider = self.providers[position]
        timeouts = overridden(self.config.timeouts, provider.timeouts)
        call = self.call()
        return Waits(timeouts).of(call, provider.model_for(call.model))

    def unhurried(self, seconds: float, *, times: int) -> float:
        """Return *seconds*, or less where a wait of so much, so many times over, would touch a limit."""
        limits = [self.total / (times + 1)]
        for at in range(len(self.providers)):
            waits = self.waits(at)
            limits += [waits.begin, waits.idle, waits.progress]
        return min(seconds, min(limits) / 3)

    def pauses(self, rule: Rule, *, alone: bool) -> list[float]:
        """Return the pauses before the further tries that one provider gets, the longest there may be."""
        retry = self.config.retry
        if rule.again is Retry.NEVER or (rule.again is Retry.ALONE and not alone):
            return []
        longest = retry.retry_after_limit if rule.asks_seconds else retry.max_backoff
        if not alone:
            longest = min(longest, PATIENCE_SECONDS)
        pauses: list[float] = []
        for doublings in range(self.most_tries(rule) - 1):
            own = min(retry.max_backoff, retry.backoff * 2.0**doublings)
            pause = rule.asks_seconds or own
            if pause > longest or sum(pauses) + pause >= self.total:
                break
            pauses.append(pause)
        return pauses

    def most_tries(self, rule: Rule) -> int:
        """Return how often one provider may be asked for one call at most."""
        tries = min(self.config.retry.attempts, 1 + FREE_RETRIES)
        return min(tries, self.config.breaker.failure_threshold) if rule.votes else tries

    def places(self) -> list[int]:
        """Return the limits of calls at once, the proxy's own and those of providers that have one."""
        own = [provider.max_in_flight for provider in self.providers if provider.max_in_flight]
        return [self.config.server.max_in_flight, *own]

    def rescuer(self) -> int | None:
        """Return who goes on where the first provider breaks off, from 0; None: nobody may."""
        if self.config.rescue.mode != "continue":
            return None
        rest = range(1, len(self.providers))
        return next((at for at in rest if self.providers[at].continuation != "none"), None)

    def in_time_for_rescue(self, seconds: float) -> bool:
        """Whether a stream that broke after *seconds* may still be carried on."""
        return self.total - seconds >= MIN_SECONDS_LEFT

    def roomier(self, tokens: int) -> int | None:
        """Return who may be asked after a window of *tokens* was too small; 0: nobody knows how small."""
        window = self.providers[0].context_window or tokens
        rest = range(1, len(self.providers))
        windows = ((at, self.providers[at].context_window) for at in rest)
        return next((at for at, own in windows if own is None or own > window), None)
