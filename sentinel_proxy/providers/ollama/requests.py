"""
Calls to be sent: what `/api/chat`, `/api/generate` and `/api/embed` get for a chat completion,
a legacy completion and embeddings.

Each function returns the native body and the fields of the call that it could not honour. The
Responses API, whose conversation has a form of its own, is in `responses_request`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sentinel_proxy.model import Call
from sentinel_proxy.providers.ollama.facts import Facts
from sentinel_proxy.providers.ollama.fields import flag, given, integer, mapping, objects, single, string
from sentinel_proxy.providers.ollama.messages import native_messages
from sentinel_proxy.providers.ollama.options import (
    MAX_INT,
    Options,
    chat_logprobs,
    effort_of,
    is_gpt_oss,
    limit,
    output_format,
    sampling,
    think,
)
from sentinel_proxy.providers.ollama.refusals import invalid_type, invalid_value, unsupported
from sentinel_proxy.providers.ollama.tools import chat_offer

Body = dict[str, Any]

DEFAULT_COMPLETION_TOKENS: Final = 16
"""OpenAI's default of `max_tokens` in legacy completions; Ollama's would be endless."""

_CHAT_LOSSY: Final = ("logit_bias", "prediction", "verbosity")


@dataclass(frozen=True, slots=True)
class Defaults:
    """
    What an operator sets for one server.

    Runner settings such as `num_ctx` must be the same in every request: another value makes
    Ollama load the model again.
    """

    keep_alive: str | int | None = None
    num_ctx: int | None = None
    context_overflow: Literal["error", "truncate"] = "error"

    def body(self, model: str, stream: bool, options: Options) -> Body:
        """Return what every inference request has; `stream` is always said, Ollama's default is true."""
        body: Body = {"model": model, "stream": stream}
        if self.num_ctx is not None:
            options = {**options, "num_ctx": self.num_ctx}
        if options:
            body["options"] = options
        return body | self.overflow()

    def overflow(self) -> Body:
        """Ollama's own default drops the oldest messages silently; ours is to fail loudly."""
        body: Body = {} if self.context_overflow == "truncate" else {"truncate": False}
        return body if self.keep_alive is None else body | {"keep_alive": self.keep_alive}


def chat_body(call: Call, model: str, facts: Facts, defaults: Defaults) -> tuple[Body, list[str]]:
    """Translate a chat completion for `/api/chat`."""
    payload, known = call.payload, facts.about(model)
    single(payload, "n")
    _no_audio_out(payload)
    if payload.get("web_search_options") is not None:
        raise unsupported("web_search_options", "Ollama does not search the web")
    stream_usage(call)
    offer = chat_offer(payload, known)
    options = sampling(payload) | limit(payload, "max_completion_tokens", "max_tokens")
    body = defaults.body(model, call.stream, options)
    body["messages"] = native_messages(objects(payload, "messages"), known)
    if offer.tools:
        body["tools"] = offer.tools
    constraint = output_format(payload.get("response_format"), "response_format")
    if constraint is not None:
        body["format"] = constraint
    body |= chat_logprobs(payload)
    body |= think(*effort_of(payload), model, facts)
    return body, [*offer.lossy, *given(payload, _CHAT_LOSSY)]


def completion_body(call: Call, model: str, facts: Facts, defaults: Defaults) -> tuple[Body, list[str]]:
    """Translate a legacy completion for `/api/generate`; the model's chat template is applied there."""
    payload = call.payload
    single(payload, "n")
    single(payload, "best_of", low=0)
    flag(payload, "echo")
    stream_usage(call)
    body = defaults.body(model, call.stream, sampling(payload) | _completion_limit(payload))
    body["prompt"] = completion_prompt(payload)
    suffix = string(payload, "suffix")
    if suffix:
        if facts.about(model).lacks("insert"):
            raise unsupported("suffix", "this Ollama model cannot fill in the middle")
        body["suffix"] = suffix
    body |= _completion_logprobs(payload)
    if facts.about(model).has("thinking") or is_gpt_oss(model, facts):
        body |= think("none", "max_tokens", model, facts)  # else the few tokens go into thoughts
    return body, given(payload, ("logit_bias",))


def completion_prompt(payload: Mapping[str, Any]) -> str:
    """Return the one text to be continued."""
    prompt = payload.get("prompt")
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            if not prompt:
                raise invalid_value("prompt", "'prompt' must not be empty")
            raise unsupported("prompt", "Ollama takes one text at a time, and no tokens")
        prompt = prompt[0]
    if prompt is not None and not isinstance(prompt, str):
        raise invalid_type("prompt", "a string or a list")
    if not prompt:
        raise invalid_value("prompt", "'prompt' must not be empty")
    return prompt


def embedding_body(call: Call, model: str, facts: Facts, defaults: Defaults) -> tuple[Body, list[str]]:
    """Translate embeddings for `/api/embed`."""
    payload = call.payload
    if string(payload, "encoding_format") not in (None, "float", "base64"):
        raise invalid_value("encoding_format", "'encoding_format' must be 'float' or 'base64'")
    texts = embedding_input(payload)
    body: Body = {"model": model, "input": texts} | defaults.overflow()
    dimensions = integer(payload, "dimensions", low=1)
    if dimensions is not None:
        body["dimensions"] = min(dimensions, MAX_INT)
    return body, []


def embedding_input(payload: Mapping[str, Any]) -> list[str]:
    """Return the texts to embed; one is a list too, because a bare empty string gets no vector natively."""
    value = payload.get("input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise invalid_type("input", "a string or a list")
    if not texts:
        raise invalid_value("input", "'input' must not be empty")
    if all(isinstance(text, str) for text in texts):
        return texts
    if all(isinstance(text, int | list) for text in texts):
        raise unsupported("input", "token ids belong to another tokenizer; send texts")
    raise invalid_type("input", "a list of strings")


def stream_usage(call: Call) -> bool:
    """Whether the caller wants token counts at the end of its stream."""
    return call.stream and flag(mapping(call.payload, "stream_options"), "include_usage")


def _no_audio_out(payload: Mapping[str, Any]) -> None:
    modalities = payload.get("modalities")
    if modalities is not None and not isinstance(modalities, list):
        raise invalid_type("modalities", "a list")
    if "audio" in (modalities or ()):
        raise unsupported("modalities", "Ollama cannot speak")


def _completion_limit(payload: Mapping[str, Any]) -> Options:
    if payload.get("max_tokens") == 0:
        raise unsupported("max_tokens", "Ollama cannot answer with no tokens at all")
    return limit(payload, "max_tokens") or {"num_predict": DEFAULT_COMPLETION_TOKENS}


def _completion_logprobs(payload: Mapping[str, Any]) -> Options:
    top = integer(payload, "logprobs", low=0, high=5)
    if top is None:
        return {}
    return {"logprobs": True, "top_logprobs": top} if top else {"logprobs": True}
