"""
Providers that say anything: what they tell one attempt of one call follows from a seed alone.

`answers` makes the right answer to whatever is asked, in either dialect; the rows of `FAULTS`
make something else of it. Every word names the call, the provider and the attempt it belongs to,
and `Said` notes what was really said, so an oracle can tell a whole answer from a piece of one,
and one provider's words from another's, without asking the proxy.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Final

from sentinel_proxy.testing import (
    Close,
    Framing,
    Hang,
    Pause,
    Received,
    Reset,
    Script,
    Send,
    Step,
    answer,
    cut,
    stream,
)
from sentinel_proxy.wire.json import dumps, loads

SECRET: Final = "sk-the-key-of-the-proxy"
"""The proxy's own key at every provider; some of them repeat it in their errors."""

_NUMBER: Final = re.compile(rb"call-(\d+)")
_SSE: Final = "text/event-stream; charset=utf-8"
_JSON: Final = "application/json"
_NDJSON: Final = "application/x-ndjson"
_BYTES: Final = "application/octet-stream"


@dataclass(slots=True)
class Good:
    """The right answer to one attempt, in the pieces in which a server would write it."""

    pieces: list[bytes]
    enough: int  # so many pieces say all of it, the finish reason included
    text: str
    content_type: str
    streamed: bool
    completion: bytes = b""  # the same in one piece, for a server that ignores that a stream was asked

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def enough_bytes(self) -> int:
        """How much of the body says all of it; the last line needs no newline of its own."""
        said = b"".join(self.pieces[: self.enough])
        return len(said) - (self.content_type == _NDJSON)


@dataclass(slots=True)
class Said:
    """What one provider said to one attempt."""

    provider: str
    attempt: int
    fault: str
    text: str
    whole: bool  # all of it was said, so a caller may be shown it as complete
    owed: bool  # and said so well that the proxy has no excuse for not passing it on
    finished: bool  # a finish reason was said
    status: int
    body: bytes
    continues: str | None  # the text that a continuation was asked to go on from


Play = tuple[bool, Iterable[Step]]
"""Whether all of the answer is said, and the steps."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to answer; *weight* is its share, *owes* whether the proxy must make good use of it."""

    weight: int
    play: Callable[[Good, Random], Play]
    owes: bool = False
    needs: str = ""  # "sse": only for event streams; "stream"; "json": only for what comes in one piece
    raw: bool = False  # also for what the proxy passes through without looking into it


# -- right answers -----------------------------------------------------------------------------


def answers(request: Received, mark: str, rng: Random) -> Good:
    """Return the right answer to *request*, whatever dialect it is in."""
    path = request.target.partition("?")[0]
    asked = loads(request.body) if path in _BUILDERS else {}
    spaces = rng.choice(("", " ", "é", "漢字", "\n", '"\\', "🙂"))
    words = [f"<{mark}.{i}>{spaces}" for i in range(rng.choice((1, 2, 3, 5, 8, 13)))]
    if rng.random() < 0.02:
        words.append(f"<{mark}.long>" + "x" * rng.choice((20_000, 300_000)))
    if path not in _BUILDERS:
        body = rng.randbytes(rng.choice((0, 10, 5000, 200_000))).replace(b"<", b">")
        return Good([f"<{mark}.raw>".encode() + body], 1, "", _BYTES, False)
    return _BUILDERS[path](asked, words, mark)


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def _shell(kind: str, mark: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": f"id-{mark}",
        "object": kind,
        "created": 1_772_359_200,
        "model": "gpt-4o-mini",
        "choices": choices,
        **more,
    }


def _event(payload: Any, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, dumps(payload))


_DONE: Final = b"data: [DONE]\n\n"


def _events(pieces: list[bytes], asked: Any, mark: str, kind: str) -> tuple[list[bytes], int]:
    """Add what ends a stream of chunks; return all of it and how much of it says everything."""
    enough = len(pieces)
    if (asked.get("stream_options") or {}).get("include_usage"):
        pieces.append(_event(_shell(kind, mark, [], usage=_usage())))
    return [*pieces, _DONE], enough


