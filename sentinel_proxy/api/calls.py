"""
From an HTTP request to a `Call`: what a caller may ask, and what is wrong with what it asked.

The body is parsed once, here. What we do not need to know is not judged: a provider may accept
fields that we have never heard of.
"""

import math
from collections.abc import Mapping
from itertools import compress
from typing import Any, Final

from sentinel_proxy.errors import CallerError
from sentinel_proxy.model import NO_CONTROLS, Call, Controls, Endpoint, Headers, Trace
from sentinel_proxy.wire.heads import Names, by_names
from sentinel_proxy.wire.json import loads

# What each endpoint cannot do without, and the types it may have.
_REQUIRED: Final[Mapping[Endpoint, tuple[tuple[str, tuple[type, ...]], ...]]] = {
    Endpoint.CHAT: (("model", (str,)), ("messages", (list,))),
    Endpoint.COMPLETIONS: (("model", (str,)), ("prompt", (str, list))),
    Endpoint.EMBEDDINGS: (("model", (str,)), ("input", (str, list))),
    Endpoint.RESPONSES: (("model", (str,)), ("input", (str, list))),
}
_KEPT_INPUTS: Final = ("prompt", "conversation", "previous_response_id")
_TYPE_NAMES: Final[Mapping[type, str]] = {str: "a string", list: "an array"}
_RETRY_COUNT: Final = b"x-stainless-retry-count"
_SDK_TIMEOUTS: Final = (b"x-stainless-read-timeout", b"x-stainless-timeout")


def read_call(
    endpoint: Endpoint, trace: Trace, headers: Headers, query: bytes, body: bytes, total_seconds: float
) -> Call:
    """
    Read one request into a `Call`.

    Args:
        total_seconds: The configured deadline of a call; the caller may shorten it.

    Raises:
        CallerError: The request is wrong; says which field, and what would be right.
    """
    payload = parse_object(body)
    _check(endpoint, payload)
    stream = payload.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise CallerError("'stream' must be a boolean", code="invalid_type", param="stream")
    controls, sdk_seconds, is_retry = _read_headers(headers)
    seconds = controls.timeout_seconds or total_seconds
    if sdk_seconds is not None and not stream:
        seconds = min(seconds, sdk_seconds)  # for a stream the SDKs mean each read, not the whole
    return Call(
        trace_id=trace.trace_id,
        endpoint=endpoint,
        body=body,
        payload=payload,
        model=payload.get("model") or "",
        stream=bool(stream) and endpoint is not Endpoint.EMBEDDINGS,
        started=trace.started,
        deadline=trace.started + min(seconds, total_seconds),
        headers=headers,
        query=query,
        traceparent=trace.traceparent,
        client=trace.client,
        controls=controls,
        retried_by_client=is_retry,
    )


def read_controls(headers: Headers) -> Controls:
    """
    Read what the caller says about this one call.

    Raises:
        CallerError: A control has a value that means nothing.
    """
    return _read_headers(headers)[0]


def parse_object(body: bytes) -> dict[str, Any]:
    """
    Parse a body that must be a JSON object.

    Raises:
        CallerError: It is not; the message never quotes the body.
    """
    try:
        payload = loads(body)
    except ValueError:
        message = (
            "the request body is not valid JSON" if body else "the request has no body; send a JSON object"
        )
        raise CallerError(message, code="invalid_json") from None
    if not isinstance(payload, dict):
        raise CallerError("the request body must be a JSON object", code="invalid_type")
    return payload


def _check(endpoint: Endpoint, payload: Mapping[str, Any]) -> None:
    for name, types in _REQUIRED[endpoint]:
        value = payload.get(name)
        if value is None:
            if endpoint is Endpoint.RESPONSES and any(payload.get(kept) for kept in _KEPT_INPUTS):
                continue  # what is kept there may bring its own model and input
            raise CallerError(f"you must provide {name!r}", code="missing_required_parameter", param=name)
        if not isinstance(value, types):
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in types)
            raise CallerError(f"{name!r} must be {wanted}", code="invalid_type", param=name)
        if not value and (name == "model" or name == "messages"):
            raise CallerError(f"{name!r} must not be empty", code="invalid_value", param=name)


def _read_headers(headers: Headers) -> tuple[Controls, float | None, bool]:
    """Return the caller's controls, the time its SDK will wait, and whether this is the SDK's own retry."""
    ours: dict[bytes, bytes] = {}
    sdk_seconds: float | None = None
    is_retry = False
    for name, value in compress(headers, _concern_us(headers)):
        if name == _RETRY_COUNT:
            is_retry = value.strip() not in (b"", b"0")
        elif name in _SDK_TIMEOUTS:
            sdk_seconds = _seconds(value)
        else:
            ours[name] = value
    return (_controls(ours) if ours else NO_CONTROLS), sdk_seconds, is_retry


@by_names
def _concern_us(names: Names) -> tuple[bool, ...]:
    told = (_RETRY_COUNT, *_SDK_TIMEOUTS)
    return tuple(name in told or name.startswith(b"x-sentinel-") for name in names)


def _controls(headers: Mapping[bytes, bytes]) -> Controls:
    def text(name: str) -> str:
        return headers.get(f"x-sentinel-{name}".encode(), b"").decode("latin-1").strip()

    rescue = text("rescue").lower()
    if rescue not in ("", "continue", "error"):
        raise CallerError("x-sentinel-rescue must be 'continue' or 'error'", code="invalid_value")
    no_failover = text("no-failover").lower()
    if no_failover not in ("", "true", "false", "1", "0"):
        raise CallerError("x-sentinel-no-failover must be 'true' or 'false'", code="invalid_value")
    return Controls(
        providers=tuple(name.strip() for name in text("providers").split(",") if name.strip()),
        no_failover=no_failover in ("true", "1"),
        timeout_seconds=_control_seconds("timeout", text("timeout")),
        first_token_timeout_seconds=_control_seconds("first-token-timeout", text("first-token-timeout")),
        rescue=rescue or None,
    )


def _control_seconds(name: str, value: str) -> float | None:
    if not value:
        return None
    seconds = _seconds(value.encode("latin-1"))
    if seconds is None:
        raise CallerError(f"x-sentinel-{name} must be a number of seconds above 0", code="invalid_value")
    return seconds


def _seconds(value: bytes) -> float | None:
    """Read a positive, finite number of seconds; None for anything else."""
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
