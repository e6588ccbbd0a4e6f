"""
A caller on a bare socket, and an independent judge of what it received.

`ask` keeps every byte of an answer; `Answer` reads them as the official SDKs do and says
whether an application would take the answer for a good one. Nothing here is shared with the
proxy, so a mistake of ours is not made twice.
"""

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


async def ask(url: str, payload: Any, headers: str = "", path: str = "/v1/chat/completions") -> bytes:
    """Send one call on a connection of its own; return every byte until the proxy closes it."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request(payload, headers, path))
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
    finally:
        writer.close()


def request(payload: Any, headers: str = "", path: str = "/v1/chat/completions") -> bytes:
    """Return a request that wants its connection closed; *headers* are whole lines."""
    body = json.dumps(payload).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Answer:
    """What an SDK makes of an answer's bytes."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False  # the transfer ended as HTTP/1.1 wants it
    events: list[Any] = field(default_factory=list)  # payloads up to `[DONE]`
    done: bool = False
    malformed: bool = False
    error: Any = None

    @property
    def success(self) -> bool:
        """
        Whether the SDKs would end their iteration without raising.

        A clean end without `[DONE]` is an end like any other to them; so it is here.
        """
        return self.status == 200 and self.whole and self.error is None and not self.malformed

    @property
    def choices(self) -> list[Any]:
        """The first choice of every chunk that has one."""
        return [event["choices"][0] for event in self.events if event.get("choices")]

    @property
    def text(self) -> str:
        """What the chunks say together."""
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)

    @property
    def finishes(self) -> list[str]:
        """The finish reasons, in order."""
        return [choice["finish_reason"] for choice in self.choices if choice.get("finish_reason")]

    @property
    def roles(self) -> int:
        """How many chunks bring a role."""
        return sum("role" in choice["delta"] for choice in self.choices)


def judged(wire: bytes) -> Answer:
    """Read the bytes of one whole exchange."""
    head, separator, rest = wire.partition(b"\r\n\r\n")
    if not separator:
        return Answer()
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    answer = Answer(int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs})
    answer.body, answer.whole = _body(answer.headers, rest)
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        _read_events(answer)
    elif answer.whole and answer.status >= 400:
        answer.error = json.loads(answer.body)["error"]
    return answer


def _body(headers: dict[str, str], rest: bytes) -> tuple[bytes, bool]:
    """Return the body, and whether it ended where its framing says (RFC 9112 §6.3, §7.1)."""
    if headers.get("transfer-encoding") != "chunked":
        return rest, len(rest) == int(headers["content-length"])
    body = b""
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
        size = int(match[1], 16)
        start = match.end()
        if rest[start + size : start + size + 2] != b"\r\n":
            return body + rest[start : start + size], False
        body, rest = body + rest[start : start + size], rest[start + size + 2 :]
        if size == 0:
            return body, rest == b""
    return body, False


def _read_events(answer: Answer) -> None:
    *blocks, _half_an_event = re.split(rb"\r\n\r\n|\n\n|\r\r", answer.body)
    for block in blocks:
        data = [line[5:].strip() for line in block.splitlines() if line.startswith(b"data:")]
        if not data:
            continue
        if data[0].startswith(b"[DONE]"):
            answer.done = True
            return
        try:
            event = json.loads(b"\n".join(data))
        except ValueError:
            answer.malformed = True
            return
        if event.get("error"):
            answer.error = event["error"]
            return
        answer.events.append(event)
