"""What Prometheus reads: requests as they come, and the engine at the moment of reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from llmasos_jax.engine.engine import EngineStats

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

GAUGES = {
    "num_running": ("texts_running", "Texts that have pages"),
    "num_waiting": ("texts_waiting", "Texts that wait for a row or for pages"),
    "pages_total": ("pages_total", "Pages of keys and values"),
    "pages_in_use": ("pages_in_use", "Pages that some text has"),
    "pages_cached": ("pages_cached", "Pages that are nobody's and known by their tokens"),
    "num_compiled": ("programs_compiled", "Programs compiled since the start"),
}
COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts that were read"),
    "cached_tokens": ("cached_tokens", "Tokens of prompts that were found in pages"),
    "generated_tokens": ("generated_tokens", "Tokens that were drawn"),
    "num_finished": ("texts_finished", "Texts that came to their end"),
    "num_preempted": ("texts_preempted", "Times that a text was set aside for want of pages"),
    "proposed_tokens": ("proposed_tokens", "Tokens that were proposed"),
    "accepted_tokens": ("accepted_tokens", "Proposed tokens that were right"),
}


class Metrics:
    """Counts of a server.

    Args:
      stats: of its engine, if it has one.
    """

    def __init__(self, stats: Callable[[], EngineStats] | None) -> None:
        self._stats = stats
        self._registry = registry = CollectorRegistry()
        registry.register(self)
        self.requests = Counter(
            "llmasos_requests", "Requests", ["route", "status"], registry=registry
        )
        self.request_s = Histogram(
            "llmasos_request_seconds",
            "From arrival to end",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_s = Histogram(
            "llmasos_first_token_seconds",
            "From arrival to a text's first token",
            buckets=SECONDS,
            registry=registry,
        )
        self.token_s = Histogram(
            "llmasos_token_seconds",
            "Between tokens of a text, in the mean of the text",
            buckets=TOKEN_SECONDS,
            registry=registry,
        )

    def collect(self) -> Iterator[Any]:
        """The engine's figures, for the registry."""
        if self._stats is None:
            return
        stats = self._stats()
        for name, (key, text) in GAUGES.items():
            yield GaugeMetricFamily(f"llmasos_{key}", text, value=getattr(stats, name))
        for name, (key, text) in COUNTERS.items():
            yield CounterMetricFamily(f"llmasos_{key}", text, value=getattr(stats, name))

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
