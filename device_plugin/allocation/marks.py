"""The mark by which a running container's allocation is found. Pure.

A container that was bound by CDI has the host's `/dev/null` mounted under the allocation's name: mounts stand in the
process's mountinfo, which may be read without the right to trace it.
"""

from device_plugin.delivery import edits
from gpu_sharing.core import variables

NAME_VARIABLE = variables.ALLOCATION
"""Variable with the allocation's name; a running container without it shows a runtime that ignores CDI."""

MOUNT_FOLDER = "/run/hami.io"


def mark_for(allocation: str, *, by_cdi: bool) -> edits.Edits:
    """Return the edits that mark a container with its allocation."""
    if not allocation:
        return edits.NOTHING
    mounts = (edits.Mount("/dev/null", f"{MOUNT_FOLDER}/{allocation}"),) if by_cdi else ()
    return edits.Edits({NAME_VARIABLE: allocation}, mounts)
