"""What becomes of events: one incident an outage, with its numbers, and an end."""

from collections.abc import Sequence
from typing import Any

import pytest

from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import (
    AttemptFailed,
    BreakerChanged,
    Bus,
    CallFailedOver,
    CallFinished,
    Event,
    HealthChecked,
    IncidentChanged,
    MappedModelsChecked,
    ProbeFinished,
    StreamRescued,
)
from sentinel_proxy.incidents import Incidents
from sentinel_proxy.incidents.ledger import NOBODY_ASKED, QUIET_SECONDS, UNASKED_SECONDS
from sentinel_proxy.model import (
    Attempt,
    Call,
    Endpoint,
    Incident,
    IncidentType,
    Outcome,
    ProbeResult,
    Severity,
    Verdict,
)
from sentinel_proxy.resilience.breaker import TRIAL_SUCCEEDED
from sentinel_proxy.testing import FakeClock

ROUND = HealthChecked(2, 0.1)
REST = Attempt("openai", "open", sent=False)
FAILED = Attempt("openai", "503", FailureKind.OVERLOADED)
LIMITED = Attempt("openai", "limited", FailureKind.THROTTLED, sent=False)
FIRST = Attempt("openai", "200", seconds=0.1)
NEXT = Attempt("ollama", "200", seconds=0.2)


class Room:
    """Where incidents are folded: a bus, a clock, and what was told."""

    def __init__(self, capacity: int = 500) -> None:
        self.clock = FakeClock()
        self.bus = Bus()
        self.told: list[IncidentChanged] = []
        self.bus.subscribe(IncidentChanged, self.told.append)
        self.incidents = Incidents(
            capacity, self.clock, self.bus.emit, model_for=lambda provider, model: model.removeprefix("my-")
        )
        self.incidents.listen(self.bus)

    def hears(self, *events: Event) -> None:
        for event in events:
            self.bus.emit(event)
        assert self.bus.errors == 0

    def changes(self) -> list[tuple[str, str]]:
        """Return what was told since this was last asked: the change and the type."""
        told = [(change.change, change.incident.type.value) for change in self.told]
        self.told.clear()
        return told

    def one(self, type: IncidentType) -> Incident:
        (incident,), total = self.incidents.find(type=type)
        assert total == 1
        return incident


@pytest.fixture
def room() -> Room:
    return Room()


def breaker(after: str, before: str = "closed", *, reason: str = "", model: str | None = None) -> Event:
    said = {"open": "overloaded (503)", "closed": TRIAL_SUCCEEDED, "isolated": "maintenance"}
    rest = 30.0 if after == "open" else 0.0
    return BreakerChanged("openai", model, before, after, reason or said.get(after, "the rest is over"), rest)


def failed_over(reason: str = "503", target: str = "ollama") -> Event:
    return CallFailedOver("t", "openai", target, reason)


def failed(kind: FailureKind) -> Event:
    return AttemptFailed("t", "openai", "gpt-4o", kind, kind.value, "it failed", 0.1)


def finished(
    outcome: Outcome,
    *trail: Attempt,
    started: float = 1000.0,
    model: str = "gpt-4o",
    error_code: str | None = None,
) -> Event:
    call = Call("t", Endpoint.CHAT, b"", {}, model, True, started, started + 600, trail=list(trail))
    answered_by = call.answered_by
    return CallFinished(
        "t", Endpoint.CHAT, call, outcome, 200, answered_by, model, 1.0, 0.001, 0.5, None, error_code
    )


def probed(verdict: Verdict, kind: FailureKind | None = None) -> Event:
    return ProbeFinished(ProbeResult("openai", 0.0, 0.1, verdict, "it answered", kind))


