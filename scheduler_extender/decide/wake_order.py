"""Which rejected pods to wake now that something became free.

kube-scheduler wakes all rejected pods when a bound pod changes, but its watch may be ahead of ours: it calls filter,
the pods are rejected by the old state, and no further event follows for minutes. So each rejected pod that fits now,
and for which filter was not called since, is woken alone. Pods that fit only in turn are woken in turn.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from gpu_sharing.core import identifiers, placement, quotas, requests
from scheduler_extender import set_aside
from scheduler_extender.cluster import pending
from scheduler_extender.decide.core import DecisionCore

_FEW_NODES = 8

_Place = tuple[identifiers.NodeName, placement.Placement]


def pods_to_wake(core: DecisionCore) -> Iterator[pending.PendingPod | None]:
    """Yield the pods to wake, most urgent first; a place is reserved for each for a while.

    None is yielded for each rejected pod that stays rejected, so that other tasks can have their turn after each.
    """
    ledger = core.ledger
    ledger.expire(core.clock())
    freed, relieved = ledger.take_freed(), ledger.quotas.take_relieved()
    if not (freed or relieved):
        return
    hopeless: set[tuple[str, requests.PodRequest]] = set()
    planned: dict[str, quotas.Amounts] = {}
    for entry, rejection in _rejected(core):
        yield None
        pod = entry.pod
        if entry.filter_rejection is not rejection or rejection.generation >= ledger.generation:
            continue  # It was asked about since.
        if isinstance(pod, pending.UnreadablePod):
            continue
        limited = pod.namespace if ledger.quotas.is_limited(pod.namespace) or pod.namespace in relieved else ""
        if (limited, pod.request) in hopeless:
            continue
        place = None
        with set_aside.guard("Pod", pod.key, core.metrics):
            place = _place(core, pod, None if pod.namespace in relieved else freed)
        more = planned.get(limited, quotas.NOTHING)
        if place is not None:
            more = more.plus(quotas.amounts(pod.request.kinds, place[1].shares))
        if place is None or ledger.quotas.excess(pod.namespace, more):
            if not pod.gang:  # A member may be rejected for its gang alone, which does not concern other pods.
                hopeless.add((limited, pod.request))
            continue
        planned[limited] = more
        ledger.nominate(core.placer.reservation(pod, *place, core.clock() + core.settings.nomination_seconds))
        entry.filter_rejection = None
        yield pod


def _rejected(core: DecisionCore) -> list[tuple[pending.Entry, pending.FilterRejection]]:
    rejected = [(entry, entry.filter_rejection) for entry in core.pending.entries() if entry.filter_rejection]
    return sorted(rejected, key=lambda one: (-one[0].pod.priority, one[1].generation))


def _place(core: DecisionCore, pod: pending.PendingPod, freed: frozenset[identifiers.NodeName] | None) -> _Place | None:
    """A place for the pod on one of the nodes where something became free, or with None on any."""
    names = sorted(freed) if freed is not None else None
    if names is None or len(names) > _FEW_NODES:
        arrays = core.ledger.settle()
        fitting = np.flatnonzero(core.placer.everywhere(pod.request).fitting.fits)
        fit = (arrays.names[column] for column in fitting)
        names = list(itertools.islice((name for name in fit if freed is None or name in freed), _FEW_NODES))
    for name in names:
        answer = core.placer.place_on(pod, name, nominations=True)
        if isinstance(answer, placement.Placement):
            return name, answer
    return None
