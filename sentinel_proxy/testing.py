"""
A clock that moves by hand and an upstream that fails on cue.

Public: our tests, the demo, the drill and provider plugins all act out failures with these.
`FaultyUpstream` is a raw TCP server, so it can do what no HTTP server would: stop inside a
status line, reset, fall silent, lie about a length. It plays *scripts*, lists of small steps;
the builders below make whole scripts, right ones (`answer`, `stream`, the dialects) and, with
`cut`, broken ones. Nothing here judges the proxy, and nothing in the proxy's core may import it.
"""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Literal, Self, cast

from sentinel_proxy.model import Header, Usage
from sentinel_proxy.wire import json

HOST: Final = "127.0.0.1"
Framing = Literal["length", "chunked", "close"]


class FakeClock:
    """
    A `clock.Clock` that moves only when told to.

    `sleep` notes the wish in `sleeps`, advances by it and returns after letting others run
    once, so what waits for minutes is tested in no time.
    """

    def __init__(self, monotonic: float = 1000.0, time: float = 1_772_359_200.0) -> None:
        self._monotonic = monotonic
        self._time = time
        self.sleeps: list[float] = []

    def __repr__(self) -> str:
        return f"<FakeClock {self._monotonic:.3f}>"

    def monotonic(self) -> float:
        """Return the seconds this clock shows."""
        return self._monotonic

    def time(self) -> float:
        """Return the Unix seconds this clock shows."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass; time never goes back."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._monotonic += seconds
        self._time += seconds

    async def sleep(self, seconds: float) -> None:
        """Note the wish, advance by it, and let other tasks run."""
        self.sleeps.append(seconds)
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes; goes on once the kernel has taken all of them."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Do nothing until the peer goes."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection cleanly (FIN; over TLS a close_notify before it)."""


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Send FIN but keep listening. TLS cannot do this; there it is `Close`."""


@dataclass(frozen=True, slots=True)
class Reset:
    """End the connection with a TCP reset (RST)."""


@dataclass(frozen=True, slots=True)
class Unread:
    """
    Answer on the head alone and leave the request's body in the socket.

    Only as the first step of a script that is given as such, not by a function. The connection
    ends with the script.
    """


Step = Send | Pause | Hang | Close | HalfClose | Reset | Unread
Script = Sequence[Step]


@dataclass(frozen=True, slots=True, repr=False)
class Received:
    """One request as it arrived."""

    method: str
    target: str
    headers: list[Header]  # as sent: order, case and repetitions kept
    body: bytes  # without its framing; b"" if the script began with `Unread`
    raw: bytes  # every byte of head and body, framing included
    connection: int  # 1 for the first connection that was accepted
    arrived: float  # monotonic seconds of the event loop, when it was complete

    def header(self, name: str) -> str | None:
        """Return the first value of *name*, whatever its case, or None."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), None)

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<Received {self.method} {self.target} on connection {self.connection}>"


Act = Script | Callable[[Received], Iterable[Step]]
"""What to play: a script, or a function that looks at the request first (it may be a generator)."""