class TestOutages:
    def test_it_lasts_from_the_opening_of_the_breaker_to_its_closing(self, room: Room) -> None:
        began = room.clock.time()
        room.hears(breaker("open"))
        room.clock.advance(62)
        room.hears(breaker("half_open", "open"), breaker("closed", "half_open"))

        outage = room.one(IncidentType.OUTAGE_DETECTED)

        assert (outage.timestamp, outage.resolved_at) == (began, began + 62)
        assert outage.duration_seconds == 62
        assert outage.severity is Severity.CRITICAL
        assert outage.message == "openai was out for 62 s: overloaded (503)"
        assert outage.details["cause"] == FailureKind.OVERLOADED
        assert outage.details["ended_by"] == TRIAL_SUCCEEDED

    def test_every_change_of_the_breaker_is_told_at_once(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("half_open", "open"), breaker("closed", "half_open"))

        assert room.changes() == [
            ("opened", "outage_detected"),
            ("updated", "outage_detected"),
            ("resolved", "outage_detected"),
            ("opened", "provider_recovered"),
            ("resolved", "provider_recovered"),
        ]

    def test_a_relapse_belongs_to_the_same_outage(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("half_open", "open"), breaker("open", "half_open"))

        outage = room.one(IncidentType.OUTAGE_DETECTED)

        assert (outage.details["openings"], outage.resolved_at) == (2, None)

    def test_the_next_one_is_another(self, room: Room) -> None:
        for _ in range(2):
            room.hears(breaker("open"), breaker("closed", "open"))
            room.clock.advance(1)

        found, total = room.incidents.find(type=IncidentType.OUTAGE_DETECTED)

        assert total == 2
        assert len({outage.id for outage in found}) == 2

    def test_a_clock_that_is_set_back_does_not_shorten_it(self, room: Room) -> None:
        room.hears(breaker("open"))
        room.clock._time -= 3600
        room.clock.advance(10)
        room.hears(breaker("closed", "open"))

        assert room.one(IncidentType.OUTAGE_DETECTED).duration_seconds == 10

    def test_that_of_one_model_is_told_apart(self, room: Room) -> None:
        room.hears(breaker("open", model="gpt-4o"), breaker("open", model="o3"))

        found, total = room.incidents.find(type=IncidentType.OUTAGE_DETECTED)

        assert total == 2
        assert [outage.message for outage in found] == [
            "o3 at openai is out: overloaded (503)",
            "gpt-4o at openai is out: overloaded (503)",
        ]

    @pytest.mark.parametrize(
        ("reason", "cause"),
        [("connect (probe)", "connect"), ("timeout", "timeout"), ("by hand", "unknown"), ("", "unknown")],
    )
    def test_its_cause_is_a_kind_of_failure(self, room: Room, reason: str, cause: str) -> None:
        room.hears(BreakerChanged("openai", None, "closed", "open", reason, 30.0))

        assert room.one(IncidentType.OUTAGE_DETECTED).details["cause"] == cause

    def test_one_that_ends_without_proof_is_no_recovery(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("closed", "open", reason="reset by hand"))

        assert room.one(IncidentType.OUTAGE_DETECTED).details["ended_by"] == "reset by hand"
        assert room.incidents.find(type=IncidentType.PROVIDER_RECOVERED) == ([], 0)

    def test_a_recovery_tells_what_the_outage_came_to(self, room: Room) -> None:
        room.hears(breaker("open"), finished(Outcome.FAILED_OVER, REST, NEXT))
        room.clock.advance(5)
        room.hears(breaker("closed", "open"))

        recovery = room.one(IncidentType.PROVIDER_RECOVERED)

        assert recovery.message == "openai answers again after 5.0 s"
        assert recovery.resolved_at == recovery.timestamp
        assert recovery.details["outage"] == room.one(IncidentType.OUTAGE_DETECTED).id
        assert (recovery.details["affected_calls"], recovery.details["rescued_calls"]) == (1, 1)


