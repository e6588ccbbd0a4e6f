"""
The configuration: what can be set, what it means, and the errors of whoever writes it.

TOML file first, then the environment, then flags. Frozen once built; secrets are masked in
every `repr` and print. `sections` says what can be set and is all that the rest of the package
looks at; `load` turns a file and an environment into it. Printing and exit codes are the
command line's.
"""

from sentinel_proxy.config.loading import FLAGS, Loaded, load
from sentinel_proxy.config.sections import (
    AdminConfig,
    BreakerConfig,
    ClientConfig,
    Config,
    HealthConfig,
    HedgeConfig,
    LogConfig,
    ProviderConfig,
    ProviderTimeoutsConfig,
    RateLimitConfig,
    RescueConfig,
    RetryConfig,
    Section,
    ServerConfig,
    StateConfig,
    TimeoutsConfig,
)
from sentinel_proxy.config.showing import as_public_dict, effective

__all__ = [
    "FLAGS",
    "AdminConfig",
    "BreakerConfig",
    "ClientConfig",
    "Config",
    "HealthConfig",
    "HedgeConfig",
    "Loaded",
    "LogConfig",
    "ProviderConfig",
    "ProviderTimeoutsConfig",
    "RateLimitConfig",
    "RescueConfig",
    "RetryConfig",
    "Section",
    "ServerConfig",
    "StateConfig",
    "TimeoutsConfig",
    "as_public_dict",
    "effective",
    "load",
]
