"""
The shapes of what we answer, as JSON Schema 2020-12 (which is what OpenAPI 3.1 speaks).

Closed sets come from the code that defines them. Objects of ours allow no fields but these, so
that a test can hold answers to them; objects of OpenAI's allow whatever OpenAI adds.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from sentinel_proxy.admin.broadcast import EVENT_TYPES
from sentinel_proxy.model import IncidentType, Severity, Verdict
from sentinel_proxy.resilience.breaker import State

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """Point to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str = "", **more: Any) -> Schema:
    return _typed("string", description, more)


def number(description: str = "", **more: Any) -> Schema:
    return _typed("number", description, more)


def whole(description: str = "", **more: Any) -> Schema:
    return _typed("integer", description, more)


def flag(description: str = "") -> Schema:
    return _typed("boolean", description, {})


def moment(description: str = "") -> Schema:
    return text(description, format="date-time")


def choice(values: Iterable[str], description: str = "") -> Schema:
    return text(description, enum=list(values))


def members(kind: type[StrEnum], description: str = "") -> Schema:
    return choice([member.value for member in kind], description)


def array(items: Schema, description: str = "") -> Schema:
    return _typed("array", description, {"items": items})


def mapping(values: Schema, description: str = "") -> Schema:
    """An object whose keys are names that only the configuration knows."""
    return _typed("object", description, {"additionalProperties": values})


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    if "enum" in schema:
        schema = schema | {"enum": [*schema["enum"], None]}
    if "type" in schema:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def record(
    properties: Mapping[str, Schema],
    description: str = "",
    *,
    optional: Iterable[str] = (),
    more: bool = False,
) -> Schema:
    """
    An object with these fields.

    Args:
        optional: Fields that may be absent; all others are always there.
        more: Whether there may be fields that are not listed.
    """
    required = [name for name in properties if name not in set(optional)]
    rest = {} if more else {"additionalProperties": False}
    return _typed("object", description, {"properties": dict(properties), "required": required, **rest})


def _typed(type: str, description: str, more: Mapping[str, Any]) -> Schema:
    return {"type": type, **({"description": description} if description else {}), **more}


_BREAKER: Final = {
    "state": members(State),
    "since": nullable(moment("of the last transition; null: there was none")),
    "until": nullable(moment("when its rest or isolation ends; null: nothing is to end")),
    "failures": whole("failures in a row"),
    "reason": text("why it is in this state; empty: it was never in another"),
}

_PROVIDER: Final = {
    "status": choice(
        ("healthy", "degraded", "down"), "down: no calls go there; degraded: they do, but not all is well"
    ),
    "routable": flag("whether a call would be let through now"),
    "latency_ms": nullable(number("until an answer begins: of recent calls, else of the last probe")),
    "success_rate_pct": nullable(number("of the calls of the last five minutes; null: there were none")),
    "circuit_breaker": record(
        {**_BREAKER, "model": nullable(text("whose breaker it is; null: the provider's own"))},
        "the provider's own breaker or, if worse, that of a model in use",
    ),
    "models": mapping(ref("Breaker"), "the breakers of models that have something to remember"),
    "missing_models": array(text(), "models that calls would be sent to there, and that it does not list"),
    "last_probe": nullable(ref("Probe")),
    "position": whole("in which it is tried, from 1"),
    "kind": text("openai, ollama, or a plugin's own"),
    "in_flight": whole("calls that it is serving"),
}

_PROBE: Final = {
    "time": moment(),
    "ok": flag(),
    "verdict": members(Verdict),
    "latency_ms": number(),
    "what": text("what was answered, or why it was not"),
    "status": nullable(whole("HTTP status of the answer")),
}

_NAME: Final = {"provider": text("its name in the configuration")}

