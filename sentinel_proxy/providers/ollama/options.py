"""
Sampling, limits, output format, log probabilities and reasoning effort.

What is unset stays unset, so that the values tuned into a model apply. Sampling values lie under
`options` on the wire; elsewhere Ollama ignores them without a word.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sentinel_proxy.providers.ollama.facts import Facts
from sentinel_proxy.providers.ollama.fields import flag, integer, mapping, number, string
from sentinel_proxy.providers.ollama.refusals import invalid_type, invalid_value

Options = dict[str, Any]

MAX_INT: Final = 2**31 - 1
"""Largest seed and token limit: negative ones mean something else (random, endless)."""

MAX_TOP_LOGPROBS: Final = 20

_NUMBERS: Final = ("temperature", "top_p", "frequency_penalty", "presence_penalty")

_EFFORTS: Final[dict[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
    "ultra": "max",
}

_GPT_OSS: Final[Mapping[bool | str, str]] = {False: "low", "max": "high"}


def sampling(payload: Mapping[str, Any]) -> Options:
    """Return the options that chat, completions and responses share."""
    options: Options = {}
    for name in _NUMBERS:
        value = number(payload, name)
        if value is not None:
            options[name] = value
    seed = integer(payload, "seed")
    if seed is not None:
        options["seed"] = seed & MAX_INT
    stop = _stop(payload.get("stop"))
    if stop:
        options["stop"] = stop
    return options


def limit(payload: Mapping[str, Any], *names: str) -> Options:
    """Return the bound on the answer's tokens; of *names* the first that is given wins."""
    limits = [integer(payload, name, low=1) for name in names]
    bound = next((value for value in limits if value is not None), None)
    return {} if bound is None else {"num_predict": min(bound, MAX_INT)}


def chat_logprobs(payload: Mapping[str, Any]) -> Options:
    """Return the two fields that ask for log probabilities, if the call does."""
    wanted = flag(payload, "logprobs")
    top = integer(payload, "top_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise invalid_value("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")
    if not wanted:
        return {}
    return {"logprobs": True, "top_logprobs": top} if top else {"logprobs": True}


def output_format(value: object, param: str) -> str | Mapping[str, Any] | None:
    """
    Return what constrains the output: "json", a schema, or None for free text.

    Args:
        value: `response_format` of a chat completion, or `text.format` of a Responses call,
            where the schema lies flat.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise invalid_type(param, "an object")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    if kind != "json_schema":
        raise invalid_value(param, f"'{param}' has a type that is not known here")
    holder = value.get("json_schema", value)
    schema = holder.get("schema") if isinstance(holder, Mapping) else holder
    if schema is not None and not isinstance(schema, Mapping):
        raise invalid_type(param, "an object whose schema is an object")
    return "json" if schema is None else schema


def effort_of(payload: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return how hard the model shall think, and the field that said so."""
    effort = string(payload, "reasoning_effort")
    if effort is not None:
        return effort, "reasoning_effort"
    effort = mapping(payload, "reasoning").get("effort")
    if effort is not None and not isinstance(effort, str):
        raise invalid_type("reasoning", "an object whose effort is a string")
    return effort, "reasoning"


def think(effort: str | None, param: str, model: str, facts: Facts) -> Options:
    """
    Return the `think` field for *effort*; nothing where Ollama would refuse every value.

    Args:
        model: As Ollama knows it. gpt-oss cannot stop thinking and has levels of its own.
        facts: Levels came with 0.17.7 (gpt-oss had them before), "max" with 0.22.0.
    """
    if effort is None:
        return {}
    if effort not in _EFFORTS:
        raise invalid_value(param, f"'{param}' has a value that is not known here")
    known = facts.about(model)
    if known.refused_thinking or known.lacks("thinking"):
        return {}
    value = _EFFORTS[effort]
    if is_gpt_oss(model, facts):
        return {"think": _GPT_OSS.get(value, value)}
    if isinstance(value, str) and facts.older_than(0, 17, 7):
        return {"think": True}
    if value == "max" and facts.older_than(0, 22, 0):
        return {"think": "high"}
    return {"think": value}


def is_gpt_oss(model: str, facts: Facts) -> bool:
    """Whether *model* belongs to the gpt-oss family, by its name or by what the server says."""
    name = model.lower().rpartition("/")[2]
    return name.startswith("gpt-oss") or "gptoss" in facts.about(model).families


def _stop(value: object) -> Sequence[str]:
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise invalid_type("stop", "a string or a list of strings")
    return [text for text in texts if text]
