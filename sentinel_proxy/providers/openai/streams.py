"""
Judging a stream while it passes through.

Every event is looked into and, if it is good, leaves as the bytes it came as; what it says is
only counted. This is the hot path of the product: a read of plain events costs one cut, one
JSON parse and a few look-ups an event, and returns the very bytes it was given; of events that
differ from an earlier one in their text alone, only the text is parsed.

An answer is complete when every choice has its finish reason or `[DONE]` came, and no error
was seen (docs/decisions/0004). What is malformed is a break like any other: skipping it could
lose text, or half a tool call.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Call, Usage
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.providers.openai.failures import Failures
from sentinel_proxy.wire import sse
from sentinel_proxy.wire.json import loads
from sentinel_proxy.wire.openai import DONE
from sentinel_proxy.wire.template import Template, template

GOOD_FINISHES: Final = frozenset(
    (
        *("stop", "length", "tool_calls", "function_call", "content_filter"),
        # the same things in the words of Together, TGI and Mistral
        *("eos", "eos_token", "stop_sequence", "model_length"),
    )
)
"""A closed list: any other reason ("error", "abort", "insufficient_system_resource") is a failure."""

SILENT_FINISHES: Final = frozenset(("length", "model_length", "content_filter"))
"""With these an answer may say nothing: the tokens went into hidden reasoning, or were filtered."""

SAYINGS: Final = (
    "content",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "refusal",
    "tool_calls",
    "function_call",
    "audio",
    "images",
)
"""The keys of a delta, or of a message, that mean something to the caller; `role` alone does not."""

_NOT_TEXT: Final = tuple(key for key in SAYINGS if key != "content" and not key.startswith("reasoning"))

_TEXTS: Final = ("content", "reasoning_content", "reasoning")

MAX_PIECES: Final = 32
"""So many pieces of text are joined into one: a short string costs 50 bytes more than what is in it."""

_NONE: Final[frozenset[Any]] = frozenset()
_FIRST: Final = frozenset((0,))

TEMPLATE_EVERY: Final = 16
"""
Between two attempts at a template, so many events that say something.

A stream whose events differ in more than their text pays a part of a parse an event for attempts
that are of no use; one with the time in its events needs a new template each second.
"""

_PINGS: Final = frozenset((b"ping", b"heartbeat", b"keepalive", b"keep-alive"))


class EventDecoder(Decoder):
    """
    What every stream has in common: whole events in, good events out, one verdict at the end.

    A subclass judges one event at a time (`_judge`) and says what the end of the body means
    (`_ended`).
    """

    _keeps_names = False

    def __init__(self, call: Call, failures: Failures) -> None:
        self._call = call
        self._failures = failures
        self._events = sse.EventCutter()
        self._heard = False
        self.complete = False
        self.failure = None

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return the good events that are whole now."""
        if self.complete or self.failure is not None:
            return b""
        payloads = self._events.payloads(data)
        if payloads is None:
            return self._take(self._events.feed(data))
        judge = self._judge
        for payload in payloads:
            if not judge(payload):
                # Its like cannot have come before: it would have been the end then.
                return self._first(payloads.index(payload), data)
        return data

    def close(self) -> bytes:
        """Take the end of the body for what it is."""
        if self.complete or self.failure is not None:
            return b""
        rest = self._take(self._events.close())
        if not self.complete and self.failure is None:
            rest += self._ended()
        return rest

    @abstractmethod
    def _judge(self, data: bytes, name: bytes = b"") -> bool:
        """
        Look into one event; return whether it may leave as it is.

        Where it may not, the reading is over: `complete` or `failure` has been set.
        """

    @abstractmethod
    def _ended(self) -> bytes:
        """Set `complete` or `failure`, since the body has ended; return what is still to be sent."""

    def _end_mark(self) -> bytes:
        """Return what ends a good stream."""
        return DONE

    def _first(self, count: int, whole: bytes) -> bytes:
        """Return the first *count* of plain events, and the end mark if the stream ended well."""
        good = [frame.raw for frame, _ in zip(sse.frames(whole), range(count), strict=False)]
        return b"".join(good) + (self._end_mark() if self.complete else b"")

    def _take(self, whole: bytes) -> bytes:
        """Judge events of any form."""
        good: list[bytes] = []
        for frame in self._events.frames(whole):
            if self._signals_error(frame):
                break
            if frame.data is not None and frame.name not in _PINGS:
                if not self._judge(frame.data, frame.name):
                    good.append(self._end_mark() if self.complete else b"")
                    break
                good.append(self._as_sent(frame, frame.data))
            elif _is_comment(frame):
                good.append(frame.raw)
            # Any other block without data is left out: some SDKs would take it for an event.
        if self._events.oversize and self.failure is None and not self.complete:
            self._fail(FailureKind.PROTOCOL, "an event of the stream is larger than any honest one")
        return b"".join(good)

    def _as_sent(self, frame: sse.Frame, data: bytes) -> bytes:
        """Return an event as it came, or written anew without the fields that SDKs stumble over."""
        name = frame.name if self._keeps_names else b""
        if frame.name == name and not _has_odd_fields(frame):
            return frame.raw
        return sse.event(data, name)

    def _signals_error(self, frame: sse.Frame) -> bool:
        """Whether an event says by its form that it is an error; then it has been noted."""
        text = next((value for name, value in frame.others if name == b"error"), None)  # old llama.cpp
        if text is None and frame.name == b"error":
            text = frame.data or b""
        if text is None:
            return False
        payload = _parsed(text)
        wrapped = isinstance(payload, Mapping) and payload.get("error")
        self._fail_with(self._failures.in_band(self._call, payload if wrapped else {"error": payload}))
        return True

    def _malformed(self) -> bool:
        return self._fail(FailureKind.PROTOCOL, "an event of the stream is not what the API promises")

    def _fail(self, kind: FailureKind, message: str) -> bool:
        return self._fail_with(self._failures.of_kind(kind, message))

    def _fail_with(self, failure: UpstreamError) -> bool:
        self.failure = failure
        return False


