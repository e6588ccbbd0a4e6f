"""
How long an upstream asks us to wait.

The standard says it in whole seconds or as a date; the servers of this field also say it in
milliseconds and in fractions. Every form is read here and comes out as seconds; how long is
too long is decided by those who wait.
"""

import math
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from sentinel_proxy.model import Headers, header

# In order of trust: the finer unit was written with more care.
_NUMBERS: Final = (
    (b"retry-after-ms", 0.001),
    (b"x-ms-retry-after-ms", 0.001),
    (b"retry-after", 1.0),
)


def retry_after_seconds(headers: Headers, now_unix: float | None = None) -> float | None:
    """
    Return the seconds an answer asks to wait, or None where it asks for nothing readable.

    Never negative, never infinite; there is no upper bound. A form that cannot be read is
    passed over for the next one. A date counts from the answer's own `Date`, so that two
    clocks that disagree do no harm; a date that has passed means 0.

    Args:
        headers: Of the answer, names in lower case.
        now_unix: Unix seconds that a date counts from where the answer has no `Date`; None: it
            then says nothing.

    Sources:
        RFC 9110 §10.2.3 (Retry-After), §5.6.7 (dates); `retry-after-ms` is what OpenAI's SDKs
        read first, `x-ms-retry-after-ms` is Azure's.
    """
    for name, unit_seconds in _NUMBERS:
        value = header(headers, name)
        if value is not None and (number := _number(value)) is not None:
            return number * unit_seconds
    due = _unix(header(headers, b"retry-after"))
    sent = _unix(header(headers, b"date")) or now_unix
    if due is None or sent is None:
        return None
    return max(0.0, due - sent)


def _number(value: bytes) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _unix(value: bytes | None) -> float | None:
    """Read one of the three date formats of RFC 9110 §5.6.7 as Unix seconds."""
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value.decode("ascii"))
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
