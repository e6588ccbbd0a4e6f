"""
Google Gemini's own API as a provider: text chat, streamed and whole.

An example of a plugin: one file, no fork. What it says and reads is plain data in and out; time
comes from a clock that is handed in, so all of it can be tested with bytes alone. What Gemini
could do and this file does not (tools, images, JSON schemas) is refused as `UNSUPPORTED`, and
such calls go to the next provider.

Source: https://ai.google.dev/api/generate-content
"""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple
from urllib.parse import urlsplit

from sentinel_proxy.clock import Clock, SystemClock
from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Call, ReplyHead, UpstreamRequest, Usage
from sentinel_proxy.providers.base import Decoder, ModelEntry, Provider
from sentinel_proxy.providers.registry import Registry
from sentinel_proxy.wire import openai, sse
from sentinel_proxy.wire.json import dumps, loads
from sentinel_proxy.wire.retry_after import retry_after_seconds

if TYPE_CHECKING:
    from sentinel_proxy.drill.dialects import Dialect

# OpenAI's field to the key of Gemini's `generationConfig`.
SETTINGS: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "stop": "stopSequences",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
UNDERSTOOD: Final = {"model", "messages", "stream", "stream_options", *SETTINGS}
"""Anything else that a caller sets is named in `x-sentinel-lossy`."""

# What must not be dropped in silence: an answer without it would be another answer.
REFUSED: Final = ("tools", "functions", "logprobs", "response_format", "modalities", "audio")

ROLES: Final = {"user": "user", "assistant": "model"}
INSTRUCTING: Final = ("system", "developer")

WITHHELD: Final = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")
FINISHES: Final = {"STOP": "stop", "MAX_TOKENS": "length", **dict.fromkeys(WITHHELD, "content_filter")}

KINDS: Final = {
    "INVALID_ARGUMENT": FailureKind.CALLER,
    "UNAUTHENTICATED": FailureKind.CREDENTIAL,
    "PERMISSION_DENIED": FailureKind.CREDENTIAL,
    "FAILED_PRECONDITION": FailureKind.CREDENTIAL,  # a region or an account without billing
    "NOT_FOUND": FailureKind.MODEL_NOT_FOUND,
    "RESOURCE_EXHAUSTED": FailureKind.THROTTLED,
    "DEADLINE_EXCEEDED": FailureKind.TIMEOUT,
    "INTERNAL": FailureKind.OVERLOADED,
    "UNAVAILABLE": FailureKind.OVERLOADED,
}