class TestOneOutageOfSeveralBreakers:
    """Calls and probes show an outage to different breakers; it is one all the same."""

    def outages(self, room: Room) -> list[tuple[str, bool]]:
        found, _ = room.incidents.find(type=IncidentType.OUTAGE_DETECTED)
        return [(outage.message, outage.resolved_at is None) for outage in found]

    def test_that_of_a_model_becomes_that_of_its_provider(self, room: Room) -> None:
        room.hears(breaker("open", model="gpt-4o"))
        began = room.one(IncidentType.OUTAGE_DETECTED)
        room.clock.advance(10)
        room.hears(breaker("open", reason="connect (probe)"))

        outage = room.one(IncidentType.OUTAGE_DETECTED)

        assert (outage.id, outage.timestamp) == (began.id, began.timestamp)
        assert outage.message == "openai is out: connect (probe)"
        assert (outage.details["cause"], outage.details["openings"]) == ("connect", 2)
        assert "model" not in outage.details

    def test_that_of_a_model_is_a_part_of_that_of_its_provider(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("open", model="gpt-4o"))

        assert self.outages(room) == [("openai is out: overloaded (503)", True)]

    def test_others_of_its_models_end_in_it(self, room: Room) -> None:
        room.hears(breaker("open", model="gpt-4o"), breaker("open", model="o3"))
        room.hears(breaker("open", reason="connect"))

        assert self.outages(room) == [
            ("o3 at openai was out for 0.0 s: overloaded (503)", False),
            ("openai is out: connect", True),
        ]
        ended, outage = room.incidents.find(type=IncidentType.OUTAGE_DETECTED)[0]
        assert ended.details["outage"] == outage.id

    @pytest.mark.parametrize("first", [None, "gpt-4o"])
    def test_it_is_over_once_and_has_one_recovery(self, room: Room, first: str | None) -> None:
        second = "gpt-4o" if first is None else None
        room.hears(breaker("open", model=first), breaker("open", model=second))
        room.hears(breaker("half_open", "open", model=first), breaker("half_open", "open", model=second))
        room.clock.advance(20)
        room.changes()

        room.hears(breaker("closed", "half_open", model="gpt-4o"), breaker("closed", "half_open"))

        assert room.changes() == [
            ("updated", "outage_detected"),
            ("resolved", "outage_detected"),
            ("opened", "provider_recovered"),
            ("resolved", "provider_recovered"),
        ]
        assert room.one(IncidentType.PROVIDER_RECOVERED).message == "openai answers again after 20 s"

    def test_a_model_that_nobody_has_tried_yet_does_not_prolong_it(self, room: Room) -> None:
        room.hears(
            breaker("open"), breaker("open", model="gpt-4o"), breaker("half_open", "open", model="gpt-4o")
        )

        room.hears(breaker("closed", "open"))
        room.clock.advance(300)
        room.hears(breaker("closed", "half_open", model="gpt-4o", reason="nobody has tried it"))

        assert self.outages(room) == [("openai was out for 0.0 s: overloaded (503)", False)]

    def test_a_model_that_still_rests_is_out_alone(self, room: Room) -> None:
        room.hears(breaker("open"))
        room.clock.advance(20)
        room.hears(breaker("open", model="gpt-4o"))
        room.clock.advance(10)
        room.hears(breaker("closed", "open"))

        assert self.outages(room) == [("gpt-4o at openai is out: overloaded (503)", True)]
        room.hears(breaker("closed", "half_open", model="gpt-4o"))
        assert self.outages(room) == [("gpt-4o at openai was out for 30 s: overloaded (503)", False)]

    def test_it_lasts_while_any_model_of_it_rests(self, room: Room) -> None:
        room.hears(breaker("open", model="gpt-4o"), breaker("open", model="o3"), breaker("open"))
        room.clock.advance(10)
        room.hears(breaker("closed", "open"), breaker("closed", "open", model="gpt-4o"))
        room.clock.advance(5)
        assert [ongoing for _, ongoing in self.outages(room)] == [False, True]
        room.hears(breaker("closed", "open", model="o3"))

        assert room.incidents.find(type=IncidentType.OUTAGE_DETECTED)[0][1].duration_seconds == 15

    def test_its_end_is_told_once_though_nobody_asks(self, room: Room) -> None:
        room.hears(breaker("open", model="gpt-4o"), breaker("open"), probed(Verdict.PASSED))
        room.clock.advance(30 + UNASKED_SECONDS)
        room.changes()
        room.hears(ROUND)

        assert room.changes() == [("resolved", "outage_detected")]

    def test_calls_of_every_model_that_was_out_count_in_it(self, room: Room) -> None:
        room.hears(breaker("open", model="gpt-4o"), breaker("open", model="o3"), breaker("open"))

        room.hears(
            *[finished(Outcome.FAILED_OVER, REST, NEXT, model=f"my-{model}") for model in ("o3", "gpt-4o")]
        )

        ended, outage = room.incidents.find(type=IncidentType.OUTAGE_DETECTED)[0]
        assert (ended.details["affected_calls"], outage.details["affected_calls"]) == (0, 2)

    def test_its_state_is_that_which_keeps_most_calls_away(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("open", model="gpt-4o"), breaker("half_open", "open"))
        assert room.one(IncidentType.OUTAGE_DETECTED).details["state"] == "open"
        room.hears(breaker("half_open", "open", model="gpt-4o"))

        assert room.one(IncidentType.OUTAGE_DETECTED).details["state"] == "half_open"


