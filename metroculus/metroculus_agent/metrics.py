"""What the agent tells of itself."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class AgentMetrics:
    """Figures of the agent; ``states`` is what ``/readyz`` says.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers = Counter("agent_answers", "Answers that were pushed", ["kind"], registry=registry)
        self._bytes = Counter("agent_bytes", "Packed bytes that were pushed", registry=registry)
        self._failures = Counter("agent_failures", "Failures of the upstream or the gateway", ["of"], registry=registry)
        self._last = Gauge("agent_last_pushed_seconds", "When an answer was pushed last (Unix time)", registry=registry)
        self.wanted = Gauge("agent_wanted", "Questions that were wanted at the last look", registry=registry)
        self.states = {"upstream": "unknown", "gateway": "unknown"}

    def delivered(self, kind: str, size: int) -> None:
        self._answers.labels(kind).inc()
        self._bytes.inc(size)
        self._last.set(self._clock())
        self.gateway_is("ok")

    def failed(self, of: str) -> None:
        self._failures.labels(of).inc()

    def upstream_is(self, state: str) -> None:
        self.states["upstream"] = state

    def gateway_is(self, state: str) -> None:
        self.states["gateway"] = state
