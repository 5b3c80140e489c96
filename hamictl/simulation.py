"""Would these pods fit, where, and what would the cluster look like? Answered by the extender's own code on a copy.

Nothing is written anywhere. What kube-scheduler decides by itself is known as far as node selectors, required node
affinity and taints go; CPU, memory, volumes and pod affinity are not looked at.
"""

import copy
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import yaml

from gpu_sharing.adapters import events, objects
from gpu_sharing.core import error_codes, gangs, identifiers, placement, records, requests
from hamictl import failures, output, state
from lab import gpus, traces
from scheduler_extender import (
    admission,
    constraints,
    facts,
    metrics,
    mirror,
    node_conditions,
    placing,
    requeue,
    settings,
    telling,
    usage,
    verbs,
)
from scheduler_extender.fleet import census, ledger

MOST_PODS = 10_000
_TOLD_EVERY = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What would become of one pod."""

    pod: str
    node: str
    """Empty where it would wait."""
    gpus: tuple[str, ...]
    code: str
    """Why it would wait."""
    why: str


class _Silent:
    """Takes events and drops them."""

    def tell(self, event: events.Event) -> None:
        del event


@dataclass(frozen=True, slots=True)
class _Node:
    """What of a node a pod's own words are about; read once, because traces ask about it a million times."""

    labels: Mapping[str, str]
    taints: Sequence[ledger.Taint]

    @staticmethod
    def of(node: objects.Node) -> "_Node":
        taints = facts.node_facts(node, requests.ResourceNames(), allow_hami_nodes=True).taints
        return _Node(node.metadata.labels or {}, taints)


