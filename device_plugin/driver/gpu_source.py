"""The interface of a driver, and its values; `NoGpus` stands in where there is no driver."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpu_sharing.core import errors, health, identifiers, mig


class GpuSourceError(errors.GpuSharingError):
    """A call to the driver failed."""


class DriverMissing(GpuSourceError):
    """There is no driver, or it has no GPUs (yet)."""


class DriverChanged(GpuSourceError):
    """The driver's kernel module and its library have different versions: the process has to start again."""


class GpuFailed(GpuSourceError):
    """A call to one GPU failed; the text is the call and the driver's error.

    Attributes:
        lost: Whether the driver reports that the GPU has fallen off the bus.
        reset_required: Whether the driver reports that the GPU must be reset.
        lasting: Whether this driver, or the rights of this process, will never allow the call.
    """

    def __init__(
        self, message: str, *, lost: bool = False, reset_required: bool = False, lasting: bool = False
    ) -> None:
        super().__init__(message)
        self.lost = lost
        self.reset_required = reset_required
        self.lasting = lasting


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """One MIG instance of a GPU."""

    uuid: str
    profile: str
    """Such as `1g.10gb`."""
    memory_mib: int
    start: int = 0
    """Its first MIG slice."""
    size: int = 1
    """Number of its MIG slices."""
    instance_id: int = 0
    """The driver's number of the GPU instance."""
    compute_id: int = 0
    """The driver's number of the compute instance."""


@dataclass(frozen=True, slots=True)
class BareInstance:
    """A GPU instance without a compute instance: it holds MIG slices, and nothing can use it."""

    instance_id: int
    profile: str
    start: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A physical GPU as the driver describes it."""

    uuid: identifiers.GpuUuid
    index: int
    """Position in the driver's order."""
    name: str
    """Product name."""
    memory_mib: int | None
    """None where the driver reports none, as with memory that CPU and GPU share."""
    minor: int | None
    """The number in `/dev/nvidia<minor>`; None where there is no such file, as in WSL2."""
    numa: int = 0
    bus_id: str = ""
    compute_capability: tuple[int, int] = (0, 0)
    """(0, 0) where the driver reports none."""
    mig_enabled: bool = False
    migs: tuple[MigInstance, ...] = ()
    bare_instances: tuple[BareInstance, ...] = ()
    """Left from half-made or half-destroyed MIG instances; no device handle shows them."""
    most_migs: int = 0
    """Number of MIG instances it can be divided into."""
    mig_profiles: tuple[mig.Profile, ...] = ()
    """Kinds of MIG instances it can be divided into, whether or not their places are free."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An XID that the driver reported."""

    uuid: identifiers.GpuUuid | None
    """None where the GPU cannot be identified."""
    xid: int


@dataclass(frozen=True, slots=True)
class Process:
    """Use of a GPU by one process."""

    pid: int
    """In the PID namespace of the host."""
    memory_bytes: int | None
    """None where the driver reports none."""
    utilization_percent: float | None
    """Mean since the last sample; None where the driver does not measure processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Use of one GPU. None stands for what the driver cannot measure, and 0 for no use."""

    memory_total_bytes: int | None
    memory_used_bytes: int | None
    utilization_percent: float | None
    temperature_celsius: float | None
    power_watts: float | None
    memory_controller_percent: float | None = None
    """Time in which the GPU's memory was read or written, 0 to 100."""
    processes: tuple[Process, ...] = ()
    mig_used_bytes: Mapping[str, int] = field(default_factory=dict)
    """Used memory of each MIG instance by UUID; without those that the driver does not measure."""
    lists_processes: bool = True
    """Whether the driver lists processes; otherwise an empty `processes` does not mean that none runs."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """Calls that the driver refuses although it goes on, each with its error."""

    identity: Mapping[int, str] = field(default_factory=dict)
    """By position: GPUs that were never identified, so that they cannot be offered."""
    xids: Mapping[identifiers.GpuUuid, str] = field(default_factory=dict)
    """GPUs whose XIDs are not received, beside those of `events`."""
    events: str = ""
    """Why no XID of any GPU is received; empty otherwise."""
    mig: Mapping[identifiers.GpuUuid, str] = field(default_factory=dict)
    """GPUs in MIG mode whose instances cannot be read."""

    def unheard(self, devices: Iterable[Device]) -> dict[identifiers.GpuUuid, str]:
        """Return why XIDs are not received, by GPU; GPUs whose XIDs are received are left out."""
        reasons = {device.uuid: self.events or self.xids.get(device.uuid, "") for device in devices}
        return {uuid: why for uuid, why in reasons.items() if why}


class GpuSource(Protocol):
    """A driver. Its calls block for as long as the driver hangs: call them on threads, with deadlines."""

    def devices(self) -> Sequence[Device]:
        """Return the GPUs that the driver lists. One that was identified before stays as it was while it refuses calls.

        Raises:
            DriverMissing: There is no driver.
            DriverChanged: It was replaced while this process runs.
        """

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """Return the health reading of one GPU; errors are part of the reading."""

    def usage(self, uuid: identifiers.GpuUuid) -> Usage:
        """Return what is used of a GPU, and by which processes.

        Raises:
            GpuFailed: It does not answer.
        """

    def next_faults(self, timeout_seconds: float) -> Sequence[Fault]:
        """Wait for XIDs; return none after the timeout."""

    def gaps(self) -> Gaps:
        """Return what was refused in the last calls. Does not call the driver, so that it never blocks."""

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """Return HAMi's score of the link between each two GPUs; a larger score is a faster link."""

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """Make a MIG instance with one compute instance of its whole size.

        Args:
            uuid: Of a GPU in MIG mode.
            profile: Such as `1g.10gb`.
            start: Its first memory slice.
            size: How many memory slices it has.

        Raises:
            GpuFailed: There is no such profile, or its place is not free.
        """

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """Destroy a MIG instance.

        Raises:
            GpuFailed: It is in use.
        """

    def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Destroy a GPU instance that has no compute instance.

        Raises:
            GpuFailed: It has one, or is not there.
        """

    def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """Close GPUs so that they can be reset, and do not open them again; GPUs that are not named are used again.

        No other call may be running.

        Args:
            released: All GPUs to keep closed, with the position of each in the driver's order.

        Raises:
            DriverMissing: There is no driver any more.
            DriverChanged: It was replaced.
        """

    def close(self) -> None:
        """Close the connection to the driver."""


class NoGpus:
    """No driver: the process goes on without GPUs, and later tries to connect again."""

    def devices(self) -> Sequence[Device]:
        """Return that there are no GPUs."""
        return ()

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """Return that nothing answers."""
        return health.Reading(answered=False, problem=f"there is no driver for {uuid}")

    def usage(self, uuid: identifiers.GpuUuid) -> Usage:
        """Raise that there is no driver."""
        raise DriverMissing(f"there is no driver for {uuid}")

    def next_faults(self, timeout_seconds: float) -> Sequence[Fault]:
        """Return no XIDs, without a wait."""
        return ()

    def gaps(self) -> Gaps:
        """Return no gaps: nothing was called."""
        return Gaps()

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """Return that there are no links."""
        return {}

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """Raise that there is no driver."""
        raise DriverMissing(f"there is no driver to divide {uuid}")

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """Raise that there is no driver."""
        raise DriverMissing(f"there is no driver to undo {mig_uuid}")

    def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Raise that there is no driver."""
        raise DriverMissing(f"there is no driver to undo GPU instance {instance_id} of {uuid}")

    def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """Do nothing: no GPU is open."""

    def close(self) -> None:
        """Do nothing: there is no connection."""
