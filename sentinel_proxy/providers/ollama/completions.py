"""
Answers of `/api/generate` as legacy completions, whole and streamed.

Ollama never repeats the prompt, so an echo is put in front here. Thoughts have no place in this
API and are left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sentinel_proxy.providers.ollama import failures
from sentinel_proxy.providers.ollama.envelope import (
    FINGERPRINT,
    Native,
    read_usage,
    usage_body,
)
from sentinel_proxy.providers.ollama.replies import Asked, BodyDecoder, StreamDecoder, require_done
from sentinel_proxy.providers.ollama.requests import completion_prompt, stream_usage
from sentinel_proxy.providers.ollama.turns import finish_reason, logprob_entries
from sentinel_proxy.wire.openai import DONE, event


class CompletionDecoder(BodyDecoder):
    """One `text_completion`."""

    prefix = "cmpl-"
    expects = ("response", "done")

    def answer(self, native: Native) -> Mapping[str, Any]:
        require_done(native)
        text = native.get("response")
        if not isinstance(text, str):
            raise failures.protocol("the upstream's answer lacks a text")
        if not text and native.get("done_reason") != "length":
            raise failures.empty()
        self.usage = read_usage(native)
        echo = _echo(self.asked)
        logprobs = _LegacyLogprobs(self.asked, len(echo)).read(native)
        choice = _choice(echo + text, logprobs, finish_reason(native))
        return _head(self) | {"choices": [choice], "usage": usage_body(self.usage)}


class CompletionStreamDecoder(StreamDecoder):
    """`text_completion` events; the last one but the count is empty and has the finish reason."""

    prefix = "cmpl-"
    expects = ("response", "done")

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._counts = stream_usage(asked.call)
        self._echo = _echo(asked)
        self._logprobs = _LegacyLogprobs(asked, len(self._echo))

    def begin(self) -> Iterator[bytes]:
        if self._echo:
            yield self._chunk(self._echo)

    def say(self, native: Native) -> Iterator[bytes]:
        text = native.get("response")
        logprobs = self._logprobs.read(native)
        if isinstance(text, str) and text:
            self.meant()
            yield self._chunk(text, logprobs)
        elif logprobs is not None:
            yield self._chunk("", logprobs)

    def end(self, native: Native) -> Iterator[bytes]:
        yield self._chunk("", reason=finish_reason(native))
        if self._counts and self.usage is not None:
            yield event(_head(self) | {"choices": [], "usage": usage_body(self.usage)})
        yield DONE

    def _chunk(
        self, text: str, logprobs: Mapping[str, Any] | None = None, reason: str | None = None
    ) -> bytes:
        chunk = _head(self) | {"choices": [_choice(text, logprobs, reason)]}
        return event(chunk | {"usage": None} if self._counts else chunk)


class _LegacyLogprobs:
    """Log probabilities in four parallel lists; counts where in the text each token stands."""

    def __init__(self, asked: Asked, offset: int) -> None:
        self._wanted = asked.call.payload.get("logprobs") is not None
        self._offset = offset

    def read(self, native: Native) -> Mapping[str, Any] | None:
        entries = logprob_entries(native) if self._wanted else []
        if not entries:
            return None
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {other["token"]: other["logprob"] for other in entry["top_logprobs"]} for entry in entries
            ],
            "text_offset": offsets,
        }


def _echo(asked: Asked) -> str:
    payload = asked.call.payload
    return completion_prompt(payload) if payload.get("echo") is True else ""


def _head(decoder: CompletionDecoder | CompletionStreamDecoder) -> dict[str, Any]:
    identity = decoder.identity
    return {
        "id": identity.id,
        "object": "text_completion",
        "created": identity.created,
        "model": identity.model,
        "system_fingerprint": FINGERPRINT,
    }


def _choice(text: str, logprobs: Mapping[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}
