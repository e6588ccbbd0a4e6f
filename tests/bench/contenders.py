"""
The proxies that are compared, and the upstream behind all of them.

nginx is the yardstick: what forwarding costs where nothing else is done. It keeps connections to
the upstream alive, buffers nothing, and writes no access log, though ours writes its line.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from machine import OTHER_CORE, SUBJECT_CORE, Process, free_port

HERE: Final = Path(__file__).parent

_NGINX: Final = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 20000;
events {{ worker_connections 16000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    upstream canned {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://canned;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""

# Every feature is on: the rate limit counts, though nobody reaches it.
_SENTINEL: Final = """\
[server]
port = {port}
max_in_flight = 20000
[[providers]]
name = "openai"
kind = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "sk-of-the-benchmark"
[[providers]]
name = "spare"
kind = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "sk-of-the-benchmark"
[rate_limit]
requests = 1000000000
window = 60
"""

_LITELLM: Final = """\
model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: sk-of-the-benchmark
general_settings:
  master_key: sk-of-a-caller
"""


@dataclass(slots=True)
class Contender:
    """A proxy that runs, and where."""

    name: str
    process: Process
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)  # that it wants besides those of the SDK


@contextmanager
def canned_upstream(folder: Path) -> Iterator[Contender]:
    """Run the upstream, which is also what there is without a proxy."""
    port = free_port()
    command = [sys.executable, str(HERE / "canned.py"), str(port)]
    with Process(command, OTHER_CORE, folder / "upstream.log") as process:
        process.wait_until_listening(port)
        yield Contender("no proxy", process, port)


@contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[Contender]:
    """Run the yardstick."""
    port = free_port()
    written = folder / "nginx.conf"
    written.write_text(_NGINX.format(folder=folder, port=port, upstream=upstream))
    with _running("nginx", ["nginx", "-c", str(written)], folder, port) as contender:
        yield contender


@contextmanager
def sentinel(folder: Path, upstream: int) -> Iterator[Contender]:
    """Run this project's proxy as people run it, one worker; its log goes to a file."""
    port = free_port()
    with _running("sentinel", sentinel_command(folder, port, upstream), folder, port) as contender:
        yield contender


def sentinel_command(folder: Path, port: int, upstream: int) -> list[str]:
    """Return what starts this project's proxy on *port*."""
    written = folder / f"sentinel-{port}.toml"
    written.write_text(_SENTINEL.format(port=port, upstream=upstream))
    return [sys.executable, "-m", "sentinel_proxy", "serve", "--config", str(written)]


@contextmanager
def litellm(folder: Path, upstream: int) -> Iterator[Contender]:
    """Run LiteLLM's proxy."""
    port = free_port()
    written = folder / "litellm.yaml"
    written.write_text(_LITELLM.format(upstream=upstream))
    command = ["litellm", "--config", str(written), "--host", "127.0.0.1", "--port", str(port)]
    with _running("LiteLLM", [*command, "--num_workers", "1"], folder, port) as contender:
        yield contender


@contextmanager
def portkey(folder: Path, upstream: int) -> Iterator[Contender]:
    """Run Portkey's gateway, which is told by headers where to send a call."""
    port = free_port()
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"}
    with _running("Portkey", ["gateway", f"--port={port}", "--headless"], folder, port) as contender:
        yield replace(contender, headers=headers)


def _portkey_is_installed() -> bool:
    """Look behind the program's name, which others may have too."""
    found = shutil.which("gateway")
    return found is not None and "@portkey-ai" in Path(found).resolve().parts


@contextmanager
def all_of_them(folder: Path, upstream: int) -> Iterator[list[Contender]]:
    """Run every proxy that is installed, the yardstick first and ours second."""
    with ExitStack() as stack:
        found = [
            stack.enter_context(nginx(folder, upstream)),
            stack.enter_context(sentinel(folder, upstream)),
        ]
        if shutil.which("litellm") is not None:
            found.append(stack.enter_context(litellm(folder, upstream)))
        if _portkey_is_installed():
            found.append(stack.enter_context(portkey(folder, upstream)))
        yield found


@contextmanager
def _running(name: str, command: list[str], folder: Path, port: int) -> Iterator[Contender]:
    with Process(command, SUBJECT_CORE, folder / f"{name.lower()}.log") as process:
        process.wait_until_listening(port)
        yield Contender(name, process, port)
