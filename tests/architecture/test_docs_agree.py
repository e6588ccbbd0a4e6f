"""The settings in the code, in docs/configuration.md and in config.example.toml are the same."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sentinel_proxy
from sentinel_proxy.config import Config, Section, as_public_dict, load
from sentinel_proxy.config.environment import SETS, Environment
from sentinel_proxy.config.mistakes import every_key

ROOT = Path(sentinel_proxy.__file__).parent.parent
EXAMPLE = ROOT / "config.example.toml"
MANUAL = ROOT / "docs" / "configuration.md"

NONE, REQUIRED = "*none*", "*required*"
ROW = re.compile(r"\| `(?P<key>[^`]+)` \| (?P<second>.+?) \|")
HEADING = re.compile(r"#+ +(\[+(?P<table>[a-z_.]+)\]+)?")
# "#key = ..." is a key that is not set; "# words" is a comment.
UNSET = re.compile(r"^#(?=\[|[a-z_]+ = )", re.MULTILINE)


def sections(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield every table by its dotted name, the top by an empty one."""
    yield prefix, section
    for name, field in section.model_fields.items():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, Section):
                yield from sections(part, f"{prefix}.{name}".lstrip("."))


def defaults() -> dict[str, Any]:
    """Return the default of every key by dotted name, as JSON types; `...` where one is required."""
    found = {}
    for table, section in sections():
        for name, field in section.model_fields.items():
            key = f"{table}.{name}".lstrip(".")
            if key in every_key():
                default = ... if field.is_required() else field.default
                found[key] = list(default) if isinstance(default, tuple) else default
    return found


def documented() -> dict[str, Any]:
    """Return the same as the manual tells it."""
    found, table = {}, ""
    for line in keys_part().splitlines():
        if heading := HEADING.match(line):
            table = heading["table"] or ""
        if row := ROW.match(line):
            key = f"{table}.{row['key']}".lstrip(".")
            assert key not in found, f"{key} is documented twice"
            found[key] = value_of(row["second"])
    return found


def keys_part() -> str:
    return MANUAL.read_text().partition("## Keys\n")[2].partition("## Environment\n")[0]


def value_of(cell: str) -> Any:
    if cell in (NONE, REQUIRED):
        return None if cell == NONE else ...
    return tomllib.loads(f"value = {cell.strip('`')}")["value"]


def example() -> dict[str, Any]:
    """Return the example with every key set, also those that it only shows."""
    return tomllib.loads(UNSET.sub("", EXAMPLE.read_text()))


def flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; the tables of a list are one."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                yield from flat(item, f"{key}.")
        elif isinstance(value, dict) and key not in every_key():
            yield from flat(value, f"{key}.")
        else:
            yield key, value


def test_the_manual_has_every_key_with_its_default() -> None:
    assert documented() == defaults()


def test_the_example_has_every_key_and_no_other() -> None:
    assert {key for key, _ in flat(example())} == set(every_key())


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, value in flat(example()) if not key.startswith(("providers.", "clients."))],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_the_example_shows_the_default(key: str, value: Any) -> None:
    shown = None if str(value).startswith("env:") else value

    assert shown == defaults()[key]


def test_the_example_runs_as_it_is_and_is_what_runs_without_it() -> None:
    from_the_example, from_nothing = load(EXAMPLE, {}), load(None, {})

    assert as_public_dict(from_the_example.config) == as_public_dict(from_nothing.config)


def test_the_example_with_everything_set_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "everything.toml"
    path.write_text(UNSET.sub("", EXAMPLE.read_text()))

    config = load(path, {"WEB_CLIENT_KEY": "web"}).config

    assert [client.name for client in config.clients] == ["web"]


def test_the_manual_names_every_variable_and_the_key_it_sets() -> None:
    part = MANUAL.read_text().partition("## Environment\n")[2]
    rows = {row["key"]: row["second"] for row in map(ROW.match, part.splitlines()) if row}

    assert set(rows) == set(Environment.model_fields)
    for name, sets in SETS.items():
        key = ".".join(f'"{step}"' if step == "*" else str(step) for step in sets.path)
        assert f"`{key}`" in rows[name], f"{name} sets {key}"