class FaultyUpstream:
    """
    A server on loopback that answers each request with the next script.

    Use it as an async context manager. A connection stays open after a script, as HTTP/1.1
    has it, unless the script ended it or the request asked for that. Leaving the context
    closes every connection and ends every task.

    Args:
        port: 0 takes a free one.
        ssl: A server-side context makes it speak TLS.
    """

    def __init__(self, port: int = 0, ssl: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.requests: list[Received] = []
        self.connections = 0
        self._ssl = ssl
        self._claim: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._queue: deque[Act] = deque()
        self._always: Act = answer(500, b"nothing was scripted for this request")
        self._greeting: Script = ()
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<FaultyUpstream {len(self.requests)} requests, {self.open_connections} open connections>"

    @property
    def url(self) -> str:
        """Scheme, host and port; no trailing slash."""
        return f"{'https' if self._ssl else 'http'}://{HOST}:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    async def __aenter__(self) -> Self:
        self._claim = _bound(self.port)
        self.port = self._claim.getsockname()[1]
        await self.listen_again()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def plays(self, *acts: Act) -> Self:
        """Answer the next requests with *acts*, one each, after those already queued."""
        self._queue.extend(acts)
        return self

    def always(self, act: Act) -> Self:
        """Answer with *act* whenever nothing is queued."""
        self._always = act
        return self

    def greets(self, script: Script) -> Self:
        """Play *script* on every new connection before a request is read; `()`: nothing."""
        self._greeting = script
        return self

    async def stop_listening(self) -> None:
        """Refuse new connections. The port stays ours and open connections stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)  # the loop lets go of the socket in its next round

    async def listen_again(self) -> None:
        """Accept connections, on the same port as before."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            listener = _bound(self.port)
            self._server = await loop.create_server(lambda: _Connection(self), sock=listener, ssl=self._ssl)

    def drop_connections(self) -> None:
        """Reset every open connection, as a crash of the server would."""
        for connection in list(self._open):
            connection.reset()

    async def aclose(self) -> None:
        """Stop listening, close every connection, end every task."""
        await self.stop_listening()
        for connection in list(self._open):
            connection.abort()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _unread_next(self) -> bool:
        """Whether the next act wants to answer before the body is read."""
        act = self._queue[0] if self._queue else self._always
        return not callable(act) and bool(act) and isinstance(act[0], Unread)

    def _next(self, request: Received) -> Iterable[Step]:
        self.requests.append(request)
        act = self._queue.popleft() if self._queue else self._always
        return act(request) if callable(act) else act


def _bound(port: int) -> socket.socket:
    """
    Return a socket bound to *port* that does not listen, so connects to it are refused.

    SO_REUSEPORT lets the one that holds the port and the one that listens coexist.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((HOST, port))
    except BaseException:
        sock.close()
        raise
    return sock


class _Ended(Exception):
    """The script has ended the connection."""


class _Connection(asyncio.Protocol):
    """One accepted connection: reads requests, plays scripts."""

    def __init__(self, upstream: FaultyUpstream) -> None:
        self._upstream = upstream
        self._reader = asyncio.StreamReader(limit=1 << 20)
        self._drained = asyncio.Event()
        self._drained.set()
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None]
        self._number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # "Drained" then means that the kernel has it all; asyncio's TLS never resumes with high=0.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._reader.set_transport(transport)
        upstream = self._upstream
        upstream.connections += 1
        self._number = upstream.connections
        upstream._open.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"faulty {self._number}")
        upstream._tasks.add(self._task)
        self._task.add_done_callback(upstream._tasks.discard)

    def data_received(self, data: bytes) -> None:
        self._reader.feed_data(data)

    def eof_received(self) -> bool:
        self._reader.feed_eof()
        return False  # a peer that closes has gone: half-open clients are not acted out

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._upstream._open.discard(self)
        self._reader.feed_eof()
        self._task.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def reset(self) -> None:
        sock = self._transport.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def _serve(self) -> None:
        with suppress(_Ended, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            await self._play(self._upstream._greeting)
            while await self._exchange():
                pass
        if not self._transport.is_closing():
            self._transport.close()

    async def _exchange(self) -> bool:
        """Read one request and answer it; return whether the connection may carry another."""
        request = await self._head()
        unread = self._upstream._unread_next()
        if unread:
            self._transport.pause_reading()
        else:
            request = await self._body(request)
        request = replace(request, arrived=asyncio.get_running_loop().time())
        await self._play(self._upstream._next(request))
        if unread:
            return False
        return b"HTTP/1.1" in request.raw.split(b"\r\n", 1)[0] and request.header("connection") != "close"

    async def _head(self) -> Received:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].split(b"\r\n")
        method, target, _version = first.decode("latin-1").split(" ")
        pairs = (line.partition(b":") for line in lines)
        headers = [(name, value.strip(b" \t")) for name, _, value in pairs]
        return Received(method, target, headers, b"", raw, self._number, 0.0)

    async def _body(self, request: Received) -> Received:
        if "chunked" in (request.header("transfer-encoding") or "").lower():
            body, wire = await self._chunks()
        else:
            body = wire = await self._reader.readexactly(int(request.header("content-length") or 0))
        return replace(request, body=body, raw=request.raw + wire)

    async def _chunks(self) -> tuple[bytes, bytes]:
        """Return a chunked body without and with its framing (RFC 9112 §7.1)."""
        body, wire = bytearray(), bytearray()
        while True:
            line = await self._reader.readuntil(b"\r\n")
            size = int(line.split(b";", 1)[0], 16)
            if size == 0:
                break
            chunk = await self._reader.readexactly(size + 2)
            body += chunk[:-2]
            wire += line + chunk
        while True:
            wire += line
            if line == b"\r\n":
                return bytes(body), bytes(wire)
            line = await self._reader.readuntil(b"\r\n")  # trailers, then the empty line

    async def _play(self, script: Iterable[Step]) -> None:
        for step in script:
            match step:
                case Send(data):
                    self._transport.write(data)
                    await self._drained.wait()
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Hang():
                    await asyncio.Event().wait()  # ends by cancellation once the peer has gone
                case HalfClose() if self._transport.can_write_eof():
                    self._transport.write_eof()
                case Close() | HalfClose():
                    self._transport.close()
                    raise _Ended
                case Reset():
                    self.reset()
                    raise _Ended
                case Unread():
                    pass  # has already taken effect


# -- scripts: whole answers, and ways to break them ------------------------------------------


def answer(
    status: int,
    body: bytes | str = b"",
    headers: Mapping[str, str] | None = None,
    framing: Framing = "length",
) -> Script:
    """
    Build one complete answer.

    Args:
        headers: Added after `content-type: text/plain`, which they may replace.
        framing: "close" ends the body by closing the connection (RFC 9112 §6.3 rule 8).
    """
    data = body.encode() if isinstance(body, str) else body
    if framing == "length":
        return [Send(_head(status, headers, {"content-length": str(len(data))}) + data)]
    return stream([data] if data else [], status=status, headers=headers, framing=framing)


def stream(
    chunks: Iterable[bytes],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    framing: Framing = "chunked",
    pause: float = 0.0,
) -> Script:
    """
    Build an answer whose body comes in *chunks*, each in a write of its own.

    Args:
        framing: "length" declares the sum of the chunks beforehand.
        pause: Seconds of silence before every chunk.
    """
    parts = list(chunks)
    steps: list[Step] = [Send(_head(status, headers, _framing_headers(framing, parts)))]
    for part in parts:
        if pause:
            steps.append(Pause(pause))
        steps.append(Send(b"%x\r\n%b\r\n" % (len(part), part) if framing == "chunked" else part))
    if framing == "chunked":
        steps.append(Send(b"0\r\n\r\n"))
    if framing == "close":
        steps.append(Close())
    return steps


def cut(
    script: Script, at: int, by: Reset | Close | Hang | None = None, *, of: Literal["wire", "body"] = "wire"
) -> Script:
    """
    Play *script* up to *at* bytes and break off there.

    Args:
        at: How many bytes are still sent. A script with fewer is played as far as it goes.
        by: How it breaks off; a reset if not given.
        of: Count from the first byte on the wire, or from the first one after the head (the
            framing of chunks counts too).
    """
    left = at + (_wire(script).index(b"\r\n\r\n") + 4 if of == "body" else 0)
    return [*_up_to(script, left), by if by is not None else Reset()]


def _up_to(script: Script, left: int) -> Iterator[Step]:
    for step in script:
        if isinstance(step, Close | Reset | Hang):
            return
        if not isinstance(step, Send):
            yield step
            continue
        if left > 0:
            yield Send(step.data[:left])
        left -= len(step.data)
        if left <= 0:
            return


def _wire(script: Script) -> bytes:
    return b"".join(step.data for step in script if isinstance(step, Send))


def _framing_headers(framing: Framing, parts: Sequence[bytes]) -> dict[str, str]:
    if framing == "length":
        return {"content-length": str(sum(map(len, parts)))}
    return {"transfer-encoding": "chunked"} if framing == "chunked" else {"connection": "close"}


def _lower(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}


def _head(status: int, headers: Mapping[str, str] | None, framing: Mapping[str, str]) -> bytes:
    fields = {"content-type": "text/plain", **_lower(headers), **framing}
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# -- scripts: the dialect of OpenAI ----------------------------------------------------------

CREATED: Final = 1_772_359_200
DEFAULT_USAGE: Final = Usage(prompt_tokens=7, completion_tokens=2)


@dataclass(frozen=True, slots=True)
class _Chat:
    """What the parts of one simulated OpenAI answer have in common."""

    model: str
    object: str
    id: str = "chatcmpl-Scripted1"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def json(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": CREATED,
            "model": self.model,
            "choices": choices,
            **more,
            **self.extra,
        }


def openai_completion(
    text: str = "Hello",
    *,
    model: str = "gpt-4o-mini",
    usage: Usage = DEFAULT_USAGE,
    finish_reason: str = "stop",
    headers: Mapping[str, str] | None = None,
    framing: Framing = "length",
) -> Script:
    """Build a complete `chat.completion` with one choice."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    body = _Chat(model, "chat.completion").json(
        [choice], usage=_usage(usage), system_fingerprint="fp_scripted"
    )
    return _json(200, body, _openai_headers(headers), framing)


