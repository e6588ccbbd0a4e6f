"""A pause that an upstream has asked for."""

import pytest

from sentinel_proxy.resilience.gate import MAX_SECONDS, UNSAID_SECONDS, Gate


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        pytest.param(7.0, 7.0, id="as long as asked"),
        pytest.param(None, UNSAID_SECONDS, id="no number given"),
        pytest.param(86_400.0, MAX_SECONDS, id="a day: capped"),
        pytest.param(0.0, 0.0, id="zero: now"),
    ],
)
def test_a_gate_stays_closed_as_long_as_was_asked(asked: float | None, waits: float) -> None:
    gate = Gate()

    gate.close(asked, 100.0)

    assert gate.wait(100.0) == waits
    assert gate.wait(100.0 + waits) == 0


def test_a_gate_that_nobody_closed_is_open() -> None:
    gate = Gate()

    assert (gate.wait(0.0), repr(gate)) == (0.0, "<Gate never closed>")


def test_a_shorter_wish_that_comes_later_does_not_shorten_the_pause() -> None:
    gate = Gate()
    gate.close(20.0, 100.0)

    gate.close(1.0, 101.0)

    assert gate.wait(101.0) == 19.0
    assert repr(gate) == "<Gate closed until 120.000>"


def test_a_longer_wish_that_comes_later_extends_the_pause() -> None:
    gate = Gate()
    gate.close(2.0, 100.0)

    gate.close(10.0, 101.0)

    assert gate.wait(101.0) == 10.0