def _chat(asked: Any, words: list[str], mark: str) -> Good:
    choices = asked.get("n") or 1
    if asked.get("tools"):
        return _tool_call(asked, words, mark)
    text = "".join(words)
    said = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for i in range(choices)
    ]
    whole = _whole(_shell("chat.completion", mark, said, usage=_usage()), "|".join([text] * choices))
    if not asked.get("stream"):
        return whole
    kind = "chat.completion.chunk"
    deltas: list[tuple[int, dict[str, Any], str | None]] = [
        (i, {"role": "assistant", "content": ""}, None) for i in range(choices)
    ]
    deltas += [(i, {"content": word}, None) for word in words for i in range(choices)]
    deltas += [(i, {}, "stop") for i in range(choices)]
    pieces = [
        _event(_shell(kind, mark, [{"index": i, "delta": delta, "finish_reason": reason}]))
        for i, delta, reason in deltas
    ]
    return Good(*_events(pieces, asked, mark, kind), whole.text, _SSE, True, whole.body)


def _tool_call(asked: Any, words: list[str], mark: str) -> Good:
    arguments = dumps({"say": "".join(words)}).decode()
    call = {"id": f"call_{mark}", "type": "function", "function": {"name": "say", "arguments": arguments}}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return _whole(_shell("chat.completion", mark, [choice], usage=_usage()), "".join(words))
    kind = "chat.completion.chunk"
    opening = {**call, "index": 0, "function": {"name": "say", "arguments": ""}}
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "tool_calls": [opening]}, None)]
    step = max(16, len(arguments) // 8)
    for at in range(0, len(arguments), step):
        piece = {"index": 0, "function": {"arguments": arguments[at : at + step]}}
        deltas.append(({"tool_calls": [piece]}, None))
    deltas.append(({}, "tool_calls"))
    pieces = [
        _event(_shell(kind, mark, [{"index": 0, "delta": delta, "finish_reason": reason}]))
        for delta, reason in deltas
    ]
    return Good(*_events(pieces, asked, mark, kind), "".join(words), _SSE, True)


def _completion(asked: Any, words: list[str], mark: str) -> Good:
    text = "".join(words)
    if not asked.get("stream"):
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        return _whole(_shell("text_completion", mark, [choice], usage=_usage()), text)
    said: list[tuple[str, str | None]] = [*((word, None) for word in words), ("", "stop")]
    pieces = [
        _event(_shell("text_completion", mark, [{"index": 0, "text": word, "finish_reason": reason}]))
        for word, reason in said
    ]
    return Good(*_events(pieces, asked, mark, "text_completion"), text, _SSE, True)


def _vector(mark: str) -> list[float]:
    """Return numbers that nobody else would say."""
    return [float(byte) for byte in mark.encode()]


def _embedding(asked: Any, words: list[str], mark: str) -> Good:
    vector = _vector(mark)
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    body = {"object": "list", "data": data, "model": "gpt-4o-mini", "usage": _usage()}
    return _whole(body, str(vector))


def _response(asked: Any, words: list[str], mark: str) -> Good:
    text = "".join(words)
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": f"msg-{mark}", "role": "assistant", "status": "completed"}
    shell = {"id": f"resp-{mark}", "object": "response", "created_at": 1_772_359_200, "model": "gpt-4o-mini"}
    begun = {**shell, "status": "in_progress", "output": []}
    ended = {**shell, "status": "completed", "output": [{**item, "content": [part]}]}
    if not asked.get("stream"):
        return _whole(ended, text)
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        *({"type": "response.output_text.delta", "item_id": item["id"], "delta": word} for word in words),
        {"type": "response.output_text.done", "item_id": item["id"], "text": text},
        {"type": "response.completed", "response": ended},
    ]
    pieces = [_event({**event, "sequence_number": i}, event["type"]) for i, event in enumerate(events)]
    return Good(pieces, len(pieces), text, _SSE, True)


def _whole(body: Any, text: str) -> Good:
    return Good([dumps(body)], 1, text, _JSON, False)


