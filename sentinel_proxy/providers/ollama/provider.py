"""
The Ollama provider: which native endpoint serves what, and who reads its answer.

Nothing is translated here. The table says, for each of OpenAI's endpoints, where it goes, what
builds the body and what reads the reply; the rest is the server's address, its credential and
what we have learned about it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from sentinel_proxy.clock import Clock, SystemClock
from sentinel_proxy.config import ProviderConfig
from sentinel_proxy.config.values import Secret
from sentinel_proxy.errors import UpstreamError
from sentinel_proxy.model import Call, Endpoint, Header, ReplyHead, UpstreamRequest
from sentinel_proxy.providers.base import Decoder, ModelEntry, Provider
from sentinel_proxy.providers.masking import without_keys
from sentinel_proxy.providers.ollama import failures
from sentinel_proxy.providers.ollama.chat import ChatDecoder, ChatStreamDecoder
from sentinel_proxy.providers.ollama.completions import CompletionDecoder, CompletionStreamDecoder
from sentinel_proxy.providers.ollama.embeddings import EmbeddingDecoder
from sentinel_proxy.providers.ollama.facts import Facts, normal_name, parse_version
from sentinel_proxy.providers.ollama.ids import Mint, mint_id
from sentinel_proxy.providers.ollama.models import model_entries, read_models, read_object
from sentinel_proxy.providers.ollama.refusals import invalid_value, unsupported
from sentinel_proxy.providers.ollama.replies import Asked
from sentinel_proxy.providers.ollama.requests import (
    Body,
    Defaults,
    chat_body,
    completion_body,
    embedding_body,
)
from sentinel_proxy.providers.ollama.responses import ResponseDecoder, ResponseStreamDecoder
from sentinel_proxy.providers.ollama.responses_request import responses_body
from sentinel_proxy.wire.json import dumps

Continuation = Literal["prefill", "instruct", "none"]


@dataclass(frozen=True, slots=True)
class _Route:
    """How one of OpenAI's endpoints is served."""

    path: str
    body: Callable[[Call, str, Facts, Defaults], tuple[Body, list[str]]]
    whole: Callable[[Asked], Decoder]
    streamed: Callable[[Asked], Decoder]


_ROUTES: Final = {
    Endpoint.CHAT: _Route("/api/chat", chat_body, ChatDecoder, ChatStreamDecoder),
    Endpoint.COMPLETIONS: _Route(
        "/api/generate", completion_body, CompletionDecoder, CompletionStreamDecoder
    ),
    Endpoint.EMBEDDINGS: _Route("/api/embed", embedding_body, EmbeddingDecoder, EmbeddingDecoder),
    Endpoint.RESPONSES: _Route("/api/chat", responses_body, ResponseDecoder, ResponseStreamDecoder),
}

_ENDPOINT_PATHS: Final = ("/api/chat", "/api/generate", "/api", "/v1")


