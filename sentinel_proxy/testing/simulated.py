"""
Whole providers, simulated: they answer the request they get, and fail when told to.

Where a `FaultyUpstream` plays what was scripted for a test, these serve an application: the
demo, the failure drill, somebody's own integration tests. What they say comes from `answers`,
the dialects from `openai` and `ollama`; here is what they understand and how they are ill.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Any, ClassVar, Final, Self
from urllib.parse import unquote, urlsplit

from sentinel_proxy.testing import ollama, openai
from sentinel_proxy.testing.answers import Said, reply
from sentinel_proxy.testing.scripts import Hang, Pause, Reset, Script, Send, Step
from sentinel_proxy.testing.upstream import FaultyUpstream, Received

Route = Callable[[Received], Script]
Routes = Mapping[tuple[str, str], Route]


class Outage(StrEnum):
    """How a simulated provider can be ill."""

    REFUSE = "refuse"  # it is gone: connections are refused, those that were open are reset
    UNAVAILABLE = "unavailable"  # every request is answered with 503
    HANG = "hang"  # requests are taken and never answered
    CUT_BEFORE = "cut_before"  # streams are reset before their first token; the rest works
    CUT_AFTER = "cut_after"  # streams are reset after a third of their tokens; the rest works


_CUT_SHARE: Final = {Outage.CUT_BEFORE: 0.0, Outage.CUT_AFTER: 1 / 3}


class Simulated(ABC):
    """
    A provider on loopback. Use it as an async context manager; leaving closes everything.

    Args:
        port: 0 takes a free one.
        pace_seconds: Between two tokens; an answer that is not streamed takes as long as one
            that is, and comes whole.
        models: What it offers.

    Attributes:
        asked: How often it was asked for what: `"POST /v1/chat/completions"`.
        outage_now: How it is ill; None: it is well.
    """

    _ROLE_EVENTS: ClassVar[int]  # events of a stream before its first token

    def __init__(self, *, port: int = 0, pace_seconds: float = 0.0, models: Sequence[str]) -> None:
        self.models = tuple(models)
        self.asked: Counter[str] = Counter()
        self.outage_now: Outage | None = None
        self._pace_seconds = pace_seconds
        self._server = FaultyUpstream(port).always(self._act)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.outage_now or 'well'}, asked {self.asked.total()} times>"

    @property
    @abstractmethod
    def base_url(self) -> str:
        """What to configure as the provider's `base_url`."""

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.aclose()

    async def outage(self, mode: Outage) -> None:
        """Be ill from now on, for requests that come from now on; `REFUSE` ends running ones too."""
        self.outage_now = mode
        if mode is Outage.REFUSE:
            await self._server.stop_listening()
            self._server.drop_connections()
        else:
            await self._server.listen_again()

    async def recover(self) -> None:
        """Be well from now on. What hangs goes on hanging until its caller leaves."""
        self.outage_now = None
        await self._server.listen_again()

    @abstractmethod
    def _routes(self) -> Routes:
        """What is served, by method and path."""

    @abstractmethod
    def _error(self, status: int, message: str) -> Script:
        """An error as this API gives it."""

    def _act(self, request: Received) -> Iterable[Step]:
        path = unquote(urlsplit(request.target).path)
        self.asked[f"{request.method} {path}"] += 1
        if self.outage_now is Outage.HANG:
            return [Hang()]
        if self.outage_now is Outage.UNAVAILABLE:
            return self._error(503, "The server is overloaded or not ready yet.")
        route = self._routes().get((request.method, path))
        if route is None:
            return self._error(404, f"The simulation does not serve {request.method} {path}.")
        try:
            return route(request)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return self._error(400, "The simulation could not make sense of the request.")

    def _whole(self, said: Said, script: Script) -> Script:
        """Let an answer that is not streamed take its time."""
        return [Pause(self._pace_seconds * len(said.tokens)), *script]

    def _stream(self, said: Said, script: Script) -> Script:
        """Break a stream off if that is how we are ill."""
        share = _CUT_SHARE.get(self.outage_now) if self.outage_now is not None else None
        if share is None:
            return script
        return _cut_after(script, self._ROLE_EVENTS + int(len(said.tokens) * share))


