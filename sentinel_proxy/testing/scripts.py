"""
What a `FaultyUpstream` can play: steps, and scripts made of them.

A script is a list of small steps that says what goes over the wire and when. `answer` and
`stream` build right ones in plain HTTP, `cut` breaks any; the dialects build on these.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sentinel_proxy.model import Usage
from sentinel_proxy.wire import json

DEFAULT_USAGE: Final = Usage(prompt_tokens=7, completion_tokens=2)
"""What an answer says it cost, unless its script says otherwise."""

Framing = Literal["length", "chunked", "close"]


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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as an answer asks for it."""

    name: str
    arguments: Mapping[str, Any]
    id: str = "call_Scripted1"  # OpenAI's; Ollama's own API has none


Step = Send | Pause | Hang | Close | HalfClose | Reset | Unread
Script = Sequence[Step]


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


def json_answer(
    status: int, body: Any, headers: Mapping[str, str] | None = None, framing: Framing = "length"
) -> Script:
    """Build one complete answer of JSON; the arguments are those of `answer`."""
    return answer(status, json.dumps(body), {"content-type": "application/json", **(headers or {})}, framing)


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
