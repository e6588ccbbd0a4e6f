"""What replicas know of one incident, put together in whatever order it comes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.incidents.merging import GONE, decoded, encoded, ended, linked, merged
from sentinel_proxy.model import Incident, IncidentType, Severity

COUNTS = st.integers(0, 1000)
MOMENTS = st.integers(1_700_000_000, 1_700_000_500).map(float)


def outage(id: str = "A", began: float = 100.0, over: float | None = None, **details: Any) -> Incident:
    known: dict[str, Any] = {
        "cause": "connect",
        "reason": "connect",
        "state": "open" if over is None else "closed",
        "openings": 1,
        "affected_calls": 0,
        "rescued_calls": 0,
        "lost_calls": 0,
        "targets": (),
    }
    if over is not None:
        known["ended_by"] = "a trial succeeded"
    return merged(
        [
            Incident(
                id,
                IncidentType.OUTAGE_DETECTED,
                Severity.CRITICAL,
                "openai",
                began,
                "",
                known | details,
                over,
                None if over is None else over - began,
            )
        ]
    )


@st.composite
def parts(draw: st.DrawFn) -> list[Incident]:
    """Draw what one to four replicas know of an outage."""
    known = []
    for id in draw(st.lists(st.sampled_from("ABCDEFG"), min_size=1, max_size=4, unique=True)):
        began = draw(MOMENTS)
        over = draw(st.none() | st.just(began + draw(st.integers(0, 500))))
        known.append(
            outage(
                id,
                began,
                over,
                reason=draw(st.sampled_from(["connect", "overloaded (503)"])),
                openings=draw(st.integers(1, 9)),
                affected_calls=draw(COUNTS),
                lost_calls=draw(COUNTS),
                targets=tuple(draw(st.lists(st.sampled_from(["ollama", "vllm"]), unique=True))),
            )
        )
    return known


@given(known=parts(), data=st.data())
def test_the_order_in_which_replicas_tell_does_not_matter(known: list[Incident], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(known))

    assert merged(shuffled) == merged(known)


@given(known=parts())
def test_every_call_counts_once(known: list[Incident]) -> None:
    whole = merged(known)

    for name in ("affected_calls", "lost_calls"):
        assert whole.details[name] == sum(part.details[name] for part in known)
    assert whole.details["openings"] == max(part.details["openings"] for part in known)
    assert set(whole.details["targets"]) == {name for part in known for name in part.details["targets"]}


@given(known=parts())
def test_it_lasts_from_the_first_word_to_the_last_end(known: list[Incident]) -> None:
    whole = merged(known)
    ends = [part.resolved_at for part in known]

    assert whole.timestamp == min(part.timestamp for part in known)
    assert whole.resolved_at == (None if None in ends else max(end for end in ends if end is not None))
    assert (whole.duration_seconds is None) is (whole.resolved_at is None)
    assert ("ended_by" in whole.details) is (whole.resolved_at is not None)


@given(known=parts())
def test_one_part_alone_is_the_whole(known: list[Incident]) -> None:
    assert merged(known[:1]) == known[0]


@given(known=parts(), now=MOMENTS)
def test_what_is_told_is_what_is_heard(known: list[Incident], now: float) -> None:
    whole = merged(known)

    assert decoded(encoded(whole, now)) == (whole, now)


def said(known: Sequence[Incident]) -> str:
    return merged(known).message


def test_a_whole_is_told_in_its_own_words() -> None:
    assert said([outage("B", 110.0, 130.0), outage("A", 100.0)]) == "openai is out: connect"
    assert said([outage("B", 110.0, 130.0), outage("A", 100.0, 120.0)]) == "openai was out for 30 s: connect"


def test_the_state_is_that_which_keeps_calls_away() -> None:
    known = [outage("A", state="half_open"), outage("B", state="open"), outage("C", over=110.0)]

    assert merged(known).details["state"] == "open"


def test_the_reasons_of_failovers_are_counted_together() -> None:
    details = {"reason": "503", "calls": 2, "reasons": {"503": 2}, "targets": ("ollama",), "outage": "A"}
    one = replace(outage("A"), type=IncidentType.FAILOVER_TRIGGERED, details=details)
    other = replace(one, id="B", details=details | {"calls": 3, "reasons": {"open": 2, "503": 1}})

    whole = merged([one, other])

    assert whole.details == details | {"calls": 5, "reasons": {"503": 3, "open": 2}}


def test_what_a_replica_saw_that_is_gone_ended_with_its_last_word() -> None:
    gone = ended(outage("A", 100.0), at=142.0)

    assert (gone.resolved_at, gone.duration_seconds, gone.details["ended_by"]) == (142.0, 42.0, GONE)
    assert gone.message == "openai was out for 42 s: connect"
    assert ended(outage("A", 100.0), at=90.0).resolved_at == 100.0


def test_what_was_over_before_stays_as_it_was() -> None:
    over = outage("A", 100.0, 120.0)

    assert ended(over, at=142.0) is over


def test_a_recovery_tells_what_the_whole_outage_came_to() -> None:
    recovered = replace(
        outage("R", 120.0, 120.0),
        type=IncidentType.PROVIDER_RECOVERED,
        details={"outage": "B", "outage_seconds": 20.0, "affected_calls": 1, "lost_calls": 0},
    )

    whole = linked(recovered, outage("A", affected_calls=7, rescued_calls=6, lost_calls=1))

    assert whole.details == {
        "outage": "A",
        "outage_seconds": 20.0,
        "affected_calls": 7,
        "rescued_calls": 6,
        "lost_calls": 1,
    }


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"type":"from_the_future"}', encoded(outage(), 1.0).replace(b'"reason"', b'"why"')],
)
def test_what_another_version_tells_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an incident"):
        decoded(data)
