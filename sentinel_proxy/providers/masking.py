"""
Keys in the words of upstreams: some servers repeat the key that they refuse.

Every message that may reach a caller or a log goes through here, whoever wrote it.
"""

import re
from typing import Final

MASK: Final = "****"

MIN_SECRET_CHARS: Final = 8
"""A shorter word is a placeholder ("none", "ollama"); masking it would only garble sentences."""

_KEY_LIKE: Final = re.compile(
    r"\b(?:[a-z]{1,8}[-_])?(?:sk|pk|rk|gsk|xai|hf|pplx|nvapi)[-_][\w\-*.]{3,}"
    r"|\bBearer\s+[^\s\"',;]+"
    r"|\bAIza[\w\-]{10,}",
    re.IGNORECASE,
)


def without_keys(text: str, *secrets: str | None) -> str:
    """Return *text* without what looks like a key, and without the *secrets*, whatever they look like."""
    text = _KEY_LIKE.sub(MASK, text)
    for secret in secrets:
        if secret is not None and len(secret) >= MIN_SECRET_CHARS:
            text = text.replace(secret, MASK)
    return text
