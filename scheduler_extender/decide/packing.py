"""Decides by what other requests can still use: the state behind the policy `fragmentation-aware`.

The mix of requests is learned from the pods that arrive. It is prepared beside the event loop now and then; in between
each decision reads it as it is. Whatever fails here costs no decision: the policy chooses by best fit then.
"""

import asyncio
from collections.abc import Callable

import structlog

from gpu_sharing.core import error_codes, identifiers, request_mix
from scheduler_extender import worker
from scheduler_extender.cluster import pending
from scheduler_extender.fleet import facts, node_reserve, prices
from scheduler_extender.fleet.arrays import Floats
from scheduler_extender.fleet.fragmentation import Fragmentation, Values
from scheduler_extender.fleet.ledger import Ledger

_FIRST_FITS, _FIT_EVERY = 50, 1000
"""The mix is prepared again after 50, 100, 200, … arrivals, then after each 1000."""
_LOOK_SECONDS = 1.0

log = structlog.get_logger("packing")


class Packing:
    """The mix of requests, and the values of placements by it.

    Attributes:
        mix: What arrives.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.mix = request_mix.RequestMix()
        self._ledger = ledger
        self._reserve = node_reserve.NodeReserve()
        self._fragmentation: Fragmentation | None = None
        self._is_used = False
        self._next_fit = 0
        self._fitted_for = -1
        self._is_broken = False

    def arrived(self, pod: pending.PendingPod) -> None:
        """Count a pod that is decided about for the first time."""
        shape = shape_of(pod)
        if shape is not None:
            self.mix.count(shape)

    def remember(self, mix: request_mix.RequestMix) -> None:
        """Take over what was learned before a restart; what has arrived since counts with it."""
        for shape, weight in self.mix.weights.items():
            mix.count(shape, weight)
        mix.arrivals = self.mix.arrivals
        self.mix = mix
        self._next_fit = 0

    @property
    def is_due(self) -> bool:
        """Whether the mix is to be prepared: the policy is used, and more has arrived or the cluster has other GPUs."""
        is_old = self.mix.arrivals >= self._next_fit or self._fitted_for != self._ledger.arrays.inventory_generation
        return self._is_used and is_old

    def fit(self) -> None:
        """Prepare the mix at once; it takes some tenths of a second."""
        self._fragmentation = self._question()()

    async def run(self, beside: worker.Worker) -> None:
        """Prepare the mix whenever that is due, for ever; ends only by cancellation."""
        while True:
            if self.is_due:
                try:
                    self._fragmentation = await beside.run(self._question())
                except worker.Busy:
                    pass  # The next look will do.
                except Exception:
                    self._note_defect()
            await asyncio.sleep(_LOOK_SECONDS)

    def node_values(self, pod: pending.PendingPod) -> Floats | None:
        """`[columns]`: how good each node is, in thousandths of a GPU; None where the policy cannot say."""
        values = self._values(shape_of(pod))
        return values.nodes if values else None

    def plain_values(self, asked: facts.HostAmounts) -> Floats | None:
        """The same for a pod without GPUs."""
        values = self._values(request_mix.Shape(0, host_cpu_milli=asked.cpu_milli, host_memory_mib=asked.memory_mib))
        return values.nodes if values else None

    def gpu_gains(self, pod: pending.PendingPod, name: identifiers.NodeName) -> dict[identifiers.GpuUuid, float]:
        """How good each GPU of a node is; empty where the policy cannot say."""
        known = self._ledger.node_facts(name)
        values = self._values(shape_of(pod), self._ledger.settle().column_of.get(name, 0)) if known else None
        if values is None or known is None:
            return {}
        return {gpu.uuid: gain for gpu, gain in zip(known.inventory, values.gpus[:, 0].tolist(), strict=False)}

    def _values(self, shape: request_mix.Shape | None, column: int | None = None) -> Values | None:
        self._is_used = True
        if shape is None or self._fragmentation is None:
            return None
        try:
            return self._fragmentation.values(shape, column)
        except Exception:
            self._note_defect()
            return None

    def _question(self) -> Callable[[], Fragmentation]:
        """What is to be computed, on values that do not change."""
        arrays, changes, shares = self._ledger.settle().snapshot(), self._ledger.changes, self.mix.shares()
        self._next_fit = max(min(2 * self.mix.arrivals, self.mix.arrivals + _FIT_EVERY), _FIRST_FITS)
        self._fitted_for = arrays.inventory_generation

        def compute() -> Fragmentation:
            prepared = prices.prepare(shares, prices.classes_of(arrays), prices.cpu_milli_per_gpu(arrays))
            return Fragmentation(self._ledger, prepared, self._reserve, arrays, changes)

        return compute

    def _note_defect(self) -> None:
        """Log the first defect; the policy goes on by best fit, and tries again."""
        if not self._is_broken:
            log.exception("best fit instead", error_code=error_codes.INTERNAL)
        self._is_broken = True


def shape_of(pod: pending.PendingPod) -> request_mix.Shape | None:
    """Return the shape of a pod's request; None for one that the policy places by best fit."""
    return request_mix.shape_of(pod.request, pod.traits.cpu_thousandths, pod.traits.memory_thousandths)
