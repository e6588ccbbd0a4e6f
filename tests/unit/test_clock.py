"""How moments are written."""

import pytest

from sentinel_proxy.clock import SystemClock, utc_text


@pytest.mark.parametrize(
    ("unix_seconds", "text"),
    [(0.0, "1970-01-01T00:00:00.000Z"), (1_772_359_200.2501, "2026-03-01T10:00:00.250Z")],
    ids=["the beginning", "a fraction of a second"],
)
def test_a_moment_is_written_in_utc_and_to_the_millisecond(unix_seconds: float, text: str) -> None:
    assert utc_text(unix_seconds) == text


def test_the_systems_clock_goes_on() -> None:
    clock = SystemClock()

    first, second = clock.monotonic(), clock.monotonic()

    assert first <= second
