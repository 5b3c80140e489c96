"""From API objects to values: what a node offers, what a pod holds or requests. Pure."""

from collections.abc import Sequence
from typing import Any

from gpu_sharing.adapters import objects
from gpu_sharing.core import (
    allocations,
    errors,
    gangs,
    identifiers,
    preemption,
    quantities,
    quotas,
    records,
    remediation,
    remediation_history,
    requests,
)
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import node_selection, pending
from scheduler_extender.fleet import facts

REFUSED = "Refused"
"""Why a pod does not run whose containers the device plugin refused to start."""
_LONGEST_NAME = 253
_JUST_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})


def is_ours(pod: objects.Pod, names: requests.ResourceNames) -> bool:
    """Return whether the pod requests GPUs; only then are its annotations read."""
    return requests.asks_for_gpu((*pod.init_containers, *pod.containers), names)


def node_facts(node: objects.Node, names: requests.ResourceNames, *, allow_hami_nodes: bool) -> facts.Node:
    """Return what a node's annotations say of its GPUs.

    A node that offers GPUs to the kubelet without a record is served by another plugin, such as NVIDIA's own.
    """
    name = identifiers.NodeName(node.metadata.name)
    annotations = node.metadata.annotations or {}
    text = annotations.get(records.INVENTORY)
    problems = records.decode_problems(annotations.get(records.PROBLEMS, ""))
    if not text:
        offered = (node.status.allocatable or {}).get(names.count)
        foreign = offered is not None and quantities.thousandths(offered) > 0
        standing = Reason.FOREIGN_AGENT if foreign else Reason.NODE_NOT_REGISTERED
        return facts.Node(name, standing=standing, unavailable=_unavailable(node), problems=problems)
    try:
        inventory = records.decode_inventory(text)
    except errors.CorruptRecord:
        return facts.Node(name, standing=Reason.CORRUPT_NODE_RECORD, unavailable=_unavailable(node))
    links, bad_links = records.decode_links(annotations.get(records.SCORE, ""), inventory)
    ours = records.is_our_agent(annotations.get(records.AGENT))
    cordoned = records.decode_cordon(annotations.get(records.CORDON, ""))
    return facts.Node(
        name,
        inventory=inventory,
        cordoned=cordoned | records.decode_cordon(annotations.get(records.RELEASE, "")),
        unknown_cordons=tuple(sorted(cordoned - {gpu.uuid for gpu in inventory})),
        standing=Reason.NONE if ours or allow_hami_nodes else Reason.FOREIGN_AGENT,
        unavailable=_unavailable(node),
        links=links,
        labels=node.metadata.labels or {},
        taints=tuple(facts.Taint(taint.key, taint.value, taint.effect) for taint in node.spec.taints or ()),
        bad_links=bad_links,
        one_at_a_time=not ours,
        unhealthy_reasons=records.decode_unhealthy_reasons(annotations.get(records.HEALTH, "")),
        problems=problems,
        lacks=lacking(node, names),
        cpu_thousandths=quantities.thousandths((node.status.allocatable or {}).get("cpu")),
        memory_thousandths=quantities.thousandths((node.status.allocatable or {}).get("memory")),
    )


def node_health(node: objects.Node) -> remediation.NodeFacts | None:
    """Return what remediation reads of a node; None where no device plugin of ours reports its GPUs."""
    annotations = node.metadata.annotations or {}
    if not records.is_our_agent(annotations.get(records.AGENT)):
        return None
    try:
        inventory = records.decode_inventory(annotations.get(records.INVENTORY, "[]"))
    except errors.CorruptRecord:
        return None
    conditions = {one.type: one.status for one in node.status.conditions or ()}
    return remediation.NodeFacts(
        name=identifiers.NodeName(node.metadata.name),
        gpus=remediation.gpu_facts(
            inventory,
            annotations.get(records.HEALTH, ""),
            cordoned=records.decode_cordon(annotations.get(records.CORDON, "")),
            released=records.decode_cordon(annotations.get(records.RELEASE, "")),
        ),
        is_alive=conditions.get("Ready", "True") == "True",
        conditions=conditions,
        problems=tuple(records.decode_problems(annotations.get(records.PROBLEMS, ""))),
        is_cordoned=bool(node.spec.unschedulable),
        is_tainted=any(taint.key == remediation_history.TAINT for taint in node.spec.taints or ()),
        history=remediation_history.decode(annotations.get(remediation_history.ANNOTATION, "")),
    )


