"""What this container was given, by its own environment, and how much of it is left.

The device plugin writes the variables (`gpu_sharing.core.variables`). An older plugin, or HAMi's, wrote only the limits
of the isolation, which are read where the description is missing. Nothing here asks the API server.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from gpu_sharing.core import error_codes, gpus, variables
from gpu_sharing.workload.errors import Problem

if TYPE_CHECKING:
    from gpu_sharing.workload.headroom import HeadroomWatch

MARKS = pathlib.Path("/run/hami.io")
"""Where a CDI specification mounts the name of the allocation."""
NAMESPACE_FILE = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LONGEST = 64 * 129
_UUID = re.compile(r"[A-Za-z0-9._/-]{1,128}")
_NAME = re.compile(r"[A-Za-z0-9._()_ -]{1,253}")
_SIZE = re.compile(r"(\d{1,16})([kKmMgG]?)")
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class GpuSlice:
    """The slice of one GPU."""

    index: int
    """Position in the container, as `gpu_id` of the metrics."""
    uuid: str
    memory_mib: int | None = None
    """Allocated memory; None where it is not known."""
    cores_percent: int | None = None
    """Allocated compute; 0 is no limit, None is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The slice of this container; a part that is not known is None, and `problems` has why."""

    gpus: tuple[GpuSlice, ...] = ()
    isolation: str | None = None
    node: str | None = None
    namespace: str | None = None
    pod: str | None = None
    container: str | None = None
    slice_id: str | None = None
    """Name of the allocation, which is never used again."""
    decision_id: str | None = None
    """Finds the decision of the scheduler in its logs and events."""
    problems: tuple[Problem, ...] = ()

    @property
    def label_values(self) -> tuple[str, str, str]:
        """Values of `metric_names.SLICE_LABELS`; empty texts where they are not known."""
        return (self.namespace or "", self.pod or "", self.container or "")

    def as_json(self) -> dict[str, Any]:
        """Return values that `json.dumps` accepts."""
        return {**asdict(self), "problems": [one._asdict() for one in self.problems]}


def my_slice() -> Slice:
    """Return the slice of this container, as its environment describes it now."""
    return slice_from(os.environ, marks=_names_in(MARKS), namespace=_first_line(NAMESPACE_FILE))


def headroom_mib(gpu: int | None = None) -> int | None:
    """Return the memory that is left of the slice, in MiB; None where it is not known.

    Args:
        gpu: Index of a GPU in the container; without it the smallest of all GPUs counts.
    """
    from gpu_sharing.workload import usage

    found = [one.headroom_mib for one in usage.read(my_slice()).gpus if gpu in (None, one.index)]
    known = [one for one in found if one is not None]
    return min(known) if known and len(known) == len(found) else None


def on_low_headroom(
    callback: Callable[[int], None], *, below_mib: int, interval_seconds: float = 1.0
) -> "HeadroomWatch":
    """Start a thread that calls back once the headroom is below a limit; `stop()` of what is returned ends it.

    Args:
        callback: Called with the headroom in MiB, once each time that it falls below.
        below_mib: The limit in MiB.
        interval_seconds: Time between two reads.

    Raises:
        WorkloadError: A number is out of range.
    """
    from gpu_sharing.workload import headroom

    watch = headroom.HeadroomWatch(callback, below_mib=below_mib, interval_seconds=interval_seconds)
    watch.start()
    return watch


def slice_from(environment: Mapping[str, str], *, marks: Sequence[str] = (), namespace: str = "") -> Slice:
    """Return the slice that an environment describes.

    Args:
        environment: Variables of the container.
        marks: Names of files in `MARKS`.
        namespace: The namespace by the service account's file; empty where there is none.
    """
    uuids, problems = _uuids(environment)
    memory, of_memory = _memory(environment, len(uuids))
    cores, of_cores = _numbers(environment, variables.SLICE_CORES_PERCENT, len(uuids), 0, 100)
    values = (memory, cores or (None,) * len(uuids))
    found = Slice(
        gpus=tuple(GpuSlice(index, *one) for index, one in enumerate(zip(uuids, *values, strict=True))),
        isolation=_isolation(environment, len(uuids)),
        node=_name(environment, variables.SLICE_NODE, "NODE_NAME"),
        namespace=_name(environment, variables.SLICE_NAMESPACE, "POD_NAMESPACE") or namespace or None,
        pod=_name(environment, variables.SLICE_POD, "POD_NAME"),
        container=_name(environment, variables.SLICE_CONTAINER),
        slice_id=_name(environment, variables.ALLOCATION) or (marks[0] if len(marks) == 1 else None),
        decision_id=_name(environment, variables.SLICE_DECISION_ID),
    )
    missing = _missing(found) if uuids else ()
    return replace(found, problems=(*problems, *of_memory, *of_cores, *missing))


def _uuids(environment: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    text = environment.get(variables.GPUS, "")
    name = variables.GPUS
    if not text:
        name, text = "NVIDIA_VISIBLE_DEVICES", environment.get("NVIDIA_VISIBLE_DEVICES", "")
        if not text.startswith(("GPU-", "MIG-")):
            return (), (Problem(error_codes.WORKLOAD_NO_SLICE, f"{variables.GPUS} is not set"),)
    uuids = text[:_LONGEST].split(",")
    if len(uuids) > gpus.MOST_GPUS or len(set(uuids)) < len(uuids) or not all(map(_UUID.fullmatch, uuids)):
        return (), (Problem(error_codes.WORKLOAD_BAD_LIMIT, f"{name} is no list of GPUs: {text[:80]!r}"),)
    return tuple(uuids), ()


def _memory(environment: Mapping[str, str], count: int) -> tuple[tuple[int | None, ...], tuple[Problem, ...]]:
    """Return the memory of each GPU, where the description and the limits of the isolation agree."""
    described, problems = _numbers(environment, variables.SLICE_MEMORY_MIB, count, 1, gpus.MOST_MEMORY_MIB)
    enforced, of_limits = _enforced(environment, count)
    problems += of_limits
    if described is None or enforced is None:
        only = described or enforced
        # Limits of the isolation are numbered by the PCI bus, which is not known here.
        is_certain = described is not None or len(set(only or ())) <= 1
        return (only if only and is_certain else (None,) * count), problems
    if sorted(described) == sorted(enforced):
        return described, problems
    text = f"allocated are {_texts(described)} MiB, the limits of the isolation are {_texts(enforced)} MiB"
    smaller = (min(described[0], enforced[0]),) if count == 1 else (None,) * count
    return smaller, (*problems, Problem(error_codes.WORKLOAD_LIMIT_MISMATCH, text))


def _numbers(
    environment: Mapping[str, str], name: str, count: int, least: int, most: int
) -> tuple[tuple[int, ...] | None, tuple[Problem, ...]]:
    text = environment.get(name)
    if text is None or not count:
        return None, ()
    parts = text[:_LONGEST].split(",")
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit() and len(part) <= 10]
    if len(numbers) == len(parts) == count and all(least <= number <= most for number in numbers):
        return tuple(numbers), ()
    sentence = f"{name}={text[:80]!r} has to be {count} numbers from {least} to {most}"
    return None, (Problem(error_codes.WORKLOAD_BAD_LIMIT, sentence),)


def _enforced(environment: Mapping[str, str], count: int) -> tuple[tuple[int, ...] | None, tuple[Problem, ...]]:
    """Return the limits of HAMi-core or MPS in MiB, by their own numbers of the GPUs; None where there are none."""
    names = [f"CUDA_DEVICE_MEMORY_LIMIT_{index}" for index in range(count)]
    given = {name: environment[name] for name in names if name in environment}
    if not given:
        parts = environment.get("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "")[:_LONGEST].split(",")
        given = {f"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT {one}": one.partition("=")[2] for one in parts if one}
    if not given or not count:
        return None, ()
    sizes = [_mib(text) for text in given.values()]
    if len(sizes) == count and all(size is not None for size in sizes):
        return tuple(size for size in sizes if size is not None), ()
    bad = ", ".join(f"{name}={text[:40]!r}" for name, text in given.items())[:200]
    return None, (Problem(error_codes.WORKLOAD_BAD_LIMIT, f"{bad}: {count} sizes such as 4000m are expected"),)


def _mib(text: str) -> int | None:
    """Return a size in MiB; None where it is none, or not from 1 MiB to the largest that can be allocated."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    size = int(match[1]) * _BYTES[match[2].lower()] >> 20
    return size if 1 <= size <= gpus.MOST_MEMORY_MIB else None


