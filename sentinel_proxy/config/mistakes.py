"""
From the words of the validator to words for whoever wrote the configuration.

Texts say what would be right. They quote numbers and our own vocabulary, never a text that
was given: a secret in the wrong place must not reach a terminal or a log.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sentinel_proxy.config.draft import NUMBER, Draft, Path, annotation_at, dotted
from sentinel_proxy.config.sections import Config, Section
from sentinel_proxy.errors import ConfigError

NAMES_OF_TYPES: list[tuple[type | tuple[type, ...], str]] = [
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "text"),
    (dict, "a table"),
    ((list, tuple), "a list"),
]


def explain(error: ValidationError, draft: Draft) -> Iterator[ConfigError]:
    """Yield every mistake that *error* holds, in our words."""
    for details in error.errors(include_url=False):
        path = details["loc"]
        yield draft.mistake(path, _problem(details, path, draft))


def _problem(details: ErrorDetails, path: Path, draft: Draft) -> str:
    if details["type"] == "missing":
        return _missing(path, draft)
    if details["type"] == "extra_forbidden":
        return _unknown(path)
    return PROBLEMS[details["type"]](details["input"], details.get("ctx", {}), path)


def _missing(path: Path, draft: Draft) -> str:
    variable = draft.absent.get(path)
    if variable is None:
        return "is missing; it has no default"
    if path[0] == "clients":
        return f"reads {variable}, which is not set; a client without a key cannot be let in"
    return f"reads {variable}, which is not set, and has no default"


def _unknown(path: Path) -> str:
    """Name the nearest key: of the same table if one is like it, else the same word elsewhere."""
    table, key = path[:-1], str(path[-1])
    here = list(_keys_of(annotation_at(table)))
    like = get_close_matches(key, here, n=1)
    if like:
        return f"is not a key; did you mean {dotted((*table, like[0]))}?"
    elsewhere = [known for known in every_key() if known.rpartition(".")[2] == key]
    elsewhere += get_close_matches(key, every_key(), n=1)
    if elsewhere:
        where = "" if "." in elsewhere[0] else ", which stands above the first table"
        return f"is not a key; did you mean {elsewhere[0]}{where}?"
    return f"is not a key; {dotted(table) or 'the file'} knows {', '.join(here)}"


def every_key() -> list[str]:
    """Return the dotted name of every key there is, without indices: `providers.timeouts.connect`."""
    return list(_below(Config, ""))


def _below(section: type[Section], prefix: str) -> Iterator[str]:
    for name in section.model_fields:
        inner = _section_in(section.model_fields[name].annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from _below(inner, f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that *annotation* is, or is a list of."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _keys_of(annotation: Any) -> Iterator[str]:
    section = _section_in(annotation)
    yield from section.model_fields if section else ()


def what(value: Any) -> str:
    """Say what *value* is without quoting it, unless it is a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100:
        return f"{value:.15g}"
    return next((name for kind, name in NAMES_OF_TYPES if isinstance(value, kind)), "a date or time")


def _wanted_number(value: Any, kind: str) -> str:
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return f"must be {kind}: write {value} without the quotes"
    return f"must be {kind}, not {what(value)}"


def _wanted_switch(value: Any) -> str:
    if value in ("true", "false"):
        return f"must be true or false: write {value} without the quotes"
    return f"must be true or false, not {what(value)}"


def _one_of(value: Any, context: Mapping[str, Any]) -> str:
    known = re.findall(r"'([^']*)'", context["expected"])
    like = get_close_matches(value, known, n=1) if isinstance(value, str) else []
    choice = " or ".join([", ".join(f'"{word}"' for word in known[:-1]), f'"{known[-1]}"'])
    return f"must be {choice}" + (f'; did you mean "{like[0]}"?' if like else "")


def _not_a_section(path: Path) -> str:
    name = re.sub(r"\[\d+\]", "", dotted(path))
    return f"must be a table: [[{name}]]" if isinstance(path[-1], int) else f"must be a table: [{name}]"


def _not_a_list(value: Any, path: Path) -> str:
    if _section_in(annotation_at(path)):
        return f"must be a list of tables: write [[{dotted(path)}]] above each"
    return f"must be a list, not {what(value)}"


Words = Callable[[Any, Mapping[str, Any], Path], str]

# One row for each way in which a value can fail the types of `sections`; a test holds it complete.
PROBLEMS: dict[str, Words] = {
    "int_type": lambda value, _, path: _wanted_number(value, "a whole number"),
    "float_type": lambda value, _, path: _wanted_number(value, "a number"),
    "bool_type": lambda value, _, path: _wanted_switch(value),
    "finite_number": lambda value, _, path: "must be a finite number",
    "greater_than": lambda value, context, path: f"must be more than {context['gt']:g}, not {what(value)}",
    "greater_than_equal": lambda value, context, path: (
        f"must be at least {context['ge']:g}, not {what(value)}"
    ),
    "less_than_equal": lambda value, context, path: f"must be at most {context['le']:g}, not {what(value)}",
    "string_type": lambda value, _, path: f"must be text in quotes, not {what(value)}",
    "string_unicode": lambda value, _, path: "is not Unicode text",
    "string_too_short": lambda value, _, path: "must not be empty",
    "literal_error": lambda value, context, path: _one_of(value, context),
    "model_type": lambda value, _, path: _not_a_section(path),
    "dict_type": lambda value, _, path: f"must be a table of texts, not {what(value)}",
    "tuple_type": lambda value, _, path: _not_a_list(value, path),
    "value_error": lambda value, context, path: str(context["error"]),
}
