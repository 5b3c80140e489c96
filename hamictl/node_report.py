"""What a machine is, beside what is wrong with it: sizes, GPUs with temperatures, container, variables."""

import contextlib
import dataclasses
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Mapping
from typing import Any

from hamictl import node_driver

_VARIABLES = ("HAMI_", "NVIDIA_", "CUDA_")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|KEY")
_POD_VARIABLES = ("NODE_NAME", "POD_NAME", "POD_NAMESPACE", "KUBERNETES_SERVICE_HOST")
_ACCOUNT = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NO_LIMIT = 1 << 60


def facts(root: pathlib.Path, folders: Mapping[str, pathlib.Path], driver: node_driver.Reading) -> dict[str, Any]:
    """Return the report of the machine, with units in the names.

    Args:
        root: The host's root.
        folders: Folders whose file systems are measured, by their names on the host.
        driver: What the driver answered.
    """
    return {
        "kind": "node",
        "hostname": platform.node(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        **_memory(pathlib.Path("/proc/meminfo")),
        "file_systems": _file_systems(folders),
        "driver": driver.version,
        "cuda": driver.cuda,
        "gpus": [dataclasses.asdict(gpu) for gpu in driver.gpus],
        "container": _container(root),
        "environment": _environment(os.environ),
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines for a table."""
    container = report["container"]
    where = (
        f"in a container (namespace {container['namespace'] or 'unknown'})"
        if container["is_container"]
        else "on the host"
    )
    memory = f"{report.get('memory_mib', 0):,} MiB, {report.get('memory_available_mib', 0):,} MiB available"
    texts = [f"{report['hostname']}, {where}: {report['cpus']} CPUs, memory {memory}, kernel {report['kernel']}"]
    texts += [
        f"disk {one['folder']}: {one['size_mib']:,} MiB, {one['free_mib']:,} MiB free" for one in report["file_systems"]
    ]
    for gpu in report["gpus"]:
        celsius = "temperature unknown" if gpu["temperature_celsius"] is None else f"{gpu['temperature_celsius']} °C"
        memory = "" if gpu["memory_mib"] is None else f", {gpu['memory_used_mib']:,} of {gpu['memory_mib']:,} MiB used"
        texts.append(f"GPU {gpu['index']} {gpu['name']}: {celsius}{memory}")
    variables = report["environment"]
    if variables:
        texts.append(f"variables: {', '.join(f'{key}={value}' for key, value in variables.items())}")
    return texts


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this project, of NVIDIA's and of the pod; what may be a secret without its value."""
    kept = {key: text for key, text in variables.items() if key.startswith(_VARIABLES) or key in _POD_VARIABLES}
    return {key: "(hidden)" if _SECRET.search(key) else text for key, text in sorted(kept.items())}


def _memory(path: pathlib.Path) -> dict[str, int]:
    """Return total and available memory, and the limit of a container's cgroup where there is one."""
    sizes: dict[str, int] = {}
    names = {"MemTotal": "memory_mib", "MemAvailable": "memory_available_mib"}
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, amount = line.partition(":")
            if name in names:
                sizes[names[name]] = int(amount.split()[0]) >> 10
    with contextlib.suppress(OSError, ValueError):
        limit = int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text())
        if limit < _NO_LIMIT:
            sizes["memory_limit_mib"] = limit >> 20
    return sizes


def _file_systems(folders: Mapping[str, pathlib.Path]) -> list[dict[str, Any]]:
    """Return each file system once, by its first folder."""
    seen: dict[int, dict[str, Any]] = {}
    for name, folder in folders.items():
        with contextlib.suppress(OSError):
            usage, device = shutil.disk_usage(folder), folder.stat().st_dev
            seen.setdefault(device, {"folder": name, "size_mib": usage.total >> 20, "free_mib": usage.free >> 20})
    return list(seen.values())


def _container(root: pathlib.Path) -> dict[str, Any]:
    """Return whether and how this runs in a container."""
    namespace = cgroup = capabilities = ""
    with contextlib.suppress(OSError):
        namespace = _ACCOUNT.read_text().strip()
    with contextlib.suppress(OSError):
        cgroup = pathlib.Path("/proc/self/cgroup").read_text().strip().rpartition("\n")[2]
    with contextlib.suppress(OSError):
        status = pathlib.Path("/proc/self/status").read_text()
        capabilities = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "")
    marked = any(pathlib.Path(name).exists() for name in ("/.dockerenv", "/run/.containerenv"))
    return {
        "is_container": marked or bool(namespace) or "KUBERNETES_SERVICE_HOST" in os.environ,
        "namespace": namespace,
        "cgroup": cgroup,
        "user_id": os.getuid(),
        "effective_capabilities": capabilities,
        "host_root": str(root),
    }
