from hypothesis import given
from hypothesis import strategies as st

from sentinel_proxy.wire import sse
from sentinel_proxy.wire.sse import EventCutter, Frame

lines = st.sampled_from(
    [b"", b"", b"data: {}", b"data:x", b"data", b": c", b":", b"event: error", b"id: 1", b"retry: 2", b"junk"]
)
newlines = st.sampled_from([b"\n", b"\r\n", b"\r"])
marks = st.sampled_from([b"", b"\xef\xbb\xbf"])
written = st.builds(
    lambda mark, pairs, rest: mark + b"".join(line + end for line, end in pairs) + rest,
    marks,
    st.lists(st.tuples(lines, newlines)),
    lines,
)
soup = st.binary(max_size=80) | st.lists(st.sampled_from([b"\n", b"\r", b"data: ", b"x"])).map(b"".join)
streams = written | soup


def pieces_of(stream: bytes, data: st.DataObject) -> list[bytes]:
    """Cut *stream* wherever hypothesis likes."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def frames_of(pieces: list[bytes], limit_bytes: int = sse.MAX_EVENT_BYTES) -> tuple[list[Frame], bool]:
    cutter = EventCutter(limit_bytes)
    seen: list[Frame] = []
    for piece in pieces:
        seen += cutter.frames(cutter.feed(piece))
        if cutter.oversize:
            return seen, True
    seen += cutter.frames(cutter.close())
    return seen, cutter.oversize


def by_the_book(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Interpret a whole stream line by line, in the words of WHATWG HTML 9.2.6."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    if not stream.endswith((b"\n", b"\r")):  # an unfinished last line cannot end an event
        stream = stream[: max(stream.rfind(b"\n"), stream.rfind(b"\r")) + 1]
    dispatched = []
    name, data = b"", b""
    for line in stream.splitlines():
        if line == b"":
            if data:
                dispatched.append((name, data[:-1]))
            name, data = b"", b""
            continue
        if line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"event":
            name = value
        elif field == b"data":
            data += value + b"\n"
    return dispatched


@given(stream=streams, data=st.data())
def test_where_the_network_cuts_an_event_stream_does_not_matter(stream: bytes, data: st.DataObject) -> None:
    assert frames_of(pieces_of(stream, data)) == frames_of([stream])


@given(stream=streams, data=st.data(), limit_bytes=st.integers(3, 20))
def test_the_limit_strikes_at_the_same_event_wherever_the_network_cuts(
    stream: bytes, data: st.DataObject, limit_bytes: int
) -> None:
    assert frames_of(pieces_of(stream, data), limit_bytes) == frames_of([stream], limit_bytes)


@given(stream=streams, data=st.data())
def test_events_are_those_of_the_standard(stream: bytes, data: st.DataObject) -> None:
    seen, _ = frames_of(pieces_of(stream, data))

    assert [(f.name, f.data) for f in seen if f.data is not None] == by_the_book(stream)


@given(stream=streams)
def test_the_short_way_agrees_with_the_long_one(stream: bytes) -> None:
    cutter = EventCutter()
    whole = cutter.feed(stream)

    short = sse.payloads(whole)

    if short is not None:
        long = list(sse.frames(whole))
        assert [frame.data for frame in long] == short
        assert b"".join(frame.raw for frame in long) == whole
