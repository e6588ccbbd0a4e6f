"""
What a person types: `sentinel-proxy [serve]`, `check-config`, `demo`, `drill`, `watch`.

Parses, prints and exits; the work is done elsewhere, and imported only by the command that
needs it, so that `--version` answers at once and Ctrl-C is quiet from the start.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sentinel_proxy import __version__
from sentinel_proxy.errors import ConfigError

if TYPE_CHECKING:
    from sentinel_proxy.config import Loaded

EXIT_MISTAKE = 2


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 when all is well, 2 after a mistake of whoever typed it."""
    arguments = _parser().parse_args(_with_default_command(list(sys.argv[1:] if argv is None else argv)))
    try:
        code = arguments.run(arguments)
    except ConfigError as error:
        print(f"sentinel-proxy: {error}", file=sys.stderr)
        code = EXIT_MISTAKE
    except KeyboardInterrupt:
        code = 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _with_default_command(argv: list[str]) -> list[str]:
    """`serve` is what is meant when no command is named."""
    if argv and (argv[0] in ("-h", "--help", "--version") or not argv[0].startswith("-")):
        return argv
    return ["serve", *argv]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sentinel-proxy",
        description="An OpenAI-compatible reverse proxy that keeps applications alive through LLM outages.",
        epilog="Without a command it serves. Documentation: README.md and docs/.",
    )
    parser.add_argument("--version", action="version", version=f"sentinel-proxy {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="run the proxy (the default)")
    _add_config(serve)
    serve.add_argument("--host", metavar="H", help="address to listen on; overrides [server].host")
    serve.add_argument("--port", metavar="N", type=int, help="port to listen on; overrides [server].port")
    serve.add_argument("--workers", metavar="N", type=int, help="processes; overrides [server].workers")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check-config", help="print the effective configuration, secrets masked")
    _add_config(check)
    check.set_defaults(run=_check_config)

    demo = commands.add_parser("demo", help="watch an outage being survived; needs no keys and no network")
    demo.add_argument("--port", metavar="N", type=int, default=8000, help="port of the proxy (default: 8000)")
    demo.add_argument("--once", action="store_true", help="end after the script instead of staying up")
    demo.set_defaults(run=_demo)

    drill = commands.add_parser("drill", help="rehearse failures against your policy; contacts no provider")
    _add_config(drill)
    drill.add_argument("--json", action="store_true", help="print one JSON document instead of a report card")
    drill.set_defaults(run=_drill)

    watch = commands.add_parser("watch", help="follow what a running proxy reports, live")
    watch.add_argument("--url", help="of the proxy (default: the one that this environment would start)")
    watch.add_argument(
        "--token", help="its admin token; better kept in SENTINEL_ADMIN_TOKEN, for others see command lines"
    )
    watch.set_defaults(run=_watch)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML file (default: the one that SENTINEL_CONFIG names, else the environment alone)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    from sentinel_proxy.config import load

    flags = {"--host": arguments.host, "--port": arguments.port, "--workers": arguments.workers}
    again = partial(load, arguments.config, os.environ, flags)
    loaded = again()

    from sentinel_proxy.workers import serve

    return serve(loaded, again)


def _check_config(arguments: argparse.Namespace) -> int:
    from sentinel_proxy.config import load

    loaded = load(arguments.config, os.environ)
    _print_loaded(loaded)
    return 0


def _print_loaded(loaded: "Loaded") -> None:
    from sentinel_proxy.config import effective

    print(effective(loaded.config))
    for note in loaded.notes:
        print(f"# note: {note}")


def _demo(arguments: argparse.Namespace) -> int:
    from sentinel_proxy.demo import run

    return run(port=arguments.port, once=arguments.once)


def _drill(arguments: argparse.Namespace) -> int:
    from sentinel_proxy.config import load

    loaded = load(arguments.config, os.environ)

    from sentinel_proxy.drill import run

    source = "the environment alone" if loaded.path is None else str(loaded.path)
    return run(loaded.config, source, json=arguments.json)


def _watch(arguments: argparse.Namespace) -> int:
    from sentinel_proxy.watch import default_url, run

    token = arguments.token or os.environ.get("SENTINEL_ADMIN_TOKEN")
    return run(arguments.url or default_url(os.environ), token)