def lacking(node: objects.Node, names: requests.ResourceNames) -> tuple[str, ...]:
    """Return the resources that pods may request beside the count and that the node's allocatable lacks.

    They are those by which a share of a GPU is requested; a pod with a task priority names `names.priority` too.
    """
    there = node.status.allocatable or {}
    return tuple(name for name in (names.memory, names.memory_percent, names.cores) if name not in there)


def _unavailable(node: objects.Node) -> Reason:
    """Whether the node itself keeps new pods away, whatever its GPUs are like."""
    ready = next((one.status for one in node.status.conditions or () if one.type == "Ready"), "True")
    if ready != "True":
        return Reason.NODE_NOT_READY
    return Reason.NODE_CORDONED if node.spec.unschedulable else Reason.NONE


def _not_running(pod: objects.Pod) -> str:
    """Why the containers of a bound pod do not run, in the kubelet's word; empty where they do or just have not yet."""
    if pod.annotations.get(records.BIND_PHASE) == records.PHASE_FAILED:
        return REFUSED
    status = pod.status or objects.PodStatus()
    reasons = (
        one.state.waiting.reason
        for one in (*(status.init_container_statuses or ()), *(status.container_statuses or ()))
        if one.state and one.state.waiting
    )
    return next((reason[:64] for reason in reasons if reason not in _JUST_STARTING), "")


def pending_pod(pod: objects.Pod, names: requests.ResourceNames) -> pending.AnyPod:
    """Return what an unbound pod requests; a pod whose request or gang is invalid becomes an `UnreadablePod` here."""
    request = requests.read(pod.init_containers, pod.containers, pod.annotations, names)
    try:
        read_gang(pod)
    except errors.BadQuantity as refused:
        request = requests.InvalidRequest(refused.code, refused.sentence)
    if isinstance(request, requests.InvalidRequest):
        return pending.UnreadablePod(invalid=request, **_unbound(pod))
    return pending.PendingPod(request=request, **_unbound(pod))


def _unbound(pod: objects.Pod) -> dict[str, Any]:
    """What `pending.PendingPod` and `pending.UnreadablePod` have in common."""
    status = pod.status or objects.PodStatus()
    traits = _traits(pod)
    unscheduled = [c for c in status.conditions or () if c.type == "PodScheduled" and c.status == "False"]
    return {
        "uid": identifiers.PodUid(pod.metadata.uid),
        "key": identifiers.PodKey(pod.key),
        "resource_version": pod.metadata.resource_version,
        "traits": traits,
        "scheduler_name": pod.spec.scheduler_name,
        "annotation_bytes": sum(len(key) + len(value.encode()) for key, value in pod.annotations.items()),
        "nominated_node": identifiers.NodeName(status.nominated_node_name) if status.nominated_node_name else None,
        "has_soft_preferences": pod.has_soft_preferences,
        "unschedulable_message": unscheduled[0].message if unscheduled else "",
        "unscheduled_reason": unscheduled[0].reason if unscheduled else "",
        "preempts": pod.spec.preemption_policy != "Never",
        "hold": records.decode_hold(pod.annotations.get(records.HOLD, "")),
        "gates": tuple(pod.spec.scheduling_gates or ()),
        "node_requirements": node_selection.requirements_of(pod),
    }


