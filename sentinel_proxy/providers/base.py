"""
What a provider is: a description of one upstream's API, not a client of it.

A provider says what to send for a call (`encode`), how to read what comes back (`decoder`,
`failure`) and how to ask for its health (`probe`). It does no I/O, knows no asyncio and keeps
no state about calls, so it is tested with bytes alone and gets timeouts, cancellation,
retries and failover for free.

To add one, subclass `Provider` in one file and register it (docs/providers.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sentinel_proxy.errors import UpstreamError
from sentinel_proxy.model import Call, Endpoint, ReplyHead, UpstreamRequest, Usage


class Decoder(ABC):
    """
    Reads one successful (2xx) answer, from any cut of its bytes, into the bytes for the caller.

    One law: where the network cuts does not matter; the joined output and the final state are
    the same. Nothing is raised: what is wrong with the answer is said in `failure`, after which
    no further bytes are fed. What was returned before that is good and may be sent.

    For a streaming call the output is whole SSE events, never part of one; for any other call
    it is the complete JSON, returned by the `feed` or `close` that completes it.
    """

    began: bool = False
    """A token that means something (content, reasoning, refusal, a tool call) or the complete JSON came."""

    progress: int = 0
    """Counts the events that mean something: what restarts the progress timer."""

    finished: bool = False
    """Every choice has its finish reason (or the JSON is complete); a usage event may follow."""

    complete: bool = False
    """The answer has ended well and all of it was returned: nothing more need be read."""

    failure: UpstreamError | None = None
    """Why the answer is not good. Never set together with `complete`."""

    model: str | None = None
    """The model that answered, once known."""

    usage: Usage | None = None
    """Tokens, once known."""

    opened_as: tuple[str, int] | None = None
    """`id` and `created` of a streamed chat completion, once known."""

    plain: bool = True
    """Nothing but text and reasoning of one choice came: no tool call, refusal, audio or log probability."""

    said: Sequence[str] = ()
    """The visible text of a streamed chat completion so far, in pieces; what a rescue goes on from."""

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body; return what can be said so far."""

    @abstractmethod
    def close(self) -> bytes:
        """
        The body has ended, cleanly as far as its framing tells: return the rest.

        Afterwards exactly one of `complete` and `failure` is set.
        """


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One line of a provider's model list, as `/v1/models` shows it."""

    id: str
    created: int = 0
    owned_by: str = ""


class Provider(ABC):
    """
    One upstream and its dialect.

    Class attributes are the defaults of a plugin; providers of the configuration set them per
    instance. `name` must be unique in a registry: it appears in headers, metrics and logs.
    """

    kind: ClassVar[str] = "plugin"

    name: str
    base_url: str
    """Scheme, host, optional port and path prefix, without a trailing slash."""

    transport: str = "http1"
    models: Mapping[str, str] = {}
    """The client's model name to this provider's; "*" matches the rest; empty: unchanged."""

    timeouts: Mapping[str, float] = {}
    """Overrides of `[timeouts]` by key, in seconds."""

    max_in_flight: int = 0
    """Calls at this provider at once; beyond it, it is passed by. 0: no limit of its own."""

    context_window: int | None = None
    """Tokens; a call that overflowed elsewhere comes here only if this is larger."""

    continuation: str = "instruct"
    """How it can go on with a broken answer: "prefill", "instruct" or "none"."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def model_for(self, model: str) -> str:
        """Return this provider's name for the client's *model*."""
        if not self.models:
            return model
        return self.models.get(model) or self.models.get("*") or model

    def serves(self, endpoint: Endpoint) -> bool:
        """Whether this provider has anything to answer *endpoint* with."""
        return endpoint is Endpoint.CHAT

    def can_authorize(self, call: Call) -> bool:
        """Whether *call* has a key for this provider, or needs none; without one it is passed by."""
        return True

    @abstractmethod
    def encode(self, call: Call) -> UpstreamRequest:
        """
        Return what to send for *call*.

        Raises:
            UpstreamError: `UNSUPPORTED` where the call is right but impossible here, so that
                the next provider is tried; `code` and `param` say what the caller would need
                to change. `CALLER` where it is wrong everywhere.
        """

    def prefill(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Return *payload*, whose last message is an unfinished answer, so that this server goes on with it.

        Asked only where `continuation` is "prefill".
        """
        return payload

    @abstractmethod
    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        """Return a new decoder for a 2xx answer to *call*. Never raises: see `Decoder.failure`."""

    @abstractmethod
    def failure(self, call: Call, head: ReplyHead, body: bytes) -> UpstreamError:
        """
        Name the failure that a non-2xx answer means.

        Args:
            body: At most the first 64 KiB of it.
        """

    @abstractmethod
    def probe(self) -> UpstreamRequest:
        """Return a free, idempotent request whose 2xx answer says that the provider is up."""

    def catalogue(self, body: bytes) -> Sequence[ModelEntry]:
        """
        Read the model list from the body of a 2xx answer to `probe`.

        Raises:
            UpstreamError: `PROTOCOL` if it is not one.
        """
        return ()

    def offers(self, model: str) -> bool | None:
        """Whether the client's *model* leads to one that is there; None if only a catalogue can tell."""
        return None

    def questions(self) -> Sequence[tuple[UpstreamRequest, Callable[[bytes], None]]]:
        """Return further free requests to send after a good probe, each with what reads its 2xx answer."""
        return ()

    def warm_up(self) -> UpstreamRequest | None:
        """Return what makes the provider ready before calls come, if it gains by that."""
        return None

    def settings(self) -> Mapping[str, Any]:
        """Return what operators may see of this provider; never a secret."""
        return {"kind": self.kind, "transport": self.transport, "models": dict(self.models)}
