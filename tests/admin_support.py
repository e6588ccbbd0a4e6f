"""What tests of the operators' faces share: the described shapes, and listeners to the live feed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import httpx
from harness import chain, eventually
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sentinel_proxy.admin import openapi
from sentinel_proxy.config import AdminConfig, BreakerConfig, Config, HealthConfig
from sentinel_proxy.testing import SimulatedOllama, SimulatedOpenAI

TOKEN = "a-token-of-operators"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


# The description.


@cache
def described() -> dict[str, Any]:
    return openapi.description("1.2.3")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield every described operation: path, method in capitals, and what is said of it."""
    for path, methods in described()["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def assert_as_described(reply: httpx.Response, path: str) -> None:
    """Fail, saying where, unless *reply* is what the description of *path* promises."""
    operation = described()["paths"][path][reply.request.method.lower()]
    content = operation["responses"][str(reply.status_code)].get("content", {})
    media = reply.headers["content-type"].partition(";")[0]
    assert media in content, f"{path} answers {reply.status_code} with {media}"
    if media == "application/json":
        assert_shape(content[media]["schema"], reply.json())


def assert_shape(schema: dict[str, Any], instance: Any) -> None:
    """Fail, saying where, unless *instance* is what *schema* of the description allows."""
    whole = {"components": described()["components"], **schema}
    validator = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
    error = best_match(validator.iter_errors(instance))
    assert error is None, f"{error.json_path}: {error.message[:300]}"


# A proxy between simulated providers.


def simulated_chain(openai: SimulatedOpenAI, ollama: SimulatedOllama, **sections: Any) -> Config:
    """Return a chain of both that rests shortly, and is probed only where a test wants it."""
    quick: dict[str, Any] = {
        "breaker": BreakerConfig(recovery_timeout=0.4),
        "health": HealthConfig(interval=3600),
    }
    return chain(openai._server, ollama._server, **(quick | sections))


def with_token() -> AdminConfig:
    return AdminConfig.model_validate({"token": TOKEN})


# The live feed.


class Listener:
    """One WebSocket client, and every frame that it was sent."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []
        self.close: tuple[int, str] | None = None

    async def read(self) -> None:
        """Read until the connection is closed."""
        try:
            while True:
                self.frames.append(json.loads(await self.socket.recv()))
        except ConnectionClosed as closed:
            self.close = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")

    def of(self, *types: str) -> list[dict[str, Any]]:
        """Return the frames of these types."""
        return [frame for frame in self.frames if frame["event_type"] in types]

    async def until(self, condition: Callable[["Listener"], object]) -> None:
        """Wait until *condition* holds of it."""
        await eventually(lambda: condition(self))


def feed_url(url: str, query: str = "") -> str:
    return f"{url.replace('http', 'ws', 1)}/ws/system-events{query}"


@asynccontextmanager
async def listening(url: str, query: str = "", **options: Any) -> AsyncIterator[Listener]:
    """Listen to the live feed of the proxy at *url*; *options* go to `websockets.connect`."""
    async with connect(feed_url(url, query), proxy=None, **options) as socket:
        listener = Listener(socket)
        reading = asyncio.create_task(listener.read())
        yield listener
        await socket.close()
        await reading
