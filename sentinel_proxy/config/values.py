"""
What single values must look like.

A type of this module is a plain Python type with its rule attached. The `ValueError` of a rule
becomes the text a person reads after the key's name, so it says what would be right and never
quotes the value: it may be a secret in the wrong place.
"""

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, WrapValidator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from sentinel_proxy.config.redis_url import SCHEMES as REDIS_SCHEMES
from sentinel_proxy.config.redis_url import parse_redis_url

Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Text = Annotated[str, Field(min_length=1)]

# Names travel in headers, metric labels and paths of the admin API, and `x-sentinel-trail` puts
# "," and ":" between them.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# What Go's time.ParseDuration reads, which is what Ollama does with a keep_alive in text.
DURATION = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*")


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(
            "must be 1 to 64 letters, digits, dots, dashes or underscores, not beginning with a sign"
        )
    return text


def _namespace(text: str) -> str:
    """Refuse braces: they tell a Redis cluster which part of a key says where it is kept, and we set them."""
    if "{" in text or "}" in text:
        raise ValueError("must not have braces in it")
    return text


def _secret(secret: SecretStr) -> SecretStr:
    """Refuse what no HTTP header can carry: an accepted key must be a usable key."""
    text = secret.get_secret_value()
    if not text:
        raise ValueError("must not be empty; leave the key out instead")
    if not all("!" <= character <= "~" for character in text):
        raise ValueError("must be printable ASCII without spaces: an HTTP header cannot carry it otherwise")
    return secret


def _base_url(text: str) -> str:
    """Return *text* without trailing slashes: paths are appended to it."""
    if not all("!" <= character <= "~" for character in text):
        raise ValueError("must be printable ASCII without spaces (an international host in its xn-- form)")
    try:
        url = urlsplit(text)
        port, host = url.port, url.hostname
    except ValueError:
        raise ValueError("is not a URL: its host or port cannot be read") from None
    if url.scheme not in ("http", "https"):
        raise ValueError('must begin with "http://" or "https://"')
    if "@" in url.netloc:
        raise ValueError("must not carry credentials; put the key into api_key")
    if not host or port == 0:
        raise ValueError('must name a host, as "https://api.openai.com/v1" does')
    if "?" in text or "#" in text:
        raise ValueError("must end with its path: no query, no fragment")
    return text.rstrip("/")


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        problem = 'must be an IP address or a network such as "10.0.0.0/8", with no bit set beyond the prefix'
        raise ValueError(problem) from None
    return text


def _state_url(text: str) -> str:
    scheme, found, path = text.partition("://")
    if found and scheme in REDIS_SCHEMES:
        parse_redis_url(text)
    elif not found or scheme != "sqlite":
        raise ValueError(
            'must be "sqlite://" (in memory), "sqlite:///path/state.db" or "redis://host:6379/0"'
            f" (or begin with {', '.join(REDIS_SCHEMES[1:])})"
        )
    elif path and not (path.startswith("/") and path.strip("/")):
        raise ValueError(
            'must be "sqlite://" (in memory) or name a file by its absolute path:'
            ' "sqlite:///var/lib/sentinel/state.db"'
        )
    return text


def _keep_alive(value: object, handler: ValidatorFunctionWrapHandler) -> str | int:
    """Judge text and number by one rule, so that a mistake is one mistake."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and DURATION.fullmatch(value):
        return value
    raise ValueError(
        'must be a duration such as "5m", or whole seconds; negative: keep the model loaded for good'
    )


Name = Annotated[str, AfterValidator(_name)]
Namespace = Annotated[Text, AfterValidator(_namespace)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Network = Annotated[str, AfterValidator(_network)]
StateUrl = Annotated[str, AfterValidator(_state_url)]
KeepAlive = Annotated[str | int, WrapValidator(_keep_alive)]
