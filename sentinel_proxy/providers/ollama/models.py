"""The list of installed models, `/api/tags`, as `/v1/models` shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sentinel_proxy.providers.base import ModelEntry
from sentinel_proxy.providers.ollama.envelope import unix_seconds
from sentinel_proxy.providers.ollama.failures import protocol
from sentinel_proxy.wire.json import loads

Description = Mapping[str, Any]


def read_object(body: bytes) -> Description:
    """
    Parse the body of a 2xx answer about the server or its models.

    Raises:
        UpstreamError: `PROTOCOL`: it is not a JSON object.
    """
    try:
        value = loads(body)
    except ValueError as error:
        raise protocol("the upstream's answer is not JSON") from error
    if not isinstance(value, Mapping):
        raise protocol("the upstream's answer is not a JSON object")
    return value


def read_models(body: bytes) -> dict[str, Description]:
    """
    Return the installed models by name, in the server's order.

    Raises:
        UpstreamError: `PROTOCOL`: it is not a model list.
    """
    models = read_object(body).get("models")
    if not isinstance(models, list):
        raise protocol("the upstream's answer is not a list of models")
    described = [model for model in models if isinstance(model, Mapping)]
    return {name: model for model in described if (name := _name(model))}


def model_entries(models: Mapping[str, Description]) -> Sequence[ModelEntry]:
    """Return the lines of `/v1/models`; a model belongs to its namespace, or to Ollama's library."""
    return [
        ModelEntry(name, unix_seconds(model.get("modified_at")), name.rpartition("/")[0] or "library")
        for name, model in models.items()
    ]


def _name(model: Description) -> str:
    names = (model.get("model"), model.get("name"))
    return next((name for name in names if isinstance(name, str) and name), "")
