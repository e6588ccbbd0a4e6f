"""
What we say instead of sending a call: four kinds of refusal, all status 400.

`unsupported` is right for OpenAI and impossible here, so that the next provider is tried; the
others are wrong everywhere and end the call. Messages name the field, never its content.
"""

from sentinel_proxy.errors import FailureKind, UpstreamError


def unsupported(param: str, message: str) -> UpstreamError:
    """The call is right, but cannot be served by Ollama."""
    return _refusal(FailureKind.UNSUPPORTED, "unsupported_by_fallback", param, message)


def invalid_type(param: str, expected: str) -> UpstreamError:
    """A value has the wrong JSON type; *expected* completes "must be …"."""
    return _refusal(FailureKind.CALLER, "invalid_type", param, f"'{param}' must be {expected}")


def invalid_value(param: str, message: str) -> UpstreamError:
    """A value has the right type but is not allowed."""
    return _refusal(FailureKind.CALLER, "invalid_value", param, message)


def invalid_image(param: str, message: str) -> UpstreamError:
    """Image data cannot be decoded."""
    return _refusal(FailureKind.CALLER, "invalid_image", param, message)


def _refusal(kind: FailureKind, code: str, param: str, message: str) -> UpstreamError:
    return UpstreamError(kind, message, status=400, code=code, type="invalid_request_error", param=param)