class TestOutagesThatNobodyAsksAfter:
    """As of a fallback that is not needed: the next call would prove it well, but none comes."""

    def test_it_is_over_when_probes_have_passed_for_a_while(self, room: Room) -> None:
        room.hears(breaker("open"))
        room.clock.advance(40)
        room.hears(probed(Verdict.PASSED), breaker("half_open", "open"))
        room.clock.advance(UNASKED_SECONDS)
        room.changes()
        room.hears(probed(Verdict.PASSED), ROUND, ROUND)

        outage = room.one(IncidentType.OUTAGE_DETECTED)
        assert room.changes() == [("resolved", "outage_detected")]
        assert (outage.duration_seconds, outage.details["ended_by"]) == (40, NOBODY_ASKED)

    def test_it_need_not_have_been_half_open(self, room: Room) -> None:
        """Where probes had never failed, the breaker waits for a call to ask whether its rest is over."""
        room.hears(probed(Verdict.PASSED), breaker("open"))
        room.clock.advance(30 + UNASKED_SECONDS)
        room.hears(ROUND)

        assert room.one(IncidentType.OUTAGE_DETECTED).duration_seconds == 30

    @pytest.mark.parametrize(
        "events",
        [(), (probed(Verdict.FAILED),), (probed(Verdict.PASSED), probed(Verdict.UNCLEAR))],
        ids=["no probe", "failed", "unclear since"],
    )
    def test_it_goes_on_where_no_probe_says_otherwise(self, room: Room, events: Sequence[Event]) -> None:
        room.hears(breaker("open"), *events)
        room.clock.advance(2 * UNASKED_SECONDS)
        room.hears(ROUND)

        assert room.one(IncidentType.OUTAGE_DETECTED).resolved_at is None

    def test_it_goes_on_until_the_while_is_over(self, room: Room) -> None:
        room.hears(breaker("open"), probed(Verdict.PASSED))
        room.clock.advance(30 + UNASKED_SECONDS - 1)
        room.hears(ROUND)

        assert room.one(IncidentType.OUTAGE_DETECTED).resolved_at is None

    def test_a_call_that_fails_there_later_begins_another(self, room: Room) -> None:
        room.hears(breaker("open"), probed(Verdict.PASSED), breaker("half_open", "open"))
        room.clock.advance(UNASKED_SECONDS)
        room.hears(ROUND, breaker("open", "half_open"))

        found, _ = room.incidents.find(type=IncidentType.OUTAGE_DETECTED)
        assert [outage.resolved_at is None for outage in found] == [True, False]

    def test_one_that_proves_it_well_later_is_no_recovery(self, room: Room) -> None:
        room.hears(breaker("open"), probed(Verdict.PASSED), breaker("half_open", "open"))
        room.clock.advance(UNASKED_SECONDS)
        room.hears(ROUND, breaker("closed", "half_open"))

        assert room.incidents.find(type=IncidentType.PROVIDER_RECOVERED) == ([], 0)


