"""The review of a pod that is being created: refused with a reason, or completed with defaults. Pure.

A mistake shows in `kubectl apply` then, and not minutes later in an event. Placement does not depend on it: filter and
bind read requests by the same rules, so that a pod that was created without the webhook is treated alike.

Source: HAMi v2.10, `pkg/scheduler/webhook.go`, for what is set and what is denied.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_sharing.adapters import objects
from gpu_sharing.core import error_codes, errors, gangs, quantities, requests, variables
from scheduler_extender.cluster import from_objects
from scheduler_extender.settings import Settings

IGNORE_LABEL, IGNORE = "hami.io/webhook", "ignore"
"""On a pod (or, in the webhook's configuration, a namespace): leave it alone."""
DEFAULT_SCHEDULER = "default-scheduler"
PRIORITY_VARIABLE = "CUDA_TASK_PRIORITY"
VISIBLE_VARIABLE, VOID = "NVIDIA_VISIBLE_DEVICES", "void"
_MIRROR = "kubernetes.io/config.mirror"
"""On the API server's copy of a static pod, which no scheduler places."""


@dataclass(frozen=True, slots=True)
class AdmissionResult:
    """What becomes of a pod."""

    refused: str = ""
    """Why it is not created, with its code; empty where it is."""
    patch: tuple[Mapping[str, Any], ...] = ()
    """RFC 6902 operations."""
    warnings: tuple[str, ...] = ()
    """What the user should know, as `kubectl` prints it."""
    request: requests.PodRequest | None = None
    """What the pod requests, where it is scheduled by us."""
    gang: gangs.Gang | None = None


def review(body: Mapping[str, Any], settings: Settings) -> AdmissionResult:
    """Return the review of a pod.

    Args:
        body: The pod as the API server sends it.
        settings: Names, and what else is to be set.

    Raises:
        msgspec.ValidationError: It is not a pod.
    """
    pod = msgspec.convert(body, objects.Pod)
    if (pod.metadata.labels or {}).get(IGNORE_LABEL) == IGNORE or _MIRROR in pod.annotations:
        return AdmissionResult()
    names = settings.resource_names
    if not from_objects.is_ours(pod, names):
        return AdmissionResult(
            patch=_patch(body, _completed(body, None, settings)), warnings=_unknown_words(pod, names)
        )
    request = requests.read(pod.init_containers, pod.containers, pod.annotations, names, counts_follow=True)
    scheduler = pod.spec.scheduler_name or DEFAULT_SCHEDULER
    ours = scheduler == settings.scheduler_name or (scheduler == DEFAULT_SCHEDULER and settings.force_overwrite)
    if not ours:
        text = f"the pod requests GPUs, but its schedulerName {scheduler} is not {settings.scheduler_name}"
        return AdmissionResult(warnings=(f"{text}: it will get none that are shared", *_unknown_words(pod, names)))
    if isinstance(request, requests.InvalidRequest):
        return AdmissionResult(f"{request.code}: {request.sentence}")
    own_variables = _own_variables(body, request)
    denial = _denial(pod, body, request, settings, own_variables)
    if denial:
        return AdmissionResult(denial)
    try:
        gang = from_objects.read_gang(pod) if request.wants_gpu else None
        completed = _completed(body, request, settings)
    except errors.BadQuantity as bad:
        return AdmissionResult(f"{bad.code}: {bad.sentence}")
    if gang:
        gates = completed["spec"].get("schedulingGates") or []
        if {"name": gangs.GATE} not in gates:
            completed["spec"]["schedulingGates"] = [*gates, {"name": gangs.GATE}]
    warnings = (*request.warnings, *([own_variables] if own_variables else ()))
    return AdmissionResult(patch=_patch(body, completed), warnings=warnings, request=request, gang=gang)


def _unknown_words(pod: objects.Pod, names: requests.ResourceNames) -> tuple[str, ...]:
    return tuple(requests.unknown_words((*pod.init_containers, *pod.containers), pod.annotations, names))


def _denial(
    pod: objects.Pod, body: Mapping[str, Any], request: requests.PodRequest, settings: Settings, own_variables: str
) -> str:
    """Why a pod with a valid request is refused, or an empty string."""
    if pod.spec.node_name and request.wants_gpu:
        return (
            f"{error_codes.NODE_NAME_SET}: spec.nodeName is set, so that no scheduler chooses GPUs for the pod; remove "
            "it and write under requiredDuringSchedulingIgnoredDuringExecution of a nodeAffinity the matchFields "
            f"{{key: metadata.name, operator: In, values: [{pod.spec.node_name}]}}"
        )
    privileged = _privileged(body, request)
    if privileged and not settings.allow_privileged:
        return (
            f"{error_codes.PRIVILEGED}: container {privileged} is privileged, so that it sees all GPUs of its node; "
            "remove securityContext.privileged or its GPU request"
        )
    if own_variables and settings.refuse_own_variables:
        return f"{error_codes.OWN_VARIABLES}: {own_variables}"
    return ""


def patched(body: Mapping[str, Any], verdict: AdmissionResult) -> dict[str, Any]:
    """The pod after the patch of a verdict, as the API server applies it."""
    after: dict[str, Any] = copy.deepcopy(dict(body))
    for operation in verdict.patch:
        *parents, last = operation["path"].split("/")[1:]
        place: Any = after
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = operation["value"]
    return after


def _completed(body: Mapping[str, Any], request: requests.PodRequest | None, settings: Settings) -> dict[str, Any]:
    """The pod as it should be."""
    completed: dict[str, Any] = copy.deepcopy(dict(body))
    wants_gpu = request is not None and request.wants_gpu
    for position, container in enumerate(_containers(completed)):
        ask = request.containers[position] if request else None
        if ask is not None:
            _spell_out(container, ask, settings.resource_names)
        elif settings.hide_gpus:
            _set_variable(container, VISIBLE_VARIABLE, VOID)
    if wants_gpu:
        completed["spec"]["schedulerName"] = settings.scheduler_name
        if settings.runtime_class_name and not completed["spec"].get("runtimeClassName"):
            completed["spec"]["runtimeClassName"] = settings.runtime_class_name
    return completed


def _spell_out(container: dict[str, Any], ask: requests.GpuRequest, names: requests.ResourceNames) -> None:
    """Write into a container the defaults of what it does not set."""
    resources = container["resources"] = dict(container.get("resources") or {})
    asked = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    implied = {names.count: str(ask.gpus), **({names.cores: str(ask.cores_percent)} if ask.cores_percent else {})}
    if ask.memory_mib and names.memory_percent not in asked:
        implied[names.memory] = str(ask.memory_mib)
    for name, value in implied.items():
        if name not in asked:
            for section in ("limits", "requests"):
                resources[section] = {**(resources.get(section) or {}), name: value}
    if names.priority in asked:
        priority = quantities.count(f"container {container.get('name', '')}: {names.priority}", asked[names.priority])
        _set_variable(container, PRIORITY_VARIABLE, str(priority))


def _set_variable(container: dict[str, Any], name: str, value: str) -> None:
    others = [one for one in container.get("env") or () if one.get("name") != name]
    container["env"] = [*others, {"name": name, "value": value}]


def _containers(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Init containers first, as requests count them."""
    spec = body.get("spec") or {}
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _privileged(body: Mapping[str, Any], request: requests.PodRequest) -> str:
    """The first container that requests a GPU and is privileged."""
    for container, ask in zip(_containers(body), request.containers, strict=True):
        if ask and (container.get("securityContext") or {}).get("privileged"):
            return str(container.get("name", ""))
    return ""


def _own_variables(body: Mapping[str, Any], request: requests.PodRequest) -> str:
    """Return which variables of the device plugin a container with GPUs sets itself, as a sentence; empty for none."""
    for container, ask in zip(_containers(body), request.containers, strict=True):
        names = variables.given(str(one.get("name", "")) for one in container.get("env") or ()) if ask else []
        if names:
            return (
                f"container {container.get('name', '')} sets {', '.join(names[:5])}, which the device plugin sets; "
                "remove it from env"
            )
    return ""


def _patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The parts of the spec that differ; `add` replaces what is there."""
    old, new = before.get("spec") or {}, after.get("spec") or {}
    operations: list[Mapping[str, Any]] = []
    for kind in ("initContainers", "containers"):
        for position, (one, other) in enumerate(zip(old.get(kind) or (), new.get(kind) or (), strict=True)):
            operations += [
                {"op": "add", "path": f"/spec/{kind}/{position}/{key}", "value": other[key]}
                for key in ("resources", "env")
                if other.get(key) != one.get(key)
            ]
    operations += [
        {"op": "add", "path": f"/spec/{key}", "value": new[key]}
        for key in ("schedulerName", "runtimeClassName", "schedulingGates")
        if new.get(key) != old.get(key)
    ]
    return tuple(operations)
