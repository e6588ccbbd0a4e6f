"""docs/catalogue.md names every case, and for each a test that names it too, or the reason for none."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TESTS = Path(__file__).parents[1]
CATALOGUE = TESTS.parent / "docs" / "catalogue.md"

CASES: Final = {
    "A": 18, "B": 30, "C": 11, "D": 19, "E": 10, "F": 21, "G": 12, "H": 9, "I": 11, "J": 12, "K": 12,
}  # fmt: skip
IDS: Final = [f"{group}{number:02}" for group, last in CASES.items() for number in range(1, last + 1)]
ROW: Final = re.compile(r"\| (?P<id>[A-K]\d\d) \| (?P<case>[^|]+) \| (?P<held>[^|]+) \|")
NAMED: Final = re.compile(r"`(?P<file>[\w/]+\.py)::(?P<test>[\w:]+)`")


def rows() -> dict[str, str]:
    """Return what each row says of where its case is held, by id."""
    found: dict[str, str] = {}
    for row in ROW.finditer(CATALOGUE.read_text()):
        assert row["id"] not in found, f"{row['id']} has two rows"
        found[row["id"]] = row["held"]
    return found


@cache
def sources(file: str) -> dict[str, str]:
    """
    Return the source of every test in *file*, by its name as pytest has it.

    To the source belong the docstring of its class and the tables of cases that it is run with.
    """
    text = (TESTS / file).read_text()
    module = ast.parse(text)
    tables = {
        target.id: ast.get_source_segment(text, node) or ""
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {name: _with_tables(source, tables) for name, source in _tests(module, text)}


def _tests(scope: ast.Module | ast.ClassDef, text: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    told = (ast.get_docstring(scope) if isinstance(scope, ast.ClassDef) else None) or ""
    for node in scope.body:
        if isinstance(node, ast.ClassDef):
            yield from _tests(node, text, f"{prefix}{node.name}::")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            begins = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            lines = text.splitlines()[begins - 1 : node.end_lineno]
            yield prefix + node.name, "\n".join([told, *lines])


def _with_tables(source: str, tables: dict[str, str]) -> str:
    used = [table for name, table in tables.items() if re.search(rf"\b{name}\b", source)]
    return "\n".join([source, *used])


def test_every_case_has_a_row_and_no_row_is_of_none() -> None:
    assert list(rows()) == IDS


@pytest.mark.parametrize("id", IDS)
def test_a_row_names_tests_that_name_its_case_or_gives_a_reason(id: str) -> None:
    held = rows()[id]
    named = list(NAMED.finditer(held))

    assert named or held.startswith("none: ")
    for test in named:
        source = sources(test["file"]).get(test["test"])
        assert source is not None, f"there is no test {test[0]}"
        assert re.search(rf"(?i)(?<![a-z0-9]){id}(?![0-9])", source), f"{test[0]} does not say {id}"


def test_a_test_that_says_nothing_of_a_case_would_be_found_out() -> None:
    source = sources("architecture/test_catalogue.py")["test_every_case_has_a_row_and_no_row_is_of_none"]

    assert not re.search(r"(?i)(?<![a-z0-9])A01(?![0-9])", source)
