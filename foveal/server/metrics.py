"""Numbers for Prometheus: what was counted, and how things stand when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from foveal.batch.loop import EngineClosed
from foveal.config import PAGE_TOKENS

if TYPE_CHECKING:
    from foveal.engine import Engine
    from foveal.server.registry import Model
    from foveal.server.service import Service

TEXT = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)

disable_created_metrics()


class Metrics:
    """All numbers of a server. The counters are for those who count; the rest is asked for by `text`."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("foveal_requests", "Requests, by path and status.", "path", "status")
        self.read = self._counter("foveal_prompt_tokens_read", "Tokens of prompts that were run.", "model")
        self.reused = self._counter("foveal_prompt_tokens_reused", "Tokens of prompts that were found.", "model")
        self.written = self._counter("foveal_output_tokens", "Tokens of replies.", "model")
        self.first = self._times("foveal_first_token_seconds", "From a place for the request to its first token.")
        self.whole = self._times("foveal_request_seconds", "From a request to the end of its answer.")
        self._registry.register(_State(service))

    def text(self) -> str:
        """Everything, with how things stand just now. Waits for a step that is in work."""
        return generate_latest(self._registry).decode()

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self._registry)

    def _times(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, registry=self._registry, buckets=SECONDS)


class _State:
    """What is read where it lies, at the time of asking."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Nothing by heart: it is asked before there are models."""
        return []

    def collect(self) -> Iterator[Metric]:
        gate = self._service.gate
        yield GaugeMetricFamily("foveal_requests_running", "Requests in work.", value=gate.running)
        yield GaugeMetricFamily("foveal_requests_waiting", "Requests that wait for a place.", value=gate.waiting)
        refused = CounterMetricFamily(
            "foveal_requests_refused", "Requests for which there was no place.", labels=["code"]
        )
        for code, count in dict(gate.refused).items():
            refused.add_metric([code], count)
        yield refused
        yield from _of_models(self._service.registry.models)


def _operations(engine: Engine) -> Mapping[str, float]:
    """Seconds by operation, read between two steps; nothing where the network does not tell, or runs no more."""
    profile = getattr(engine.network, "profile", None)
    try:
        return {} if profile is None else engine.call(profile)
    except EngineClosed:
        return {}


def _of_models(models: dict[str, Model]) -> Iterator[Metric]:
    def gauge(name: str, help: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, help, labels=["model", *labels])

    def counter(name: str, help: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(name, help, labels=["model", *labels])

    pages = gauge("foveal_pages", "Pages of the cache that are in use.")
    size = gauge("foveal_cache_bytes", "Bytes of those pages, by what lies in them.", "kind")
    kept = gauge("foveal_kept_tokens", "Tokens of earlier prompts that are kept in memory.")
    evicted = counter("foveal_evicted", "Kept prompts that were given up, requests that were parked.", "kind")
    steps = counter("foveal_steps", "Steps of the network.")
    seconds = counter("foveal_step_seconds", "Time in steps, by operation; (all) is the whole of it.", "operation")
    for name, model in list(models.items()):
        engine, shelves = model.engine.engine, list(model.shelves.values())
        live = engine.pool.live
        pages.add_metric([name], live)
        held = engine.pool.layout.bytes_at(live * PAGE_TOKENS)
        for kind in ("csa_entries", "index_keys", "hca_entries", "tokens"):
            size.add_metric([name, kind], getattr(held, kind))
        ran = engine.batch.ran
        kept.add_metric([name], sum(shelf.kept.tokens for shelf in shelves))
        evicted.add_metric([name, "kept"], sum(shelf.kept.dropped for shelf in shelves))
        evicted.add_metric([name, "parked"], engine.batch.admission.parked)
        steps.add_metric([name], ran.steps)
        for operation, spent in {"(all)": ran.seconds, **_operations(engine)}.items():
            seconds.add_metric([name, operation], spent)
    yield from (pages, size, kept, evicted, steps, seconds)