class TestCallsInAnOutage:
    @pytest.mark.parametrize(
        ("outcome", "trail", "counts"),
        [
            (Outcome.FAILED_OVER, (REST, NEXT), (1, 1, 0)),
            (Outcome.FAILED_OVER, (FAILED, NEXT), (1, 1, 0)),
            (Outcome.SUCCESS, (FAILED, FIRST), (1, 1, 0)),
            (Outcome.RESCUED, (FIRST, NEXT), (1, 1, 0)),
            (Outcome.FAILURE, (FAILED, FAILED), (1, 0, 1)),
            (Outcome.TRUNCATED, (FIRST,), (1, 0, 1)),
            (Outcome.HUNG_UP, (REST,), (1, 0, 0)),
            (Outcome.SUCCESS, (FIRST,), (0, 0, 0)),
            (Outcome.FAILED_OVER, (LIMITED, NEXT), (0, 0, 0)),
            (Outcome.FAILED_OVER, (Attempt("other", "open", sent=False), NEXT), (0, 0, 0)),
        ],
        ids=lambda part: part.value if isinstance(part, Outcome) else None,
    )
    def test_those_it_touched_are_counted_and_what_they_came_to(
        self, room: Room, outcome: Outcome, trail: Sequence[Attempt], counts: tuple[int, int, int]
    ) -> None:
        room.hears(breaker("open"), finished(outcome, *trail))

        details = room.one(IncidentType.OUTAGE_DETECTED).details

        assert (details["affected_calls"], details["rescued_calls"], details["lost_calls"]) == counts

    def test_counting_is_told_once_a_round(self, room: Room) -> None:
        room.hears(breaker("open"), *[finished(Outcome.FAILED_OVER, REST, NEXT)] * 1000)
        room.changes()

        room.hears(ROUND, ROUND)

        assert room.changes() == [("updated", "outage_detected")]
        assert room.one(IncidentType.OUTAGE_DETECTED).details["affected_calls"] == 1000

    def test_one_that_ends_after_the_outage_it_began_in_counts(self, room: Room) -> None:
        started = room.clock.monotonic()
        room.hears(breaker("open"), breaker("closed", "open"))
        room.clock.advance(60)
        room.changes()

        room.hears(finished(Outcome.FAILED_OVER, REST, NEXT, started=started), ROUND)

        assert room.changes() == [("updated", "outage_detected")]
        assert room.one(IncidentType.OUTAGE_DETECTED).details["affected_calls"] == 1

    def test_one_that_began_after_the_outage_does_not(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("closed", "open"))
        room.clock.advance(60)

        room.hears(finished(Outcome.FAILED_OVER, FAILED, NEXT, started=room.clock.monotonic()))

        assert room.one(IncidentType.OUTAGE_DETECTED).details["affected_calls"] == 0

    def test_a_call_belongs_to_the_outage_of_its_model(self, room: Room) -> None:
        room.hears(breaker("open", model="gpt-4o"), breaker("open", model="o3"))

        room.hears(finished(Outcome.FAILED_OVER, REST, NEXT, model="my-o3"))

        found, _ = room.incidents.find(type=IncidentType.OUTAGE_DETECTED)
        assert {outage.details["model"]: outage.details["affected_calls"] for outage in found} == {
            "gpt-4o": 0,
            "o3": 1,
        }

    def test_a_call_that_never_was_one_is_nobodys(self, room: Room) -> None:
        wrong = CallFinished(
            "t", Endpoint.CHAT, None, Outcome.CALLER_ERROR, 400, None, None, 0.0, 0.0, None, None
        )

        room.hears(wrong)

        assert room.incidents.find() == ([], 0)


