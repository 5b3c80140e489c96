"""Joins the driver's list of processes with the records of their pods: what each share uses. Pure."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from device_plugin.driver import gpu_source
from device_plugin.monitor import cgroups, shared_region
from device_plugin.node.api_objects import Pod
from gpu_sharing.core import allocations, errors, identifiers, records, requests

_DRIVERS_OWN_BYTES, _DRIVERS_OWN_PERCENT = 1 << 30, 2
"""Memory of a GPU that may be used although no listed process uses it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of one GPU."""

    usage: gpu_source.Usage
    taken_at: float
    """Monotonic seconds."""
    owners: Mapping[int, cgroups.ContainerOfProcess] = field(default_factory=dict)
    """The container of each process that runs in one."""

    @property
    def lists_all_processes(self) -> bool:
        """Whether the driver lists every process, so that a container without a process in the list uses nothing.

        False where the driver has no list, and where far more memory is used than the listed processes use: then some
        are hidden. Memory of the driver itself (page tables, firmware, reserved memory) belongs to no process either:
        some hundred MiB, more on large GPUs, but under 2 % of the memory.
        """
        usage = self.usage
        if not usage.lists_processes:
            return False
        amounts = [one.memory_bytes for one in usage.processes]
        if None in amounts or usage.memory_total_bytes is None or usage.memory_used_bytes is None:
            return True  # The difference may be processes of unknown size, or the used memory is not known.
        own = max(_DRIVERS_OWN_BYTES, usage.memory_total_bytes * _DRIVERS_OWN_PERCENT // 100)
        return usage.memory_used_bytes - sum(one or 0 for one in amounts) <= own


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareUsage:
    """One share of a container, of a GPU or a MIG instance: what is allocated and what is used."""

    namespace: str
    pod: str
    container: str
    position: int
    """Position among the shares of the container."""
    gpu: identifiers.GpuUuid
    memory_bytes: int
    """Allocated memory, in bytes."""
    cores_percent: int
    """Allocated compute; 0 is no limit."""
    used_bytes: int | None
    """None where it is not known."""
    utilization_percent: float | None
    """Of the whole GPU; None where it is not known."""


Region = Mapping[identifiers.GpuUuid, shared_region.Counted]
"""Counts of a container's HAMi-core library, by GPU."""


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """All shares of a node, and the memory that belongs to none."""

    shares: tuple[ShareUsage, ...]
    unattributed_bytes: Mapping[identifiers.GpuUuid, int]
    """Memory of processes without a share: of the host, of pods without a record, or of containers not known yet.
    Without the GPUs whose processes are not known."""
    allocated: Mapping[identifiers.GpuUuid, allocations.Allocation] = field(default_factory=dict)
    """What pods hold of each GPU, as the scheduler and the device plugin count it: init containers and apps once."""


def usage_of_shares(
    all_pods: Sequence[Pod],
    names: requests.ResourceNames,
    samples: Mapping[identifiers.GpuUuid, Sample],
    instances: Mapping[tuple[identifiers.GpuUuid, int], str],
    *,
    region_of: Callable[[Pod, str], Region],
    sees_processes: bool = True,
) -> NodeUsage:
    """Return the use of every share of the node.

    Args:
        all_pods: The pods of the node.
        names: The resource names under which containers request GPUs.
        samples: The latest sample of each GPU that is not stale.
        instances: The UUID of each MIG instance, by GPU and first MIG slice.
        region_of: Counts of a container's library. The tenant can write them, so the driver's values come first.
        sees_processes: Whether this process is in the host's PID namespace, without which no processes are listed.
    """
    processes = _by_container(all_pods, samples) if sees_processes else {}
    attributed: set[tuple[identifiers.GpuUuid, int]] = set()
    usages = []
    for pod, container, place, share, mig in _recorded_shares(all_pods, names):
        mine = processes.get((pod.uid, container, share.uuid), ())
        attributed |= {(share.uuid, process.pid) for process in mine}
        sample = samples.get(share.uuid)
        used = utilization = None
        if sample is not None and mig is not None:
            used = sample.usage.mig_used_bytes.get(mig.mig_uuid or instances.get((share.uuid, mig.start), ""))
        elif sample is not None:
            complete = sees_processes and sample.lists_all_processes
            used, utilization = _used(mine, region_of(pod, container).get(share.uuid), complete=complete)
        usages.append(_share_usage(pod, container, place, share, used, utilization))
    unattributed = _unattributed(samples, attributed) if sees_processes else {}
    return NodeUsage(tuple(usages), unattributed, _allocated(all_pods, names))


