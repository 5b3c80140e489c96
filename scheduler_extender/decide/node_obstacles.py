"""What keeps one pending pod off one node: the first rule in the way, by the pod and the node as they are known.

The stages are ordered by how near the node comes: a node of a later stage passes all earlier ones. A node that could
never serve the request has no cordon or taint as its obstacle, and a node whose labels do not match no free memory.
"""

import dataclasses
import enum
from dataclasses import dataclass

from gpu_sharing.core import error_codes, identifiers, placement, rejections
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import node_selection
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.fleet import facts

_WITHOUT_GPUS = frozenset(
    {
        Reason.NODE_UNKNOWN,
        Reason.NODE_NOT_REGISTERED,
        Reason.CORRUPT_NODE_RECORD,
        Reason.FOREIGN_AGENT,
        Reason.DRA,
    }
)
_MILLI, _MIB = 1000, 1000 << 20
_UNSCHEDULABLE = facts.Taint("node.kubernetes.io/unschedulable", "", "NoSchedule")


class Stage(enum.IntEnum):
    """How near a node comes to taking a pod."""

    NO_GPUS = 0
    """It has no GPUs that the extender allocates."""
    NEVER = 1
    """Its GPUs do not serve the request even when they are empty."""
    SELECTOR = 2
    UNAVAILABLE = 3
    """It is cordoned, not ready, or kept back by a DeviceClass."""
    TAINT = 4
    RESOURCES = 5
    """The pod requests more CPU or memory than the whole node has."""
    GPUS = 6
    """Its GPUs would serve the request if they were empty and usable, or a quota or gang allowed it."""
    FITS = 7
    """By all that the extender knows it takes the pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """The first rule that keeps a pod off a node."""

    node: identifiers.NodeName
    stage: Stage
    message: str
    code: error_codes.Code | None = None
    """None where the node takes the pod."""
    rejection: rejections.Rejection | None = None
    """Set where the GPUs, a quota, a gang or the state of the node reject it."""
    selected: bool = True
    """Whether the pod's node selector and required node affinity match the node."""
    gpus_fit: bool = False
    """Whether the GPUs fit as they are now, so that only this rule is in the way."""
    short_mib: int = 0
    """By how much the largest free GPU memory of the node is too small, for the order of nodes; 0 where unknown."""


def obstacle_on(core: DecisionCore, pod: PendingPod, name: identifiers.NodeName) -> Obstacle:
    """Return what keeps the pod off a node."""
    state = core.ledger.allocated_on(name)
    known = core.ledger.node_facts(name) or facts.Node(name)
    answer = core.placer.place_on(pod, name, nominations=False)
    rejection = answer if isinstance(answer, rejections.Rejection) else None
    if rejection is not None and rejection.reason in _WITHOUT_GPUS:
        return _by_rejection(name, Stage.NO_GPUS, rejection)
    if rejection is not None:
        emptied = _emptied(state)
        never = placement.fit(pod.request, emptied, core.placer.gpu_policy(pod.request))
        if isinstance(never, rejections.Rejection):
            selected = node_selection.selects(pod.node_requirements, name, known.labels)
            obstacle = _by_rejection(name, Stage.NEVER, never, short_mib=_short_mib(pod, emptied))
            return dataclasses.replace(obstacle, selected=selected)
    fits = rejection is None
    other = _by_node(core, pod, known)
    if other is not None:
        return dataclasses.replace(other, gpus_fit=fits)
    if rejection is not None:
        return _by_rejection(name, Stage.GPUS, rejection, short_mib=_short_mib(pod, state))
    return Obstacle(node=name, stage=Stage.FITS, message="its GPUs fit", gpus_fit=True)


def _by_rejection(
    name: identifiers.NodeName, stage: Stage, rejection: rejections.Rejection, short_mib: int = 0
) -> Obstacle:
    return Obstacle(
        node=name,
        stage=stage,
        message=rejection.sentence,
        code=rejection.code,
        rejection=rejection,
        short_mib=short_mib,
    )


def _emptied(node: placement.NodeState) -> placement.NodeState:
    """The node as it would be without pods and with all its GPUs usable."""
    states = tuple(
        type(state)(dataclasses.replace(state.gpu, healthy=True) if not state.gpu.healthy else state.gpu)
        for state in node.states
    )
    return placement.NodeState(node.name, states, links=node.links)


def _by_node(core: DecisionCore, pod: PendingPod, known: facts.Node) -> Obstacle | None:
    """Return what keeps the pod off whatever the GPUs are like: kube-scheduler's rules, as far as they are known."""
    wanted, name = pod.node_requirements, known.name
    unmatched = node_selection.unmatched(wanted, known.labels)
    if unmatched:
        message = f"nodeSelector {node_selection.selector_words(unmatched)} does not match its labels"
        return _not_selected(name, message)
    if not node_selection.affinity_matches(wanted, name, known.labels):
        message = f"required node affinity ({node_selection.affinity_words(wanted)}) does not match it"
        return _not_selected(name, message)
    unavailable = core.placer.unavailable(name)
    cordoned = unavailable is not None and unavailable.reason is Reason.NODE_CORDONED
    if unavailable is not None and not (cordoned and node_selection.untolerated(wanted, [_UNSCHEDULABLE]) is None):
        return _by_rejection(name, Stage.UNAVAILABLE, unavailable)
    taint = node_selection.untolerated(wanted, known.taints)
    if taint is not None:
        message = f"the pod does not tolerate its taint {taint_words(taint)}"
        return Obstacle(node=name, stage=Stage.TAINT, code=error_codes.NODE_TAINT, message=message)
    return _by_size(pod, known)


def _not_selected(name: identifiers.NodeName, message: str) -> Obstacle:
    return Obstacle(node=name, stage=Stage.SELECTOR, code=error_codes.NODE_SELECTOR, message=message, selected=False)


def taint_words(taint: facts.Taint) -> str:
    """Return a taint as `kubectl taint` writes it."""
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"


def _by_size(pod: PendingPod, known: facts.Node) -> Obstacle | None:
    for resource, asked, has in (
        ("cpu", pod.traits.cpu_thousandths, known.cpu_thousandths),
        ("memory", pod.traits.memory_thousandths, known.memory_thousandths),
    ):
        if has and asked > has:
            message = f"the pod requests {amount(resource, asked)}, the whole node has {amount(resource, has)}"
            return Obstacle(node=known.name, stage=Stage.RESOURCES, code=error_codes.NODE_RESOURCES, message=message)
    return None


def amount(resource: str, thousandths: int) -> str:
    """Return an amount of CPU or memory with its unit, such as `64 CPU`, `0.5 CPU` or `2,048 MiB of memory`."""
    if resource == "cpu":
        return f"{thousandths / _MILLI:,g} CPU"
    return f"{-(-thousandths // _MIB):,} MiB of memory"


def _short_mib(pod: PendingPod, state: placement.NodeState) -> int:
    """By how much the free memory of the best GPU is short of the largest request."""
    free = max((one.free_memory_mib for one in state.states), default=0)
    return max((ask.memory_mib for ask in pod.request.containers if ask), default=0) - free
