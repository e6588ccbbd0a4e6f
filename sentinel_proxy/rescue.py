"""
A stream that broke after its first token: continue it elsewhere, splice, or end honestly.

The conditions are strict, because a wrong continuation is worse than a broken one: only plain
text can be carried on, and only where nothing else was promised (`REFUSALS` is the list).
What the next provider repeats is cut away by `wire.seam`; what it says then reaches the caller
as the same stream: same `id`, same `created`, one role, one finish reason, one `[DONE]`. The
`model` of each chunk names who wrote it, and usage adds up.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.errors import BreakerOpen, FailureKind, NoReply, UpstreamError, forget_frames
from sentinel_proxy.events import Emit, StreamRescued
from sentinel_proxy.failover import Failover
from sentinel_proxy.model import Call, Endpoint, Usage
from sentinel_proxy.providers.base import Decoder, Provider
from sentinel_proxy.reply import Reply
from sentinel_proxy.upstream.upstream import Upstream
from sentinel_proxy.wire import openai, sse
from sentinel_proxy.wire.json import dumps, loads
from sentinel_proxy.wire.seam import Seam, SeamError

MAX_SENT_CHARS: Final = 32_768
"""Longer answers are not carried on: the prompt would double, and so would its price."""

MIN_SECONDS_LEFT: Final = 10.0
"""Less time is not enough for another provider to read everything and go on."""

MIN_TOKENS: Final = 16
"""A continuation may always say at least this much, however little the caller's limit leaves."""

INSTRUCTION: Final = (
    "Your previous message was cut off in transit. Continue it exactly after its last character, "
    "in the same language and format. Repeat nothing and do not comment on the interruption."
)

_BREAKS: Final = {FailureKind.TRUNCATED, FailureKind.TIMEOUT, FailureKind.PROTOCOL, FailureKind.OVERLOADED}

Refusal = Callable[[Call, Decoder, UpstreamError, float], bool]

# Why a stream is not carried on: first the caller's wish, then what was asked, then what was said.
REFUSALS: Final[tuple[tuple[str, Refusal], ...]] = (
    ("only chat completions can be continued", lambda call, *_: call.endpoint is not Endpoint.CHAT),
    ("the caller wants no failover", lambda call, *_: call.controls.no_failover),
    ("several choices", lambda call, *_: (call.payload.get("n") or 1) != 1),
    ("a format was promised", lambda call, *_: _promises_format(call.payload)),
    ("log probabilities", lambda call, *_: bool(call.payload.get("logprobs"))),
    ("more than text was said", lambda _, said, *__: not said.plain),
    ("nothing visible was said", lambda _, said, *__: not any(said.said)),
    ("the answer was over", lambda _, said, *__: said.finished),
    ("too long", lambda _, said, *__: sum(map(len, said.said)) > MAX_SENT_CHARS),
    ("not a break", lambda _, __, error, ___: error.kind not in _BREAKS),
    ("too late", lambda call, _, __, now: call.deadline - now < MIN_SECONDS_LEFT),
)


def refusal(call: Call, said: Decoder, error: UpstreamError, now: float) -> str | None:
    """Return why a stream that broke with *error* must not be carried on, or None if it may be."""
    return next((reason for reason, refuses in REFUSALS if refuses(call, said, error, now)), None)