class TestFailovers:
    def test_a_burst_is_one_incident_with_its_numbers(self, room: Room) -> None:
        room.hears(failed_over("503"), failed_over("open"), failed_over("open", "spare"))

        failover = room.one(IncidentType.FAILOVER_TRIGGERED)

        assert failover.details["calls"] == 3
        assert failover.details["reasons"] == {"503": 1, "open": 2}
        assert failover.message == "calls go to ollama and spare instead of openai, 3 so far: 503"

    def test_it_ends_with_its_outage_however_rare_the_calls_are(self, room: Room) -> None:
        room.hears(breaker("open"), failed_over("open"))
        room.clock.advance(QUIET_SECONDS * 10)
        room.hears(ROUND, failed_over("open"))
        room.changes()

        room.hears(breaker("closed", "open"))

        assert ("resolved", "failover_triggered") in room.changes()
        failover = room.one(IncidentType.FAILOVER_TRIGGERED)
        assert failover.details["outage"] == room.one(IncidentType.OUTAGE_DETECTED).id
        assert room.one(IncidentType.OUTAGE_DETECTED).details["targets"] == ("ollama",)

    def test_it_goes_on_while_another_breaker_of_the_provider_rests(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("open", model="o3"), failed_over("open"))

        room.hears(breaker("closed", "open"))

        assert room.one(IncidentType.FAILOVER_TRIGGERED).resolved_at is None

    def test_without_an_outage_it_ends_when_it_is_quiet(self, room: Room) -> None:
        room.hears(failed_over())
        room.clock.advance(1)
        room.hears(failed_over())
        room.clock.advance(QUIET_SECONDS)

        room.hears(ROUND)

        assert room.one(IncidentType.FAILOVER_TRIGGERED).duration_seconds == 1

    def test_after_a_quiet_time_another_one_begins(self, room: Room) -> None:
        room.hears(failed_over())
        room.clock.advance(QUIET_SECONDS)

        room.hears(failed_over())

        assert room.changes() == [
            ("opened", "failover_triggered"),
            ("resolved", "failover_triggered"),
            ("opened", "failover_triggered"),
        ]

    def test_a_call_that_passed_by_and_was_answered_late_begins_none(self, room: Room) -> None:
        room.hears(breaker("open"), failed_over("open"), breaker("closed", "open"))
        room.clock.advance(5)

        room.hears(failed_over("open"))

        failover = room.one(IncidentType.FAILOVER_TRIGGERED)
        assert failover.resolved_at is not None
        assert failover.details["calls"] == 2

    @pytest.mark.parametrize("reason", ["unsupported", "context_overflow", "model_not_found"])
    def test_a_call_that_cannot_be_served_there_is_no_incident(self, room: Room, reason: str) -> None:
        room.hears(failed_over(reason))

        assert room.incidents.find() == ([], 0)


class TestStreams:
    def test_those_that_go_on_elsewhere_are_counted_together(self, room: Room) -> None:
        room.hears(*[StreamRescued("t", "openai", "ollama", "prefill", "continued", 40)] * 2)

        assert room.one(IncidentType.STREAM_RESCUED).message == (
            "2 streams of openai broke off and went on at ollama"
        )

    def test_one_that_nobody_could_continue_is_not_among_them(self, room: Room) -> None:
        room.hears(StreamRescued("t", "openai", "", "", "failed", 40))

        assert room.incidents.find(type=IncidentType.STREAM_RESCUED) == ([], 0)

    def test_those_that_ended_in_an_error_are_counted_together(self, room: Room) -> None:
        room.hears(*[finished(Outcome.TRUNCATED, FIRST)] * 3)

        assert room.one(IncidentType.STREAM_TRUNCATED).message == (
            "3 streams of openai broke off and could not be completed"
        )


class TestOperators:
    def test_an_isolation_lasts_until_the_order_ends(self, room: Room) -> None:
        room.hears(breaker("isolated"))
        room.clock.advance(30)
        room.hears(breaker("closed", "isolated", reason="reset by hand"))

        isolation = room.one(IncidentType.BREAKER_ISOLATED)

        assert isolation.message == "openai was taken out by an operator: maintenance"
        assert isolation.duration_seconds == 30

    def test_an_order_that_has_run_out_has_ended(self, room: Room) -> None:
        room.hears(breaker("isolated"), breaker("half_open", "isolated"))

        assert room.one(IncidentType.BREAKER_ISOLATED).resolved_at is not None

    def test_an_outage_goes_on_behind_it(self, room: Room) -> None:
        room.hears(breaker("open"), breaker("isolated", "open"), breaker("half_open", "isolated"))
        outage = room.one(IncidentType.OUTAGE_DETECTED)
        room.hears(breaker("closed", "half_open"))

        assert outage.resolved_at is None
        assert room.one(IncidentType.OUTAGE_DETECTED).resolved_at is not None