def _ollama_chat(asked: Any, words: list[str], mark: str) -> Good:
    text = "".join(words)
    if asked.get("tools"):
        call = {"function": {"name": "say", "arguments": {"say": text}}}
        said: list[dict[str, Any]] = [
            {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}
        ]
    else:
        said = [{"message": {"role": "assistant", "content": word}, "done": False} for word in words]
    if not asked["stream"]:
        said = [{"message": {**said[0]["message"], "content": "" if asked.get("tools") else text}}]
        return _whole({**_native(), **said[0], **_end()}, text)
    return _lines([*said, {"message": {"role": "assistant", "content": ""}, **_end()}], text)


def _ollama_generate(asked: Any, words: list[str], mark: str) -> Good:
    text = "".join(words)
    if not asked["stream"]:
        return _whole({**_native(), "response": text, **_end()}, text)
    said: list[dict[str, Any]] = [{"response": word, "done": False} for word in words]
    return _lines([*said, {"response": "", **_end()}], text)


def _ollama_embed(asked: Any, words: list[str], mark: str) -> Good:
    vector = _vector(mark)
    return _whole({**_native(), "embeddings": [vector], "prompt_eval_count": 3}, str(vector))


def _native() -> dict[str, Any]:
    return {"model": "llama3.2", "created_at": "2026-03-01T10:00:00.123456789Z"}


