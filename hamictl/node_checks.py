"""Checks of the GPU node on which the command runs. Nothing is written."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import stat
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gpu_sharing.core import error_codes, json_text, requests
from hamictl import foreign_plugins, node_driver
from hamictl.findings import ERROR, WARNING, Check, Finding

_SOCKETS = (
    "run/containerd/containerd.sock", "run/crio/crio.sock", "run/cri-dockerd.sock",
    "run/k3s/containerd/containerd.sock", "run/k0s/containerd.sock", "var/snap/microk8s/common/run/containerd.sock",
)  # fmt: skip
"""Of containerd, CRI-O, cri-dockerd, k3s and RKE2, k0s, MicroK8s.

Source: docs.k3s.io and docs.rke2.io on containerd, docs.k0sproject.io/head/runtime, MicroK8s' `args/kubelet`.
"""
_CONTAINERD = (
    "etc/containerd/config.toml", "etc/containerd/conf.d/*.toml",
    "var/lib/rancher/k3s/agent/etc/containerd/config.toml", "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "etc/k0s/containerd.toml", "etc/k0s/containerd.d/*.toml",
    "var/snap/microk8s/current/args/containerd.toml",
)  # fmt: skip
"""The configurations that those containerds read; k3s and RKE2 write theirs from a template."""
_KUBELET_DIRS = ("var/lib/kubelet", "var/lib/k0s/kubelet", "var/snap/microk8s/common/var/lib/kubelet")
"""Of the kubelet itself, of k0s and of MicroK8s; k3s and RKE2 have the first."""
_MPS_PIPES = "run/nvidia/mps/pipe"
_CDI = ("etc/cdi", "run/cdi", "var/run/cdi")
"""The last is usually a link to the one before; in a pod with the host's root mounted the link is broken."""
_CHECKPOINT = "kubelet_internal_checkpoint"
_MPS_MODES = "compute-modes.json"
_OF_CONTAINERS = ("run/cdi/hami-vgpu_*.json", "usr/local/vgpu/containers/*_*")
"""CDI specifications and folders of containers, where the device plugin has them by default."""
_LEFT_SECONDS = 3600
_POD_UID = re.compile(r"(?:^|_)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:_|\.json$)")
"""The pod in the name of either; a folder that is named by a mark has none."""
_WRITTEN = ("run/cdi", "usr/local/vgpu")
"""Where the device plugin writes by default, besides the kubelet's folder; it creates missing folders."""


@dataclass(frozen=True, slots=True)
class Node:
    """The paths that are checked on a node."""

    root: pathlib.Path = pathlib.Path("/")
    """The host's root."""
    kubelet_dir: pathlib.Path = pathlib.Path("/var/lib/kubelet")
    least_free_mib: int = 1024
    """Less free space than this is a finding."""

    @property
    def sockets(self) -> pathlib.Path:
        """The folder of the sockets of kubelet and device plugins."""
        return self.kubelet_dir / "device-plugins"


def kubelet_dir(root: pathlib.Path) -> pathlib.Path:
    """Return the folder of the kubelet: the first known one with its socket, or else the usual one."""
    known = [root / name for name in _KUBELET_DIRS]
    return next((path for path in known if (path / "device-plugins/kubelet.sock").exists()), known[0])


def checks(node: Node, driver: node_driver.Reading) -> Iterator[Check]:
    """Yield every check with its findings, in the order of the output."""
    yield driver.label, driver.findings
    control = node.root / "dev/nvidiactl"
    yield "device nodes", _unless(control.exists(), error_codes.DOCTOR_NODE_DEVICES, "/dev/nvidiactl")
    yield "container runtime", _runtime(node.root)
    yield "CDI", _cdi(node.root)
    kubelet = node.sockets / "kubelet.sock"
    yield "kubelet", _unless(kubelet.exists(), error_codes.DOCTOR_NODE_KUBELET, str(kubelet))
    ours = any(node.sockets.glob("hami-*.sock"))
    yield "device plugin", _unless(ours, error_codes.DOCTOR_NODE_PLUGIN, f"{node.sockets}/hami-*.sock")
    yield "other device plugins", _other_plugins(node.sockets)
    yield "cgroups", _cgroups(node.root)
    yield "MPS", _mps(node.root / _MPS_PIPES)
    yield "leftovers", _leftovers(node)
    yield "folders", _folders(node)
    memory = node.root / "dev/shm"
    writable = memory.is_dir() and os.access(memory, os.W_OK)
    yield "shared memory", _unless(writable, error_codes.DOCTOR_NODE_SHARED_MEMORY, str(memory), WARNING)
    yield "space", _space(node)


def _unless(good: bool, code: error_codes.Code, detail: str, severity: str = ERROR) -> Iterable[Finding]:
    return () if good else (Finding(code, severity, "node", detail),)


def _runtime(root: pathlib.Path) -> Iterator[Finding]:
    if not any((root / one).exists() for one in _SOCKETS):
        detail = f"none of {len(_SOCKETS)} known sockets exists, such as /{_SOCKETS[0]}"
        yield Finding(error_codes.DOCTOR_NODE_RUNTIME, WARNING, "node", detail)


