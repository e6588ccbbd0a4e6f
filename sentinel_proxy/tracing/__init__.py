"""
OpenTelemetry traces: one span for each call, one below it for each attempt.

A listener like the log. Spans are made of facts, once a call is over, so the core knows nothing
of OpenTelemetry, and waiting answers pay nothing for it. It is an extra (`sentinel-proxy[otel]`)
and configured by its own standard variables, `OTEL_*`, alone: nothing here has a key in our
configuration, and nothing in this module imports the library before it is wanted.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sentinel_proxy.clock import Clock
from sentinel_proxy.errors import ConfigError
from sentinel_proxy.events import Bus, Noticed

if TYPE_CHECKING:
    from sentinel_proxy.tracing.spans import Tracing

SWITCHES: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
"""Any of these, not empty, says that traces are wanted."""


def tracing_by(environ: Mapping[str, str], bus: Bus, clock: Clock) -> "Tracing | None":
    """
    Return what exports traces as *environ* asks, already listening; None if it asks for none.

    Whatever is wrong with it is noticed on *bus* and means no traces: these variables are often
    set for a whole cluster, by somebody who has never heard of this proxy.

    Args:
        environ: The process's own; the library reads more of it by itself.
    """
    if not wanted(environ):
        return None
    try:
        tracing = _tracing(environ, bus, clock)
    except Exception as error:
        bus.emit(Noticed("warning", "traces are not exported", {"problem": _problem(error)}))
        return None
    tracing.listen(bus)
    return tracing


def _tracing(environ: Mapping[str, str], bus: Bus, clock: Clock) -> "Tracing":
    from sentinel_proxy.tracing.export import exporters_by
    from sentinel_proxy.tracing.spans import Tracing

    exporters = exporters_by(environ)
    tracing = Tracing(list(exporters.values()), bus.emit, clock)
    details = {"exporter": ",".join(exporters), "sampler": tracing.sampler}
    bus.emit(Noticed("info", "traces are exported", details))
    return tracing


def _problem(error: Exception) -> str:
    """Say what is wrong; the text of an error that is not ours may quote endpoints, headers and keys."""
    match error:
        case ConfigError():
            return str(error)
        case ModuleNotFoundError():
            return f"{error.name} is not installed; the extra `otel` brings it"
    return f"the settings in OTEL_* cannot be used: {type(error).__name__}"


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether *environ* asks for traces; an empty variable counts as absent, as the standard has it."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return any(environ.get(name) for name in SWITCHES) and "none" not in exporter_names(environ)


def exporter_names(environ: Mapping[str, str]) -> list[str]:
    """Return the exporters that *environ* lists; `otlp` if it lists none."""
    listed = (name.strip() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(","))
    return [name for name in listed if name] or ["otlp"]
