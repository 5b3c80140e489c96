"""The GPU request of a pod, read from its containers' resources and its annotations.

A request that does not parse is never read as "no GPU": it becomes an `InvalidRequest`, which every node rejects with
the sentence that says what to write.

Source: HAMi v2.10, `pkg/device/nvidia/device.go` and `pkg/scheduler/config/config.go`, for names and defaults.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gpu_sharing.core import (
    allocations,
    error_codes,
    errors,
    gangs,
    gpus,
    near_misses,
    policies,
    quantities,
    records,
)

USE_TYPE = "nvidia.com/use-gputype"
NOUSE_TYPE = "nvidia.com/nouse-gputype"
USE_UUID = "nvidia.com/use-gpuuuid"
NOUSE_UUID = "nvidia.com/nouse-gpuuuid"
NUMA_BIND = "nvidia.com/numa-bind"
MODE = "nvidia.com/vgpu-mode"
NODE_POLICY = "hami.io/node-scheduler-policy"
GPU_POLICY = "hami.io/gpu-scheduler-policy"
SCORING_WEIGHTS = "hami.io/device-scoring-weights"
NUMA_ALIGNMENT = "hami.io/numa-alignment"

LIMIT_RANGER = "kubernetes.io/limit-ranger"
"""The annotation in which Kubernetes lists the defaults of a LimitRange that it added to a pod."""

OWN = frozenset(
    {
        USE_TYPE,
        NOUSE_TYPE,
        USE_UUID,
        NOUSE_UUID,
        NUMA_BIND,
        MODE,
        NODE_POLICY,
        GPU_POLICY,
        SCORING_WEIGHTS,
        NUMA_ALIGNMENT,
    }
) | {gangs.NAME, gangs.SIZE}
"""The annotations that a pod's owner may write."""
_ANNOTATIONS = OWN | records.OF_PODS
PREFIXES = ("nvidia.com/", "hami.io/")
"""Of names that resemble ours: a misspelled one has no effect."""
_MOST_UNKNOWN, _MOST_TOLD = 20, 5

_MODES = ("", "hami-core", "mps", gpus.MIG_MODE)
_LONGEST_LIST = 64
"""Items in a list annotation; more than any cluster has GPU models."""
_MOST_GPU_CONTAINERS = 16
"""Containers of a pod that request GPUs: each costs a pass over all nodes before kube-scheduler is answered."""
_MOST_DEVICE_IDS = gpus.MOST_GPUS * gpus.MOST_SLOTS
"""Device ids that a node can offer."""

_Policy = TypeVar("_Policy", policies.NodePolicy, policies.GpuPolicy, policies.Weights)


@dataclass(frozen=True, slots=True)
class Defaults:
    """The defaults of a container's request; settings, with HAMi's names and meaning."""

    gpus: int = 1
    """The count that the webhook writes where only memory or cores are requested."""
    memory_mib: int = 0
    """Memory where neither MiB nor a percentage is requested; 0 is all of it."""
    cores_percent: int = 0
    """Cores where none are requested; 0 is no limit, or all of them where all memory is requested."""


@dataclass(frozen=True, slots=True)
class ResourceNames:
    """The names of the GPU resources, and the defaults of requests; settings, because clusters differ in them."""

    count: str = "nvidia.com/gpu"
    memory: str = "nvidia.com/gpumem"
    memory_percent: str = "nvidia.com/gpumem-percentage"
    cores: str = "nvidia.com/gpucores"
    priority: str = "nvidia.com/priority"
    defaults: Defaults = Defaults()

    def managed(self) -> tuple[str, ...]:
        """The resources that mark a pod as ours."""
        return (self.count, self.memory, self.memory_percent, self.cores)

    def known(self) -> frozenset[str]:
        """Every resource that is read here."""
        return frozenset((*self.managed(), self.priority))


