"""The demo's output in a terminal: requests, placements with reasons, and the GPUs as bars."""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import rich.box
import rich.console
import rich.padding
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


def pod(
    world: demo_scenario.World, body: Mapping[str, Any], *, environment: bool = False
) -> rich.console.RenderableType:
    """Return one pod: its request, its outcome, and on demand the environment of its containers.

    Args:
        world: The cluster.
        body: The pod as its user wrote it; the API server changes amounts, such as 4000 into 4k.
        environment: Whether to show the containers' variables.
    """
    name = body["metadata"]["name"]
    request = rich.text.Text.assemble((name, "bold"), f"  requested {_requested(body)}")
    annotations = rich.text.Text(_annotations(body), style="dim")
    placed, rejected = world.note(name, "Scheduled"), world.note(name, "FailedScheduling")
    if placed:
        allocated = world.note(name, "DeviceAllocated").partition("\n")[0]
        outcome = rich.text.Text("\n".join(_lines(placed) + ([allocated] if allocated else [])), style="green")
    elif rejected:
        outcome = rich.text.Text("\n".join(_lines(rejected)), style="yellow")
    else:
        outcome = rich.text.Text("pending", style="red")
    for container, variables in sorted(world.environments.get(name, {}).items()) if environment else ():
        outcome.append(f"\ncontainer {container}", style="bold")
        outcome.append("".join(f"\n  {key}={value}" for key, value in sorted(variables.items())), style="dim")
    parts = [_indented(annotations, 6)] if annotations else []
    return rich.console.Group(_indented(request, 2), *parts, _indented(outcome, 6))


def _indented(text: rich.text.Text, columns: int) -> rich.padding.Padding:
    """Return a text with an indentation that its wrapped lines keep."""
    return rich.padding.Padding(text, (0, 0, 0, columns), expand=False)


def expectations(held: Sequence[tuple[str, bool]]) -> rich.console.RenderableType:
    """Return a line for each expectation, and how many held."""
    lines = rich.table.Table.grid(padding=(0, 2, 0, 0))
    for what, holds in held:
        lines.add_row("[green]ok[/green]" if holds else "[red]FAILED[/red]", what)
    return rich.console.Group(lines, f"\n{sum(holds for _, holds in held)} of {len(held)} expectations held")


def commands(suggested: Sequence[tuple[str, str]]) -> rich.padding.Padding:
    """Return commands with their purpose."""
    lines = rich.table.Table.grid(padding=(0, 2, 0, 0))
    for command, purpose in suggested:
        lines.add_row(rich.text.Text(command, style="bold"), purpose)
    return rich.padding.Padding(lines, (0, 0, 0, 2), expand=False)


def pending(world: demo_scenario.World) -> rich.console.RenderableType:
    """Return why pods are pending: the number of pods by reason, the most frequent first, each with an example."""
    by_reason: dict[str, list[str]] = collections.defaultdict(list)
    for name, body in world.pods.items():
        if not body["spec"].get("nodeName"):
            by_reason[_reason(world, name)].append(name)
    if not by_reason:
        return "no pod is pending"
    count = sum(map(len, by_reason.values()))
    parts = [_indented(rich.text.Text(f"{count} {'pod is' if count == 1 else 'pods are'} pending:"), 0)]
    for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        _, *details = _lines(world.note(names[0], "FailedScheduling")) or [""]
        parts.append(_indented(rich.text.Text(f"{len(names)}: {reason}"), 2))
        example = f"for example {names[0]}" + (f", on {details[0]}" if details else "")
        parts.append(_indented(rich.text.Text(example, style="dim"), 6))
    return rich.console.Group(*parts)


def _reason(world: demo_scenario.World, name: str) -> str:
    """Return the reasons of a pending pod without numbers of nodes, the most frequent first."""
    note = world.note(name, "FailedScheduling").partition("\n")[0]
    if not note:
        conditions = world.pods[name]["status"].get("conditions") or ()
        note = next((one["message"] for one in conditions if one.get("reason") == "Unschedulable"), "not tried yet")
    _, _, counts = note.partition(": ")
    return re.sub(r"(^|, )\d+ ", r"\1", counts or note).rstrip(".")


def gpus(world: demo_scenario.World) -> rich.table.Table:
    """Return every GPU with a bar of its memory, and its pods."""
    holders: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(world.pods):
        for uuid in sorted(world.uuids(name)):
            holders[uuid].append(name)
    table = rich.table.Table(
        title="GPUs", title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("node", no_wrap=True)
    table.add_column("GPU", no_wrap=True)
    # On 80 columns the names of pods wrap, nothing else.
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


def _requested(body: Mapping[str, Any]) -> str:
    parts = []
    for container in (*body["spec"].get("initContainers", ()), *body["spec"]["containers"]):
        limits = container["resources"].get("limits", {})
        wants = ", ".join(f"{key.partition('/')[2]} {value}" for key, value in limits.items() if "nvidia.com/" in key)
        parts.append(wants or "no GPU")
    return " + ".join(parts)


def _annotations(body: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{key}: {value}"
        for key, value in (body["metadata"].get("annotations") or {}).items()
        if key in (demo_scenario.TYPE, demo_scenario.UUID, demo_scenario.GPU_POLICY)
    )


def _lines(note: str) -> list[str]:
    return [line.strip() for line in note.split("\n")]
