"""What one container gets by its pod's record, resolved once into one value that every step of its start reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_plugin.driver import gpu_source
from gpu_sharing.core import allocations, identifiers, records


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One container: its shares, its GPUs, and the parts of its pod's specification that isolation needs."""

    pod_uid: identifiers.PodUid
    pod_key: str = ""
    """`<namespace>/<name>`."""
    container: str
    allocation: str = ""
    """The name of the allocation, which is never used again; empty where it does not matter."""
    by_cdi: bool = True
    """Whether the container names its allocation by CDI; else the answer to Allocate carries all edits."""
    shares: tuple[allocations.Share, ...] = ()
    devices: tuple[gpu_source.Device, ...] = ()
    """The GPUs of `shares`, in the same order."""
    mode: str = ""
    """Name of the isolation backend of its GPUs; empty without GPUs."""
    requested_mode: str = ""
    """The backend that the pod requests; empty for any."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the container's specification."""
    user: int | None = 0
    """User id of the container; None until it is known."""
    has_runtime_class: bool = False
    """Whether the pod has a `runtimeClassName`."""
    migs: tuple[records.MigShare, ...] = ()
    """MIG instances of the pod's record; empty without any."""

    @property
    def owner(self) -> str:
        """Name of the container by which the monitor finds its folder."""
        return f"{self.pod_uid}_{self.container}"

    @property
    def folder(self) -> str:
        """Name of the container's own folder.

        Without CDI the answer is made before its owner is certain, so the folder has the allocation's name.
        """
        return self.owner if self.by_cdi else self.allocation

    def cuda_order(self) -> tuple[int, ...]:
        """Return the positions of the shares in the order of the PCI bus, by which limits of single GPUs are numbered.

        CUDA numbers GPUs so with `CUDA_DEVICE_ORDER=PCI_BUS_ID`, and otherwise the fastest first: it matters where the
        limits of one container's GPUs differ.
        """
        keys = [(device.bus_id, device.index) for device in self.devices]
        return tuple(sorted(range(len(self.shares)), key=lambda position: keys[position]))