class TestAccounts:
    @pytest.mark.parametrize(
        ("kind", "type"),
        [
            (FailureKind.CREDENTIAL, IncidentType.CREDENTIAL_REFUSED),
            (FailureKind.QUOTA, IncidentType.QUOTA_EXHAUSTED),
        ],
    )
    def test_a_refusal_is_told_once_and_ends_with_a_good_answer(
        self, room: Room, kind: FailureKind, type: IncidentType
    ) -> None:
        room.hears(failed(kind), failed(kind), finished(Outcome.SUCCESS, FIRST))

        assert room.changes() == [("opened", type.value), ("resolved", type.value)]

    def test_an_answer_that_another_replica_was_given_ends_it_too(self, room: Room) -> None:
        """Its trial closed the breaker, which is one for all."""
        room.hears(failed(FailureKind.CREDENTIAL), breaker("open", reason="credential (401)"))
        closed = BreakerChanged("openai", None, "half_open", "closed", TRIAL_SUCCEEDED, 0.0, "R1")

        room.hears(closed)

        assert room.one(IncidentType.CREDENTIAL_REFUSED).resolved_at is not None
        assert room.incidents.ongoing() == []
        assert room.incidents.find(type=IncidentType.PROVIDER_RECOVERED) == ([], 0)

    def test_one_that_a_call_found_is_not_for_a_probe_to_end(self, room: Room) -> None:
        room.hears(failed(FailureKind.CREDENTIAL), probed(Verdict.PASSED))

        assert room.one(IncidentType.CREDENTIAL_REFUSED).resolved_at is None

    def test_one_that_a_probe_found_is(self, room: Room) -> None:
        room.hears(probed(Verdict.UNCLEAR, FailureKind.CREDENTIAL), probed(Verdict.PASSED))

        assert room.one(IncidentType.CREDENTIAL_REFUSED).resolved_at is not None

    def test_another_providers_answer_ends_nothing(self, room: Room) -> None:
        room.hears(failed(FailureKind.QUOTA), finished(Outcome.FAILED_OVER, FAILED, NEXT))

        assert room.one(IncidentType.QUOTA_EXHAUSTED).resolved_at is None

    def test_calls_that_pass_by_after_a_429_belong_to_it(self, room: Room) -> None:
        room.hears(failed(FailureKind.THROTTLED), finished(Outcome.FAILED_OVER, LIMITED, NEXT))

        limited = room.one(IncidentType.RATE_LIMITED_UPSTREAM)

        assert limited.message == "openai wants fewer calls from us: 2 calls did not get through"

    def test_calls_that_nobody_answered_are_counted_together(self, room: Room) -> None:
        down = finished(Outcome.FAILURE, FAILED, error_code="all_providers_failed")

        room.hears(down, down)

        lost = room.one(IncidentType.NO_PROVIDER_ANSWERED)
        assert lost.provider is None
        assert lost.message == "2 calls failed, for no provider answered: all_providers_failed"


class TestModels:
    def test_a_missing_model_is_told_until_it_is_there(self, room: Room) -> None:
        room.hears(
            MappedModelsChecked("ollama", ("llama3.2",)),
            MappedModelsChecked("ollama", ("llama3.2", "qwen3")),
            MappedModelsChecked("ollama", ()),
        )

        assert room.changes() == [
            ("opened", "fallback_model_missing"),
            ("updated", "fallback_model_missing"),
            ("resolved", "fallback_model_missing"),
        ]

    def test_a_good_answer_disproves_it(self, room: Room) -> None:
        room.hears(MappedModelsChecked("ollama", ("llama3.2",)), finished(Outcome.FAILED_OVER, REST, NEXT))

        missing = room.one(IncidentType.FALLBACK_MODEL_MISSING)
        assert missing.message == "ollama did not list models that calls are sent to there: llama3.2"
        assert missing.resolved_at is not None

    def test_that_all_are_there_is_no_news(self, room: Room) -> None:
        room.hears(MappedModelsChecked("ollama", ()))

        assert room.changes() == []


