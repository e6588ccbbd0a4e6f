"""
The output items of a response, built piece by piece and told as events.

One state: the item that is open. Opening another closes it, so items never overlap and
`output_index` only rises. A response that is not streamed is built the same way; its events
are simply not looked at.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from sentinel_proxy.providers.ollama.ids import Mint
from sentinel_proxy.providers.ollama.turns import Said, ToolCall

Event = dict[str, Any]
Item = dict[str, Any]


class _OpenItem(ABC):
    """An item that may still grow."""

    def __init__(self, index: int, item: Item) -> None:
        self.index = index
        self.item = item

    def opened(self) -> Iterator[Event]:
        """Tell that the item is there, as empty as it is."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": dict(self.item)}

    @abstractmethod
    def closed(self) -> Iterator[Event]:
        """Complete the item and tell all but its end."""

    def event(self, type: str, **keys: Any) -> Event:
        """Return an event about this item."""
        return {"type": type, "item_id": self.item["id"], "output_index": self.index, **keys}


class _Growing(_OpenItem):
    """An item of one part whose text comes in pieces."""

    def __init__(self, index: int, item: Item) -> None:
        super().__init__(index, item)
        self.texts: list[str] = []

    @abstractmethod
    def grown(self, text: str) -> Event:
        """Add *text* and tell it."""


class _Reasoning(_Growing):
    """Thoughts; they are sent as a summary, the part of reasoning that callers may see."""

    def __init__(self, index: int, mint: Mint) -> None:
        super().__init__(index, {"id": mint("rs_"), "type": "reasoning", "summary": []})

    def opened(self) -> Iterator[Event]:
        yield from super().opened()
        yield self.event("response.reasoning_summary_part.added", summary_index=0, part=_summary(""))

    def grown(self, text: str) -> Event:
        self.texts.append(text)
        return self.event("response.reasoning_summary_text.delta", summary_index=0, delta=text)

    def closed(self) -> Iterator[Event]:
        text = "".join(self.texts)
        self.item["summary"] = [_summary(text)]
        yield self.event("response.reasoning_summary_text.done", summary_index=0, text=text)
        yield self.event("response.reasoning_summary_part.done", summary_index=0, part=_summary(text))


class _Message(_Growing):
    """What the model says to the user."""

    def __init__(self, index: int, mint: Mint) -> None:
        item = {
            "id": mint("msg_"),
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        super().__init__(index, item)

    def opened(self) -> Iterator[Event]:
        yield from super().opened()
        yield self.event("response.content_part.added", content_index=0, part=_output_text(""))

    def grown(self, text: str) -> Event:
        self.texts.append(text)
        return self.event("response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def closed(self) -> Iterator[Event]:
        text = "".join(self.texts)
        self.item["content"] = [_output_text(text)]
        yield self.event("response.output_text.done", content_index=0, text=text, logprobs=[])
        yield self.event("response.content_part.done", content_index=0, part=_output_text(text))


class _FunctionCall(_OpenItem):
    """A call; Ollama gives it whole, so its arguments are one delta."""

    def __init__(self, index: int, mint: Mint, call: ToolCall) -> None:
        item = {
            "id": mint("fc_"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        super().__init__(index, item)
        self._arguments = call.arguments

    def opened(self) -> Iterator[Event]:
        yield from super().opened()
        yield self.event("response.function_call_arguments.delta", delta=self._arguments)

    def closed(self) -> Iterator[Event]:
        self.item["arguments"] = self._arguments
        yield self.event(
            "response.function_call_arguments.done", name=self.item["name"], arguments=self._arguments
        )


class OutputBuilder:
    """
    Builds the `output` of one response.

    Every method returns the events that tell what it did; they must be run through for it to
    be done.
    """

    def __init__(self, mint: Mint) -> None:
        self.output: list[Item] = []
        """The items that are closed."""
        self._mint = mint
        self._open: _OpenItem | None = None
        self._answered = False  # with a text or a call

    def add(self, said: Said) -> Iterator[Event]:
        """Add what one native message says: thoughts, text, calls, in this order."""
        if said.thinking:
            yield from self._grow(_Reasoning, said.thinking)
        if said.text:
            self._answered = True
            yield from self._grow(_Message, said.text)
        for call in said.calls:
            self._answered = True
            yield from self._switch(_FunctionCall(self._next_index(), self._mint, call))

    def end(self, status: str) -> Iterator[Event]:
        """Close what is open with *status*; a response without text and calls gets an empty message."""
        if not self._answered:
            yield from self._switch(_Message(self._next_index(), self._mint))
        yield from self._close(status)

    def _grow(self, kind: type["_Reasoning"] | type["_Message"], text: str) -> Iterator[Event]:
        if not isinstance(self._open, kind):
            yield from self._switch(kind(self._next_index(), self._mint))
        assert isinstance(self._open, kind)
        yield self._open.grown(text)

    def _next_index(self) -> int:
        return len(self.output) + (self._open is not None)

    def _switch(self, item: _OpenItem) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = item
        yield from item.opened()

    def _close(self, status: str) -> Iterator[Event]:
        closing, self._open = self._open, None
        if closing is None:
            return
        yield from closing.closed()
        if "status" in closing.item:
            closing.item["status"] = status
        self.output.append(closing.item)
        yield {"type": "response.output_item.done", "output_index": closing.index, "item": closing.item}


def _summary(text: str) -> Item:
    return {"type": "summary_text", "text": text}


def _output_text(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
