"""What a kubelet's books say of a pod: held by the stand-in and by a real kubelet alike.

The pod has an init container `prepare` and two containers `c0` and `c1`, each with one GPU.
"""

import asyncio
import pathlib
from typing import Any

from device_plugin.kubelet import checkpoint, podresources

GPU = "nvidia.com/gpu"


def check_books(kubelet_dir: pathlib.Path, pod: dict[str, Any]) -> None:
    """The checkpoint and podresources of a pod that was admitted and runs."""
    uid = pod["metadata"]["uid"]
    entries = checkpoint.read((kubelet_dir / checkpoint.FILE).read_bytes(), GPU)
    mine = {entry.container: entry for entry in entries if entry.pod_uid == uid}

    assert set(mine) == {"prepare", "c0", "c1"}
    assert all(len(entry.device_ids) == 1 for entry in mine.values())
    # Ids of a plain init container are used again by an app container, each after an Allocate of its own.
    assert mine["prepare"].device_ids in (mine["c0"].device_ids, mine["c1"].device_ids)
    assert mine["c0"].device_ids.isdisjoint(mine["c1"].device_ids)
    names = [name for entry in mine.values() for name in entry.cdi_names]
    assert len(names) == len(set(names)) == 3
    assert all(entry.environment == {"NVIDIA_VISIBLE_DEVICES": "void"} for entry in mine.values())

    listed = asyncio.run(_listed(kubelet_dir))
    found = {one.container: one.device_ids for one in listed if one.pod == pod["metadata"]["name"]}
    assert found == {"c0": mine["c0"].device_ids, "c1": mine["c1"].device_ids}


async def _listed(kubelet_dir: pathlib.Path) -> tuple[podresources.ListedContainer, ...]:
    client = podresources.PodResources(kubelet_dir, GPU)
    try:
        return await client.listed()
    finally:
        await client.close()