class ContainerSpec(Protocol):
    """The part of a container that a request is read from."""

    @property
    def name(self) -> str:
        """The container's name, unique in its pod."""

    @property
    def limits(self) -> Mapping[str, quantities.Raw]:
        """The container's `resources.limits`."""

    @property
    def requests(self) -> Mapping[str, quantities.Raw]:
        """`resources.requests`."""

    @property
    def restarts_always(self) -> bool:
        """Whether an init container is a sidecar (`restartPolicy: Always`)."""


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """The request of one container, for each of `gpus` distinct GPUs."""

    gpus: int
    """The number of GPUs, at least 1."""
    memory_mib: int = 0
    """Memory of each GPU in MiB; 0 where `memory_percent` is set."""
    memory_percent: int = 0
    """Memory of each GPU in percent of what it advertises, rounded down; 100 is all of it."""
    cores_percent: int = 0
    """Compute of each GPU in percent; 0 is no limit, 100 is an exclusive GPU."""

    @property
    def exclusive(self) -> bool:
        """Whether the container requests exclusive GPUs."""
        return self.cores_percent >= 100

    def memory_on(self, gpu_memory_mib: int) -> int:
        """Return the requested memory of a GPU of that size, in MiB."""
        return self.memory_mib or gpu_memory_mib * self.memory_percent // 100

    @property
    def memory_words(self) -> str:
        """Return the requested memory as events print it."""
        return f"{self.memory_mib}MB" if self.memory_mib else f"{self.memory_percent}%"


@dataclass(frozen=True, slots=True)
class Selectors:
    """The GPUs that a pod accepts, regardless of what is free."""

    use_types: tuple[str, ...] = ()
    """Lower-case substrings of a GPU's type, at least one must occur; empty accepts all."""
    nouse_types: tuple[str, ...] = ()
    use_uuids: tuple[str, ...] = ()
    nouse_uuids: tuple[str, ...] = ()
    mode: str = ""
    """The sharing mode the GPU must run in; empty is any but MIG."""

    def accept_type(self, gpu_type: str) -> bool:
        """Whether a GPU of that type may be used."""
        lower = gpu_type.lower()
        wanted = not self.use_types or any(part in lower for part in self.use_types)
        return wanted and not any(part in lower for part in self.nouse_types)

    def accept_uuid(self, uuid: str) -> bool:
        """Whether that GPU may be used."""
        return (not self.use_uuids or uuid in self.use_uuids) and uuid not in self.nouse_uuids

    def accept_mode(self, gpu_mode: str) -> bool:
        """Whether a GPU that runs in that mode may be used; MIG only ever when requested."""
        return gpu_mode == self.mode or (gpu_mode != gpus.MIG_MODE and (not self.mode or not gpu_mode))


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRequest:
    """The GPU request of a pod. Hashable: pods with equal requests share one computation."""

    kinds: tuple[allocations.Kind, ...]
    """One per container, init containers first, then app containers."""
    containers: tuple[GpuRequest | None, ...]
    """One per container; None for one without GPU."""
    selectors: Selectors = Selectors()
    node_policy: policies.NodePolicy | None = None
    """The pod's own choice; None leaves it to the setting."""
    gpu_policy: policies.GpuPolicy | None = None
    weights: policies.Weights | None = None
    """The weights of the GPU policy; None for equal weights."""
    numa_bind: bool = False
    """Whether all GPUs of a container have to be on one NUMA node."""
    warnings: tuple[str, ...] = ()
    """Warnings about values that were read in another way than they may have been meant."""

    @property
    def wants_gpu(self) -> bool:
        """Whether any container requests a GPU."""
        return any(self.containers)

    def gpu_policy_or(self, default: policies.GpuPolicy) -> policies.GpuPolicy:
        """Return the GPU policy: the pod's own, or the default, with the pod's weights."""
        policy = self.gpu_policy or default
        return policy if self.weights is None else dataclasses.replace(policy, weights=self.weights)

    @property
    def slots(self) -> int:
        """Device ids that kubelet and kube-scheduler count for the pod: the most at any one time."""
        return max(
            sum(ask.gpus for position in phase if (ask := self.containers[position]))
            for phase in allocations.phases(self.kinds)
        )

    @property
    def gpus(self) -> int:
        """The largest number of GPUs that one container requests."""
        return max((ask.gpus for ask in self.containers if ask), default=0)


@dataclass(frozen=True, slots=True)
class InvalidRequest:
    """A request that fits on no node until it is corrected."""

    code: error_codes.Code
    sentence: str
    """The error, and what to write instead."""

    def __str__(self) -> str:
        return self.sentence


def asks_for_gpu(containers: Sequence[ContainerSpec], names: ResourceNames) -> bool:
    """Whether any container names a managed resource, well-formed or not."""
    managed = names.managed()
    return any(name in spec.limits or name in spec.requests for spec in containers for name in managed)