def _end() -> dict[str, Any]:
    return {"done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 5}


def _lines(said: Sequence[dict[str, Any]], text: str) -> Good:
    pieces = [dumps({**_native(), **line}) + b"\n" for line in said]
    return Good(pieces, len(pieces), text, _NDJSON, True)


_BUILDERS: Final[dict[str, Callable[[Any, list[str], str], Good]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embedding,
    "/v1/responses": _response,
    "/api/chat": _ollama_chat,
    "/api/generate": _ollama_generate,
    "/api/embed": _ollama_embed,
}


# -- ways to answer ----------------------------------------------------------------------------


def _script(
    good: Good,
    rng: Random,
    pieces: Sequence[bytes] | None = None,
    pause: float = 0.0,
    framings: Sequence[Framing] = ("length", "chunked", "chunked", "close"),
) -> Script:
    """Write an answer in any of *framings* (a body that ends the connection is not kept alive)."""
    return stream(
        good.pieces if pieces is None else pieces,
        headers={"content-type": good.content_type, "x-request-id": "req_1"},
        framing=rng.choice(framings),
        pause=pause,
    )


def _recut(body: bytes, rng: Random) -> list[bytes]:
    """Cut *body* anywhere, inside of characters and line ends too."""
    places = sorted(rng.randrange(1, len(body)) for _ in range(rng.randrange(6))) if len(body) > 1 else []
    edges = [0, *places, len(body)]
    return [body[a:b] for a, b in pairwise(edges) if a < b]


def well(good: Good, rng: Random) -> Play:
    return True, _script(good, rng, good.pieces if rng.random() < 0.5 else _recut(good.body, rng))


def well_and_closed(good: Good, rng: Random) -> Play:
    return True, [*well(good, rng)[1], Close() if rng.random() < 0.5 else Reset()]


def well_after_1xx(good: Good, rng: Random) -> Play:
    early = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"]
    return True, [*(Send(head) for head in rng.choices(early, k=rng.randrange(1, 4))), *well(good, rng)[1]]


def well_but_late(good: Good, rng: Random) -> Play:
    return True, [Pause(rng.uniform(0.0, 0.06)), *well(good, rng)[1]]


def well_with_more_behind(good: Good, rng: Random) -> Play:
    """A second answer that nobody asked for follows: it must reach nobody."""
    script = stream(good.pieces, headers={"content-type": good.content_type}, framing="length")
    stray = answer(200, b"<stray.answer>", {"content-type": "text/plain"})
    return True, [Send(b"".join(step.data for step in (*script, *stray) if isinstance(step, Send)))]


def slowly(good: Good, rng: Random) -> Play:
    return True, _script(good, rng, pause=0.1 / len(good.pieces))


def reset(good: Good, rng: Random) -> Play:
    return False, [Reset() if rng.random() < 0.5 else Close()]


def half_head(good: Good, rng: Random) -> Play:
    script = _script(good, rng)
    head = b"".join(step.data for step in script if isinstance(step, Send)).index(b"\r\n\r\n")
    return False, cut(script, rng.randrange(1, head), _end_of(rng))


def garbage(good: Good, rng: Random) -> Play:
    noise = rng.choice(
        (b"\0\1\2\3" * 9, b"220 smtp ready\r\n", b"<html>no HTTP</html>\r\n\r\n", b"HTTP/1.1 ")
    )
    return False, [Send(noise + rng.randbytes(20)), rng.choice((Close(), Hang()))]


def huge_head(good: Good, rng: Random) -> Play:
    return False, [Send(b"HTTP/1.1 200 OK\r\n" + b"x-padding: " + b"p" * 70_000 + b"\r\n\r\n"), Hang()]


def switched(good: Good, rng: Random) -> Play:
    return False, [Send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")]


def silence(good: Good, rng: Random) -> Play:
    return False, [Hang()]


def too_late(good: Good, rng: Random) -> Play:
    return True, [Pause(0.4), *well(good, rng)[1]]


def _end_of(rng: Random) -> Reset | Close | Hang:
    return rng.choice((Reset(), Reset(), Close(), Close(), Hang()))


def cut_anywhere(good: Good, rng: Random) -> Play:
    """Break off at any byte of head, framing or body, by FIN, RST or silence."""
    return _cut(good, rng, lambda wire_bytes: rng.randrange(wire_bytes))


def cut_late(good: Good, rng: Random) -> Play:
    """Break off close to the end, where a piece looks most like the whole."""
    return _cut(good, rng, lambda wire_bytes: wire_bytes - rng.randrange(1, min(wire_bytes, 60)))


def _cut(good: Good, rng: Random, where: Callable[[int], int]) -> Play:
    # Of a body that nobody looks into, only its framing tells whether it is whole.
    framings: tuple[Framing, ...] = ("length", "chunked", "close")
    framing = rng.choice(framings[:2] if good.content_type == _BYTES else framings)
    script = stream(good.pieces, headers={"content-type": good.content_type}, framing=framing)
    sends = [step.data for step in script if isinstance(step, Send)]
    at = where(sum(map(len, sends)))
    needed = sum(map(len, sends[: 1 + good.enough])) - (2 if framing == "chunked" else 0)
    needed -= good.content_type == _NDJSON
    return at >= needed, cut(script, at, _end_of(rng))


def wrong_length(good: Good, rng: Random) -> Play:
    """Declare more than there is, or less."""
    body, by = good.body, rng.choice((-40, -7, -1, 1, 500))
    declared = max(0, len(body) + by)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {good.content_type}\r\ncontent-length: {declared}\r\n\r\n"
    return declared >= good.enough_bytes, [Send(head.encode() + body), Close()]


def bad_chunk(good: Good, rng: Random) -> Play:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {good.content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    return False, [Send(head.encode() + b"5\r\nhello\r\nzz\r\nnonsense\r\n0\r\n\r\n"), Hang()]


def cut_json(good: Good, rng: Random) -> Play:
    body = good.body
    return False, _script(good, rng, [body[: rng.randrange(len(body))]])


def empty(good: Good, rng: Random) -> Play:
    return False, _script(good, rng, [])


def no_content(good: Good, rng: Random) -> Play:
    return False, [Send(b"HTTP/1.1 204 No Content\r\n\r\n")]


def html(good: Good, rng: Random) -> Play:
    kind = rng.choice(("text/html", good.content_type))
    return False, answer(200, b"<!doctype html><h1>Sign in</h1>", {"content-type": kind})


def odd_json(good: Good, rng: Random) -> Play:
    bodies = (
        *("{}", "[]", "null", "3", '"text"', '{"choices": []}', '{"choices": null}', '{"choices": [null]}'),
        *('{"choices": [{}]}', '{"choices": [{"message": "no"}]}', '{"choices": {"a": 1}}', '{"data": []}'),
        *('{"choices": [{"index": 0, "message": {"content": 5}, "finish_reason": 5}]}', '{"output": []}'),
        *('{"choices": [{"index": 0, "message": [], "finish_reason": "stop"}]}', '{"message": {}}'),
        *('{"choices": ["text"]}', '{"usage": 5, "choices": [5]}', "[" * 3000),
        *('{"done": true}', '{"done": false, "message": 5}', '{"embeddings": 1}'),
    )
    return False, _script(good, rng, [rng.choice(bodies).encode()])


def error_in_200(good: Good, rng: Random) -> Play:
    return False, answer(200, dumps(_error(rng)), {"content-type": _JSON})


def _error(rng: Random) -> dict[str, Any]:
    code = rng.choice((None, "server_error", "context_length_exceeded", "slow_down", 500, "odd"))
    if rng.random() < LOCKED_OUT_SHARE:
        code = "invalid_api_key"
    kind = rng.choice((None, "server_error", "invalid_request_error", "overloaded_error"))
    message = rng.choice(("it failed", f"Incorrect API key provided: {SECRET}.", ""))
    whole = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return rng.choice((whole, whole, whole, {"error": message or "text"}, {"error": True}))


def _with_event(event: Callable[[Random], bytes]) -> Callable[[Good, Random], Play]:
    """Put one bad event anywhere before the end; what comes behind it does not count."""

    def play(good: Good, rng: Random) -> Play:
        at = rng.randrange(good.enough)
        return False, _script(good, rng, [*good.pieces[:at], event(rng), *good.pieces[at:]])

    return play


def _malformed(rng: Random) -> bytes:
    data = rng.choice((b"{", b'{"choices": [{"delta": {"cont', b"nonsense", b'"text"', b"[1]", b"7", b""))
    return b"data: %b\n\n" % data


def _error_event(rng: Random) -> bytes:
    body = dumps(_error(rng))
    forms = (
        b"data: %b\n\n",
        b"event: error\ndata: %b\n\n",
        b"error: %b\n\n",
        b"data: %b\n\ndata: [DONE]\n\n",
    )
    return rng.choice(forms) % body


malformed_event = _with_event(_malformed)
error_event = _with_event(_error_event)
bad_line = _with_event(lambda rng: rng.choice((b"{\n", b"nonsense\n", b"[]\n", b'{"error": "it failed"}\n')))


def bad_finish(good: Good, rng: Random) -> Play:
    reason = rng.choice((b'"error"', b'"abort"', b'"insufficient_system_resource"', b"7"))
    pieces = [
        piece.replace(b'"finish_reason":"stop"', b'"finish_reason":' + reason).replace(
            b'"finish_reason":"tool_calls"', b'"finish_reason":' + reason
        )
        for piece in good.pieces
    ]
    return False, _script(good, rng, pieces)


def no_done(good: Good, rng: Random) -> Play:
    """Everything is said, but `[DONE]` never comes; the stream ends, or even stays open."""
    said = good.pieces[: good.enough]
    if rng.random() < 0.8:
        return True, _script(good, rng, said)
    *script, _end_of_body = _script(good, rng, said, framings=("chunked", "close"))
    return True, [*script, Hang()]


def no_finish(good: Good, rng: Random) -> Play:
    """`[DONE]` comes, but no reason: complete, by decision 5."""
    kept = [piece for piece in good.pieces if b'"finish_reason":"' not in piece]
    return True, _script(good, rng, kept)


def neither_finish_nor_done(good: Good, rng: Random) -> Play:
    kept = [piece for piece in good.pieces[: good.enough] if b'"finish_reason":"' not in piece]
    return False, _script(good, rng, kept)


def more_after_done(good: Good, rng: Random) -> Play:
    more = rng.choice((good.pieces[0], _DONE, b"data: {\n\n", b": bye\n\n"))
    return True, _script(good, rng, [*good.pieces, more])


def odd_but_right(good: Good, rng: Random) -> Play:
    """Everything that the standard of event streams allows."""
    body = good.body
    for piece in (b": comment\n\n", b"retry: 10\n\n", b"event: ping\ndata: {}\n\n", b"id: 7\n\n"):
        if rng.random() < 0.5:
            body = piece + body
    if rng.random() < 0.5:
        body = body.replace(b"\n", rng.choice((b"\r\n", b"\r")))
    if rng.random() < 0.5:
        body = b"\xef\xbb\xbf" + body
    return True, _script(good, rng, _recut(body, rng))


def chatter(good: Good, rng: Random) -> Play:
    """Keep the wire alive and say nothing, for ever, before or after the first words."""
    begun = list(good.pieces[: rng.randrange(good.enough)])
    nothing = {
        "id": None,
        "choices": [{"index": 0, "delta": {"content": ""}, "text": ""}],
        "type": "response.queued",
    }
    idle = rng.choice((b": comment\n\n", _event(nothing)))
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {good.content_type}\r\nconnection: close\r\n\r\n".encode()

    def steps() -> Iterator[Step]:
        yield Send(head + b"".join(begun))
        for _ in range(150):
            yield Pause(0.02)
            yield Send(idle)
        yield Hang()

    return False, steps()


def completion_for_a_stream(good: Good, rng: Random) -> Play:
    return True, answer(200, good.completion, {"content-type": _JSON})


def json_for_a_stream(good: Good, rng: Random) -> Play:
    """A body that is none of what was asked for."""
    return False, answer(200, dumps({"object": "list", "data": []}), {"content-type": _JSON})


def compressed(good: Good, rng: Random) -> Play:
    headers = {"content-type": good.content_type, "content-encoding": "gzip"}
    return False, answer(200, b"\x1f\x8b\x08" + rng.randbytes(60), headers)


FAULTS: Final[dict[str, Row]] = {
    "well": Row(300, well, owes=True, raw=True),
    "well, then closed": Row(40, well_and_closed, raw=True),
    "well, after 1xx": Row(12, well_after_1xx, owes=True, raw=True),
    "well, a little late": Row(20, well_but_late, owes=True, raw=True),
    "well, with more behind": Row(12, well_with_more_behind, owes=True, raw=True),
    "slowly": Row(12, slowly, owes=True, raw=True),
    "reset": Row(30, reset, raw=True),
    "half a head": Row(20, half_head, raw=True),
    "garbage": Row(15, garbage, raw=True),
    "huge head": Row(6, huge_head, raw=True),
    "101": Row(6, switched, raw=True),
    "silence": Row(15, silence, raw=True),
    "too late": Row(8, too_late, raw=True),
    "cut anywhere": Row(60, cut_anywhere, raw=True),
    "cut late": Row(25, cut_late, raw=True),
    "wrong length": Row(20, wrong_length),
    "bad chunk": Row(10, bad_chunk),
    "cut JSON": Row(20, cut_json, needs="json"),
    "empty": Row(10, empty),
    "204": Row(5, no_content),
    "HTML": Row(10, html),
    "odd JSON": Row(15, odd_json),
    "error in a 200": Row(15, error_in_200),
    "compressed": Row(5, compressed),
    "malformed event": Row(25, malformed_event, needs="sse"),
    "error event": Row(25, error_event, needs="sse"),
    "bad line": Row(25, bad_line, needs="ndjson"),
    "bad finish": Row(12, bad_finish, needs="chunks"),
    "no [DONE]": Row(15, no_done, owes=True, needs="chunks"),
    "no finish": Row(10, no_finish, needs="chunks"),
    "neither": Row(15, neither_finish_nor_done, needs="chunks"),
    "more after [DONE]": Row(12, more_after_done, owes=True, needs="chunks"),
    "odd but right": Row(20, odd_but_right, owes=True, needs="sse"),
    "chatter": Row(12, chatter, needs="sse"),
    "completion for a stream": Row(12, completion_for_a_stream, owes=True, needs="completion"),
    "JSON for a stream": Row(8, json_for_a_stream, needs="stream"),
}

STATUSES: Final = (
    *((status, "") for status in (400, 404, 405, 408, 409, 413, 415, 418, 422, 425, 429, 451, 499)),
    *((status, "") for status in (500, 501, 502, 503, 504, 520, 521, 522, 524, 525, 526, 529, 530, 599)),
    *((status, "") for status in (301, 302, 303, 304, 307, 308)),
    *((400, code) for code in ("context_length_exceeded", "content_filter", "unsupported_parameter")),
    *((429, code) for code in ("rate_limit_exceeded", "slow_down")),
    *((404, "model_not_found"), (503, "server_is_overloaded")),
)
LOCKED_OUT: Final = ((401, ""), (402, ""), (403, ""), (429, "insufficient_quota"), (401, "invalid_api_key"))
"""These open a breaker at once; more of them, and hardly anything else would be tried."""

LOCKED_OUT_SHARE: Final = 0.03
STATUS_SHARE: Final = 0.2


def error_status(mark: str, rng: Random) -> tuple[int, bytes, Script]:
    """Return an error of the taxonomy: its status, its body, and how it is said."""
    status, code = rng.choice(LOCKED_OUT if rng.random() < LOCKED_OUT_SHARE else STATUSES)
    message = rng.choice((f"<{mark}.error>", f"Incorrect API key provided: {SECRET}", "x" * 3000, ""))
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code or None}
    detail = {"detail": [{"loc": ["body", "model"], "msg": "field required", "input": f"<{mark}.prompt>"}]}
    bodies = {
        "json": dumps({"error": error}),
        "text": dumps({"error": message}),
        "detail": dumps(detail),
        "html": b"<html><h1>Bad gateway</h1></html>",
        "empty": b"",
    }
    kind = rng.choice(("json", "json", "json", *bodies)) if not code else "json"
    headers = {"content-type": "text/html" if kind == "html" else _JSON}
    if rng.random() < 0.4:
        name = rng.choice(("retry-after", "retry-after-ms", "x-ms-retry-after-ms"))
        headers[name] = rng.choice(("0", "1", "20", "120", "-3", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "?"))
    if 300 <= status < 400:
        headers["location"] = "http://127.0.0.1:1/elsewhere"
    body = b"" if status == 304 else bodies[kind]
    return status, body, answer(status, body, headers)


def _fits(row: Row, good: Good, path: str) -> bool:
    if path not in _BUILDERS:
        return row.raw
    match row.needs:
        case "":
            return True
        case "json":
            return not good.streamed
        case "stream":
            return good.streamed
        case "sse":
            return good.content_type == _SSE
        case "ndjson":
            return good.content_type == _NDJSON
        case "completion":
            return bool(good.completion)
        case _:  # chunks, ended by [DONE]
            return good.content_type == _SSE and good.pieces[-1] == _DONE


class Liars:
    """
    What all upstreams play, and what they have really said.

    Args:
        gentle: How much more often than drawn an answer is simply right; 1: as drawn.
    """

    def __init__(self, seed: int, gentle: int = 1) -> None:
        self._seed = seed
        self._gentle = gentle
        self._attempts: Counter[tuple[int, str]] = Counter()
        self.said: defaultdict[int, list[Said]] = defaultdict(list)
        self.played: Counter[str] = Counter()
        self.orphans: list[Received] = []

    def playing(self, provider: str) -> Callable[[Received], Iterable[Step]]:
        """Return what *provider* answers."""
        return lambda request: self._play(provider, request)

    def _play(self, provider: str, request: Received) -> Iterable[Step]:
        match = _NUMBER.search(request.raw)
        if match is None:
            self.orphans.append(request)
            return [Close()]
        number = int(match[1])
        self._attempts[number, provider] += 1
        attempt = self._attempts[number, provider]
        rng = Random(f"{self._seed}/{number}/{provider}/{attempt}")
        mark = f"{number}.{provider}{attempt}"
        path = request.target.partition("?")[0]
        good = answers(request, mark, rng)
        continues = _continued_text(request, path)
        if rng.random() < STATUS_SHARE / self._gentle:
            status, body, script = error_status(mark, rng)
            self._note(
                number, Said(provider, attempt, str(status), "", False, False, False, status, body, continues)
            )
            return script
        names = [name for name, row in FAULTS.items() if _fits(row, good, path)]
        weights = [FAULTS[name].weight * (self._gentle if name == "well" else 1) for name in names]
        (name,) = rng.choices(names, weights)
        row = FAULTS[name]
        whole, steps = row.play(good, rng)
        finished = name != "no finish"
        self._note(
            number,
            Said(provider, attempt, name, good.text, whole, row.owes, finished, 200, good.body, continues),
        )
        return steps

    def _note(self, number: int, said: Said) -> None:
        self.said[number].append(said)
        self.played[said.fault] += 1


def _continued_text(request: Received, path: str) -> str | None:
    """Return the beginning of an answer that *request* wants to be continued."""
    if path not in ("/v1/chat/completions", "/api/chat"):
        return None
    said = [message for message in loads(request.body)["messages"] if message["role"] == "assistant"]
    return said[-1]["content"] if said else None
