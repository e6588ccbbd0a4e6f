"""The package, the container and the README's two commands are what they say they are."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from harness import Start, chain

import sentinel_proxy
from sentinel_proxy.cli import main
from sentinel_proxy.config import ServerConfig, load
from sentinel_proxy.config.environment import Environment
from sentinel_proxy.testing import FaultyUpstream

PACKAGE = Path(sentinel_proxy.__file__).parent
ROOT = PACKAGE.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
README = (ROOT / "README.md").read_text()
CI = ROOT / ".ci" / "run"

NEEDED = tuple(int(part) for part in PROJECT["requires-python"].removeprefix(">=").split("."))


# pyproject.toml


def distribution(requirement: str) -> str:
    """`uvicorn[standard]>=0.34` is about `uvicorn`."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return canonical(name[0])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared(paths: Iterable[Path], *declared: str) -> set[str]:
    """Return the outside libraries that *paths* import and none of the *declared* requirements installs."""
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"sentinel_proxy", "sentinel_gemini"}
    installers = packages_distributions()  # one name may have several: `opentelemetry` is a namespace
    names = {name for path in paths for name in imports(path)} - own - sys.stdlib_module_names
    known = set(map(distribution, declared))
    return {name for name in names if known.isdisjoint(map(canonical, installers[name]))}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.split(".")[0]


def test_whatever_the_package_imports_is_a_dependency() -> None:
    always = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "tracing"]

    assert undeclared(always, *PROJECT["dependencies"]) == set()


def test_whatever_tracing_imports_is_in_its_extra() -> None:
    tracing = [*(PACKAGE / "tracing").glob("*.py")]

    assert tracing
    assert undeclared(tracing, *PROJECT["optional-dependencies"]["otel"]) == set()


def test_what_an_extra_brings_is_not_needed_without_it() -> None:
    """Nothing of it is imported before it is asked for."""
    blocked = (
        "import sys; sys.modules['opentelemetry'] = None; import sentinel_proxy.app, sentinel_proxy.tracing"
    )

    subprocess.run([sys.executable, "-c", blocked], check=True, timeout=60)


def test_whatever_the_tests_import_is_in_the_test_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["test"], *extras["otel"]]

    assert f"{PROJECT['name']}[otel]" in extras["test"]
    assert undeclared((ROOT / "tests").rglob("*.py"), *declared) == set()


def test_the_oldest_python_is_the_one_that_is_linted_and_announced() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    announced = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))

    assert tools["ruff"]["target-version"] == f"py{NEEDED[0]}{NEEDED[1]}"
    assert announced[0] == ".".join(map(str, NEEDED))


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_readme_begins_as_the_package_is_described() -> None:
    description = " ".join(PROJECT["description"].rstrip(".").split())

    assert description in " ".join(README.split())


# The README's two commands, and .ci/run


def commands() -> list[str]:
    return [line.strip() for line in README.splitlines() if line.strip().startswith("python3 -m venv")]


def test_two_lines_do_everything_on_a_fresh_machine() -> None:
    demo, test = commands()

    assert demo.split(" && ")[-1] == ".venv/bin/sentinel-proxy demo"
    assert test.split(" && ")[-1] == ".venv/bin/pytest"


def test_ci_runs_the_readmes_own_line() -> None:
    pattern = re.search(r"grep -m 1 -oE '(.+)' README\.md", CI.read_text())

    assert pattern is not None
    assert re.findall(pattern[1], README, re.MULTILINE) == [commands()[1]]


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A checkout whose `python3 -m venv` makes tools that say and return what they are told."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text(CI.read_text())
    (tmp_path / "README.md").write_text(
        "    python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/pytest\n"
    )
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    scripts = {"pytest": 'echo "$SAYS"; exit "$RETURNS"', "pip": "", "ruff": "", "mypy": ""}
    for path, script in [
        (tmp_path / "python3", ""),
        (tmp_path / "apt-get", ""),  # nothing is installed by tests
        *((tools / name, body) for name, body in scripts.items()),
    ]:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return tmp_path


