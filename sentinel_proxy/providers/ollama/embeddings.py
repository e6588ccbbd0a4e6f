"""
Answers of `/api/embed` as embeddings.

Vectors are checked before they are passed on: a list that is too short, or vectors of another
length than was asked for, would spoil an index without any error.
"""

import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from sentinel_proxy.model import Usage
from sentinel_proxy.providers.ollama import failures
from sentinel_proxy.providers.ollama.envelope import Native, read_usage
from sentinel_proxy.providers.ollama.refusals import unsupported
from sentinel_proxy.providers.ollama.replies import BodyDecoder
from sentinel_proxy.providers.ollama.requests import embedding_input

Vector = Sequence[float]


class EmbeddingDecoder(BodyDecoder):
    """One list of embeddings, as floats or as base64 of little-endian float32."""

    prefix = "embd-"
    expects = ("embeddings",)

    def answer(self, native: Native) -> Mapping[str, Any]:
        payload = self.asked.call.payload
        vectors = native["embeddings"]
        if not isinstance(vectors, list) or len(vectors) != len(embedding_input(payload)):
            raise failures.protocol("the upstream's answer does not hold one vector for each input")
        if not all(_is_vector(vector) for vector in vectors):
            raise failures.protocol("the upstream's answer holds something that is no vector")
        dimensions = payload.get("dimensions")
        if dimensions is not None and any(len(vector) != dimensions for vector in vectors):
            raise unsupported("dimensions", "this Ollama model makes vectors of another length")
        self.usage = Usage(read_usage(native).prompt_tokens)
        encode = _base64 if payload.get("encoding_format") == "base64" else list
        tokens = self.usage.prompt_tokens
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": self.identity.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _is_vector(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    )


def _base64(vector: Vector) -> str:
    try:
        return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (OverflowError, struct.error) as error:
        raise failures.protocol("the upstream's answer holds numbers that are no float32") from error