def read(
    init_containers: Sequence[ContainerSpec],
    containers: Sequence[ContainerSpec],
    annotations: Mapping[str, str],
    names: ResourceNames,
    *,
    counts_follow: bool = False,
) -> PodRequest | InvalidRequest:
    """Read what a pod requests.

    Args:
        init_containers: In the order they run.
        containers: The app containers.
        annotations: The pod's own.
        names: The resource names by which containers request GPUs.
        counts_follow: Whether the caller writes the default count where a container has none, as the webhook does.
            Else such a container is rejected: the kubelet would call no plugin for it, and start it without a GPU.
    """
    every = (*init_containers, *containers)
    warnings = unknown_words(every, annotations, names)
    if LIMIT_RANGER in annotations:
        warnings = [*_from_limit_ranges(annotations, names), *warnings]
    count = names.defaults.gpus if counts_follow else None
    try:
        _refuse_too_many(every, names)
        _align_numa(annotations, warnings)
        return PodRequest(
            kinds=kinds_of(init_containers, containers),
            containers=tuple(_container(spec, names, count, warnings) for spec in every),
            selectors=_selectors(annotations),
            node_policy=_policy(annotations, NODE_POLICY, policies.node_policy),
            gpu_policy=_policy(annotations, GPU_POLICY, policies.gpu_policy),
            weights=_policy(annotations, SCORING_WEIGHTS, policies.weights),
            numa_bind=_numa_bind(annotations),
            warnings=tuple(warnings),
        )
    except errors.BadQuantity as refused:
        return InvalidRequest(refused.code, refused.sentence)


def device_ids(
    init_containers: Sequence[ContainerSpec], containers: Sequence[ContainerSpec], names: ResourceNames
) -> int:
    """Return how many device ids the kubelet allocates to a pod, by its counts, whichever scheduler bound it.

    A count that is unreadable, or beyond any node, counts as at least one and at most all ids of a node. A pod that
    requests more memory or cores than any node has counts as all ids of a node: the kubelet adds these amounts up, and
    would fail pods that are placed beside it.
    """

    def ids(spec: ContainerSpec) -> int:
        asked = {**spec.requests, **spec.limits}
        try:
            for name in (names.memory, names.memory_percent, names.cores, names.priority):
                quantities.memory_mib(name, asked.get(name, 0), most=gpus.MOST_MEMORY_MIB)
        except errors.BadQuantity as refused:
            if refused.code == error_codes.REQUEST_TOO_LARGE:
                return _MOST_DEVICE_IDS
        try:
            return min(quantities.count(names.count, asked.get(names.count, 0)), _MOST_DEVICE_IDS)
        except errors.BadQuantity:
            return 1

    each = [ids(spec) for spec in (*init_containers, *containers)]
    return max(
        sum(each[position] for position in phase) for phase in allocations.phases(kinds_of(init_containers, containers))
    )


def unknown_words(
    containers: Iterable[ContainerSpec], annotations: Mapping[str, str], names: ResourceNames
) -> list[str]:
    """Return warnings for annotations and resources that resemble ours and have no effect, with the likely names."""
    known, warnings = _known(names), []
    for key in itertools.islice(_unknown(annotations, _ANNOTATIONS), _MOST_UNKNOWN):
        if key in known:
            warnings.append(f"annotation {key} has no effect: it is a resource, write it under resources.limits")
        elif meant := near_misses.closest(key, OWN):
            warnings.append(f"annotation {key} has no effect: the known one is {meant}")
        elif meant := near_misses.closest(key, known):
            warnings.append(f"annotation {key} has no effect: write the resource {meant} under resources.limits")
    warnings += [
        f"container {one.name}: resource {key} has no effect: the known one is {meant}"
        for one in containers
        for key in itertools.islice(_unknown((*one.limits, *one.requests), known, _prefixes(names)), _MOST_UNKNOWN)
        if (meant := near_misses.closest(key, known))
    ]
    return list(dict.fromkeys(warnings))[:_MOST_TOLD]


def meant_resource(key: str, names: ResourceNames) -> str:
    """Return the resource that was probably meant by one without effect; empty for a known one, and for others."""
    known = _known(names)
    return near_misses.closest(key, known) if _unknown((key,), known, _prefixes(names)) else ""


