"""
Ollama, spoken to in its native API and translated both ways.

A call goes out through `requests` (or `responses_request`), which ask `messages`, `content`,
`tools`, `schema` and `options` for their parts. An answer comes back through `replies`, which
knows how Ollama's answers begin, end and fail, into `chat`, `completions`, `embeddings` or
`responses`, which tell it in OpenAI's words. `failures` names what went wrong, `facts` is what
we know of the server, and `provider` puts them together. Everything is bytes in, bytes out.
"""

from sentinel_proxy.providers.ollama.provider import OllamaProvider

__all__ = ["OllamaProvider"]
