"""
What an OpenAI-compatible server means by an error.

The same words come in two ways, as an answer with an error status and as an event in the
middle of a stream, and are read by the same tables. They are asked in the order in which they
can be trusted: the error's code, its type, its text where servers say no more, the HTTP status,
and the shape of the body. A status alone does not tell "wait" from "your money is spent".

Sources: OpenAI's error codes guide; the error objects of Azure OpenAI, vLLM, llama.cpp,
OpenRouter, DeepSeek and Anthropic's compatible endpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Call, ReplyHead, header
from sentinel_proxy.providers.masking import without_keys
from sentinel_proxy.wire.json import loads
from sentinel_proxy.wire.retry_after import retry_after_seconds

MAX_MESSAGE_CHARS: Final = 500
"""OpenAI's longest messages have some 300 characters; more is a stack trace or an echo."""

_Kind = FailureKind

# Codes and types that mean one thing, whatever the status.
MARKS: Final[dict[str, FailureKind]] = {
    # longer than the model's window
    "context_length_exceeded": _Kind.CONTEXT_OVERFLOW,
    "exceed_context_size_error": _Kind.CONTEXT_OVERFLOW,  # llama.cpp
    # refused for what it says: asking others is not ours to decide
    "content_filter": _Kind.CALLER,
    "content_policy_violation": _Kind.CALLER,
    "ResponsibleAIPolicyViolation": _Kind.CALLER,
    "moderation_blocked": _Kind.CALLER,
    "invalid_prompt": _Kind.CALLER,
    # no such model here
    "model_not_found": _Kind.MODEL_NOT_FOUND,
    "DeploymentNotFound": _Kind.MODEL_NOT_FOUND,  # Azure
    "unknown_model": _Kind.MODEL_NOT_FOUND,
    # the key or the account behind it
    "invalid_api_key": _Kind.CREDENTIAL,
    "authentication_error": _Kind.CREDENTIAL,
    "account_deactivated": _Kind.CREDENTIAL,
    "unsupported_country_region_territory": _Kind.CREDENTIAL,
    # money
    "insufficient_quota": _Kind.QUOTA,
    "credit_balance_exhausted": _Kind.QUOTA,
    "organization_spend_limit_exceeded": _Kind.QUOTA,
    "project_spend_limit_exceeded": _Kind.QUOTA,
    "organization_usage_limit_exceeded": _Kind.QUOTA,
    "enforced_spend_limit_reached": _Kind.QUOTA,  # Anthropic
    # a limit on our rate
    "rate_limit_exceeded": _Kind.THROTTLED,
    "rate_limit_error": _Kind.THROTTLED,
    "slow_down": _Kind.THROTTLED,
    # no capacity
    "server_is_overloaded": _Kind.OVERLOADED,
    "overloaded_error": _Kind.OVERLOADED,
    "unavailable_error": _Kind.OVERLOADED,  # llama.cpp while it loads
}
_MONEY_PREFIX: Final = "billing_"

# Types that say something only where no status does: inside a stream.
IN_BAND_TYPES: Final[dict[str, FailureKind]] = {
    "invalid_request_error": _Kind.CALLER,
    "BadRequestError": _Kind.CALLER,  # vLLM
    "permission_error": _Kind.CREDENTIAL,
    "timeout_error": _Kind.TIMEOUT,
}

# Where servers have no code for it: statuses (None: inside a stream), pattern of the message, kind.
TEXTS: Final = (
    (
        {None, 400, 413, 422, 500},
        re.compile(
            r"maximum context length|context (length|size|window)\W.{0,80}exceed"
            r"|exceed\w*\W.{0,80}context (length|size|window)"
            r"|context length is only|prompt is too long",
            re.IGNORECASE | re.DOTALL,
        ),
        _Kind.CONTEXT_OVERFLOW,
    ),
    (
        {None, 400, 403},
        re.compile(r"spend(ing)? limit|credit balance is too low", re.IGNORECASE),
        _Kind.QUOTA,
    ),
    (
        {None, 404},
        re.compile(r"\bmodel\b.{0,200}(does not exist|not found)", re.IGNORECASE | re.DOTALL),
        _Kind.MODEL_NOT_FOUND,
    ),
    ({400}, re.compile(r"model not exist", re.IGNORECASE), _Kind.MODEL_NOT_FOUND),  # DeepSeek
    ({404}, re.compile(r"^(File )?Not Found$"), _Kind.UNSUPPORTED),  # FastAPI, llama.cpp: no such route
)

