"""Spans of requests, and that nothing is imported for them where nobody asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from server_support import Running, serving

from foveal.server.tracing import OpenTelemetry

pytestmark = pytest.mark.slow


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def running(tmp_path: Path, exporter: InMemorySpanExporter) -> Iterator[Running]:
    with serving(tmp_path, tracing=OpenTelemetry(exporter), context_length=2000) as running:
        yield running


def spans(running: Running, exporter: InMemorySpanExporter) -> dict[str, Any]:
    """Those of the last request, by name."""
    running.service.tracing._provider.force_flush()  # type: ignore[attr-defined]
    found = {span.name: span for span in exporter.get_finished_spans()}
    exporter.clear()
    return found


def ask(running: Running, text: str, **settings: Any) -> httpx.Response:
    headers = settings.pop("headers", {})
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 5} | settings
    return httpx.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_a_request_has_four_spans(running: Running, exporter: InMemorySpanExporter) -> None:
    text = "a word " * 200
    usage = ask(running, text, seed=1).json()["usage"]
    cold = spans(running, exporter)
    assert set(cold) == {"foveal.request", "wait", "prefill", "decode"}
    whole = cold["foveal.request"]
    assert whole.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert whole.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert whole.attributes["gen_ai.usage.cache_read.input_tokens"] == 0
    assert whole.attributes["foveal.cache_miss.reason"] == "new"
    edges = [(cold[name].start_time, cold[name].end_time) for name in ("wait", "prefill", "decode")]
    assert edges[0][0] == whole.start_time and edges[2][1] == whole.end_time
    assert edges[0][1] == edges[1][0] and edges[1][1] == edges[2][0], "one begins where the other ends"
    assert {cold[name].parent.span_id for name in ("wait", "prefill", "decode")} == {whole.context.span_id}
    assert "a word" not in str([dict(span.attributes or {}) for span in cold.values()])
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    ask(running, text, seed=1, stream=True, headers=parent)
    again = spans(running, exporter)["foveal.request"]
    assert again.attributes["gen_ai.usage.cache_read.input_tokens"] == usage["prompt_tokens"] - 1
    assert f"{again.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{again.parent.span_id:016x}" == "b7ad6b7169203331"


def test_what_fails_is_said(running: Running, exporter: InMemorySpanExporter) -> None:
    assert ask(running, "x " * 5000).status_code == 400
    failed = spans(running, exporter)["foveal.request"]
    assert not failed.status.is_ok and failed.attributes["error.type"] == "context_length_exceeded"


def test_nothing_is_imported_without_it() -> None:
    code = "import sys, foveal.server.opening; print([name for name in sys.modules if 'opentelemetry.sdk' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
