"""
The connection: parsing, the order of requests, time limits.

Requests that come while one is being answered wait, and reading pauses meanwhile.
"""

import asyncio
from functools import lru_cache
from typing import Any, Final, cast
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.types import ASGIApp, Scope
from uvicorn import Config
from uvicorn.server import ServerState

from sentinel_proxy.inbound.turn import STATUS_LINES, Turn
from sentinel_proxy.model import Header, header
from sentinel_proxy.wheel import Alarm, Wheel

HEAD_SECONDS: Final = 30.0
"""For the head of a connection's first request, or the rest of any other's, to arrive."""

MAX_HEAD_BYTES: Final = 65_536
"""Of request line and headers; llhttp has no limit. h11 stops at 100 KiB, Node at 16 KiB, nginx at 32."""

_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_MAX_CACHED_TARGET_BYTES: Final = 256


_DEAF: Final = HttpRequestParser(object())
"""In place of a lost connection's parser: the two would keep each other until the collector comes by."""


class Inbound(asyncio.Protocol):
    """
    A connection and the requests that come on it, answered one at a time and in order.

    Args:
        server_state: The server's book of connections and tasks.
        app_state: What the lifespan has left for requests.
        wheel: Where its one alarm waits.
    """

    __slots__ = (
        "_alarm",
        "_app",
        "_app_state",
        "_client",
        "_config",
        "_head_bytes",
        "_headers",
        "_idle_seconds",
        "_loop",
        "_parser",
        "_reading",
        "_server",
        "_target",
        "_turn",
        "_waiting",
        "_wheel",
        "lost",
        "read_paused",
        "state",
        "transport",
        "writable",
        "write_paused",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        wheel: Wheel,
    ) -> None:
        self._config = config
        self._app = cast(ASGIApp, config.loaded_app)
        self._app_state = app_state
        self._idle_seconds = config.timeout_keep_alive
        self._wheel = wheel
        self._loop = _loop if _loop is not None else asyncio.get_running_loop()
        self._parser = _new_parser(self)
        self._alarm: Alarm | None = None
        self._target = b""
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._reading: Turn | None = None  # whose body the parser is in
        self._turn: Turn | None = None  # that is being answered
        self._waiting: list[Turn] = []  # an empty deque would take 600 bytes
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self.state = server_state
        self.transport: asyncio.Transport
        self.lost = False
        self.read_paused = False
        self.write_paused = False
        self.writable: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Inbound {'lost' if self.lost else 'idle' if self._turn is None else 'busy'}>"

    # -- what the server and the turns do -----------------------------------------------------

    def shutdown(self) -> None:
        """Close as soon as what is being answered has been."""
        if self._turn is None:
            self.transport.close()
        else:
            self._turn.keep_alive = False

    def answered(self, turn: Turn) -> None:
        """Go on with what comes after *turn*."""
        self.state.total_requests += 1
        self._turn = None
        if self.transport.is_closing():
            return
        if not turn.keep_alive:
            self.transport.close()
            return
        if self._waiting:
            self._serve(self._waiting.pop(0))
        else:
            self._rest(self._idle_seconds)
        self.resume_reading()

    def pause_reading(self) -> None:
        if not self.read_paused and not self.lost:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and not self.lost and not self._waiting:
            self.read_paused = False
            self.transport.resume_reading()

    # -- what the event loop calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _own_address(transport.get_extra_info("sockname"))
        self.state.connections.add(cast(Any, self))
        self._rest(HEAD_SECONDS)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.state.connections.discard(cast(Any, self))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for turn in (self._turn, self._reading):
            if turn is not None:
                turn.leave()
        self._turn = self._reading = None
        self._waiting.clear()
        self.resume_writing()
        self._parser = _DEAF

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._reading is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._turn is None and self._wants_websocket():
                self._become_websocket()
            else:
                self._stay(data[upgrade.args[0] :])
            return
        except HttpParserError:
            self._refuse(400, b"what came is not HTTP")
            return
        if self._reading is None and self._head_bytes:
            self._head_is_coming(len(data))

    # -- what the parser calls ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is None:  # else a trailer: nobody is told of them
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        self._head_bytes = 0
        if parser.should_upgrade():
            return  # the parser stops here
        method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        target = self._target
        split = _split_cached if len(target) <= _MAX_CACHED_TARGET_BYTES else _split
        path, raw_path, query = split(target)
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "root_path": "",
            "method": method,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
        }
        turn = Turn(self, scope, keep_alive=version != "1.0" and parser.should_keep_alive())
        self._reading = turn
        if self._turn is None:
            self._serve(turn)
        else:
            self._waiting.append(turn)
            self.pause_reading()

    def on_body(self, data: bytes) -> None:
        if self._reading is not None:
            self._reading.take(data)

    def on_message_complete(self) -> None:
        if self._reading is not None:
            turn, self._reading = self._reading, None
            turn.end()

    # -- inside -------------------------------------------------------------------------------

    def _serve(self, turn: Turn) -> None:
        self._turn = turn
        tasks = self.state.tasks
        task = self._loop.create_task(turn.run(self._app))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _rest(self, seconds: float) -> None:
        """Close unless a request is there within *seconds*."""
        due = self._loop.time() + seconds
        if self._alarm is None:
            self._alarm = self._wheel.set(due, self._too_late)
        else:
            self._alarm.move(due)

    def _too_late(self) -> None:
        self._alarm = None
        if self._turn is None:
            self.transport.close()
        else:
            self._rest(self._idle_seconds)  # cheaper to look again than to cancel it for every call

    def _head_is_coming(self, last_bytes: int) -> None:
        """See to it that the rest of a head that has begun comes soon, and is not too large."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, b"the head of the request is too large")
        elif self._head_bytes == last_bytes and self._turn is None:
            self._rest(HEAD_SECONDS)

    def _stay(self, rest: bytes) -> None:
        """
        Take a request that offers another protocol for what it is without the offer (RFC 9110 §7.8).

        The parser stops behind such a head and would take a body for that protocol; Java's client
        offers HTTP/2 with every first call.
        """
        if header(self._headers, b"upgrade") is None:
            self._refuse(400, b"there are no tunnels here")  # the method is CONNECT
            return
        head = [self._parser.get_method(), b" ", self._target, b" HTTP/1.1\r\n"]
        head += [b"%b: %b\r\n" % pair for pair in self._headers if pair[0] != b"upgrade"]
        self._parser = _new_parser(self)
        self.data_received(b"".join((*head, b"\r\n", rest)))

    def _refuse(self, status: int, message: bytes) -> None:
        """End a connection that cannot be understood; what is being answered is cut off with it."""
        if self._turn is None and not self.transport.is_closing():
            body = (
                b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}'
                % message
            )
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINES[status] + head % len(body) + body)
        self.transport.close()

    def _wants_websocket(self) -> bool:
        """Whether the request is one for a WebSocket (RFC 6455 §4.1), and there are any here."""
        if self._config.ws_protocol_class is None:
            return False
        return (header(self._headers, b"upgrade") or b"").lower() == b"websocket"

    def _become_websocket(self) -> None:
        """Hand the connection over, with the request that asked for it written anew."""
        self.state.connections.discard(cast(Any, self))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        head = [self._parser.get_method(), b" ", self._target, b" HTTP/1.1\r\n"]
        head += [b"%b: %b\r\n" % pair for pair in self._headers]
        live = cast(Any, self._config.ws_protocol_class)(
            config=self._config, server_state=self.state, app_state=self._app_state
        )
        live.connection_made(self.transport)
        live.data_received(b"".join((*head, b"\r\n")))
        self.transport.set_protocol(live)


def _new_parser(connection: Inbound) -> HttpRequestParser:
    parser = HttpRequestParser(connection)
    # A request that is answered early is followed by the rest of its body, wanted or not.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _split(target: bytes) -> tuple[str, bytes, bytes]:
    """Return path, raw path and query of a request's target."""
    parsed = parse_url(target)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


_split_cached: Final = lru_cache(maxsize=512)(_split)


def _address(info: Any) -> tuple[str, int] | None:
    """Return host and port of what a transport says of one of its ends."""
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) else None


_own_address: Final = lru_cache(maxsize=16)(_address)
