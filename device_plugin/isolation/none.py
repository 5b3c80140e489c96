"""No isolation: containers take turns on the GPU, and each can use all of its memory."""

from collections.abc import Iterable, Sequence

from device_plugin.delivery import edits
from device_plugin.driver import gpu_source
from device_plugin.isolation.assignment import Assignment
from device_plugin.isolation.backend import BackendSettings
from gpu_sharing.core import error_codes, mig

NAME = "none"


class TimeSlicing:
    """The driver's own time-slicing; also the base of other backends, which override what they do differently."""

    unavailable_code: error_codes.Code | None = None
    conflict_code: error_codes.Code | None = None

    def __init__(self, settings: BackendSettings) -> None:
        self._settings = settings

    def problem(self) -> str:
        """Return that nothing is missing."""
        return ""

    def conflict(self, holders: Iterable[Assignment]) -> str:
        """Return that nothing is wrong between any containers."""
        return ""

    def most_containers(self, device: gpu_source.Device) -> int | None:
        """Return that there is no limit."""
        return None

    def mig_profiles(self, device: gpu_source.Device) -> tuple[mig.Profile, ...]:
        """Return no kinds: the GPU is not divided."""
        return ()

    async def prepare(self, assignment: Assignment) -> None:
        """Do nothing: nothing is needed."""

    def isolation_in_effect(self, assignment: Assignment) -> str:
        """Return that nothing isolates it."""
        return NAME

    def visible_devices(self, assignment: Assignment) -> tuple[str, ...]:
        """Return the GPUs of the record."""
        return tuple(share.uuid for share in assignment.shares)

    def edits(self, assignment: Assignment, neighbours: Iterable[Assignment]) -> edits.Edits:
        """Return no edits beside those that bring the GPUs."""
        return edits.NOTHING

    def link_owner(self, folder: str, owner: str) -> None:
        """Do nothing: no folder is made."""

    def folders(self, older_than_seconds: float) -> Sequence[str]:
        """Return no folders: none is made."""
        return ()

    def delete_folder(self, folder: str) -> None:
        """Do nothing: no folder is made."""

    def truncate_folders(self) -> None:
        """Do nothing: no folder is made."""
