"""The files for several replicas, and the snippets that operators copy, fit the proxy they are about."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Start, chain

from sentinel_proxy.config import ServerConfig, TimeoutsConfig, load
from sentinel_proxy.config.environment import Environment
from sentinel_proxy.testing import FaultyUpstream

ROOT = Path(__file__).parent.parent.parent
REPLICAS = ROOT / "docs" / "operations" / "replicas"
RUNNING = (ROOT / "docs" / "operations" / "running.md").read_text()


class Loader(yaml.SafeLoader):
    """Knows Compose's `!reset` as well."""


Loader.add_constructor("!reset", lambda loader, node: None)
LAID_OVER: dict[str, Any] = yaml.load((REPLICAS / "compose.yaml").read_text(), Loader)
BASE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
NGINX = (REPLICAS / "nginx.conf").read_text()


def snippet(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", RUNNING, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


# Replicas in containers


def test_replicas_have_what_they_share_and_leave_the_port_to_the_balancer() -> None:
    services = LAID_OVER["services"]
    variables = services["proxy"]["environment"]
    url = variables["REDIS_URL"]

    assert services["proxy"]["ports"] is None
    assert services["proxy"]["deploy"]["replicas"] > 1
    assert services["balancer"]["ports"] == BASE["services"]["proxy"]["ports"]
    assert url.partition("//")[2].partition(":")[0] in services
    assert set(variables) <= set(Environment.model_fields)


def test_every_service_has_a_health_check_or_an_image_that_has() -> None:
    assert all("healthcheck" in LAID_OVER["services"][name] for name in ("redis", "balancer"))
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_what_is_mounted_is_there() -> None:
    mounted = [
        volume.split(":")
        for service in LAID_OVER["services"].values()
        for volume in service.get("volumes", [])
    ]

    assert all((ROOT / source).exists() for source, _, _ in mounted)
    assert LAID_OVER["services"]["proxy"]["environment"]["SENTINEL_CONFIG"] in {
        there for _, there, _ in mounted
    }


def test_the_replicas_believe_the_network_that_they_are_in_and_no_other() -> None:
    config = load(REPLICAS / "sentinel-proxy.toml", {}).config
    (network,) = LAID_OVER["networks"]["default"]["ipam"]["config"]

    assert list(map(str, config.server.trusted_proxies)) == [network["subnet"]]


def test_the_balancer_listens_where_it_is_published_and_asks_the_replicas() -> None:
    (published,) = LAID_OVER["services"]["balancer"]["ports"]

    assert f"listen {published.rpartition(':')[2]};" in NGINX
    assert f"server proxy:{ServerConfig().port} resolve" in NGINX


def test_the_balancer_waits_longer_than_any_call_takes() -> None:
    waits = [int(seconds) for seconds in re.findall(r"proxy_(?:read|send)_timeout (\d+)s", NGINX)]

    assert waits
    assert min(waits) > TimeoutsConfig().total


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    """But for `resolve`, which older ones do not know, and a name that only Compose knows."""
    file = tmp_path / "nginx.conf"
    file.write_text(
        NGINX.replace(" resolve max_fails=0", "")
        .replace("proxy:8000", "127.0.0.1:1")
        .replace("/tmp/", f"{tmp_path}/")
    )

    tried = subprocess.run(
        ["nginx", "-t", "-q", "-c", file, "-g", f"error_log {tmp_path}/log;"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert tried.returncode == 0, tried.stderr


# Snippets


@pytest.mark.anyio
async def test_the_probes_ask_paths_that_answer_as_they_should(start: Start, primary: FaultyUpstream) -> None:
    (container,) = yaml.safe_load(snippet("yaml"))["spec"]["template"]["spec"]["containers"]
    harness = await start(chain(primary))

    for probe in ("readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == ServerConfig().port
        assert (await harness.client.get(asked["path"])).status_code == 200


def test_whoever_stops_it_waits_for_the_drain() -> None:
    drain = ServerConfig().drain_seconds
    pod = yaml.safe_load(snippet("yaml"))["spec"]["template"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    stops = [
        int(seconds)
        for seconds in re.findall(r"TimeoutStopSec=(\d+)|--time (\d+)", RUNNING)
        for seconds in seconds
        if seconds
    ]

    assert pod["terminationGracePeriodSeconds"] > pause + drain
    assert len(stops) == 2
    assert min(stops) > drain