def ci(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", checkout / ".ci" / "run", *arguments],
        env={"PATH": path, "SAYS": "", "RETURNS": "0", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("says", "returns", "in_ci", "status"),
    [
        ("=== 9 passed in 1.00s ===", "0", "true", 0),
        ("=== 8 passed, 1 skipped in 1.00s ===", "0", "true", 1),
        ("=== 8 passed, 1 skipped in 1.00s ===", "0", "", 0),
        ("=== 1 failed, 8 passed in 1.00s ===", "1", "true", 1),
        ("=== no tests ran in 0.01s ===", "5", "", 5),
    ],
    ids=["passed", "skipped-in-ci", "skipped-on-a-laptop", "failed", "nothing-ran"],
)
def test_ci_ends_as_the_tests_do(stub: Path, says: str, returns: str, in_ci: str, status: int) -> None:
    run = ci(stub, SAYS=says, RETURNS=returns, CI=in_ci)

    assert run.returncode == status, run.stderr
    assert says in run.stdout
    assert ("mypy" in run.stdout) == (status == 0)


def test_ci_explains_itself_where_a_verb_is_wrong(stub: Path) -> None:
    run = ci(stub, "tset")

    assert run.returncode == 2
    assert ".ci/run fix" in run.stderr


# Dockerfile


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and their arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def arguments(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def environment() -> dict[str, str]:
    return dict(re.findall(r'(\w+)="?([^"\s]+)', " ".join(arguments("ENV"))))


def test_every_stage_has_one_python_that_is_new_enough() -> None:
    images = {rest.split(" AS ")[0] for rest in arguments("FROM")}

    (image,) = images
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim", image)
    assert version is not None
    assert tuple(map(int, version.groups())) >= NEEDED


def test_what_is_copied_is_there_and_is_let_in() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    copied = [
        name.removeprefix("./")
        for rest in arguments("COPY")
        if not rest.startswith("--from")
        for name in rest.split()[:-1]
    ]

    assert "*" in lines
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    assert all(any(fnmatch(name, pattern) for pattern in let_in) for name in copied)


def test_the_container_listens_where_it_says_on_every_interface() -> None:
    server = load(None, environment()).config.server

    assert (server.host, server.port) == ("0.0.0.0", ServerConfig().port)
    assert arguments("EXPOSE") == [str(server.port)]


def test_the_container_sets_only_what_is_read() -> None:
    names = {name for name in environment() if name != "PATH" and not name.startswith("PYTHON")}

    assert names <= set(Environment.model_fields)


def test_the_proxy_is_process_one_and_not_root(capsys: pytest.CaptureFixture[str]) -> None:
    (entrypoint,), (command,), (user,) = (arguments(word) for word in ("ENTRYPOINT", "CMD", "USER"))

    assert set(json.loads(entrypoint)) <= set(PROJECT["scripts"])
    assert user not in ("root", "0")
    with pytest.raises(SystemExit) as ended:
        main([*json.loads(command), "--help"])
    assert ended.value.code == 0
    assert "--config" in capsys.readouterr().out


async def healthcheck(port: int) -> int:
    """Run the container's health check, as it stands, with a proxy on *port*."""
    (check,) = arguments("HEALTHCHECK")
    _, *command = json.loads(check.partition("CMD ")[2])
    ended = await anyio.run_process([sys.executable, *command], check=False, env={"SENTINEL_PORT": str(port)})
    return ended.returncode


@pytest.mark.anyio
async def test_the_health_check_tells_a_living_proxy_from_none(start: Start, primary: FaultyUpstream) -> None:
    harness = await start(chain(primary))
    await primary.stop_listening()

    assert await healthcheck(harness.client.base_url.port or 0) == 0
    assert await healthcheck(primary.port) != 0


# compose.yaml


def test_compose_builds_this_and_publishes_its_port_to_this_machine_only() -> None:
    proxy = COMPOSE["services"]["proxy"]

    assert proxy["build"] == "."
    assert proxy["ports"] == [f"127.0.0.1:8000:{ServerConfig().port}"]


def test_compose_sets_only_what_is_read_and_points_to_its_own_services() -> None:
    variables = COMPOSE["services"]["proxy"]["environment"]
    defaults = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in variables.items()}

    config = load(None, defaults).config

    assert set(variables) <= set(Environment.model_fields)
    assert config.providers[-1].base_url == "http://ollama:11434"
    assert config.providers[-1].models["*"] == re.sub(
        r".*:-(.*)\}", r"\1", COMPOSE["services"]["model"]["command"][0]
    )


def test_every_service_of_compose_has_a_use() -> None:
    services = COMPOSE["services"]
    needed = {name for service in services.values() for name in service.get("depends_on", {})}

    assert needed <= set(services)
    assert set(services) - needed == {"proxy", "model"}  # what people start, and what fetches the model
    assert {volume.split(":")[0] for volume in services["ollama"]["volumes"]} == set(COMPOSE["volumes"])


def test_compose_waits_for_the_drain() -> None:
    grace = COMPOSE["services"]["proxy"]["stop_grace_period"]

    assert int(grace.removesuffix("s")) > ServerConfig().drain_seconds
