"""The container of a process, by its cgroup.

Read from the host's `/proc`, whose process ids are those that the driver reports to a pod with `hostPID`. The cgroup's
path has the pod's UID and the container's id with every runtime and cgroup driver; the first such pair counts, because
a container may make cgroups with any name below its own.

Source: proc(5); the kubelet's cgroup names (cgroupfs `pod<uid>/<id>`, systemd
`…-pod<uid with _>.slice/<runtime>-<id>.scope`).
"""

import pathlib
import re
from typing import NamedTuple

from gpu_sharing.core import identifiers

_OWNER = re.compile(
    r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?:\.slice)?/(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?(?=[/\n]|$)"
)


class ContainerOfProcess(NamedTuple):
    """The container of a process."""

    pod: identifiers.PodUid
    container_id: str
    """Without the prefix that names the runtime."""


def container_of(proc: pathlib.Path, pid: int) -> ContainerOfProcess | None:
    """Return the container of a process; None for a process of the host, or one that has ended."""
    try:
        return parse((proc / str(pid) / "cgroup").read_text(errors="replace"))
    except OSError:
        return None


def parse(text: str) -> ContainerOfProcess | None:
    """Return the container that a `/proc/<pid>/cgroup` names; None where it names none."""
    match = _OWNER.search(text)
    return ContainerOfProcess(identifiers.PodUid(match[1].replace("_", "-")), match[2]) if match else None
