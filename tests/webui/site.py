"""The demo's cluster after its story, with a unhealthy GPU, monitors, and the WebUI in front of it."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gpu_sharing.core import records
from hamictl import demo_scenario
from lab import cluster, kinds, stub_monitors, webui_process

SICK_NODE, SICK_GPU = "node-02", 3
PAGES = {
    "overview": "/",
    "nodes": "/nodes",
    "node": "/nodes/node-01",
    "pods": "/pods",
    "pod": "/pods/default/too-big",
    "story": "/pods/default/share-a",
    "search": "/search?q=a",
    "nobody": "/nodes/nobody",
}
"""Every kind of page, by a name for its picture."""


@dataclass(frozen=True, slots=True)
class Site:
    """What runs."""

    lab: cluster.Cluster
    webui: webui_process.WebUIProcess
    monitors: str
    """Their Service."""


def nodes() -> list[dict[str, Any]]:
    """The demo's nodes; one GPU has failed."""
    found = demo_scenario.nodes()
    for node in found:
        if node["metadata"]["name"] == SICK_NODE:
            annotations = node["metadata"]["annotations"]
            inventory = list(records.decode_inventory(annotations[records.INVENTORY]))
            unhealthy = replace(inventory[SICK_GPU], healthy=False)
            inventory[SICK_GPU] = unhealthy
            annotations[records.INVENTORY] = records.encode_inventory(inventory)
            cause = "XID 79: the GPU has fallen off the bus"
            annotations[records.HEALTH] = json.dumps({unhealthy.uuid: {"state": "unhealthy", "cause": cause}})
    return found


@contextlib.contextmanager
def running(folder: pathlib.Path, *arguments: str) -> Iterator[Site]:
    """All of it, once the story is over."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(cluster.running(nodes()))
        for chapter in demo_scenario.chapters():
            for body in chapter.pods:
                lab.create(kinds.PODS, body)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if len([one for one in lab.all(kinds.PODS) if one["spec"].get("nodeName")]) >= 10:
                break
            time.sleep(0.2)
        names = [node["metadata"]["name"] for node in nodes()]
        monitors = stack.enter_context(stub_monitors.serving(lab, names))
        process = webui_process.WebUIProcess(
            folder,
            f"http://{lab.extender.api}",
            "--monitor-service",
            monitors,
            "--kubeconfig",
            str(lab.kubeconfig),
            *arguments,
        )
        yield Site(lab, stack.enter_context(webui_process.running(process)), monitors)