STATUSES: Final[dict[int, FailureKind]] = {
    401: _Kind.CREDENTIAL,
    402: _Kind.QUOTA,
    403: _Kind.CREDENTIAL,
    405: _Kind.UNSUPPORTED,
    408: _Kind.TIMEOUT,
    409: _Kind.CONFLICT,
    425: _Kind.OVERLOADED,
    429: _Kind.THROTTLED,
    499: _Kind.PROTOCOL,  # "cancelled by the client", which we are and did not
    501: _Kind.UNSUPPORTED,
    504: _Kind.TIMEOUT,
    524: _Kind.TIMEOUT,  # a CDN gave up; its origin may still be writing
    **dict.fromkeys((520, 521, 522, 523, 525, 526, 527, 530), _Kind.GATEWAY),
}
# Any other status, by its hundreds.
CLASSES: Final[dict[int, FailureKind]] = {3: _Kind.PROTOCOL, 4: _Kind.CALLER, 5: _Kind.OVERLOADED}

# Without a JSON body these come from something in front of the API: a firewall, a restarting host.
_ONLY_WITH_JSON: Final = frozenset((403, 404))
# A gateway may say these about a request, in HTML: they are true all the same.
_TRUE_IN_HTML: Final = frozenset((413, 414, 431))

_OUR_CODES: Final[dict[FailureKind, str]] = {
    _Kind.CONTEXT_OVERFLOW: "context_length_exceeded",
    _Kind.MODEL_NOT_FOUND: "model_not_found",
    _Kind.QUOTA: "insufficient_quota",
    _Kind.THROTTLED: "rate_limit_exceeded",
    _Kind.PROTOCOL: "upstream_protocol_error",
    _Kind.EMPTY: "upstream_empty",
    _Kind.TRUNCATED: "upstream_incomplete",
}
_MAY_GO_BACK: Final = frozenset(
    (_Kind.CALLER, _Kind.CONFLICT, _Kind.CONTEXT_OVERFLOW, _Kind.MODEL_NOT_FOUND, _Kind.UNSUPPORTED)
)

