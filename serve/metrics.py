"""Counters of the gateway, in the text format of Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

OTHER = "other"
"""The label of every path that is no route: a client must not be able to make labels."""


class RequestMetrics:
    """How many requests came, how they were answered and how long that took; no text of any request."""

    def __init__(
        self,
        *,
        num_pending_tokens: Callable[[], int],
        num_pending_attribution_tokens: Callable[[], int],
        num_pending_chat_tokens: Callable[[], int],
    ) -> None:
        self._registry = CollectorRegistry()
        self._routes: frozenset[str] = frozenset()
        self._requests = Counter(
            "whyrank_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "whyrank_request_seconds", "Time to the end of an answer.", ("route",), registry=self._registry
        )
        self._gauge("whyrank_pending_tokens", "Tokens admitted to be scored.", num_pending_tokens)
        self._gauge(
            "whyrank_pending_attribution_tokens",
            "Tokens of masked texts admitted to be scored, until the explanations are sent.",
            num_pending_attribution_tokens,
        )
        self._gauge(
            "whyrank_pending_chat_tokens",
            "Tokens admitted of conversations and their replies.",
            num_pending_chat_tokens,
        )

    def _gauge(self, name: str, told: str, value: Callable[[], int]) -> None:
        Gauge(name, told, registry=self._registry).set_function(lambda: float(value()))

    def know_routes(self, paths: Collection[str]) -> None:
        """Say which paths are routes."""
        self._routes = frozenset(paths)

    def route_of(self, path: str) -> str:
        """Return a path that is a route, and `OTHER` for all others."""
        return path if path in self._routes else OTHER

    def observe(self, path: str, status: int, *, seconds: float) -> None:
        """Count one answered request; status 0 is one that nobody waited for."""
        route = self.route_of(path)
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> str:
        """Return all counters as Prometheus reads them."""
        return generate_latest(self._registry).decode()
