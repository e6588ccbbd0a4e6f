import pytest

from sentinel_proxy.wire import sse
from sentinel_proxy.wire.sse import EventCutter, Frame


def read(*pieces: bytes) -> list[Frame]:
    """Feed *pieces* and the end of the stream; return every frame."""
    cutter = EventCutter()
    whole = [*(cutter.feed(piece) for piece in pieces), cutter.close()]
    return [frame for part in whole for frame in cutter.frames(part)]


def said(*pieces: bytes) -> list[tuple[bytes, bytes | None]]:
    """Return name and data of every frame."""
    return [(frame.name, frame.data) for frame in read(*pieces)]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_events_end_at_a_blank_line_of_any_kind(newline: bytes) -> None:
    stream = newline.join([b"data: 1", b"", b"event: ping", b"data: 2", b"", b""])

    assert said(stream) == [(b"", b"1"), (b"ping", b"2")]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb")], id="lines-of-data-are-joined"),
        pytest.param(
            b"data:a\n\ndata:  b\n\n", [(b"", b"a"), (b"", b" b")], id="one-leading-space-is-dropped"
        ),
        pytest.param(b"data\n\n", [(b"", b"")], id="a-field-without-a-colon-is-empty"),
        pytest.param(b"data:\n\n", [(b"", b"")], id="empty-data-is-data"),
        pytest.param(b"data: a:b\n\n", [(b"", b"a:b")], id="only-the-first-colon-counts"),
        pytest.param(b"event: a\nevent: b\ndata: 1\n\n", [(b"b", b"1")], id="the-last-name-counts"),
        pytest.param(b"\xef\xbb\xbfdata: 1\n\n", [(b"", b"1")], id="a-byte-order-mark-is-dropped"),
        pytest.param(b"\n\n\ndata: 1\n\n\n\n", [(b"", b"1")], id="further-blank-lines-mean-nothing"),
        pytest.param(b"data: 1\n\ndata: 2\n", [(b"", b"1")], id="an-event-cut-by-the-end-is-dropped"),
        pytest.param(b"data: 1\n\r", [(b"", b"1")], id="a-last-cr-ends-its-line"),
        pytest.param(b"data: 1\r\r\ndata: 2\r\r", [(b"", b"1"), (b"", b"2")], id="lf-after-a-blank-cr-line"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_events_are_read_as_the_standard_says(stream: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    assert said(stream) == expected


def test_a_second_byte_order_mark_is_part_of_a_field_name() -> None:
    frame = read(b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n")[0]

    assert (frame.data, frame.others) == (None, ((b"\xef\xbb\xbfdata", b"1"),))


def test_a_byte_order_mark_may_be_cut_anywhere() -> None:
    assert said(b"\xef", b"\xbb", b"\xbfdata: 1\n\n") == [(b"", b"1")]
    assert said(b"\xef\xbb", b"data: 1\n\n") == [(b"", None)]


def test_other_fields_and_comments_are_told_apart() -> None:
    frame = read(b": hello\nid: 7\nretry: 10\nerror: {}\ndata: 1\n\n")[0]

    assert frame.others == ((b"", b"hello"), (b"id", b"7"), (b"retry", b"10"), (b"error", b"{}"))


def test_a_block_of_comments_has_no_data() -> None:
    assert read(b": ping\n\n") == [Frame(b": ping\n\n", None, b"", ((b"", b"ping"),))]


def test_frames_keep_the_bytes_as_they_came() -> None:
    stream = b"data: 1\r\n\r\n: c\nevent:x\ndata:2\n\n"

    assert [frame.raw for frame in read(stream)] == [b"data: 1\r\n\r\n", b": c\nevent:x\ndata:2\n\n"]


def test_a_held_event_is_handed_out_with_the_byte_that_ends_it() -> None:
    cutter = EventCutter()

    assert cutter.feed(b"data: 1\n") == b""
    assert cutter.feed(b"\ndata: 2") == b"data: 1\n\n"
    assert cutter.feed(b"\n\n") == b"data: 2\n\n"


def test_a_cr_at_the_very_end_waits_for_its_lf() -> None:
    cutter = EventCutter()

    assert cutter.feed(b"data: 1\r\n\r") == b""
    assert cutter.feed(b"\n") == b"data: 1\r\n\r\n"


def test_a_stream_of_crs_is_not_a_byte_late() -> None:
    assert EventCutter().feed(b"data: 1\r\r") == b"data: 1\r\r"


@pytest.mark.parametrize(
    ("whole", "payloads"),
    [
        pytest.param(b"data: {}\n\n", [b"{}"], id="one"),
        pytest.param(b"data: 1\n\ndata: 2\n\n", [b"1", b"2"], id="two"),
        pytest.param(b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"], id="two-with-crlf"),
        pytest.param(b"data: 1\ndata: 2\n\n", None, id="two-lines-of-data"),
        pytest.param(b"data: 1\r\ndata: 2\r\n\r\n", None, id="two-lines-of-data-with-crlf"),
        pytest.param(b"data: 1\r\n\r\ndata: 2\n\n", None, id="mixed-newlines"),
        pytest.param(b"data: 1\n\n: c\n\n", None, id="a-comment"),
        pytest.param(b"data: 1\n\n\ndata: 2\n\n", None, id="a-further-blank-line"),
        pytest.param(b"data: 1\rdata: 2\n\n", None, id="a-cr-inside"),
        pytest.param(b"data:1\n\n", None, id="without-the-space"),
        pytest.param(b"data: 1\n", None, id="not-ended"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_plain_events_are_told_from_all_others(whole: bytes, payloads: list[bytes] | None) -> None:
    assert sse.payloads(whole) == payloads


def test_the_cutter_takes_plain_events_only_between_two_events() -> None:
    cutter = EventCutter()

    assert cutter.payloads(b"data: 1\n\n") is None  # a byte order mark may come
    cutter.feed(b"data: 1\n\ndata")
    assert cutter.payloads(b"data: 2\n\n") is None
    cutter.feed(b": 2\n\n")
    assert cutter.payloads(b"data: 3\n\n") == [b"3"]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"data: 1\n\ndata: " + b"x" * 100], id="not-ended-in-one-piece"),
        pytest.param([b"data: 1\n\n", b"data: ", b"x" * 50, b"x" * 50], id="not-ended-in-pieces"),
        pytest.param([b"data: 1\n\ndata: " + b"x" * 100 + b"\n\ndata: 2\n\n"], id="ended"),
    ],
)
def test_an_event_beyond_the_limit_ends_the_reading(pieces: list[bytes]) -> None:
    cutter = EventCutter(limit_bytes=64)

    seen = [frame.data for piece in pieces for frame in cutter.frames(cutter.feed(piece))]

    assert (seen, cutter.oversize) == ([b"1"], True)


@pytest.mark.parametrize(
    ("data", "name", "written"),
    [
        pytest.param(b"{}", b"", b"data: {}\n\n", id="data"),
        pytest.param(b"{}", b"error", b"event: error\ndata: {}\n\n", id="with-a-name"),
        pytest.param(b"a\nb", b"", b"data: a\ndata: b\n\n", id="lines"),
    ],
)
def test_events_are_written_as_they_are_read(data: bytes, name: bytes, written: bytes) -> None:
    assert sse.event(data, name) == written
    assert said(written) == [(name, data)]
