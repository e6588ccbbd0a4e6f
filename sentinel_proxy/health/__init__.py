"""
How the providers are: asked of them for free, and seen from the calls that go there.

`probe` asks one question, `traffic` remembers how recent calls went, `watch` draws the
consequences for one provider, `monitor` does so for all of them, again and again, `view` tells
operators, and `telling` other replicas.
"""

from sentinel_proxy.health.monitor import Monitor

__all__ = ["Monitor"]
