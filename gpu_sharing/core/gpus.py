"""One physical GPU: its capacity and its allocation.

The inventory (`Gpu`) is what the node's device plugin publishes; the state (`GpuState`) adds the allocation of pods.
"""

from dataclasses import dataclass

from gpu_sharing.core import allocations, identifiers, mig

EXCLUSIVE_CORES_PERCENT = 100
"""A container that requests this many cores, or more, gets an exclusive GPU."""

MIG_MODE = "mig"

MOST_GPUS = 64
"""GPUs of one node; an inventory or a request beyond it is refused where it is read."""
MOST_MEMORY_MIB = 2**31 - 1
"""Memory of one GPU; likewise."""
MOST_SLOTS = 10_000
"""Containers that share one GPU; likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as its node advertises it."""

    uuid: identifiers.GpuUuid
    index: int
    """Position in NVML's order on the node, from 0."""
    memory_mib: int
    """Memory that may be allocated, in MiB: the physical memory times the declared scaling."""
    cores_percent: int
    """Compute that may be allocated, in percent of one GPU: 100 times the declared scaling."""
    slots: int
    """The number of containers that may share the GPU at one time."""
    type: str
    """Product name from NVML, such as `NVIDIA A100-SXM4-80GB`."""
    numa: int = 0
    mode: str = ""
    """Isolation of the GPU: `hami-core`, `mps`, `mig`, or empty for the plugin's default."""
    healthy: bool = True
    mig_profiles: tuple[mig.Profile, ...] = ()
    """In MIG mode: the profiles of its instances."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU and its allocation."""

    gpu: Gpu
    allocated: allocations.Allocation = allocations.NOTHING
    cordoned: bool = False
    allocation_unknown: bool = False
    """A pod that may hold this GPU has a record that cannot be read: no pod is placed here."""

    @property
    def free_memory_mib(self) -> int:
        """Memory that may still be allocated."""
        return self.gpu.memory_mib - self.allocated.memory_mib

    @property
    def free_cores_percent(self) -> int:
        """Cores that may still be allocated."""
        return self.gpu.cores_percent - self.allocated.cores_percent

    def with_allocation(self, more: allocations.Allocation) -> "GpuState":
        """Return the same GPU with `more` allocated on top."""
        return GpuState(self.gpu, self.allocated.plus(more), self.cordoned, self.allocation_unknown)


def conflicts(gpu: Gpu, held: allocations.Allocation, more: allocations.Allocation) -> tuple[str, ...]:
    """Return why one more pod's allocation does not fit beside the allocations of other pods; empty if it fits.

    For later checks of records. The rules are those of `placement.fit` that do not depend on the order of pods. Two
    allocations of MIG instances conflict only in slots and MIG slices.

    Args:
        gpu: The GPU.
        held: The allocation of other pods.
        more: The allocation of this pod.
    """
    both = held.plus(more)
    divided = bool(more.slices) and (bool(held.slices) or held == allocations.NOTHING)
    amounts = [("slots", both.slots, gpu.slots)]
    if not divided:
        amounts += [
            ("MiB of memory", both.memory_mib, gpu.memory_mib),
            ("percent of cores", both.cores_percent, gpu.cores_percent),
        ]
    exceeded = [f"{part} of {whole} {what}" for what, part, whole in amounts if part > whole]
    if not divided and held.slots and (held.exclusive or more.exclusive):
        exceeded.append("exclusive use beside another pod")
    if mig.at_least(held.slices, more.slices) != both.slices:
        exceeded.append("a MIG slice to two pods")
    return tuple(exceeded)
