"""No isolation: containers take turns on the GPU and see all of its memory. Their records hold by agreement."""

from collections.abc import Iterable, Sequence

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from device_plugin.isolation.backend import Assignment


class TimeSlicing:
    """The driver's own time-slicing; also the base of backends that run nothing on the node."""

    def most_clients(self, device: gpu_source.Device) -> int:
        """No limit."""
        return 0

    async def prepare(self, assignment: Assignment) -> None:
        """Nothing to make."""

    def isolates(self, assignment: Assignment) -> str:
        """Nothing."""
        return "none"

    def visible(self, assignment: Assignment) -> tuple[str, ...]:
        """The GPUs of the record."""
        return tuple(share.uuid for share in assignment.shares)

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """Nothing beside the GPUs themselves."""
        return edits.NOTHING

    def claim(self, folder: str, owner: str) -> None:
        """None were made."""

    def folders(self, older_than_seconds: float) -> Sequence[str]:
        """None were made."""
        return ()

    def forget(self, folder: str) -> None:
        """None were made."""

    def bound(self) -> None:
        """None were made."""
