"""
Any server that speaks OpenAI's API: what needs no change passes through as it came.

`provider` says what to send, `headers` which headers go with it, `streams` and `wholes` judge
what comes back, `failures` names what went wrong.
"""

from sentinel_proxy.providers.openai.provider import OpenAIProvider

__all__ = ["OpenAIProvider"]
