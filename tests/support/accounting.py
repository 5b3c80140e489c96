"""Adds up what pods hold, from the API objects alone, without any code of the extender's."""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

RECORD = "hami.io/vgpu-devices-allocated"


@dataclasses.dataclass
class Held:
    """What is held of one GPU."""

    memory_mib: int = 0
    cores_percent: int = 0
    containers: int = 0
    exclusive: int = 0


def wants_gpu(pod: Mapping[str, Any]) -> bool:
    return any(
        name.startswith("nvidia.com/gpu")
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
        for name in (container.get("resources") or {}).get("limits", {})
    )


def devices(pod: Mapping[str, Any]) -> list[list[tuple[str, int, int]]]:
    """Per container, init containers first: UUID, MiB and cores of each GPU."""
    text = pod["metadata"].get("annotations", {}).get(RECORD, "")
    containers = []
    for entry in text.split(";")[:-1]:
        fields = [part.split(",") for part in entry.split(":") if part]
        containers.append([(uuid, int(mib), int(cores)) for uuid, _vendor, mib, cores in fields])
    return containers


def held(pods: Iterable[Mapping[str, Any]]) -> dict[str, Held]:
    """What bound pods hold of each GPU, by UUID."""
    found: dict[str, Held] = collections.defaultdict(Held)
    for pod in pods:
        for container in devices(pod) if pod["spec"].get("nodeName") and wants_gpu(pod) else ():
            for uuid, mib, cores in container:
                one = found[uuid]
                one.memory_mib += mib
                one.cores_percent += cores
                one.containers += 1
                one.exclusive += cores >= 100
    return found


def violations(nodes: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every GPU that is allocated more than it has, and every bound GPU pod without a record.

    Pods with init containers are not handled: their containers do not hold at one time.
    """
    have: dict[str, Mapping[str, Any]] = {}
    home: dict[str, str] = {}
    for node in nodes:
        for gpu in json.loads(node["metadata"]["annotations"].get("hami.io/node-nvidia-register", "[]")):
            have[gpu["id"]] = gpu
            home[gpu["id"]] = node["metadata"]["name"]
    pods = list(pods)
    found = []
    for pod in pods:
        if not pod["spec"].get("nodeName") or not wants_gpu(pod):
            continue
        name = pod["metadata"]["name"]
        if not devices(pod):
            found.append(f"{name} is bound without a record")
        for container in devices(pod):
            for uuid, _, _ in container:
                if home.get(uuid) != pod["spec"]["nodeName"]:
                    found.append(f"{name} holds {uuid}, which is not on its node")
    for uuid, one in held(pods).items():
        gpu = have.get(uuid, {"devmem": 0, "devcore": 0, "count": 0})
        if one.memory_mib > gpu["devmem"] or one.cores_percent > gpu["devcore"] or one.containers > gpu["count"]:
            found.append(f"{uuid} is allocated {one}, it has {gpu}")
        if one.exclusive and one.containers > 1:
            found.append(f"{uuid} is exclusive and shared: {one}")
    return found
