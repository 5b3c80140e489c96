"""Why a pod is pending, node by node, and what would change that: for the read API, and so for `hamictl` and the WebUI.

The sentences and codes are those of the pod's events. What is added here takes longer and is computed only on request:
whose end the pod waits for, which pods preemption could evict, and what to write instead. That is done beside the event
loop and within a budget; a node that the budget did not reach is marked.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_sharing.adapters import pauses
from gpu_sharing.core import error_codes, identifiers, placement, preemption, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender.cluster import pending
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide import rejecting
from scheduler_extender.decide.core import DecisionCore

_MOST_NODES_EXAMINED = 50
_EXAMINED_SECONDS = 1.0
"""Then no further node is examined, because the caller waits for the answer."""

_Chosen = tuple[preemption.Victim, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExplanation:
    """Why one node does not take a pod."""

    node: identifiers.NodeName
    message: str
    code: error_codes.Code | None = None
    """None where the GPUs fit."""
    curable: bool = False
    """Whether the departure of other pods could make it fit."""
    advice: str = ""
    """What its owner, or an administrator, could change."""
    waits_for: tuple[str, ...] = ()
    """The fewest pods whose end makes it fit, whatever their priority."""
    evictable: tuple[str, ...] = ()
    """The pods that preemption would evict for it; none where it may not, or where that does not help."""
    examined: bool = True
    """Whether `waits_for` and `evictable` were computed; False where the budget did not reach this node."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a pod is pending."""

    rejection: pending.PodRejection
    """The value from which its event is written, too."""
    gates: tuple[str, ...]
    """The scheduling gates that keep kube-scheduler from it."""
    nodes: tuple[NodeExplanation, ...]

    @property
    def remedy(self) -> str:
        """What to do about the reason that most nodes give."""
        return error_codes.REGISTRY[self.rejection.code].remedy

    @property
    def nearest(self) -> identifiers.NodeName | None:
        """The node where the fewest other pods are in the way."""
        near = [node for node in self.nodes if node.code is None or node.waits_for]
        best = min(near, key=lambda node: (len(node.waits_for), node.node), default=None)
        return best.node if best else None


class Explainer:
    """Explains one pod at a time."""

    def __init__(self, core: DecisionCore, clock: Callable[[], float] = time.monotonic) -> None:
        self._core = core
        self._ledger = core.ledger
        self._placer = core.placer
        self._clock = clock

    async def explain(self, pod: pending.AnyPod) -> Explanation:
        """Return why a pod is pending.

        Raises:
            Busy: Too many explanations are being computed.
        """
        names = sorted(self._ledger.node_names())
        rejection = rejecting.pod_rejection(self._ledger, self._placer, pod, names)
        if isinstance(pod, pending.UnreadablePod):
            nodes = [NodeExplanation(node=name, message=pod.invalid.sentence, code=pod.invalid.code) for name in names]
        else:
            nodes = await self._explain_nodes(pod, names)
        return Explanation(rejection, tuple(str(gate.get("name", "")) for gate in pod.gates), tuple(nodes))

    async def _explain_nodes(self, pod: PendingPod, names: Sequence[identifiers.NodeName]) -> list[NodeExplanation]:
        nodes: dict[identifiers.NodeName, NodeExplanation] = {}
        curable: list[tuple[int, identifiers.NodeName]] = []
        pause = pauses.Pause()
        for name in names:
            await pause()
            answer = self._placer.unavailable(name) or self._placer.place_on(pod, name, nominations=False)
            if isinstance(answer, placement.Placement):
                nodes[name] = NodeExplanation(node=name, message="its GPUs fit")
                continue
            may_help = answer.info.curable
            if may_help:
                curable.append((-_most_free_mib(self._ledger.allocated_on(name)), name))
            advice = _advice(pod.request, answer)
            nodes[name] = NodeExplanation(
                node=name, message=str(answer), code=answer.code, curable=may_help, advice=advice, examined=not may_help
            )
        for name, (waits_for, evictable) in (await self._examine(pod, [name for _, name in sorted(curable)])).items():
            nodes[name] = dataclasses.replace(
                nodes[name], waits_for=self._keys(waits_for), evictable=self._keys(evictable), examined=True
            )
        return list(nodes.values())

    async def _examine(
        self, pod: PendingPod, names: Sequence[identifiers.NodeName]
    ) -> dict[identifiers.NodeName, tuple[_Chosen, _Chosen]]:
        """Return whose end the pod waits for and which pods would be evicted, on as many nodes as the budget allows."""
        may_evict = pod.preempts and self._core.settings.preempts and not pod.gang
        questions, pause = [], pauses.Pause()
        for name in names[:_MOST_NODES_EXAMINED]:
            await pause()
            whose = self._core.victims.question(pod, name, any_priority=True)
            questions.append((whose, self._core.victims.question(pod, name) if may_evict else None))

        def compute() -> dict[identifiers.NodeName, tuple[_Chosen, _Chosen]]:
            until = self._clock() + _EXAMINED_SECONDS
            explanations = {}
            for whose, evicted in questions:
                if self._clock() >= until:
                    break
                explanations[whose.node] = whose.choose(), evicted.choose() if evicted else None
            return explanations

        return await self._core.worker.run(compute)

    def _keys(self, chosen: _Chosen) -> tuple[str, ...]:
        held = (self._ledger.pod(victim.uid) for victim in chosen or ())
        return tuple(sorted(one.key for one in held if one is not None))


def _most_free_mib(node: placement.NodeState) -> int:
    """The largest free memory of one GPU: where most is free, the fewest pods are in the way."""
    return max((state.free_memory_mib for state in node.states), default=0)


def _advice(request: requests.PodRequest, refused: rejections.Rejection) -> str:
    """What would have to be written for this node, where that is known; else the remedy of the code."""
    match refused.reason:
        case Reason.MEMORY if refused.available not in ("0MB", "0%"):
            # The rejection is in the units of the event, where MB stands for MiB.
            return f"request at most {refused.available.replace('MB', ' MiB')} of each GPU's memory"
        case Reason.CORES if refused.available != "0%":
            return f"request at most {refused.available} of each GPU's cores"
        case Reason.TOO_FEW_GPUS:
            return f"request at most {refused.available} GPUs in one container"
        case Reason.TYPE:
            excluded = requests.USE_TYPE if request.selectors.use_types else requests.NOUSE_TYPE
            return f"the annotation {excluded} excludes it"
        case Reason.UUID:
            excluded = requests.USE_UUID if request.selectors.use_uuids else requests.NOUSE_UUID
            return f"the annotation {excluded} excludes it"
        case Reason.MODE:
            return f"write {requests.MODE}: {refused.available}"
        case _:
            return error_codes.REGISTRY[refused.code].remedy
