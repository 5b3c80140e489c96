"""What the values of placements are computed from: the mix of requests, prepared for the GPUs of a cluster.

Preparing takes some tenths of a second, so it is done beside the event loop, on values that do not change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpu_sharing.core.request_mix import Shape
from gpu_sharing.core.requests import Selectors
from scheduler_extender.fleet.arrays import Arrays, Bools, Floats, Ints
from scheduler_extender.fleet.hole_values import GRID, hole_values

MILLI = 1000.0
_HOST_SHARE = 0.8
"""How much of the mix's mean CPU and memory a free GPU needs beside it."""


@dataclass(frozen=True, slots=True, order=True)
class GpuClass:
    """GPUs of one model and size."""

    type: str
    memory_mib: int
    cores_percent: int

    def memory_of(self, shape: Shape) -> int:
        """The memory that a request takes of such a GPU, in MiB."""
        return shape.memory_mib or self.memory_mib * shape.memory_percent // 100

    def share_of(self, shape: Shape) -> float:
        """The dominant share that a request takes of such a GPU; above 1 where it is too small."""
        memory = self.memory_of(shape) / max(self.memory_mib, 1)
        return max(memory, shape.cores_percent / max(self.cores_percent, 1))

    def serves(self, shape: Shape) -> bool:
        """Whether such a GPU, when it is empty, serves a request."""
        accepted = Selectors(use_types=shape.use_types, nouse_types=shape.nouse_types).accept_type(self.type)
        return accepted and self.share_of(shape) <= 1.0


def classes_of(arrays: Arrays) -> tuple[GpuClass, ...]:
    """Return the classes of a cluster's GPUs, in a fixed order."""
    there = np.nonzero(arrays.exists)
    if not len(there[0]):
        return ()
    values = np.stack([arrays.type_id[there], arrays.memory_total[there], arrays.cores_total[there]])
    words = arrays.types.words
    return tuple(sorted(GpuClass(words[kind], *sizes) for kind, *sizes in np.unique(values, axis=1).T.tolist()))


def cpu_milli_per_gpu(arrays: Arrays) -> float:
    """Return how much CPU is free for each GPU, in thousandths of a core: the median of the nodes."""
    gpus = arrays.exists[:, : arrays.columns].sum(0)
    there = gpus > 0
    if not there.any():
        return MILLI
    return float(np.median(np.maximum(arrays.host_cpu_free[: arrays.columns][there], 0) / gpus[there]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The mix, prepared. A *kind* is what requests with GPUs have in common apart from the node's memory."""

    classes: tuple[GpuClass, ...]
    shares: Mapping[Shape, float]
    """Of every shape, those without GPUs too."""
    popularity: Floats
    """`[kinds]`: how often each occurs; sums to 1."""
    gpus: Ints
    """`[kinds]`."""
    cpu_milli: Ints
    """`[kinds]`."""
    memory_mib: Ints
    """`[classes, kinds]`: of each GPU."""
    cores_percent: Ints
    """`[kinds]`: of each GPU, at least 1, because a GPU whose cores are all allocated is full."""
    limits_cores: Bools
    """`[kinds]`."""
    served: Bools
    """`[classes, kinds]`."""
    hole_memory: Floats
    """`[classes, 101]`: what free memory is worth, in percent of the GPU, 0 to 1."""
    hole_cores: Floats | None
    """`[101]`: the same of cores; None where no request limits them."""
    cpu_per_gpu: float
    """Thousandths of a core for each thousandth of a GPU."""
    host_memory_per_gpu: float
    """MiB of the node for each thousandth of a GPU."""

    def typical_share(self, shape: Shape) -> float:
        """The mean dominant share that a request takes of the GPUs that serve it, of one GPU."""
        return _typical_share(shape, self.classes)


def prepare(shares: Mapping[Shape, float], classes: Sequence[GpuClass], cpu_milli: float) -> Prices:
    """Prepare a mix.

    Args:
        shares: How often each shape occurs.
        classes: The cluster's.
        cpu_milli: Free CPU for each GPU; what a mix that knows no request takes as needed.
    """
    wanting = {shape: share for shape, share in shares.items() if shape.gpus and _is_served(shape, classes)}
    kinds: dict[Shape, float] = {}
    for shape, share in wanting.items():
        kind = shape._replace(host_memory_mib=0)
        kinds[kind] = kinds.get(kind, 0.0) + share
    if not kinds:
        kinds = {Shape(1, memory_percent=100, host_cpu_milli=int(cpu_milli)): 1.0}
    popularity = np.array(list(kinds.values()), np.float64)
    demand = MILLI * sum(share * shape.gpus * _typical_share(shape, classes) for shape, share in wanting.items())
    cpu = sum(share * shape.host_cpu_milli for shape, share in wanting.items())
    memory = sum(share * shape.host_memory_mib for shape, share in wanting.items())
    by_class = (len(classes), len(kinds))
    return Prices(
        classes=tuple(classes),
        shares=shares,
        popularity=popularity / popularity.sum(),
        gpus=np.array([kind.gpus for kind in kinds], np.int64),
        cpu_milli=np.array([kind.host_cpu_milli for kind in kinds], np.int64),
        memory_mib=np.array([[one.memory_of(kind) for kind in kinds] for one in classes], np.int64).reshape(by_class),
        cores_percent=np.array([max(kind.cores_percent, 1) for kind in kinds], np.int64),
        limits_cores=np.array([kind.cores_percent > 0 for kind in kinds], np.bool_),
        served=np.array([[one.serves(kind) for kind in kinds] for one in classes], np.bool_).reshape(by_class),
        hole_memory=_holes_by_class(wanting, classes),
        hole_cores=_holes(wanting, lambda shape: shape.cores_percent),
        cpu_per_gpu=_HOST_SHARE * (cpu / demand if demand else cpu_milli / MILLI),
        host_memory_per_gpu=_HOST_SHARE * memory / demand if demand else 0.0,
    )


def _is_served(shape: Shape, classes: Sequence[GpuClass]) -> bool:
    return any(one.serves(shape) for one in classes)


def _typical_share(shape: Shape, classes: Sequence[GpuClass]) -> float:
    shares = [one.share_of(shape) for one in classes if one.serves(shape)]
    return sum(shares) / len(shares) if shares else 1.0


def _holes_by_class(shares: Mapping[Shape, float], classes: Sequence[GpuClass]) -> Floats:
    """`[classes, 101]`; classes on which all requests have the same sizes are computed once."""
    by_sizes: dict[tuple[tuple[Shape, int], ...], Floats] = {}
    rows = []
    for one in classes:
        sizes = {
            shape: -(-GRID * one.memory_of(shape) // max(one.memory_mib, 1)) for shape in shares if one.serves(shape)
        }
        key = tuple(sorted(sizes.items()))
        if key not in by_sizes:
            there = {shape: shares[shape] for shape in sizes}
            found = _holes(there, sizes.__getitem__)
            by_sizes[key] = np.zeros(GRID + 1) if found is None else found
        rows.append(by_sizes[key])
    return np.array(rows, np.float64).reshape(len(classes), GRID + 1)


def _holes(shares: Mapping[Shape, float], size_of: Callable[[Shape], int]) -> Floats | None:
    """What parts of a GPU are worth to the requests that share GPUs; None where there are none."""
    weights: dict[int, float] = {}
    for shape, share in shares.items():
        size = size_of(shape)
        if shape.gpus == 1 and 0 < size < GRID:
            weights[size] = weights.get(size, 0.0) + share
    return hole_values(weights) if weights else None
