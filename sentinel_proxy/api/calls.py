"""
From an HTTP request to a `Call`: what a caller may ask, and what is wrong with what it asked.

The body is parsed once, here. What we do not need to know is not judged: a provider may accept
fields that we have never heard of.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

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


@dataclass(frozen=True, slots=True)
class Told:
    """Where in a request's head its caller tells us something; None: nowhere. Lives in the ASGI scope."""

    SCOPE_KEY: ClassVar[str] = "sentinel_proxy.told"

    traceparent: int | None  # where there are several, the first
    content_length: int | None
    retry_count: int | None  # of this and the next, the last
    sdk_timeout: int | None
    controls: tuple[int, ...]  # every `x-sentinel-*`


@by_names
def told(names: Names) -> Told:
    """Find what a request's head tells us."""
    last = {name: at for at, name in enumerate(names)}
    return Told(
        traceparent=names.index(b"traceparent") if b"traceparent" in last else None,
        content_length=last.get(b"content-length"),
        retry_count=last.get(_RETRY_COUNT),
        sdk_timeout=max((last[name] for name in _SDK_TIMEOUTS if name in last), default=None),
        controls=tuple(at for at, name in enumerate(names) if name.startswith(b"x-sentinel-")),
    )


def read_call(
    endpoint: Endpoint,
    trace: Trace,
    headers: Headers,
    told: Told,
    query: bytes,
    body: bytes,
    total_seconds: float,
) -> Call:
    """
    Read one request into a `Call`.

    Args:
        told: Where *headers* have something for us.
        total_seconds: The configured deadline of a call; the caller may shorten it.

    Raises:
        CallerError: The request is wrong; says which field, and what would be right.
    """
    payload = parse_object(body)
    _check(endpoint, payload)
    stream = payload.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise CallerError("'stream' must be a boolean", code="invalid_type", param="stream")
    controls = _controls(headers, told.controls) if told.controls else NO_CONTROLS
    seconds = total_seconds
    if controls.timeout_seconds is not None and controls.timeout_seconds < seconds:
        seconds = controls.timeout_seconds
    if told.sdk_timeout is not None and not stream:  # for a stream the SDKs mean each read, not the whole
        sdk_seconds = _seconds(headers[told.sdk_timeout][1])
        if sdk_seconds is not None and sdk_seconds < seconds:
            seconds = sdk_seconds
    retries = headers[told.retry_count][1].strip() if told.retry_count is not None else b""
    return Call(  # by place: so many names take 3 400 instructions more
        trace.trace_id,
        endpoint,
        body,
        payload,
        payload.get("model") or "",
        bool(stream) and endpoint is not Endpoint.EMBEDDINGS,
        trace.started,
        trace.started + seconds,
        headers,
        query,
        trace.traceparent,
        trace.client,
        controls,
        retried_by_client=retries != b"" and retries != b"0",
    )


def read_controls(headers: Headers) -> Controls:
    """
    Read what the caller says about this one call.

    Raises:
        CallerError: A control has a value that means nothing.
    """
    return _controls(headers, told(headers).controls)


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


def _controls(headers: Headers, places: Iterable[int]) -> Controls:
    said = dict(headers[at] for at in places)

    def text(name: str) -> str:
        return said.get(f"x-sentinel-{name}".encode(), b"").decode("latin-1").strip()

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
