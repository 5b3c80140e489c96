"""The series of the fault injection service."""

from collections.abc import Iterable

from gpu_sharing.adapters import metrics_registry
from gpu_sharing.core import faults


class Metrics(metrics_registry.Series):
    """What was injected and recovered, and what is in effect."""

    def __init__(self) -> None:
        super().__init__("fault-injector")
        self.injections = self.counter(
            "hami_fault_injections_total",
            "Faults that were injected, failed or refused (outcome), by kind.",
            ("kind", "outcome"),
        )
        self.recoveries = self.counter(
            "hami_fault_recoveries_total",
            "Faults that were recovered or failed to (outcome), by kind.",
            ("kind", "outcome"),
        )
        self._faults = self.gauge("hami_faults", "Recorded faults by kind and state.", ("kind", "state"))

    def show(self, recorded: Iterable[faults.Fault]) -> None:
        """Set the number of faults of each kind and state."""
        self._faults.clear()
        for fault in recorded:
            self._faults.labels(kind=fault.kind.name, state=fault.state.value).inc()
