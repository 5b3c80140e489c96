"""What decides, made by one constructor: the extender, `hamictl simulate`, the tests and the benches all use it.

objects ─▶ mirror ─▶ ledger, pending pods ─▶ placer ─▶ verbs, victims, rejections, wake-ups
"""

import time
from collections.abc import Callable, Iterable

from gpu_sharing.core import identifiers
from scheduler_extender import worker
from scheduler_extender.cluster import pending
from scheduler_extender.cluster.measured_usage import MeasuredUsage
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import rejecting
from scheduler_extender.decide.placer import Placer
from scheduler_extender.decide.victims import Victims
from scheduler_extender.metrics import Metrics
from scheduler_extender.settings import Settings


class DecisionCore:
    """The cluster as it is known, and the rules that are applied to it.

    Attributes:
        settings: Of the process.
        metrics: Of the process.
        clock: Monotonic seconds.
        mirror: Follows the API server.
        ledger: What every pod holds; the mirror's.
        pending: The pods without a node; the mirror's.
        placer: Places one pod.
        usage: Measured utilization of nodes.
        victims: Which pods to evict for a pod.
        worker: Computes on immutable values beside the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self.mirror = Mirror(settings, metrics, clock, wall_clock)
        self.ledger = self.mirror.ledger
        self.pending = self.mirror.pending
        self.placer = Placer(self.ledger, settings, clock)
        self.usage = MeasuredUsage(settings, clock)
        self.victims = Victims(self.ledger, self.placer)
        self.worker = worker.Worker()

    def reject(self, pod: pending.AnyPod, offered: Iterable[identifiers.NodeName] = ()) -> pending.PodRejection:
        """Compute why no node takes a pod, and keep it as the pod's last rejection."""
        rejection = rejecting.pod_rejection(self.ledger, self.placer, pod, offered)
        self.pending.reject(pod, rejection)
        return rejection
