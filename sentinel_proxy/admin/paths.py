"""Every path of the proxy, described: for apps, for operators, for monitors."""

from collections.abc import Mapping
from typing import Any, Final

from sentinel_proxy.admin.broadcast import EVENT_TYPES
from sentinel_proxy.admin.endpoints import JSON, OF_CALLS, OF_OPERATORS, described, in_path, in_query
from sentinel_proxy.admin.schemas import (
    array,
    choice,
    flag,
    mapping,
    members,
    record,
    ref,
    text,
    whole,
)
from sentinel_proxy.api.passthrough import METHODS
from sentinel_proxy.model import IncidentType

_OPENAIS: Final = record({}, "As OpenAI's API has it; fields that we do not know pass through.", more=True)
_PROVIDER: Final = in_path("name", "a provider's name")
_SINCE: Final = in_query("since", "the id of the last event that was seen", text())
_TYPES: Final = in_query(
    "types", f"of these types only, commas between them: {', '.join(EVENT_TYPES)}", text()
)


def _call(summary: str, *, streams: bool = True) -> dict[str, Any]:
    answers = {JSON: _OPENAIS}
    if streams:
        answers["text/event-stream"] = text("where the body says `stream: true`")
    return described("apps", summary, body=_OPENAIS, answers=answers, errors=OF_CALLS)


def _streamed_through() -> dict[str, Any]:
    operation = described(
        "apps",
        "anything else: streamed through",
        description="Goes to the first provider of kind `openai` that admits it, bytes untouched both ways.",
        parameters=[in_path("path", "any path, slashes included")],
        errors=OF_CALLS,
    )
    operation["responses"] = {"default": {"description": "Whatever the provider answers."}}
    return operation


def for_apps() -> dict[str, Any]:
    """Describe what applications call."""
    models = record({"object": choice(["list"]), "data": array(ref("Model"))})
    return {
        "/v1/chat/completions": {"post": _call("failover, streaming, rescue")},
        "/v1/completions": {"post": _call("failover, streaming")},
        "/v1/embeddings": {"post": _call("failover", streams=False)},
        "/v1/responses": {"post": _call("failover, streaming")},
        "/v1/models": {
            "get": described(
                "apps", "what the chain offers now", answers={JSON: models}, errors=(401, 429, 503)
            )
        },
        "/v1/models/{model}": {
            "get": described(
                "apps",
                "one of them",
                parameters=[in_path("model", "its id, slashes included")],
                answers={JSON: ref("Model")},
                errors=(401, 404, 429, 503),
            )
        },
        "/v1/{path}": {method.lower(): _streamed_through() for method in METHODS if method != "HEAD"},
        "/api/chat": {
            "post": described(
                "apps",
                "the simple form",
                body=ref("SimpleChat"),
                answers={JSON: ref("SimpleAnswer")},
                errors=OF_CALLS,
            )
        },
    }


