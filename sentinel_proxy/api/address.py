"""
Whose request it is: the address that counts, where proxies of ours may stand in between.

Only whom the configuration trusts is believed about others; everybody else is who he connects as.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import Scope

Networks = Sequence[IPv4Network | IPv6Network]


def networks(texts: Sequence[str]) -> Networks:
    """Parse addresses and networks, as `server.trusted_proxies` has them."""
    return [ip_network(text, strict=False) for text in texts]


def caller_address(scope: Scope, trusted: Networks) -> str:
    """
    Return the address that counts for the caller, as it was told; "unknown" where there is none.

    `X-Forwarded-For` is walked from the right, as far as the hops are trusted; whatever a
    stranger wrote further left is never believed. Some proxies add a line of their own instead
    of a word to the caller's, so all its lines count, in their order (RFC 9110 §5.3).
    """
    peer = peer_address(scope)
    if trusted and is_trusted(peer, trusted):
        for hop in reversed(list(_hops(scope))):
            peer = hop
            if not is_trusted(hop, trusted):
                break
    return peer


def _hops(scope: Scope) -> Iterator[str]:
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            yield from (hop.strip() for hop in value.decode("latin-1").split(",") if hop.strip())


def peer_address(scope: Scope) -> str:
    """Return the address at the other end of the connection; "unknown" where there is none."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def is_trusted(address: str, trusted: Networks) -> bool:
    """Whether *address* is one of ours."""
    parsed = parsed_address(address)
    return parsed is not None and any(parsed in network for network in trusted)


def parsed_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an IP address, IPv4 in IPv6 (RFC 4291 §2.5.5.2) as what it is; None if it is none."""
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