class GeminiProvider(Provider):
    """
    Gemini, asked by `generateContent`.

    Args:
        api_key: Sent as `x-goog-api-key`.
        model: Serves whatever model a caller names.
        base_url: Another server that speaks the same API.
        clock: Dates the answers; Gemini's have no date.
    """

    kind: ClassVar[str] = "gemini"
    name = "gemini"

    def __init__(
        self,
        *,
        api_key: str,
        model: str = "gemini-2.5-flash",
        base_url: str = "https://generativelanguage.googleapis.com",
        clock: Clock | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._path = f"{urlsplit(self.base_url).path}/v1beta/models"
        self.models = {"*": model}
        self._headers = ((b"x-goog-api-key", api_key.encode()), (b"content-type", b"application/json"))
        self._clock: Clock = clock or SystemClock()

    def encode(self, call: Call) -> UpstreamRequest:
        payload = call.payload
        if refused := next((name for name in REFUSED if payload.get(name)), None):
            raise unsupported(refused)
        if (payload.get("n") or 1) != 1:
            raise unsupported("n")
        try:
            body = {**conversation(payload["messages"]), "generationConfig": settings(payload)}
        except (AttributeError, KeyError, TypeError) as error:
            message = "every message needs a role and a text"
            raise UpstreamError(FailureKind.CALLER, message, status=400, param="messages") from error
        method = "streamGenerateContent?alt=sse" if call.stream else "generateContent"
        return UpstreamRequest(
            "POST",
            f"{self._path}/{self.model_for(call.model)}:{method}",
            self._headers,
            dumps(body),
            lossy=tuple(sorted(set(payload) - UNDERSTOOD)),
        )

    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        kind = StreamDecoder if call.stream else WholeDecoder
        return kind(call, self.model_for(call.model), int(self._clock.time()))

    def failure(self, call: Call, head: ReplyHead, body: bytes) -> UpstreamError:
        try:
            error = loads(body)["error"]
            kind, message = KINDS.get(error["status"], FailureKind.PROTOCOL), str(error["message"])
        except (ValueError, KeyError, TypeError):
            kind, message = FailureKind.PROTOCOL, "Gemini answered with no readable error"
        if kind is FailureKind.CALLER and "API key" in message:
            kind = FailureKind.CREDENTIAL  # a wrong key is a 400 here
        return UpstreamError(kind, message, status=head.status, retry_after=retry_after_seconds(head.headers))

    def probe(self) -> UpstreamRequest:
        return UpstreamRequest("GET", self._path, self._headers)

    def catalogue(self, body: bytes) -> Sequence[ModelEntry]:
        try:
            names = [str(model["name"]) for model in loads(body)["models"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UpstreamError(FailureKind.PROTOCOL, "this is no list of models") from error
        return [ModelEntry(name.removeprefix("models/"), owned_by="google") for name in names]

    def drilled(self, base_url: str) -> "GeminiProvider":
        """Return the same provider for `sentinel-proxy drill`: at a simulated server, without our key."""
        return GeminiProvider(api_key="drill", model=self.models["*"], base_url=base_url)

    def dialect(self) -> "Dialect":
        """Return what such a server says."""
        return simulated()


def register(registry: Registry) -> None:
    """Put Gemini second in the chain if there is a key for it; the proxy calls this once."""
    if api_key := os.environ.get("GEMINI_API_KEY"):
        model = os.environ.get("GEMINI_MODEL", "gemini-2.5-flash")
        registry.register(GeminiProvider(api_key=api_key, model=model), position=2)


def conversation(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return OpenAI's messages as Gemini's contents; what instructs stands apart there."""
    instructions = [part for said in messages if said["role"] in INSTRUCTING for part in parts(said)]
    contents = []
    for said in messages:
        if said["role"] in INSTRUCTING:
            continue
        if said["role"] not in ROLES or said.get("tool_calls"):
            raise unsupported("messages")
        contents.append({"role": ROLES[said["role"]], "parts": parts(said)})
    return {"contents": contents, **({"systemInstruction": {"parts": instructions}} if instructions else {})}


def parts(said: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the text of one message, which is a string or a list of typed parts."""
    content = said.get("content") or ""
    if isinstance(content, str):
        return [{"text": content}]
    if any(part.get("type") != "text" for part in content):
        raise unsupported("messages")
    return [{"text": part["text"]} for part in content]


def settings(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling settings that were set, under Gemini's names."""
    found = {key: payload[name] for name, key in SETTINGS.items() if payload.get(name) is not None}
    if isinstance(stop := found.get("stopSequences"), str):
        found["stopSequences"] = [stop]
    return found


def unsupported(param: str) -> UpstreamError:
    """Right for OpenAI and not possible here: the next provider is tried."""
    return UpstreamError(
        FailureKind.UNSUPPORTED,
        f"{param!r} is more than this provider translates",
        status=400,
        code="unsupported_by_fallback",
        type="invalid_request_error",
        param=param,
    )


class Piece(NamedTuple):
    """What one `GenerateContentResponse` says."""

    text: str
    finish: str | None  # OpenAI's word for why it ended
    usage: Usage
    id: str


def piece(data: bytes) -> Piece:
    """
    Read one `GenerateContentResponse`: the whole answer, or one event of a stream.

    Raises:
        UpstreamError: It is none, or says that the prompt or the answer was blocked or broken.
    """
    try:
        payload = loads(data)
        if reason := payload.get("promptFeedback", {}).get("blockReason"):
            message = f"Gemini refused the prompt ({reason})"
            raise UpstreamError(FailureKind.CALLER, message, status=400, code="content_filter")
        candidate = payload["candidates"][0]
        said = candidate.get("content", {}).get("parts", ())
        text = "".join(part.get("text", "") for part in said if not part.get("thought"))
        counted = payload.get("usageMetadata", {})
        usage = Usage(counted.get("promptTokenCount") or 0, counted.get("candidatesTokenCount") or 0)
        return Piece(text, finish(candidate.get("finishReason")), usage, str(payload.get("responseId", "")))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UpstreamError(FailureKind.PROTOCOL, "Gemini's answer cannot be read") from error


def finish(reason: str | None) -> str | None:
    """Return OpenAI's word for Gemini's reason to end; None while there is more to come."""
    if reason is None:
        return None
    if reason not in FINISHES:
        raise UpstreamError(FailureKind.BAD_OUTPUT, f"Gemini ended the answer with {reason}")
    return FINISHES[reason]


class GeminiDecoder(Decoder):
    """What both ways to answer have in common."""

    def __init__(self, call: Call, model: str, created: int) -> None:
        self.model = model
        self._created = created
        self._counts = bool((call.payload.get("stream_options") or {}).get("include_usage"))

    @abstractmethod
    def tell(self, said: Piece) -> Iterator[bytes]:
        """Yield what *said* means for the caller."""

    def take(self, data: bytes) -> bytes:
        """Read one piece of the answer; what is wrong with it becomes `failure`."""
        output: list[bytes] = []
        try:
            output.extend(self.tell(piece(data)))
        except UpstreamError as error:
            self.failure = error
        return b"".join(output)

    def ended(self, said: Piece) -> str:
        """
        Return why the answer ended, if *said* is the good end of it.

        Raises:
            UpstreamError: It is not the end, or there is nothing in it.
        """
        if said.finish is None:
            raise UpstreamError(FailureKind.TRUNCATED, "the answer ended before it was complete")
        if said.finish == "stop" and not self.began:
            raise UpstreamError(FailureKind.EMPTY, "the answer has nothing in it")
        self.usage = said.usage
        self.began = self.finished = self.complete = True
        return said.finish


class WholeDecoder(GeminiDecoder):
    """One JSON document, which is judged when it has ended."""

    def __init__(self, call: Call, model: str, created: int) -> None:
        super().__init__(call, model, created)
        self._body: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        self._body.append(data)
        return b""

    def close(self) -> bytes:
        return self.take(b"".join(self._body))

    def tell(self, said: Piece) -> Iterator[bytes]:
        self.began, self.progress = bool(said.text), 1
        reason = self.ended(said)
        yield dumps(
            openai.completion(
                id=f"chatcmpl-{said.id}",
                created=self._created,
                model=self.model or "",
                message={"content": said.text},
                finish_reason=reason,
                usage=tokens(said.usage),
            )
        )


class StreamDecoder(GeminiDecoder):
    """Server-sent events, each a piece; the last one says why it is the last."""

    def __init__(self, call: Call, model: str, created: int) -> None:
        super().__init__(call, model, created)
        self.said: list[str] = []
        self._events = sse.EventCutter()

    def feed(self, data: bytes) -> bytes:
        output = self._take_all(self._events.feed(data))
        if self._events.oversize and self.failure is None and not self.complete:
            self.failure = UpstreamError(FailureKind.PROTOCOL, "an event has no end")
        return output

    def close(self) -> bytes:
        output = self._take_all(self._events.close())
        if not self.complete and self.failure is None:
            self.failure = UpstreamError(FailureKind.TRUNCATED, "the stream ended before it was complete")
        return output

    def _take_all(self, whole: bytes) -> bytes:
        output: list[bytes] = []
        for event in sse.frames(whole):
            if event.data is not None and not self.complete and self.failure is None:
                output.append(self.take(event.data))
        return b"".join(output)

    def tell(self, said: Piece) -> Iterator[bytes]:
        if self.opened_as is None:
            self.opened_as = (f"chatcmpl-{said.id}", self._created)
            yield self._chunk({"role": "assistant", "content": ""})
        if said.text:
            self.began = True
            self.progress += 1
            self.said.append(said.text)
            yield self._chunk({"content": said.text})
        if said.finish is not None:
            yield self._chunk({}, finish_reason=self.ended(said))
            if self._counts:
                yield self._chunk(usage=tokens(said.usage))
            yield openai.DONE

    def _chunk(self, delta: Mapping[str, Any] | None = None, **more: Any) -> bytes:
        assert self.opened_as is not None
        id, created = self.opened_as
        return openai.event(openai.chunk(id=id, created=created, model=self.model or "", delta=delta, **more))


def tokens(usage: Usage) -> dict[str, int]:
    """Return *usage* as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def simulated() -> "Dialect":
    """Describe Gemini to the failure drill: how it answers, and how it refuses."""
    from sentinel_proxy.drill.dialects import Dialect, Refusal  # only a drill needs it

    return Dialect(
        completion=lambda text, usage: dumps(said(text, "STOP", usage)),
        events=lambda tokens, usage: [
            *(server_event(said(token)) for token in tokens),
            server_event(said("", "STOP", usage)),
        ],
        opening=0,
        closing=1,
        stream_type="text/event-stream",
        refusals={
            Refusal.RATE_LIMIT: refusal(429, "RESOURCE_EXHAUSTED", "Quota per minute exceeded."),
            Refusal.BROKEN: refusal(500, "INTERNAL", "An internal error has occurred."),
            Refusal.BUSY: refusal(503, "UNAVAILABLE", "The model is overloaded."),
            Refusal.UNAUTHORIZED: refusal(401, "UNAUTHENTICATED", "The API key is not valid."),
            Refusal.UNKNOWN_MODEL: refusal(404, "NOT_FOUND", "The model is not found."),
        },
        error_event=server_event(refusal(503, "UNAVAILABLE", "The model is overloaded.")[1]),
        ping=b": ping\n\n",
        catalogue=lambda models: dumps({"models": [{"name": f"models/{model}"} for model in models]}),
    )


def said(text: str, reason: str | None = None, usage: Usage | None = None) -> dict[str, Any]:
    """Return a `GenerateContentResponse`, as a server writes it."""
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": reason, "index": 0}
    counted = {} if usage is None else {"usageMetadata": counts(usage)}
    return {"candidates": [candidate], "responseId": "simulated", **counted}


def counts(usage: Usage) -> dict[str, int]:
    """Return *usage* as Gemini writes it."""
    return {
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": usage.completion_tokens,
        "totalTokenCount": usage.total_tokens,
    }


def server_event(payload: Mapping[str, Any]) -> bytes:
    """Return *payload* as one server-sent event."""
    return b"data: " + dumps(payload) + b"\n\n"


def refusal(status: int, name: str, message: str) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error, as a server writes it."""
    return status, {"error": {"code": status, "status": name, "message": message}}
