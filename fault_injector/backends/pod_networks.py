"""The two sides of a pair on a cluster, as selectors of pods."""

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_sharing.core import error_codes, errors, faults

_OURS = "app.kubernetes.io/name"
_COMPONENT = "app.kubernetes.io/component"
_COMPONENTS = {
    "ui-extender": ("webui", "scheduler"),
    "extender-apiserver": ("scheduler", ""),
    "plugin-apiserver": ("device-plugin", ""),
}
"""The chart's components on both sides; empty for the API server."""
_BEYOND_REACH = {
    "scheduler-extender": "kube-scheduler and the extender are in one pod and talk over its loopback",
    "plugin-kubelet": "the kubelet and the device plugin talk over a Unix socket of the node",
}
"""The pairs that no object of the cluster's network can cut, and why."""


@dataclass(frozen=True, slots=True)
class Side:
    """Some pods of a namespace."""

    namespace: str
    labels: Mapping[str, str]


def demand_reachable(request: faults.Request) -> None:
    """Check that objects of the cluster's network affect a pair.

    Raises:
        FaultRefused: They do not, with the reason, or a selector is missing.
    """
    pair = str(request.values["pair"])
    if reason := _BEYOND_REACH.get(pair):
        text = f"the network of a cluster cannot affect {pair}: {reason}"
        raise errors.FaultRefused(error_codes.FAULT_NOT_SUPPORTED, text)
    missing = [name for name in ("namespace", "from_pods", "to_pods") if not request.values[name]]
    if pair == "worker-worker" and missing:
        text = f"{', '.join(missing)}: missing; pair worker-worker needs them on a cluster"
        raise errors.FaultRefused(error_codes.FAULT_INVALID, text)


def sides(values: Mapping[str, faults.Value], own_namespace: str) -> tuple[Side, Side | None]:
    """Return both sides of a pair; None for the API server."""
    components = _COMPONENTS.get(str(values["pair"]))
    if components is None:
        namespace = str(values["namespace"])
        return Side(namespace, labels_of(str(values["from_pods"]))), Side(namespace, labels_of(str(values["to_pods"])))
    first, second = (Side(own_namespace, {_OURS: "hami", _COMPONENT: name}) for name in components)
    return first, second if components[1] else None


def labels_of(selector: str) -> dict[str, str]:
    """Return the labels in a selector such as `app=trainer,tier=gpu`."""
    pairs = (part.partition("=") for part in selector.split(",") if part)
    return {name: value for name, _, value in pairs}
