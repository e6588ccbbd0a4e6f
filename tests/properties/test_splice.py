"""Whatever is repeated, and however the network cuts it: the text arrives once, and whole."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_schema import assert_valid

from sentinel_proxy.model import Call, Endpoint, ReplyHead, Usage
from sentinel_proxy.providers.openai import OpenAIProvider
from sentinel_proxy.rescue import Splice
from sentinel_proxy.testing import openai_chunks
from sentinel_proxy.wire.seam import MIN_OVERLAP_CHARS, TAIL_CHARS, Seam, SeamError

HEAD = ReplyHead(200, [(b"content-type", b"text/event-stream")])

numbers = st.lists(st.integers(0, 9999), min_size=2, max_size=80, unique=True)
"""Numbers become words that occur once each, so what is a repetition is never a matter of taste."""

texts = st.text(alphabet="ab \nä\U0001f600", max_size=120)
"""Few letters: repetitions abound, and most of them are accidents."""


def words(of: list[int]) -> str:
    return "".join(f"w{number:04} " for number in of)


def pieces(text: str, cuts: list[int]) -> list[str]:
    """Return *text* cut at *cuts*, wherever these are."""
    at = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(at)] or [""]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


def shown(sent: str, said: list[str], *, trims: bool = False) -> str | None:
    """Return what is shown of *said* after *sent*; None where the two cannot be joined."""
    seam = Seam(sent, trims=trims)
    try:
        return "".join(seam.push(piece) for piece in said) + seam.close()
    except SeamError:
        return None


@given(sent=texts.filter(bool), said=texts, at=cuts, trims=st.booleans())
def test_where_the_continuation_is_cut_does_not_matter(
    sent: str, said: str, at: list[int], trims: bool
) -> None:
    assert shown(sent, pieces(said, at), trims=trims) == shown(sent, [said], trims=trims)


@given(sent=texts.filter(bool), said=texts, at=cuts)
def test_what_is_shown_is_the_end_of_what_was_said(sent: str, said: str, at: list[int]) -> None:
    """Nothing is invented, and only a repetition of the end of *sent* is left out."""
    rest = shown(sent, pieces(said, at))

    assert rest is None or said.endswith(rest)
    if rest is not None and rest != said:
        assert sent.endswith(said.removesuffix(rest))


@given(sent=numbers, rest=numbers, overlap=st.integers(0, 400), at=cuts)
def test_the_text_arrives_once_and_whole(
    sent: list[int], rest: list[int], overlap: int, at: list[int]
) -> None:
    """The continuation repeats any number of the last characters, or everything, or nothing."""
    first = words(sent)
    second = words([number for number in rest if number not in sent])
    repeated = first[len(first) - overlap :] if 0 < overlap <= len(first) else ""
    if repeated != first and not MIN_OVERLAP_CHARS <= len(repeated) <= TAIL_CHARS:
        repeated = ""

    assert first + (shown(first, pieces(repeated + second, at)) or "") == first + second


@given(sent=numbers.filter(lambda some: len(some) > 20), kept=st.integers(60, 110), at=cuts)
def test_a_restart_that_goes_another_way_is_never_shown(sent: list[int], kept: int, at: list[int]) -> None:
    first = words(sent)

    assert shown(first, pieces(first[:kept] + "\x00 elsewhere", at)) is None


def call(usage: bool) -> Call:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    payload: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **options}
    return Call("t", Endpoint.CHAT, b"{}", payload, "m", True, 0.0, 600.0)


def spliced(sent: str, body: bytes, at: list[int], *, usage: bool) -> tuple[bytes, str | None]:
    """Return what leaves a splice that is fed *body* cut at *at*, and how that ended."""
    asked = call(usage)
    provider = OpenAIProvider(base_url="http://upstream/v1")
    said = provider.decoder(asked, HEAD)
    said.feed(b"".join(openai_chunks([sent], finish_reason=None, done=False)))
    splice = Splice(provider.decoder(asked, HEAD), said, asked, source="a", target="b", method="instruct")
    marks = sorted({0, len(body), *(cut % (len(body) + 1) for cut in at)})
    output = b""
    for start, end in pairwise(marks):
        if splice.complete or splice.failure is not None:
            break
        output += splice.feed(body[start:end])
    if not splice.complete and splice.failure is None:
        output += splice.close()
    assert splice.complete is (splice.failure is None)
    return output, splice.failure.kind.value if splice.failure is not None else None


bodies = st.builds(
    lambda tokens, role, finish, done, usage, short: b"".join(
        openai_chunks(tokens, role=role, finish_reason=finish, done=done, usage=usage)
    )[: -short or None],
    st.lists(texts, max_size=5),
    st.booleans(),
    st.sampled_from(["stop", "length", "error", None]),
    st.booleans(),
    st.sampled_from([None, Usage(9, 4)]),
    st.sampled_from([0, 0, 1, 20]),
)


@given(sent=texts.filter(str.strip), body=bodies, at=cuts, usage=st.booleans())
def test_where_the_network_cuts_a_continuation_does_not_matter(
    sent: str, body: bytes, at: list[int], usage: bool
) -> None:
    assert spliced(sent, body, at, usage=usage) == spliced(sent, body, [], usage=usage)


@given(sent=numbers, rest=numbers, repeats=st.booleans(), at=cuts, usage=st.booleans())
def test_what_leaves_a_splice_is_what_openai_promises(
    sent: list[int], rest: list[int], repeats: bool, at: list[int], usage: bool
) -> None:
    first, second = words(sent), words([number for number in rest if number not in sent])
    said = pieces((first if repeats else "") + second, at)
    body = b"".join(openai_chunks(said, usage=Usage(9, 4)))

    output, failure = spliced(first, body, at, usage=usage)

    if not second and not repeats:
        assert failure == "empty"
        return
    events = [line[6:] for line in output.decode().split("\n\n") if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events[:-1]]
    for chunk in chunks:
        assert_valid("CreateChatCompletionStreamResponse", chunk)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert failure is None
    assert events[-1] == "[DONE]"
    assert "".join(choice["delta"].get("content", "") for choice in choices) == second
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert sum(bool(chunk.get("usage")) for chunk in chunks) == usage


def test_the_schema_would_refuse_a_chunk_that_is_none() -> None:
    with pytest.raises(AssertionError, match="choices"):
        assert_valid("CreateChatCompletionStreamResponse", {"id": "c"})
