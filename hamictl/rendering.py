"""The demo's output in a terminal: requests, placements with reasons, and the GPUs as bars."""

import collections
from typing import Any

import msgspec
import rich.box
import rich.table
import rich.text

from gpu_sharing.adapters import objects
from gpu_sharing.core import allocations, requests
from hamictl import demo_scenario

MOST_PODS_SHOWN = 20
MOST_NODES_SHOWN = 20
_BAR = 10


def allocated(world: demo_scenario.World) -> dict[str, allocations.Allocation]:
    """Return the allocation of each GPU; a GPU without pods has an empty one."""
    by_gpu: dict[str, allocations.Allocation] = collections.defaultdict(allocations.Allocation)
    for name, body in world.pods.items():
        seen = msgspec.convert(dict(body), objects.Pod, strict=False)
        kinds = requests.kinds_of(seen.init_containers, seen.containers)
        shares = world.shares(name) or tuple(() for _ in kinds)
        for uuid, allocation in allocations.by_gpu(kinds, shares).items():
            by_gpu[uuid] = by_gpu[uuid].plus(allocation)
    return by_gpu


def pod(world: demo_scenario.World, name: str, *, environment: bool = False) -> rich.text.Text:
    """Return one pod: its request, its outcome, and on demand the environment of its containers."""
    body = world.pods[name]
    line = rich.text.Text(f"  {name}", style="bold")
    line.append(f"  requested {_requested(body)}\n", style="default")
    placed = world.note(name, "Scheduled")
    refused = world.note(name, "FailedScheduling")
    if placed:
        line.append(_indented(placed), style="green")
        allocated = world.note(name, "DeviceAllocated").partition("\n")[0]
        line.append(f"\n      {allocated}" if allocated else "", style="green")
    elif refused:
        line.append(_indented(refused), style="yellow")
    else:
        line.append("      pending", style="red")
    for container, variables in sorted(world.environments.get(name, {}).items()) if environment else ():
        line.append(f"\n      container {container}", style="bold")
        line.append("".join(f"\n        {key}={value}" for key, value in sorted(variables.items())), style="dim")
    return line


def gpus(world: demo_scenario.World) -> rich.table.Table:
    """Return every GPU with a bar of its memory, and its pods."""
    holders: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(world.pods):
        for uuid in sorted(world.uuids(name)):
            holders[uuid].append(name)
    table = rich.table.Table(title="GPUs", title_justify="left", box=rich.box.SIMPLE_HEAD)
    table.add_column("node")
    table.add_column("GPU")
    # On 80 columns the words wrap, never the bar and the numbers.
    table.add_column("memory", no_wrap=True)
    table.add_column("of MiB", no_wrap=True, justify="right")
    table.add_column("cores", no_wrap=True, justify="right")
    table.add_column("pods")
    amounts = allocated(world)
    for node, inventory in sorted(world.nodes.items()):
        for gpu in inventory:
            allocation = amounts[gpu.uuid]
            filled = round(_BAR * allocation.memory_mib / max(gpu.memory_mib, 1))
            table.add_row(
                node,
                f"{gpu.index} {gpu.type.removeprefix('NVIDIA ').removeprefix('NVIDIA-')}",
                rich.text.Text("█" * filled, style="cyan") + rich.text.Text("░" * (_BAR - filled), style="dim"),
                f"{allocation.memory_mib}/{gpu.memory_mib}",
                f"{allocation.cores_percent} %",
                ", ".join(holders[gpu.uuid]),
            )
    return table


def _requested(body: dict[str, Any] | Any) -> str:
    parts = []
    for container in (*body["spec"].get("initContainers", ()), *body["spec"]["containers"]):
        limits = container["resources"].get("limits", {})
        wants = ", ".join(f"{key.partition('/')[2]} {value}" for key, value in limits.items() if "nvidia.com/" in key)
        parts.append(wants or "no GPU")
    wishes = [
        f"{key.partition('/')[2]} {value}"
        for key, value in (body["metadata"].get("annotations") or {}).items()
        if key in (demo_scenario.TYPE, demo_scenario.UUID, demo_scenario.GPU_POLICY)
    ]
    return " + ".join(parts) + (f" ({', '.join(wishes)})" if wishes else "")


def _indented(note: str) -> str:
    return "\n".join(f"      {line.strip()}" for line in note.split("\n"))
