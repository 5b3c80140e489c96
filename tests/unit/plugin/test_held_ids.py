"""Which device ids count as held, by the kubelet's checkpoint and the pods of the node."""

import types
from typing import Any, cast

import pytest

from device_plugin.allocation.assignments import Assignments
from device_plugin.allocation.held_ids import HeldIds
from device_plugin.allocation.owners import Owners
from device_plugin.kubelet.checkpoint import Entry
from gpu_sharing.core import identifiers

ENTRY = Entry(identifiers.PodUid("ended"), "c", frozenset({"hami-0003"}), b"")


def held_ids(*, pods: dict[str, object], current: bool) -> HeldIds:
    checkpoint_file = types.SimpleNamespace(entries=lambda: (ENTRY,))
    node_pods = types.SimpleNamespace(by_uid=pods)
    owners = Owners(cast(Any, checkpoint_file), cast(Any, None), cast(Any, node_pods), lambda: current)
    share = types.SimpleNamespace(uuid=identifiers.GpuUuid("GPU-a"))
    return HeldIds(owners, cast(Assignments, types.SimpleNamespace(shares=lambda *_: (share,))))


@pytest.mark.parametrize(
    ("pods", "current", "held"),
    [
        ({"ended": object()}, True, {"hami-0003": "GPU-a"}),
        ({}, True, {}),
        ({}, False, {"hami-0003": None}),
    ],
    ids=["its pod is there", "its pod has ended", "the pods are not known"],
)
def test_ids_of_a_pod_that_has_ended_are_not_held(
    pods: dict[str, object], current: bool, held: dict[str, str | None]
) -> None:
    """The kubelet keeps them in its checkpoint for minutes: a node without a healthy GPU would offer one too many."""
    assert held_ids(pods=pods, current=current).gpus() == held
