"""
`sentinel-proxy drill`: rehearse failures before they happen.

The catalogue of what providers do to gateways is played against the reader's own policy: the
real proxy, the configured chain and every configured wait, with simulated servers where the
providers were. What has to come of each scenario follows from the configuration, and is computed
apart from the code that is drilled.

`scenarios` is the catalogue; `plays` and `stories` play it on a `stage`, where `needs` allow it;
`policy` and `expected` say what is right; `chain`, `standin`, `dialects` and `faults` make the
simulated servers, `caller` calls, and `skipping` lets time pass without being waited for.
`runner` runs it, `report` tells of it.
"""

import logging
import os
import sys
from typing import Final

from sentinel_proxy.config import Config
from sentinel_proxy.drill.chain import chain_of
from sentinel_proxy.drill.report import SIGNS, Card, as_dict, explained
from sentinel_proxy.drill.runner import rehearse
from sentinel_proxy.terminal import Screen, wants_colour
from sentinel_proxy.wire.json import dumps

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
"""What shells say after Ctrl-C: an interrupted drill has not been passed."""


def run(config: Config, source: str, *, json: bool = False) -> int:
    """
    Drill *config*, print the report card, and return the exit status: 0, or 1 if a scenario failed.

    Args:
        source: Where the configuration is from, for the reader.
        json: Print one JSON document instead; what was wrong then goes to standard error.

    Raises:
        ConfigError: There is nothing that could be drilled.
        BrokenPipeError: Nobody reads what is printed any more.
    """
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # the card is all there is to read
    try:
        return _as_json(config) if json else _as_card(config, source)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _as_json(config: Config) -> int:
    report = rehearse(config)
    print(dumps(as_dict(report)).decode(), flush=True)
    for line in explained(report.failed):
        print(line, file=sys.stderr)
    return EXIT_FAILED if report.failed else 0


def _as_card(config: Config, source: str) -> int:
    screen = Screen(sys.stdout, colour=wants_colour(sys.stdout, os.environ), signs=SIGNS)
    card = Card(screen, source)
    card.open(chain_of(config))
    report = rehearse(config, on_result=card.take)
    card.close(report)
    if screen.gone:
        raise BrokenPipeError
    return EXIT_FAILED if report.failed else 0
