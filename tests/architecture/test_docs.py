"""What the documentation says is what the code does: tables are compared, snippets run, links lead."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import get_args

import anyio.to_thread
import pytest
from harness import Start, chain
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from test_layers import LAYERS

import sentinel_proxy
from sentinel_proxy import __version__, events, rescue
from sentinel_proxy.api import errors as api_errors
from sentinel_proxy.app import Proxy
from sentinel_proxy.config import load
from sentinel_proxy.demo.scenes import SCENES
from sentinel_proxy.errors import CONSEQUENCES, Consequence, FailureKind, Retry, Vote
from sentinel_proxy.model import Controls, Outcome
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.testing import FaultyUpstream, openai_completion

PACKAGE = Path(sentinel_proxy.__file__).parent
ROOT = PACKAGE.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

CODE = re.compile(r"`([^`]+)`")
WORD = re.compile(r"[a-z]+(_[a-z]+)+")
STATUS = re.compile(r"\b[345]\d\d\b")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)]+)\)")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
DRAWING = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"x-sentinel-[a-z-]+[a-z]")
NO_CALL = {"x-sentinel-providers", "x-sentinel-no-failover"}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield every table of a page: its header line, and the cells of each row."""
    for block in re.findall(r"(?:^ *\|.*\n?)+", text, re.MULTILINE):
        header, _, *rows = (line.strip() for line in block.splitlines())
        yield header, [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def table(name: str, header: str) -> list[list[str]]:
    """Return the rows of the one table on page *name* whose header begins with *header*."""
    found = [rows for head, rows in tables(page(name)) if head.startswith(header)]
    assert len(found) == 1, f"{name} has {len(found)} tables that begin with {header!r}"
    return found[0]


def codes(cell: str) -> list[str]:
    return CODE.findall(cell)


def first_codes(name: str, header: str) -> list[str]:
    return [codes(row[0])[0] for row in table(name, header)]


def snippets(language: str) -> list[object]:
    return [
        pytest.param(match[2], id=f"{path.relative_to(ROOT)}-{number}")
        for path in PAGES
        for number, match in enumerate(FENCE.finditer(path.read_text()))
        if match[1] == language
    ]


def constants(node: ast.AST) -> Iterator[object]:
    return (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))


# docs/failures.md


def consequence_cells(consequence: Consequence) -> list[str]:
    votes = consequence.vote is Vote.FAILURE
    return [
        consequence.retry.value,
        "yes" if consequence.failover else "no",
        consequence.vote.value,
        consequence.scope.value if votes else "",
        "yes" if consequence.opens else "",
    ]


def test_every_kind_of_failure_is_documented_with_what_follows() -> None:
    rows = {codes(row[0])[0]: row[1:6] for row in table("docs/failures.md", "| kind |")}

    assert rows == {kind.value: consequence_cells(what) for kind, what in CONSEQUENCES.items()}


def test_every_consequence_has_a_reason() -> None:
    assert all(len(row[6]) > 20 for row in table("docs/failures.md", "| kind |"))


READMES_WORDS: dict[str, Callable[[Consequence], bool]] = {
    "again: no": lambda what: what.retry is Retry.NEVER,
    "again: yes": lambda what: what.retry is Retry.ALWAYS,
    "again: if nobody else is left": lambda what: what.retry is Retry.ALONE,
    "next: yes": lambda what: what.failover,
    "next: no": lambda what: not what.failover,
    "breaker: counts": lambda what: what.vote is Vote.FAILURE and not what.opens,
    "breaker: opens at once": lambda what: what.vote is Vote.FAILURE and what.opens,
    "breaker: no": lambda what: what.vote is Vote.NEUTRAL,
}


def test_the_readmes_short_table_says_the_same() -> None:
    rows = table("README.md", "| what went wrong |")

    for _, kinds, *cells in rows:
        for column, cell in zip(("again", "next", "breaker"), cells, strict=True):
            holds = READMES_WORDS[f"{column}: {cell.partition(':')[0]}"]
            assert all(holds(CONSEQUENCES[FailureKind(kind)]) for kind in codes(kinds)), (kinds, column)
    assert sorted(kind for row in rows for kind in codes(row[1])) == sorted(FailureKind)


