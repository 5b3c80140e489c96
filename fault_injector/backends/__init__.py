"""The ways to inject a fault: one module each, all with the interface `Backend`."""

from typing import Protocol

from gpu_sharing.core import errors, faults


class BackendFailed(errors.GpuSharingError):
    """A backend could not inject or recover a fault; the text is the cause."""


class Backend(Protocol):
    """One way to inject faults of some kinds."""

    @property
    def name(self) -> str:
        """The name by which requests and records refer to it."""

    @property
    def kinds(self) -> frozenset[str]:
        """The names of the kinds that it can inject here."""

    @property
    def outlives_process(self) -> bool:
        """Whether what it injected stays in effect, and can be recovered, after this process ended."""

    async def resolve(self, request: faults.Request) -> faults.Request:
        """Return the request with its target as it is recorded: two names of one GPU become the same.

        Raises:
            FaultRefused: There is no such target, or this one cannot be affected.
        """

    async def inject(self, fault: faults.Fault) -> None:
        """Inject a fault; it is in effect when this returns.

        Raises:
            BackendFailed: It is not, or only in part.
        """

    async def recover(self, fault: faults.Fault) -> None:
        """Undo all of a fault, also one that was injected in part or not at all.

        Raises:
            BackendFailed: Something of it may still be in effect.
        """
