"""
From a file and an environment to a `Config`: read, lay over, judge, tell.

Later sources win: built-in defaults, the file, the environment, the flags of the command line.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from sentinel_proxy.config import rules
from sentinel_proxy.config.draft import Draft, Path, dotted
from sentinel_proxy.config.environment import Environment, overlay, usable
from sentinel_proxy.config.mistakes import explain
from sentinel_proxy.config.sections import Config, ProviderConfig
from sentinel_proxy.errors import ConfigError, ConfigErrors

# The chain where no file names one.
OPENAI_THEN_OLLAMA: tuple[dict[str, Any], ...] = (
    {
        "name": "openai",
        "kind": "openai",
        "base_url": "https://api.openai.com/v1",
        "api_key": "env:OPENAI_API_KEY",
    },
    {
        "name": "ollama",
        "kind": "ollama",
        "base_url": "http://localhost:11434",
        "models": {"*": "llama3.2"},
        "keep_alive": "5m",
        "num_ctx": 8192,
        "continuation": "prefill",
        "context_window": 8192,
        "timeouts": {"first_token": 300},
    },
)

FLAGS: dict[str, Path] = {
    "--host": ("server", "host"),
    "--port": ("server", "port"),
    "--workers": ("server", "workers"),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    A configuration that can be used, and what was decided on the way.

    `notes` are whole sentences for people, without a secret in them: print them all.
    `path` is the file that was read, None if the environment alone decided.
    """

    config: Config
    notes: tuple[str, ...]
    path: FilePath | None


def load(
    path: FilePath | None, environ: Mapping[str, str], flags: Mapping[str, str | int | None] | None = None
) -> Loaded:
    """
    Build the configuration out of a file, the environment and the flags, the later the stronger.

    Args:
        path: TOML 1.0 in UTF-8; None: the file that SENTINEL_CONFIG names, if it names one.
        environ: Variables by name; empty and blank ones count as unset.
        flags: Values of the command line by flag (`FLAGS` knows them); None counts as not given.

    Raises:
        ConfigError: With every mistake there is in `mistakes`. Nothing has changed, so a running
            proxy can go on with the configuration it has.
    """
    variables = usable(environ)
    environment = Environment.read(variables)
    if path is None and environment.SENTINEL_CONFIG is not None:
        path = FilePath(environment.SENTINEL_CONFIG)
    draft = _draft(path, variables, environment, flags or {})
    config = _judge(draft)
    return Loaded(config, (*draft.notes, *_decisions(config, draft)), path)


def _draft(
    path: FilePath | None,
    variables: Mapping[str, str],
    environment: Environment,
    flags: Mapping[str, str | int | None],
) -> Draft:
    """Lay every source over the one before; nothing is judged yet."""
    tree = {} if path is None else _read(path)
    draft = Draft(tree, source="" if path is None else str(path))
    if "providers" not in draft.tree:
        draft.tree["providers"] = [dict(table) for table in OPENAI_THEN_OLLAMA]
        draft.notes.append("no [[providers]] are configured: the chain is openai, then ollama")
    draft.resolve(variables)
    overlay(draft, environment)
    for flag, value in flags.items():
        if value is not None:
            draft.set(FLAGS[flag], value, origin=flag)
    rules.raise_ceilings(draft)
    return draft


def _read(path: FilePath) -> dict[str, Any]:
    """Return the tables of the file."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        problem = "there is no such file"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (at byte {error.start})"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError as error:
        problem = f"is not TOML: {error}"
    raise ConfigError(str(path), problem)


def _judge(draft: Draft) -> Config:
    """Return the configuration that *draft* describes; raises all its mistakes at once."""
    config = None
    mistakes = list(draft.mistakes)
    try:
        config = Config.model_validate(draft.tree)
    except ValidationError as error:
        mistakes += explain(error, draft)
    mistakes += rules.findings(draft)
    if mistakes or config is None:
        raise _joined(mistakes)
    config._origins = {dotted(path): origin for path, origin in draft.origins.items()}
    return config


def _joined(mistakes: Sequence[ConfigError]) -> ConfigError:
    """Return one error for all *mistakes*, one mistake a key: the first is about the value itself."""
    distinct: dict[str, ConfigError] = {}
    for mistake in mistakes:
        distinct.setdefault(mistake.key, mistake)
    return mistakes[0] if len(distinct) == 1 else ConfigErrors(tuple(distinct.values()))


def _decisions(config: Config, draft: Draft) -> Iterator[str]:
    """Yield what somebody who reads the configuration alone would not know."""
    absent = dict(draft.absent)
    if not config.providers:
        yield "no provider is configured: only plugins can answer"
    for index, provider in enumerate(config.providers):
        if provider.kind == "openai" and provider.api_key is None:
            lack = absent.pop(("providers", index, "api_key"), f"{provider.name} api_key")
            yield f"no {lack}: {_whose_key(provider, config)}"
    if config.admin.token is None:
        lack = absent.pop(("admin", "token"), "admin.token")
        yield f"no {lack}: the admin faces answer loopback callers only"
    for path, variable in absent.items():
        yield f"no {variable}: {dotted(path)}, which reads it, counts as absent"


def _whose_key(provider: ProviderConfig, config: Config) -> str:
    """Say what *provider*, which has no key of its own, is called with."""
    if provider.name != config.caller_key_provider:
        return f"{provider.name} is called without a key"
    others = ", then ".join(other.name for other in config.providers if other is not provider)
    rest = f"calls without one are served by {others}" if others else "calls without one cannot be served"
    return f"callers' own keys are passed on to {provider.name}; {rest}"