class SimulatedOpenAI(Simulated):
    """OpenAI's API, as far as chat completions and models go."""

    _ROLE_EVENTS = 1

    def __init__(
        self,
        *,
        port: int = 0,
        pace_seconds: float = 0.0,
        models: Sequence[str] = ("gpt-4o", "gpt-4o-mini"),
    ) -> None:
        super().__init__(port=port, pace_seconds=pace_seconds, models=models)

    @property
    def base_url(self) -> str:
        return f"{self._server.url}/v1"

    def _routes(self) -> Routes:
        one_each = {("GET", f"/v1/models/{model}"): self._model for model in self.models}
        return {
            ("POST", "/v1/chat/completions"): self._chat,
            ("GET", "/v1/models"): lambda _: openai.openai_models(*self.models),
            **one_each,
        }

    def _error(self, status: int, message: str) -> Script:
        return openai.openai_error(status, None, message)

    def _model(self, request: Received) -> Script:
        return openai.openai_model(unquote(urlsplit(request.target).path).removeprefix("/v1/models/"))

    def _chat(self, request: Received) -> Script:
        asked = request.json()
        if (asked.get("n") or 1) != 1:
            return openai.openai_error(400, None, "The simulation gives one choice.", param="n")
        model = asked["model"]
        if model not in self.models:
            message = f"The model `{model}` does not exist or you do not have access to it."
            return openai.openai_error(404, "model_not_found", message)
        said = reply(
            asked["messages"],
            tools=_tools_wanted(asked),
            format=_format_wanted(asked.get("response_format") or {}),
            max_tokens=asked.get("max_completion_tokens") or asked.get("max_tokens"),
        )
        finish = "tool_calls" if said.tool_calls else "length" if said.limited else "stop"
        if not asked.get("stream"):
            script = openai.openai_completion(
                said.text, model=model, usage=said.usage, finish_reason=finish, tool_calls=said.tool_calls
            )
            return self._whole(said, script)
        include_usage = (asked.get("stream_options") or {}).get("include_usage")
        script = openai.openai_stream(
            said.tokens,
            model=model,
            usage=said.usage if include_usage else None,
            finish_reason=finish,
            tool_calls=said.tool_calls,
            pause=self._pace_seconds,
        )
        return self._stream(said, script)


class SimulatedOllama(Simulated):
    """Ollama's native API, as far as chat and what is asked about models go."""

    _ROLE_EVENTS = 0

    def __init__(
        self, *, port: int = 0, pace_seconds: float = 0.0, models: Sequence[str] = ("llama3.2",)
    ) -> None:
        super().__init__(port=port, pace_seconds=pace_seconds, models=models)

    @property
    def base_url(self) -> str:
        return self._server.url

    def _routes(self) -> Routes:
        return {
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/show"): self._show,
            ("GET", "/api/tags"): lambda _: ollama.ollama_tags(*self.models),
            ("GET", "/api/ps"): lambda _: ollama.ollama_ps(*self.models),
            ("GET", "/api/version"): lambda _: ollama.ollama_version(),
        }

    def _error(self, status: int, message: str) -> Script:
        return ollama.ollama_error(status, message)

    def _offers(self, model: str) -> bool:
        return model.removesuffix(":latest") in {name.removesuffix(":latest") for name in self.models}

    def _not_found(self, model: str) -> Script:
        return self._error(404, f"model '{model}' not found")

    def _show(self, request: Received) -> Script:
        model = request.json()["model"]
        return ollama.ollama_show("completion", "tools") if self._offers(model) else self._not_found(model)

    def _chat(self, request: Received) -> Script:
        asked = request.json()
        model = asked["model"]
        if not self._offers(model):
            return self._not_found(model)
        limit = (asked.get("options") or {}).get("num_predict", -1)
        said = reply(
            asked["messages"],
            tools=asked.get("tools") or (),
            format={} if asked.get("format") == "json" else asked.get("format") or None,
            max_tokens=limit if limit >= 0 else None,
        )
        reason = "length" if said.limited else "stop"
        if asked.get("stream", True):
            script = ollama.ollama_stream(
                said.tokens,
                model=model,
                usage=said.usage,
                done_reason=reason,
                tool_calls=said.tool_calls,
                pause=self._pace_seconds,
            )
            return self._stream(said, script)
        script = ollama.ollama_completion(
            said.text, model=model, usage=said.usage, done_reason=reason, tool_calls=said.tool_calls
        )
        return self._whole(said, script)


def _tools_wanted(asked: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The tools to choose from, as `tool_choice` leaves them."""
    choice, tools = asked.get("tool_choice"), asked.get("tools") or ()
    if choice == "none":
        return ()
    if isinstance(choice, Mapping):
        name = choice["function"]["name"]
        return [tool for tool in tools if tool["function"]["name"] == name]
    return tools


def _format_wanted(response_format: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema to obey, `{}` for any object, None for text."""
    match response_format.get("type"):
        case "json_object":
            return {}
        case "json_schema":
            schema: Mapping[str, Any] = response_format["json_schema"].get("schema") or {}
            return schema
    return None


def _cut_after(script: Script, events: int) -> Script:
    """Play the head and so many events of a stream, then reset."""
    left = events + 1
    steps: list[Step] = []
    for step in script:
        left -= isinstance(step, Send)
        if left < 0:
            break
        steps.append(step)
    return [*steps, Reset()]
