"""
Reading typed fields of a caller's JSON: null counts as absent, a wrong type is refused.

Ollama answers 500 to many values of a wrong type, which would look like its own failure; so
types are settled here, before anything is sent.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sentinel_proxy.providers.ollama.refusals import invalid_type, invalid_value, unsupported


def string(payload: Mapping[str, Any], name: str) -> str | None:
    """Return a string field, or None where it is absent."""
    value = payload.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid_type(name, "a string")
    return value


def flag(payload: Mapping[str, Any], name: str) -> bool:
    """Return a boolean field, False where it is absent."""
    value = payload.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid_type(name, "a boolean")
    return value is True


def mapping(payload: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object field, empty where it is absent."""
    value = payload.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise invalid_type(name, "an object")
    return value or {}


def objects(payload: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a field that lists objects, empty where it is absent."""
    value = payload.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise invalid_type(name, "a list of objects")
    return value


def number(payload: Mapping[str, Any], name: str) -> float | None:
    """Return a number, or None where it is absent."""
    value = payload.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_type(name, "a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise invalid_value(name, f"'{name}' is out of range")
    return value


def integer(
    payload: Mapping[str, Any], name: str, *, low: int | None = None, high: int | None = None
) -> int | None:
    """Return an integer between *low* and *high*, or None where it is absent; 8.0 is one, 8.5 is not."""
    value = number(payload, name)
    if value is None:
        return None
    if value != int(value):
        raise invalid_type(name, "an integer")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"at least {low}"
        raise invalid_value(name, f"'{name}' must be {bounds}")
    return int(value)


def single(payload: Mapping[str, Any], name: str, *, low: int = 1) -> None:
    """
    Let a count of answers (`n`, `best_of`) pass only if it asks for no more than one.

    One answer where several were asked for would break the caller out of sight.
    """
    count = integer(payload, name, low=low)
    if count is not None and count > 1:
        raise unsupported(name, f"Ollama gives one answer at a time; '{name}' asks for {count}")


def given(payload: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return those of *names* that carry something: not null, not empty."""
    return [name for name in names if payload.get(name) not in (None, {}, [], "")]
