"""
The reader's configuration with simulated servers in the place of the real ones.

Everything that is policy stays as it is written. What changes: where the providers are, their
keys, and what is not about providers at all (our own rate limit and keys, where state is kept).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

from sentinel_proxy.config import Config, HedgeConfig, ProviderConfig, RateLimitConfig, StateConfig
from sentinel_proxy.drill.dialects import OLLAMA, OPENAI, Dialect
from sentinel_proxy.errors import ConfigError
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.providers.configured import default_registry
from sentinel_proxy.providers.ollama import OllamaProvider
from sentinel_proxy.providers.openai import OpenAIProvider

DUMMY_KEY: Final = "sk-drill-of-the-proxy"


@runtime_checkable
class Drillable(Protocol):
    """What a plugin's provider offers so that it can be drilled (docs/drill.md)."""

    def drilled(self, base_url: str) -> Provider:
        """Return the same provider, pointed at *base_url* and with no secret of its own."""
        ...

    def dialect(self) -> Dialect:
        """Return what a simulated server says to it."""
        ...


@dataclass(frozen=True, slots=True)
class Link:
    """One provider of the chain, as it is configured, and how it is drilled."""

    original: Provider
    settings: ProviderConfig | None  # None: a plugin
    dialect: Dialect
    passes_caller_key: bool = False

    def pointed_at(self, base_url: str) -> Provider:
        """Return the provider for a simulated server; the path of its real address is kept."""
        if self.settings is None:
            assert isinstance(self.original, Drillable)
            return self.original.drilled(base_url)
        path = urlsplit(self.settings.base_url).path
        key = None if self.passes_caller_key else DUMMY_KEY
        table = self.settings.model_dump(exclude_none=True, exclude={"api_key"})
        table["base_url"] = base_url + path
        settings = ProviderConfig.model_validate(table if key is None else table | {"api_key": key})
        if settings.kind == "ollama":
            return OllamaProvider.from_config(settings)
        return OpenAIProvider.from_config(settings, passes_caller_key=self.passes_caller_key)


@dataclass(frozen=True, slots=True)
class Chain:
    """What can be drilled of a configuration."""

    links: Sequence[Link]
    left_out: Sequence[str]  # whole sentences: which provider, and why

    @property
    def names(self) -> list[str]:
        """The names of the providers, in order."""
        return [link.original.name for link in self.links]


def chain_of(config: Config) -> Chain:
    """
    Return the chain of *config*, the installed plugins included. Nothing is contacted.

    Raises:
        ConfigError: A plugin cannot be loaded, or no provider is left to be drilled.
    """
    by_name = {settings.name: settings for settings in config.providers}
    links: list[Link] = []
    left_out: list[str] = []
    for provider in default_registry(config):
        settings = by_name.get(provider.name)
        if settings is not None:
            passes = settings.name == config.caller_key_provider
            dialect = OLLAMA if settings.kind == "ollama" else OPENAI
            links.append(Link(provider, settings, dialect, passes))
        elif isinstance(provider, Drillable):
            links.append(Link(provider, None, provider.dialect()))
        else:
            left_out.append(f"{provider.name} is left out: its plugin does not say how it can be drilled")
    if not links:
        raise ConfigError("providers", "there is no provider to drill")
    return Chain(links, left_out)


def drilled(config: Config) -> Config:
    """Return *config* without what is not to be drilled; its providers come in a registry of their own."""
    changes: dict[str, Any] = {
        "providers": (),
        "clients": (),
        "hedge": HedgeConfig(),  # off: which provider a slow one is raced with is chance, not policy
        "rate_limit": RateLimitConfig(requests=0),
        "state": StateConfig(),
        "server": config.server.model_copy(update={"workers": 1, "drain_seconds": 1}),
    }
    return config.model_copy(update=changes)