_MARKUP: Final = re.compile(r"<\s*(!doctype|html|head|body|script)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Details:
    """What an error object says, whoever wrote it."""

    message: str = ""
    code: str | None = None
    type: str | None = None
    param: str | None = None
    inner_code: str | None = None  # Azure
    status: int | None = None  # a code that is a number
    flagged: bool = False  # OpenRouter: the prompt was refused by a moderation
    shaped: bool = False  # it is OpenAI's envelope, so callers can read it as it is


def details(payload: Any) -> Details:
    """Read an error out of the parsed *payload* of any server; empty where there is none."""
    if isinstance(payload, list):  # Google wraps the envelope in a list
        payload = payload[0] if payload else None
    if not isinstance(payload, Mapping):
        return Details()
    error = payload.get("error")
    if isinstance(error, Mapping):
        return _of_object(error, shaped=isinstance(error.get("message"), str))
    if isinstance(error, str):
        return Details(error)
    if "detail" in payload:
        return Details(_of_fastapi(payload["detail"]))
    return _of_object(payload)


def _of_object(error: Mapping[str, Any], *, shaped: bool = False) -> Details:
    code, inner, metadata = error.get("code"), error.get("innererror"), error.get("metadata")
    number = str(code) if isinstance(code, int | str) else ""
    return Details(
        message=_text(error.get("message")) or "",
        code=_text(code),
        type=None if error.get("type") == "error" else _text(error.get("type")),
        param=_text(error.get("param")),
        inner_code=_text(inner.get("code")) if isinstance(inner, Mapping) else None,
        status=int(number) if re.fullmatch("[345][0-9]{2}", number) else None,
        flagged=isinstance(metadata, Mapping) and "flagged_input" in metadata,
        shaped=shaped,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _of_fastapi(detail: Any) -> str:
    """Say where FastAPI found what; never the `input` it quotes, which is the caller's prompt."""
    if not isinstance(detail, list):
        return detail if isinstance(detail, str) else ""
    found = [entry for entry in detail if isinstance(entry, Mapping)]
    return "; ".join(f"{_place(entry.get('loc'))}: {_text(entry.get('msg')) or 'refused'}" for entry in found)


def _place(loc: Any) -> str:
    return ".".join(str(part) for part in loc) if isinstance(loc, list) else "request"


class Failures:
    """
    Names the failures of one provider.

    Args:
        api_key: The provider's own key, so that no message ever shows it.
        callers_key: Whether calls go out with their caller's key: then a refused one is the
            caller's business and no reason to rest.
    """

    def __init__(self, api_key: str | None = None, *, callers_key: bool = False) -> None:
        self._api_key = api_key or None
        self._callers_key = callers_key

    def of_answer(self, call: Call, head: ReplyHead, body: bytes) -> UpstreamError:
        """
        Name what an answer with an error status means.

        OpenAI's envelope goes back to the caller as it came where the fault is the caller's.

        Args:
            body: What came of it; cut short it is no JSON.
        """
        payload = _parsed(body)
        found, status = details(payload), head.status
        html = payload is None and _is_html(head, body)
        kind = self._kind(found, status)
        if (payload is None and status in _ONLY_WITH_JSON) or (
            html and kind is _Kind.CALLER and status not in _TRUE_IN_HTML
        ):
            kind = _Kind.PROTOCOL
        return UpstreamError(
            kind,
            self.message(call, found.message) or _says_nothing(status, html=html),
            status=status,
            code=_code(kind, found),
            type=found.type,
            param=found.param,
            retry_after=retry_after_seconds(head.headers),
            body=body if self._may_go_back(kind, found, body) else None,
            headers=head.headers,
            personal=self._is_personal(kind),
        )

    def in_band(self, call: Call, payload: Any) -> UpstreamError:
        """Name what an error inside a 2xx answer means; *payload* is the parsed JSON around it."""
        found = details(payload)
        kind = self._kind(found, None)
        message = self.message(call, found.message) or "the upstream reported an error inside its answer"
        status = (found.status or 400) if kind in _MAY_GO_BACK else None
        return UpstreamError(
            kind,
            message,
            status=status,
            code=_code(kind, found),
            type=found.type,
            param=found.param,
            personal=self._is_personal(kind),
        )

    def of_kind(self, kind: FailureKind, message: str) -> UpstreamError:
        """Name a failure that we found ourselves; *message* is ours and quotes nothing."""
        return UpstreamError(kind, message, code=_OUR_CODES.get(kind))

    def message(self, call: Call, text: str) -> str:
        """Return an upstream's words without keys or markup, and not too many of them."""
        if _MARKUP.search(text):
            return ""
        text = without_keys(text, self._api_key, _callers_key(call))
        return text.strip()[:MAX_MESSAGE_CHARS]

    def _kind(self, found: Details, status: int | None) -> FailureKind:
        kind = _named(found, status)
        return _Kind.CALLER if kind is _Kind.CREDENTIAL and self._callers_key else kind

    def _is_personal(self, kind: FailureKind) -> bool:
        """Whether *kind* is about an account, and the account is the caller's."""
        return self._callers_key and kind in (_Kind.QUOTA, _Kind.THROTTLED)

    def _may_go_back(self, kind: FailureKind, found: Details, body: bytes) -> bool:
        if kind is _Kind.CONTEXT_OVERFLOW and found.code != _OUR_CODES[kind]:
            return False  # callers look for the code, so they get our envelope
        leaks = self._api_key is not None and self._api_key.encode() in body
        return kind in _MAY_GO_BACK and found.shaped and not leaks


def _named(found: Details, status: int | None) -> FailureKind:
    """Ask the tables, the most trusted first."""
    if found.flagged:
        return _Kind.CALLER
    for mark in (found.code, found.inner_code, found.type):
        if mark is not None and (kind := _marked(mark)) is not None:
            return kind
    for statuses, pattern, kind in TEXTS:
        if status in statuses and pattern.search(found.message):
            return kind
    if status is None and found.type in IN_BAND_TYPES:
        return IN_BAND_TYPES[found.type]
    number = status or found.status
    if number is None:
        return _Kind.OVERLOADED
    return STATUSES.get(number) or CLASSES.get(number // 100, _Kind.PROTOCOL)


def _marked(mark: str) -> FailureKind | None:
    return _Kind.QUOTA if mark.startswith(_MONEY_PREFIX) else MARKS.get(mark)


def _code(kind: FailureKind, found: Details) -> str | None:
    """Return the upstream's code, or ours where it has none; overflows have one that callers know."""
    return _OUR_CODES[kind] if kind is _Kind.CONTEXT_OVERFLOW else found.code or _OUR_CODES.get(kind)


def _parsed(body: bytes) -> Any:
    try:
        return loads(body)
    except ValueError:
        return None


def _is_html(head: ReplyHead, body: bytes) -> bool:
    return head.content_type in ("text/html", "application/xhtml+xml") or body.lstrip()[:1] == b"<"


def _says_nothing(status: int, *, html: bool) -> str:
    return f"the upstream answered {status} with {'a web page' if html else 'no readable error'}"


def _callers_key(call: Call) -> str:
    value = header(call.headers, b"authorization") or b""
    return value.removeprefix(b"Bearer ").decode("latin-1").strip()
