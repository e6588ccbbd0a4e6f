"""Lines of JSON, found by bytes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_proxy.wire.ndjson import LineSplitter


def split(data: bytes, cuts: list[int], limit: int = 1000) -> tuple[list[bytes], bytes, bool]:
    """Return the lines, the rest, and whether a line was too long."""
    splitter = LineSplitter(limit)
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines: list[bytes] = []
    for start, end in pairwise(at):
        lines += splitter.feed(data[start:end])
    return lines, splitter.close(), splitter.too_long


@pytest.mark.parametrize(
    ("data", "lines", "rest"),
    [
        pytest.param(b"", [], b"", id="nothing"),
        pytest.param(b"{}\n{}\n", [b"{}", b"{}"], b"", id="two lines"),
        pytest.param(b"{}\r\n\r\n \t\r\n{}\r\n", [b"{}", b"{}"], b"", id="CRLF and blank lines"),
        pytest.param(b"{}\n[1]", [b"{}"], b"[1]", id="no newline at the end"),
        pytest.param("a\u2028b\x85c\n".encode(), ["a\u2028b\x85c".encode()], b"", id="other line ends"),
    ],
)
def test_a_body_becomes_its_lines(data: bytes, lines: list[bytes], rest: bytes) -> None:
    assert split(data, []) == (lines, rest, False)


def test_a_line_that_is_too_long_ends_the_splitting() -> None:
    assert split(b"short\n" + b"x" * 11 + b"\nafter\n", [], limit=10) == ([b"short"], b"", True)


def test_a_line_of_just_the_limit_passes() -> None:
    assert split(b"x" * 10 + b"\n", [], limit=10) == ([b"x" * 10], b"", False)


def test_too_much_is_noticed_before_its_newline_comes() -> None:
    splitter = LineSplitter(10)

    assert (splitter.feed(b"x" * 6), splitter.too_long) == ([], False)
    assert (splitter.feed(b"x" * 6), splitter.too_long) == ([], True)


def test_repr_shows_how_much_is_held_and_nothing_of_it() -> None:
    splitter = LineSplitter()

    splitter.feed(b"{}\nsecret")

    assert repr(splitter) == "<LineSplitter holding 6 bytes>"


@settings(deadline=None)
@given(
    data=st.lists(st.sampled_from([b"a", b"\n", b"\r", b" ", b"xyz", "é\u2028".encode()])).map(b"".join),
    cuts=st.lists(st.integers(0, 60)),
    limit=st.integers(1, 20),
)
def test_where_the_network_cuts_does_not_matter(data: bytes, cuts: list[int], limit: int) -> None:
    assert split(data, cuts, limit) == split(data, [], limit)
