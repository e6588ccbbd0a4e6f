"""What events share that differ in a string or two, and which events are of their kind."""

import json
from typing import Any

import pytest

from sentinel_proxy.wire.template import Template, template


def event(said: str, padding: str | None = None, end: bytes = b"\n\n") -> bytes:
    payload: dict[str, Any] = {"id": "1", "said": said, "n": 1}
    if padding is not None:
        payload["padding"] = padding
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + end


def made(whole: bytes, *places: tuple[str | int, ...]) -> Template:
    known = template(whole, json.loads(whole[6:]), *places)
    assert known is not None
    return known


plain = made(event("a"), ("said",))
padded = made(event("a", "b"), ("said",), ("padding",))


@pytest.mark.parametrize(
    "text", ["b", "a longer one", "\u00fc \U0001f642", 'a "quote"', "a\nline", "\\", '"}, "n": 1}']
)
def test_another_string_is_of_the_same_kind(text: str) -> None:
    assert plain.strings(event(text)) == [text]
    assert padded.strings(event(text, "")) == padded.strings(event(text, text)) == [text]


def test_events_that_came_together_are_read_one_by_one() -> None:
    assert plain.strings(event("a") + event("\n\n") + event("c")) == ["a", "\n\n", "c"]
    assert padded.strings(event("a", "x") + event("b", "")) == ["a", "b"]


def test_the_ends_of_lines_are_part_of_the_kind() -> None:
    other = made(event("a", end=b"\r\n\r\n"), ("said",))

    assert other.strings(event("b", end=b"\r\n\r\n") * 2) == ["b", "b"]
    assert other.strings(event("b")) is None
    assert plain.strings(event("b", end=b"\r\n\r\n")) is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(event("b")[:-1], id="cut"),
        pytest.param(event("b")[1:], id="cut-before"),
        pytest.param(event("b") + b"\n", id="blank-line"),
        pytest.param(event("b") + b": c\n\n" + event("c"), id="comment-between"),
        pytest.param(event("b") + b"data: [DONE]\n\n", id="done"),
        pytest.param(event(""), id="nothing-said"),
        pytest.param(event("b") + event("") + event("c"), id="nothing-said-once"),
        pytest.param(event("b").replace(b'"b"', b"5"), id="no-string"),
        pytest.param(event("b").replace(b'"b"', b'"b" '), id="blank"),
        pytest.param(event("b").replace(b'"b"', b'"b"\n'), id="line-end-after"),
        pytest.param(event("b").replace(b'"b"', b'"b"\r'), id="carriage-return-after"),
        pytest.param(event("b").replace(b'"b"', b'\n"b"'), id="line-end-before"),
        pytest.param(event("b").replace(b'"b"', b'"\n"'), id="raw-line-end"),
        pytest.param(event("b").replace(b'"b"', b'"\r"'), id="raw-carriage-return"),
        pytest.param(event("b").replace(b'"b"', b'"b", "c": "d"'), id="more-keys"),
        pytest.param(event("b").replace(b'"b"', b'"b\\"'), id="never-closed"),
        pytest.param(event("b").replace(b'"b"', b'"\xff"'), id="no-utf-8"),
        pytest.param(event("b").replace(b'"b"', b'"\x00"'), id="control-character"),
        pytest.param(event("b").replace(b'"b"', b'"'), id="one-quote"),
        pytest.param(event("b").replace(b'"1"', b'"2"'), id="other-id"),
        pytest.param(event("b").replace(b" 1}", b" 2}"), id="other-number"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_anything_else_must_be_read_in_full(other: bytes) -> None:
    assert plain.strings(other) is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(event("b"), id="one-string"),
        pytest.param(event("b", "c").replace(b'"c"', b'"c"\n'), id="line-end-after"),
        pytest.param(event("b", "c").replace(b'"c"', b"3"), id="no-string"),
        pytest.param(event("b", "c").replace(b'"b"', b'"b" '), id="blank"),
        pytest.param(event("b", "c").replace(b'"b"', b'"b\\"'), id="never-closed"),
        pytest.param(event("b", "c").replace(b'"c"', b'"c\\"'), id="second-never-closed"),
        pytest.param(event("b", "c").replace(b', "n": 1', b""), id="without-what-is-between"),
        pytest.param(b'data: {"id": "1", "said": "b"}\n\n', id="no-second"),
        pytest.param(event("", "c"), id="nothing-said"),
    ],
)
def test_both_strings_must_be_there(other: bytes) -> None:
    assert padded.strings(other) is None


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(b'data: {"x":{"said":"a"},"said":"a"}\n\n', id="another-of-the-name-before"),
        pytest.param(b'data: {"x\\"said":"a","said":"a"}\n\n', id="a-name-that-ends-so"),
        pytest.param(b'data: {"said":"a","said":"a"}\n\n', id="twice"),
        pytest.param(b'data: {"said":"\\u0061"}\n\n', id="written-otherwise"),
        pytest.param(b'event: x\ndata: {"said":"a"}\n\n', id="another-field"),
    ],
)
def test_bytes_that_only_look_like_the_place_are_not_taken_for_it(whole: bytes) -> None:
    assert template(whole, json.loads(whole[whole.index(b"{") :]), ("said",)) is None
