"""
What one replica found out about a provider, as it tells the others. Pure.

With it goes the list of models that the provider answered with, for the others learn from that as
if they had asked themselves. A list that is too long is not told; they ask for it then.
"""

import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final

from sentinel_proxy.errors import FailureKind
from sentinel_proxy.model import ProbeResult, Verdict
from sentinel_proxy.wire.json import dumps, loads

MAX_LIST_BYTES: Final = 512 * 1024
"""Packing more would keep calls waiting for longer than 5 ms; a list of 1000 models is a third of that."""


@dataclass(frozen=True, slots=True)
class Report:
    """One probe, for those who did not make it."""

    result: ProbeResult
    retry_after: float | None  # seconds, of a 429
    body: bytes | None  # of a good answer; b"": there was none, None: too long to be told


def encoded(report: Report) -> bytes:
    """Write *report*."""
    result = report.result
    body = report.body if report.body is not None and len(report.body) <= MAX_LIST_BYTES else None
    return dumps(
        {
            "provider": result.provider,
            "at": result.at,
            "seconds": result.seconds,
            "verdict": result.verdict.value,
            "what": result.what,
            "kind": None if result.kind is None else result.kind.value,
            "status": result.status,
            "retry_after": report.retry_after,
            "body": None if body is None else b64encode(zlib.compress(body, 1)).decode(),
        }
    )


def decoded(data: bytes) -> Report:
    """
    Read what `encoded` wrote.

    Raises:
        ValueError: It is of a version that tells something else.
    """
    try:
        read = loads(data)
        kind = read["kind"]
        result = ProbeResult(
            read["provider"],
            float(read["at"]),
            float(read["seconds"]),
            Verdict(read["verdict"]),
            str(read["what"]),
            None if kind is None else FailureKind(kind),
            read["status"],
        )
        body = None if read["body"] is None else _unpacked(b64decode(read["body"]))
        return Report(result, read["retry_after"], body)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"not a report as this version tells it ({error.__class__.__name__})") from None


def _unpacked(packed: bytes) -> bytes:
    reader = zlib.decompressobj()
    body = reader.decompress(packed, MAX_LIST_BYTES)
    if reader.unconsumed_tail:
        raise ValueError("longer than anybody would tell")
    return body
