"""
Which of a caller's request headers reach an upstream.

Everything does, so that features we never heard of work, except what belongs to one
connection, what names the caller to its own peers, and what is a secret between others.
"""

from itertools import compress
from typing import Final

from sentinel_proxy.model import Header, Headers
from sentinel_proxy.wire.heads import Names, by_names, lists_others, without_listed

_KEPT_BACK: Final = frozenset(
    (
        # One connection's own (RFC 9110 §7.6.1), and the framing, which the transport writes anew.
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"host",
        b"content-length",
        b"expect",
        b"http2-settings",
        # Credentials: the provider's own are put in their place.
        b"authorization",
        b"api-key",
        b"x-api-key",
        b"x-goog-api-key",
        b"cookie",
        # We look into answers, so they must come as plain bytes.
        b"accept-encoding",
        # Where the caller is and came from.
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"origin",
        b"referer",
    )
)
_KEPT_BACK_PREFIXES: Final = (b"x-forwarded-", b"x-sentinel-", b"proxy-", b"sec-")
_OF_THE_ACCOUNT: Final = frozenset((b"openai-organization", b"openai-project"))


def forwarded(headers: Headers, *, with_account: bool, traceparent: bytes | None = None) -> list[Header]:
    """
    Return the *headers* that may be sent on, in their order, as a list of the receiver's own.

    Args:
        with_account: Keep `openai-organization` and `openai-project`: they belong to the
            caller's key and go where it goes.
        traceparent: Takes the place of the caller's (W3C Trace Context 1, §2.2).
    """
    sent_on, connections = _sorted_out(headers, with_account, traceparent is not None)
    for at in connections:
        if lists_others(headers[at][1]):
            return forwarded(without_listed(headers), with_account=with_account, traceparent=traceparent)
    kept = [(b"accept-encoding", b"identity"), *compress(headers, sent_on)]
    if traceparent is not None:
        kept.append((b"traceparent", traceparent))
    return kept


@by_names
def _sorted_out(
    names: Names, with_account: bool, has_traceparent: bool
) -> tuple[tuple[bool, ...], tuple[int, ...]]:
    """Return which headers of these names may be sent on, and where those are that may name others."""
    kept_back = _KEPT_BACK if with_account else _KEPT_BACK | _OF_THE_ACCOUNT
    if has_traceparent:
        kept_back = kept_back | {b"traceparent"}
    sent_on = tuple(name not in kept_back and not name.startswith(_KEPT_BACK_PREFIXES) for name in names)
    return sent_on, tuple(at for at, name in enumerate(names) if name == b"connection")
