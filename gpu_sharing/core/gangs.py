"""Pods that start together or not at all.

The pods name their gang. They also state its size, or their pod group does, an object with the minimum number of
members. All members are in one namespace.

Source: `spec.schedulingGroup` of k8s.io/api core/v1 and the PodGroup of scheduling/v1alpha2, Kubernetes 1.36; the label
and the PodGroup of kubernetes-sigs/scheduler-plugins' coscheduling; the two annotations are our own.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gpu_sharing.core import error_codes, errors, quantities

NAME = "hami.io/gang"
SIZE = "hami.io/gang-size"
LABEL = "scheduling.x-k8s.io/pod-group"
GATE = "hami.io/gang"
"""The scheduling gate that stops kube-scheduler from trying members until all of them fit."""
MOST_MEMBERS = 1_000
KUBERNETES, COSCHEDULING = "scheduling.k8s.io", "scheduling.x-k8s.io"
"""The two API groups that have a PodGroup."""


class Gang(NamedTuple):
    """The gang that a pod names."""

    name: str
    size: int
    """The number of members with GPU requests, at least 1; 0 where its pod group has the minimum number."""
    owner: str = ""
    """UID of the pod's controller, such as its Job; another run has another UID."""
    group: str = ""
    """API group of the pod group with its size, where the pod states none."""


def read(
    annotations: Mapping[str, str], labels: Mapping[str, str], owner: str = "", pod_group: str = ""
) -> Gang | None:
    """Return the gang of a pod, or None.

    Args:
        annotations: The pod's.
        labels: The pod's.
        owner: UID of its controller.
        pod_group: `spec.schedulingGroup.podGroupName`.

    Raises:
        BadQuantity: It names a gang without a size, a size without a gang, or two gangs, or the size is invalid.
    """
    if not pod_group and NAME not in annotations and SIZE not in annotations and LABEL not in labels:
        return None
    name, size = _name(annotations, labels, pod_group), annotations.get(SIZE, "").strip()
    if not name and not size:
        return None
    if not name:
        raise errors.BadQuantity(error_codes.BAD_GANG, f"{SIZE} is set without a gang; write {NAME}: its name")
    group = KUBERNETES if pod_group else COSCHEDULING if labels.get(LABEL) else ""
    if not size and group:
        return Gang(name[:253], 0, owner, group)
    if not size:
        raise errors.BadQuantity(
            error_codes.BAD_GANG, f"the gang {name[:60]!r} has no size; write {SIZE}: the number of its pods"
        )
    count = quantities.count(SIZE, size)
    if not 1 <= count <= MOST_MEMBERS:
        raise errors.BadQuantity(error_codes.BAD_GANG, f"{SIZE}: {count} is outside 1 to {MOST_MEMBERS}")
    return Gang(name[:253], count, owner)


def _name(annotations: Mapping[str, str], labels: Mapping[str, str], pod_group: str) -> str:
    """Return the name of a pod's gang, or an empty string.

    Raises:
        BadQuantity: The pod names two gangs.
    """
    names = {
        f"the annotation {NAME}": annotations.get(NAME, "").strip(),
        f"the label {LABEL}": labels.get(LABEL, ""),
        "spec.schedulingGroup": pod_group,
    }
    given = {where: name for where, name in names.items() if name}
    if len(set(given.values())) > 1:
        contradiction = " and ".join(f"{where} says {name[:60]!r}" for where, name in given.items())
        raise errors.BadQuantity(error_codes.BAD_GANG, f"{contradiction}; leave one")
    return next(iter(given.values()), "")