class ChunkDecoder(EventDecoder):
    """Streams of chat completions and of legacy completions."""

    def __init__(self, call: Call, failures: Failures) -> None:
        super().__init__(call, failures)
        expected = call.payload.get("n")
        self._expected = expected if isinstance(expected, int) and expected > 0 else 1
        self._silent = silent_finishes(call)
        self.said: list[str] = []
        self._joined = 0  # so many at the beginning of `said` are joined ones
        self._template: Template | None = None  # of events that say text and do nothing else
        self._template_speaks = False  # visibly: its text is content
        self._template_due = 1  # at so much progress
        self._seen = _NONE  # the indices of choices: small sets, and nearly always these two
        self._finished = _NONE

    def feed(self, data: bytes) -> bytes:
        known = self._template
        if known is not None and len(data) <= self._events.passes_bytes:
            texts = known.strings(data)
            if texts is not None:
                self.progress += len(texts)
                if self._template_speaks:
                    self._say(texts)
                return data
        output = super().feed(data)
        if self.complete or self.failure is not None:
            self._template = None
        elif output is data and self.progress >= self._template_due:
            self._template_due = self.progress + TEMPLATE_EVERY
            self._template, self._template_speaks = template_of(data)
        return output

    def _judge(self, data: bytes, name: bytes = b"") -> bool:
        if data.startswith(b"[DONE]"):  # known, before two parsers are asked what it is
            return self._not_json(data)
        try:
            event = loads(data)
        except ValueError:
            return self._not_json(data)
        self._heard = True
        try:
            if event.get("error"):
                return self._fail_with(self._failures.in_band(self._call, event))
            choices = event.get("choices")
            if choices is None and event.get("object") == "error":  # old vLLM
                return self._fail_with(self._failures.in_band(self._call, event))
            for choice in choices or ():
                delta = choice.get("delta")
                if delta and (delta.get("content") or says(delta)):
                    self._keep(delta, choice)
                    self.progress += 1
                    self.began = True
                elif choice.get("text"):
                    self.progress += 1
                    self.began = True
                index = choice.get("index", 0)
                if index not in self._seen:
                    self._seen = _with(self._seen, index)
                    self.finished = False
                if (reason := choice.get("finish_reason")) and not self._finish(index, reason, choice):
                    return False
            if usage := event.get("usage"):
                self.usage = usage_of(usage)
            if self.model is None:
                self.model = text_of(event.get("model"))
            if self.opened_as is None and (id := event.get("id")):
                self.opened_as = (id, event.get("created") or 0)
        except (AttributeError, TypeError):
            return self._malformed()
        return True

    def _keep(self, delta: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        """Keep the text that was said, and note whether anything but text was: a rescue will ask."""
        content = delta.get("content")
        if isinstance(content, str):
            self._say((content,))
        elif content:  # parts, as Mistral sends them
            self.plain = False
        if self.plain and (choice.get("index") or choice.get("logprobs") or not _is_text(delta)):
            self.plain = False

    def _say(self, texts: Iterable[str]) -> None:
        said = self.said
        said += texts
        if len(said) >= self._joined + MAX_PIECES:  # joined once, so that long answers cost no more
            said[self._joined :] = ["".join(said[self._joined :])]
            self._joined += 1

    def _finish(self, index: Any, reason: Any, choice: Mapping[str, Any]) -> bool:
        """Note that a choice has ended; return whether it ended well."""
        if reason not in GOOD_FINISHES:
            error = choice.get("error")  # OpenRouter says here what happened
            return self._fail_with(bad_finish(self._call, self._failures, error))
        if reason in self._silent:
            self.began = True
        self.progress += 1
        self._finished = _with(self._finished, index)
        self.finished = len(self._finished) >= self._expected and self._finished >= self._seen
        return True

    def _not_json(self, data: bytes) -> bool:
        if not data.strip().startswith(b"[DONE]"):
            return self._malformed()
        self._settle()
        return False

    def _settle(self) -> None:
        """All was said: an answer, if anything was."""
        if self.began:
            self.finished = self.complete = True
        else:
            self._fail(FailureKind.EMPTY, "the answer has nothing in it")

    def _ended(self) -> bytes:
        if self.finished:
            self._settle()
        elif self._heard:
            self._fail(FailureKind.TRUNCATED, "the stream ended before the answer was complete")
        else:
            self._fail(FailureKind.EMPTY, "the stream ended without a single event")
        return self._end_mark() if self.complete else b""


class ResponseDecoder(EventDecoder):
    """
    Streams of the Responses API: named events, ended by one that holds the whole response.

    A response that failed before it said anything is a failure like any other; later it is the
    caller's to read, for the event that says so is part of the API.
    """

    _keeps_names = True
    _last = b""

    def _judge(self, data: bytes, name: bytes = b"") -> bool:
        try:
            event = loads(data)
        except ValueError:
            return self._not_json(data)
        self._heard = True
        try:
            kind = event.get("type") or name.decode("latin-1")
            if kind == "error" or (event.get("error") and not kind.startswith("response.")):
                return self._fail_with(self._failures.in_band(self._call, event))
            self._note(kind, event)
            if kind in _RESPONSE_ENDS:
                return self._settle(kind, event.get("response") or {}, data, name)
        except (AttributeError, TypeError):
            return self._malformed()
        return True

    def _note(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind in _RESPONSE_PRELUDES:
            self.model = text_of((event.get("response") or {}).get("model"))
            return
        self.progress += 1
        if self.began:
            return
        if kind.endswith(".delta"):
            self.began = bool(event.get("delta"))
        elif kind == "response.output_item.added":
            self.began = (event.get("item") or {}).get("type", "message") not in _ITEMS_TO_COME

    def _settle(self, kind: str, response: Mapping[str, Any], data: bytes, name: bytes) -> bool:
        self.model = text_of(response.get("model")) or self.model
        self.usage = usage_of(response.get("usage"))
        if not self.began and kind == "response.failed":
            return self._fail_with(self._failures.in_band(self._call, response))
        if not self.began and kind == "response.completed" and not response.get("output"):
            return self._fail(FailureKind.EMPTY, "the response has nothing in it")
        self._last = sse.event(data, name)
        self.began = self.finished = self.complete = True
        return False

    def _end_mark(self) -> bytes:
        return self._last

    def _not_json(self, data: bytes) -> bool:
        if data.strip().startswith(b"[DONE]"):  # some servers have it; it proves nothing here
            self._ended()
            return False
        return self._malformed()

    def _ended(self) -> bytes:
        if self._heard:
            self._fail(FailureKind.TRUNCATED, "the stream ended before the response was complete")
        else:
            self._fail(FailureKind.EMPTY, "the stream ended without a single event")
        return b""


_RESPONSE_PRELUDES: Final = frozenset(("response.created", "response.queued", "response.in_progress"))
_RESPONSE_ENDS: Final = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
)
_ITEMS_TO_COME: Final = frozenset(("message", "reasoning"))
"""Items that are added empty; any other (a function call, a search) means something at once."""


def _has_odd_fields(frame: sse.Frame) -> bool:
    """Whether there are fields beside data and name (`id`, `retry`); a comment is none."""
    return any(name for name, _ in frame.others)


def _is_comment(frame: sse.Frame) -> bool:
    return frame.data is None and not frame.name and not _has_odd_fields(frame)


def says(said: Mapping[str, Any] | None) -> bool:
    """Whether a delta or a message means something to the caller."""
    if said is not None:
        for key in SAYINGS:  # a generator that is left half-way costs five times as much
            if said.get(key):
                return True
    return False


def _is_text(delta: Mapping[str, Any]) -> bool:
    """Whether a delta that says something is text, or reasoning, and nothing besides."""
    return (len(delta) == 1 and "content" in delta) or not any(delta.get(key) for key in _NOT_TEXT)


def _with(indices: frozenset[Any], index: Any) -> frozenset[Any]:
    """Return *indices* and *index*; streams of one choice share what that is."""
    more = indices | {index}
    return _FIRST if more == _FIRST else more


def template_of(event: bytes) -> tuple[Template | None, bool]:
    """
    Return the template of a good event in which one choice says some text, and nothing else happens.

    With any other text, and any other padding, such an event means the same.

    Returns:
        Also whether the text is content. The template is None for all other events.
    """
    payloads = sse.payloads(event)
    parsed = loads(payloads[0]) if payloads is not None and len(payloads) == 1 else {}
    choices = parsed.get("choices") or []
    if len(choices) != 1 or choices[0].get("finish_reason") or parsed.get("usage"):
        return None, False
    place = _place_of_text(choices[0])
    if place is None:
        return None, False
    padding = [("obfuscation",)] if isinstance(parsed.get("obfuscation"), str) else []
    return template(event, parsed, ("choices", 0, *place), *padding), place[-1] == "content"


def _place_of_text(choice: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the keys that lead to the text that a choice says; None where it says none."""
    delta: Mapping[str, Any] = choice.get("delta") or {}
    if not says(delta):
        return ("text",) if text_of(choice.get("text")) else None
    return next((("delta", key) for key in _TEXTS if text_of(delta.get(key))), None)


def silent_finishes(call: Call) -> frozenset[str]:
    """Return the finish reasons with which an answer to *call* may be empty."""
    # The caller's own stop sequence may be the first thing that the model writes.
    return SILENT_FINISHES | {"stop"} if call.payload.get("stop") else SILENT_FINISHES


def bad_finish(call: Call, failures: Failures, error: Any) -> UpstreamError:
    """Name what a finish reason outside the list means: the server gave up, for want of better words."""
    if error:
        return failures.in_band(call, {"error": error})
    return failures.of_kind(FailureKind.OVERLOADED, "the upstream gave up on its answer")


def usage_of(usage: Any) -> Usage | None:
    """Read the tokens in the words of either API; None where there are none to read."""
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    return Usage(
        prompt if isinstance(prompt, int) else 0,
        completion if isinstance(completion, int) else 0,
    )


def text_of(value: Any) -> str | None:
    """Return *value* if it is a string with something in it."""
    return value if isinstance(value, str) and value else None


def _parsed(text: bytes) -> Any:
    """Return the JSON in *text*; text that is none says nothing that we could show."""
    try:
        return loads(text)
    except ValueError:
        return None
