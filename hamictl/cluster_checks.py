"""Checks of the environment: the API server, the caller's rights, clocks, other installations. Pure.

`cluster_reading` reads the input; `record_checks` has the checks of records.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_sharing.adapters import kubernetes, objects
from gpu_sharing.core import error_codes, records, requests
from hamictl import foreign_plugins, snapshot
from hamictl.findings import ABSENT, ERROR, WARNING, Check, Finding
from scheduler_extender.cluster import from_objects, node_selection

SCHEDULER = "hami-scheduler"
"""The name of the Lease of kube-scheduler beside the extender; HAMi's has the same name."""
_HEARTBEATS = "kube-node-lease"
_OUR_WEBHOOKS = "hami.io"
_DEMO = "-demo"
"""The end of the version of the demo's API server."""
_CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
_SLOW_SECONDS = 1.0
_SKEW_SECONDS = 5.0
_WEEK_SECONDS = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Right:
    """One right of an account."""

    verb: str
    resource: str
    group: str = ""
    namespace: str = ""
    """Empty: in all namespaces."""
    subresource: str = ""

    def __str__(self) -> str:
        """Return the right in the form of `kubectl auth can-i`."""
        name = f"{self.resource}{f'.{self.group}' if self.group else ''}"
        return f"{self.verb} {name}{f'/{self.subresource}' if self.subresource else ''}" + (
            f" -n {self.namespace}" if self.namespace else ""
        )


NODES, PODS = Right("list", "nodes"), Right("list", "pods")
QUOTAS = Right("list", "resourcequotas")
WEBHOOKS = Right("list", "mutatingwebhookconfigurations", "admissionregistration.k8s.io")
POLICIES = Right("list", "validatingadmissionpolicies", "admissionregistration.k8s.io")
LEASES = Right("list", "leases", "coordination.k8s.io")
DAEMON_SETS = Right("list", "daemonsets", "apps")
DEVICE_CLASSES = Right("list", "deviceclasses", "resource.k8s.io")
RIGHTS = (NODES, PODS, QUOTAS, WEBHOOKS, POLICIES, LEASES, DAEMON_SETS, DEVICE_CLASSES)


def forwarding(namespace: str) -> tuple[Right, ...]:
    """Return the rights that kubectl needs to reach a pod of the extender."""
    return (
        Right("get", "deployments", "apps", namespace),
        Right("list", "pods", "", namespace),
        Right("create", "pods", "", namespace, "portforward"),
    )


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook that calls `/webhook`."""

    name: str
    callee: str
    """Its service, as `namespace/name`, or its URL."""
    ends_at: float
    """Unix seconds at which its certificate ends; infinite where unknown."""


class PodTemplate(msgspec.Struct, gc=False):
    """The pod template of a DaemonSet."""

    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    spec: dict[str, Any] = msgspec.field(default_factory=dict)


class DaemonSetSpec(msgspec.Struct, gc=False):
    """`spec` of a DaemonSet."""

    template: PodTemplate = msgspec.field(default_factory=PodTemplate)


class DaemonSet(msgspec.Struct, gc=False):
    """The part of a DaemonSet that is checked."""

    metadata: objects.Metadata = msgspec.field(default_factory=objects.Metadata)
    spec: DaemonSetSpec = msgspec.field(default_factory=DaemonSetSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The objects to check; None where the account may not read them."""

    missing: Collection[Right]
    """The rights that the account lacks."""
    ping: kubernetes.Ping
    """The fastest of several."""
    webhooks: Sequence[Webhook] | None
    guarded: bool | None
    """Whether records are guarded."""
    leases: Sequence[objects.Lease] | None
    daemon_sets: Sequence[DaemonSet] | None
    plugin_pods: Sequence[PodTemplate] | None = None
    """Pods outside DaemonSets that mount the kubelet's folder of device plugins."""
    device_classes: Sequence[objects.DeviceClass] | None
    components: Mapping[str, Mapping[str, Any]] | None
    """The extender's components by its health endpoint; None where its address is unknown."""
    now: float
    """Unix seconds, by this machine's clock."""

    @property
    def is_demo(self) -> bool:
        """Whether this is the cluster of `hamictl demo`, which has neither webhook nor guard."""
        return self.ping.version.endswith(_DEMO)

    @property
    def server_now(self) -> float:
        """The time by the API server's clock if known; all other clocks are compared with it."""
        return self.now + (self.ping.ahead_seconds or 0.0)