class Rescue:
    """
    Carries broken streams on at the next provider.

    Args:
        mode: "continue" or "error", unless the caller says otherwise.
    """

    def __init__(self, failover: Failover, mode: str, clock: Clock, emit: Emit) -> None:
        self._failover = failover
        self._mode = mode
        self._clock = clock
        self._emit = emit

    async def resume(self, call: Call, broken: Reply, error: UpstreamError) -> Reply:
        """
        Return a reply that goes on where *broken* stopped; *broken* is closed.

        Raises:
            UpstreamError: *error* itself: it cannot be carried on, or nobody could.
        """
        forget_frames(error)
        broken.close()
        mode = call.controls.rescue or self._mode
        reason = (
            "switched off"
            if mode != "continue"
            else refusal(call, broken.decoder, error, self._clock.monotonic())
        )
        if reason is None:
            for upstream in self._candidates(call, broken):
                for method in _methods(upstream, call):
                    if (reply := await self._continued(call, broken, upstream, method)) is not None:
                        self._tell(call, broken, upstream.name, method, "continued")
                        return reply
            self._tell(call, broken, "", "", "failed")
        raise error

    def _candidates(self, call: Call, broken: Reply) -> list[Upstream]:
        """Return the healthy upstreams to ask: those after the broken one first."""
        chain = self._failover.chain(call)
        at = chain.index(broken.upstream)
        now = self._clock.monotonic()
        return [
            upstream
            for upstream in (*chain[at + 1 :], *chain[:at])
            if _healthy(upstream, upstream.provider.model_for(call.model), now)
        ]

    async def _continued(self, call: Call, broken: Reply, upstream: Upstream, method: str) -> Reply | None:
        continuation = continue_call(call, broken.decoder, upstream.provider, method)
        try:
            reply = await self._failover.open(
                continuation,
                wrap=lambda inner: Splice(
                    inner,
                    broken.decoder,
                    call,
                    source=broken.upstream.name,
                    target=upstream.name,
                    method=method,
                ),
            )
        except NoReply as error:
            if method == "prefill" and any(map(_refuses_prefill, error.failures)):
                upstream.rejects_prefill = True
            return None
        finally:
            call.waited_seconds = continuation.waited_seconds
        reply.belongs_to(call)
        reply.failover = broken.failover or reply.upstream is not self._failover.chain(call)[0]
        reply.rescued = True
        reply.first_token_seconds = broken.first_token_seconds
        return reply

    def _tell(self, call: Call, broken: Reply, target: str, method: str, result: str) -> None:
        at_chars = sum(len(text) for text in broken.decoder.said)
        self._emit(StreamRescued(call.trace_id, broken.upstream.name, target, method, result, at_chars))


def continue_call(call: Call, said: Decoder, provider: Provider, method: str) -> Call:
    """Return the call that asks *provider* to go on after what was *said*."""
    payload = dict(call.payload)
    messages = [*payload["messages"], {"role": "assistant", "content": "".join(said.said)}]
    if method == "instruct":
        messages.append({"role": "user", "content": INSTRUCTION})
    payload["messages"] = messages
    payload.pop("seed", None)
    for limit in ("max_tokens", "max_completion_tokens"):
        if isinstance(payload.get(limit), int):
            payload[limit] = max(MIN_TOKENS, payload[limit] - said.progress)
    payload["stream_options"] = {**(payload.get("stream_options") or {}), "include_usage": True}
    asked = provider.prefill(payload) if method == "prefill" else payload
    return replace(
        call,
        payload=asked,
        body=dumps(asked),
        controls=replace(call.controls, providers=(provider.name,), no_failover=True),
    )


