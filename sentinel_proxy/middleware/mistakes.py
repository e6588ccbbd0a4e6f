"""
The last resort: a mistake of ours, or of a plugin, still ends in an honest answer.

An exception's text may quote whatever was being worked on, prompts and keys included. So
neither the caller nor the log gets it: they are told of what kind it was and where it happened.
"""

from pathlib import PurePath
from traceback import extract_tb
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from sentinel_proxy.api.errors import of_mistake
from sentinel_proxy.api.send import send_error
from sentinel_proxy.events import Emit, Noticed
from sentinel_proxy.model import Trace

FRAMES: Final = 5
"""How many places of the stack, innermost last, are worth a log line."""


class MistakeMiddleware:
    """
    Answers 500 where nobody else has an answer, and reports it; an answer that has begun is cut.

    Args:
        emit: Told of each mistake.
    """

    def __init__(self, app: ASGIApp, emit: Emit) -> None:
        self.app = app
        self._emit = emit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            trace: Trace = scope[Trace.SCOPE_KEY]
            details = {"trace_id": trace.trace_id, "kind": type(error).__name__, "at": _places(error)}
            self._emit(Noticed("error", "the proxy made a mistake", details))
            if not trace.answered:
                await send_error(send, of_mistake())


def _places(error: Exception) -> list[str]:
    frames = extract_tb(error.__traceback__)[-FRAMES:]
    return [f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