def test_the_rules_for_final_answers_are_documented_in_their_order() -> None:
    documented = first_codes("docs/failures.md", "| rule |")

    assert [f"_{name}" for name in documented] == [rule.__name__ for rule in api_errors._RULES]


@pytest.mark.parametrize("rule", api_errors._RULES, ids=lambda rule: rule.__name__.strip("_"))
def test_a_rule_is_documented_with_its_statuses_and_codes(rule: Callable[..., object]) -> None:
    row = next(
        row for row in table("docs/failures.md", "| rule |") if f"_{codes(row[0])[0]}" == rule.__name__
    )
    found = set(constants(ast.parse(inspect.getsource(rule).strip())))

    statuses = {value for value in found if isinstance(value, int) and 400 <= value < 600}
    names = {value for value in found if isinstance(value, str) and WORD.fullmatch(value)}
    if statuses:
        assert {int(status) for status in STATUS.findall(row[2])} == statuses
    assert set(codes(row[3])) == names


def made_codes() -> set[str]:
    """Return every `code="..."` of the modules that refuse a request before it becomes anything."""
    where = [*(PACKAGE / "api").glob("*.py"), *(PACKAGE / "middleware").glob("*.py"), PACKAGE / "app.py"]
    keywords = [
        node
        for path in (*where, PACKAGE / "failover.py", PACKAGE / "upstream" / "upstream.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "code"
    ]
    return {value for keyword in keywords for value in constants(keyword) if isinstance(value, str)}


def test_every_code_that_we_make_is_documented() -> None:
    assert made_codes() - set(codes(page("docs/failures.md"))) == set()


def test_no_refusal_is_documented_that_we_do_not_make() -> None:
    assert set(first_codes("docs/failures.md", "| code |")) <= made_codes()


def test_every_reason_not_to_rescue_is_documented() -> None:
    documented = [row[0] for row in table("docs/failures.md", "| reason |")]

    assert documented == [reason for reason, _ in rescue.REFUSALS]


def test_the_limits_of_a_rescue_are_documented() -> None:
    text = page("docs/failures.md")

    assert f"more than {rescue.MAX_SENT_CHARS:,} characters".replace(",", " ") in text
    assert f"less than {rescue.MIN_SECONDS_LEFT:g} seconds" in text


# docs/headers.md


def test_every_control_is_documented() -> None:
    names = [field.name.removesuffix("_seconds").replace("_", "-") for field in fields(Controls)]

    assert first_codes("docs/headers.md", "| request header |") == [f"x-sentinel-{name}" for name in names]


@cache
def sent_headers() -> frozenset[str]:
    """Return every `x-sentinel-*` name that is written as the bytes of a response header."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for value in constants(ast.parse(path.read_text())):
            if isinstance(value, bytes) and OURS.fullmatch(value.decode("latin-1")):
                found.add(value.decode())
    return frozenset(found)


def test_every_response_header_is_documented() -> None:
    rows = [
        cells[0]
        for head, cells_of in tables(page("docs/headers.md"))
        for cells in cells_of
        if "response" in head
    ]
    documented = [name for cell in rows for name in codes(cell)]

    assert {name for name in documented if OURS.fullmatch(name)} == sent_headers()
    assert set(documented) - sent_headers() == {"x-should-retry", "retry-after", "retry-after-ms"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_names_a_header_that_is_not_there(path: Path) -> None:
    known = sent_headers() | set(first_codes("docs/headers.md", "| request header |"))

    assert set(OURS.findall(path.read_text())) <= known


# docs/events.md


def test_every_event_is_documented_with_its_fields() -> None:
    documented = {codes(row[0])[0]: codes(row[2]) for row in table("docs/events.md", "| event |")}

    assert documented == {kind.__name__: list(kind._fields) for kind in get_args(events.Event)}


def test_every_outcome_is_documented() -> None:
    assert first_codes("docs/events.md", "| outcome |") == [outcome.value for outcome in Outcome]


# docs/api.md


def test_every_path_is_documented_and_no_other() -> None:
    assert set(first_codes("docs/api.md", "| method and path |")) == set(served(Proxy(load(None, {}).config)))


def served(proxy: Proxy) -> Iterator[str]:
    for route in flat(proxy.router.routes):
        if isinstance(route, WebSocketRoute):
            yield f"WS {route.path}"
            continue
        assert isinstance(route, Route)
        methods = (route.methods or set()) - {"HEAD"}
        method = "*" if len(methods) > 1 else "".join(methods)
        yield f"{method} {route.path.replace(':path', '')}"


def flat(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        if isinstance(route, Mount):
            yield from flat(route.routes)
        else:
            yield route


# docs/architecture.md


def is_there(part: str) -> bool:
    return (PACKAGE / f"{part}.py").exists() or (PACKAGE / part / "__init__.py").exists()


def test_the_layers_are_documented_as_they_are_held() -> None:
    documented = [set(codes(row[1])) for row in table("docs/architecture.md", "| row |")]

    assert documented == [there for layer in LAYERS if (there := set(filter(is_there, layer)))]


def test_the_rows_of_the_layers_are_counted() -> None:
    numbers = [int(row[0]) for row in table("docs/architecture.md", "| row |")]

    assert numbers == list(range(1, len(numbers) + 1))


def test_every_file_that_is_pointed_to_is_there() -> None:
    pointers = [codes(row[1]) for row in table("docs/architecture.md", "| to change |")]
    paths = [name for names in pointers for name in names if name.endswith((".py", "/"))]

    assert paths
    assert [path for path in paths if not (PACKAGE / path).exists()] == []


# docs/providers.md


def test_every_method_that_a_provider_must_have_is_documented() -> None:
    documented = {name.partition("(")[0] for name in first_codes("docs/providers.md", "| method |")}

    assert documented >= set(Provider.__abstractmethods__)
    assert all(hasattr(Provider, name) for name in documented)


# The changelog, the README, and every page


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", page("docs/changelog.md"), re.MULTILINE)

    assert versions[0] == __version__


def test_the_readme_shows_the_demo_that_there_is() -> None:
    shown = re.findall(r"── (.+?) ──", page("README.md"))

    assert shown
    assert set(shown) <= {scene.title for scene in SCENES}


@pytest.mark.parametrize("snippet", snippets("python"))
def test_python_snippets_compile(snippet: str) -> None:
    lines = snippet.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())

    compile("\n".join(line[indent:] for line in lines), "<snippet>", "exec")


@pytest.mark.parametrize("snippet", snippets("toml"))
def test_configuration_snippets_are_accepted(snippet: str, tmp_path: Path) -> None:
    path = tmp_path / "sentinel.toml"
    is_configuration = "[[providers]]" in snippet
    path.write_text(snippet)

    assert not is_configuration or load(path, {}).config.providers


def test_the_readmes_configuration_has_ten_lines() -> None:
    (snippet,) = (match[2] for match in FENCE.finditer(page("README.md")) if match[1] == "toml")

    assert len(snippet.splitlines()) == 10


@pytest.mark.anyio
async def test_the_readmes_quick_start_runs(
    start: Start, primary: FaultyUpstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    primary.always(openai_completion("Because of Rayleigh scattering."))
    harness = await start(chain(primary))
    (snippet,) = (match[2] for match in FENCE.finditer(page("README.md")) if match[1] == "python")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-caller")
    monkeypatch.setenv("NO_PROXY", "*")

    code = compile(snippet.replace("http://localhost:8000", harness.url), "<README.md>", "exec")
    await anyio.to_thread.run_sync(exec, code, {})

    assert capsys.readouterr().out == "Because of Rayleigh scattering.\n"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", DRAWING.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in LINK.findall(DRAWING.sub("", path.read_text())):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), link
        assert there.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(there), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        here = ahead.pop()
        seen.add(here)
        links = [link.partition("#")[0] for link in LINK.findall(here.read_text())]
        pages = {(here.parent / link).resolve() for link in links if link and "://" not in link}
        folders = {child for folder in pages if folder.is_dir() for child in folder.glob("*.md")}
        ahead += [there for there in pages | folders if there.suffix == ".md" and there not in seen]

    assert [path for path in PAGES if path not in seen] == []


@pytest.mark.parametrize("number", range(1, 10))
def test_a_decision_has_its_number_once(number: int) -> None:
    (record,) = (DOCS / "decisions").glob(f"{number:04}-*.md")

    assert record.read_text().startswith(f"# {number}. ")
