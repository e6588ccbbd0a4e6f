"""
The environment variables that people already know, and the key that each one sets.

A file may name any other variable as "env:NAME"; that is `draft`. Nothing here reads
`os.environ`: the environment is an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sentinel_proxy.config.draft import Draft, Path, dotted
from sentinel_proxy.errors import ConfigError

FORMATS = {"development": "console", "staging": "json", "production": "json"}
"""What APP_ENV makes of an absent log.format."""


@dataclass(frozen=True, slots=True)
class Sets:
    """The key that a variable overrides; with *kind*, a key of the first provider of that kind."""

    path: Path
    kind: str | None = None


class Environment(BaseSettings):
    """Each variable by its own name; None where it is not set."""

    model_config = SettingsConfigDict(case_sensitive=True, extra="ignore", frozen=True)

    OPENAI_API_KEY: Annotated[str | None, Sets(("api_key",), "openai")] = Field(default=None, repr=False)
    OPENAI_BASE_URL: Annotated[str | None, Sets(("base_url",), "openai")] = Field(default=None, repr=False)
    OPENAI_MODEL: Annotated[str | None, Sets(("default_model",))] = None
    OLLAMA_BASE_URL: Annotated[str | None, Sets(("base_url",), "ollama")] = Field(default=None, repr=False)
    OLLAMA_MODEL: Annotated[str | None, Sets(("models", "*"), "ollama")] = None
    REDIS_URL: Annotated[str | None, Sets(("state", "url"))] = Field(default=None, repr=False)
    CIRCUIT_BREAKER_FAILURE_THRESHOLD: Annotated[str | None, Sets(("breaker", "failure_threshold"))] = None
    CIRCUIT_BREAKER_RECOVERY_TIMEOUT: Annotated[str | None, Sets(("breaker", "recovery_timeout"))] = None
    HEALTH_CHECK_INTERVAL_SECONDS: Annotated[str | None, Sets(("health", "interval"))] = None
    RATE_LIMIT_REQUESTS: Annotated[str | None, Sets(("rate_limit", "requests"))] = None
    RATE_LIMIT_WINDOW_SECONDS: Annotated[str | None, Sets(("rate_limit", "window"))] = None
    SENTINEL_ADMIN_TOKEN: Annotated[str | None, Sets(("admin", "token"))] = Field(default=None, repr=False)
    SENTINEL_HOST: Annotated[str | None, Sets(("server", "host"))] = None
    SENTINEL_PORT: Annotated[str | None, Sets(("server", "port"))] = None
    SENTINEL_CONFIG: str | None = None
    APP_ENV: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `read` hands over and look nowhere else."""
        return (init_settings,)

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Environment":
        """Pick the variables that we know out of *variables*."""
        source = EnvSettingsSource(cls)
        source.env_vars = variables
        return cls(**source())


SETS: dict[str, Sets] = {
    name: sets
    for name, field in Environment.model_fields.items()
    for sets in field.metadata
    if isinstance(sets, Sets)
}


def usable(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that hold anything; a line end left by `$(cat file)` is nobody's wish."""
    return {name: text.strip() for name, text in environ.items() if text.strip()}


def overlay(draft: Draft, environment: Environment) -> None:
    """Let every variable that is set override its key in *draft*."""
    for name, sets in SETS.items():
        text = getattr(environment, name)
        path = _target(draft, name, sets) if text is not None else None
        if path is not None:
            draft.set(path, text, origin=name)
    _overlay_format(draft, environment.APP_ENV)


def _overlay_format(draft: Draft, app_env: str | None) -> None:
    """APP_ENV changes a default: what the file says about log.format stays."""
    if app_env is None:
        return
    if app_env not in FORMATS:
        problem = 'must be "development", "staging" or "production"'
        draft.mistakes.append(ConfigError("APP_ENV", problem))
    elif draft.get(("log", "format")) is None:
        draft.set(("log", "format"), FORMATS[app_env], origin="APP_ENV")


def _target(draft: Draft, name: str, sets: Sets) -> Path | None:
    """Return the path that *name* sets in *draft*; None, and a note, where it has none."""
    if sets.kind is None:
        return sets.path
    indices = _providers_of(draft, sets.kind)
    if not indices:
        draft.notes.append(f'{name} is ignored: no provider of kind "{sets.kind}" is configured')
        return None
    index = _first_that_reads(draft, indices, "OPENAI_API_KEY") if sets.kind == "openai" else indices[0]
    if index is None:
        draft.notes.append(_kept(draft, name, indices[0]))
        return None
    return ("providers", index, *sets.path)


def _providers_of(draft: Draft, kind: str) -> list[int]:
    providers = draft.get(("providers",))
    if not isinstance(providers, tuple):
        return []
    return [at for at, table in enumerate(providers) if isinstance(table, dict) and table.get("kind") == kind]


def _first_that_reads(draft: Draft, indices: list[int], variable: str) -> int | None:
    """
    Return which provider the OPENAI_* variables speak of; None if the first reads another key.

    A key and the address it is meant for belong together. Where the file takes the first
    provider's key from, say, GROQ_API_KEY, an OPENAI_API_KEY that happens to be set would hand
    OpenAI's key to another vendor, and an OPENAI_BASE_URL that vendor's key to OpenAI.
    """
    reads = {index: draft.references.get(("providers", index, "api_key")) for index in indices}
    for index in indices:
        if reads[index] == variable:
            return index
    return indices[0] if reads[indices[0]] is None else None


def _kept(draft: Draft, name: str, index: int) -> str:
    path: Path = ("providers", index, "api_key")
    return f"{name} is ignored: {dotted(path)} reads {draft.references[path]}, which is another account"
