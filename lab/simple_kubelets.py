"""The kubelets of all nodes without a device plugin, in one task: bound pods run, deleted pods are removed.

The record of a pod that runs is completed as the device plugin does.
"""

import asyncio
import hashlib
from typing import Any

from gpu_sharing.core import records
from lab import api_server, kinds, store

_START_SECONDS = 0.05


def container_id(pod: store.Object, name: str) -> str:
    """Return the id of a container."""
    return hashlib.sha256(f"{pod['metadata']['uid']}/{name}".encode()).hexdigest()


def running(pod: store.Object) -> dict[str, Any]:
    """Return the status of a pod whose init containers have succeeded and whose containers run."""
    spec = pod["spec"]
    done = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": store.now(), "startedAt": store.now()}}
    runs = {"running": {"startedAt": store.now()}}

    def status(container: dict[str, Any], state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
        return {
            "name": container["name"], "image": container.get("image", ""), "imageID": "", "restartCount": 0,
            "ready": ready, "started": ready, "state": state,
            "containerID": f"containerd://{container_id(pod, container['name'])}",
        }  # fmt: skip

    return {
        **pod.get("status", {}),
        "phase": "Running",
        "startTime": store.now(),
        "initContainerStatuses": [
            status(one, runs if one.get("restartPolicy") == "Always" else done, ready=True)
            for one in spec.get("initContainers") or ()
        ],
        "containerStatuses": [status(one, runs, ready=True) for one in spec["containers"]],
    }


async def run(server: api_server.ApiServer, others: frozenset[str] = frozenset()) -> None:
    """Serve every node except some until cancelled."""
    keep = server.store
    watcher = keep.watch(kinds.PODS, keep.version)
    present = [key for key, _ in keep.all(kinds.PODS)]
    for key in present:
        _serve(keep, key, others)
    try:
        while True:
            change = await watcher.queue.get()
            if change is None:  # The watches were ended; later changes are in the store.
                watcher = keep.watch(kinds.PODS, keep.version)
                for key, _ in list(keep.all(kinds.PODS)):
                    _serve(keep, key, others)
            elif change.after is not None:
                metadata = change.after["metadata"]
                key = (metadata["namespace"], metadata["name"])
                asyncio.get_running_loop().call_later(_START_SECONDS, _serve, keep, key, others)
    finally:
        keep.unwatch(watcher)


def _serve(keep: store.Store, key: store.Key, others: frozenset[str]) -> None:
    try:
        pod = keep.get(kinds.PODS, *key)
    except store.ApiError:
        return
    if pod["spec"].get("nodeName", "") in ("", *others):
        return
    if pod["metadata"].get("deletionTimestamp"):
        keep.remove(kinds.PODS, key, pod)
    elif pod.get("status", {}).get("phase") == "Pending":
        metadata = pod["metadata"]
        annotations = dict(metadata.get("annotations") or {})
        if annotations.get(records.BIND_PHASE) == records.PHASE_ALLOCATING:
            annotations[records.BIND_PHASE] = records.PHASE_SUCCESS
        changed = {"metadata": {**metadata, "annotations": annotations}, "status": running(pod)}
        keep.replace(kinds.PODS, key, pod, {**pod, **changed})
