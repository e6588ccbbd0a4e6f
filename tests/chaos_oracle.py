"""
What is right for a caller to see, given what the upstreams have really said.

`complaint` knows the promise of the product and nothing of its code: a complete answer is one
provider's whole answer, anything else says that it failed. Whatever is seen carries the marks
of its own call only.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chaos_faults import SECRET, Said
from chaos_support import Ask, Seen

from sentinel_proxy.events import CallFinished
from sentinel_proxy.model import Outcome
from sentinel_proxy.wire.json import loads

_MARK: Final = re.compile(rb"<(\w+)\.")
_GOOD: Final = {Outcome.SUCCESS, Outcome.FAILED_OVER, Outcome.RESCUED}
_BAD: Final = {Outcome.TRUNCATED, Outcome.FAILURE, Outcome.CALLER_ERROR}
SLACK_SECONDS: Final = 1.0
"""What several rounds of the event loop, and the slots of the wheel, may add to a deadline."""

_EXCUSES: Final = ("timeout", "connect_timeout", "reset", "connect")


class Wrong(Exception):
    """What was seen breaks the promise."""


@dataclass(slots=True)
class Heard:
    """An answer as a careful SDK would read it."""

    text: str = ""
    finished: bool = False
    done: bool = False
    error: dict[str, Any] | None = None
    ids: set[Any] = field(default_factory=set)
    roles: int = 0


def complaint(
    ask: Ask, seen: Seen, said: Sequence[Said], events: Sequence[CallFinished], *, rescues: bool = False
) -> str | None:
    """Return what is wrong with how a call ended, or None."""
    try:
        _check_bytes(ask, seen)
        if seen.ended == "hung up":
            _check_partial(ask, seen, said, rescues)
            if len(events) > 1:
                raise Wrong("more than one CallFinished")
            return None
        if len(events) != 1:
            raise Wrong(f"{len(events)} CallFinished")
        _check_time(ask, seen)
        good = _check_raw(seen, said) if ask.kind == "raw" else _check_answer(ask, seen, said, rescues)
        _check_event(ask, seen, events[0], good=good)
        if not good and seen.ended == "complete":
            _check_debts(seen, said, events[0])
    except Wrong as wrong:
        return str(wrong)
    return None


def _check_bytes(ask: Ask, seen: Seen) -> None:
    foreign = {mark for mark in _MARK.findall(seen.body) if mark != str(ask.number).encode()}
    if foreign:
        raise Wrong(f"words of another call: {foreign}")
    if ask.kind != "raw" and SECRET.encode() in seen.body:
        raise Wrong("the proxy's key was shown")
    if seen.ended == "garbage":
        raise Wrong("what came is not HTTP")


def _check_time(ask: Ask, seen: Seen) -> None:
    if seen.ended == "never" or seen.seconds - seen.lost_seconds > ask.deadline_seconds + SLACK_SECONDS:
        raise Wrong(f"not over after {seen.seconds:.2f} s of {ask.deadline_seconds:.2f} s")


def _check_answer(ask: Ask, seen: Seen, said: Sequence[Said], rescues: bool) -> bool:
    """Return whether the caller has a complete answer; it has an honest error otherwise."""
    if seen.ended != "complete":
        raise Wrong(f"the connection ended inside of an answer ({seen.ended})")
    if seen.status >= 400:
        _check_envelope(seen)
        return False
    if seen.status != 200:
        raise Wrong(f"status {seen.status}")
    heard = heard_from(ask, seen)
    if heard.error is not None:
        if not ask.stream or heard.done or heard.finished:
            raise Wrong("an error in what looks like a complete answer")
        _check_error(heard.error)
        _check_partial(ask, seen, said, rescues)
        return False
    whole = [one for one in said if one.whole and one.text == heard.text]
    if rescues:
        whole += [end for _, end in _joins(heard.text, said) if end.whole]
    if not whole:
        raise Wrong("complete, yet nobody has said this")
    if not any(heard.finished or not one.finished for one in whole) or not heard.done:
        raise Wrong("complete without a finish reason or without its end mark")
    if len(heard.ids) > 1 or heard.roles > 2:
        raise Wrong(f"identities {heard.ids}, {heard.roles} roles")
    return True


def _joins(text: str, said: Sequence[Said]) -> list[tuple[Said, Said]]:
    """Return the pairs of a broken answer and its continuation that *text* is made of."""
    return [
        (start, end)
        for end in said
        for start in said
        if end.continues
        and start is not end
        and start.text.startswith(end.continues)
        and text == end.continues + end.text
    ]


def _check_partial(ask: Ask, seen: Seen, said: Sequence[Said], rescues: bool) -> None:
    """What was seen before the end must be the beginning of what one provider said."""
    if not ask.stream or seen.status != 200 or ask.kind == "raw":
        return
    text = heard_from(ask, seen, partial=seen.ended == "hung up").text
    for one in said:
        texts = [one.text, (one.continues or "") + one.text] if rescues else [one.text]
        if any(_begins(whole, text) for whole in texts):
            return
    if text.strip("|"):
        raise Wrong(f"nobody began like this: {text[-80:]!r}")


def _begins(whole: str, text: str) -> bool:
    if "|" in whole or "|" in text:
        return all(a.startswith(b) for a, b in zip(whole.split("|"), text.split("|"), strict=False))
    return whole.startswith(text)


def _check_raw(seen: Seen, said: Sequence[Said]) -> bool:
    """What is passed through is a provider's answer to the byte, of whatever status, or cut off."""
    if seen.ended == "cut":
        return False
    if any(seen.status == one.status and seen.body == one.body for one in said):
        return seen.status < 400
    _check_envelope(seen)
    return False


