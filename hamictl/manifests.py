"""The pods that the API server and its controllers make of a manifest, and those that flags describe."""

import copy
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpu_sharing.adapters import decoding, objects
from gpu_sharing.core import gangs, records, requests
from hamictl import failures
from scheduler_extender.cluster import from_objects, node_selection
from scheduler_extender.fleet import facts

MOST_PODS = 10_000
SCHEDULER = "hami-scheduler"
_ENDED = ("Succeeded", "Failed")
_TOLERATED_BY_DAEMONS = (
    "not-ready",
    "unreachable",
    "disk-pressure",
    "memory-pressure",
    "pid-pressure",
    "unschedulable",
)

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a manifest creates.

    Attributes:
        pods: Each with `ownerReferences`, if a controller creates it.
        exported: Keys of pods that were read from a cluster: placed anew, they do not hold GPUs beside themselves.
        pod_groups: By API group.
    """

    pods: list[Body] = field(default_factory=list)
    exported: set[str] = field(default_factory=set)
    pod_groups: dict[str, list[objects.PodGroup]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Labels and taints of a node, decoded once, because a trace reads them a million times."""

    labels: Mapping[str, str]
    taints: Sequence[facts.Taint]

    @staticmethod
    def of(node: objects.Node) -> "NodeFacts":
        """Return the facts of a node."""
        taints = from_objects.node_facts(node, requests.ResourceNames(), allow_hami_nodes=True).taints
        return NodeFacts(node.metadata.labels or {}, taints)


@dataclass(frozen=True, slots=True)
class _Template:
    """A pod template in a controller, with the number of pods that are made of it at one time."""

    body: Mapping[str, Any]
    count: int
    role: str
    """Such as `Worker`; empty where the controller has one template."""


def read(path: pathlib.Path, text: str, replicas: int | None, nodes: Sequence[objects.Node]) -> Manifest:
    """Return what a manifest creates: its Pods and PodGroups, and the pods of its controllers.

    Args:
        path: For messages.
        text: YAML, several documents allowed.
        replicas: The number of pods of each template, instead of the manifest's.
        nodes: The nodes of the cluster: a DaemonSet creates one pod on each node that it allows.

    Raises:
        CommandFailed: It has no pods, or is not YAML.
    """
    try:
        documents = [one for one in decoding.yaml_documents(text) if one]
    except ValueError as cause:
        raise failures.CommandFailed(f"{path} is not YAML: {cause}") from cause
    manifest = Manifest()
    ended = 0
    for document in _items(documents):
        try:
            ended += _add(manifest, document, replicas, nodes)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as cause:
            raise failures.CommandFailed(f"{path}: not a manifest that the API server accepts: {cause}") from cause
        if len(manifest.pods) > MOST_PODS:
            raise failures.CommandFailed(f"{path} makes more than {MOST_PODS:,} pods", "lower --replicas")
    if not manifest.pods:
        only = f"; {ended} in it have ended" if ended else ""
        raise failures.CommandFailed(f"{path} has no Pod, and no pod template that creates one here{only}")
    return manifest


def _items(documents: Iterable[Any]) -> Iterable[Any]:
    for document in documents:
        if isinstance(document, Mapping) and document.get("kind") == "List":
            items = document.get("items")
            yield from items if isinstance(items, list) else ()
        else:
            yield document


def _add(manifest: Manifest, document: Any, replicas: int | None, nodes: Sequence[objects.Node]) -> int:
    """Add what one document creates. Returns the number of pods in it that have ended."""
    kind, metadata = document["kind"], document["metadata"]
    if kind == "PodGroup":
        group = msgspec.convert(document, objects.PodGroup, strict=False)
        group.metadata.namespace = group.metadata.namespace or "default"
        api_group = str(document.get("apiVersion", "")).partition("/")[0] or gangs.COSCHEDULING
        manifest.pod_groups.setdefault(api_group, []).append(group)
        return 0
    if kind == "Pod":
        if (document.get("status") or {}).get("phase") in _ENDED:
            return 1
        if metadata.get("uid"):
            manifest.exported.add(f"{metadata.get('namespace', 'default')}/{metadata['name']}")
        templates = [_Template(document, 1, "")]
    else:
        templates = list(_templates(document, 1, ""))
    namespace, name = metadata.get("namespace", "default"), metadata.get("name") or metadata["generateName"]
    for template in templates:
        role = template.role.lower() if len(templates) > 1 else ""
        stem = f"{name}-{role}" if role else name
        if kind == "DaemonSet" and replicas is None:
            bodies = _one_a_node(template.body, namespace, stem, nodes)
        else:
            count = template.count if replicas is None else replicas
            names = (stem if count == 1 else f"{stem}-{index}" for index in range(min(count, MOST_PODS + 1)))
            bodies = [pod(template.body, namespace, one) for one in names]
        for body in bodies:
            _own(body, kind, stem)
            msgspec.convert(body, objects.Pod, strict=False)
        manifest.pods.extend(bodies)
    return 0


def _own(body: Body, kind: str, name: str) -> None:
    """Write the controller into a pod's body: a gang is one run of one controller, and replicas are shown together."""
    if body["metadata"].get("ownerReferences"):
        return  # Of an exported pod.
    uid = f"simulated-{kind}-{body['metadata']['namespace']}-{name}"
    body["metadata"]["ownerReferences"] = [{"kind": kind, "name": name, "uid": uid, "controller": kind != "Pod"}]