def _unknown(keys: Iterable[str], known: frozenset[str], prefixes: tuple[str, ...] = PREFIXES) -> list[str]:
    return [key for key in keys if key not in known and near_misses.has_near_prefix(key, prefixes)]


@functools.lru_cache(maxsize=8)
def _known(names: ResourceNames) -> frozenset[str]:
    return names.known()


@functools.lru_cache(maxsize=8)
def _prefixes(names: ResourceNames) -> tuple[str, ...]:
    """The prefixes of our resources, which a setting may rename."""
    return tuple(sorted({*PREFIXES, *(f"{name.partition('/')[0]}/" for name in names.known())}))


def mode(annotations: Mapping[str, str]) -> str:
    """Return the sharing mode that a pod requests, as `Selectors.mode` spells it; empty where it requests none."""
    return annotations.get(MODE, "").strip().lower()


def kinds_of(
    init_containers: Sequence[ContainerSpec], containers: Sequence[ContainerSpec]
) -> tuple[allocations.Kind, ...]:
    """Return when each container runs, init containers first."""
    kind = allocations.Kind
    return (
        *(kind.SIDECAR if spec.restarts_always else kind.INIT for spec in init_containers),
        *(kind.APP for _ in containers),
    )


def _container(
    spec: ContainerSpec, names: ResourceNames, default_count: int | None, warnings: list[str]
) -> GpuRequest | None:
    def asked(name: str) -> quantities.Raw:
        return spec.limits[name] if name in spec.limits else spec.requests.get(name)

    def label(name: str) -> str:
        return f"container {spec.name}: {name}"

    raw_count, raw_memory = asked(names.count), asked(names.memory)
    raw_percent, raw_cores = asked(names.memory_percent), asked(names.cores)
    if raw_count is None and raw_memory is None and raw_percent is None and raw_cores is None:
        return None
    count, most_mib = default_count or 1, gpus.MOST_MEMORY_MIB
    if raw_count is not None:
        count = quantities.count(label(names.count), raw_count, most=gpus.MOST_GPUS)
    memory_mib = 0 if raw_memory is None else quantities.memory_mib(label(names.memory), raw_memory, most=most_mib)
    percent = 0 if raw_percent is None else quantities.percent(label(names.memory_percent), raw_percent, lowest=1)
    cores = 0 if raw_cores is None else quantities.percent(label(names.cores), raw_cores, lowest=0)
    if count == 0:
        if memory_mib or percent or cores:
            raise errors.BadQuantity(
                error_codes.CONTRADICTORY_REQUEST,
                f"{label(names.count)} is 0, but memory or cores are requested; write {names.count}: 1 or remove them",
            )
        return None
    if raw_count is None and not (memory_mib or percent or cores):
        return None
    if raw_count is None and default_count is None:
        raise errors.BadQuantity(
            error_codes.NO_GPU_COUNT,
            f"container {spec.name} requests memory or cores of a GPU and no GPU; write {names.count}: 1",
        )
    if memory_mib and percent:
        warnings.append(f"{label(names.memory_percent)} is ignored, because {names.memory} is set")
        percent = 0
    return _with_defaults(count, memory_mib, percent, cores, names.defaults)


def _with_defaults(count: int, memory_mib: int, percent: int, cores: int, defaults: Defaults) -> GpuRequest:
    """Return the request with the defaults for values of 0."""
    if not memory_mib and not percent:
        memory_mib = defaults.memory_mib
    cores = cores or defaults.cores_percent
    if not cores and not memory_mib and percent in (0, 100):
        cores = 100  # A request of all memory without cores has always meant exclusive use.
    return GpuRequest(count, memory_mib, 0 if memory_mib else percent or 100, cores)


def _refuse_too_many(every: Sequence[ContainerSpec], names: ResourceNames) -> None:
    if len(every) <= _MOST_GPU_CONTAINERS:
        return
    asking = sum(asks_for_gpu((spec,), names) for spec in every)
    if asking > _MOST_GPU_CONTAINERS:
        raise errors.BadQuantity(
            error_codes.REQUEST_TOO_LARGE,
            f"{asking} containers request GPUs; write at most {_MOST_GPU_CONTAINERS} in one pod",
        )