def for_operators() -> dict[str, Any]:
    """Describe what operators ask and order."""
    incidents = record({"incidents": array(ref("Incident")), "total": whole("that match in all")})
    events = record(
        {
            "events": array(ref("Frame"), "oldest first"),
            "last_id": text("what to give as `since` next time"),
            "missed": flag("some of the time since `since` is forgotten"),
        }
    )
    return {
        "/api/providers/status": {
            "get": described(
                "operators",
                "how every provider is",
                answers={JSON: mapping(ref("Provider"), "by name, in the order of the chain")},
                errors=OF_OPERATORS,
            )
        },
        "/api/providers/{name}/probe": {
            "post": described(
                "operators",
                "ask a provider for its health now",
                description="A free request, with every consequence of a regular probe.",
                parameters=[_PROVIDER],
                answers={JSON: ref("ProbeOfProvider")},
                errors=(*OF_OPERATORS, 404),
            )
        },
        "/api/providers/{name}/breaker": {
            "post": described(
                "operators",
                "isolate a provider, or declare it well",
                parameters=[_PROVIDER],
                body=ref("Order"),
                answers={JSON: ref("NamedProvider")},
                errors=(*OF_OPERATORS, 404, 408, 413),
            )
        },
        "/api/incidents": {
            "get": described(
                "operators",
                "what has gone wrong lately, newest first",
                parameters=[
                    in_query("limit", "at most so many", whole(minimum=1, maximum=1000, default=20)),
                    in_query("type", "of this type only", members(IncidentType)),
                    in_query("provider", "about this provider only", text()),
                    in_query("since", "began then or later: RFC 3339, or Unix seconds", text()),
                    in_query("before", "older than the incident of this id: the next page", text()),
                ],
                answers={JSON: incidents},
                errors=OF_OPERATORS,
            )
        },
        "/api/metrics": {
            "get": described("operators", "a few numbers", answers={JSON: ref("Totals")}, errors=OF_OPERATORS)
        },
        "/api/events": {
            "get": described(
                "operators",
                "what the live feed said lately",
                parameters=[_SINCE, _TYPES],
                answers={JSON: events},
                errors=OF_OPERATORS,
            )
        },
        "/api/config": {
            "get": described(
                "operators",
                "the effective configuration, secrets masked",
                answers={JSON: record({}, "as docs/configuration.md has it; null: not set", more=True)},
                errors=OF_OPERATORS,
            )
        },
        "/api/openapi.json": {
            "get": described(
                "operators",
                "this description",
                answers={JSON: record({}, "OpenAPI 3.1", more=True)},
                errors=OF_OPERATORS,
            )
        },
        "/docs": {
            "get": described(
                "operators",
                "this description as a page",
                answers={"text/html": text()},
                errors=OF_OPERATORS[1:],
            )
        },
        "/dashboard": {
            "get": described(
                "operators",
                "the proxy, live, as a page",
                description="Served without the token, for it holds no data; it asks its reader for one.",
                answers={"text/html": text()},
                errors=(403,),
            )
        },
        "/dashboard/{file}": {
            "get": described(
                "operators",
                "a part of that page: a script, its style, its icon",
                parameters=[in_path("file", "as the page names it")],
                answers={media: text() for media in ("text/css", "text/javascript", "image/svg+xml")},
                errors=(403, 404),
            )
        },
        "/ws/system-events": {"get": _websocket()},
    }


def _websocket() -> dict[str, Any]:
    operation = described(
        "operators",
        "the live feed, over a WebSocket",
        description="A handshake; then one JSON text frame for each event, shaped as `Frame`. "
        "Whatever a client sends closes it with 1003; who does not read is closed with 1013, and all are "
        "with 1012 when the proxy goes down.",
        parameters=[
            _SINCE,
            _TYPES,
            in_query("token", "the admin token, for browsers; or the subprotocol `bearer.TOKEN`", text()),
        ],
        status=101,
        errors=(*OF_OPERATORS, 503),
    )
    operation["x-websocket-frame"] = ref("Frame")
    return operation


def for_monitors() -> dict[str, Any]:
    """Describe what is open to everyone."""

    def probe(summary: str, says: str, errors: Mapping[str, str]) -> dict[str, Any]:
        operation = described("monitors", summary, answers={JSON: record({"status": choice([says])})})
        for status, other in errors.items():
            schema = record({"status": choice([other])})
            operation["responses"][status] = {
                "description": "Not now.",
                "content": {JSON: {"schema": schema}},
            }
        return operation

    return {
        "/health": {
            "get": described("monitors", "how every provider is", answers={JSON: ref("Health")}),
        },
        "/livez": {"get": probe("200 while the process lives", "alive", {})},
        "/readyz": {"get": probe("200 while it should get traffic", "ready", {"503": "draining"})},
        "/metrics": {
            "get": described(
                "monitors",
                "every series, for Prometheus",
                answers={"text/plain": text(), "application/openmetrics-text": text()},
            )
        },
    }
