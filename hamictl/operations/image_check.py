"""Check an image before an update: a pod of its own pulls and starts it on a node where the part runs.

The pod ends by itself after the check's time, so that one that a crash leaves holds nothing; `ops cleanup` deletes it.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_sharing.adapters import decoding, kubernetes, objects
from gpu_sharing.core import errors
from hamictl.operations import installed, writing

COMPONENT = "image-check"
_POLL_SECONDS = 0.5
_MODULE = "gpu_sharing.core.version"
"""Of our images, whose entry point runs a module: it ends at once with 0."""
_UNUSABLE = frozenset({
    "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerError", "CreateContainerConfigError",
    "RunContainerError", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed",
})  # fmt: skip
"""Reasons of a waiting container; `ErrImagePull` is tried again, and becomes `ImagePullBackOff`."""
_PLACING = ("nodeSelector", "tolerations", "affinity", "imagePullSecrets")


class _Terminated(msgspec.Struct, rename="camel"):
    exit_code: int = 0
    reason: str = ""
    message: str = ""


class _Waiting(msgspec.Struct):
    reason: str = ""
    message: str = ""


class _ContainerState(msgspec.Struct):
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _Container(msgspec.Struct, rename="camel"):
    state: _ContainerState = msgspec.field(default_factory=_ContainerState)
    image_id: str = msgspec.field(default="", name="imageID")


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[objects.Condition] | None = None
    container_statuses: list[_Container] | None = None


class CheckPod(msgspec.Struct):
    """The pod of a check, with the fields that are read."""

    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    status: _Status = msgspec.field(default_factory=_Status)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an image can be pulled and starts, and why."""

    is_usable: bool
    text: str


async def check(client: kubernetes.Client, part: installed.Part, image: str, timeout_seconds: float) -> Verdict:
    """Return whether a pod placed like those of the part pulls and starts the image. The pod is deleted."""
    namespace = part.workload.metadata.namespace
    path = f"/api/v1/namespaces/{namespace}/pods"
    body = json.dumps(pod_body(part, image, timeout_seconds)).encode()
    made = decoding.json_as(CheckPod, await client.post(path, body))
    path = f"{path}/{made.metadata.name}"
    try:
        return await _verdict(client, path, timeout_seconds)
    finally:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": made.metadata.uid}}
        try:
            await client.delete(path, body=json.dumps(options).encode())
        except errors.KubernetesError as problem:
            writing.progress(f"pod {made.metadata.name} is left: {problem}; hamictl ops cleanup deletes it")


async def _verdict(client: kubernetes.Client, path: str, timeout_seconds: float) -> Verdict:
    deadline, shown = time.monotonic() + timeout_seconds, ""
    while True:
        pod = await client.get(path, CheckPod)
        found = verdict(pod)
        if found is not None:
            return found
        state = _waiting_for(pod)
        if state != shown:
            shown = state
            writing.progress(f"pod {pod.metadata.name}: {shown}")
        if time.monotonic() > deadline:
            return Verdict(False, f"not known within {timeout_seconds:g} s: {shown}")
        await asyncio.sleep(_POLL_SECONDS)


def verdict(pod: CheckPod) -> Verdict | None:
    """Return the verdict by the pod's status; None while it is not known."""
    for container in pod.status.container_statuses or ():
        ended, waiting = container.state.terminated, container.state.waiting
        if ended is not None and ended.exit_code == 0:
            return Verdict(True, container.image_id or "its digest is not known")
        if ended is not None:
            detail = " ".join(filter(None, (ended.reason, ended.message)))
            return Verdict(False, f"its container ended with status {ended.exit_code}: {detail}".rstrip(": "))
        if waiting is not None and waiting.reason in _UNUSABLE:
            return Verdict(False, f"{waiting.reason}: {waiting.message}".rstrip(": "))
    if pod.status.phase == "Failed":
        return Verdict(False, f"{pod.status.reason}: {pod.status.message}".strip(": ") or "its pod failed")
    return None


def _waiting_for(pod: CheckPod) -> str:
    for container in pod.status.container_statuses or ():
        if container.state.waiting is not None:
            return container.state.waiting.reason or "waiting"
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status != "True":
            return f"not scheduled: {condition.message or condition.reason}"
    return pod.status.phase or "Pending"


def pod_body(part: installed.Part, image: str, timeout_seconds: float) -> dict[str, Any]:
    """Return the pod of a check: placed like those of the part, without a GPU, a token or privileges."""
    template = part.workload.spec.template.spec
    containers = [one for _, one in installed.containers(part)]
    policy = containers[-1].get("imagePullPolicy") or "IfNotPresent"
    security = {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True, "runAsUser": 65532,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    labels = {installed.LABEL: "hami", "app.kubernetes.io/component": COMPONENT, "hami.io/webhook": "ignore"}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "hami-image-check-", "labels": labels},
        "spec": {
            **{key: template[key] for key in _PLACING if template.get(key)},
            "restartPolicy": "Never", "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0,
            "activeDeadlineSeconds": max(int(timeout_seconds), 1),
            "containers": [{
                "name": "check", "image": image, "imagePullPolicy": policy, "args": [_MODULE],
                "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
                "securityContext": security,
            }],
        },
    }  # fmt: skip