def pod_facts(pod: objects.Pod, names: requests.ResourceNames) -> facts.BoundPod:
    """Return what a bound pod holds by its record.

    A pod without a record was bound by another scheduler: it holds device ids of its node and no known GPU. A record
    that does not decode keeps the node's other GPUs out of use.
    """
    uid, key = identifiers.PodUid(pod.metadata.uid), identifiers.PodKey(pod.key)
    node = identifiers.NodeName(pod.spec.node_name)
    traits = _traits(pod)
    kinds: Sequence[allocations.Kind] = requests.kinds_of(pod.init_containers, pod.containers)
    text = pod.annotations.get(records.ALLOCATED, "")
    if not text.strip(";: "):
        slots = requests.device_ids(pod.init_containers, pod.containers, names)
        return facts.BoundPod(uid, key, node, amounts=quotas.Amounts(slots), foreign_slots=slots, traits=traits)
    asking = [requests.asks_for_gpu((container,), names) for container in (*pod.init_containers, *pod.containers)]
    try:
        shares = records.decode_shares(text, asking)
        shares = records.decode_instances(pod.annotations.get(records.MIG_ALLOCATIONS, ""), shares)
        corrupt = False
    except errors.CorruptRecord:
        kinds, shares, corrupt = [allocations.Kind.APP], (records.legible_shares(text),), True
    return facts.BoundPod(
        uid,
        key,
        node,
        allocated=allocations.by_gpu(kinds, shares),
        shares=shares,
        amounts=quotas.amounts(kinds, shares),
        corrupt=corrupt,
        other_node=recorded if (recorded := pod.annotations.get(records.NODE, "")[:_LONGEST_NAME]) != node else "",
        starting=not corrupt and pod.annotations.get(records.BIND_PHASE) == records.PHASE_ALLOCATING,
        not_running="" if corrupt else _not_running(pod),
        traits=traits,
    )


def read_gang(pod: objects.Pod) -> gangs.Gang | None:
    """Return the gang of a pod, or None.

    Raises:
        BadQuantity: What it says of its gang is invalid.
    """
    group = pod.spec.scheduling_group
    named = group.pod_group_name if group else ""
    return gangs.read(pod.annotations, pod.metadata.labels or {}, pod.metadata.controller, named)


def gang_of(pod: objects.Pod) -> gangs.Gang | None:
    """Return the gang of a pod; None where what it says of its gang is invalid."""
    try:
        return read_gang(pod)
    except errors.BadQuantity:
        return None


def _traits(pod: objects.Pod) -> facts.Traits:
    """What a pod is apart from its GPUs."""
    bound_at = pod.annotations.get(records.BIND_TIME, "")
    every = (*pod.init_containers, *pod.containers)
    kinds = requests.kinds_of(pod.init_containers, pod.containers)
    return facts.Traits(
        pod.spec.priority or 0,
        pod.metadata.deletion_timestamp is not None,
        _thousandths(pod.spec, kinds, every, "cpu"),
        _thousandths(pod.spec, kinds, every, "memory"),
        gang_of(pod),
        int(bound_at) if bound_at.isascii() and bound_at.isdigit() and len(bound_at) < 12 else 0,
        int(objects.unix_seconds(pod.metadata.creation_timestamp)),
        pod.metadata.controller,
    )


def host_amounts(pod: objects.Pod) -> facts.HostAmounts:
    """Return what a pod requests of its node."""
    every = (*pod.init_containers, *pod.containers)
    kinds = requests.kinds_of(pod.init_containers, pod.containers)
    return facts.host_amounts(
        _thousandths(pod.spec, kinds, every, "cpu"), _thousandths(pod.spec, kinds, every, "memory")
    )


def _thousandths(
    spec: objects.PodSpec, kinds: Sequence[allocations.Kind], every: Sequence[objects.Container], resource: str
) -> int:
    """What kube-scheduler counts of CPU or memory for the pod, in thousandths."""
    of_pod = (spec.resources.requests or {}) if spec.resources else {}
    return preemption.effective_request(
        kinds,
        [quantities.thousandths(asked.get(resource)) if (asked := one.requests) else 0 for one in every],
        quantities.thousandths(of_pod[resource]) if resource in of_pod else None,
        quantities.thousandths(spec.overhead.get(resource)) if spec.overhead else 0,
    )
