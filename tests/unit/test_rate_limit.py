"""A sliding-window rate limit that is exact."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.resilience.rate_limit import UNLIMITED, Decision, SlidingLog, duration_text

UNIT_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def admitted(log: SlidingLog, key: str, now: float, asked: int) -> int:
    return sum(log.admit(key, now).allowed for _ in range(asked))


def test_i01_a_hundred_pass_and_the_next_is_told_when_to_come_back() -> None:
    log = SlidingLog(100, 60.0)

    assert admitted(log, "web", 1000.0, asked=100) == 100
    assert log.admit("web", 1015.0) == Decision(
        allowed=False, limit=100, remaining=0, retry_after_seconds=45.0, reset_seconds=45.0
    )


def test_an_admitted_request_is_told_what_is_left() -> None:
    log = SlidingLog(100, 60.0)
    log.admit("web", 1000.0)

    decision = log.admit("web", 1010.0)

    assert decision == Decision(
        allowed=True, limit=100, remaining=98, retry_after_seconds=0.0, reset_seconds=60.0
    )


def test_i02_the_window_slides() -> None:
    """A hundred at second 59 and one at 61 are 101 within two seconds, whatever the minute says."""
    log = SlidingLog(100, 60.0)
    admitted(log, "web", 59.0, asked=100)

    assert not log.admit("web", 61.0).allowed
    assert log.admit("web", 119.0).allowed


def test_i03_denied_requests_do_not_extend_the_ban() -> None:
    log = SlidingLog(2, 60.0)
    admitted(log, "web", 1000.0, asked=2)

    admitted(log, "web", 1030.0, asked=500)

    assert log.admit("web", 1060.0).allowed


def test_i04_who_waits_as_told_is_admitted() -> None:
    log = SlidingLog(2, 60.0)
    log.admit("web", 1000.25)
    log.admit("web", 1010.5)

    wait = log.admit("web", 1020.0).retry_after_seconds

    assert wait == 40.25
    assert not log.admit("web", 1020.0 + wait - 0.01).allowed
    assert log.admit("web", 1020.0 + wait).allowed


def test_i06_keys_are_independent() -> None:
    log = SlidingLog(1, 60.0)
    log.admit("web", 1000.0)

    assert log.admit("batch", 1000.0).allowed
    assert not log.admit("web", 1000.0).allowed


def test_i11_requests_of_the_same_instant_all_count() -> None:
    log = SlidingLog(3, 60.0)

    assert admitted(log, "web", 1000.0, asked=10) == 3


def test_a_client_may_have_a_limit_of_its_own() -> None:
    log = SlidingLog(1, 60.0)

    decisions = [log.admit("web", 1000.0, limit=3) for _ in range(4)]

    assert [decision.allowed for decision in decisions] == [True, True, True, False]
    assert decisions[0].limit == 3


def test_after_its_limit_was_lowered_a_client_waits_until_enough_have_left_the_window() -> None:
    log = SlidingLog(5, 60.0)
    for second in range(5):
        log.admit("web", 1000.0 + second)

    decision = log.admit("web", 1010.0, limit=2)

    assert decision.retry_after_seconds == 53.0  # the fourth has to leave, not only the first
    assert log.admit("web", 1063.0, limit=2).allowed


@pytest.mark.parametrize(("usual", "own"), [(0, None), (100, 0)], ids=["switched off", "off for this client"])
def test_a_limit_of_zero_is_no_limit(usual: int, own: int | None) -> None:
    log = SlidingLog(usual, 60.0)

    decisions = [log.admit("web", 1000.0, limit=own) for _ in range(1000)]

    assert set(decisions) == {UNLIMITED}
    assert len(log) == 0


def test_at_the_cap_the_key_that_was_silent_longest_is_forgotten() -> None:
    log = SlidingLog(1, 60.0, max_keys=2)
    log.admit("first", 1000.0)
    log.admit("second", 1001.0)
    log.admit("first", 1002.0)  # refused, but not silent

    log.admit("third", 1003.0)

    assert len(log) == 2
    assert not log.admit("first", 1004.0).allowed
    assert log.admit("second", 1004.0).allowed


def test_keys_that_count_for_nothing_any_more_are_forgotten_without_a_cap() -> None:
    log = SlidingLog(1, 60.0)
    for client in range(100):
        log.admit(f"old {client}", 1000.0)

    for client in range(60):
        log.admit(f"new {client}", 2000.0)

    assert repr(log) == "<SlidingLog 1 in 60.0 s, 60 keys>"


def test_a_silent_key_is_remembered_while_one_of_its_requests_counts() -> None:
    log = SlidingLog(2, 60.0)
    log.admit("web", 1000.0)
    log.admit("web", 1059.0)

    log.admit("another", 1061.0)

    assert admitted(log, "web", 1061.0, asked=2) == 1


def test_looking_whether_a_request_would_be_refused_counts_nothing() -> None:
    log = SlidingLog(1, 60.0)

    before = [log.refusal("web", 1000.0, limit=1) for _ in range(3)]
    log.admit("web", 1000.0)

    assert (before, len(log)) == ([None] * 3, 1)
    assert log.refusal("web", 1020.0, limit=1) == log.admit("web", 1020.0)


def test_requests_that_others_admitted_count_in_whatever_order_they_come() -> None:
    log = SlidingLog(2, 60.0)
    log.note("web", 1000.5)
    log.note("web", 1000.0)

    assert log.admit("web", 1001.0) == Decision(False, 2, 0, 59.0, 59.5)
    assert log.admit("web", 1060.25).allowed


def test_a_key_that_was_only_looked_at_since_its_window_ended_is_forgotten_like_others() -> None:
    log = SlidingLog(1, 60.0)
    log.note("web", 1000.0)
    log.refusal("web", 1061.0, limit=1)

    log.admit("batch", 1062.0)

    assert len(log) == 1


@given(
    limit=st.integers(1, 5),
    pauses=st.lists(st.integers(0, 20), max_size=60),
)
def test_no_window_holds_more_than_the_limit_and_no_request_is_refused_in_vain(
    limit: int, pauses: list[int]
) -> None:
    """Against the definition: admit if fewer than the limit were admitted in the last 10 seconds."""
    log, now = SlidingLog(limit, 10.0), 1000.0
    admissions: list[float] = []
    for pause in pauses:
        now += pause
        recent = [at for at in admissions if at > now - 10]

        decision = log.admit("web", now)

        assert decision.allowed is (len(recent) < limit)
        if decision.allowed:
            admissions.append(now)
            assert decision.remaining == limit - len(recent) - 1
        else:
            assert decision.retry_after_seconds == recent[0] + 10 - now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (-1.0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9999, "1s"),
        (1.0, "1s"),
        (12.5, "12.5s"),
        (59.9995, "1m0s"),
        (60.0, "1m0s"),
        (90.25, "1m30.25s"),
        (3600.0, "1h0m0s"),
        (7384.5, "2h3m4.5s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.floats(0, 100_000))
def test_a_written_duration_is_never_too_short(seconds: float) -> None:
    """Nor more than a millisecond too long."""
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", duration_text(seconds))

    milliseconds = sum(float(amount) * UNIT_MILLISECONDS[unit] for amount, unit in parts)

    assert -1e-5 <= milliseconds - seconds * 1000 <= 1 + 1e-5
