"""From `[[providers]]` and installed plugins to the chain."""

from sentinel_proxy.config import Config, ProviderConfig
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.providers.ollama import OllamaProvider
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.providers.registry import Registry


def default_registry(config: Config) -> Registry:
    """
    Return the configured chain, and what installed plugins add to it.

    Raises:
        ConfigError: Two providers share a name, or a plugin is refused.
    """
    registry = Registry()
    for settings in config.providers:
        registry.register(_provider(settings, passes_caller_key=settings.name == config.caller_key_provider))
    registry.load_plugins()
    return registry


def _provider(settings: ProviderConfig, *, passes_caller_key: bool) -> Provider:
    if settings.kind == "ollama":
        return OllamaProvider.from_config(settings)
    return OpenAIProvider.from_config(settings, passes_caller_key=passes_caller_key)
