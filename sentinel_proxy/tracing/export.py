"""
Where spans go: exporters as `OTEL_*` names them, and how sending goes.

A collector that is down or slow costs spans, never a call: they wait in a bounded queue, a
thread of the library's sends them and tries again, and the end of the process waits for
`CLOSE_SECONDS`. The library's own log is switched off: it would go to standard error from
whoever calls, the event loop included, and it quotes endpoints and headers.

Sources:
    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/,
    https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from sentinel_proxy.errors import ConfigError
from sentinel_proxy.tracing import exporter_names

CLOSE_SECONDS: Final = 2.0
"""How long the end of the process waits for the last spans to be sent."""

_OTLP: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def exporters_by(environ: Mapping[str, str]) -> dict[str, SpanExporter]:
    """
    Return the exporters that *environ* names, by their names; installed ones of others too.

    Raises:
        ConfigError: One of them is not installed; says which.
        Exception: One of them cannot be made by what else the process's environment says.
    """
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    installed = {point.name: point for point in entry_points(group="opentelemetry_traces_exporter")}
    names = {name: _otlp(environ) if name == "otlp" else name for name in exporter_names(environ)}
    if unknown := sorted(set(names.values()) - set(installed)):
        known = ", ".join(sorted(installed))
        raise ConfigError("OTEL_TRACES_EXPORTER", f"no exporter {unknown[0]!r} is installed, only {known}")
    return {name: installed[point].load()() for name, point in names.items()}


def _otlp(environ: Mapping[str, str]) -> str:
    """Return the exporter that speaks the protocol asked for."""
    specific = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    protocol = specific or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    return _OTLP.get(protocol, protocol)


def resource(version: str) -> Resource:
    """Return who we are: `sentinel-proxy`, unless the standard variables say otherwise."""
    told = Resource.create({SERVICE_VERSION: version})
    if str(told.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return told.merge(Resource({SERVICE_NAME: "sentinel-proxy"}))
    return told


class Delivery(SpanExporter):
    """
    Passes spans on and knows whether they arrive; read by one thread, written by another.

    Attributes:
        failing: The last batch did not arrive.
        lost: Spans in batches that did not arrive, after every further try.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._shut_down = False
        self.failing = False
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Pass *spans* on; never raises."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            result = SpanExportResult.FAILURE
        self.failing = result is not SpanExportResult.SUCCESS
        if self.failing:
            self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Let the exporter end, at once if it waits for a further try. May be called twice."""
        if not self._shut_down:
            self._shut_down = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Pass it on."""
        return self._exporter.force_flush(timeout_millis)


def ended_in_time(work: Callable[[], None]) -> bool:
    """Do *work* in a thread that nobody waits for longer than `CLOSE_SECONDS`; return whether it is done."""
    thread = threading.Thread(target=work, name="last spans", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    return not thread.is_alive()
