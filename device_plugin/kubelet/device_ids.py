"""The device ids that the kubelet sees: opaque tokens, any of which can stand for any GPU of the node.

The kubelet hands ids to containers without asking which GPU a pod's record names, so an id must not name one: the
record says which. What the ids do say is how many containers the node still takes. Pure.

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
    """One id as the kubelet is told it."""

    token: str
    healthy: bool


def ids_for(count: int) -> tuple[str, ...]:
    """The ids of a node with so many slots: the same ones at every start.

    Raises:
        SettingsError: There are more than a kubelet takes.
    """
    width = max(len(str(count - 1)), 4)
    size = count * (len(PREFIX) + width + _BYTES_BESIDE_ID)
    if count > MOST_IDS or size > MOST_BYTES:
        raise errors.SettingsError(
            f"{count} slots are more than a kubelet takes ({MOST_IDS} ids, 4 MiB): lower --device-split-count"
        )
    return tuple(f"{PREFIX}{number:04d}" for number in range(count))


def listing(
    inventory: Sequence[gpus.Gpu], held: Mapping[str, identifiers.GpuUuid | None], sick: Iterable[identifiers.GpuUuid]
) -> tuple[DeviceId, ...]:
    """What to tell the kubelet, so that allocatable minus requests is the number of free slots on healthy GPUs.

    Every held token counts as a request. One that a sick GPU's container holds is unhealthy, which shows in that
    pod's status and takes it from allocatable, so that one more free token has to be healthy in its place.

    Args:
        inventory: The node's GPUs.
        held: Tokens that containers hold, and the GPU by their record, which the node may no longer offer; None where
            there is no record.
        sick: The GPUs that must not be used.

    Returns:
        The tokens, those that are still held from a time with more slots among them.

    Raises:
        SettingsError: More than a kubelet takes.
    """
    sick = frozenset(sick)
    usable = {gpu.uuid for gpu in inventory} - sick
    own = ids_for(sum(gpu.slots for gpu in inventory))
    usable_slots = sum(gpu.slots for gpu in inventory if gpu.uuid in usable)
    on_sick = {token for token, uuid in held.items() if uuid in sick}
    on_usable = sum(uuid is None or uuid in usable for uuid in held.values())
    healthy = max(usable_slots - on_usable, 0) + len(on_sick)
    free = [token for token in own if token not in held]
    # From the start, because the kubelet takes ids in any order and people read them from there.
    listed = [DeviceId(token, healthy=True) for token in free[:healthy]]
    listed += [DeviceId(token, healthy=False) for token in free[healthy : healthy + len(own) - usable_slots]]
    spare = (f"spare-{number:04d}" for number in itertools.count())
    unheld = (token for token in spare if token not in held)
    listed += [DeviceId(token, healthy=True) for token in itertools.islice(unheld, max(healthy - len(free), 0))]
    listed += [DeviceId(token, token not in on_sick) for token in held]
    return tuple(sorted(listed, key=lambda one: one.token))
