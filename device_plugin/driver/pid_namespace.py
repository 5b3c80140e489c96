"""Whether this process is in the PID namespace of the host, without which the driver lists no processes to it.

Since 535.113.01 NVIDIA's kernel module translates process ids into the namespace of its caller and leaves out every
process that has no id there. So a pod without `hostPID` reads an empty list, as if no container used a GPU.

To compare `/proc/self/ns/pid` with `/proc/1/ns/pid` needs the right to trace process 1. The line `NSpid` of this
process's own status needs no right: read through the host's `/proc` it has one id for each namespace, from the host's
inwards.

Source: proc_pid_status(5); `os_find_ns_pid` in NVIDIA's open-gpu-kernel-modules.
"""

import pathlib


def problem(proc: pathlib.Path) -> str:
    """Return why the driver shows this process no processes of containers, or an empty string where it does.

    Args:
        proc: The host's `/proc`, where it is mounted. In a process's own `/proc` the line always has one id.
    """
    try:
        lines = (proc / "self" / "status").read_text(errors="replace").splitlines()
    except OSError as cause:
        return f"{proc}/self/status cannot be read ({cause.strerror or cause}): {proc} is not the host's"
    # A kernel without the line knows no namespaces of processes.
    ids = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    if len(ids) <= 1:
        return ""
    return f"this process has the ids {', '.join(ids)} in nested PID namespaces, so it is not in the host's"
