"""Pods that start together or not at all.

A gang is named by the pods themselves, which also say how many of them make it whole. They are of one namespace.

Source: the label of kubernetes-sigs/scheduler-plugins' coscheduling; the two annotations are our own.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gpu_sharing.core import error_codes, errors, quantities

NAME = "hami.io/gang"
SIZE = "hami.io/gang-size"
LABEL = "scheduling.x-k8s.io/pod-group"
GATE = "hami.io/gang"
"""The scheduling gate that keeps kube-scheduler from members until all of them have a place."""
MOST_MEMBERS = 1_000


class Gang(NamedTuple):
    """To which gang a pod says it belongs."""

    name: str
    size: int
    """How many pods that ask for GPUs it has, at least 1."""
    owner: str = ""
    """UID of the pod's controller, such as its Job; another run has another."""


def read(annotations: Mapping[str, str], labels: Mapping[str, str], owner: str = "") -> Gang | None:
    """The gang of a pod, or None.

    Raises:
        BadQuantity: It names a gang and no size, a size and no gang, or two gangs, or the size is no such number.
    """
    if NAME not in annotations and SIZE not in annotations and LABEL not in labels:
        return None
    named, grouped, size = annotations.get(NAME, "").strip(), labels.get(LABEL, ""), annotations.get(SIZE, "").strip()
    if named and grouped and named != grouped:
        raise errors.BadQuantity(
            error_codes.BAD_GANG, f"{NAME} says {named[:60]!r} and the label {LABEL} says {grouped[:60]!r}; remove one"
        )
    name = named or grouped
    if not name and not size:
        return None
    if not name:
        raise errors.BadQuantity(error_codes.BAD_GANG, f"{SIZE} is set without a gang; write {NAME}: its name")
    if not size:
        raise errors.BadQuantity(
            error_codes.BAD_GANG, f"the gang {name[:60]!r} has no size; write {SIZE}: the number of its pods"
        )
    count = quantities.count(SIZE, size)
    if not 1 <= count <= MOST_MEMBERS:
        raise errors.BadQuantity(error_codes.BAD_GANG, f"{SIZE}: {count} is outside 1 to {MOST_MEMBERS}")
    return Gang(name[:253], count, owner)
