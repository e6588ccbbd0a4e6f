"""
Answers that come in one piece, and answers that do not say what they are.

A complete JSON is judged once all of it is there and leaves as the bytes it came as. Where a
stream was asked for, a complete answer is turned into one: SDKs show a JSON body in place of a
stream as an empty answer, without an error.
"""

from collections.abc import Mapping
from typing import Any, Final

from sentinel_proxy.errors import FailureKind, UpstreamError
from sentinel_proxy.model import Call, Endpoint
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.providers.openai.failures import Failures
from sentinel_proxy.providers.openai.streams import (
    GOOD_FINISHES,
    bad_finish,
    says,
    silent_finishes,
    text_of,
    usage_of,
)
from sentinel_proxy.wire.json import loads
from sentinel_proxy.wire.openai import completion_to_stream

MAX_JSON_BYTES: Final = 256 * 1024 * 1024
"""The largest honest answer, 2048 embeddings of 3072 numbers as text, has about 140 MB."""

# What the answer of each endpoint must have.
PROMISED: Final = {
    Endpoint.CHAT: "choices",
    Endpoint.COMPLETIONS: "choices",
    Endpoint.EMBEDDINGS: "data",
    Endpoint.RESPONSES: "output",
}


class JsonDecoder(Decoder):
    """A complete JSON answer, for a call that is not streamed."""

    def __init__(self, call: Call, failures: Failures) -> None:
        self._call = call
        self._failures = failures
        self._parts: list[bytes] = []
        self._bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; nothing can be said before all of them are here."""
        if self.complete or self.failure is not None:
            return b""
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > MAX_JSON_BYTES:
            self._parts.clear()
            self.failure = self._failures.of_kind(
                FailureKind.PROTOCOL, "the answer is larger than any honest one"
            )
        return b""

    def close(self) -> bytes:
        """Judge the answer; return it if it is good."""
        if self.complete or self.failure is not None:
            return b""
        body = b"".join(self._parts)
        self._parts.clear()
        try:
            output = self._good(body, loads(body))
        except UpstreamError as failure:
            self.failure = failure
            return b""
        except (ValueError, AttributeError, TypeError):
            self.failure = self._failures.of_kind(
                FailureKind.PROTOCOL, "the answer is not the JSON that the API promises"
            )
            return b""
        self.progress += 1
        self.began = self.finished = self.complete = True
        return output

    def _good(self, body: bytes, answer: Any) -> bytes:
        """
        Return what leaves for a good *answer*.

        Raises:
            UpstreamError: It says that it failed, or nothing.
            ValueError | AttributeError | TypeError: It is not what the API promises.
        """
        if answer.get("error") or answer.get("object") == "error":
            raise self._failures.in_band(self._call, answer)
        promised = PROMISED[self._call.endpoint]
        found = answer.get(promised)
        if not isinstance(found, list):
            raise ValueError("the promised field is missing")
        if self._is_empty(answer, promised, found):
            raise self._failures.of_kind(FailureKind.EMPTY, "the answer has nothing in it")
        self.model = text_of(answer.get("model"))
        self.usage = usage_of(answer.get("usage"))
        return body

    def _is_empty(self, answer: Mapping[str, Any], promised: str, found: list[Any]) -> bool:
        if promised == "choices":
            silent = True
            for choice in found:  # each of them, since any may say that it failed
                if self._choice_says(choice):
                    silent = False
            return silent
        if promised == "output":  # queued, in progress and incomplete ones may well be empty
            return not found and answer.get("status") in (None, "completed")
        return not found

    def _choice_says(self, choice: Mapping[str, Any]) -> bool:
        reason = choice.get("finish_reason")
        if reason and reason not in GOOD_FINISHES:
            raise bad_finish(self._call, self._failures, choice.get("error"))
        said = choice.get("text") or says(choice.get("message"))
        return bool(said) or reason in silent_finishes(self._call)


class StreamOfJsonDecoder(JsonDecoder):
    """A complete JSON answer to a call that asked for a stream."""

    def _good(self, body: bytes, answer: Any) -> bytes:
        super()._good(body, answer)
        options = self._call.payload.get("stream_options") or {}
        return completion_to_stream(answer, include_usage=bool(options.get("include_usage")))


class RefusingDecoder(Decoder):
    """An answer whose head alone says that it cannot be the API's."""

    def __init__(self, failure: UpstreamError) -> None:
        self.failure = failure

    def feed(self, data: bytes) -> bytes:
        """Return nothing: there is nothing good in it."""
        return b""

    def close(self) -> bytes:
        """Return nothing."""
        return b""


class UndeclaredDecoder(Decoder):
    """A stream that may be something else: its first byte that means something decides."""

    def __init__(self, stream: Decoder, json: Decoder, html: Decoder) -> None:
        self._kinds = {b"{": json, b"[": json, b"<": html}
        self._stream = stream
        self._decoder: Decoder | None = None

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; what comes before the first that means something is dropped."""
        if self._decoder is None:
            data = data.lstrip(_BEFORE_ALL)
            if not data:
                return b""
            self._decoder = self._kinds.get(data[:1], self._stream)
        return self._with_state_of(self._decoder, self._decoder.feed(data))

    def close(self) -> bytes:
        """End the answer, whatever it was."""
        decoder = self._decoder or self._stream
        return self._with_state_of(decoder, decoder.close())

    def _with_state_of(self, decoder: Decoder, output: bytes) -> bytes:
        self.began, self.progress = decoder.began, decoder.progress
        self.finished, self.complete = decoder.finished, decoder.complete
        self.failure, self.model, self.usage = decoder.failure, decoder.model, decoder.usage
        return output


_BEFORE_ALL: Final = b"\xef\xbb\xbf \t\r\n"
"""White space and the bytes of a byte order mark; nothing that we read begins with one of them."""
