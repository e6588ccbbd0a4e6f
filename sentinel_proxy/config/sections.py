"""
What can be set: one class per table of the file, one field per key.

Names and defaults are public API; docs/configuration.md and config.example.toml are held equal
to them by a test. Times are seconds, sizes are bytes. Rules about a single value stand at its
type; rules between values are in `rules`.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from sentinel_proxy.config.values import (
    BaseUrl,
    Count,
    KeepAlive,
    Name,
    Namespace,
    Network,
    Port,
    PositiveCount,
    PositiveSeconds,
    Seconds,
    Secret,
    Share,
    StateUrl,
    Text,
)


class Section(BaseModel):
    """A table of the file: frozen, and without room for unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, hide_input_in_errors=True
    )


class ServerConfig(Section):
    """[server]"""

    host: Text = "127.0.0.1"
    port: Port = 8000
    workers: PositiveCount = 1
    drain_seconds: Seconds = 30
    max_body_bytes: PositiveCount = 33_554_432
    max_upload_bytes: PositiveCount = 536_870_912
    max_in_flight: PositiveCount = 2000
    trusted_proxies: tuple[Network, ...] = ()


class TimeoutsConfig(Section):
    """[timeouts]"""

    connect: PositiveSeconds = 5
    first_token: PositiveSeconds = 30
    first_token_reasoning: PositiveSeconds = 300
    idle: PositiveSeconds = 30
    progress: PositiveSeconds = 120
    header_hold: Seconds = 10
    heartbeat: PositiveSeconds = 15
    answer: PositiveSeconds = 120
    total: PositiveSeconds = 600


class ProviderTimeoutsConfig(Section):
    """[providers.timeouts]: any of [timeouts] that bounds one attempt, for this provider alone."""

    connect: PositiveSeconds | None = None
    first_token: PositiveSeconds | None = None
    first_token_reasoning: PositiveSeconds | None = None
    idle: PositiveSeconds | None = None
    progress: PositiveSeconds | None = None
    answer: PositiveSeconds | None = None


class ProviderConfig(Section):
    """[[providers]], in order of preference."""

    name: Name
    kind: Literal["openai", "ollama"]
    base_url: BaseUrl
    api_key: Secret | None = None
    transport: Literal["http1", "httpx"] = "http1"
    models: dict[str, Text] = {}
    max_in_flight: Count = 0
    context_window: PositiveCount | None = None
    keep_alive: KeepAlive | None = None
    num_ctx: PositiveCount | None = None
    continuation: Literal["prefill", "instruct", "none"] | None = None
    timeouts: ProviderTimeoutsConfig = ProviderTimeoutsConfig()


class RetryConfig(Section):
    """[retry]"""

    attempts: PositiveCount = 2
    backoff: Seconds = 0.25
    max_backoff: Seconds = 4
    retry_after_limit: Seconds = 5
    budget: Share = 0.2


class BreakerConfig(Section):
    """[breaker]"""

    failure_threshold: PositiveCount = 3
    recovery_timeout: PositiveSeconds = 30
    max_recovery_timeout: PositiveSeconds = 300
    half_open_permits: PositiveCount = 1
    scope: Literal["auto", "provider", "model"] = "auto"


class RescueConfig(Section):
    """[rescue]"""

    mode: Literal["continue", "error"] = "continue"


class HedgeConfig(Section):
    """[hedge]"""

    enabled: bool = False
    delay: Seconds = 0
    budget: Share = 0.05


class HealthConfig(Section):
    """[health]"""

    interval: PositiveSeconds = 15
    timeout: PositiveSeconds = 5


class RateLimitConfig(Section):
    """[rate_limit]"""

    requests: Count = 100
    window: PositiveSeconds = 60


class StateConfig(Section):
    """[state]"""

    url: StateUrl = Field(default="sqlite://", repr=False)  # may hold the password of a Redis
    namespace: Namespace = "sentinel"
    incidents: PositiveCount = 500
    events: PositiveCount = 500


class AdminConfig(Section):
    """[admin]"""

    token: Secret | None = None


class ClientConfig(Section):
    """[[clients]]"""

    name: Name
    key: Secret
    requests: Count | None = None  # None: [rate_limit].requests


class LogConfig(Section):
    """[log]"""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(Section):
    """Everything; as frozen as its parts."""

    default_model: Text = "gpt-4o-mini"
    server: ServerConfig = ServerConfig()
    providers: tuple[ProviderConfig, ...] = ()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    retry: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    rescue: RescueConfig = RescueConfig()
    hedge: HedgeConfig = HedgeConfig()
    health: HealthConfig = HealthConfig()
    rate_limit: RateLimitConfig = RateLimitConfig()
    state: StateConfig = StateConfig()
    admin: AdminConfig = AdminConfig()
    clients: tuple[ClientConfig, ...] = ()
    log: LogConfig = LogConfig()

    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, str]:
        """Dotted key to the environment variable or flag that set it; keys of the file are not in it."""
        return self._origins

    @property
    def caller_key_provider(self) -> str | None:
        """
        Name of the provider that callers' own keys are passed on to; None: they stay here.

        Only the first of kind "openai" can be it, for a key must not wander to another vendor.
        It is not where it has a key of its own, nor where [[clients]] are listed, since their
        keys are the proxy's.
        """
        first = next((provider for provider in self.providers if provider.kind == "openai"), None)
        if first is None or first.api_key is not None or self.clients:
            return None
        return first.name