def openai_chunks(
    tokens: Iterable[str],
    *,
    model: str = "gpt-4o-mini",
    usage: Usage | None = None,
    finish_reason: str | None = "stop",
    done: bool = True,
    role: bool = True,
) -> list[bytes]:
    """
    Return the SSE events of a streamed chat answer, one `bytes` an event.

    Args:
        usage: Adds the event with empty choices that `include_usage` asks for.
        finish_reason: None leaves the finishing event away: the stream is truncated.
        done: Whether `[DONE]` comes at the end.
        role: Whether the first delta carries the role alone, as OpenAI sends it.
    """
    chat = _Chat(model, "chat.completion.chunk", extra={} if usage is None else {"usage": None})
    deltas: list[tuple[dict[str, str], str | None]] = [({"content": token}, None) for token in tokens]
    if role:
        deltas.insert(0, ({"role": "assistant", "content": ""}, None))
    if finish_reason is not None:
        deltas.append(({}, finish_reason))
    payloads = [
        chat.json([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])
        for delta, finish in deltas
    ]
    if usage is not None:
        payloads.append({**chat.json([]), "usage": _usage(usage)})
    return [*map(sse, payloads), *([sse("[DONE]")] if done else [])]


def openai_stream(
    tokens: Iterable[str],
    *,
    model: str = "gpt-4o-mini",
    usage: Usage | None = None,
    finish_reason: str | None = "stop",
    done: bool = True,
    role: bool = True,
    pause: float = 0.0,
    headers: Mapping[str, str] | None = None,
    framing: Framing = "chunked",
) -> Script:
    """Build a streamed chat answer; the arguments are those of `openai_chunks` and `stream`."""
    events = openai_chunks(
        tokens, model=model, usage=usage, finish_reason=finish_reason, done=done, role=role
    )
    return sse_stream(events, pause=pause, headers=_openai_headers(headers), framing=framing)


