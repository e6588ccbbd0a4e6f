"""
State in a Redis that several replicas share: one server, a Sentinel's, or a cluster.

`store` is the face. `client` reaches the server and says in plain words why it cannot; `layout`
knows what is kept where and how it is written; `scripts` and `plain` are the two ways to make a
change that nobody can come between; `news` listens.
"""

from sentinel_proxy.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
