"""
The effective configuration for people and for `GET /api/config`, every secret masked.

A mask says that there is a secret and nothing of it: not its length, not its last characters.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import SecretStr

from sentinel_proxy.config.draft import BARE_KEY, Path, dotted
from sentinel_proxy.config.sections import Config, Section

MASK = "****"
INLINE = {"models"}
"""Tables that are the value of one key; all others are sections."""

# Where redis-py takes credentials: in the query, and before the host. In this order, for an "@" in
# an unquoted password would end the second too early.
CREDENTIALS = [re.compile(r"(?<=password=).*", re.DOTALL), re.compile(r"(?<=://).*(?=@)", re.DOTALL)]


def as_public_dict(config: Config) -> dict[str, Any]:
    """
    Return *config* as JSON types, for the eyes of operators.

    Keys that are not set are None. Secrets, and the credentials of `state.url`, are "****".
    """
    return _table(config)


def effective(config: Config) -> str:
    """
    Return *config* as TOML: every key, defaults included, secrets masked.

    A key that came from a variable or a flag says so in a comment behind it; a key that is not
    set is a comment. But for the secrets, reading it back gives the same configuration.
    """
    return "\n".join(_lines(_table(config), (), config.origins)).strip() + "\n"


def _table(section: Section) -> dict[str, Any]:
    return {name: _public(getattr(section, name)) for name in type(section).model_fields}


def _public(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Section):
        return _table(value)
    if isinstance(value, tuple):
        return [_public(item) for item in value]
    if isinstance(value, str):
        return _without_credentials(value)
    return dict(value) if isinstance(value, dict) else value


def _without_credentials(url: str) -> str:
    for place in CREDENTIALS:
        url = place.sub(MASK, url)
    return url


def _lines(table: Mapping[str, Any], path: Path, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of *table*: its values first, since TOML wants its tables behind them."""
    for key, value in table.items():
        if not _is_table(key, value) and not _is_list_of_tables(key, value):
            yield _assignment(key, value, (*path, key), origins)
    for key, value in table.items():
        below: Path = (*path, key)
        if _is_table(key, value):
            if path and not any(item is not None for item in value.values()):
                continue
            yield from ("", f"[{_header(below)}]")
            yield from _lines(value, below, origins)
        elif _is_list_of_tables(key, value):
            for index, item in enumerate(value):
                yield from ("", f"[[{_header(below)}]]")
                yield from _lines(item, (*below, index), origins)


def _is_table(key: str, value: Any) -> bool:
    return isinstance(value, dict) and key not in INLINE


def _is_list_of_tables(key: str, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _header(path: Path) -> str:
    return dotted(tuple(step for step in path if isinstance(step, str)))


def _assignment(key: str, value: Any, path: Path, origins: Mapping[str, str]) -> str:
    if value is None:
        return f"# {key} is not set"
    here = dotted(path)
    names = [name for at, name in origins.items() if at == here or at.startswith((f"{here}.", f"{here}["))]
    return f"{key} = {_literal(value)}" + (f"  # {', '.join(dict.fromkeys(names))}" if names else "")


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        pairs = [f"{_key(key)} = {_literal(item)}" for key, item in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, float) and value.is_integer() and value < 10**15:
        return str(int(value))
    return repr(value)


def _key(text: str) -> str:
    return text if BARE_KEY.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    """Return *text* as a basic string of TOML 1.0: controls, quotes and backslashes escaped."""
    return '"' + re.sub(r'[\x00-\x1f\x7f"\\]', lambda match: f"\\u{ord(match[0]):04x}", text) + '"'
