"""
The load of calls that are not streamed: wrk for full speed, a caller of our own for single latencies.

The requests are what the official Python SDK sends.
"""

import json
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from machine import OTHER_CORE

PATH: Final = "/v1/chat/completions"
SDK_HEADERS: Final = {
    "Host": "localhost",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 2.41.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "2.41.0",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.12.3",
    "Authorization": "Bearer sk-of-a-caller",
    "X-Stainless-Async": "async:asyncio",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
_QUESTION: Final = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello! What can you do for me today? Please answer in one sentence."},
    ],
}
NO_HEADERS: Final[Mapping[str, str]] = {}

_LENGTH: Final = re.compile(rb"content-length: (\d+)\r\n", re.IGNORECASE)


def request_bytes(
    *, stream: bool = False, user: str | None = None, headers: Mapping[str, str] = NO_HEADERS
) -> bytes:
    """Return one request as it goes over the wire, with *headers* besides those of the SDK."""
    more = ({"stream": True} if stream else {}) | ({"user": user} if user is not None else {})
    body = json.dumps(_QUESTION | more, separators=(",", ":")).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**SDK_HEADERS, **headers}.items())
    return f"POST {PATH} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


# -- wrk ---------------------------------------------------------------------------------------

_REQUESTS: Final = re.compile(r"(\d+) requests in ([0-9.]+)(m?s)")
_TROUBLE: Final = re.compile(r"Socket errors: .*|Non-2xx or 3xx responses: \d+")


@dataclass(slots=True)
class Calls:
    """What wrk saw."""

    count: int
    per_second: float


def wrk(
    port: int, folder: Path, *, connections: int, seconds: float, headers: Mapping[str, str] = NO_HEADERS
) -> Calls:
    """
    Call as fast as answers come, with *headers* besides those of the SDK.

    Raises:
        RuntimeError: A call failed.
    """
    script = folder / "call.lua"
    body = json.dumps(_QUESTION, separators=(",", ":"))
    fields = "".join(
        f'wrk.headers["{name}"] = "{value}"\n' for name, value in {**SDK_HEADERS, **headers}.items()
    )
    script.write_text(f"wrk.method = 'POST'\nwrk.body = [[{body}]]\n{fields}")
    command = ["taskset", "--cpu-list", str(OTHER_CORE), "wrk", "-t1", f"-c{connections}", "--timeout", "30s"]
    command += [f"-d{round(seconds)}s", "-s", str(script), f"http://127.0.0.1:{port}{PATH}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counted = _REQUESTS.search(said)
    if counted is None or _TROUBLE.search(said) is not None:
        raise RuntimeError(f"wrk had trouble: {said}")
    took = float(counted[2]) / (1000 if counted[3] == "ms" else 1)
    return Calls(int(counted[1]), int(counted[1]) / took)


# -- one call at a time ------------------------------------------------------------------------


class OneByOne:
    """One kept-alive connection that is called on, each call after the answer to the last."""

    def __init__(self, port: int, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request_bytes(headers=headers)

    def __enter__(self) -> "OneByOne":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self) -> float:
        """
        Return the seconds from writing a request to having the whole answer.

        Raises:
            RuntimeError: It is not the answer that was to come.
        """
        began = time.perf_counter()
        self._socket.sendall(self._request)
        answer = self._socket.recv(65_536)
        while not _is_whole(answer):
            if not (more := self._socket.recv(65_536)):
                break
            answer += more
        seconds = time.perf_counter() - began
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"an answer that was not to come: {answer[:200]!r}")
        return seconds


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n") if separator else None
    return length is not None and len(body) >= int(length[1])
