"""What the tests of the Ollama provider share: calls, a provider with a known map, bodies fed in pieces."""

import json
from collections.abc import Iterable, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from sentinel_proxy.model import Call, Endpoint, ReplyHead
from sentinel_proxy.providers.base import Decoder
from sentinel_proxy.providers.ollama import OllamaProvider

EXAMPLES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "fixtures" / "ollama" / "worked_examples.json").read_bytes()
)
MODELS = {
    "gpt-4o-mini": "llama3.2",
    "gpt-4o": "gemma3",
    "o4-mini": "qwen3",
    "gpt-5": "gpt-oss:20b",
    "text-embedding-3-small": "nomic-embed-text",
    "gpt-3.5-turbo-instruct": "qwen2.5-coder",
}
OK = ReplyHead(200, ((b"content-type", b"application/x-ndjson"),))


class StoppedClock:
    """Time does not pass; it is 2026-03-01T12:00:00Z."""

    def monotonic(self) -> float:
        return 0.0

    def time(self) -> float:
        return 1772366400.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody waits here")


def provider(**settings: Any) -> OllamaProvider:
    """Return a provider that counts its ids, so that two runs can be compared."""
    numbers = count()
    defaults = {
        "name": "ollama",
        "base_url": "http://localhost:11434",
        "models": MODELS,
        "clock": StoppedClock(),
        "mint": lambda prefix: f"{prefix}sntl{next(numbers):020d}",
    }
    return OllamaProvider(**{**defaults, **settings})


def call(payload: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> Call:
    return Call(
        trace_id="t-1",
        endpoint=endpoint,
        body=b"",
        payload=payload,
        model=payload.get("model", "gpt-4o-mini"),
        stream=payload.get("stream") is True,
        started=0.0,
        deadline=600.0,
    )


def encoded(payload: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT, **settings: Any) -> dict[str, Any]:
    """Return the native body for *payload*."""
    request = provider(**settings).encode(call(payload, endpoint))
    assert isinstance(request.body, bytes)
    body: dict[str, Any] = json.loads(request.body)
    return body


def ndjson(lines: Iterable[object]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def run(decoder: Decoder, body: bytes, cuts: Sequence[int] = ()) -> bytes:
    """Feed *body*, cut at *cuts*, and close; nothing is fed after the end."""
    output = b""
    for start, end in pairwise([0, *sorted(cuts), len(body)]):
        if decoder.complete or decoder.failure is not None:
            break
        output += decoder.feed(body[start:end])
    return output + decoder.close()


def decoded(
    payload: dict[str, Any], body: bytes, endpoint: Endpoint = Endpoint.CHAT, cuts: Sequence[int] = ()
) -> tuple[Decoder, bytes]:
    """Return a decoder that has read *body* as the answer to *payload*, and what it wrote."""
    decoder = provider().decoder(call(payload, endpoint), OK)
    return decoder, run(decoder, body, cuts)


def data_lines(output: bytes) -> list[str]:
    """Return the data of every event; each event must end with a blank line."""
    assert output == b"" or output.endswith(b"\n\n")
    events = output.decode().split("\n\n")[:-1]
    return [line[6:] for event in events for line in event.split("\n") if line.startswith("data: ")]


def events(output: bytes) -> list[Any]:
    """Return the payloads of the events, `[DONE]` as it is."""
    return [data if data == "[DONE]" else json.loads(data) for data in data_lines(output)]
