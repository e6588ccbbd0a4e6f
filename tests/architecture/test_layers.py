"""The shape of the package, held by machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sentinel_proxy

ROOT = Path(sentinel_proxy.__file__).parent

# A module imports only from rows below its own; parts of one row do not know each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"drill", "demo", "watch", "workers"},
    {"server"},
    {"app"},
    {"admin", "middleware"},
    {"api"},
    {"rescue"},
    {"failover", "passthrough", "health", "replica"},
    {"hedging"},
    {"reply"},
    {"eligibility", "upstream", "inbound", "log", "incidents", "metrics", "tracing", "testing"},
    {"providers", "stores"},
    {"resilience", "wire"},
    {"events", "config"},
    {"model", "wheel"},
    {"background", "board", "errors", "clock", "terminal", "ulid", "__init__"},
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# Each outside library has one home.
HOMES = {
    "uvicorn": {"server", "inbound"},
    "starlette": {"app", "api", "admin", "middleware", "inbound"},
    "httpx": {"upstream", "demo", "drill"},  # as a transport; and as an application would use it
    "httptools": {"upstream", "inbound"},
    "websockets": {"watch"},
    "tenacity": {"resilience"},
    "redis": {"stores"},
    "sqlite3": {"stores"},
    "prometheus_client": {"metrics"},
    "structlog": {"log"},
    "opentelemetry": {"tracing"},
    "pydantic": {"config"},
    "pydantic_settings": {"config"},
    "tomllib": {"config"},
    "orjson": {"wire", "log"},
    "random": {"app", "demo", "drill", "testing", "watch"},
    "time": {"clock"},
}
# What is pure stays free of the event loop.
NO_ASYNCIO = {"wire", "providers", "errors", "model", "config", "events"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(dotted: str) -> str:
    """`sentinel_proxy.wire.sse` belongs to the part `wire`; the package itself to `__init__`."""
    pieces = dotted.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def imports(path: Path) -> Iterator[str]:
    """Yield every name that *path* imports, as an absolute dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_layers(path: Path) -> None:
    here = own_part(path)
    assert here in RANK, f"{here} has no layer; give it one in LAYERS"
    for name in imports(path):
        if name.split(".")[0] == "sentinel_proxy":
            there = part_of(name) if part_of(name) in RANK else "__init__"
            assert there == here or RANK[there] > RANK[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_library_has_one_home(path: Path) -> None:
    here = own_part(path)
    for name in imports(path):
        library = name.split(".")[0]
        assert here in HOMES.get(library, {here}), (
            f"{library} is used in {here}; its home is {HOMES[library]}"
        )
        assert not (library == "asyncio" and here in NO_ASYNCIO), f"{here} is pure, yet imports asyncio"


def test_the_breaker_is_free_of_the_event_loop() -> None:
    assert not any(name.startswith("asyncio") for name in imports(ROOT / "resilience" / "breaker.py"))