def _other_plugins(folder: pathlib.Path) -> Iterator[Finding]:
    """Report GPUs that another plugin has registered: by sockets, and by what the kubelet's checkpoint lists."""
    names = [path.name for path in folder.glob("*")] if folder.is_dir() else []
    signs = foreign_plugins.sockets(names)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        listed = json_text.value((folder / _CHECKPOINT).read_bytes())["Data"]["RegisteredDevices"] or {}
        offered = {resource: len(ids or ()) for resource, ids in listed.items()}
        signs += foreign_plugins.resources(offered, requests.ResourceNames())
    if signs:
        yield Finding(error_codes.DOCTOR_NODE_OTHER_PLUGIN, ERROR, "node", f"{folder}: {', '.join(signs)}")


def file_systems(node: Node) -> dict[str, pathlib.Path]:
    """Return the folders whose file systems a report measures, by their names on the host."""
    names = ("", "var/lib", "dev/shm", *_WRITTEN)
    folders = {f"/{name}": node.root / name for name in names}
    return {**folders, str(node.kubelet_dir): node.kubelet_dir}


def _cdi(root: pathlib.Path) -> Iterator[Finding]:
    if not any(_has_spec(root / folder) for folder in _CDI):
        yield Finding(error_codes.DOCTOR_NODE_CDI, WARNING, "node", "kind: nvidia.com/gpu")
    for pattern in _CONTAINERD:
        for path in sorted(root.glob(pattern)):
            # Only an explicit setting counts, because the default differs by version.
            if _switches_off(_toml(path)):
                yield Finding(error_codes.DOCTOR_NODE_CDI_OFF, WARNING, "node", f"/{path.relative_to(root)}")


def _has_spec(folder: pathlib.Path) -> bool:
    for path in (*folder.glob("*.json"), *folder.glob("*.yaml")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if "nvidia.com/gpu" in path.read_text():
                return True
    return False


def _toml(path: pathlib.Path) -> dict[str, Any]:
    """Return the file; empty if it is unreadable, which containerd itself reports."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}


def _switches_off(config: dict[str, Any]) -> bool:
    """Return whether CDI is disabled; versions 2 and 3 of the file have the setting under different plugins."""
    plugins = config.get("plugins")
    entries = plugins.values() if isinstance(plugins, dict) else ()
    return any(isinstance(one, dict) and one.get("enable_cdi") is False for one in entries)


def _cgroups(root: pathlib.Path) -> Iterator[Finding]:
    folder = root / "sys/fs/cgroup"
    if not (folder / "cgroup.controllers").exists():
        yield Finding(error_codes.DOCTOR_NODE_CGROUP, WARNING, "node", "no /sys/fs/cgroup/cgroup.controllers")


def _mps(pipes: pathlib.Path) -> Iterator[Finding]:
    if pipes.is_dir() and not _listens(pipes / "control"):
        yield Finding(error_codes.DOCTOR_NODE_MPS, WARNING, "node", f"{pipes}/control")

    modes = pipes.parent / _MPS_MODES
    if modes.exists() and not _listens(pipes / "control"):
        yield Finding(error_codes.DOCTOR_NODE_MPS_MODES, WARNING, "node", str(modes))


def _leftovers(node: Node) -> Iterator[Finding]:
    """Report files of containers whose pods the kubelet's checkpoint no longer names."""
    try:
        checkpoint = (node.sockets / _CHECKPOINT).read_text()
    except (OSError, UnicodeDecodeError):
        return  # Without it, it is not known which are needed.
    latest = time.time() - _LEFT_SECONDS
    for pattern in _OF_CONTAINERS:
        found = {path: match[1] for path in sorted(node.root.glob(pattern)) if (match := _POD_UID.search(path.name))}
        left = [path for path, uid in found.items() if uid not in checkpoint]
        old = [path for path in left if path.lstat().st_ctime < latest]
        if old:
            detail = f"{len(old):,} in {old[0].parent}, such as {old[0].name}"
            yield Finding(error_codes.DOCTOR_NODE_LEFTOVERS, WARNING, "node", detail)


def _listens(path: pathlib.Path) -> bool:
    """Return whether a process listens at a socket or a named pipe; the check sends no data."""
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as reading:
                reading.connect(str(path))
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _folders(node: Node) -> Iterator[Finding]:
    for folder in _kept(node):
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            yield Finding(error_codes.DOCTOR_NODE_FOLDER, ERROR, "node", str(folder))


def _space(node: Node) -> Iterator[Finding]:
    """Report each file system once, by its first folder."""
    result = set()
    for folder in (*_kept(node), node.root / "dev/shm"):
        if not folder.is_dir() or folder.stat().st_dev in result:
            continue
        result.add(folder.stat().st_dev)
        free_mib = shutil.disk_usage(folder).free >> 20
        if free_mib < node.least_free_mib:
            detail = f"{free_mib:,} MiB are free in {folder}"
            yield Finding(error_codes.DOCTOR_NODE_SPACE, WARNING, "node", detail)


def _kept(node: Node) -> list[pathlib.Path]:
    return [one for one in (node.sockets, *(node.root / name for name in _WRITTEN)) if one.exists()]
