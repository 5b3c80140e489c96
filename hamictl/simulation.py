"""Place pods on a copy of a cluster, by the extender's own code.

Nothing is written to the cluster. Of kube-scheduler's own rules node selectors, required node affinity and taints are
respected; CPU, memory, volumes and pod affinity are not examined.
"""

import asyncio
import copy
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from gpu_sharing.adapters import events, objects
from gpu_sharing.core import identifiers, placement, records, requests
from hamictl import failures, output, snapshot
from lab import gpus, traces
from scheduler_extender.act import gang_planner, pod_writer
from scheduler_extender.cluster import from_objects, node_selection, pending
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import admission, core, verbs
from scheduler_extender.fleet import facts, model_stats
from scheduler_extender.metrics import Metrics
from scheduler_extender.report import event_notes
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.settings import Settings

MOST_PODS = 10_000
_PLANNER_STEPS = 4
"""The number of steps after which a gang has its holds, its nominations and its open gates."""
_TOLERATED_BY_DAEMONS = (
    "not-ready",
    "unreachable",
    "disk-pressure",
    "memory-pressure",
    "pid-pressure",
    "unschedulable",
)
_PROGRESS_EVERY = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one pod."""

    pod: str
    node: str
    """Empty if it would be pending."""
    gpus: tuple[str, ...]
    code: str
    """The code of its rejection."""
    why: str
    warnings: tuple[str, ...] = ()
    """As the webhook writes them when the pod is created, such as of a misspelled resource."""


class _Silent:
    """Drops all events of a simulation."""

    def record(self, event: events.Event) -> None:
        del event


@dataclass(frozen=True, slots=True)
class _Node:
    """Labels and taints of a node, decoded once, because a trace reads them a million times."""

    labels: Mapping[str, str]
    taints: Sequence[facts.Taint]

    @staticmethod
    def of(node: objects.Node) -> "_Node":
        taints = from_objects.node_facts(node, requests.ResourceNames(), allow_hami_nodes=True).taints
        return _Node(node.metadata.labels or {}, taints)


class Simulation:
    """A cluster in memory, on which pods are placed one after another.

    Attributes:
        placed: The pods that fitted, as they would be bound.
    """

    def __init__(self, state: snapshot.State, settings: Settings) -> None:
        self._settings = settings
        self.placed: list[dict[str, Any]] = []
        self._core = core.DecisionCore(settings, Metrics())
        self._verbs = verbs.Verbs(self._core)
        self._mirror = self._core.mirror
        for node in state.nodes:
            self._mirror.see_node(node)
        for quota in state.quotas:
            self._mirror.see_quota(quota)
        for pod in state.pods:
            self._mirror.see_pod(pod)
        self._nodes = {node.metadata.name: _Node.of(node) for node in state.nodes}

    def place_all(self, bodies: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Create pods as the webhook changes them, and place them one after another; gangs are planned first."""
        reviews = [admission.review(body, self._settings) for body in bodies]
        patched = [admission.patched(body, review) for body, review in zip(bodies, reviews, strict=True)]
        members = [body for body, review in zip(patched, reviews, strict=True) if review.gang and not review.refused]
        if members:
            self._plan_gangs(members)
        outcomes = [
            _refused(body, review.refused) if review.refused else self.place(body)
            for body, review in zip(patched, reviews, strict=True)
        ]
        return [
            dataclasses.replace(outcome, warnings=review.warnings)
            for outcome, review in zip(outcomes, reviews, strict=True)
        ]

    def _plan_gangs(self, members: Sequence[dict[str, Any]]) -> None:
        """Let the extender's own planner write a hold for each member into the annotations of these bodies."""
        writer = _Writer(self._mirror, members)
        planner = gang_planner.GangPlanner(
            writer,  # type: ignore[arg-type]  # only the methods that it calls
            self._core,
            DecisionEvents(self._core, _Silent(), lambda: True),
        )
        for _ in range(_PLANNER_STEPS):
            asyncio.run(planner.step())

    def place(self, body: dict[str, Any]) -> Outcome:
        """Place one pod; if it fits, it counts for the next ones."""
        pod = msgspec.convert(body, objects.Pod, strict=False)
        key = f"{pod.metadata.namespace}/{pod.metadata.name}"
        if not from_objects.is_ours(pod, self._settings.resource_names):
            resource = self._settings.resource_names.count
            return Outcome(key, "", (), "", f"it requests no {resource}: kube-scheduler places it alone")
        self._mirror.see_pod(pod)
        wished = node_selection.requirements_of(pod)
        names = [
            name for name, node in self._nodes.items() if node_selection.admits(wished, name, node.labels, node.taints)
        ]
        listed = self._core.pending.get(identifiers.PodUid(pod.metadata.uid))
        assert listed is not None
        answer = self._verbs.filter(listed, names)
        if answer is not None and answer.rejection is not None:
            return Outcome(key, "", (), answer.rejection.code, event_notes.rejected(answer.rejection))
        assert isinstance(listed, pending.PendingPod)
        fitting = answer.decision.names if answer else names
        best = self._verbs.prioritize(listed, fitting).best or identifiers.NodeName(fitting[0])
        placed = self._core.placer.place_on(listed, best, nominations=False)
        assert isinstance(placed, placement.Placement)
        bound = copy.deepcopy(body)
        bound["spec"]["nodeName"] = best
        bound["metadata"].setdefault("annotations", {}).update(
            records.pod_annotations(placed.shares, best, 0, identifiers.DecisionId("simulated"))
        )
        self._mirror.see_pod(msgspec.convert(bound, objects.Pod, strict=False))
        self.placed.append(bound)
        return Outcome(key, best, tuple(share.uuid for shares in placed.shares for share in shares), "", "")

    def models(self) -> list[model_stats.ModelCount]:
        """Return the allocation of the GPUs of each model."""
        return model_stats.by_model(self._core.ledger.settle(), {})


