"""What each type of incident is called in front of people, and how much it should worry them."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from sentinel_proxy.model import IncidentType, Severity

SEVERITIES: Final[Mapping[IncidentType, Severity]] = {
    IncidentType.OUTAGE_DETECTED: Severity.CRITICAL,
    IncidentType.FAILOVER_TRIGGERED: Severity.WARNING,
    IncidentType.PROVIDER_RECOVERED: Severity.INFO,
    IncidentType.STREAM_RESCUED: Severity.WARNING,
    IncidentType.STREAM_TRUNCATED: Severity.ERROR,
    IncidentType.BREAKER_ISOLATED: Severity.WARNING,
    IncidentType.CREDENTIAL_REFUSED: Severity.CRITICAL,
    IncidentType.QUOTA_EXHAUSTED: Severity.CRITICAL,
    IncidentType.RATE_LIMITED_UPSTREAM: Severity.WARNING,
    IncidentType.FALLBACK_MODEL_MISSING: Severity.ERROR,
    IncidentType.NO_PROVIDER_ANSWERED: Severity.CRITICAL,
}

Details = Mapping[str, Any]
Say = Callable[[str, Details, float | None], str]


def _subject(provider: str, details: Details) -> str:
    model = details.get("model")
    return provider if model is None else f"{model} at {provider}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _lasted(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _outage(provider: str, details: Details, seconds: float | None) -> str:
    who = _subject(provider, details)
    if seconds is None:
        return f"{who} is out: {details['reason']}"
    return f"{who} was out for {_lasted(seconds)}: {details['reason']}"


def _failover(provider: str, details: Details, seconds: float | None) -> str:
    targets = " and ".join(details["targets"])
    verb = "go" if seconds is None else "went"
    return f"calls {verb} to {targets} instead of {provider}, {details['calls']} so far: {details['reason']}"


def _isolated(provider: str, details: Details, seconds: float | None) -> str:
    verb = "is" if seconds is None else "was"
    return f"{provider} {verb} taken out by an operator: {details['reason']}"


def _recovered(provider: str, details: Details, _: float | None) -> str:
    return f"{_subject(provider, details)} answers again after {_lasted(details['outage_seconds'])}"


def _rescued(provider: str, details: Details, _: float | None) -> str:
    streams, targets = _counted(details["streams"], "stream"), " and ".join(details["targets"])
    return f"{streams} of {provider} broke off and went on at {targets}"


def _truncated(provider: str, details: Details, _: float | None) -> str:
    return f"{_counted(details['streams'], 'stream')} of {provider} broke off and could not be completed"


def _rate_limited(provider: str, details: Details, _: float | None) -> str:
    return f"{provider} wants fewer calls from us: {_counted(details['calls'], 'call')} did not get through"


def _nobody(_: str, details: Details, __: float | None) -> str:
    calls = _counted(details["calls"], "call")
    return f"{calls} failed, for no provider answered: {details['error_code']}"


def _credential(provider: str, details: Details, seconds: float | None) -> str:
    verb = "refuses" if seconds is None else "refused"
    return f"{provider} {verb} the proxy's credential"


def _quota(provider: str, details: Details, seconds: float | None) -> str:
    verb = "is" if seconds is None else "was"
    return f"the proxy's quota at {provider} {verb} used up"


def _models(provider: str, details: Details, seconds: float | None) -> str:
    verb = "does" if seconds is None else "did"
    return f"{provider} {verb} not list models that calls are sent to there: {', '.join(details['models'])}"


# Each is given the provider, the details, and the seconds it lasted (None: it goes on).
MESSAGES: Final[Mapping[IncidentType, Say]] = {
    IncidentType.OUTAGE_DETECTED: _outage,
    IncidentType.FAILOVER_TRIGGERED: _failover,
    IncidentType.PROVIDER_RECOVERED: _recovered,
    IncidentType.STREAM_RESCUED: _rescued,
    IncidentType.STREAM_TRUNCATED: _truncated,
    IncidentType.BREAKER_ISOLATED: _isolated,
    IncidentType.CREDENTIAL_REFUSED: _credential,
    IncidentType.QUOTA_EXHAUSTED: _quota,
    IncidentType.RATE_LIMITED_UPSTREAM: _rate_limited,
    IncidentType.FALLBACK_MODEL_MISSING: _models,
    IncidentType.NO_PROVIDER_ANSWERED: _nobody,
}
