"""Spans of requests for OpenTelemetry: how long each waited, was read and was written. No text is in them.

Nothing of OpenTelemetry is imported unless it is asked for (`foveal serve --otel`). Where the spans go is said by its
own environment variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME`` and so on).
"""

from __future__ import annotations

import os
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from foveal import __version__
from foveal.errors import FovealError, ParameterError
from foveal.server.pieces import Asked, Begun, Delta, Ended, Piece

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PARENT: ContextVar[str] = ContextVar("traceparent", default="")
"""The ``traceparent`` of the request that a task works for."""


class Watch:
    """Sees what becomes of one request. This one tells nobody."""

    def placed(self) -> None:
        """It has a place, and its memory."""

    def piece(self, piece: Piece) -> None:
        """A piece of its answer."""

    def ended(self, error: BaseException | None = None) -> None:
        """It has ended."""


class Tracing:
    """Watches requests. This one tells nobody."""

    def watch(self, asked: Asked) -> Watch:
        """What sees the pieces of an answer from now on."""
        return Watch()

    def close(self) -> None:
        """Send what is not sent yet."""


class OpenTelemetry(Tracing):
    """Sends spans: ``foveal.request``, and in it ``wait``, ``prefill`` (to the first token) and ``decode``.

    Names of attributes are those of the conventions for generative models; ours begin with ``foveal.``.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """exporter: default: OTLP over HTTP. Raises `ParameterError` where OpenTelemetry is not installed."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise _missing(error) from error
        about = {"service.version": __version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about["service.name"] = "foveal"
        self._provider = TracerProvider(resource=Resource.create(about))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _otlp()))
        self._tracer = self._provider.get_tracer("foveal", __version__)

    def watch(self, asked: Asked) -> Watch:
        """See `Tracing`."""
        return _Spans(self._tracer, asked)

    def close(self) -> None:
        """See `Tracing`."""
        self._provider.shutdown()


def _otlp() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise _missing(error) from error
    return OTLPSpanExporter()


def _missing(error: ImportError) -> ParameterError:
    return ParameterError(f"--otel needs packages that are not installed: pip install 'foveal[otel]' ({error})")


class _Spans(Watch):
    """The spans of one request, made when it has ended: nothing is done while it runs but to look at the clock."""

    def __init__(self, tracer: Any, asked: Asked) -> None:
        self._tracer, self._asked, self._parent = tracer, asked, PARENT.get()
        self._placed = self._first = 0
        self._begun: Begun | None = None
        self._written, self._finish = 0, ""

    def placed(self) -> None:
        """See `Watch`."""
        self._placed = time.time_ns()

    def piece(self, piece: Piece) -> None:
        """See `Watch`."""
        if isinstance(piece, Begun):
            self._begun = piece
        elif isinstance(piece, Delta):
            self._first = self._first or time.time_ns()
        elif isinstance(piece, Ended):
            self._written += len(piece.tokens)
            self._finish = piece.finish

    def ended(self, error: BaseException | None = None) -> None:
        """See `Watch`."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end, asked = time.time_ns(), self._asked
        above = TraceContextTextMapPropagator().extract({"traceparent": self._parent})
        whole = self._tracer.start_span("foveal.request", above, SpanKind.SERVER, self._about(), start_time=asked.came)
        if error is not None:
            code = error.code if isinstance(error, FovealError) else type(error).__name__
            whole.set_status(StatusCode.ERROR)
            whole.set_attribute("error.type", str(code))
        context = set_span_in_context(whole)
        for name, start, stop in (
            ("wait", asked.came, self._placed or end),
            ("prefill", self._placed, self._first or end),
            ("decode", self._first, end),
        ):
            if start:
                self._tracer.start_span(name, context, start_time=start).end(stop)
        whole.end(end)

    def _about(self) -> dict[str, Any]:
        asked, begun = self._asked, self._begun
        about: dict[str, Any] = {
            "gen_ai.request.model": asked.chosen.model.name,
            "gen_ai.response.id": asked.id,
            "gen_ai.usage.output_tokens": self._written,
            "foveal.tenant": asked.key.tenant or asked.key.name,
        }
        if self._finish:
            about["gen_ai.response.finish_reasons"] = [self._finish]
        if begun is not None:
            about |= {
                "gen_ai.usage.input_tokens": begun.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": begun.reused_tokens,
            }
            if begun.miss is not None:
                about["foveal.cache_miss.reason"] = begun.miss.reason
                about["foveal.cache_miss.position"] = begun.miss.position
        return about
