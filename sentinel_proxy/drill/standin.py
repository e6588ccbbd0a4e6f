"""
A simulated server in the place of one configured provider.

It knows what it is asked (a call, a rest of one, or a probe) and what it is to do about it. What
it says is always the same, so whoever asked can tell a right answer from any other.
"""

from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from sentinel_proxy.drill.dialects import Dialect
from sentinel_proxy.drill.faults import Asked, Fault, well
from sentinel_proxy.model import Call, Usage
from sentinel_proxy.providers.base import Provider
from sentinel_proxy.testing import FaultyUpstream, Received, Step, answer, json_answer

TOKENS: Final = (
    *("Every", " word", " of", " this", " answer", " came", " in", " order,"),
    *(" once,", " and", " to", " the", " end."),
)
ANSWER: Final = "".join(TOKENS)
QUESTION: Final = "What do you say while providers fail?"


class StandIn:
    """
    One simulated server. Use it as an async context manager; `take_the_place_of` comes before any call.

    Args:
        position: Of its provider in the chain, from 1; shows in the usage it reports.
        streamed: Whether the calls of this run are.

    Attributes:
        calls: What it was asked, probes left out.
        answers: How many of them it began to answer well.
    """

    def __init__(self, position: int, *, streamed: bool) -> None:
        self.usage = Usage(prompt_tokens=100 * position, completion_tokens=len(TOKENS))
        self.server = FaultyUpstream().always(self._act)
        self.calls: list[Received] = []
        self.answers = 0
        self._streamed = streamed
        self._next: deque[Fault] = deque()
        self._always: Fault = well
        self._dialect: Dialect
        self._provider: Provider
        self._path = ""

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.server.aclose()

    def take_the_place_of(self, provider: Provider, dialect: Dialect, call: Call) -> None:
        """Speak *dialect* to *provider*, which sends *call* and its like here."""
        self._provider, self._dialect = provider, dialect
        self._path = _path(provider.encode(call).target)

    def plays(self, *faults: Fault) -> None:
        """Let these befall the next calls, one each, before what is always so."""
        self._next.extend(faults)

    def always(self, fault: Fault) -> None:
        """Let this befall every call from now on; `well` ends it."""
        self._always = fault

    async def go_away(self) -> None:
        """Be gone: refuse connections, and drop those that were open."""
        await self.server.stop_listening()
        self.server.drop_connections()

    def is_heard(self) -> bool:
        """Whether anybody still listens to the answer to the last call."""
        return bool(self.calls) and self.server.is_open(self.calls[-1].connection)

    def _act(self, request: Received) -> Iterable[Step]:
        if _path(request.target) != self._path:
            return self._besides(request)
        self.calls.append(request)
        fault = self._next.popleft() if self._next else self._always
        self.answers += fault is well
        return fault(Asked(self._dialect, self._streamed, _unsaid(request.body), self.usage))

    def _besides(self, request: Received) -> Iterable[Step]:
        """Answer what is no call: whoever probes finds us well."""
        if request.target != self._provider.probe().target:
            return json_answer(404, {"error": "not part of the drill"})
        models = list(dict.fromkeys(self._provider.models.values()))
        return answer(200, self._dialect.catalogue(models), {"content-type": "application/json"})


def _path(target: str) -> str:
    return urlsplit(target).path


def _unsaid(body: bytes) -> tuple[str, ...]:
    """Return the tokens that the conversation in *body*, whatever its form, does not end with already."""
    said = (n for n in range(len(TOKENS), 0, -1) if "".join(TOKENS[:n]).encode() in body)
    return TOKENS[next(said, 0) :]
