"""Whose device ids are these, and what is its container to get? Pure: facts in, the answer or a doubt out.

The kubelet never says who asks. Its checkpoint does (with the pod's UID), its podresources API does (without UID, and
without plain init containers); the record of what a pod holds is the pod's annotation. All three must agree, else the
container is not started: an answer is only ever the asking container's own record.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from device_plugin.driver import gpu_source
from device_plugin.kubelet import checkpoint, podresources
from device_plugin.node import api_objects
from gpu_sharing.core import allocations, error_codes, errors, gpus, identifiers, records, requests


class StartRefused(Exception):
    """Why a container is not started.

    Attributes:
        code: For logs, events and the kubelet.
        retryable: Whether waiting a moment may help: a watch or the kubelet may lag.
    """

    def __init__(self, code: error_codes.Code, sentence: str, *, retryable: bool = False) -> None:
        super().__init__(sentence)
        self.code = code
        self.retryable = retryable

    @property
    def text(self) -> str:
        """What `kubectl describe pod` shows."""
        return f"{self.code}: {self}. {error_codes.REGISTRY[self.code].remedy}"


def entries_with(entries: Iterable[checkpoint.Entry], tokens: frozenset[str]) -> tuple[checkpoint.Entry, ...]:
    """The containers that were given just these ids: one, or an init container and the app container that reuses them.

    Raises:
        Doubt: None, or of several pods.
    """
    found = tuple(entry for entry in entries if entry.device_ids == tokens)
    if not found:
        raise StartRefused(
            error_codes.ALLOC_OWNER_UNKNOWN, "the kubelet's checkpoint does not have these device ids", retryable=True
        )
    if len({entry.pod_uid for entry in found}) > 1:
        raise StartRefused(
            error_codes.ALLOC_OWNER_UNKNOWN,
            "the kubelet's checkpoint gives these device ids to two pods",
            retryable=True,
        )
    return found


def compare_with_podresources(
    pod: api_objects.Pod,
    entries: Sequence[checkpoint.Entry],
    tokens: frozenset[str],
    listed: Iterable[podresources.ListedContainer],
) -> None:
    """Compare the checkpoint's owner with podresources.

    Raises:
        Doubt: They differ; or podresources does not list it (yet), although it lists containers of its kind.
    """
    owners = [one for one in listed if one.device_ids & tokens]
    for one in owners:
        if f"{one.namespace}/{one.pod}" != pod.key:
            raise StartRefused(
                error_codes.ALLOC_OWNER_CONFLICT,
                f"the checkpoint gives the device ids to {pod.key}, podresources to {one.namespace}/{one.pod}",
            )
    if owners:
        return
    plain = {one.name for one in pod.spec.init_containers or () if not one.restarts_always}
    if not all(entry.container in plain for entry in entries):
        raise StartRefused(error_codes.ALLOC_OWNER_UNKNOWN, f"podresources does not list {pod.key} yet", retryable=True)


def recorded_shares(
    pod: api_objects.Pod, container: str, count: int, node: str, names: requests.ResourceNames
) -> tuple[allocations.Share, ...]:
    """What the record promises a container that was given so many ids.

    Raises:
        Doubt: There is no record, it does not decode, is for another node or another number of GPUs.
    """
    found = pod.container(container)
    if found is None:
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
    mine = shares[found[0]]
    if len(mine) != count:
        raise StartRefused(
            error_codes.ALLOC_CORRUPT_RECORD,
            f"the record of {pod.key} gives container {container} {len(mine)} GPUs, the kubelet {count} device ids",
        )
    return mine


def recorded_devices(
    pod: api_objects.Pod, shares: Sequence[allocations.Share], devices: Mapping[identifiers.GpuUuid, gpu_source.Device]
) -> tuple[gpu_source.Device, ...]:
    """The GPUs of shares.

    Raises:
        Doubt: The node does not have one.
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
    """The last guard against a GPU that is promised twice, should two schedulers ever have bound at one time.

    The records are taken one after another by the core's rules, those of pods that have started first, then the
    oldest: what does not fit beside those before it is refused, and does not count for those after it.

    Args:
        pod: Whose container is to start.
        shares: What it is to get.
        holders: Who holds a GPU by their records, and what of it.
        inventory: What there is.

    Raises:
        Doubt: The pod's record does not fit beside the older ones.
    """
    for uuid in {share.uuid for share in shares}:
        before = allocations.NOTHING
        for other, booking in sorted(holders(uuid), key=lambda held: (not _has_started(held[0]), _age(held[0]))):
            found = gpus.conflicts(inventory[uuid], before, booking)
            if not found:
                before = before.plus(booking)
            elif other.uid == pod.uid:
                sentence = f"with {pod.key} the records promise of {uuid}: {', '.join(found)}"
                raise StartRefused(error_codes.ALLOC_OVERSUBSCRIBED, sentence)


def _has_started(pod: api_objects.Pod) -> bool:
    return pod.annotations.get(records.BIND_PHASE) == records.PHASE_SUCCESS


def _age(pod: api_objects.Pod) -> tuple[int, str]:
    time = pod.annotations.get(records.TIME, "")
    return (int(time) if time.isdecimal() else 0, pod.metadata.uid)


def candidates(
    everybody: Iterable[api_objects.Pod],
    entries: Iterable[checkpoint.Entry],
    count: int,
    node: str,
    names: requests.ResourceNames,
    *,
    taken: frozenset[tuple[identifiers.PodUid, str]] = frozenset(),
) -> list[tuple[api_objects.Pod, str, tuple[allocations.Share, ...]]]:
    """The containers that may be asking for so many ids, likeliest first; for runtimes without CDI.

    The kubelet allocates container by container, so of each pod only the first one that has nothing yet can ask.

    Args:
        everybody: The pods of this node.
        entries: What was allocated already.
        count: How many ids are asked for.
        node: This node.
        names: Under which names containers ask.
        taken: Containers that were answered and may not be in the checkpoint yet.
    """
    allocated = {(entry.pod_uid, entry.container) for entry in entries} | taken
    found = []
    for pod in sorted(everybody, key=_age):
        waiting = [
            one.name
            for one in pod.all_containers
            if requests.asks_for_gpu((one,), names) and (pod.uid, one.name) not in allocated
        ]
        if not waiting:
            continue
        try:
            found.append((pod, waiting[0], recorded_shares(pod, waiting[0], count, node, names)))
        except StartRefused:
            continue
    return found