def openai_error(
    status: int,
    code: str | None = None,
    message: str = "The scripted error.",
    *,
    type: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Script:
    """Build an error in OpenAI's envelope; *type* follows from the status unless given."""
    kind = type or ("invalid_request_error" if 400 <= status < 500 and status != 429 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return _json(status, {"error": error}, _openai_headers(headers))


def openai_models(*ids: str) -> Script:
    """Build the answer to `GET /v1/models`."""
    data = [{"id": id, "object": "model", "created": CREATED, "owned_by": "system"} for id in ids]
    return _json(200, {"object": "list", "data": data}, _openai_headers(None))


def sse(payload: Any) -> bytes:
    """Return one event; a string is sent as it is, anything else as JSON."""
    data = payload.encode() if isinstance(payload, str) else json.dumps(payload)
    return b"data: %b\n\n" % data


def sse_stream(
    events: Iterable[bytes],
    *,
    pause: float = 0.0,
    headers: Mapping[str, str] | None = None,
    framing: Framing = "chunked",
) -> Script:
    """Build an event stream from *events* as they are."""
    fields = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
    return stream(events, headers=fields | dict(headers or {}), framing=framing, pause=pause)


def _openai_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {"x-request-id": "req_scripted", "openai-processing-ms": "5", **(headers or {})}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


# -- scripts: the dialect of Ollama ----------------------------------------------------------

CREATED_AT: Final = "2026-03-01T10:00:00.123456789Z"


def ollama_lines(
    tokens: Iterable[str],
    *,
    model: str = "llama3.2",
    usage: Usage = DEFAULT_USAGE,
    thinking: Iterable[str] = (),
    done_reason: str | None = "stop",
) -> list[bytes]:
    """Return the NDJSON lines of `/api/chat`; `done_reason=None` leaves the last one away."""
    messages = [{"role": "assistant", "content": "", "thinking": thought} for thought in thinking]
    messages += [{"role": "assistant", "content": token} for token in tokens]
    lines = [_ollama_line(model, message) for message in messages]
    if done_reason is not None:
        lines.append(_ollama_line(model, {"role": "assistant", "content": ""}, usage, done_reason))
    return [json.dumps(line) + b"\n" for line in lines]


def ollama_stream(
    tokens: Iterable[str],
    *,
    model: str = "llama3.2",
    usage: Usage = DEFAULT_USAGE,
    thinking: Iterable[str] = (),
    done_reason: str | None = "stop",
    pause: float = 0.0,
) -> Script:
    """Build a streamed answer of `/api/chat`; the arguments are those of `ollama_lines`."""
    lines = ollama_lines(tokens, model=model, usage=usage, thinking=thinking, done_reason=done_reason)
    return stream(lines, headers={"content-type": "application/x-ndjson"}, pause=pause)


def ollama_completion(
    text: str = "Hello",
    *,
    model: str = "llama3.2",
    usage: Usage = DEFAULT_USAGE,
    done_reason: str = "stop",
) -> Script:
    """Build the answer of `/api/chat` to a call that does not stream."""
    return _json(200, _ollama_line(model, {"role": "assistant", "content": text}, usage, done_reason))


def ollama_error(status: int, message: str = "the scripted error") -> Script:
    """Build an error as Ollama's own API gives it: a bare string."""
    return _json(status, {"error": message})


def ollama_tags(*models: str) -> Script:
    """Build the answer to `GET /api/tags`: the installed models."""
    return _json(200, {"models": [_ollama_model(model) | {"modified_at": CREATED_AT} for model in models]})


def ollama_ps(*models: str) -> Script:
    """Build the answer to `GET /api/ps`: the models in memory."""
    loaded = {"expires_at": "2026-03-01T10:05:00Z", "size_vram": 2_019_393_189, "context_length": 8192}
    return _json(200, {"models": [_ollama_model(model) | loaded for model in models]})


def ollama_show(*capabilities: str) -> Script:
    """Build the answer to `POST /api/show`."""
    return _json(200, {"capabilities": list(capabilities), "parameters": "", "details": _DETAILS})


def ollama_version(version: str = "0.32.15") -> Script:
    """Build the answer to `GET /api/version`."""
    return _json(200, {"version": version})


_DETAILS: Final = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "3.2B",
    "quantization_level": "Q4_K_M",
}


def _ollama_model(name: str) -> dict[str, Any]:
    """An installed model; a name without a tag means `:latest`, and is listed so."""
    full = name if ":" in name else f"{name}:latest"
    return {"name": full, "model": full, "size": 2_019_393_189, "digest": "a80c4f17acd5", "details": _DETAILS}


def _ollama_line(
    model: str, message: Mapping[str, str], usage: Usage = DEFAULT_USAGE, done_reason: str | None = None
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "model": model,
        "created_at": CREATED_AT,
        "message": message,
        "done": done_reason is not None,
    }
    if done_reason is None:
        return line
    return line | {
        "done_reason": done_reason,
        "total_duration": 900_000_000,  # nanoseconds, as all durations of this API
        "load_duration": 1_000_000,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": 100_000_000,
        "eval_count": usage.completion_tokens,
        "eval_duration": 700_000_000,
    }


def _json(
    status: int, body: Any, headers: Mapping[str, str] | None = None, framing: Framing = "length"
) -> Script:
    return answer(status, json.dumps(body), {"content-type": "application/json", **(headers or {})}, framing)
