"""
What to send to a server that speaks OpenAI's API.

The caller's bytes go out as they came; only the model's name may need another, and the
headers are cleaned. This runs once for every call, so what can be known beforehand is.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol
from urllib.parse import quote, unquote, urlsplit

from sentinel_proxy import __version__
from sentinel_proxy.config import ProviderConfig
from sentinel_proxy.errors import CallerError, FailureKind, UpstreamError
from sentinel_proxy.model import PATHS, Call, Endpoint, Header, Headers, ReplyHead, UpstreamRequest, header
from sentinel_proxy.providers.base import Decoder, ModelEntry, Provider
from sentinel_proxy.providers.openai import prefill
from sentinel_proxy.providers.openai.failures import Failures
from sentinel_proxy.providers.openai.headers import forwarded
from sentinel_proxy.providers.openai.streams import ChunkDecoder, ResponseDecoder
from sentinel_proxy.providers.openai.wholes import (
    JsonDecoder,
    RefusingDecoder,
    StreamOfJsonDecoder,
    UndeclaredDecoder,
)
from sentinel_proxy.wire.json import dumps, loads

KEYS_NEEDED_AT: Final = frozenset(("api.openai.com",))
"""Hosts that answer nobody without a key; elsewhere (vLLM, llama.cpp, LM Studio) keys are optional."""

_JSON: Final = (b"content-type", b"application/json")
_PROBE_HEADERS: Final = (
    (b"accept", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"sentinel-proxy/" + __version__.encode()),
)
_BARE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Secret(Protocol):
    """A key that shows itself only when asked, such as pydantic's `SecretStr`."""

    def get_secret_value(self) -> str:
        """Return the key itself."""
        ...


