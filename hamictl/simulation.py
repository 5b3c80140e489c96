"""Place pods on a copy of a cluster, by the extender's own code.

Nothing is written to the cluster. Of kube-scheduler's own rules node selectors, required node affinity and taints are
respected; CPU, memory, volumes and pod affinity are not examined.
"""

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gpu_sharing.adapters import events, objects, read_api_types
from gpu_sharing.core import error_codes, identifiers, placement, records
from hamictl import failures, flags, manifests, output, snapshot
from lab import gpus, traces
from scheduler_extender.act import gang_planner, pod_writer
from scheduler_extender.cluster import from_objects, node_selection, pending
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import admission, core, explaining, verbs
from scheduler_extender.fleet import model_stats
from scheduler_extender.metrics import Metrics
from scheduler_extender.report import event_notes
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.serve import read_api
from scheduler_extender.settings import Settings

_MOST_ADDED_NODES, _MOST_ADDED_GPUS = 10_000, 64
_PLANNER_STEPS = 4
"""The number of steps after which a gang has its holds, its nominations and its open gates."""
_PROGRESS_EVERY = 100
MOST_EXPLAINED = 20
"""Groups whose nodes are listed one by one in the explanation of a rejected pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result for one pod."""

    pod: str
    node: str = ""
    """Empty if it would be pending."""
    gpus: tuple[str, ...] = ()
    code: str = ""
    """The code of its rejection; empty if it fits, or requests no GPU."""
    why: str = ""
    group: str = ""
    """Its controller, as `namespace/name`; a pod without one is its own group."""
    advice: str = ""
    """What to do about the rejection."""
    warnings: tuple[str, ...] = ()
    """As the webhook writes them when the pod is created, such as of a misspelled resource."""


class _Silent:
    """Drops all events of a simulation."""

    def record(self, event: events.Event) -> None:
        del event


