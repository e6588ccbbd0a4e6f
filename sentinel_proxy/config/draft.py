"""
The configuration while it is put together: plain tables, and where each value came from.

Nothing is judged in here. A draft remembers enough to speak of any key as the person wrote it:
by its dotted name in the file, or by the variable or flag that set it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from sentinel_proxy.config.sections import Config, Section
from sentinel_proxy.errors import ConfigError

Path = tuple[str | int, ...]
"""Where a value is: keys of tables and indices of lists, from the top."""

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
# Twenty digits hold every 64-bit number; Python refuses to read some thousands of them.
NUMBER = re.compile(r"[+-]?\d{1,20}(?P<fraction>\.\d{1,20})?(?P<exponent>[eE][+-]?\d{1,3})?", re.ASCII)
REFERENCE = "env:"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def dotted(path: Path) -> str:
    """Write *path* as people do: `providers[0].models."*"`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if BARE_KEY.fullmatch(step) else f'"{step}"')
    return text


def annotation_at(path: Path) -> Any:
    """Return the declared type of the key at *path*; None where there is no such key."""
    here: Any = Config
    for step in path:
        if isinstance(here, type) and issubclass(here, Section):
            field = here.model_fields.get(str(step))
            here = field.annotation if field else None
        elif get_origin(here) is tuple and isinstance(step, int):
            here = get_args(here)[0]
        elif get_origin(here) is dict:
            here = get_args(here)[1]
        else:
            return None
    return here


def _takes_a_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(_takes_a_number(part) for part in get_args(annotation))


def _read(text: str, path: Path) -> str | int | float:
    """Variables hold text: read a number where the key at *path* takes one."""
    number = NUMBER.fullmatch(text)
    if number is None or not _takes_a_number(annotation_at(path)):
        return text
    return float(text) if number["fraction"] or number["exponent"] else int(text)


class Draft:
    """
    Values by path, each overriding the one before.

    Three tables map paths to names: `origins` to the variable or flag that set the value,
    `references` to what an "env:NAME" names, `absent` to those of them that are not set.
    """

    def __init__(self, tree: Mapping[str, Any], *, source: str = "") -> None:
        self.tree: dict[str, Any] = dict(tree)
        self.source = source
        self.origins: dict[Path, str] = {}
        self.references: dict[Path, str] = {}
        self.absent: dict[Path, str] = {}
        self.notes: list[str] = []
        self.mistakes: list[ConfigError] = []

    def get(self, path: Path) -> Any:
        """Return the value at *path*, None if there is none."""
        here: Any = self.tree
        for step in path:
            if isinstance(here, dict):
                here = here.get(step)
            elif isinstance(here, tuple) and isinstance(step, int) and step < len(here):
                here = here[step]
            else:
                return None
        return here

    def set(self, path: Path, value: str | int, *, origin: str) -> None:
        """
        Put *value* at *path* on behalf of the variable or flag *origin*.

        Where something else than a table stands in the way, that mistake is the one to
        report and this does nothing.
        """
        here: Any = self.tree
        for step in path[:-1]:
            here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
            if not isinstance(here, (dict, tuple)):
                return
        if isinstance(here, tuple):
            return
        here[path[-1]] = _read(value, path) if isinstance(value, str) else value
        self.origins[path] = origin
        self.absent.pop(path, None)

    def resolve(self, variables: Mapping[str, str]) -> None:
        """Replace every "env:NAME" by the value of NAME; where it is not set, the key goes."""
        self.tree = {key: value for key, value in self._resolved(self.tree, (), variables)}

    def _resolved(
        self, table: Mapping[str, Any], at: Path, variables: Mapping[str, str]
    ) -> Iterator[tuple[str, Any]]:
        for key, value in table.items():
            for kept in self._resolve(value, (*at, key), variables):
                yield key, kept

    def _resolve(self, value: Any, path: Path, variables: Mapping[str, str]) -> Iterator[Any]:
        """Yield what stands for *value*: itself, what its variable holds, or nothing."""
        if isinstance(value, dict):
            yield dict(self._resolved(value, path, variables))
        elif isinstance(value, list):
            items: list[Any] = []
            for item in value:
                items.extend(self._resolve(item, (*path, len(items)), variables))
            yield tuple(items)
        elif isinstance(value, str) and value.startswith(REFERENCE):
            yield from self._look_up(value.removeprefix(REFERENCE), path, variables)
        else:
            yield value

    def _look_up(self, name: str, path: Path, variables: Mapping[str, str]) -> Iterator[Any]:
        self.references[path] = name
        if not VARIABLE.fullmatch(name):
            self.mistakes.append(self.mistake(path, 'names no variable: write "env:NAME"'))
        elif name in variables:
            self.origins[path] = name
            yield _read(variables[name], path)
        else:
            self.absent[path] = name

    def mistake(self, path: Path, problem: str) -> ConfigError:
        """Return the error about the value at *path*, under the name that its author knows."""
        origin = self.origins.get(path)
        if origin is not None:
            return ConfigError(origin, f"{problem} (it sets {dotted(path)})")
        return ConfigError(dotted(path), problem, source=self.source)