_ENVELOPE: Final = record(
    {
        "error": record(
            {
                "message": text(),
                "type": text(),
                "param": nullable(text("the field or parameter at fault")),
                "code": nullable(text("for programs; docs/failures.md and docs/admin.md list them")),
                "metadata": record(
                    {"attempts": array(record({}, more=True))},
                    "what was tried, where anything was",
                    more=True,
                ),
            },
            optional=["metadata"],
        )
    },
    "every error, in OpenAI's shape",
)

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": _ENVELOPE,
    "Breaker": record(_BREAKER, "one circuit breaker"),
    "Probe": record(_PROBE, "how a probe ended"),
    "ProbeOfProvider": record({**_NAME, **_PROBE}),
    "Provider": record(_PROVIDER, "everything about one provider"),
    "NamedProvider": record({**_NAME, **_PROVIDER}),
    "Order": record(
        {
            "action": choice(
                ("isolate", "reset"),
                "isolate: no calls go there for a while; reset: it is declared well, its breakers close",
            ),
            "reason": text("for those who will read of it; isolate needs one"),
            "seconds": number("how long to isolate; an hour unless set, 30 days at most", exclusiveMinimum=0),
            "author": text("who gives the order; the caller's address unless set"),
        },
        "an order to a provider's breakers",
        optional=["reason", "seconds", "author"],
    ),
    "Incident": record(
        {
            "id": text("a ULID: sorts by the time at which it began"),
            "type": members(IncidentType),
            "severity": members(Severity),
            "provider": nullable(text("null: it is about all of them")),
            "timestamp": moment("when it began"),
            "message": text("one sentence; it changes as more is known"),
            "details": record({}, "what is known, by type", more=True),
            "resolved_at": nullable(moment("null: it lasts")),
            "duration_seconds": nullable(number("null: it lasts")),
        }
    ),
    "Totals": record(
        {
            "total_requests": whole("calls that are over"),
            "total_successes": whole("of these, whole answers, whoever gave them"),
            "total_failures": whole(
                "of these, errors of ours or of every upstream, and answers that broke off"
            ),
            "total_failovers": whole("calls that another than the first of the chain began to answer"),
            "total_rescues": whole("streams that broke off and were carried on to a good end"),
            "total_hedges": whole("streams that were slow to begin, so that another provider was asked too"),
            "total_shed": whole("refused: as many calls as allowed were being served"),
            "total_rate_limited": whole("refused: their client had made too many"),
            "tokens": record(
                {"prompt": whole(), "completion": whole(), "total": whole()}, "as upstreams count"
            ),
            "avg_latency_ms": nullable(number("of the successes; null: there were none")),
            "active_provider": nullable(text("where calls would be sent first; null: nowhere")),
            "in_flight": whole("calls being served"),
            "open_streams": whole("of these, streams that have begun"),
            "event_subscribers": whole("who listens to the live feed"),
            "uptime_seconds": number("of the replica that answers"),
            "replica": text("the replica that answers, a ULID; another one after each start"),
            "replicas": array(
                record(
                    {
                        "id": text(),
                        "uptime_seconds": number(),
                        "total_requests": whole(),
                        "in_flight": whole(),
                    }
                ),
                "whose numbers these are: all that are there; the one that answers alone while it "
                "cannot hear of the others",
            ),
        },
        "summed over the replicas that are there, each since its start",
    ),
    "Frame": record(
        {
            "id": text("a ULID; what `since` takes. A heartbeat has that of the last event"),
            "event_type": choice(EVENT_TYPES),
            "timestamp": moment(),
            "payload": record({}, "by event_type; docs/admin.md describes them", more=True),
        },
        "one event of the live feed",
    ),
    "Health": record(
        {
            "status": choice(("healthy", "degraded", "down", "draining")),
            "version": text(),
            "uptime_seconds": number(),
            "providers": mapping(
                record(
                    {
                        "position": whole(),
                        "kind": text(),
                        "breaker": members(State),
                        "routable": flag(),
                        "in_flight": whole(),
                    }
                )
            ),
            "state": record(
                {
                    "kind": choice(("memory", "sqlite", "redis")),
                    "status": choice(("up", "away")),
                    "since": moment("of the last change; absent where state is in memory"),
                },
                optional=["since"],
            ),
        }
    ),
    "Model": record(
        {"id": text(), "object": choice(["model"]), "created": whole("Unix seconds"), "owned_by": text()}
    ),
    "SimpleChat": record(
        {
            "messages": array(record({}, more=True), "as for chat completions"),
            "max_tokens": whole(),
            "temperature": number(),
            "model": text("default_model unless set"),
        },
        optional=["max_tokens", "temperature", "model"],
    ),
    "SimpleAnswer": record(
        {
            "trace_id": text(),
            "provider_used": text(),
            "model": text("as its provider names it"),
            "response_text": text(),
            "latency_ms": number(),
            "status": choice(["success"]),
            "failover_occurred": flag(),
            "failover_chain": array(text(), "the providers that failed or were passed by"),
            "tokens_used": whole(),
        }
    ),
}
