"""
Reading Ollama's answers: what all endpoints have in common.

`BodyDecoder` reads one JSON document, `StreamDecoder` lines of JSON. Both only trust an answer
that says `done: true`: anything shorter is a piece of one, whatever its status. How the answer
is told in OpenAI's words is left to the subclass of each endpoint.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sentinel_proxy.errors import UpstreamError
from sentinel_proxy.model import Call
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.providers.ollama import failures
from sentinel_proxy.providers.ollama.envelope import Native, read_usage, unix_seconds
from sentinel_proxy.providers.ollama.ids import Mint
from sentinel_proxy.providers.ollama.words import message_in
from sentinel_proxy.wire.json import dumps, loads
from sentinel_proxy.wire.ndjson import LineSplitter

MAX_BODY_BYTES: Final = 128 * 1024 * 1024
"""Of an answer that is not streamed; 2048 vectors of 4096 numbers, as text, stay below it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a decoder knows from the start."""

    call: Call
    model: str  # as Ollama knows it
    mint: Mint
    now: Callable[[], float]  # Unix seconds
    heard: Callable[[UpstreamError], UpstreamError] = lambda error: error  # told of every failure


@dataclass(slots=True)
class Identity:
    """What every piece of one answer repeats: taken from its first line, so that it never changes."""

    id: str
    created: int
    model: str


class NativeDecoder(Decoder):
    """State and helpers of both ways to read."""

    prefix = "chatcmpl-"
    """Of the answer's id."""

    expects: tuple[str, ...] = ("message", "done")
    """Keys of which an answer, or a line of one, has at least one."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.identity = Identity(asked.mint(self.prefix), 0, asked.model)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "failed" if self.failure else "open"
        return f"<{type(self).__name__} {state}>"

    def fail(self, error: UpstreamError) -> None:
        """End the answer with *error*; once something was said, no caller's field is to blame."""
        if self.began:
            error.type, error.param = failures.SERVER, None
        self.failure = self.asked.heard(error)

    def parse(self, data: bytes) -> Native:
        """
        Return the JSON object that *data* is.

        Raises:
            UpstreamError: It is none, or it reports an error.
        """
        try:
            native = loads(data)
        except ValueError as error:
            raise failures.protocol("the upstream's answer is not JSON") from error
        if not isinstance(native, Mapping):
            raise failures.protocol("the upstream's answer is not a JSON object")
        if native.get("error"):
            raise self._reported(native)
        if not any(key in native for key in self.expects):
            raise self._reported(native) if native else failures.protocol("the upstream's answer is empty")
        return native

    def _reported(self, native: Native) -> UpstreamError:
        said = message_in(native)
        if not said:
            return failures.protocol("the upstream's answer lacks what was asked for")
        return failures.classify(self.asked.call.endpoint, None, said)

    def identify(self, native: Native) -> None:
        """Take time and model from the first piece of an answer."""
        self.identity.created = unix_seconds(native.get("created_at")) or int(self.asked.now())
        model = native.get("model")
        if isinstance(model, str) and model:
            self.identity.model = model
        self.model = self.identity.model


class BodyDecoder(NativeDecoder):
    """Reads one JSON document, which is judged when it has ended."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    @abstractmethod
    def answer(self, native: Native) -> Mapping[str, Any]:
        """
        Return OpenAI's form of *native*.

        Raises:
            UpstreamError: It is not a good answer.
        """

    def feed(self, data: bytes) -> bytes:
        self._held_bytes += len(data)
        if self.failure is None and self._held_bytes > MAX_BODY_BYTES:
            self._pieces.clear()
            self.fail(failures.protocol("the upstream's answer is too large"))
        if self.failure is None:
            self._pieces.append(data)
        return b""

    def close(self) -> bytes:
        if self.failure is not None:
            return b""
        try:
            native = self.parse(b"".join(self._pieces))
            self.identify(native)
            output = dumps(self.answer(native))
        except UpstreamError as error:
            self.fail(error)
            return b""
        except RecursionError:
            self.fail(failures.protocol("the upstream's answer is nested too deeply"))
            return b""
        self.progress = 1
        self.began = self.finished = self.complete = True
        return output


class StreamDecoder(NativeDecoder):
    """Reads lines of JSON into server-sent events, until one says that it is the last."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._lines = LineSplitter()
        self._first = True

    @abstractmethod
    def begin(self) -> Iterator[bytes]:
        """Yield what stands before the answer; it means nothing yet."""

    @abstractmethod
    def say(self, native: Native) -> Iterator[bytes]:
        """Yield what one line adds to the answer; `meant` is called for what means something."""

    @abstractmethod
    def end(self, native: Native) -> Iterator[bytes]:
        """Yield what stands after the answer; *native* is its last line."""

    def meant(self) -> None:
        """Note that something came which means something."""
        self.began = True
        self.progress += 1

    def feed(self, data: bytes) -> bytes:
        if self.complete or self.failure is not None:
            return b""
        output: list[bytes] = []
        for line in self._lines.feed(data):
            self._take(line, output)
            if self.complete or self.failure is not None:
                break
        else:
            if self._lines.too_long:
                self.fail(failures.protocol("a line of the upstream's answer is too long"))
        return b"".join(output)

    def close(self) -> bytes:
        if self.complete or self.failure is not None:
            return b""
        output: list[bytes] = []
        rest = self._lines.close()
        if rest and _is_json(rest):
            self._take(rest, output)
        if not self.complete and self.failure is None:
            self.fail(failures.incomplete())
        return b"".join(output)

    def _take(self, line: bytes, output: list[bytes]) -> None:
        try:
            native = self.parse(line)
            if self._first:
                self._first = False
                self.identify(native)
                output.extend(self.begin())
            output.extend(self.say(native))
            if native.get("done") is True:
                self._finish(native, output)
        except UpstreamError as error:
            self.fail(error)
        except RecursionError:
            self.fail(failures.protocol("the upstream's answer is nested too deeply"))

    def _finish(self, native: Native, output: list[bytes]) -> None:
        self.usage = read_usage(native)
        if not self.began and native.get("done_reason") != "length":
            raise failures.empty()
        self.meant()
        output.extend(self.end(native))
        self.finished = self.complete = True


def require_done(native: Native) -> None:
    """
    Raises:
        UpstreamError: *native* is not the end of an answer.
    """
    if native.get("done") is not True:
        raise failures.incomplete()


def _is_json(data: bytes) -> bool:
    try:
        loads(data)
    except ValueError:
        return False
    return True
