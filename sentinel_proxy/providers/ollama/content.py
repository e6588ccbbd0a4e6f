"""
Message content: OpenAI's strings and lists of parts become one text and a list of images.

Ollama wants bare standard base64 and never fetches anything. Audio travels in the same list as
images; the server tells them apart by their first bytes.
"""

import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sentinel_proxy.providers.ollama.facts import ModelFacts
from sentinel_proxy.providers.ollama.refusals import invalid_image, invalid_type, invalid_value, unsupported

IMAGE_TYPES: Final = frozenset({"", "image/png", "image/jpeg", "image/jpg", "image/webp"})
"""Media types that every current Ollama engine decodes; "" is a data URI that names none."""

_URL_SAFE: Final = str.maketrans("-_", "+/")


@dataclass(slots=True)
class Content:
    """What one message says."""

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All texts, one a line: glued together, words would run into each other."""
        return "\n".join(self.texts)


def read_content(value: object, param: str, facts: ModelFacts) -> Content:
    """
    Read *value*, a message's content: null, a string or a list of parts.

    Args:
        param: The top-level field to blame.
        facts: Of the model asked; what it is known not to see or hear is refused.
    """
    if value is None:
        return Content()
    if isinstance(value, str):
        return Content([value])
    if not isinstance(value, list):
        raise invalid_type(param, "messages whose content is a string or a list of parts")
    content = Content()
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        read = _PARTS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise invalid_type(param, "messages made of known content parts")
        read(part, content, param, facts)
    return content


PartReader = Callable[[Mapping[str, Any], Content, str, ModelFacts], None]


def _text(part: Mapping[str, Any], content: Content, param: str, facts: ModelFacts) -> None:
    text = part.get("refusal" if part["type"] == "refusal" else "text")
    if not isinstance(text, str):
        raise invalid_type(param, "messages whose text parts hold a string")
    content.texts.append(text)


def _image(part: Mapping[str, Any], content: Content, param: str, facts: ModelFacts) -> None:
    source = part.get("image_url")
    url = source.get("url") if isinstance(source, Mapping) else source
    if url is None and part.get("file_id") is not None:
        raise unsupported(param, "an image given by file id is stored where Ollama cannot read it")
    if not isinstance(url, str):
        raise invalid_type(param, "messages whose image parts hold a URL")
    if facts.lacks("vision"):
        raise unsupported(param, "this Ollama model cannot see images")
    content.images.append(_image_data(url, param))


def _image_data(url: str, param: str) -> str:
    """Return the base64 of a data URI (RFC 2397), without its prefix."""
    head, _, data = url.partition(",")
    scheme, _, media = head.lower().partition(":")
    if scheme in ("http", "https"):
        raise unsupported(param, "Ollama does not fetch images; send them as a data URI")
    if scheme != "data" or not media.endswith(";base64"):
        raise invalid_image(param, "an image must be a base64 data URI")
    if media.partition(";")[0].strip() not in IMAGE_TYPES:
        raise unsupported(param, "Ollama reads PNG, JPEG and WebP images only")
    bare = _base64(data)
    if bare is None:
        raise invalid_image(param, "an image's base64 data cannot be decoded")
    return bare


def _audio(part: Mapping[str, Any], content: Content, param: str, facts: ModelFacts) -> None:
    audio = part.get("input_audio")
    data = audio.get("data") if isinstance(audio, Mapping) else None
    if not isinstance(data, str):
        raise invalid_type(param, "messages whose audio parts hold base64 data")
    if facts.lacks("audio"):
        raise unsupported(param, "this Ollama model cannot hear audio")
    bare = _base64(data)
    if bare is None:
        raise invalid_value(param, "audio data cannot be decoded")
    content.images.append(bare)


def _file(part: Mapping[str, Any], content: Content, param: str, facts: ModelFacts) -> None:
    raise unsupported(param, "Ollama does not read files")


def _base64(data: str) -> str | None:
    """Return *data* as padded base64 of the standard alphabet, or None if it is none."""
    bare = "".join(data.split()).translate(_URL_SAFE).rstrip("=")
    padded = bare + "=" * (-len(bare) % 4)
    try:
        return padded if bare and binascii.a2b_base64(padded, strict_mode=True) else None
    except ValueError:
        return None


_PARTS: Final[dict[str, PartReader]] = {
    "text": _text,
    "input_text": _text,
    "output_text": _text,
    "refusal": _text,
    "image_url": _image,
    "input_image": _image,
    "input_audio": _audio,
    "file": _file,
    "input_file": _file,
}
