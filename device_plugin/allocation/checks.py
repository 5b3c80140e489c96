"""Checks before a container starts: who owns the device ids, and what its record gives it. Pure.

The kubelet does not say which container asks. Its checkpoint does (with the pod's UID), and its podresources API does
(without UID, and without plain init containers); the record of a pod's shares is the pod's annotation. All three must
agree, or the container is not started: a container only ever gets the shares of its own record.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from device_plugin.driver import gpu_source
from device_plugin.kubelet import checkpoint, podresources
from device_plugin.kubelet.refusals import StartRefused
from device_plugin.node import api_objects
from gpu_sharing.core import allocations, error_codes, errors, gpus, identifiers, records, requests


def entries_with(entries: Iterable[checkpoint.Entry], device_ids: frozenset[str]) -> tuple[checkpoint.Entry, ...]:
    """Return the containers that have exactly these device ids: one, or an init and the app container that reuses them.

    Raises:
        StartRefused: No container has them, or containers of several pods do.
    """
    owners = tuple(entry for entry in entries if entry.device_ids == device_ids)
    if not owners:
        raise StartRefused(
            error_codes.ALLOC_OWNER_UNKNOWN, "the kubelet's checkpoint does not have these device ids", retryable=True
        )
    if len({entry.pod_uid for entry in owners}) > 1:
        raise StartRefused(
            error_codes.ALLOC_OWNER_UNKNOWN,
            "the kubelet's checkpoint gives these device ids to two pods",
            retryable=True,
        )
    return owners


def compare_with_podresources(
    pod: api_objects.Pod,
    entries: Sequence[checkpoint.Entry],
    device_ids: frozenset[str],
    listed: Iterable[podresources.ListedContainer],
) -> None:
    """Compare the checkpoint's owner with podresources.

    Raises:
        StartRefused: They differ; or podresources does not list the pod yet, although it lists containers of its kind.
    """
    owners = [one for one in listed if one.device_ids & device_ids]
    for owner in owners:
        if f"{owner.namespace}/{owner.pod}" != pod.key:
            raise StartRefused(
                error_codes.ALLOC_OWNER_CONFLICT,
                f"the checkpoint gives the device ids to {pod.key}, podresources to {owner.namespace}/{owner.pod}",
            )
    if owners:
        return
    plain = {one.name for one in pod.spec.init_containers or () if not one.restarts_always}
    if not all(entry.container in plain for entry in entries):
        raise StartRefused(error_codes.ALLOC_OWNER_UNKNOWN, f"podresources does not list {pod.key} yet", retryable=True)


def recorded_shares(
    pod: api_objects.Pod, container: str, count: int, node: str, *, names: requests.ResourceNames
) -> tuple[allocations.Share, ...]:
    """Return the shares that the record gives a container with this number of device ids.

    Raises:
        StartRefused: There is no record, it does not decode, is for another node or another number of GPUs.
    """
    placed = pod.container(container)
    if placed is None:
        raise StartRefused(error_codes.ALLOC_CORRUPT_RECORD, f"{pod.key} has no container {container}")
    try:
        shares = pod.shares(names)
    except errors.CorruptRecord as cause:
        raise StartRefused(error_codes.ALLOC_CORRUPT_RECORD, f"{pod.key}: {cause}") from cause
    if shares is None:
        raise StartRefused(error_codes.ALLOC_NO_RECORD, f"{pod.key} has no record of GPUs")
    if pod.annotations.get(records.NODE, node) != node:
        raise StartRefused(
            error_codes.ALLOC_WRONG_NODE, f"the record of {pod.key} is for {pod.annotations[records.NODE]}"
        )
    mine = shares[placed[0]]
    if len(mine) != count:
        raise StartRefused(
            error_codes.ALLOC_CORRUPT_RECORD,
            f"the record of {pod.key} gives container {container} {len(mine)} GPUs, the kubelet {count} device ids",
        )
    return mine


def recorded_devices(
    pod: api_objects.Pod, shares: Sequence[allocations.Share], devices: Mapping[identifiers.GpuUuid, gpu_source.Device]
) -> tuple[gpu_source.Device, ...]:
    """Return the GPUs of the shares.

    Raises:
        StartRefused: The node does not have one of them.
    """
    missing = [share.uuid for share in shares if share.uuid not in devices]
    if missing:
        raise StartRefused(
            error_codes.ALLOC_WRONG_NODE, f"the record of {pod.key} names {missing[0]}, which is not here"
        )
    return tuple(devices[share.uuid] for share in shares)


def refuse_oversubscription(
    pod: api_objects.Pod,
    shares: Iterable[allocations.Share],
    holders: Callable[[identifiers.GpuUuid], Sequence[tuple[api_objects.Pod, allocations.Allocation]]],
    inventory: Mapping[identifiers.GpuUuid, gpus.Gpu],
) -> None:
    """Refuse a record that gives more of a GPU than the older records leave, as after two schedulers bound at once.

    Records are added one after another by the core's rules, those of started pods first, then by age: a record that
    does not fit beside those before it is refused, and does not count for those after it.

    Args:
        pod: Pod of the container that is to start.
        shares: Shares of the container.
        holders: Returns the pods that hold a GPU by their records, with the allocation of each.
        inventory: The node's GPUs.

    Raises:
        StartRefused: The pod's record does not fit beside the older ones.
    """
    for uuid in {share.uuid for share in shares}:
        before = allocations.NOTHING
        for other, allocated in sorted(holders(uuid), key=lambda held: (not _has_started(held[0]), age(held[0]))):
            conflicts = gpus.conflicts(inventory[uuid], before, allocated)
            if not conflicts:
                before = before.plus(allocated)
            elif other.uid == pod.uid:
                sentence = f"with {pod.key} the records allocate of {uuid}: {', '.join(conflicts)}"
                raise StartRefused(error_codes.ALLOC_OVERSUBSCRIBED, sentence)


def _has_started(pod: api_objects.Pod) -> bool:
    return pod.annotations.get(records.BIND_PHASE) == records.PHASE_SUCCESS


def age(pod: api_objects.Pod) -> tuple[int, str]:
    """Return a sort key by which older records come first."""
    time = pod.annotations.get(records.TIME, "")
    return (int(time) if time.isdecimal() else 0, pod.metadata.uid)
