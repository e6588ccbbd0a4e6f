import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.model import Headers
from sentinel_proxy.wire.retry_after import retry_after_seconds

NOON = b"Sun, 06 Nov 1994 12:00:00 GMT"
NOON_UNIX = 784_123_200.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param([], None, id="nothing-said"),
        pytest.param([(b"retry-after", b"7")], 7.0, id="whole-seconds"),
        pytest.param([(b"retry-after", b"1.5")], 1.5, id="fraction-of-a-second"),
        pytest.param([(b"retry-after", b" 2 ")], 2.0, id="surrounded-by-spaces"),
        pytest.param([(b"retry-after", b"0")], 0.0, id="zero"),
        pytest.param([(b"retry-after-ms", b"300"), (b"retry-after", b"9")], 0.3, id="B19-milliseconds-first"),
        pytest.param(
            [(b"retry-after", b"9"), (b"x-ms-retry-after-ms", b"250")], 0.25, id="azure-milliseconds"
        ),
        pytest.param(
            [(b"x-ms-retry-after-ms", b"1"), (b"retry-after-ms", b"2")], 0.002, id="openai-before-azure"
        ),
        pytest.param(
            [(b"retry-after-ms", b"soon"), (b"retry-after", b"9")], 9.0, id="unreadable-is-passed-over"
        ),
        pytest.param([(b"retry-after-ms", b"-1"), (b"retry-after", b"9")], 9.0, id="negative-is-passed-over"),
        pytest.param([(b"retry-after", b"nan")], None, id="nan"),
        pytest.param([(b"retry-after", b"inf")], None, id="infinite"),
        pytest.param([(b"retry-after", b"1e999")], None, id="overflows-to-infinite"),
        pytest.param([(b"retry-after", b"-3")], None, id="negative"),
        pytest.param([(b"retry-after", b"")], None, id="empty"),
        pytest.param([(b"retry-after", b"tomorrow")], None, id="not-a-date"),
        pytest.param([(b"retry-after", "später".encode())], None, id="not-ascii"),
    ],
)
def test_every_form_becomes_seconds(headers: Headers, seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOON_UNIX) == seconds


@pytest.mark.parametrize(
    "date",
    [
        pytest.param(b"Sun, 06 Nov 1994 12:00:30 GMT", id="imf-fixdate"),
        pytest.param(b"Sunday, 06-Nov-94 12:00:30 GMT", id="rfc-850"),
        pytest.param(b"Sun Nov  6 12:00:30 1994", id="asctime"),
    ],
)
def test_a_date_counts_from_the_date_of_the_answer(date: bytes) -> None:
    headers = [(b"retry-after", date), (b"date", NOON)]

    assert retry_after_seconds(headers, now_unix=0.0) == 30.0


def test_a_date_counts_from_now_where_the_answer_has_none() -> None:
    headers = [(b"retry-after", b"Sun, 06 Nov 1994 12:01:00 GMT")]

    assert retry_after_seconds(headers, NOON_UNIX + 15) == 45.0
    assert retry_after_seconds(headers, None) is None


def test_a_date_that_has_passed_means_now() -> None:
    headers = [(b"retry-after", NOON), (b"date", b"Sun, 06 Nov 1994 12:00:01 GMT")]

    assert retry_after_seconds(headers) == 0.0


@given(value=st.binary(max_size=40), date=st.binary(max_size=40))
def test_no_header_value_raises_or_asks_for_the_impossible(value: bytes, date: bytes) -> None:
    headers = [(b"retry-after", value), (b"date", date)]

    seconds = retry_after_seconds(headers, 0.0)

    assert seconds is None or 0 <= seconds < float("inf")
