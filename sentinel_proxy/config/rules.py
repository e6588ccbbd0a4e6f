"""
What no single value can tell: rules between values.

The rules read the draft, not the finished `Config`, so that they speak up beside mistakes of
single values; a value of the wrong type is left to its own mistake.
"""

from collections.abc import Iterator
from typing import Any

from sentinel_proxy.config.draft import Draft, Path, dotted
from sentinel_proxy.config.mistakes import what
from sentinel_proxy.config.sections import Config
from sentinel_proxy.errors import ConfigError

Finding = tuple[Path, str]
"""The key at fault, and what is wrong with it."""

KINDS = ("openai", "ollama")
# Key of a provider -> the only kind that knows it.
ONLY_FOR = {"keep_alive": "ollama", "num_ctx": "ollama"}
# What grows, and where it stops.
CEILINGS: list[tuple[Path, Path]] = [
    (("retry", "backoff"), ("retry", "max_backoff")),
    (("breaker", "recovery_timeout"), ("breaker", "max_recovery_timeout")),
]
# Lists of tables, and the keys in them that must differ.
DISTINCT = [("providers", "name"), ("clients", "name"), ("clients", "key")]


def raise_ceilings(draft: Draft) -> None:
    """Lift a ceiling that nobody wrote to the floor that somebody did: one variable must be enough."""
    for floor, ceiling in CEILINGS:
        low = _number(draft.get(floor))
        if low is not None and draft.get(ceiling) is None and low > _default(ceiling):
            draft.set(ceiling, draft.get(floor), origin=draft.origins.get(floor, dotted(floor)))
            draft.notes.append(f"{dotted(ceiling)} follows {dotted(floor)}, which is longer than its default")


def findings(draft: Draft) -> Iterator[ConfigError]:
    """Yield every mistake between values of *draft*."""
    for rule in (_ceilings, _distinct, _kinds, _workers):
        for path, problem in rule(draft):
            yield draft.mistake(path, problem)


def _ceilings(draft: Draft) -> Iterator[Finding]:
    for floor, ceiling in CEILINGS:
        low, high = _number(_effective(draft, floor)), _number(_effective(draft, ceiling))
        if low is not None and high is not None and high < low:
            yield ceiling, f"must be at least {dotted(floor)}, which is {what(low)}, not {what(high)}"


def _distinct(draft: Draft) -> Iterator[Finding]:
    for table, key in DISTINCT:
        seen: dict[str, Path] = {}
        for index, value in _column(draft, table, key):
            path: Path = (table, index, key)
            if value in seen:
                yield path, f"must differ from {dotted(seen[value])}; give each its own"
            seen.setdefault(value, path)


def _kinds(draft: Draft) -> Iterator[Finding]:
    for index, kind in _column(draft, "providers", "kind"):
        for key, only in ONLY_FOR.items():
            path: Path = ("providers", index, key)
            if kind in KINDS and kind != only and draft.get(path) is not None:
                yield path, f'is a key of providers of kind "{only}"; this one is of kind "{kind}"'


def _workers(draft: Draft) -> Iterator[Finding]:
    workers, url = _number(draft.get(("server", "workers"))), _effective(draft, ("state", "url"))
    if workers is not None and workers > 1 and str(url).startswith("sqlite://"):
        problem = (
            "must be 1 where state.url is not a Redis: several workers would each know another truth"
            ' about the providers; set state.url (or REDIS_URL) to one such as "redis://localhost:6379/0"'
        )
        yield ("server", "workers"), problem


def _column(draft: Draft, table: str, key: str) -> Iterator[tuple[int, str]]:
    """Yield index and value of every text under *key* in the list *table*."""
    rows = draft.get((table,))
    for index in range(len(rows) if isinstance(rows, tuple) else 0):
        value = draft.get((table, index, key))
        if isinstance(value, str):
            yield index, value


def _effective(draft: Draft, path: Path) -> Any:
    value = draft.get(path)
    return _default(path) if value is None else value


def _default(path: Path) -> Any:
    """Return the default of a key of a section."""
    section, key = path
    return getattr(getattr(Config(), str(section)), str(key))


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
