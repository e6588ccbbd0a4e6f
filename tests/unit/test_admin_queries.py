"""What operators may say, and how they are told what would have been right."""

from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.admin.queries import Fields, Query
from sentinel_proxy.errors import CallerError
from sentinel_proxy.model import IncidentType

KNOWN = ("limit", "type", "provider", "since", "before", "types")


def query(text: str) -> Query:
    return Query({"query_string": text.encode()}, KNOWN)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("limt=5", "did you mean 'limit'?"),
        ("x=1", "there is no parameter 'x'"),
        ("limit=1&limit=2", "limit is there twice"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, hint: str) -> None:
    with pytest.raises(CallerError, match=hint.replace("?", r"\?")):
        query(text)


@pytest.mark.parametrize("text", ["", "limit=", "limit=&type="])
def test_an_empty_parameter_is_an_absent_one(text: str) -> None:
    asked = query(text)

    assert asked.whole_number("limit", 20, 1, 1000) == 20
    assert asked.member("type", IncidentType) is None


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("1000", 1000), ("0007", 7)])
def test_a_number_within_its_limits_is_taken(text: str, number: int) -> None:
    assert query(f"limit={text}").whole_number("limit", 20, 1, 1000) == number


@pytest.mark.parametrize("text", ["0", "-1", "1001", "9" * 40, "1.5", "ten", "1e2", "٣", "0x10", "1 "])
def test_any_other_is_refused_with_its_limits(text: str) -> None:
    with pytest.raises(CallerError, match="limit must be a whole number from 1 to 1000") as caught:
        query(f"limit={text}").whole_number("limit", 20, 1, 1000)

    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_value", "limit")


def test_a_type_of_incident_is_one_of_a_closed_set() -> None:
    assert query("type=outage_detected").member("type", IncidentType) is IncidentType.OUTAGE_DETECTED
    with pytest.raises(CallerError, match="did you mean 'outage_detected'"):
        query("type=outage_detcted").member("type", IncidentType)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T10:00:00Z", 1_772_359_200.0),
        ("2026-03-01T10:00:00.250Z", 1_772_359_200.25),
        ("2026-03-01T11:00:00%2B01:00", 1_772_359_200.0),
        ("2026-03-01T11:00:00+01:00", 1_772_359_200.0),
        ("1772359200", 1_772_359_200.0),
        ("1772359200.5", 1_772_359_200.5),
    ],
)
def test_a_moment_is_rfc_3339_or_unix_seconds(text: str, moment: float) -> None:
    assert query(f"since={text}").moment("since") == moment


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-03-01T10:00:00", "2026-13-01T10:00:00Z", "-5", "1e9", "nan", "10:00", "٣"]
)
def test_no_other_moment_is_guessed(text: str) -> None:
    with pytest.raises(CallerError, match="since must be a time such as"):
        query(f"since={text}").moment("since")


@given(text=st.text(max_size=40))
def test_no_moment_breaks_the_reader(text: str) -> None:
    asked = query(f"since={quote(text)}")

    with suppress(CallerError):
        assert isinstance(asked.moment("since"), float | None)


ID = "01M83HBQDVC8MVWFJGC1N5C4ND"


@pytest.mark.parametrize("text", [ID, ID.lower()])
def test_an_id_is_a_ulid(text: str) -> None:
    assert query(f"before={text}").event_id("before") == ID


@pytest.mark.parametrize("text", ["1", ID[:-1], ID + "A", "8" + ID[1:], ID[:-1] + "U", "é" * 26, "-1"])
def test_nothing_else_is_one(text: str) -> None:
    with pytest.raises(CallerError, match="before must be an id"):
        query(f"before={text}").event_id("before")


def test_types_are_given_with_commas() -> None:
    assert query("types=incident,%20system,").event_types("types") == {"incident", "system"}
    assert query("").event_types("types") == frozenset()


def test_an_unknown_type_is_named_and_so_are_the_known() -> None:
    with pytest.raises(
        CallerError, match=r"'incidents'; there are provider_status, .*did you mean 'incident'"
    ):
        query("types=incidents").event_types("types")


# The body of an order.

FIELDS = ("action", "reason", "seconds")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b"[]", "invalid_type"),
        (b'"isolate"', "invalid_type"),
        (b'{"resaon": "x"}', "unknown_parameter"),
    ],
)
def test_what_is_no_order_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(CallerError) as caught:
        Fields(body, FIELDS)

    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize("value", ['""', '" "', '"two\\nlines"', '"\\u001b[2J"', "7", "[]", f'"{"x" * 201}"'])
def test_a_reason_is_one_line_of_text(value: str) -> None:
    with pytest.raises(CallerError, match="reason must be one line of text, at most 200 characters"):
        Fields(f'{{"reason": {value}}}'.encode(), FIELDS).text("reason", 200)


@pytest.mark.parametrize("value", ["0", "-1", "true", '"10"', "2592001", "[]"])
def test_a_duration_is_above_nothing_and_within_a_month(value: str) -> None:
    with pytest.raises(CallerError, match="seconds must be a number of seconds above 0"):
        Fields(f'{{"seconds": {value}}}'.encode(), FIELDS).seconds("seconds", 60, 2_592_000)


@pytest.mark.parametrize("value", ['"stop"', "null", "[]", "{}", "7"])
def test_an_action_is_one_of_those_there_are(value: str) -> None:
    with pytest.raises(CallerError, match="action must be one of isolate, reset"):
        Fields(f'{{"action": {value}}}'.encode(), FIELDS).one_of("action", ("isolate", "reset"))


def test_null_is_as_good_as_absent() -> None:
    fields = Fields(b'{"action": "reset", "reason": null, "seconds": null}', FIELDS)

    read: tuple[Any, ...] = (
        fields.one_of("action", ("isolate", "reset")),
        fields.text("reason", 200),
        fields.seconds("seconds", 60, 3600),
        "seconds" in fields,
    )
    assert read == ("reset", None, 60.0, False)