def _refused(body: Mapping[str, Any], text: str) -> Outcome:
    """Return the outcome of a pod that the webhook refuses."""
    code, _, why = text.partition(": ")
    return Outcome(f"{body['metadata']['namespace']}/{body['metadata']['name']}", "", (), code, why)


class _Writer:
    """Writes to the bodies of simulated pods, and passes each change to the mirror."""

    def __init__(self, mirror: Mirror, bodies: Iterable[dict[str, Any]]) -> None:
        self._mirror = mirror
        self._bodies = {body["metadata"]["uid"]: body for body in bodies}
        for uid in self._bodies:
            self._seen(uid)

    async def hold(self, pod: pod_writer.Pod, hold: records.Hold | None) -> bool:
        """See `PodWriter`."""
        self._bodies[pod.uid]["metadata"]["annotations"][records.HOLD] = records.encode_hold(hold) if hold else ""
        return self._seen(pod.uid)

    async def nominate(self, pod: pod_writer.Pod, node: identifiers.NodeName | None) -> bool:
        """See `PodWriter`."""
        self._bodies[pod.uid].setdefault("status", {"phase": "Pending"})["nominatedNodeName"] = node or ""
        return self._seen(pod.uid)

    async def set_gates(self, pod: pod_writer.Pod, gates: Sequence[Any]) -> bool:
        """See `PodWriter`."""
        self._bodies[pod.uid]["spec"]["schedulingGates"] = list(gates)
        return self._seen(pod.uid)

    def _seen(self, uid: str) -> bool:
        self._mirror.see_pod(msgspec.convert(self._bodies[uid], objects.Pod, strict=False))
        return True


@dataclass(frozen=True, slots=True)
class Filling:
    """The statistics of a trace's placement."""

    nodes: int
    gpus: int
    pods: int
    """Those that were placed or rejected."""
    placed: int


def filled(
    trace: traces.Trace, until_percent: float, settings: Settings, report: Callable[[int, int], None]
) -> tuple[snapshot.State, Filling]:
    """Return a trace's cluster with its pods placed in their order; pods that do not fit are skipped.

    Args:
        trace: Nodes and pods.
        until_percent: The part of the GPUs that the placed pods may request together.
        settings: The settings of the extender that places them.
        report: Receives the number of processed pods, and of all pods, from time to time.
    """
    nodes = [msgspec.convert(body, objects.Node, strict=False) for body in trace.nodes]
    empty = snapshot.State(snapshot.VERSION, "", nodes, [], [])
    world = Simulation(empty, settings)
    coming = trace.until(until_percent)
    for count, body in enumerate(coming):
        if count % _PROGRESS_EVERY == 0:
            report(count, len(coming))
        world.place(_pod(body, "trace", body["metadata"]["name"]))
    pods = [msgspec.convert(body, objects.Pod, strict=False) for body in world.placed]
    filling = Filling(len(nodes), trace.gpus, len(coming), len(pods))
    return msgspec.structs.replace(empty, pods=pods), filling


