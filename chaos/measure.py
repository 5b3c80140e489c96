"""What a scenario has shown, from when its pods were created and bound; pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GRACE_SECONDS = 2.0
"""A pod may be unbound for so long without counting as left behind."""


@dataclass(slots=True)
class PodTimes:
    """When a pod was created and bound, in seconds of one clock; None: not bound."""

    name: str
    created_at: float
    bound_at: float | None = None
    has_failed: bool = False
    """It never will be: the kubelet has failed it for good, and only its controller could create another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What was measured in one phase."""

    created: int
    bound_percent: float
    """Of the pods that were created in it, by its end and two seconds; 100 where there was none."""
    p50_seconds: float
    p95_seconds: float
    """From creation to binding, of the pods that were created in it, whenever they were bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured in a scenario."""

    name: str
    title: str
    replicas: int
    pods: int
    bound_percent: float
    steady: Phase
    fault: Phase
    recovery: Phase
    recovery_seconds: float | None
    """None: it did not recover."""
    lost: int
    """Pods without a node at the end."""
    repeated_bindings: int
    """Bindings that were sent for a pod that had one already: work done twice, without harm."""
    violations: Sequence[str]
    """What the API objects and the containers show that must never be."""
    failures: Sequence[str]
    """The expectations that do not hold."""


def phase(pods: Iterable[PodTimes], begin: float, end: float) -> Phase:
    """Measure the pods that were created from one moment to another."""
    own = [pod for pod in pods if begin <= pod.created_at < end]
    by_its_end = sum(1 for pod in own if pod.bound_at is not None and pod.bound_at <= end + GRACE_SECONDS)
    waits = sorted(pod.bound_at - pod.created_at for pod in own if pod.bound_at is not None)
    cuts = statistics.quantiles(waits, n=20, method="inclusive") if len(waits) > 1 else [*waits, *[0.0] * 19][:1] * 19
    return Phase(
        created=len(own),
        bound_percent=100.0 * by_its_end / len(own) if own else 100.0,
        p50_seconds=round(cuts[9], 3),
        p95_seconds=round(cuts[18], 3),
    )


def recovery_seconds(pods: Iterable[PodTimes], ended_at: float, until: float) -> float | None:
    """Return after how long the last pod was bound that had waited longer than two seconds.

    Args:
        pods: All pods.
        ended_at: From when it counts: mostly the end of the last fault.
        until: The end of the observation.

    Returns:
        The seconds, 0 if none waited; None if one still does.
    """
    latest = ended_at
    for pod in pods:
        due = pod.created_at + GRACE_SECONDS
        if pod.bound_at is None or pod.bound_at > until:
            if due < until and not pod.has_failed:
                return None
        elif pod.bound_at > max(due, ended_at):
            latest = max(latest, pod.bound_at)
    return round(latest - ended_at, 1)
