"""
A clock that moves by hand and an upstream that fails on cue.

Public: our tests, the demo, the drill and provider plugins all act out failures with these.
`FaultyUpstream` plays *scripts*, lists of small steps; the builders here make whole scripts,
right ones (`answer`, `stream`, the dialects) and, with `cut`, broken ones. `SimulatedOpenAI` and
`SimulatedOllama` are whole providers: they answer what they are asked, and fail when told to.
Nothing here judges the proxy, and nothing in the proxy's core may import it.
"""

from sentinel_proxy.testing.clock import FakeClock
from sentinel_proxy.testing.ollama import (
    CREATED_AT,
    ollama_completion,
    ollama_error,
    ollama_lines,
    ollama_ps,
    ollama_show,
    ollama_stream,
    ollama_tags,
    ollama_version,
)
from sentinel_proxy.testing.openai import (
    CREATED,
    openai_chunks,
    openai_completion,
    openai_error,
    openai_model,
    openai_models,
    openai_stream,
    sse,
    sse_stream,
)
from sentinel_proxy.testing.scripts import (
    DEFAULT_USAGE,
    Close,
    Framing,
    HalfClose,
    Hang,
    Pause,
    Reset,
    Script,
    Send,
    Step,
    ToolCall,
    Unread,
    answer,
    cut,
    json_answer,
    stream,
)
from sentinel_proxy.testing.simulated import Outage, Simulated, SimulatedOllama, SimulatedOpenAI
from sentinel_proxy.testing.upstream import HOST, Act, FaultyUpstream, Received

__all__ = [
    "CREATED",
    "CREATED_AT",
    "DEFAULT_USAGE",
    "HOST",
    "Act",
    "Close",
    "FakeClock",
    "FaultyUpstream",
    "Framing",
    "HalfClose",
    "Hang",
    "Outage",
    "Pause",
    "Received",
    "Reset",
    "Script",
    "Send",
    "Simulated",
    "SimulatedOllama",
    "SimulatedOpenAI",
    "Step",
    "ToolCall",
    "Unread",
    "answer",
    "cut",
    "json_answer",
    "ollama_completion",
    "ollama_error",
    "ollama_lines",
    "ollama_ps",
    "ollama_show",
    "ollama_stream",
    "ollama_tags",
    "ollama_version",
    "openai_chunks",
    "openai_completion",
    "openai_error",
    "openai_model",
    "openai_models",
    "openai_stream",
    "sse",
    "sse_stream",
    "stream",
]