def _from_limit_ranges(annotations: Mapping[str, str], names: ResourceNames) -> list[str]:
    """Return what a LimitRange made containers request; with one, every container becomes a GPU container.

    Source: Kubernetes' admission plugin LimitRanger, which lists what it set in an annotation.
    """
    text = annotations.get(LIMIT_RANGER, "").partition(":")[2]
    resources_of: dict[str, list[str]] = {}
    for part in text.split(";"):
        resources, _, container = part.partition(" for ")
        listed = {word.strip() for word in resources.rpartition(" ")[0].split(",")}
        for name in names.managed():
            if name in listed and name not in resources_of.setdefault(container.strip(), []):
                resources_of[container.strip()].append(name)
    return [
        f"{container} requests {', '.join(set_)} by a LimitRange of the namespace, not by itself"
        for container, set_ in resources_of.items()
        if set_
    ]


def _selectors(annotations: Mapping[str, str]) -> Selectors:
    wished = mode(annotations)
    if wished not in _MODES:
        raise errors.BadQuantity(
            error_codes.UNKNOWN_POLICY,
            f"{MODE}: {wished[:40]!r} is not a mode in which GPUs are shared; write hami-core, mps or mig",
        )
    wishes = Selectors(
        use_types=tuple(item.lower() for item in _list(annotations, USE_TYPE)),
        nouse_types=tuple(item.lower() for item in _list(annotations, NOUSE_TYPE)),
        use_uuids=_list(annotations, USE_UUID),
        nouse_uuids=_list(annotations, NOUSE_UUID),
        mode=wished,
    )
    _refuse_contradiction(USE_TYPE, wishes.use_types, NOUSE_TYPE, wishes.nouse_types)
    _refuse_contradiction(USE_UUID, wishes.use_uuids, NOUSE_UUID, wishes.nouse_uuids)
    excluding = [next((no for no in wishes.nouse_types if no in use), "") for use in wishes.use_types]
    if excluding and all(excluding):
        use, no = wishes.use_types[0], excluding[0]
        raise errors.BadQuantity(
            error_codes.CONTRADICTORY_REQUEST,
            f"{NOUSE_TYPE}: {no[:60]!r} is a part of {use[:60]!r} in {USE_TYPE}, so that it excludes every GPU that is "
            f"requested; write more of the name, or remove it",
        )
    return wishes


def _refuse_contradiction(use: str, wanted: Sequence[str], nouse: str, unwanted: Sequence[str]) -> None:
    both = [item for item in wanted if item in unwanted]
    if both:
        raise errors.BadQuantity(
            error_codes.CONTRADICTORY_REQUEST, f"{use} and {nouse} both name {both[0][:60]!r}; remove it from one"
        )


def _numa_bind(annotations: Mapping[str, str]) -> bool:
    text = annotations.get(NUMA_BIND, "").strip().lower()
    if text not in ("", "true", "false"):
        raise errors.BadQuantity(
            error_codes.UNKNOWN_POLICY, f"{NUMA_BIND}: {text[:40]!r} is neither true nor false; write one of them"
        )
    return text == "true"


def _list(annotations: Mapping[str, str], key: str) -> tuple[str, ...]:
    items = tuple(item for part in annotations.get(key, "").split(",") if (item := part.strip()))
    if len(items) > _LONGEST_LIST:
        raise errors.BadQuantity(
            error_codes.UNKNOWN_POLICY, f"{key}: {len(items)} items are too many; write at most {_LONGEST_LIST}"
        )
    return items


def _policy(annotations: Mapping[str, str], key: str, parse: Callable[[str, str], _Policy]) -> _Policy | None:
    text = annotations.get(key, "").strip()
    return parse(text, key) if text else None


def _align_numa(annotations: Mapping[str, str], warnings: list[str]) -> None:
    """Refuse the alignment of GPUs and CPUs: the kubelet chooses CPUs after the GPU, and does not publish them."""
    text = annotations.get(NUMA_ALIGNMENT, "").strip().lower()
    if text == "best-effort":
        warnings.append(f"{NUMA_ALIGNMENT} has no effect: GPUs are chosen before the kubelet chooses CPUs")
    elif text:
        raise errors.BadQuantity(
            error_codes.UNKNOWN_POLICY,
            f"{NUMA_ALIGNMENT}: {text[:40]!r} cannot be guaranteed, because GPUs are chosen before the kubelet chooses "
            "CPUs; write best-effort or remove it",
        )
