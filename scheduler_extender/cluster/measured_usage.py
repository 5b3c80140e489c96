"""GPU utilization of nodes as the monitors measure it, for placing pods on nodes with idle GPUs.

Off by default: what is allocated decides. Where it is on, measured utilization has a weight beside the node policy. A
node without a recent measurement keeps its own score; so do all nodes while Prometheus does not answer.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import numpy as np
import structlog

from gpu_sharing.adapters import prometheus
from gpu_sharing.core import error_codes
from scheduler_extender.fleet import arrays
from scheduler_extender.settings import Settings

_EVERY_SECONDS = 15.0
_OLD_AFTER_SECONDS = 90.0
_ANSWER_WITHIN_SECONDS = 5.0
SERIES = "hami_gpu_utilization_percent"
QUERY = f"avg by (node) ({SERIES} and (time() - timestamp({SERIES}) < {_OLD_AFTER_SECONDS:g}))"
"""Prometheus answers a series for minutes after its monitor stopped, so the query checks the age of the sample."""

log = structlog.get_logger("usage")


class MeasuredUsage:
    """The last answer of Prometheus."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = settings.prometheus_url
        self._weight = settings.usage_weight
        self._clock = clock
        self._busy: Mapping[str, float] = {}
        self._learned_at = -_OLD_AFTER_SECONDS
        self._columns: tuple[int, arrays.Floats] | None = None
        self._is_known = True

    @property
    def counts(self) -> bool:
        """Whether measured use has any weight."""
        return bool(self._url) and self._weight > 0

    async def run(self) -> None:
        """Query periodically; ends only by cancellation."""
        while True:
            await self.ask()
            await asyncio.sleep(_EVERY_SECONDS)

    async def ask(self) -> None:
        """Query Prometheus once; without an answer the last one counts until it is old."""
        try:
            answer = await prometheus.query(self._url, QUERY, _ANSWER_WITHIN_SECONDS)
        except prometheus.NoAnswer as cause:
            if self._is_known:
                log.warning("usage unknown", error_code=error_codes.USAGE_UNKNOWN, cause=str(cause))
            self._is_known = False
            return
        self._is_known = True
        self.learn({labels["node"]: percent for labels, percent in answer if "node" in labels})

    def learn(self, percent: Mapping[str, float]) -> None:
        """Measured use of each node's GPUs, in percent; what is no such number counts as unknown."""
        self._busy = {node: value / 100 for node, value in percent.items() if 0 <= value <= 100}
        self._learned_at = self._clock()
        self._columns = None

    def weighed(self, values: arrays.Floats, known: arrays.Arrays) -> arrays.Floats:
        """The scores of all nodes with measured use counted in: idle is good. A node without a measure keeps its own.

        Args:
            values: `[columns]`, from 0 to 1.
            known: The cluster.
        """
        if not self.counts or self._clock() - self._learned_at > _OLD_AFTER_SECONDS:
            return values
        if self._columns is None or self._columns[0] != known.inventory_generation:
            busy = np.array([self._busy.get(name, np.nan) for name in known.names], np.float64)
            self._columns = (known.inventory_generation, busy)
        busy = self._columns[1]
        weighed: arrays.Floats = np.where(
            np.isnan(busy), values, (1 - self._weight) * values + self._weight * (1 - busy)
        )
        return weighed
