"""
The headers of an answer: what an upstream said that concerns the caller, and what we add.

The `x-sentinel-*` headers tell how the answer came to be; docs/headers.md describes them.
"""

from itertools import compress
from typing import Final

from sentinel_proxy.model import Call, Header, Headers
from sentinel_proxy.reply import Reply
from sentinel_proxy.wire.heads import Names, by_names, lists_others, without_listed

# What belongs to one hop (RFC 9110 §7.6.1) or to the upstream's own site.
_NEVER_RELAYED: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"set-cookie",
        b"server",
        b"date",
        b"alt-svc",
        b"strict-transport-security",
    )
)
# What describes the body, or advises on retries: ours differ where we made the answer.
_OF_THE_BODY: Final = frozenset(
    (
        b"content-length",
        b"content-encoding",
        b"content-type",
        b"cache-control",
        b"content-security-policy",
        b"x-should-retry",
        b"retry-after",
        b"retry-after-ms",
    )
)
_NEVER_OR_OF_THE_BODY: Final = _NEVER_RELAYED | _OF_THE_BODY


NOBODY: Final = b"none"

NOTHING_ASKED: Final[list[Header]] = [
    (b"x-sentinel-attempts", b"0"),
    (b"x-sentinel-failover", b"false"),
    (b"x-sentinel-provider", NOBODY),
    (b"x-sentinel-model", NOBODY),
]
"""For answers to requests that never became a call."""


def relayed(headers: Headers, *, with_body: bool = False) -> list[Header]:
    """
    Return those of an upstream's response headers that concern the caller.

    Args:
        with_body: The body goes along byte for byte, and with it what describes it.
    """
    concerns, connections = _sorted_out(headers, with_body)
    for at in connections:
        if lists_others(headers[at][1]):
            return relayed(without_listed(headers), with_body=with_body)
    return list(compress(headers, concerns))


@by_names
def _sorted_out(names: Names, with_body: bool) -> tuple[tuple[bool, ...], tuple[int, ...]]:
    """Return which headers of these names concern the caller, and where those are that may name others."""
    dropped = _NEVER_RELAYED if with_body else _NEVER_OR_OF_THE_BODY
    concerns = tuple(name not in dropped and not name.startswith(b"x-sentinel-") for name in names)
    return concerns, tuple(at for at, name in enumerate(names) if name == b"connection")


def of_call(call: Call | None, reply: Reply | None, seconds: float) -> list[Header]:
    """
    Return the headers that tell the story of a call so far.

    Args:
        call: None if the request never became one.
        reply: None if nobody has begun to answer.
        seconds: From the start of the call until now.
    """
    headers: list[Header] = [
        (b"x-sentinel-attempts", b"%d" % (call.attempts if call is not None else 0)),
        (b"x-sentinel-failover", b"true" if reply is not None and reply.failover else b"false"),
        (b"x-sentinel-overhead-ms", b"%.3f" % (overhead_seconds(call, seconds) * 1000)),
    ]
    if call is not None and call.trail:
        headers.append((b"x-sentinel-trail", ",".join(call.steps).encode()))
    if reply is None:
        headers.append((b"x-sentinel-provider", _asked_last(call)))
        headers.append((b"x-sentinel-model", _header_safe(call.model) if call is not None else NOBODY))
        return headers
    headers.append((b"x-sentinel-provider", reply.upstream.name.encode()))
    headers.append((b"x-sentinel-model", _header_safe(reply.served_model)))
    if reply.lossy:
        headers.append((b"x-sentinel-lossy", ",".join(reply.lossy).encode()))
    return headers


def _asked_last(call: Call | None) -> bytes:
    """Return who was asked last where nobody has answered: an error that is relayed is theirs."""
    asked = [attempt.provider for attempt in call.trail if attempt.sent] if call is not None else []
    return asked[-1].encode() if asked else NOBODY


def overhead_seconds(call: Call | None, seconds: float) -> float:
    """Return the proxy's own share of the *seconds* that *call* took: what it did not wait for others."""
    waited = call.waited_seconds if call is not None else 0.0
    return seconds - waited if seconds > waited else 0.0


def _header_safe(text: str) -> bytes:
    """Model names come from upstreams: keep only what a header value may hold (RFC 9110 §5.5)."""
    if not text.isprintable():
        text = "".join(char for char in text if char.isprintable())
    return text.encode("ascii", "replace")[:200] or NOBODY