class Simulation:
    """A cluster in memory, on which pods are placed one after another.

    Attributes:
        placed: The pods that fitted, as they would be bound.
        explanations: Why the first rejected pod of each group does not fit, as `hamictl explain` has it.
    """

    def __init__(self, state: snapshot.State, settings: Settings) -> None:
        self._settings = settings
        self.placed: list[dict[str, Any]] = []
        self.explanations: dict[str, read_api_types.Explanation] = {}
        self._core = core.DecisionCore(settings, Metrics())
        self._verbs = verbs.Verbs(self._core)
        self._explainer = explaining.Explainer(self._core)
        self._mirror = self._core.mirror
        for node in state.nodes:
            self._mirror.see_node(node)
        for quota in state.quotas:
            self._mirror.see_quota(quota)
        for api_group, pod_groups in state.pod_groups.items():
            for pod_group in pod_groups:
                if api_group in self._mirror.groups:
                    self._mirror.groups[api_group].changed(pod_group)
        for pod in state.pods:
            self._mirror.see_pod(pod)
        self._nodes = {node.metadata.name: manifests.NodeFacts.of(node) for node in state.nodes}

    def place_all(self, bodies: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Create pods as the webhook changes them, and place them one after another; gangs are planned first."""
        reviews = [admission.review(body, self._settings) for body in bodies]
        patched = [admission.patched(body, review) for body, review in zip(bodies, reviews, strict=True)]
        members = [body for body, review in zip(patched, reviews, strict=True) if review.gang and not review.refused]
        if members:
            self._plan_gangs(members)
        return [
            dataclasses.replace(self._answer(body, review.refused), warnings=review.warnings)
            for body, review in zip(patched, reviews, strict=True)
        ]

    def _answer(self, body: dict[str, Any], refusal: str) -> Outcome:
        """Return the outcome of a pod with its group, and explain the first rejection of a group."""
        outcome = _refused(body, refusal) if refusal else self.place(body)
        group = _group_of(body)
        if not outcome.code or refusal:
            return dataclasses.replace(outcome, group=group, advice=_remedy(outcome.code))
        if group not in self.explanations and len(self.explanations) < MOST_EXPLAINED:
            pod = self._core.pending.get(identifiers.PodUid(body["metadata"]["uid"]))
            assert pod is not None
            answer = asyncio.run(self._explainer.explain(pod))
            self.explanations[group] = read_api.explanation(outcome.pod, answer)
        explained = self.explanations.get(group)
        advice = explained.remedy if explained and explained.pod == outcome.pod else _remedy(outcome.code)
        return dataclasses.replace(outcome, group=group, advice=advice)

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
            return Outcome(pod=key, why=f"it requests no {resource}: kube-scheduler places it alone")
        self._mirror.see_pod(pod)
        wished = node_selection.requirements_of(pod)
        names = [
            name for name, node in self._nodes.items() if node_selection.admits(wished, name, node.labels, node.taints)
        ]
        listed = self._core.pending.get(identifiers.PodUid(pod.metadata.uid))
        assert listed is not None
        answer = self._verbs.filter(listed, names)
        packing = self._core.placer.packing
        if packing.is_due:
            packing.fit()
        if answer is not None and answer.rejection is not None:
            return Outcome(pod=key, code=answer.rejection.code, why=event_notes.rejected(answer.rejection))
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
        return Outcome(pod=key, node=best, gpus=tuple(share.uuid for shares in placed.shares for share in shares))

    def models(self) -> list[model_stats.ModelCount]:
        """Return the allocation of the GPUs of each model."""
        return model_stats.by_model(self._core.ledger.settle(), {})


def _group_of(body: Mapping[str, Any]) -> str:
    owner: Mapping[str, Any] = next(iter(body["metadata"].get("ownerReferences") or ()), {})
    return f"{body['metadata']['namespace']}/{owner.get('name') or body['metadata']['name']}"


def _remedy(code: str) -> str:
    entry = error_codes.REGISTRY.get(error_codes.Code(code))
    return entry.remedy if entry else ""


def _refused(body: Mapping[str, Any], text: str) -> Outcome:
    """Return the outcome of a pod that the webhook refuses."""
    code, _, why = text.partition(": ")
    return Outcome(pod=f"{body['metadata']['namespace']}/{body['metadata']['name']}", code=code, why=why)


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
        world.place(manifests.pod(body, "trace", body["metadata"]["name"]))
    pods = [msgspec.convert(body, objects.Pod, strict=False) for body in world.placed]
    filling = Filling(len(nodes), trace.gpus, len(coming), len(pods))
    return msgspec.structs.replace(empty, pods=pods), filling


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
    count = flags.whole_number(parts[0], 1, _MOST_ADDED_NODES)
    each = flags.whole_number(parts[-1], 1, _MOST_ADDED_GPUS)
    if model is None or count is None or each is None:
        raise failures.CommandFailed(
            f"--add-nodes {text!r} is not COUNT:MODEL:GPUS with 1 to {_MOST_ADDED_NODES:,} nodes and 1 to "
            f"{_MOST_ADDED_GPUS} GPUs",
            f"for example 2:a100:8; models: {', '.join(gpus.MODELS)}",
        )
    new_nodes = [
        msgspec.convert(gpus.gpu_node(f"added-{index}", model, each), objects.Node, strict=False)
        for index in range(count)
    ]
    return msgspec.structs.replace(state, nodes=[*state.nodes, *new_nodes])


def without_exported(state: snapshot.State, manifest: manifests.Manifest) -> tuple[snapshot.State, int]:
    """Return the state without the pods that the manifest exports, and their number; its pod groups are added."""
    kept = [pod for pod in state.pods if pod.key not in manifest.exported]
    pod_groups = dict(state.pod_groups)
    for api_group, groups in manifest.pod_groups.items():
        pod_groups[api_group] = [*pod_groups.get(api_group, ()), *groups]
    return msgspec.structs.replace(state, pods=kept, pod_groups=pod_groups), len(state.pods) - len(kept)


def drained(state: snapshot.State, name: str) -> tuple[snapshot.State, list[dict[str, Any]]]:
    """Return the state without a node, and its pods, to be placed again.

    Raises:
        CommandFailed: There is no such node.
    """
    if name not in {node.metadata.name for node in state.nodes}:
        known = [node.metadata.name for node in state.nodes]
        raise failures.unknown(f"--drain: there is no node {name}", name, known)
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
