"""
The configuration: what can be set, what it means, and the errors of whoever writes it.

TOML file first, then the environment on top. Frozen once built; secrets are masked in every
`repr` and print. Times are seconds, sizes are bytes.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the file: frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class ServerConfig(Section):
    """[server]"""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: PositiveCount = 1
    drain_seconds: Seconds = 30
    max_body_bytes: PositiveCount = 33_554_432
    max_upload_bytes: PositiveCount = 536_870_912
    max_in_flight: PositiveCount = 2000
    trusted_proxies: tuple[str, ...] = ()


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
    """[providers.timeouts]: any of [timeouts], for this provider alone."""

    connect: PositiveSeconds | None = None
    first_token: PositiveSeconds | None = None
    first_token_reasoning: PositiveSeconds | None = None
    idle: PositiveSeconds | None = None
    progress: PositiveSeconds | None = None
    answer: PositiveSeconds | None = None


class ProviderConfig(Section):
    """[[providers]], in order of preference."""

    name: str
    kind: Literal["openai", "ollama"]
    base_url: str
    api_key: SecretStr | None = None
    transport: Literal["http1", "httpx"] = "http1"
    models: dict[str, str] = {}
    max_in_flight: Count = 0
    context_window: PositiveCount | None = None
    keep_alive: str | int | None = None
    num_ctx: PositiveCount | None = None
    continuation: Literal["prefill", "instruct", "none"] | None = None
    timeouts: ProviderTimeoutsConfig = ProviderTimeoutsConfig()


class RetryConfig(Section):
    """[retry]"""

    attempts: PositiveCount = 2
    backoff: Seconds = 0.25
    max_backoff: Seconds = 4
    retry_after_limit: Seconds = 5
    budget: Annotated[float, Field(ge=0, le=1)] = 0.2


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

    url: str = "sqlite://"
    namespace: str = "sentinel"
    incidents: PositiveCount = 500
    events: PositiveCount = 500


class AdminConfig(Section):
    """[admin]"""

    token: SecretStr | None = None


class ClientConfig(Section):
    """[[clients]]"""

    name: str
    key: SecretStr
    requests: Count | None = None


class LogConfig(Section):
    """[log]"""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(Section):
    """Everything; as frozen as its parts."""

    server: ServerConfig = ServerConfig()
    providers: tuple[ProviderConfig, ...] = ()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    retry: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    rescue: RescueConfig = RescueConfig()
    health: HealthConfig = HealthConfig()
    rate_limit: RateLimitConfig = RateLimitConfig()
    state: StateConfig = StateConfig()
    admin: AdminConfig = AdminConfig()
    clients: tuple[ClientConfig, ...] = ()
    log: LogConfig = LogConfig()
