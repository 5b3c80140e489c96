"""Find other device plugins for NVIDIA GPUs by what lies in the API and on a node, not by one image. Pure.

Source: the DaemonSets of NVIDIA/k8s-device-plugin, of kubernetes/cluster/addons/device-plugins/nvidia-gpu (GKE's), of
HAMi and of Project-HAMi/volcano-vgpu-device-plugin.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gpu_sharing.core import records, requests

NVIDIA = "NVIDIA's device plugin"
_FOLDER = "device-plugins"
_OUR_MODULE = "device_plugin"
_VENDORS = (
    ("Volcano's device plugin", re.compile(r"volcano")),
    ("HAMi's device plugin", re.compile(r"projecthami/|\bhami-device-plugin|4pd-(vgpu|device-plugin)")),
    ("GKE's device plugin", re.compile(r"nvidia-gpu-device-plugin")),
    (NVIDIA, re.compile(r"k8s-device-plugin|nvidia-device-plugin")),
)
"""Signs in names, labels, images and commands; the first match counts."""
_GPU = re.compile(r"nvidia|gpu|cuda")
_RESOURCES = re.compile(
    r"volcano\.sh/(v?gpu|vgpu-.*|gpu-.*)|aliyun\.com/gpu-.*|tencent\.com/vcuda-.*|[a-z0-9.-]*nvidia\.com/(mig-.*|gpu\.shared)"
)
"""Resources by which other plugins offer the same GPUs."""
_SOCKET = re.compile(r"nvidia|gpu|volcano|cuda", re.IGNORECASE)
VOLCANO_RECORD = "volcano.sh/node-vgpu-register"


def vendor(name: str, labels: Mapping[str, str], spec: Mapping[str, Any]) -> str:
    """Return which device plugin for NVIDIA GPUs a pod runs; empty for none, and for ours.

    Args:
        name: Of the DaemonSet or pod.
        labels: Of the pod.
        spec: Of the pod.
    """
    containers = [one for one in spec.get("containers") or () if isinstance(one, Mapping)]
    if any(str(text).partition(".")[0] == _OUR_MODULE for one in containers for text in (one.get("args") or ())[:1]):
        return ""
    text = " ".join((name, *(f"{key}={value}" for key, value in labels.items()), *_signs(containers)))
    known = next((title for title, sign in _VENDORS if sign.search(text)), "")
    if known:
        # A scheduler or an exporter of the same project has the same labels, and no plugin's folder.
        is_plugin = _mounts_folder(spec) or "device-plugin" in text
        return known if is_plugin else ""
    return "a device plugin" if _mounts_folder(spec) and _GPU.search(text) else ""


def _signs(containers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for container in containers:
        yield str(container.get("image", ""))
        yield str(container.get("name", ""))
        yield from map(str, (*(container.get("command") or ()), *(container.get("args") or ())))


def _mounts_folder(spec: Mapping[str, Any]) -> bool:
    """Return whether a pod mounts the kubelet's folder of device plugins, under whatever root the kubelet has."""
    paths = [str((volume.get("hostPath") or {}).get("path", "")) for volume in spec.get("volumes") or ()]
    return any(path.rstrip("/").endswith(f"/{_FOLDER}") for path in paths)


def resources(offered: Mapping[str, object], names: requests.ResourceNames) -> list[str]:
    """Return the resources, with their amounts, by which another plugin offers GPUs of a node.

    Args:
        offered: A node's `allocatable`, or the numbers of device ids that its kubelet has.
        names: Ours.
    """
    return [
        f"{key}: {amount}"
        for key, amount in sorted(offered.items())
        if key not in names.known() and _RESOURCES.fullmatch(key) and str(amount) not in ("0", "")
    ]


def annotations(found: Mapping[str, str]) -> list[str]:
    """Return the annotations of a node in which another plugin has published GPUs."""
    return [key for key in (VOLCANO_RECORD,) if found.get(key, "").strip("[]{} ")]


def is_ours(annotations_of_node: Mapping[str, str]) -> bool:
    """Return whether our device plugin serves a node."""
    return records.is_our_agent(annotations_of_node.get(records.AGENT))


def sockets(names: Iterable[str]) -> list[str]:
    """Return the sockets in the kubelet's folder that belong to another plugin for GPUs."""
    others = (name for name in names if name.endswith(".sock") and not name.startswith(("kubelet", "hami-")))
    return sorted(name for name in others if _SOCKET.search(name))