def _share_usage(
    pod: Pod, container: str, place: int, share: allocations.Share, used: int | None, utilization: float | None
) -> ShareUsage:
    return ShareUsage(
        namespace=pod.metadata.namespace,
        pod=pod.metadata.name,
        container=container,
        position=place,
        gpu=share.uuid,
        memory_bytes=share.memory_mib << 20,
        cores_percent=share.cores_percent,
        used_bytes=used,
        utilization_percent=utilization,
    )


def _recorded_shares(
    pods: Iterable[Pod], names: requests.ResourceNames
) -> Iterator[tuple[Pod, str, int, allocations.Share, records.MigShare | None]]:
    """Yield each share of each container: its pod, the container's name, its position, and its MIG instance."""
    for pod in pods:
        for position, container in enumerate(pod.all_containers):
            migs = records.mig_shares(pod.annotations.get(records.MIG_ALLOCATIONS, ""), position)
            for place, share in enumerate(_shares(pod, names, position)):
                yield pod, container.name, place, share, migs[place] if place < len(migs) else None


def _unattributed(
    samples: Mapping[identifiers.GpuUuid, Sample], attributed: Container[tuple[identifiers.GpuUuid, int]]
) -> dict[identifiers.GpuUuid, int]:
    """Return the memory of processes that belong to no share, by GPU."""
    return {
        uuid: sum(
            process.memory_bytes or 0 for process in sample.usage.processes if (uuid, process.pid) not in attributed
        )
        for uuid, sample in samples.items()
        if sample.usage.lists_processes
    }


def _allocated(
    all_pods: Iterable[Pod], names: requests.ResourceNames
) -> dict[identifiers.GpuUuid, allocations.Allocation]:
    together: dict[identifiers.GpuUuid, allocations.Allocation] = {}
    for pod in all_pods:
        for uuid, allocation in pod.allocated(names).items():
            together[uuid] = together.get(uuid, allocations.NOTHING).plus(allocation)
    return together


def _shares(pod: Pod, names: requests.ResourceNames, position: int) -> Sequence[allocations.Share]:
    try:
        shares = pod.shares(names)
    except errors.CorruptRecord:
        return ()
    return shares[position] if shares else ()


def _by_container(
    all_pods: Sequence[Pod], samples: Mapping[identifiers.GpuUuid, Sample]
) -> Mapping[tuple[identifiers.PodUid, str, identifiers.GpuUuid], list[gpu_source.Process]]:
    """Return the processes of each container on each GPU."""
    names = {pod.uid: dict(_container_names(pod)) for pod in all_pods}
    processes: dict[tuple[identifiers.PodUid, str, identifiers.GpuUuid], list[gpu_source.Process]] = {}
    for uuid, sample in samples.items():
        for process in sample.usage.processes:
            owner = sample.owners.get(process.pid)
            name = names.get(owner.pod, {}).get(owner.container_id) if owner else None
            if owner and name is not None:
                processes.setdefault((owner.pod, name, uuid), []).append(process)
    return processes


def _container_names(pod: Pod) -> Iterator[tuple[str, str]]:
    for status in pod.all_statuses:
        yield status.container_id.rpartition("/")[2], status.name


def _used(
    mine: Sequence[gpu_source.Process], counted: shared_region.Counted | None, *, complete: bool
) -> tuple[int | None, float | None]:
    """Return memory and utilization of a container on one GPU: by the driver, else by its library, else None.

    Args:
        mine: The container's processes.
        counted: Counts of its library.
        complete: Whether the driver lists every process.
    """
    memory = [one.memory_bytes for one in mine if one.memory_bytes is not None]
    busy = [one.utilization_percent for one in mine if one.utilization_percent is not None]
    used: int | None = sum(memory)
    share: float | None = min(sum(busy), 100.0)
    unlisted = not mine and not complete
    if unlisted or len(memory) < len(mine):
        used = counted.memory_bytes if counted else None
    if unlisted or len(busy) < len(mine):
        share = counted.utilization_percent if counted else None
    return used, share
