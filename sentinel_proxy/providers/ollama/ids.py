"""
Ids of what Ollama answers and OpenAI would have named.

Callers send them back later, perhaps to OpenAI, which takes 40 characters at most, wants its own
prefixes, and knows nothing of ours. So they are short, look the part and carry a marker.
"""

from collections.abc import Callable
from secrets import token_hex
from typing import Final

Mint = Callable[[str], str]
"""Makes a new id from a prefix such as "chatcmpl-"."""

MARKER: Final = "sntl"
MAX_ID_CHARS: Final = 40


def mint_id(prefix: str) -> str:
    """Return *prefix*, the marker and 80 random bits in hexadecimal."""
    return f"{prefix}{MARKER}{token_hex(10)}"