def _check_envelope(seen: Seen) -> None:
    if seen.status < 400 or seen.headers.get("content-type") != "application/json":
        raise Wrong(f"status {seen.status}, {seen.headers.get('content-type')}")
    try:
        _check_error(loads(seen.body)["error"])
    except (ValueError, KeyError, TypeError):
        raise Wrong(f"no envelope: {seen.body[:200]!r}") from None
    if seen.headers.get("x-should-retry") not in ("true", "false"):
        raise Wrong("x-should-retry is missing")
    if b"internal_error" in seen.body or not seen.headers.get("x-sentinel-error-source"):
        raise Wrong("a mistake of the proxy")


def _check_error(error: Any) -> None:
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= set(error):
        raise Wrong(f"no error object: {error!r}")
    if not isinstance(error["message"], str) or not isinstance(error["code"], str | None):
        raise Wrong(f"no error object: {error!r}")


def _check_event(ask: Ask, seen: Seen, event: CallFinished, *, good: bool) -> None:
    if good:
        if event.outcome not in _GOOD or event.status != seen.status:
            raise Wrong(f"a good answer, reported as {event.outcome} {event.status}")
        told = seen.headers.get("x-sentinel-provider")
        kept_warm = seen.body.startswith(b": keep-alive")  # so the head was sent before it was known
        if not kept_warm and event.outcome is not Outcome.RESCUED and event.provider not in (told, None):
            raise Wrong(f"told that {told} answers, reported {event.provider}")
    elif event.outcome not in _BAD:
        raise Wrong(f"an error, reported as {event.outcome}")
    elif seen.status >= 400 and event.status != seen.status:
        raise Wrong(f"status {seen.status}, reported as {event.status}")


def _check_debts(seen: Seen, said: Sequence[Said], event: CallFinished) -> None:
    """Nobody gets an error while a provider has given a whole and good answer in time."""
    late = event.error_code == "deadline_exceeded" or b"fell silent" in seen.body
    tried = {(attempt.provider, attempt.result) for attempt in event.call.trail} if event.call else set()
    for one in said:
        excused = late or any((one.provider, excuse) in tried for excuse in _EXCUSES)
        if one.owed and not excused:
            raise Wrong(f"an error, although {one.provider} gave a good answer")


# -- reading as a careful client does -----------------------------------------------------------