def pods_of(path: pathlib.Path, text: str, replicas: int | None, nodes: Sequence[objects.Node]) -> list[dict[str, Any]]:
    """Return the pods of a manifest: its Pods, and those that controllers would create from its pod templates.

    Args:
        path: For messages.
        text: YAML, several documents allowed.
        replicas: The number of pods of each, instead of the manifest's.
        nodes: The nodes of the cluster: a DaemonSet creates one pod on each node that it allows.

    Raises:
        CommandFailed: It has no pods, or is not YAML.
    """
    try:
        documents = [one for one in yaml.safe_load_all(text) if one]
    except yaml.YAMLError as cause:
        raise failures.CommandFailed(f"{path} is not YAML: {cause}") from cause
    pods: list[dict[str, Any]] = []
    for document in _items(documents):
        pods += _pods(path, document, replicas, nodes)
        if len(pods) > MOST_PODS:
            raise failures.CommandFailed(f"{path} makes more than {MOST_PODS} pods", "lower --replicas")
    if not pods:
        raise failures.CommandFailed(f"{path} has no Pod, and no pod template that creates one here")
    return pods


def _items(documents: Iterable[Any]) -> Iterable[Any]:
    for document in documents:
        if isinstance(document, Mapping) and document.get("kind") == "List":
            yield from document.get("items") or ()
        else:
            yield document


def _pods(
    path: pathlib.Path, document: Any, replicas: int | None, nodes: Sequence[objects.Node]
) -> list[dict[str, Any]]:
    try:
        template = document if document["kind"] == "Pod" else _template_in(document)
        if template is None:
            return []
        metadata = document["metadata"]
        name, namespace = metadata.get("name") or metadata["generateName"], metadata.get("namespace", "default")
        if document["kind"] == "DaemonSet" and replicas is None:
            bodies = _one_a_node(template, namespace, name, nodes)
        else:
            count = _count(document) if replicas is None else replicas
            bodies = [_pod(template, namespace, name if count == 1 else f"{name}-{index}") for index in range(count)]
        for body in bodies:
            msgspec.convert(body, objects.Pod, strict=False)
    except (KeyError, TypeError, AttributeError, ValueError, msgspec.ValidationError) as cause:
        raise failures.CommandFailed(f"{path}: not a manifest that the API server accepts: {cause}") from cause
    return bodies


def _template_in(value: Any) -> Mapping[str, Any] | None:
    """Return the first pod template in a manifest: under `spec.template`, `spec.jobTemplate…`, or deeper."""
    if isinstance(value, Mapping):
        template = value.get("template")
        spec = template.get("spec") if isinstance(template, Mapping) else None
        if isinstance(template, Mapping) and isinstance(spec, Mapping) and "containers" in spec:
            return template
        inner: Iterable[Any] = value.values()
    else:
        inner = value if isinstance(value, list) else ()
    return next((found for one in inner if (found := _template_in(one)) is not None), None)


def _count(document: Mapping[str, Any]) -> int:
    """Return how many pods a controller creates from its template at one time."""
    spec = document.get("spec") or {}
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"].get("spec") or {}
    if document["kind"] in ("Job", "CronJob"):
        parallelism = int(spec.get("parallelism", 1))
        return min(parallelism, int(spec["completions"])) if "completions" in spec else parallelism
    return int(spec.get("replicas", 1))


def _one_a_node(
    template: Mapping[str, Any], namespace: str, name: str, nodes: Sequence[objects.Node]
) -> list[dict[str, Any]]:
    """Return the pods of a DaemonSet: one with node affinity for each node that its template allows.

    Source: k8s.io/kubernetes pkg/controller/daemon/util: affinity to `metadata.name`, and the tolerations added.
    """
    bodies = []
    for node in nodes:
        body = _pod(template, namespace, f"{name}-{node.metadata.name}")
        body["spec"]["tolerations"] = [
            *(body["spec"].get("tolerations") or ()),
            *({"key": f"node.kubernetes.io/{taint}", "operator": "Exists"} for taint in _TOLERATED_BY_DAEMONS),
        ]
        wished = node_selection.requirements_of(msgspec.convert(body, objects.Pod, strict=False))
        known = _Node.of(node)
        if node_selection.admits(wished, node.metadata.name, known.labels, known.taints):
            there = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node.metadata.name]}]}
            required = {"nodeSelectorTerms": [there]}
            affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
            body["spec"]["affinity"] = {**(body["spec"].get("affinity") or {}), **affinity}
            bodies.append(body)
    return bodies


