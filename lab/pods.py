"""The API server's logic for pods: defaults, canonical quantities, binding, and the two APIs of events.

Source: k8s.io/kubernetes pkg/registry/core/pod (assignPod) and k8s.io/apimachinery resource.Quantity's canonical form.
"""

import re
from collections.abc import Mapping
from typing import Any

from lab import kinds, store

_SUFFIXES = ("", "k", "M", "G", "T", "P")


def canonical(quantity: Any) -> str:
    """Return a plain number as the API server rewrites it: `4000` becomes `4k`."""
    text = str(quantity)
    if not re.fullmatch(r"\d{1,18}", text):
        return text
    number, suffix = int(text), 0
    while number and number % 1000 == 0 and suffix < len(_SUFFIXES) - 1:
        number, suffix = number // 1000, suffix + 1
    return f"{number}{_SUFFIXES[suffix]}"


def _container(container: Mapping[str, Any]) -> dict[str, Any]:
    resources = container.get("resources") or {}
    limits = {name: canonical(value) for name, value in (resources.get("limits") or {}).items()}
    requests = {name: canonical(value) for name, value in (resources.get("requests") or {}).items()}
    requests = {**{name: value for name, value in limits.items() if name not in requests}, **requests}
    filled = {key: value for key, value in (("limits", limits), ("requests", requests)) if value}
    return {"imagePullPolicy": "IfNotPresent", **container, "resources": filled}


def with_defaults(body: store.Object, priorities: Mapping[str, int]) -> store.Object:
    """Return a pod as it is stored after creation.

    Args:
        body: As the client sent it.
        priorities: Value of each PriorityClass.

    Raises:
        ApiError: The pod has no containers, or names a PriorityClass that does not exist.
    """
    spec = dict(body.get("spec") or {})
    if not isinstance(spec.get("containers"), list) or not spec["containers"]:
        raise store.ApiError(422, "Invalid", "Pod is invalid: spec.containers: Required value")
    name = spec.get("priorityClassName")
    if name and name not in priorities:
        raise store.ApiError(403, "Forbidden", f"pods is forbidden: no PriorityClass with name {name} was found")
    spec = {
        "schedulerName": "default-scheduler",
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": True,
        "securityContext": {},
        **spec,
        "priority": priorities[name] if name else spec.get("priority") or 0,
        "containers": [_container(container) for container in spec["containers"]],
    }
    if spec.get("initContainers"):
        spec["initContainers"] = [_container(container) for container in spec["initContainers"]]
    return {**body, "spec": spec, "status": {"phase": "Pending", "qosClass": "BestEffort"}}


def bound(pod: store.Object, name: str, binding: Mapping[str, Any]) -> store.Object:
    """Return a pod after a Binding. Like the real server, this does not validate the Binding's metadata.

    Raises:
        ApiError: 409 where the real server refuses: another UID, bound already, being deleted.
    """
    metadata, wanted = pod["metadata"], binding.get("metadata") or {}
    if wanted.get("uid") and wanted["uid"] != metadata["uid"]:
        raise store.conflict(
            kinds.PODS,
            name,
            f"Precondition failed: UID in precondition: {wanted['uid']}, UID in object meta: {metadata['uid']}",
        )
    if metadata.get("deletionTimestamp"):
        raise store.conflict(kinds.PODS, name, f"pod {name} is being deleted, cannot be assigned to a host")
    if pod["spec"].get("nodeName"):
        taken = pod["spec"]["nodeName"]
        raise store.conflict(kinds.PODS, f"{name}/binding", f'pod {name} is already assigned to node "{taken}"')
    node = (binding.get("target") or {}).get("name")
    if not node:
        raise store.ApiError(422, "Invalid", "Binding is invalid: target.name: Required value")
    status = dict(pod.get("status") or {})
    others = [condition for condition in status.get("conditions") or () if condition["type"] != "PodScheduled"]
    status["conditions"] = [
        *others,
        {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": store.now()},
    ]
    merged = {
        field: {**(metadata.get(field) or {}), **wanted[field]}
        for field in ("annotations", "labels")
        if wanted.get(field)
    }
    return {
        **pod,
        "metadata": {**metadata, **merged},
        "spec": {**pod["spec"], "nodeName": node},
        "status": status,
    }


_OLD_TO_NEW = {
    "message": "note", "involvedObject": "regarding", "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp", "count": "deprecatedCount", "source": "deprecatedSource",
    "reportingComponent": "reportingController",
}  # fmt: skip
_NEW_TO_OLD = {new: old for old, new in _OLD_TO_NEW.items()}


def event_in(resource: kinds.Resource, event: store.Object) -> store.Object:
    """Return an event in the field names of `events.k8s.io`, in which it is stored."""
    if resource.group:
        return event
    return {_OLD_TO_NEW.get(key, key): value for key, value in event.items() if key not in ("apiVersion", "kind")}


def event_out(resource: kinds.Resource, event: store.Object) -> store.Object:
    """Return an event in the field names of the API by which it is read."""
    if resource.group:
        return {**event, "apiVersion": resource.api_version}
    old = {_NEW_TO_OLD.get(key, key): value for key, value in event.items()}
    # kubectl prints the source of old events; new ones have a controller.
    source = old.get("source") or {"component": event.get("reportingController", "")}
    return {**old, "apiVersion": "v1", "source": source}
