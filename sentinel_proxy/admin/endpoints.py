"""How one endpoint is described, as OpenAPI 3.1: who may ask it, with what, and what it answers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sentinel_proxy.admin.schemas import Schema, ref, text

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
OF_CALLS: Final = (400, 401, 404, 408, 413, 429, 502, 503, 504)
OF_OPERATORS: Final = (400, 401, 403)

JSON: Final = "application/json"


def described(
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
        str(code): {"description": _ERRORS[code], "content": {JSON: {"schema": ref("Error")}}}
        for code in errors
    }
    return {
        "tags": [who],
        "summary": summary,
        **({"description": description} if description else {}),
        **({"parameters": list(parameters)} if parameters else {}),
        **({"requestBody": {"required": True, "content": {JSON: {"schema": body}}}} if body else {}),
        "responses": {str(status): good, **refusals},
        "security": _SECURITY[who],
    }


def in_path(name: str, description: str) -> Schema:
    """Describe a part of a path."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": text()}


def in_query(name: str, description: str, schema: Schema) -> Schema:
    """Describe a parameter."""
    return {"name": name, "in": "query", "description": description, "schema": schema}