def _templates(value: Any, count: int, role: str) -> Iterator[_Template]:
    """Yield the pod templates of a controller: of Deployments and Jobs, and of what has several, as a JobSet."""
    if isinstance(value, list):
        for item in value:
            own = str(item.get("name") or item.get("groupName") or role) if isinstance(item, Mapping) else role
            yield from _templates(item, count, own)
    if not isinstance(value, Mapping):
        return
    here = count * _own_count(value)
    for key, inner in value.items():
        if _is_pod_template(inner):
            yield _Template(inner, here * _members(value, key), role or key.removesuffix("Template"))
        elif isinstance(inner, Mapping | list):
            counted = here if key.lower().endswith("template") else count
            yield from _templates(inner, counted, role or _role(key))


def _role(key: str) -> str:
    """Return the role that a key names, such as `Worker` and `headGroupSpec`; empty for keys as `spec`."""
    if key.endswith("GroupSpec"):
        return key.removesuffix("GroupSpec")
    return key if key[:1].isupper() else ""


def _is_pod_template(value: Any) -> bool:
    spec = value.get("spec") if isinstance(value, Mapping) else None
    return isinstance(spec, Mapping) and "containers" in spec


def _own_count(spec: Mapping[str, Any]) -> int:
    """Return how many pods, or parts with pods, a controller creates from its template at one time."""
    if "parallelism" in spec or "completions" in spec:
        parallelism, completions = spec.get("parallelism", 1), spec.get("completions")
        count = int(parallelism) if completions is None else min(int(parallelism), int(completions))
    else:
        replicas = spec.get("replicas")
        count = int(replicas) if isinstance(replicas, int | str) else 1
    if count < 0:
        raise ValueError(f"{count} pods")
    return count


def _members(spec: Mapping[str, Any], key: str) -> int:
    """Return the members of a LeaderWorkerSet's group that have one of its templates; 1 for other controllers.

    Source: lws.sigs.k8s.io, `spec.leaderWorkerTemplate`: `size` counts the leader, which has the workers' template
    unless it has its own.
    """
    if key != "workerTemplate" or "size" not in spec:
        return 1
    return int(spec["size"]) - (1 if spec.get("leaderTemplate") else 0)


def _one_a_node(template: Mapping[str, Any], namespace: str, name: str, nodes: Sequence[objects.Node]) -> list[Body]:
    """Return the pods of a DaemonSet: one with node affinity for each node that its template allows.

    Source: k8s.io/kubernetes pkg/controller/daemon/util: affinity to `metadata.name`, and the tolerations added.
    """
    bodies = []
    for node in nodes:
        body = pod(template, namespace, f"{name}-{node.metadata.name}")
        body["spec"]["tolerations"] = [
            *(body["spec"].get("tolerations") or ()),
            *({"key": f"node.kubernetes.io/{taint}", "operator": "Exists"} for taint in _TOLERATED_BY_DAEMONS),
        ]
        wished = node_selection.requirements_of(msgspec.convert(body, objects.Pod, strict=False))
        known = NodeFacts.of(node)
        if node_selection.admits(wished, node.metadata.name, known.labels, known.taints):
            there = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node.metadata.name]}]}
            required = {"nodeSelectorTerms": [there]}
            affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
            body["spec"]["affinity"] = {**(body["spec"].get("affinity") or {}), **affinity}
            bodies.append(body)
    return bodies


def pod(template: Mapping[str, Any], namespace: str, name: str) -> Body:
    """Return a pod of a template, or of an exported pod, as it is created: without a node and without records."""
    body = {"metadata": dict(template.get("metadata") or {}), "spec": copy.deepcopy(template["spec"])}
    body["metadata"] |= {"name": name, "namespace": namespace, "uid": f"simulated-{namespace}-{name}"}
    body["metadata"]["resourceVersion"] = "1"
    annotations = body["metadata"].get("annotations") or {}
    body["metadata"]["annotations"] = {key: value for key, value in annotations.items() if key not in records.OF_PODS}
    body["spec"].setdefault("schedulerName", SCHEDULER)
    if (template.get("status") or {}).get("phase") or (template.get("metadata") or {}).get("uid"):
        body["spec"].pop("nodeName", None)  # An exported pod has the node that a scheduler chose.
    return body


def described(request: Mapping[str, str | None], count: int, names: requests.ResourceNames) -> Manifest:
    """Return pods of one container that flags describe.

    Args:
        request: Quantities as in a manifest, by the flags' names: gpus, gpumem, gpumem_percentage, gpucores.
        count: The number of pods.
        names: The resource names of the installation.
    """
    resources = {
        "gpus": names.count, "gpumem": names.memory, "gpumem_percentage": names.memory_percent, "gpucores": names.cores,
    }  # fmt: skip
    limits = {resources[flag]: quantity for flag, quantity in request.items() if quantity is not None}
    template = {"spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}}
    bodies = [pod(template, "default", "pod" if count == 1 else f"pod-{index}") for index in range(count)]
    for body in bodies:
        _own(body, "Pod", "pod")
    return Manifest(pods=bodies)
