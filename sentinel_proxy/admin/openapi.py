"""
The one description of every face of the proxy, as OpenAPI 3.1.

`GET /api/openapi.json` gives it to programs and `manual` makes the page of it that people read.
A test compares it with the routes that are served, both ways, and answers with its schemas.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sentinel_proxy.admin.broadcast import EVENT_TYPES
from sentinel_proxy.admin.schemas import (
    SCHEMAS,
    Schema,
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

Who = Literal["apps", "operators", "monitors"]

TAGS: Final[Mapping[Who, str]] = {
    "apps": "What applications call. With `[[clients]]` configured these want one of their keys.",
    "operators": "With `admin.token` set these want it as `Authorization: Bearer`; "
    "without it they answer callers on loopback only.",
    "monitors": "Open to everyone.",
}
_SECURITY: Final[Mapping[Who, list[dict[str, list[str]]]]] = {
    "apps": [{"clientKey": []}, {}],
    "operators": [{"adminToken": []}, {}],
    "monitors": [],
}
_ERRORS: Final = {
    400: "The request is wrong; the message says how it would be right.",
    401: "The key or token is missing or wrong.",
    403: "Not from there: only loopback is answered, or the origin is foreign.",
    404: "There is no such thing.",
    408: "The request's body did not arrive in time.",
    413: "The request's body is too large.",
    429: "Too many calls; `retry-after` says when to come back.",
    502: "No provider could answer.",
    503: "Not now: every provider rests, or the proxy has as much as it can do.",
    504: "Nobody answered in time.",
}
_OF_CALLS: Final = (400, 401, 404, 408, 413, 429, 502, 503, 504)
_OF_OPERATORS: Final = (400, 401, 403)

_JSON: Final = "application/json"
_OPENAIS: Final = record({}, "As OpenAI's API has it; fields that we do not know pass through.", more=True)


def _operation(
    who: Who,
    summary: str,
    *,
    description: str = "",
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    answers: Mapping[str, Schema] | None = None,
    status: int = 200,
    errors: Sequence[int] = (),
) -> dict[str, Any]:
    """
    Describe one method of one path.

    Args:
        answers: The schema of a good answer by media type.
    """
    content = {media: {"schema": schema} for media, schema in (answers or {}).items()}
    good = {"description": "Good.", **({"content": content} if content else {})}
    refusals = {
        str(code): {"description": _ERRORS[code], "content": {_JSON: {"schema": ref("Error")}}}
        for code in errors
    }
    return {
        "tags": [who],
        "summary": summary,
        **({"description": description} if description else {}),
        **({"parameters": list(parameters)} if parameters else {}),
        **({"requestBody": {"required": True, "content": {_JSON: {"schema": body}}}} if body else {}),
        "responses": {str(status): good, **refusals},
        "security": _SECURITY[who],
    }


def _in_path(name: str, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": text()}


def _in_query(name: str, description: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _call(summary: str, *, streams: bool = True) -> dict[str, Any]:
    answers = {_JSON: _OPENAIS}
    if streams:
        answers["text/event-stream"] = text("where the body says `stream: true`")
    return _operation("apps", summary, body=_OPENAIS, answers=answers, errors=_OF_CALLS)


def _streamed_through() -> dict[str, Any]:
    operation = _operation(
        "apps",
        "anything else: streamed through",
        description="Goes to the first provider of kind `openai` that admits it, bytes untouched both ways.",
        parameters=[_in_path("path", "any path, slashes included")],
        errors=_OF_CALLS,
    )
    operation["responses"] = {"default": {"description": "Whatever the provider answers."}}
    return operation


_PROVIDER: Final = _in_path("name", "a provider's name")
_SINCE: Final = _in_query("since", "the id of the last event that was seen", text())
_TYPES: Final = _in_query(
    "types", f"of these types only, commas between them: {', '.join(EVENT_TYPES)}", text()
)


def _for_apps() -> dict[str, Any]:
    models = record({"object": choice(["list"]), "data": array(ref("Model"))})
    return {
        "/v1/chat/completions": {"post": _call("failover, streaming, rescue")},
        "/v1/completions": {"post": _call("failover, streaming")},
        "/v1/embeddings": {"post": _call("failover", streams=False)},
        "/v1/responses": {"post": _call("failover, streaming")},
        "/v1/models": {
            "get": _operation(
                "apps", "what the chain offers now", answers={_JSON: models}, errors=(401, 429, 503)
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                "apps",
                "one of them",
                parameters=[_in_path("model", "its id, slashes included")],
                answers={_JSON: ref("Model")},
                errors=(401, 404, 429, 503),
            )
        },
        "/v1/{path}": {method.lower(): _streamed_through() for method in METHODS if method != "HEAD"},
        "/api/chat": {
            "post": _operation(
                "apps",
                "the simple form",
                body=ref("SimpleChat"),
                answers={_JSON: ref("SimpleAnswer")},
                errors=_OF_CALLS,
            )
        },
    }


def _for_operators() -> dict[str, Any]:
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
            "get": _operation(
                "operators",
                "how every provider is",
                answers={_JSON: mapping(ref("Provider"), "by name, in the order of the chain")},
                errors=_OF_OPERATORS,
            )
        },
        "/api/providers/{name}/probe": {
            "post": _operation(
                "operators",
                "ask a provider for its health now",
                description="A free request, with every consequence of a regular probe.",
                parameters=[_PROVIDER],
                answers={_JSON: ref("ProbeOfProvider")},
                errors=(*_OF_OPERATORS, 404),
            )
        },
        "/api/providers/{name}/breaker": {
            "post": _operation(
                "operators",
                "isolate a provider, or declare it well",
                parameters=[_PROVIDER],
                body=ref("Order"),
                answers={_JSON: ref("NamedProvider")},
                errors=(*_OF_OPERATORS, 404, 408, 413),
            )
        },
        "/api/incidents": {
            "get": _operation(
                "operators",
                "what has gone wrong lately, newest first",
                parameters=[
                    _in_query("limit", "at most so many", whole(minimum=1, maximum=1000, default=20)),
                    _in_query("type", "of this type only", members(IncidentType)),
                    _in_query("provider", "about this provider only", text()),
                    _in_query("since", "began then or later: RFC 3339, or Unix seconds", text()),
                    _in_query("before", "older than the incident of this id: the next page", text()),
                ],
                answers={_JSON: incidents},
                errors=_OF_OPERATORS,
            )
        },
        "/api/metrics": {
            "get": _operation(
                "operators", "a few numbers", answers={_JSON: ref("Totals")}, errors=_OF_OPERATORS
            )
        },
        "/api/events": {
            "get": _operation(
                "operators",
                "what the live feed said lately",
                parameters=[_SINCE, _TYPES],
                answers={_JSON: events},
                errors=_OF_OPERATORS,
            )
        },
        "/api/config": {
            "get": _operation(
                "operators",
                "the effective configuration, secrets masked",
                answers={_JSON: record({}, "as docs/configuration.md has it; null: not set", more=True)},
                errors=_OF_OPERATORS,
            )
        },
        "/api/openapi.json": {
            "get": _operation(
                "operators",
                "this description",
                answers={_JSON: record({}, "OpenAPI 3.1", more=True)},
                errors=_OF_OPERATORS,
            )
        },
        "/docs": {
            "get": _operation(
                "operators",
                "this description as a page",
                answers={"text/html": text()},
                errors=_OF_OPERATORS[1:],
            )
        },
        "/dashboard": {
            "get": _operation(
                "operators",
                "the proxy, live, as a page",
                description="Served without the token, for it holds no data; it asks its reader for one.",
                answers={"text/html": text()},
                errors=(403,),
            )
        },
        "/dashboard/{file}": {
            "get": _operation(
                "operators",
                "a part of that page: a script, its style, its icon",
                parameters=[_in_path("file", "as the page names it")],
                answers={media: text() for media in ("text/css", "text/javascript", "image/svg+xml")},
                errors=(403, 404),
            )
        },
        "/ws/system-events": {"get": _websocket()},
    }


def _websocket() -> dict[str, Any]:
    operation = _operation(
        "operators",
        "the live feed, over a WebSocket",
        description="A handshake; then one JSON text frame for each event, shaped as `Frame`. "
        "Whatever a client sends closes it with 1003; who does not read is closed with 1013, and all are "
        "with 1012 when the proxy goes down.",
        parameters=[
            _SINCE,
            _TYPES,
            _in_query("token", "the admin token, for browsers; or the subprotocol `bearer.TOKEN`", text()),
        ],
        status=101,
        errors=(*_OF_OPERATORS, 503),
    )
    operation["x-websocket-frame"] = ref("Frame")
    return operation


def _for_monitors() -> dict[str, Any]:
    def probe(summary: str, says: str, errors: Mapping[str, str]) -> dict[str, Any]:
        operation = _operation("monitors", summary, answers={_JSON: record({"status": choice([says])})})
        for status, other in errors.items():
            schema = record({"status": choice([other])})
            operation["responses"][status] = {
                "description": "Not now.",
                "content": {_JSON: {"schema": schema}},
            }
        return operation

    return {
        "/health": {
            "get": _operation("monitors", "how every provider is", answers={_JSON: ref("Health")}),
        },
        "/livez": {"get": probe("200 while the process lives", "alive", {})},
        "/readyz": {"get": probe("200 while it should get traffic", "ready", {"503": "draining"})},
        "/metrics": {
            "get": _operation(
                "monitors",
                "every series, for Prometheus",
                answers={"text/plain": text(), "application/openmetrics-text": text()},
            )
        },
    }


def description(version: str) -> dict[str, Any]:
    """Return the OpenAPI document. *version* is the proxy's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sentinel Proxy",
            "version": version,
            "description": "An OpenAI-compatible reverse proxy that keeps applications alive "
            "through LLM outages.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": words} for name, words in TAGS.items()],
        "paths": _for_apps() | _for_operators() | _for_monitors(),
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "clientKey": {"type": "http", "scheme": "bearer", "description": "a key of `[[clients]]`"},
                "adminToken": {"type": "http", "scheme": "bearer", "description": "`admin.token`"},
            },
        },
    }
