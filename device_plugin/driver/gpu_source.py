"""Where GPUs come from: the few questions the plugin asks of a driver, and the answer where there is none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpu_sharing.core import errors, health, identifiers, mig


class GpuSourceError(errors.GpuSharingError):
    """The driver did not do what it was asked for."""


class DriverMissing(GpuSourceError):
    """There is no driver, or it has no GPUs (yet)."""


class DriverChanged(GpuSourceError):
    """The driver's kernel module and its library have different versions: the process has to start anew."""


class GpuFailed(GpuSourceError):
    """One GPU did not answer; the text is the call and the driver's error.

    Attributes:
        lost: Whether the driver says that it has fallen off the bus.
        reset_required: Whether the driver says that it must be reset.
        lasting: Whether this driver, or this caller's rights, will never give the answer.
    """

    def __init__(
        self, message: str, *, lost: bool = False, reset_required: bool = False, lasting: bool = False
    ) -> None:
        super().__init__(message)
        self.lost = lost
        self.reset_required = reset_required
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class MigInstance:
    """One MIG instance of a GPU."""

    uuid: str
    profile: str
    """Such as `1g.10gb`."""
    memory_mib: int
    start: int = 0
    """Its first slot of the GPU's memory slices."""
    size: int = 1
    """Its memory slices."""
    instance_id: int = 0
    """Of the GPU instance, as the driver numbers it."""
    compute_id: int = 0
    """Of its compute instance."""


@dataclass(frozen=True, slots=True)
class BareInstance:
    """A GPU instance without a compute instance: it holds memory slices, and nothing can use it."""

    instance_id: int
    profile: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Device:
    """A physical GPU as the driver describes it."""

    uuid: identifiers.GpuUuid
    index: int
    """Position in the driver's order."""
    name: str
    """Product name."""
    memory_mib: int | None
    """None where the driver does not say, as with memory that CPU and GPU share."""
    minor: int | None
    """The number in `/dev/nvidia<minor>`; None where there is no such file, as in WSL2."""
    numa: int = 0
    bus_id: str = ""
    compute_capability: tuple[int, int] = (0, 0)
    """(0, 0) where the driver does not say."""
    mig_enabled: bool = False
    migs: tuple[MigInstance, ...] = ()
    bare_instances: tuple[BareInstance, ...] = ()
    """What is left of MIG instances that were made or taken away by halves; no device handle shows them."""
    most_migs: int = 0
    """How many instances it can be divided into."""
    mig_profiles: tuple[mig.Profile, ...] = ()
    """The kinds of instances that it can be divided into, wherever there are some now."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An XID that the driver reported."""

    uuid: identifiers.GpuUuid | None
    """None where it cannot be told which GPU."""
    xid: int


@dataclass(frozen=True, slots=True)
class Process:
    """What one process does on a GPU."""

    pid: int
    """As the host counts."""
    memory_bytes: int | None
    """None where the driver does not say."""
    utilization_percent: float | None
    """The mean over the time since the last look; None where the driver does not measure processes."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What is used of one GPU. None stands for what the driver cannot measure, never for nothing."""

    memory_total_bytes: int | None
    memory_used_bytes: int | None
    utilization_percent: float | None
    temperature_celsius: float | None
    power_watts: float | None
    processes: tuple[Process, ...] = ()
    mig_used_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory used of each MIG instance, by its UUID; without those that the driver does not measure."""
    lists_processes: bool = True
    """Whether the driver answered which processes run; without, an empty `processes` says nothing."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """What the driver refuses although it goes on, each with the call and its error."""

    identity: Mapping[int, str] = field(default_factory=dict)
    """By position: GPUs that never said what they are, so that nothing can be offered of them."""
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
    """A driver. Its calls may block for as long as the driver hangs: call them on threads, with deadlines."""

    def devices(self) -> Sequence[Device]:
        """The GPUs that the driver enumerates. One that answered before is there while it refuses, as it was known.

        Raises:
            DriverMissing: There is no driver.
            DriverChanged: It was replaced while we run.
        """

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """A look at one GPU; what goes wrong is in the reading."""

    def usage(self, uuid: identifiers.GpuUuid) -> Usage:
        """What is used of a GPU, and by which processes.

        Raises:
            GpuFailed: It does not answer.
        """

    def next_faults(self, timeout_seconds: float) -> Sequence[Fault]:
        """Wait for XIDs. Empty after the timeout."""

    def gaps(self) -> Gaps:
        """What was refused in the last calls; asks the driver nothing, so that it never blocks."""

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """How well each GPU reaches each other: HAMi's score of link kinds, larger is nearer."""

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """Make a MIG instance with one compute instance of its whole size.

        Args:
            uuid: Of a GPU in MIG mode.
            profile: Such as `1g.10gb`.
            start: Its first memory slice.
            size: How many memory slices it has.

        Raises:
            GpuFailed: There is no such profile, or no room there.
        """

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """Take a MIG instance away.

        Raises:
            GpuFailed: It is in use.
        """

    def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Destroy a GPU instance that has no compute instance.

        Raises:
            GpuFailed: It has one, or is not there.
        """

    def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """Let go of GPUs so that they can be reset, and touch them no more; those that are not named are used again.

        No other call may be under way.

        Args:
            released: All GPUs to keep off, with the position at which the driver counts each.

        Raises:
            DriverMissing: There is no driver any more.
            DriverChanged: It was replaced.
        """

    def close(self) -> None:
        """Let go of the driver."""


class NoGpus:
    """What stands in where there is no driver: the process stays up and looks again."""

    def devices(self) -> Sequence[Device]:
        """None."""
        return ()

    def reading(self, uuid: identifiers.GpuUuid) -> health.Reading:
        """Nobody asks, as there is no GPU."""
        return health.Reading(answered=False, trouble=f"there is no driver to ask about {uuid}")

    def usage(self, uuid: identifiers.GpuUuid) -> Usage:
        """Nobody asks, as there is no GPU."""
        raise DriverMissing(f"there is no driver to ask about {uuid}")

    def next_faults(self, timeout_seconds: float) -> Sequence[Fault]:
        """None, at once."""
        return ()

    def gaps(self) -> Gaps:
        """None: nothing was asked."""
        return Gaps()

    def links(self) -> dict[identifiers.GpuUuid, dict[identifiers.GpuUuid, int]]:
        """None."""
        return {}

    def create_mig(self, uuid: identifiers.GpuUuid, profile: str, start: int, size: int) -> None:
        """Nobody asks, as there is no GPU."""
        raise DriverMissing(f"there is no driver to divide {uuid}")

    def destroy_mig(self, uuid: identifiers.GpuUuid, mig_uuid: str) -> None:
        """Nobody asks, as there is no GPU."""
        raise DriverMissing(f"there is no driver to undo {mig_uuid}")

    def destroy_bare(self, uuid: identifiers.GpuUuid, instance_id: int) -> None:
        """Nobody asks, as there is no GPU."""
        raise DriverMissing(f"there is no driver to undo GPU instance {instance_id} of {uuid}")

    def release(self, released: Mapping[identifiers.GpuUuid, int]) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing to let go of."""