class OpenAIProvider(Provider):
    """
    One server that speaks OpenAI's API.

    Args:
        base_url: With its path (`https://api.openai.com/v1`); a trailing slash means nothing.
        api_key: Ours. None: none is sent, or the caller's own.
        passes_caller_key: Whether the caller's own `Authorization` goes along where there is
            no *api_key*; and with it the headers that name its organisation and project.
        models: The client's model name to this server's; "*" matches the rest.
        timeouts: Overrides of `[timeouts]` by key, in seconds.
        context_window: Tokens, if known.
        continuation: How it can go on with a broken answer: "prefill", "instruct" or "none".
    """

    kind: ClassVar[str] = "openai"

    def __init__(
        self,
        *,
        name: str = "openai",
        base_url: str,
        api_key: Secret | None = None,
        passes_caller_key: bool = False,
        models: Mapping[str, str] = {},
        transport: str = "http1",
        timeouts: Mapping[str, float] = {},
        max_in_flight: int = 0,
        context_window: int | None = None,
        continuation: str = "instruct",
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.models = dict(models)
        self.transport = transport
        self.timeouts = dict(timeouts)
        self.max_in_flight = max_in_flight
        self.context_window = context_window
        self.continuation = continuation
        key = api_key.get_secret_value() if api_key is not None else None
        self.passes_caller_key = passes_caller_key and key is None
        parts = urlsplit(self.base_url)
        self._path = parts.path
        self._targets = {endpoint: self._path + path for endpoint, path in PATHS.items()}
        self._needs_key = parts.hostname in KEYS_NEEDED_AT
        self._prefill = prefill.BY_HOST.get(parts.hostname or "", prefill.PLAIN)
        self._authorization: tuple[Header, ...] = (
            () if key is None else ((b"authorization", b"Bearer " + key.encode()),)
        )
        self._failures = Failures(key, callers_key=self.passes_caller_key)

    @classmethod
    def from_config(cls, config: ProviderConfig, *, passes_caller_key: bool) -> "OpenAIProvider":
        """Build the provider that one `[[providers]]` table of kind "openai" describes."""
        return cls(
            name=config.name,
            base_url=config.base_url,
            api_key=config.api_key,
            passes_caller_key=passes_caller_key,
            models=config.models,
            transport=config.transport,
            timeouts=config.timeouts.model_dump(exclude_none=True),
            max_in_flight=config.max_in_flight,
            context_window=config.context_window,
            continuation=config.continuation or "instruct",
        )

    def serves(self, endpoint: Endpoint) -> bool:
        """Every endpoint: what this server lacks, it says itself."""
        return True

    def can_authorize(self, call: Call) -> bool:
        """Whether *call* would have a key where one is needed; without, it should pass this one by."""
        if not self.passes_caller_key or not self._needs_key:
            return True
        return bool(header(call.headers, b"authorization"))

    def encode(self, call: Call) -> UpstreamRequest:
        """Return the call as it came, under this server's name for its model."""
        target = self._targets[call.endpoint]
        if call.query:
            target = f"{target}?{call.query.decode('latin-1')}"
        model = self.model_for(call.model) if self.models else call.model
        body = call.body
        if model and model != call.payload.get("model"):
            body = dumps({**call.payload, "model": model})
        headers = self._headers(call.headers, call.traceparent)
        if header(headers, b"content-type") is None:
            headers.append(_JSON)
        return UpstreamRequest("POST", target, headers, body)

    def passthrough(
        self,
        method: str,
        path_below_v1: str,
        query: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes],
        body_length: int | None,
        *,
        traceparent: bytes | None = None,
    ) -> UpstreamRequest:
        """
        Return what to send for any other path of the API; the body is not looked at.

        Args:
            path_below_v1: What follows `/v1`, as it came or decoded.
            body_length: Bytes of a streamed body, if known.
            traceparent: Of our span; takes the place of the caller's.

        Raises:
            CallerError: The path climbs out of the API.
        """
        target = self._path + _below(path_below_v1)
        if query:
            target = f"{target}?{query.decode('latin-1')}"
        return UpstreamRequest(method, target, self._headers(headers, traceparent), body, body_length)

    def _headers(self, headers: Headers, traceparent: bytes | None = None) -> list[Header]:
        own = forwarded(headers, with_account=self.passes_caller_key, traceparent=traceparent)
        if not self.passes_caller_key:
            own.extend(self._authorization)
        elif (authorization := header(headers, b"authorization")) is not None:
            own.append((b"authorization", authorization))
        return own

    def prefill(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return *payload* in the vendor's own word for it; its list of models may have told who that is."""
        return self._prefill.added_to(payload)

    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        """Return the reader of an answer, by what was asked for and what it claims to be."""
        failures = self._failures
        if not call.stream or call.endpoint is Endpoint.EMBEDDINGS:
            return JsonDecoder(call, failures)
        stream = ResponseDecoder if call.endpoint is Endpoint.RESPONSES else ChunkDecoder
        content_type = head.content_type
        if content_type == "text/event-stream":
            return stream(call, failures)
        html = RefusingDecoder(
            failures.of_kind(FailureKind.PROTOCOL, "the upstream answered with a web page")
        )
        if content_type == "text/html":
            return html
        json = StreamOfJsonDecoder(call, failures)
        if content_type == "application/json":
            return json
        return UndeclaredDecoder(stream(call, failures), json, html)

    def failure(self, call: Call, head: ReplyHead, body: bytes) -> UpstreamError:
        """Name what an answer with an error status means."""
        return self._failures.of_answer(call, head, body)

    def probe(self) -> UpstreamRequest:
        """Ask for the model list: free, and refused without a valid key where one is needed."""
        return UpstreamRequest("GET", f"{self._path}/models", (*_PROBE_HEADERS, *self._authorization))

    def catalogue(self, body: bytes) -> Sequence[ModelEntry]:
        """
        Read a model list.

        Raises:
            UpstreamError: `PROTOCOL` if it is not one.
        """
        try:
            answer = loads(body)
            listed = answer if isinstance(answer, list) else answer["data"]  # Together sends a bare list
            entries = [_entry(model) for model in listed]
        except (ValueError, TypeError, KeyError, AttributeError):
            message = "the model list is not what the API promises"
            raise self._failures.of_kind(FailureKind.PROTOCOL, message) from None
        for entry in entries:
            self._prefill = prefill.BY_OWNER.get(entry.owned_by, self._prefill)
        return entries

    def settings(self) -> Mapping[str, Any]:
        """Return what operators may see; of keys only whose they are."""
        key = "own" if self._authorization else "callers" if self.passes_caller_key else "none"
        return {**super().settings(), "continuation": self.continuation, "key": key}


def _entry(model: Mapping[str, Any]) -> ModelEntry:
    created, owned_by = model.get("created"), model.get("owned_by")
    if not isinstance(name := model["id"], str):
        raise TypeError("an id is a string")
    return ModelEntry(
        name,
        created if isinstance(created, int) else 0,
        owned_by if isinstance(owned_by, str) else "",
    )


def _below(path: str) -> str:
    """
    Return *path* fit for a request line (RFC 9112 §3.2.1), with its leading slash.

    Raises:
        CallerError: It has dot segments: our key must not reach what lies beside the API.
    """
    if any(segment in (".", "..") for segment in re.split(r"[/\\]", unquote(path))):
        raise CallerError("the path has dot segments", status=404, code="unknown_url")
    escaped = quote(_BARE_PERCENT.sub("%25", path), safe="/%:@!$&'()*+,;=~")
    return escaped if escaped.startswith("/") else f"/{escaped}"
