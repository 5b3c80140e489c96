"""`hamictl gpu release`: make plugin and monitor close one GPU, so that it can be reset or its MIG mode changed."""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import errors, gpus, identifiers, records
from hamictl import api_server, failures, flags, snapshot

_POLL_SECONDS = 0.5
_TRIES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the GPU, and of the end of its release."""
    parser.add_argument("action", choices=["release"], metavar="release", help="close the GPU")
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("gpu", metavar="GPU", help="its index on the node, or its UUID")
    parser.add_argument("--cancel", action="store_true", help="end the release: the GPU is used again")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait for the plugin (default 60)"
    )
    flags.add_cluster(parser)


def run(options: argparse.Namespace) -> int:
    """Write the annotation, and wait until the device plugin has applied it."""

    async def release(client: kubernetes.Client) -> int:
        return await _release(client, options)

    files = flags.kubeconfigs(options)
    return api_server.call(files, options.context, release, rights="get and patch nodes, and list pods")


async def _release(client: kubernetes.Client, options: argparse.Namespace) -> int:
    path = f"/api/v1/nodes/{options.node}"
    gpu = await _write(client, path, options.gpu, cancel=options.cancel)
    what = f"GPU-{gpu.index} {gpu.uuid} of {options.node}"
    done = await _wait(client, path, gpu.uuid, options.timeout, cancel=options.cancel)
    if options.cancel:
        unconfirmed = f"{what} is no longer released; the device plugin has not confirmed it yet"
        print(f"{what} is used again" if done else unconfirmed)
        return 0 if done else failures.NEGATIVE
    if not done:
        print(f"{what} gets no new pods; the device plugin has not closed it within {options.timeout:g} s")
        print(f"  see kubectl get node {options.node} -o yaml: hami.io/gpu-health and hami.io/node-problems")
        return failures.NEGATIVE
    holders = await _holders(client, options.node, gpu.uuid)
    print(f"{what} is released: no new pods, and the device plugin has closed it; the monitor follows within seconds")
    if holders:
        print(f"it is still held by {', '.join(holders)}: delete them first")
    print(f"on the node:    nvidia-smi --gpu-reset -i {gpu.uuid}")
    print(f"and after that: hamictl gpu release {options.node} {gpu.uuid} --cancel")
    return 0


async def _write(client: kubernetes.Client, path: str, wanted: str, *, cancel: bool) -> gpus.Gpu:
    """Add the GPU to the annotation, or remove it; retry if another client changes the node at the same time."""
    for turn in range(_TRIES):
        node = await client.get(path, objects.Node)
        annotations = node.metadata.annotations or {}
        gpu = _find(annotations.get(records.INVENTORY, ""), wanted)
        released = set(records.decode_cordon(annotations.get(records.RELEASE, "")))
        released = released - {gpu.uuid} if cancel else released | {gpu.uuid}
        value = ",".join(sorted(released)) or None
        metadata = {"annotations": {records.RELEASE: value}, "resourceVersion": node.metadata.resource_version}
        try:
            await client.patch(path, json.dumps({"metadata": metadata}).encode())
            break
        except errors.Conflict:
            if turn == _TRIES - 1:
                raise
    return gpu


def _find(inventory: str, wanted: str) -> gpus.Gpu:
    try:
        gpus_of_node: Sequence[gpus.Gpu] = records.decode_inventory(inventory or "[]")
    except errors.CorruptRecord as cause:
        raise failures.CommandFailed(f"the node's record of its GPUs cannot be read: {cause}") from cause
    match = [gpu for gpu in gpus_of_node if wanted in (gpu.uuid, str(gpu.index))]
    if not match:
        known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus_of_node) or "none"
        raise failures.CommandFailed(f"no such GPU: {wanted}", f"the node has {known}", failures.NEGATIVE)
    return match[0]


async def _wait(
    client: kubernetes.Client, path: str, uuid: identifiers.GpuUuid, timeout_seconds: float, *, cancel: bool
) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while True:
        annotations = (await client.get(path, objects.Node)).metadata.annotations or {}
        cause = records.decode_unhealthy_reasons(annotations.get(records.HEALTH, "")).get(uuid, "")
        if cause.startswith(records.RELEASED) is not cancel:
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)


async def _holders(client: kubernetes.Client, node: str, uuid: identifiers.GpuUuid) -> list[str]:
    pods = await snapshot.list_all(client, f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}", objects.Pod)
    alive = (pod for pod in pods if not pod.has_ended)
    return sorted(pod.key for pod in alive if uuid in pod.annotations.get(records.ALLOCATED, ""))