class TestFinding:
    def fill(self, room: Room, count: int) -> None:
        for number in range(count):
            room.hears(MappedModelsChecked(f"p{number % 2}", (f"m{number}",)))
            room.hears(MappedModelsChecked(f"p{number % 2}", ()))
            room.clock.advance(1)

    def test_the_newest_come_first(self, room: Room) -> None:
        self.fill(room, 3)

        found, total = room.incidents.find(limit=2)

        assert [incident.details["models"] for incident in found] == [("m2",), ("m1",)]
        assert total == 3

    def test_the_last_of_a_page_leads_to_the_next(self, room: Room) -> None:
        self.fill(room, 5)
        first, _ = room.incidents.find(limit=3)

        second, total = room.incidents.find(limit=3, before=first[-1].id)

        assert [incident.details["models"] for incident in second] == [("m1",), ("m0",)]
        assert total == 5

    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            ({"provider": "p0"}, 2),
            ({"provider": "nobody"}, 0),
            ({"type": IncidentType.FALLBACK_MODEL_MISSING}, 3),
            ({"type": IncidentType.OUTAGE_DETECTED}, 0),
            ({"since": FakeClock().time() + 1}, 2),
        ],
        ids=["provider", "no such provider", "type", "other type", "since"],
    )
    def test_it_filters(self, room: Room, filters: dict[str, Any], count: int) -> None:
        self.fill(room, 3)

        found, total = room.incidents.find(**filters)

        assert (len(found), total) == (count, count)

    def test_those_that_are_over_are_forgotten_first(self) -> None:
        room = Room(capacity=3)
        room.hears(breaker("open"))

        self.fill(room, 10)

        kept, total = room.incidents.find()
        assert total == 3
        assert kept[-1].type is IncidentType.OUTAGE_DETECTED
        assert [incident.type for incident in room.incidents.ongoing()] == [IncidentType.OUTAGE_DETECTED]

    def test_where_none_is_over_the_oldest_goes_and_its_end_is_told_all_the_same(self) -> None:
        room = Room(capacity=1)
        room.hears(breaker("open"), breaker("isolated", model="o3"))
        room.changes()

        room.hears(breaker("closed", "open", reason="reset by hand"))

        assert room.changes() == [("resolved", "outage_detected")]
        assert [incident.type for incident in room.incidents.ongoing()] == [IncidentType.BREAKER_ISOLATED]

    def test_a_call_that_is_late_is_counted_although_older_outages_are_forgotten(self) -> None:
        room = Room(capacity=2)
        for _ in range(2):
            room.hears(breaker("open"), breaker("closed", "open", reason="reset by hand"))
        room.hears(breaker("isolated", model="o3"))

        room.hears(finished(Outcome.FAILED_OVER, REST, NEXT))

        assert room.one(IncidentType.OUTAGE_DETECTED).details["affected_calls"] == 1

    def test_what_was_found_does_not_change_any_more(self, room: Room) -> None:
        room.hears(failed_over("503"))
        before = room.one(IncidentType.FAILOVER_TRIGGERED)

        room.hears(failed_over("429", "spare"))

        assert before.details["reasons"] == {"503": 1}
        assert before.details["targets"] == ("ollama",)

    def test_it_goes_out_as_json_has_it(self, room: Room) -> None:
        room.hears(breaker("open"))

        public = room.one(IncidentType.OUTAGE_DETECTED).public()

        assert list(public) == [
            "id",
            "type",
            "severity",
            "provider",
            "timestamp",
            "message",
            "details",
            "resolved_at",
            "duration_seconds",
        ]
        assert (public["type"], public["severity"]) == ("outage_detected", "critical")
        assert (public["timestamp"], public["resolved_at"]) == ("2026-03-01T10:00:00.000Z", None)

    def test_repr_says_how_many(self, room: Room) -> None:
        room.hears(breaker("open"))

        assert repr(room.incidents) == "<Incidents 1, 1 ongoing>"
