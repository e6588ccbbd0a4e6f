"""
What goes wrong when: the script of the demo.

The waits of the proxy are shortened to the same measure, so that every state of the breaker is
seen within half a minute: it rests for three seconds, not thirty.
"""

from dataclasses import dataclass
from typing import Final

from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    HealthConfig,
    ProviderConfig,
    RateLimitConfig,
    RetryConfig,
    ServerConfig,
    TimeoutsConfig,
)
from sentinel_proxy.testing import Outage, SimulatedOllama, SimulatedOpenAI

PACE_SECONDS: Final = 0.02
"""Between two tokens: most of a second for an answer, so several are always under way."""

BEAT_SECONDS: Final = 0.25
"""A call begins at each beat."""

BEATS: Final = 80
"""How many calls the script makes."""

BEATS_A_LINE: Final = 4
"""How often the calls that have ended are shown: once a second."""

QUESTIONS: Final = (
    "Why is the sky blue?",
    "Who wrote the first compiler?",
    "How far away is the Moon?",
    "What does a circuit breaker protect?",
    "Is a hot dog a sandwich?",
    "When was the telephone invented?",
    "Where do all the lost socks go?",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """From *at_seconds* on the first provider is as *outage* says; None: it is well."""

    at_seconds: float
    title: str
    outage: Outage | None


# 503 opens the breaker at 6; its rests of 3 s then end while OpenAI hangs, while it is gone, and
# once it is back, each with a second or more to spare on both sides.
SCENES: Final = (
    Scene(0, "All is well", None),
    Scene(3, "OpenAI drops streams before the first word", Outage.CUT_BEFORE),
    Scene(4.5, "OpenAI drops streams in mid-sentence", Outage.CUT_AFTER),
    Scene(6, "OpenAI answers 503", Outage.UNAVAILABLE),
    Scene(8.5, "OpenAI accepts calls and never answers", Outage.HANG),
    Scene(12, "OpenAI is gone: connections are refused", Outage.REFUSE),
    Scene(15.5, "OpenAI is back", None),
)


def config(openai: SimulatedOpenAI, ollama: SimulatedOllama) -> Config:
    """Return the configuration that the real proxy runs with."""
    return Config(
        server=ServerConfig(drain_seconds=1),
        providers=(
            ProviderConfig(name="openai", kind="openai", base_url=openai.base_url),
            ProviderConfig(
                name="ollama", kind="ollama", base_url=ollama.base_url, models={"*": ollama.models[0]}
            ),
        ),
        timeouts=TimeoutsConfig(connect=0.5, first_token=1.5, idle=1.5, answer=2.5, total=60),
        retry=RetryConfig(backoff=0.1),
        breaker=BreakerConfig(failure_threshold=3, recovery_timeout=3, max_recovery_timeout=3),
        health=HealthConfig(interval=60),  # the story is that of the calls, not of the probes
        rate_limit=RateLimitConfig(requests=0),
    )