class Simulation:
    """A cluster in memory, on which pods are placed one after another.

    Attributes:
        placed: The pods that fitted, as they would be bound.
    """

    def __init__(self, found: state.State, options: settings.Settings) -> None:
        counters = metrics.Metrics()
        self._options = options
        self.placed: list[dict[str, Any]] = []
        self._mirror = mirror.Mirror(options, counters)
        for node in found.nodes:
            self._mirror.see_node(node)
        for quota in found.quotas:
            self._mirror.see_quota(quota)
        for pod in found.pods:
            self._mirror.see_pod(pod)
        self._nodes = {node.metadata.name: _Node.of(node) for node in found.nodes}
        self._placer = placing.Placer(self._mirror.ledger, options)
        self._teller = telling.Teller(self._mirror, self._placer, _Silent(), options, lambda: True)
        self._verbs = verbs.Verbs(
            self._mirror, self._placer, self._teller,
            requeue.Refusals(self._mirror, self._placer, options, counters), options, counters, usage.Usage(options),
        )  # fmt: skip

    def place_all(self, bodies: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Create pods as the webhook lets them be, and place them; members of a gang all together or none of them."""
        outcomes: dict[int, Outcome] = {}
        members: dict[tuple[str, str], list[int]] = {}
        made: dict[int, dict[str, Any]] = {}
        for index, body in enumerate(bodies):
            verdict = admission.review(body, self._options)
            if verdict.refused:
                code, _, why = verdict.refused.partition(": ")
                outcomes[index] = Outcome(_key(body), "", (), code, why)
                continue
            made[index] = admission.patched(body, verdict)
            group = (body["metadata"]["namespace"], verdict.gang.name) if verdict.gang else ("", f"{index}")
            members.setdefault(group, []).append(index)
            if verdict.gang:
                made[index] = _alone(made[index])
                short = verdict.gang.size - sum(1 for other in bodies if _gang_of(other) == verdict.gang)
                if short > 0:
                    text = f"waits for its gang: {short} of {verdict.gang.size} members are not in the manifest"
                    outcomes[index] = Outcome(_key(body), "", (), error_codes.GANG_WAITS, text)
        for indices in members.values():
            if not any(index in outcomes for index in indices):
                outcomes |= dict(zip(indices, self._together([made[index] for index in indices]), strict=True))
        return [outcomes[index] for index in range(len(bodies))]

    def _together(self, bodies: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Place all of some pods, or none where one does not fit."""
        kept = len(self.placed)
        found = [self.place(body) for body in bodies]
        missing = next((one for one in found if one.code), None)
        if missing is None or len(bodies) == 1:
            return found
        for body in self.placed[kept:]:
            self._mirror.forget_pod(identifiers.PodUid(body["metadata"]["uid"]))
        del self.placed[kept:]
        text = f"waits for its gang, of which {missing.pod} does not fit: {missing.why}"
        return [one if one.code else Outcome(one.pod, "", (), error_codes.GANG_WAITS, text) for one in found]

    def place(self, body: dict[str, Any]) -> Outcome:
        """Place one pod, and let it stay if it fits."""
        pod = msgspec.convert(body, objects.Pod, strict=False)
        key = f"{pod.metadata.namespace}/{pod.metadata.name}"
        if not facts.is_ours(pod, self._options.resource_names):
            return Outcome(key, "", (), "", "it asks for no GPU: kube-scheduler places it alone")
        self._mirror.see_pod(pod)
        wished = constraints.wishes(pod)
        names = [
            name for name, node in self._nodes.items() if constraints.admits(wished, name, node.labels, node.taints)
        ]
        answer = orjson.loads(self._verbs.filter(orjson.dumps({"Pod": body, "NodeNames": names})))
        fitting = answer.get("NodeNames") or []
        waiting = self._mirror.waiting[identifiers.PodUid(pod.metadata.uid)]
        if not fitting:
            told = self._teller.explain(waiting, [identifiers.NodeName(name) for name in names])
            return Outcome(key, "", (), told.code, told.note)
        scores = orjson.loads(self._verbs.prioritize(orjson.dumps({"Pod": body, "NodeNames": fitting})))
        best = identifiers.NodeName(max(scores, key=lambda one: one["Score"])["Host"])
        placed = self._placer.place_on(waiting, best, nominations=False)
        assert isinstance(placed, placement.Placement)
        bound = copy.deepcopy(body)
        bound["spec"]["nodeName"] = best
        bound["metadata"].setdefault("annotations", {}).update(
            records.pod_annotations(placed.shares, best, 0, identifiers.DecisionId("simulated"))
        )
        self._mirror.see_pod(msgspec.convert(bound, objects.Pod, strict=False))
        self.placed.append(bound)
        return Outcome(key, best, tuple(share.uuid for shares in placed.shares for share in shares), "", "")

    def models(self) -> list[census.ModelCount]:
        """How the GPUs of each model stand now."""
        fleet = self._mirror.ledger.settle()
        return census.count(fleet, {}, node_conditions.columns(self._mirror.ledger, fleet))


@dataclass(frozen=True, slots=True)
class Filling:
    """What became of a trace's pods."""

    nodes: int
    gpus: int
    pods: int
    """Those that were placed or refused."""
    placed: int


def filled(
    trace: traces.Trace, until_percent: float, options: settings.Settings, tell: Callable[[int, int], None]
) -> tuple[state.State, Filling]:
    """A trace's cluster after its pods have come, in their order; those that do not fit are not waited for.

    Args:
        trace: Nodes and pods.
        until_percent: The pods that come ask for so much of the GPUs, together.
        options: Of the extender that places them.
        tell: Called now and then with how many pods have come, and how many will.
    """
    nodes = [msgspec.convert(body, objects.Node, strict=False) for body in trace.nodes]
    empty = state.State(state.VERSION, "", nodes, [], [])
    world = Simulation(empty, options)
    coming = trace.until(until_percent)
    for count, body in enumerate(coming):
        if count % _TOLD_EVERY == 0:
            tell(count, len(coming))
        world.place(_pod(body, "trace", body["metadata"]["name"]))
    pods = [msgspec.convert(body, objects.Pod, strict=False) for body in world.placed]
    filling = Filling(len(nodes), trace.gpus, len(coming), len(pods))
    return msgspec.structs.replace(empty, pods=pods), filling


def _key(body: Mapping[str, Any]) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


def _gang_of(body: Mapping[str, Any]) -> gangs.Gang | None:
    return facts.gang_of(msgspec.convert(body, objects.Pod, strict=False))


def _alone(body: dict[str, Any]) -> dict[str, Any]:
    """A member of a gang without what makes it one."""
    metadata = dict(body["metadata"])
    annotations = {key: value for key, value in metadata["annotations"].items() if key not in (gangs.NAME, gangs.SIZE)}
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != gangs.LABEL}
    spec = {key: value for key, value in body["spec"].items() if key not in ("schedulingGates", "schedulingGroup")}
    return {**body, "metadata": {**metadata, "annotations": annotations, "labels": labels}, "spec": spec}


