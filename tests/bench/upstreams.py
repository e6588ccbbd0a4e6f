"""What the upstreams of the benchmark and of the soak have in common: where a request ends."""

import asyncio
import re
from abc import ABC, abstractmethod
from typing import Final, cast

_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Upstream(asyncio.Protocol, ABC):
    """One connection of a proxy's; requests come one at a time, each after the answer to the last."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._held = b""

    @abstractmethod
    def asked(self, head: bytes, body: bytes) -> None:
        """Answer one request. *head* is without the empty line that ends it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        held = self._held = self._held + data
        head, separator, rest = held.partition(b"\r\n\r\n")
        if not separator:
            return
        length = _LENGTH.search(head)
        size = int(length[1]) if length is not None else 0
        if len(rest) >= size:
            self._held = rest[size:]
            self.asked(head, rest[:size])
