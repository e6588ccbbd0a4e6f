"""
`sentinel-proxy demo`: an outage, survived in front of your eyes.

Everything is on loopback and nothing else is needed: two simulated providers, the real proxy
before them on a real socket, and an application that calls it without a pause while the first
provider goes through every way to fail. Each call is also sent straight to that provider, so
what would have happened without a proxy is counted, not claimed.

`scenes` is what goes wrong when, `stage` puts it all together and plays it, `application`
makes the calls and judges the answers, `narrator` and `terminal` tell of it.
"""

import asyncio
import logging
import os
import sys

from sentinel_proxy.demo.stage import play
from sentinel_proxy.demo.terminal import Terminal
from sentinel_proxy.terminal import wants_colour


def run(*, port: int = 8000, once: bool = False) -> int:
    """
    Play the demo; with *once* end after the script, else stay up until Ctrl-C.

    Returns the exit status: 0, or 1 if the proxy lost a call of the script.

    Args:
        port: Of the proxy, on loopback; 0 takes a free one.

    Raises:
        ConfigError: The port cannot be listened on.
        BrokenPipeError: Nobody reads what is printed any more.
    """
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # the timeline is all there is to read
    terminal = Terminal(sys.stdout, colour=wants_colour(sys.stdout, os.environ))
    try:
        lost = asyncio.run(play(terminal, port=port, once=once))
    except KeyboardInterrupt:
        return 0
    if terminal.gone:
        raise BrokenPipeError
    return 1 if lost else 0
