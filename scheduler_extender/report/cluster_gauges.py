"""Gauges about the whole cluster: from the leader only, so that two replicas do not double every sum.

There is no series per GPU or per pod here: they come from the monitor of each node. What is counted is kept for some
seconds, so that scrapes cannot slow decisions down however many there are.
"""

import collections
import itertools
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import core as prometheus_core
from prometheus_client import registry

from gpu_sharing.core import error_codes
from scheduler_extender.cluster import pending
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import arrays, model_stats

_KEEP_SECONDS = 5.0
_LATELY = 500
"""The pods bound last whose shares stand for future requests."""
_MOST_SHAPES = 16
UNDECIDED = "UNDECIDED"
"""The reason of a pending pod that was not rejected."""

_MODEL = ("model",)
_QUOTA = ("namespace", "resource")
GAUGES = {
    "hami_scheduler_nodes": ("Nodes known.", ()),
    "hami_scheduler_gpus": ("GPUs known.", _MODEL),
    "hami_scheduler_gpus_usable": ("GPUs that new pods may be placed on.", _MODEL),
    "hami_scheduler_gpu_memory_bytes": ("GPU memory that may be allocated.", _MODEL),
    "hami_scheduler_gpu_memory_allocated_bytes": ("GPU memory allocated to pods, or reserved for one.", _MODEL),
    "hami_scheduler_gpu_slots": ("Containers that the GPUs may be shared by.", _MODEL),
    "hami_scheduler_gpu_slots_allocated": ("Containers that the GPUs are shared by.", _MODEL),
    "hami_scheduler_largest_free_bytes": ("The largest share of one GPU that would still fit.", _MODEL),
    "hami_scheduler_fragmentation_ratio": (
        "Part of the free GPU memory that is of no use to pods like the last 500 bound ones, 0 to 1.", _MODEL
    ),
    "hami_scheduler_pods_bound": ("Pods that hold GPUs.", ()),
    "hami_scheduler_pods_pending": (
        "Pods that request GPUs and have no node, by last rejection, or SCHED_GATED.", ("error_code",)
    ),
    "hami_scheduler_oldest_pending_pod_age_seconds": (
        "How long the oldest pending pod is pending, by last rejection; none that is gated or of another scheduler.",
        ("error_code",),
    ),
    "hami_scheduler_pods_assumed": ("Pods that we bound and the watch has not shown yet.", ()),
    "hami_scheduler_nominations": ("Pods for which GPUs are reserved between prioritize and bind.", ()),
    "hami_scheduler_quota_used": ("What a namespace's pods hold: GPUs, bytes, percent.", _QUOTA),
    "hami_scheduler_quota_limit": ("What they may hold.", _QUOTA),
}  # fmt: skip
"""Every gauge: its help text and its labels."""


class ClusterGauges(registry.Collector):
    """The gauges, counted at a scrape if the last count is old."""

    def __init__(
        self,
        core: DecisionCore,
        leads: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Join the parts.

        Args:
            core: The cluster as it is known.
            leads: Whether this replica reports for the cluster.
            clock: Monotonic seconds.
            wall_clock: Unix seconds, from which ages of pods are counted.
        """
        names = core.settings.resource_names
        self._core = core
        self._resources = (names.count, names.memory, names.cores)
        self._leads = leads
        self._clock = clock
        self._wall_clock = wall_clock
        self._counted: list[prometheus_core.Metric] = []
        self._counted_at = float("-inf")

    def collect(self) -> Iterable[prometheus_core.Metric]:
        """See `Collector`."""
        if not self._leads():
            return []
        now = self._clock()
        if now - self._counted_at >= _KEEP_SECONDS:
            self._counted, self._counted_at = list(self._count()), now
        return self._counted

    def _count(self) -> Iterable[prometheus_core.Metric]:
        families = {
            name: prometheus_core.GaugeMetricFamily(name, text, labels=labels)
            for name, (text, labels) in GAUGES.items()
        }
        ledger = self._core.ledger
        fleet = ledger.settle()
        for name, value in (
            ("hami_scheduler_nodes", fleet.live),
            ("hami_scheduler_pods_bound", ledger.pod_count),
            ("hami_scheduler_pods_assumed", ledger.assumed_count),
            ("hami_scheduler_nominations", ledger.nomination_count),
        ):
            families[name].add_metric((), value)
        self._count_models(families, fleet)
        self._count_pending(families)
        for namespace, held, limits in ledger.quotas.limited():
            for resource, unit, used, limit in zip(self._resources, (1, 1 << 20, 1), held, limits, strict=True):
                if limit is not None:
                    families["hami_scheduler_quota_used"].add_metric((namespace, resource), used * unit)
                    families["hami_scheduler_quota_limit"].add_metric((namespace, resource), limit * unit)
        return families.values()

    def _count_pending(self, families: Mapping[str, prometheus_core.GaugeMetricFamily]) -> None:
        now, ours = self._wall_clock(), self._core.settings.scheduler_name
        counts: collections.Counter[str] = collections.Counter({UNDECIDED: 0})
        ages: dict[str, float] = {UNDECIDED: 0.0}
        for entry in self._core.pending.entries():
            pod, reason = entry.pod, _reason(entry)
            counts[reason] += 1
            if entry.pending_since and not pod.gate_names and not pod.is_deleting and pod.scheduler_name == ours:
                ages[reason] = max(ages.get(reason, 0.0), now - entry.pending_since)
        for reason, count in counts.items():
            families["hami_scheduler_pods_pending"].add_metric([reason], count)
        for reason, age in ages.items():
            families["hami_scheduler_oldest_pending_pod_age_seconds"].add_metric([reason], age)

    def _count_models(self, families: Mapping[str, prometheus_core.GaugeMetricFamily], fleet: arrays.Arrays) -> None:
        for model in model_stats.by_model(fleet, self._lately()):
            values: dict[str, float | None] = {
                "hami_scheduler_gpus": model.gpus,
                "hami_scheduler_gpus_usable": model.usable,
                "hami_scheduler_gpu_memory_bytes": model.memory_mib << 20,
                "hami_scheduler_gpu_memory_allocated_bytes": model.memory_allocated_mib << 20,
                "hami_scheduler_gpu_slots": model.slots,
                "hami_scheduler_gpu_slots_allocated": model.slots_allocated,
                "hami_scheduler_largest_free_bytes": model.largest_free_mib << 20,
                "hami_scheduler_fragmentation_ratio": model.fragmentation,
            }
            for name, number in values.items():
                if number is not None:
                    families[name].add_metric([model.model], number)

    def _lately(self) -> dict[model_stats.ShareSize, int]:
        shapes = collections.Counter(
            model_stats.ShareSize(share.memory_mib, share.cores_percent)
            for pod in itertools.islice(self._core.ledger.latest_pods(), _LATELY)
            for shares in pod.shares
            for share in shares
        )
        return dict(shapes.most_common(_MOST_SHAPES))


def _reason(entry: pending.Entry) -> str:
    """Return why a pod is pending, as a label."""
    if entry.pod.gate_names:
        return error_codes.GATED
    return entry.rejection.code if entry.rejection else UNDECIDED
