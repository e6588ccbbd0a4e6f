"""
JSON as it comes from the wild.

orjson reads and writes it; the standard library takes over for the legal texts that orjson
refuses (lone surrogates, integers over 64 bits), because a call must not fail here that
would have succeeded without a proxy.
"""

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """
    Parse JSON bytes.

    Raises:
        ValueError: It is not JSON (RFC 8259; NaN and Infinity are not).
    """
    try:
        return orjson.loads(data)
    except ValueError:
        try:
            return json.loads(data, parse_constant=_refuse)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def dumps(value: Any) -> bytes:
    """Write compact JSON as UTF-8, key order kept."""
    try:
        return orjson.dumps(value)
    except (TypeError, ValueError):
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