def _isolation(environment: Mapping[str, str], count: int) -> str | None:
    described = _name(environment, variables.SLICE_ISOLATION)
    if described or not count:
        return described
    if "CUDA_DEVICE_MEMORY_SHARED_CACHE" in environment:
        return "hami-core"
    return "mps" if "CUDA_MPS_PIPE_DIRECTORY" in environment else None


def _missing(found: Slice) -> tuple[Problem, ...]:
    parts = {
        "memory": all(gpu.memory_mib is not None for gpu in found.gpus),
        "cores": all(gpu.cores_percent is not None for gpu in found.gpus),
        **{name: getattr(found, name) for name in ("isolation", "node", "namespace", "pod", "container")},
    }
    names = [name for name, value in parts.items() if not value]
    return (Problem(error_codes.WORKLOAD_UNDESCRIBED, f"not known: {', '.join(names)}"),) if names else ()


def _name(environment: Mapping[str, str], *names: str) -> str | None:
    """Return the first of some variables that has a plain name."""
    values = (environment.get(name, "") for name in names)
    return next((value for value in values if _NAME.fullmatch(value)), None)


def _names_in(folder: pathlib.Path) -> list[str]:
    try:
        return [path.name for path in itertools.islice(folder.iterdir(), 2) if _NAME.fullmatch(path.name)]
    except OSError:
        return []


def _first_line(path: pathlib.Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.readline(254).strip()
    except OSError:
        return ""
    return text if _NAME.fullmatch(text) else ""


def _texts(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
