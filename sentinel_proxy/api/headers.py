"""What every answer to a call says about how it came to be: the `x-sentinel-*` response headers."""

from sentinel_proxy.failover import Reply
from sentinel_proxy.model import Call, Header


def of_call(call: Call | None, reply: Reply | None, seconds: float) -> list[Header]:
    """
    Return the headers that tell the story of a call so far.

    Args:
        call: None if the request never became one.
        reply: None if nobody has begun to answer.
        seconds: From the start of the call until now.
    """
    overhead = max(0.0, seconds - (call.waited_seconds if call is not None else 0.0))
    headers: list[Header] = [
        (b"x-sentinel-attempts", b"%d" % (call.attempts if call is not None else 0)),
        (b"x-sentinel-failover", b"true" if reply is not None and reply.failover else b"false"),
        (b"x-sentinel-overhead-ms", b"%.3f" % (overhead * 1000)),
    ]
    if call is not None and call.trail:
        headers.append((b"x-sentinel-trail", trail_text(call).encode()))
    if reply is not None:
        headers.append((b"x-sentinel-provider", reply.upstream.name.encode()))
        headers.append((b"x-sentinel-model", _header_safe(reply.served_model)))
        if reply.lossy:
            headers.append((b"x-sentinel-lossy", ",".join(reply.lossy).encode()))
    return headers


def trail_text(call: Call) -> str:
    """Return every attempt in order, as `openai:503,openai:timeout,ollama:200`."""
    return ",".join(f"{attempt.provider}:{attempt.result}" for attempt in call.trail)


def _header_safe(text: str) -> bytes:
    """Model names come from upstreams: keep only what a header value may hold (RFC 9110 §5.5)."""
    return "".join(char for char in text if char.isprintable()).encode("ascii", "replace")[:200]