class Splice(Decoder):
    """
    Rewrites a continuation so that it reads as the rest of the broken stream.

    Args:
        inner: Decodes the continuation into chat completion chunks.
        said: The decoder of the stream that broke; it knows what the caller has.
        source: The provider whose stream broke.
        target: Who continues.
        method: "prefill" or "instruct".
    """

    def __init__(
        self, inner: Decoder, said: Decoder, call: Call, *, source: str, target: str, method: str
    ) -> None:
        self._inner = inner
        self._identity = said.opened_as
        self._seam = Seam("".join(said.said), trims=method == "instruct")
        self._tokens_before = said.progress
        self._wants_usage = bool((call.payload.get("stream_options") or {}).get("include_usage"))
        self._latest: dict[str, Any] = {}  # the last chunk with a choice, for what is still held at the end
        self._ended = False  # a finish reason was passed on
        self._marker: dict[str, Any] | None = {
            "event": "midstream_failover",
            "from": source,
            "to": target,
            "at_chars": sum(map(len, said.said)),
            "method": method,
        }

    def feed(self, data: bytes) -> bytes:
        return self._spliced(self._inner.feed(data))

    def close(self) -> bytes:
        return self._spliced(self._inner.close())

    def _spliced(self, events: bytes) -> bytes:
        inner = self._inner
        output: list[bytes] = []
        try:
            for frame in sse.frames(events):
                if frame.data is not None:
                    output.append(self._event(frame.data))
        except SeamError as error:
            self.failure = UpstreamError(FailureKind.PROTOCOL, str(error))
            return b"".join(output)
        # A finish reason alone is no beginning: it may turn out that nothing was said.
        self.began = inner.began and self._marker is None
        self.model, self.progress = inner.model, inner.progress
        self.finished, self.complete, self.failure = inner.finished, inner.complete, inner.failure
        self.usage = self._both(inner.usage) if inner.usage is not None else None
        return b"".join(output)

    def _event(self, data: bytes) -> bytes:
        if data == b"[DONE]":
            return self._held() + openai.DONE
        chunk = loads(data)
        if self._identity is not None:
            chunk["id"], chunk["created"] = self._identity
        if not chunk.get("choices"):
            return self._usage_event(chunk)
        self._latest = chunk
        choice = chunk["choices"][0]
        choice["delta"] = self._continued(choice)
        if self._ended:
            choice["finish_reason"] = None
        self._ended = self._ended or choice.get("finish_reason") is not None
        if not self._wants_usage:
            chunk.pop("usage", None)
        elif chunk.get("usage"):
            chunk["usage"] = self._counts(chunk["usage"])
        if not choice["delta"] and choice.get("finish_reason") is None:
            return b""
        return self._marked(chunk)

    def _continued(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a choice adds to the text that the caller has."""
        delta = dict(choice.get("delta") or {})
        delta.pop("role", None)
        text = self._seam.push(delta.pop("content", None) or "")
        if choice.get("finish_reason") is not None:
            text += self._seam.close()
        return {"content": text, **delta} if text else delta

    def _held(self) -> bytes:
        """Write the text that the seam still holds; there is none after a finish reason."""
        text = self._seam.close()
        if not text:
            return b""
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        return self._marked({**self._latest, "choices": [choice]})

    def _marked(self, chunk: dict[str, Any]) -> bytes:
        """Write *chunk*; the first one says that somebody else goes on."""
        if self._marker is None:
            return openai.event(chunk)
        chunk["sentinel"], self._marker = self._marker, None
        return b": sentinel failover\n\n" + openai.event(chunk)

    def _usage_event(self, chunk: dict[str, Any]) -> bytes:
        if not self._wants_usage or not chunk.get("usage"):
            return b""
        chunk["usage"] = self._counts(chunk["usage"])
        return openai.event(chunk)

    def _counts(self, reported: Mapping[str, Any]) -> dict[str, int]:
        """Return the usage of both parts, given that of the second."""
        prompt, completion = (reported.get(f"{part}_tokens") or 0 for part in ("prompt", "completion"))
        usage = self._both(Usage(prompt, completion))
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }

    def _both(self, usage: Usage) -> Usage:
        """
        Add up both parts: the continuation counted the first part as prompt, we count it as answer.

        The broken stream never told its usage, so its tokens are estimated as its events were many.
        """
        prompt = max(0, usage.prompt_tokens - self._tokens_before)
        return Usage(prompt, usage.completion_tokens + self._tokens_before)


def _methods(upstream: Upstream, call: Call) -> tuple[str, ...]:
    """Return the ways to ask *upstream* to continue, the better one first."""
    declared = upstream.provider.continuation
    if declared == "none":
        return ()
    with_tools = bool(call.payload.get("tools") or call.payload.get("functions"))
    if declared == "prefill" and not upstream.rejects_prefill:
        return ("prefill",) if with_tools else ("prefill", "instruct")
    return () if with_tools else ("instruct",)


def _healthy(upstream: Upstream, model: str, now: float) -> bool:
    """Whether nothing is known against *upstream*: a stream in distress is no trial."""
    return upstream.breakers.undisturbed(model) and upstream.admits(model, now)


def _refuses_prefill(failure: UpstreamError | BreakerOpen) -> bool:
    """Whether a provider said that a conversation must not end with the assistant's own words."""
    return (
        isinstance(failure, UpstreamError)
        and failure.status == 400
        and failure.kind in (FailureKind.CALLER, FailureKind.UNSUPPORTED)
    )


def _promises_format(payload: Mapping[str, Any]) -> bool:
    wanted = payload.get("response_format")
    return isinstance(wanted, Mapping) and wanted.get("type") not in (None, "text")