def checks(seen: Environment, cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Check]:
    """Yield every check with its findings, in the order of the output."""
    yield "rights", _rights(seen)
    yield "API server", _api_server(seen)
    yield "clocks", _clocks(seen, cluster, names)
    yield "webhook", _webhook(seen)
    yield "record guard", _guard(seen)
    yield "other schedulers", _schedulers(seen)
    yield "other device plugins", _device_plugins(seen, cluster, names)
    yield "node conditions", _conditions(cluster)
    yield "device classes", _device_classes(seen, cluster, names)
    yield "components of the extender", _components(seen)


def _conditions(cluster: snapshot.State) -> Iterator[Finding]:
    """Report nodes with GPUs that are not ready, or short of memory, disk or process ids."""
    for node in cluster.nodes:
        if not (node.metadata.annotations or {}).get(records.INVENTORY):
            continue
        for condition in node.status.conditions or ():
            if (condition.status == "True") is not (condition.type == "Ready") and condition.type in _CONDITIONS:
                detail = f"{condition.type} is {condition.status}: {condition.reason} {condition.message}".rstrip(": ")
                yield Finding(error_codes.DOCTOR_NODE_CONDITION, WARNING, f"node/{node.metadata.name}", detail)


def _device_classes(seen: Environment, cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    offering = [
        one.metadata.name for one in seen.device_classes or () if one.spec.extended_resource_name == names.count
    ]
    for node in cluster.nodes if offering else ():
        lacking = from_objects.lacking(node, names)
        if lacking and (node.metadata.annotations or {}).get(records.INVENTORY):
            detail = f"DeviceClass {offering[0]} offers {names.count}; allocatable has no {', '.join(lacking)}"
            yield Finding(error_codes.DOCTOR_DEVICE_CLASS, ERROR, f"node/{node.metadata.name}", detail)


def _rights(seen: Environment) -> Iterator[Finding]:
    for right in sorted(seen.missing, key=str):
        yield Finding(error_codes.DOCTOR_RIGHTS, WARNING, "account", f"the right is missing: {right}")


def _api_server(seen: Environment) -> Iterator[Finding]:
    if seen.ping.seconds > _SLOW_SECONDS:
        detail = f"the fastest of several answers took {seen.ping.seconds:.1f} s"
        yield Finding(error_codes.DOCTOR_API_SLOW, WARNING, "cluster", detail)


def _clocks(seen: Environment, cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    ahead = seen.ping.ahead_seconds or 0.0
    if abs(ahead) > _SKEW_SECONDS:
        detail = f"the API server's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        yield Finding(error_codes.DOCTOR_CLOCK, WARNING, "cluster", detail)
    beats = {one.metadata.name: one for one in seen.leases or () if one.metadata.namespace == _HEARTBEATS}
    for node in cluster.nodes:
        early = objects.unix_seconds(beats.get(node.metadata.name, objects.Lease()).spec.renew_time) - seen.server_now
        if early > _SKEW_SECONDS:
            detail = f"its heartbeat is {early:.0f} s ahead of the API server's clock"
            yield Finding(error_codes.DOCTOR_CLOCK, WARNING, f"node/{node.metadata.name}", detail)
    for pod in cluster.pods:
        early = from_objects.pod_facts(pod, names).traits.bound_at - seen.server_now if pod.spec.node_name else 0.0
        if early > _SKEW_SECONDS:
            detail = f"the extender bound it {early:.0f} s ahead of the API server's clock"
            yield Finding(error_codes.DOCTOR_CLOCK, WARNING, f"pod/{pod.key}", detail)


def _webhook(seen: Environment) -> Iterator[Finding]:
    if seen.webhooks is None:
        return
    if not seen.webhooks:
        detail = "no MutatingWebhookConfiguration calls /webhook"
        yield Finding(error_codes.DOCTOR_NO_WEBHOOK, ABSENT if seen.is_demo else WARNING, "cluster", detail)
    left_seconds = min((one.ends_at for one in seen.webhooks), default=float("inf")) - seen.now
    if left_seconds < _WEEK_SECONDS:
        days = left_seconds / 86_400
        detail = f"it ends in {days:.1f} days" if days > 0 else f"it ended {-days:.1f} days ago"
        severity = WARNING if days > 0 else ERROR
        yield Finding(error_codes.DOCTOR_WEBHOOK_CERTIFICATE, severity, "cluster", detail)
    callees = sorted({one.callee for one in seen.webhooks if one.name.endswith(_OUR_WEBHOOKS)})
    if len(callees) > 1:
        yield Finding(error_codes.DOCTOR_SECOND_WEBHOOK, ERROR, "cluster", " and ".join(callees))


def _guard(seen: Environment) -> Iterator[Finding]:
    if seen.guarded is False:
        detail = "no ValidatingAdmissionPolicy for hami.io records"
        yield Finding(error_codes.DOCTOR_NO_GUARD, ABSENT if seen.is_demo else WARNING, "cluster", detail)


def _schedulers(seen: Environment) -> Iterator[Finding]:
    """Report several active schedulers; a Lease that is no longer renewed belongs to a removed installation."""
    active = [
        one
        for one in seen.leases or ()
        if one.metadata.name == SCHEDULER
        and one.spec.holder_identity
        and objects.unix_seconds(one.spec.renew_time) + (one.spec.lease_duration_seconds or 0) > seen.server_now
    ]
    if len(active) > 1:
        for scheduler in active:
            about = f"lease/{scheduler.metadata.namespace}/{scheduler.metadata.name}"
            detail = f"held by {scheduler.spec.holder_identity}, and another one is active too"
            yield Finding(error_codes.DOCTOR_SECOND_SCHEDULER, ERROR, about, detail)


def _device_plugins(seen: Environment, cluster: snapshot.State, names: requests.ResourceNames) -> Iterator[Finding]:
    """Report other plugins that allocate the GPUs of our nodes: by DaemonSets, pods, resources and annotations."""
    ours = [node for node in cluster.nodes if foreign_plugins.is_ours(node.metadata.annotations or {})]
    for daemon_set in seen.daemon_sets or ():
        template = daemon_set.spec.template
        vendor = foreign_plugins.vendor(daemon_set.metadata.name, template.metadata.labels or {}, template.spec)
        pod = msgspec.convert({"spec": template.spec}, objects.Pod, strict=False)
        wished = node_selection.requirements_of(pod)
        met = [node.metadata.name for node in ours if vendor and _admits(wished, node, names)]
        if met:
            about = f"daemonset/{daemon_set.metadata.namespace}/{daemon_set.metadata.name}"
            yield _other_plugin(vendor, about, met)
    our_names = {node.metadata.name for node in ours}
    for pod_with_plugin in seen.plugin_pods or ():
        node_name = str(pod_with_plugin.spec.get("nodeName", ""))
        labels = pod_with_plugin.metadata.labels or {}
        vendor = foreign_plugins.vendor(pod_with_plugin.metadata.name, labels, pod_with_plugin.spec)
        if vendor and node_name in our_names:
            about = f"pod/{pod_with_plugin.metadata.namespace}/{pod_with_plugin.metadata.name}"
            yield _other_plugin(vendor, about, [node_name])
    for node in ours:
        others = foreign_plugins.resources(node.status.allocatable or {}, names)
        others += foreign_plugins.annotations(node.metadata.annotations or {})
        if others:
            about, detail = f"node/{node.metadata.name}", f"beside {names.count} it has {', '.join(others)}"
            yield Finding(error_codes.DOCTOR_OTHER_PLUGIN, ERROR, about, detail)


def _other_plugin(vendor: str, about: str, nodes: Sequence[str]) -> Finding:
    is_nvidia = vendor == foreign_plugins.NVIDIA
    code = error_codes.DOCTOR_NVIDIA_PLUGIN if is_nvidia else error_codes.DOCTOR_OTHER_PLUGIN
    more = f" and {len(nodes) - 3:,} more nodes" if len(nodes) > 3 else ""
    return Finding(code, ERROR, about, f"{vendor} on {', '.join(nodes[:3])}{more}")


def _admits(wished: node_selection.NodeRequirements, node: objects.Node, names: requests.ResourceNames) -> bool:
    taints = from_objects.node_facts(node, names, allow_hami_nodes=True).taints
    return node_selection.admits(wished, node.metadata.name, node.metadata.labels or {}, taints)


def _components(seen: Environment) -> Iterator[Finding]:
    for name, component in sorted((seen.components or {}).items()):
        if not component["healthy"]:
            severity = ERROR if component["required"] else WARNING
            yield Finding(error_codes.DOCTOR_EXTENDER_COMPONENT, severity, f"extender/{name}", component["reason"])