def pods_of(
    path: pathlib.Path, text: str, replicas: int | None, nodes: Sequence[objects.Node] = ()
) -> list[dict[str, Any]]:
    """The pods that a manifest makes: of Pods, and of the templates in anything else, as its controller makes them.

    Args:
        path: For messages.
        text: YAML, several documents allowed.
        replicas: How many of each, in place of what the manifest says.
        nodes: Those on which a DaemonSet has a pod each, if its pods may go there.

    Raises:
        CommandFailed: It has no pods, or is not YAML.
    """
    try:
        documents = [one for one in yaml.safe_load_all(text) if one]
    except yaml.YAMLError as cause:
        raise failures.CommandFailed(f"{path} is not YAML: {cause}") from cause
    found: list[dict[str, Any]] = []
    for document in _items(documents):
        found += _pods(path, document, replicas, nodes)
        if len(found) > MOST_PODS:
            raise failures.CommandFailed(f"{path} makes more than {MOST_PODS} pods", "lower --replicas")
    if not found:
        raise failures.CommandFailed(f"{path} has no Pod in it, and no template of pods")
    return found


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
        kind, metadata = document["kind"], document["metadata"]
        name, namespace = metadata.get("name") or metadata["generateName"], metadata.get("namespace", "default")
        made = []
        for template, count in [(document, 1)] if kind == "Pod" else _templates(document):
            if kind == "DaemonSet" and replicas is None:
                made += _daemons(template, namespace, name, nodes)
                continue
            wanted, start = count if replicas is None else replicas, len(made)
            alone = wanted == 1 and not start
            made += [_pod(template, namespace, name if alone else f"{name}-{start + index}") for index in range(wanted)]
        for body in made:
            msgspec.convert(body, objects.Pod, strict=False)
    except (KeyError, TypeError, AttributeError, ValueError, msgspec.ValidationError) as cause:
        raise failures.CommandFailed(f"{path}: not a manifest that the API server takes: {cause}") from cause
    return made


