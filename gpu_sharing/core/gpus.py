"""One physical GPU: what it has, and what of it is promised.

The inventory (`Gpu`) is what the node's device plugin publishes; the state (`GpuState`) adds what pods hold.
"""

from dataclasses import dataclass

from gpu_sharing.core import identifiers, mig, reservations

EXCLUSIVE_CORES_PERCENT = 100
"""A container that asks for this many cores, or more, wants the GPU for itself."""

MIG_MODE = "mig"

MOST_GPUS = 64
"""GPUs of one node; an inventory or a request beyond it is refused where it is read."""
MOST_MEMORY_MIB = 2**31 - 1
"""Memory of one GPU; likewise."""
MOST_SLOTS = 10_000
"""Containers that share one GPU; likewise."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its node advertises it."""

    uuid: identifiers.GpuUuid
    index: int
    """Position in NVML's order on the node, from 0."""
    memory_mib: int
    """Memory that may be promised, in MiB: the physical memory times the declared scaling."""
    cores_percent: int
    """Compute that may be promised, in percent of one GPU: 100 times the declared scaling."""
    slots: int
    """How many containers may share the GPU at one time."""
    type: str
    """Product name as NVML gives it, such as `NVIDIA A100-SXM4-80GB`."""
    numa: int = 0
    mode: str = ""
    """How the node shares the GPU: `hami-core`, `mps`, `mig`, or empty for the plugin's default."""
    healthy: bool = True
    mig_profiles: tuple[mig.Profile, ...] = ()
    """In MIG mode: the kinds of instances that it can be divided into."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU and what of it is promised."""

    gpu: Gpu
    used: reservations.Booking = reservations.NOTHING
    cordoned: bool = False
    usage_unknown: bool = False
    """A pod that may hold this GPU has a record that cannot be read: nothing more is placed here."""

    def with_used(self, more: reservations.Booking) -> "GpuState":
        """The same GPU with `more` promised on top."""
        return GpuState(self.gpu, self.used.plus(more), self.cordoned, self.usage_unknown)
