"""The device ids that the kubelet receives: opaque names, each of which can stand for any GPU of the node.

The kubelet allocates ids to containers without knowing the GPU of a pod's record, so an id must not name a GPU: the
record does. The number of free healthy ids is the number of containers that the node still accepts. Pure.

Source: kubelet's device manager (allocatable is the number of healthy ids; an id that is allocated still counts
against allocatable as its pod's request) and gRPC's receive limit there of 4 MiB.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpu_sharing.core import errors, gpus, identifiers

PREFIX = "slot-"
MOST_IDS = 60_000
MOST_BYTES = 4 * 1024 * 1024
_BYTES_BESIDE_ID = 16
"""Health and framing of one entry on the wire, rounded up."""


@dataclass(frozen=True, slots=True)
class DeviceId:
    """One id, as the kubelet receives it."""

    device_id: str
    healthy: bool


def ids_for(count: int) -> tuple[str, ...]:
    """Return the ids of a node with so many slots: the same ones at every start.

    Raises:
        SettingsError: There are more than a kubelet accepts.
    """
    width = max(len(str(count - 1)), 4)
    size = count * (len(PREFIX) + width + _BYTES_BESIDE_ID)
    if count > MOST_IDS or size > MOST_BYTES:
        raise errors.SettingsError(
            f"{count} slots are more than a kubelet accepts ({MOST_IDS} ids, 4 MiB): lower --device-split-count"
        )
    return tuple(f"{PREFIX}{number:04d}" for number in range(count))


def listing(
    inventory: Sequence[gpus.Gpu],
    held: Mapping[str, identifiers.GpuUuid | None],
    unhealthy: Iterable[identifiers.GpuUuid],
) -> tuple[DeviceId, ...]:
    """Return the list for the kubelet, by which allocatable minus requests is the number of free slots on healthy GPUs.

    Every held id counts as a request. An id that a container on an unhealthy GPU holds is unhealthy, which shows in
    that pod's status and takes it from allocatable, so that one more free id has to be healthy in its place.

    Args:
        inventory: The node's GPUs.
        held: Ids that containers hold, and the GPU by their record, which the node may no longer offer; None where
            there is no record.
        unhealthy: The GPUs that must not be used.

    Returns:
        The ids, also those that are still held from a time with more slots.

    Raises:
        SettingsError: There are more than a kubelet accepts.
    """
    unhealthy = frozenset(unhealthy)
    usable = {gpu.uuid for gpu in inventory} - unhealthy
    own = ids_for(sum(gpu.slots for gpu in inventory))
    usable_slots = sum(gpu.slots for gpu in inventory if gpu.uuid in usable)
    on_unhealthy = {device_id for device_id, uuid in held.items() if uuid in unhealthy}
    on_usable = sum(uuid is None or uuid in usable for uuid in held.values())
    healthy = max(usable_slots - on_usable, 0) + len(on_unhealthy)
    free = [device_id for device_id in own if device_id not in held]
    # Numbered from 0, because the kubelet allocates ids in any order and people read them from there.
    listed = [DeviceId(device_id, healthy=True) for device_id in free[:healthy]]
    listed += [DeviceId(device_id, healthy=False) for device_id in free[healthy : healthy + len(own) - usable_slots]]
    spare = (f"spare-{number:04d}" for number in itertools.count())
    unheld = (device_id for device_id in spare if device_id not in held)
    listed += [DeviceId(device_id, healthy=True) for device_id in itertools.islice(unheld, max(healthy - len(free), 0))]
    listed += [DeviceId(device_id, device_id not in on_unhealthy) for device_id in held]
    return tuple(sorted(listed, key=lambda one: one.device_id))
