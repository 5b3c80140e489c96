"""Compares the sums of the ledger with the pods that they count, and records with the nodes that they name.

A sum that differs is corrected. The difference is a defect of this program, and would reject pods, or promise GPUs
twice, until the process is started again; found within minutes, it costs a line in the log. A record that differs is
counted alone: its container was started with it.
"""

import asyncio
import collections
from collections.abc import Callable

import structlog

from gpu_sharing.adapters import pauses
from gpu_sharing.core import error_codes, reconciliation
from scheduler_extender.fleet import facts
from scheduler_extender.fleet.ledger import Ledger
from scheduler_extender.metrics import Metrics

_EVERY_SECONDS = 60.0

log = structlog.get_logger("ledger")


class Auditor:
    """Audits the ledger of one process."""

    def __init__(self, ledger: Ledger, metrics: Metrics, leads: Callable[[], bool] = lambda: True) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._leads = leads

    async def run(self) -> None:
        """Audit for ever; ends only by cancellation."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.step()
            except Exception:  # An audit that fails must not end what it audits.
                log.exception("defect", error_code=error_codes.INTERNAL)

    async def step(self) -> None:
        """Audit every node and every namespace once; others may have their turn between two of them."""
        pause = pauses.Pause()
        for name in self._ledger.node_names():
            if self._ledger.correct_node(name):
                self._report("node", name)
            await pause()
        audit = self._ledger.quota_audit()
        drifts: collections.Counter[reconciliation.Drift | None] = collections.Counter()
        for pod in list(self._ledger.pods()):
            audit.add(pod.uid)
            drifts[facts.record_drift(pod, self._ledger.node_facts(pod.node))] += 1
            await pause()
        for kind in reconciliation.Drift:  # Two replicas would double the sum.
            self._metrics.record_drift.labels(kind=kind.value).set(drifts[kind] if self._leads() else 0)
        for namespace in audit.correct():
            self._report("quota", namespace)

    def _report(self, kind: str, name: str) -> None:
        self._metrics.books_drift.labels(kind=kind).inc()
        log.error("sum corrected", error_code=error_codes.BOOKS_DRIFT, kind=kind, name=name)
