"""
The ordered chain of providers.

The application owns one registry and hands it to plugins (entry point group
`sentinel_proxy.providers`: a function that takes the registry), so there is no global to
mutate and tests cannot pollute each other.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from sentinel_proxy.errors import ConfigError
from sentinel_proxy.providers.base import Provider

GROUP = "sentinel_proxy.providers"


class Registry:
    """
    Providers in the order in which they are tried.

    `position` counts from 1: position 1 is tried first. The same number appears in the
    configuration, in `/api/providers/status` and on the dashboard.
    """

    def __init__(self) -> None:
        self._providers: list[Provider] = []

    def __iter__(self) -> Iterator[Provider]:
        return iter(self._providers)

    def __len__(self) -> int:
        return len(self._providers)

    def __repr__(self) -> str:
        return f"<Registry {' -> '.join(provider.name for provider in self)}>"

    def register(self, provider: Provider, position: int | None = None) -> None:
        """
        Add *provider* at *position*, moving later ones back; at the end by default.

        A position beyond the end means the end.

        Raises:
            ConfigError: The name is taken or empty, or the position is below 1. Nothing has changed.
        """
        if not getattr(provider, "name", ""):
            raise ConfigError("providers", f"{type(provider).__name__} has no name")
        if any(other.name == provider.name for other in self):
            raise ConfigError("providers", f"the name {provider.name!r} is used twice; give each its own")
        if position is not None and position < 1:
            problem = f"position {position} of {provider.name!r}: positions count from 1"
            raise ConfigError("providers", problem)
        at = len(self) if position is None else position - 1
        self._providers.insert(at, provider)

    def load_plugins(self) -> None:
        """
        Let every installed plugin register its providers.

        Raises:
            ConfigError: A plugin cannot be loaded, or what it registers is refused.
        """
        for entry in _installed(tuple(sys.path)):
            try:
                register = entry.load()
                register(self)
            except ConfigError:
                raise
            except Exception as error:
                problem = f"cannot be loaded: {type(error).__name__}: {error}"
                raise ConfigError(f"plugin {entry.name}", problem) from error


@cache
def _installed(path: tuple[str, ...]) -> Sequence[EntryPoint]:
    """Return the plugins that are installed in *path*, which is `sys.path`; looking takes 10 ms each time."""
    return list(entry_points(group=GROUP))