def _pod(template: Mapping[str, Any], namespace: str, name: str) -> dict[str, Any]:
    body = {"metadata": dict(template.get("metadata") or {}), "spec": copy.deepcopy(template["spec"])}
    body["metadata"] |= {"name": name, "namespace": namespace, "uid": f"simulated-{namespace}-{name}"}
    body["metadata"]["resourceVersion"] = "1"
    annotations = body["metadata"].get("annotations") or {}
    body["metadata"]["annotations"] = {key: value for key, value in annotations.items() if key not in records.OF_PODS}
    body["spec"].setdefault("schedulerName", "hami-scheduler")
    if (template.get("status") or {}).get("phase"):
        body["spec"].pop("nodeName", None)  # An exported pod has the node that a scheduler chose.
    return body


def with_more_nodes(state: snapshot.State, text: str) -> snapshot.State:
    """Return the state with additional nodes.

    Args:
        state: The cluster.
        text: `<count>:<model>:<GPUs of each>`, such as `2:a100:8`.

    Raises:
        CommandFailed: The text has another form.
    """
    parts = text.split(":")
    model = gpus.MODELS.get(parts[1].lower()) if len(parts) == 3 else None
    if model is None or not (parts[0].isdecimal() and parts[2].isdecimal()):
        raise failures.CommandFailed(
            f"--add-nodes {text!r} is not COUNT:MODEL:GPUS", f"for example 2:a100:8; models: {', '.join(gpus.MODELS)}"
        )
    new_nodes = [
        msgspec.convert(gpus.gpu_node(f"added-{index}", model, int(parts[2])), objects.Node, strict=False)
        for index in range(int(parts[0]))
    ]
    return msgspec.structs.replace(state, nodes=[*state.nodes, *new_nodes])


def drained(state: snapshot.State, name: str) -> tuple[snapshot.State, list[dict[str, Any]]]:
    """Return the state without a node, and its pods, to be placed again.

    Raises:
        CommandFailed: There is no such node.
    """
    if name not in {node.metadata.name for node in state.nodes}:
        raise failures.CommandFailed(f"--drain: there is no node {name}", status=failures.NEGATIVE)
    gone = [pod for pod in state.pods if pod.spec.node_name == name]
    kept = [pod for pod in state.pods if pod.spec.node_name != name]
    nodes = [node for node in state.nodes if node.metadata.name != name]
    return msgspec.structs.replace(state, nodes=nodes, pods=kept), [_unbound(pod) for pod in gone]


def _unbound(pod: objects.Pod) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(pod)
    body["spec"]["nodeName"] = ""
    body["status"] = {"phase": "Pending"}
    annotations = body["metadata"].get("annotations") or {}
    theirs = {key: value for key, value in annotations.items() if key not in records.OF_PODS}
    body["metadata"]["annotations"] = theirs
    return body


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Return one row a pod for a table."""
    return [
        {
            "POD": one.pod,
            "NODE": one.node or "-",
            "GPUS": ",".join(dict.fromkeys(one.gpus)) or "-",
            "WHY": one.why.partition("\n")[0] or "fits",
        }
        for one in outcomes
    ]


def model_rows(
    before: Sequence[model_stats.ModelCount], after: Sequence[model_stats.ModelCount]
) -> list[dict[str, str]]:
    """Return one row a model: its allocation before and after."""
    was = {one.model: one for one in before}
    return [
        {
            "MODEL": one.model,
            "GPUS": str(one.gpus),
            "ALLOCATED": _changed(_share(was.get(one.model)), _share(one)),
            "LARGEST FREE": _changed(_largest(was.get(one.model)), _largest(one)),
        }
        for one in after
    ]


def _share(model: model_stats.ModelCount | None) -> str:
    return output.percent(model.memory_allocated_mib, model.memory_mib) if model else "-"


def _largest(model: model_stats.ModelCount | None) -> str:
    return output.mib(model.largest_free_mib) if model else "-"


def _changed(before: str, after: str) -> str:
    return after if before == after else f"{before} -> {after}"