class OllamaProvider(Provider):
    """
    Ollama's native API. https://github.com/ollama/ollama/blob/main/docs/api.md

    The native API and not Ollama's own OpenAI layer, which ignores many fields and hides
    failures (docs/decisions/0005-ollama-native-api.md).

    Args:
        base_url: Of the server; the path of an endpoint at its end is removed.
        api_key: Sent as a bearer token; a local server needs none. The caller's own key and
            headers are never sent.
        keep_alive: How long the model stays loaded: seconds, -1 for ever, or "5m". None: the
            server's default.
        num_ctx: Context size in tokens. Another value than the loaded one loads the model
            again, so it is the same for every call. Embeddings, another model's job, go without.
        context_overflow: "error" answers what is too long with `CONTEXT_OVERFLOW`; "truncate"
            leaves it to Ollama, which drops the oldest messages and says nothing.
        continuation: How a broken answer can be continued. "prefill": templates take a last
            assistant message for the beginning of the answer.
        clock: Dates answers that have no date of their own.
        mint: Makes ids.
    """

    kind: ClassVar[str] = "ollama"

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        models: Mapping[str, str] | None = None,
        api_key: Secret | None = None,
        keep_alive: str | int | None = None,
        num_ctx: int | None = None,
        context_overflow: Literal["error", "truncate"] = "error",
        timeouts: Mapping[str, float] | None = None,
        max_in_flight: int = 0,
        context_window: int | None = None,
        transport: str = "http1",
        continuation: Continuation = "prefill",
        clock: Clock | None = None,
        mint: Mint = mint_id,
    ) -> None:
        self.name = name
        self.base_url = server_url(base_url)
        self.models = dict(models or {})
        self.timeouts = dict(timeouts or {})
        self.max_in_flight = max_in_flight
        self.context_window = context_window
        self.transport = transport
        self.continuation = continuation
        self.facts = Facts()
        self._path = urlsplit(self.base_url).path
        self._api_key = api_key
        self._defaults = Defaults(_native_duration(keep_alive), num_ctx, context_overflow)
        self._clock: Clock = clock or SystemClock()
        self._mint = mint

    @classmethod
    def from_config(cls, config: ProviderConfig) -> Self:
        """Build the provider that one `[[providers]]` table describes."""
        return cls(
            name=config.name,
            base_url=config.base_url,
            models=config.models,
            api_key=config.api_key,
            keep_alive=config.keep_alive,
            num_ctx=config.num_ctx,
            timeouts=config.timeouts.model_dump(exclude_none=True),
            max_in_flight=config.max_in_flight,
            context_window=config.context_window,
            transport=config.transport,
            continuation=config.continuation or "prefill",
        )

    def serves(self, endpoint: Endpoint) -> bool:
        return endpoint in _ROUTES

    def encode(self, call: Call) -> UpstreamRequest:
        route = _ROUTES.get(call.endpoint)
        if route is None:
            raise unsupported("model", "Ollama has nothing to serve this path with")
        model = self.model_for(call.model)
        if not model:
            raise invalid_value("model", "'model' must not be empty")
        try:
            body, lossy = route.body(call, model, self.facts, self._defaults)
            data = dumps(body)
        except RecursionError as error:
            raise unsupported("model", "the request is nested too deeply to be translated") from error
        headers = [*self._headers(), (b"content-type", b"application/json")]
        if call.traceparent is not None:
            headers.append((b"traceparent", call.traceparent))
        return UpstreamRequest("POST", self._path + route.path, headers, data, lossy=tuple(lossy))

    def decoder(self, call: Call, head: ReplyHead) -> Decoder:
        route = _ROUTES[call.endpoint]
        read = route.streamed if call.stream else route.whole
        model = self.model_for(call.model)
        return read(Asked(call, model, self._mint, self._clock.time, lambda error: self._heard(call, error)))

    def failure(self, call: Call, head: ReplyHead, body: bytes) -> UpstreamError:
        return self._heard(call, failures.of_answer(call.endpoint, head, body, self._clock.time()))

    def probe(self) -> UpstreamRequest:
        return self._ask("GET", "/api/tags")

    def catalogue(self, body: bytes) -> Sequence[ModelEntry]:
        models = read_models(body)
        self.facts.install(models)
        return model_entries(models)

    def offers(self, model: str) -> bool | None:
        """Whether the client's *model* leads to one that is installed; None until the list was read."""
        installed = self.facts.installed
        return None if installed is None else normal_name(self.model_for(model)) in installed

    def questions(self) -> Sequence[tuple[UpstreamRequest, Callable[[bytes], None]]]:
        """
        Return further free requests worth sending after a good probe, each with what reads its 2xx answer.

        They ask for the version, until it is known, and for the capabilities of mapped models of
        which nothing is known (servers before 0.30 do not list them).
        """
        asked: list[tuple[UpstreamRequest, Callable[[bytes], None]]] = []
        if self.facts.version is None:
            asked.append((self._ask("GET", "/api/version"), self.learn_version))
        for model in dict.fromkeys(self.models.values()):
            if self.facts.about(model).capabilities is None:
                asked.append((self._ask("POST", "/api/show", {"model": model}), self._show_reader(model)))
        return asked

    def warm_up(self) -> UpstreamRequest | None:
        """
        Load the model that most calls would lead to, as `keep_alive` and `num_ctx` have it.

        None where `keep_alive` is unset or zero: then nobody said that a model may stay in memory.
        """
        model = self.models.get("*") or next(iter(self.models.values()), None)
        if model is None or not _keeps_models(self._defaults.keep_alive):
            return None
        return self._ask("POST", "/api/generate", self._defaults.body(model, False, {}))

    def learn_version(self, body: bytes) -> None:
        """
        Take the answer of `/api/version`.

        Raises:
            UpstreamError: `PROTOCOL` if it is not one; nothing has changed.
        """
        self.facts.version = parse_version(read_object(body).get("version"))

    def learn_show(self, model: str, body: bytes) -> None:
        """
        Take the answer of `/api/show` about *model*, as Ollama knows it.

        Raises:
            UpstreamError: `PROTOCOL` if it is not one; nothing has changed.
        """
        self.facts.learn(model, read_object(body))

    def settings(self) -> Mapping[str, Any]:
        return {
            **super().settings(),
            "keep_alive": self._defaults.keep_alive,
            "num_ctx": self._defaults.num_ctx,
            "context_overflow": self._defaults.context_overflow,
            "continuation": self.continuation,
        }

    def _heard(self, call: Call, error: UpstreamError) -> UpstreamError:
        """Learn from a failure, so that the next call does not run into it again; hide what is secret."""
        if failures.NO_THINKING.search(error.message):
            self.facts.thinking_refused(self.model_for(call.model))
        key = self._api_key.get_secret_value() if self._api_key is not None else None
        error.message = without_keys(error.message, key)
        error.args = (error.message,)
        return error

    def _show_reader(self, model: str) -> Callable[[bytes], None]:
        return lambda body: self.learn_show(model, body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> UpstreamRequest:
        headers = self._headers()
        if body is not None:
            headers.append((b"content-type", b"application/json"))
        data = b"" if body is None else dumps(body)
        return UpstreamRequest(method, self._path + path, headers, data)

    def _headers(self) -> list[Header]:
        """Nothing of the caller's: Ollama refuses foreign origins, and the key is meant for another."""
        headers: list[Header] = [(b"accept", b"application/json, application/x-ndjson")]
        if self._api_key is not None:
            headers.append((b"authorization", b"Bearer " + self._api_key.get_secret_value().encode()))
        return headers


def server_url(url: str) -> str:
    """Return the address of the server that *url* leads to, whichever of its endpoints that names."""
    while True:
        bare = url.rstrip("/")
        for path in _ENDPOINT_PATHS:
            bare = bare.removesuffix(path)
        if bare == url:
            return url
        url = bare


def _native_duration(keep_alive: str | int | None) -> str | int | None:
    """Ollama reads "5m" and the number 300, but not the text "300"."""
    if isinstance(keep_alive, str) and keep_alive.strip().lstrip("-").isdecimal():
        return int(keep_alive)
    return keep_alive


def _keeps_models(keep_alive: str | int | None) -> bool:
    """Whether it says that a model stays loaded: neither unset nor zero (`0`, `"0s"`, `"0m0s"`)."""
    return keep_alive is not None and any(digit in "123456789" for digit in str(keep_alive))