def heard_from(ask: Ask, seen: Seen, *, partial: bool = False) -> Heard:
    """
    Read an answer with status 200.

    Args:
        partial: The caller hung up, so the last event may be half an event.
    """
    try:
        if ask.stream:
            events = _events(seen.body, partial)
            return _heard_response(events) if ask.kind == "responses" else _heard_chunks(events)
        return _READERS[ask.kind](loads(seen.body))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Wrong(f"unreadable ({error!r}): {seen.body[:300]!r}") from None


def _events(body: bytes, partial: bool) -> list[Any]:
    """Return the data of each event; `[DONE]` as None."""
    body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *blocks, rest = body.split(b"\n\n")
    if rest and not partial:
        raise Wrong(f"half an event at the end: {rest!r}")
    events: list[Any] = []
    for block in blocks:
        lines = [line for line in block.split(b"\n") if not line.startswith(b":")]
        data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        if set(line.partition(b":")[0] for line in lines) - {b"data", b"event"}:
            raise Wrong(f"fields that SDKs stumble over: {block!r}")
        if lines and not data:
            raise Wrong(f"an event without data: {block!r}")
        if data:
            events.append(None if data == [b"[DONE]"] else loads(b"\n".join(data)))
    return events


def _heard_chunks(events: Sequence[Any]) -> Heard:
    heard = Heard()
    texts: dict[int, str] = {}
    finishes: set[int] = set()
    for event in events:
        if heard.done or heard.error is not None:
            raise Wrong("something after the end")
        if event is None:
            heard.done = True
        elif "error" in event:
            heard.error = event["error"]
        else:
            heard.ids.update({event["id"]} - {None})
            for choice in event["choices"]:
                _hear(choice, texts, finishes, heard)
    heard.text = _said_by(texts)
    heard.finished = bool(finishes) and finishes == set(texts)
    return heard


def _hear(choice: Any, texts: dict[int, str], finishes: set[int], heard: Heard) -> None:
    index, delta = choice["index"], choice.get("delta") or {}
    texts.setdefault(index, "")
    heard.roles += bool(delta.get("role") and not delta.get("tool_calls"))
    texts[index] += choice.get("text") or delta.get("content") or ""
    for call in delta.get("tool_calls") or ():
        texts[index] += "\0" + (call["function"].get("arguments") or "")
    if choice.get("finish_reason") is not None:
        if index in finishes:
            raise Wrong("two finish reasons")
        finishes.add(index)


def _said_by(texts: dict[int, str]) -> str:
    return "|".join(_spoken(texts[index]) for index in sorted(texts))


def _spoken(text: str) -> str:
    """Return text as it is; of a tool call, what its arguments say, as far as they go."""
    if "\0" not in text:
        return text
    arguments = text.replace("\0", "")
    try:
        return str(loads(arguments.encode())["say"])
    except ValueError:
        return ""


def _heard_response(events: Sequence[Any]) -> Heard:
    heard = Heard()
    for event in events:
        if heard.done or heard.error is not None:
            raise Wrong("something after the end")
        match event["type"]:
            case "response.output_text.delta":
                heard.text += event["delta"]
            case "error":
                heard.error = event["error"]
            case "response.completed":
                heard.done = heard.finished = True
                if _response_text(event["response"]) != heard.text:
                    raise Wrong("the deltas and the response differ")
    return heard


def _response_text(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def _whole(text: str, finished: bool = True) -> Heard:
    return Heard(text, finished=finished, done=True)


def _chat_text(body: Any) -> Heard:
    texts = {}
    for choice in body["choices"]:
        calls = choice["message"].get("tool_calls") or ()
        texts[choice["index"]] = choice["message"].get("content") or "".join(
            "\0" + call["function"]["arguments"] for call in calls
        )
    return _whole(_said_by(texts), all(choice["finish_reason"] for choice in body["choices"]))


_READERS: Final[dict[str, Callable[[Any], Heard]]] = {
    "chat": _chat_text,
    "completions": lambda body: _whole(body["choices"][0]["text"], bool(body["choices"][0]["finish_reason"])),
    "embeddings": lambda body: _whole(str([float(x) for x in body["data"][0]["embedding"]])),
    "responses": lambda body: _whole(_response_text(body)),
    "simple": lambda body: _whole(body["response_text"]),
}
