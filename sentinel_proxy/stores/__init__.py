"""
What outlives a process or is shared by several: breakers, trials, limits, events, incidents.

`base` is the seam, `embedded` keeps a file beside one proxy, `redis` is shared by many. All of
it is advisory: whoever asks a store must be able to go on without an answer.
"""

from pathlib import Path

from sentinel_proxy.clock import Clock
from sentinel_proxy.config import StateConfig
from sentinel_proxy.stores.base import Store


def store_for(config: StateConfig, clock: Clock) -> Store | None:
    """
    Return the store that `state.url` names, not yet open; None where the process's own memory is enough.

    Only the store that is named is imported: neither a database nor a client of one is needed
    by a proxy that has none.
    """
    scheme, _, path = config.url.partition("://")
    if scheme != "sqlite":
        from sentinel_proxy.stores.redis import RedisStore

        return RedisStore(config.url, config.namespace, config.incidents, config.events)
    if path:
        from sentinel_proxy.stores.embedded import EmbeddedStore

        return EmbeddedStore(Path(path), config.incidents, config.events, clock)
    return None
