"""
`sentinel-proxy watch`: the live feed of a running proxy in a terminal.

One line an event. It reconnects by itself and asks for what it missed meanwhile; only somebody
who has to do something about it (no proxy there, no token, a wrong address) gets it back.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TextIO
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from sentinel_proxy.clock import Clock, SystemClock
from sentinel_proxy.terminal import Screen, Style, wants_colour
from sentinel_proxy.wire.json import loads

PATH: Final = "/ws/system-events"
FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 30.0
SILENCE_SECONDS: Final = 75.0
"""Two heartbeats, and some: then nobody is there, whatever the connection pretends."""

_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_UNREACHABLE: Final = (OSError, TimeoutError, InvalidHandshake)


class Refused(Exception):
    """The proxy cannot be watched, and trying again does not help; says why in one line."""


def feed_url(url: str) -> str:
    """
    Return the WebSocket's URL for a proxy's.

    Raises:
        Refused: It is not a URL.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in _SCHEMES or "@" in parts.netloc:
        raise Refused(f"{url!r} is not the URL of a proxy; it looks like http://127.0.0.1:8000")
    return f"{_SCHEMES[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}{PATH}"


class Watcher:
    """
    Follows one proxy's live feed, connection after connection.

    Args:
        url: The proxy's, as a person writes it.
        token: The admin token, if it wants one.
        say: Prints a line.
        paint: Returns a text in a style.
        uniform: Returns a random number between two.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        say: Callable[[str], None],
        paint: Callable[[str, Style], str],
        clock: Clock,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._url = feed_url(url)
        self._shown_url = url
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._say = say
        self._paint = paint
        self._clock = clock
        self._uniform = uniform
        self._last_id: str | None = None
        self._connected_before = False
        self._attempt = 0

    async def run(self) -> None:
        """
        Watch until cancelled.

        Raises:
            Refused: The proxy does not let us, or the first connection cannot be made.
        """
        while True:
            try:
                await self._follow()
                why = "the proxy closed the connection"
            except InvalidStatus as error:
                why = self._refusal(error)
            except ConnectionClosed as error:
                why = _closing(error)
            except BrokenPipeError:  # whoever read our lines has gone
                raise
            except _UNREACHABLE as error:
                why = _unreachable(error)
            if not self._connected_before:
                raise Refused(f"cannot watch {self._shown_url}: {why}")
            await self._pause(why)

    async def _follow(self) -> None:
        """Print what comes over one connection, until it ends."""
        query = f"?{urlencode({'since': self._last_id})}" if self._last_id is not None else ""
        async with connect(
            self._url + query, additional_headers=self._headers, compression=None, proxy=None
        ) as socket:
            self._say(f"watching {self._shown_url}" if not self._connected_before else "connected again")
            self._connected_before = True
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    data = await socket.recv(decode=False)
                self._hear(data)

    def _hear(self, data: bytes) -> None:
        try:
            frame = loads(data)
            self._last_id, news = frame["id"], told(frame)
            time = _local_time(frame["timestamp"])
        except (ValueError, KeyError, TypeError):
            raise Refused(f"cannot watch {self._shown_url}: what it sends is no live feed") from None
        self._attempt = 0
        if news is not None:
            what = self._paint(f"{_printable(news.what):<10}", news.style)
            self._say(f"{time}  {what}  {_printable(news.text)}")

    def _refusal(self, error: InvalidStatus) -> str:
        """Say why the handshake was refused; raise it where that will not change."""
        status = error.response.status_code
        why = f"it answers {status}: {_message(error.response.body)}"
        if status < 500:
            raise Refused(f"cannot watch {self._shown_url}: {why}") from None
        return why

    async def _pause(self, why: str) -> None:
        """Wait with full jitter: those who were cut off together do not come back together."""
        longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self._attempt, 16))
        if self._attempt == 0:
            self._say(f"disconnected: {why}; trying to come back")
        self._attempt += 1
        await self._clock.sleep(self._uniform(longest / 2, longest))


@dataclass(frozen=True, slots=True)
class Told:
    """One frame for people."""

    what: str  # the first word
    text: str
    style: Style


def told(frame: Mapping[str, Any]) -> Told | None:
    """Return what *frame* says; None for what is of no interest to people."""
    tell = _TELLERS.get(frame["event_type"])
    return tell(frame["payload"]) if tell is not None else None


def _provider(payload: Mapping[str, Any]) -> Told:
    breaker = payload["circuit_breaker"]
    text = f"{payload['status']}, breaker {breaker['state'].replace('_', '-')}"
    if breaker["until"] is not None:
        text += f" until {_local_time(breaker['until'])}"
    if breaker["reason"]:
        text += f": {breaker['reason']}"
    return Told(payload["provider"], text, _OF_STATUS.get(payload["status"], "plain"))


def _incident(payload: Mapping[str, Any]) -> Told:
    resolved = payload["change"] == "resolved"
    style: Style = "good" if resolved else _OF_SEVERITY.get(payload["severity"], "plain")
    return Told("incident", f"{payload['change']} ({payload['severity']}): {payload['message']}", style)


def _metrics(payload: Mapping[str, Any]) -> Told:
    latency = payload["avg_latency_ms"]
    parts = [
        f"{payload['total_requests']} calls",
        f"{payload['total_failures']} failed",
        f"{payload['total_failovers']} failed over",
        *([f"{latency:g} ms on average"] if latency is not None else []),
        f"calls go to {payload['active_provider'] or 'nobody'}",
    ]
    return Told("metrics", ", ".join(parts), "dim")


def _system(payload: Mapping[str, Any]) -> Told:
    details = ", ".join(f"{name} {value}" for name, value in payload["details"].items())
    text = payload["message"] + (f": {details}" if details else "")
    return Told(payload["level"], text, _OF_SEVERITY.get(payload["level"], "plain"))


_OF_STATUS: Final[Mapping[str, Style]] = {"healthy": "good", "degraded": "warn", "down": "bad"}
_OF_SEVERITY: Final[Mapping[str, Style]] = {"warning": "warn", "error": "bad", "critical": "bad"}
_TELLERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Told]]] = {
    "provider_status": _provider,
    "incident": _incident,
    "metrics": _metrics,
    "system": _system,
}


def _local_time(timestamp: str) -> str:
    return datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S")


def _printable(text: str) -> str:
    """Keep what a provider has said from steering the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _closing(error: ConnectionClosed) -> str:
    return error.rcvd.reason if error.rcvd is not None and error.rcvd.reason else "the connection broke"


def _unreachable(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing comes from there"
    if isinstance(error, InvalidHandshake):
        return "what answers there is no live feed"
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__).lower()


def _message(body: bytes | bytearray | None) -> str:
    """Return what an error envelope says."""
    try:
        return _printable(str(loads(bytes(body or b""))["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return "what answers there is no Sentinel Proxy, or an old one"


def run(url: str, token: str | None, out: TextIO | None = None) -> int:
    """Watch the proxy at *url* until interrupted; return the exit status."""
    out = out if out is not None else sys.stdout
    screen = Screen(out, colour=wants_colour(out, os.environ))

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    try:
        asyncio.run(Watcher(url, token, say, screen.paint, SystemClock(), random.uniform).run())
    except (Refused, InvalidURI) as error:
        print(f"sentinel-proxy: {error}", file=sys.stderr)
        return 2
    return 0


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return where a proxy that was started from the same environment listens."""
    return f"http://127.0.0.1:{environ.get('SENTINEL_PORT', '8000')}"