def _templates(value: Any) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Every template of pods within an object, however deep, with how many pods its controller has at one time."""
    if isinstance(value, Mapping):
        template = value.get("template")
        if isinstance(template, Mapping) and isinstance((template.get("spec") or {}).get("containers"), list):
            yield template, _count(value)
            return
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _templates(inner)


def _count(spec: Mapping[str, Any]) -> int:
    """Of a Job as many as run at once; else the replicas."""
    if "parallelism" in spec or "completions" in spec:
        parallelism = int(spec.get("parallelism") or 1)
        return min(parallelism, int(spec.get("completions") or parallelism))
    return int(spec.get("replicas", 1))


def _daemons(
    template: Mapping[str, Any], namespace: str, name: str, nodes: Sequence[objects.Node]
) -> list[dict[str, Any]]:
    """A pod for each node that takes it, bound there by node affinity, as the DaemonSet controller makes them."""
    made = []
    wished = constraints.wishes(msgspec.convert(_pod(template, namespace, name), objects.Pod, strict=False))
    for node in nodes:
        known = _Node.of(node)
        if not constraints.admits(wished, node.metadata.name, known.labels, known.taints):
            continue
        body = _pod(template, namespace, f"{name}-{node.metadata.name}")
        field = {"key": "metadata.name", "operator": "In", "values": [node.metadata.name]}
        required = {"nodeSelectorTerms": [{"matchFields": [field]}]}
        affinity = dict(body["spec"].get("affinity") or {})
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": required}
        body["spec"]["affinity"] = affinity
        made.append(body)
    return made


def _pod(template: Mapping[str, Any], namespace: str, name: str) -> dict[str, Any]:
    """A pod of a template, or a pod as it would be if it were made now: without a node and without its record."""
    body = {"metadata": dict(template.get("metadata") or {}), "spec": copy.deepcopy(template["spec"])}
    body["metadata"] |= {"name": name, "namespace": namespace, "uid": f"simulated-{namespace}-{name}"}
    body["metadata"]["resourceVersion"] = "1"
    annotations = body["metadata"].get("annotations") or {}
    body["metadata"]["annotations"] = {key: value for key, value in annotations.items() if key not in records.OF_PODS}
    body["metadata"].pop("deletionTimestamp", None)
    body["spec"].pop("nodeName", None)
    body["spec"].setdefault("schedulerName", "hami-scheduler")
    return body


def with_more_nodes(found: state.State, text: str) -> state.State:
    """The state with nodes more.

    Args:
        found: What there is.
        text: `<how many>:<model>:<GPUs of each>`, such as `2:a100:8`.

    Raises:
        CommandFailed: It is not that.
    """
    parts = text.split(":")
    model = gpus.MODELS.get(parts[1].lower()) if len(parts) == 3 else None
    if model is None or not (parts[0].isdecimal() and parts[2].isdecimal()):
        raise failures.CommandFailed(
            f"--add-nodes {text!r} is not COUNT:MODEL:GPUS", f"for example 2:a100:8; models: {', '.join(gpus.MODELS)}"
        )
    made = [
        msgspec.convert(gpus.gpu_node(f"added-{index}", model, int(parts[2])), objects.Node, strict=False)
        for index in range(int(parts[0]))
    ]
    return msgspec.structs.replace(found, nodes=[*found.nodes, *made])


def drained(found: state.State, name: str) -> tuple[state.State, list[dict[str, Any]]]:
    """The state without a node, and the pods that were on it, to be placed anew.

    Raises:
        CommandFailed: There is no such node.
    """
    if name not in {node.metadata.name for node in found.nodes}:
        raise failures.CommandFailed(f"--drain: there is no node {name}", status=failures.NEGATIVE)
    gone = [pod for pod in found.pods if pod.spec.node_name == name]
    kept = [pod for pod in found.pods if pod.spec.node_name != name]
    nodes = [node for node in found.nodes if node.metadata.name != name]
    return msgspec.structs.replace(found, nodes=nodes, pods=kept), [_unbound(pod) for pod in gone]


def _unbound(pod: objects.Pod) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(pod)
    body["spec"]["nodeName"] = ""
    body["status"] = {"phase": "Pending"}
    annotations = body["metadata"].get("annotations") or {}
    theirs = {key: value for key, value in annotations.items() if key not in records.OF_PODS}
    body["metadata"]["annotations"] = theirs
    return body


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """One row a pod."""
    return [
        {
            "POD": one.pod,
            "NODE": one.node or "-",
            "GPUS": ",".join(dict.fromkeys(one.gpus)) or "-",
            "WHY": one.why.partition("\n")[0] or "fits",
        }
        for one in outcomes
    ]


def model_rows(before: Sequence[census.ModelCount], after: Sequence[census.ModelCount]) -> list[dict[str, str]]:
    """One row a model: how its GPUs stand before and after."""
    was = {one.model: one for one in before}
    return [
        {
            "MODEL": one.model,
            "GPUS": str(one.gpus),
            "PROMISED": _changed(_share(was.get(one.model)), _share(one)),
            "LARGEST FREE": _changed(_largest(was.get(one.model)), _largest(one)),
        }
        for one in after
    ]


def _share(model: census.ModelCount | None) -> str:
    return output.percent(model.memory_promised_mib, model.memory_mib) if model else "-"


def _largest(model: census.ModelCount | None) -> str:
    return output.mib(model.largest_free_mib) if model else "-"


def _changed(before: str, after: str) -> str:
    return after if before == after else f"{before} -> {after}"
