"""Why a pod is pending, node by node, and what would change that: for the read API, and so for `hamictl` and the WebUI.

What takes longer is computed only on request: every cause, whose end the pod waits for, which pods preemption could
evict, and what to write instead. Whose end is computed beside the event loop and within a budget; a node that the
budget did not reach is marked.
"""

import collections
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_sharing.adapters import pauses
from gpu_sharing.core import error_codes, identifiers, placement, preemption
from scheduler_extender import worker
from scheduler_extender.cluster import pending
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide import causes, node_causes, node_obstacles, rejecting
from scheduler_extender.decide.causes import Cause
from scheduler_extender.decide.core import DecisionCore
from scheduler_extender.decide.node_obstacles import Obstacle, Stage

_MOST_NODES_EXAMINED = 50
_EXAMINED_SECONDS = 1.0
"""Then no further node is examined, because the caller waits for the answer."""

_FAR = 1 << 30
"""More pods than a node has: where it is not known how many must end, other nodes come first."""
_PHRASES = {
    Stage.SELECTOR: "node selector or affinity does not match",
    Stage.TAINT: "taint not tolerated",
    Stage.RESOURCES: "less CPU or memory in all than requested",
    Stage.FITS: "its GPUs fit",
}

_Chosen = tuple[preemption.Victim, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExplanation:
    """Why one node does not take a pod."""

    node: identifiers.NodeName
    message: str
    phrase: str = ""
    """The message without names and numbers, as other nodes have it."""
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
class NodeGroup:
    """Nodes that one rule keeps a pod off."""

    code: error_codes.Code | None
    """None where the GPUs fit."""
    phrase: str
    nodes: int
    nearest: identifiers.NodeName


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a pod is pending."""

    rejection: pending.PodRejection
    """The value from which its event is written, too."""
    gates: tuple[str, ...]
    """The scheduling gates that keep kube-scheduler from it."""
    nodes: tuple[NodeExplanation, ...]
    """The nearest first; none for a request that cannot be read, which no node changes."""
    causes: tuple[Cause, ...] = ()
    """The true one first."""

    @property
    def remedy(self) -> str:
        """What to do about the first cause."""
        return self.causes[0].advice if self.causes else error_codes.REGISTRY[self.rejection.code].advice

    @property
    def nearest(self) -> identifiers.NodeName | None:
        """The node where the fewest other pods are in the way."""
        return next((node.node for node in self.nodes if node.code is None or node.waits_for), None)

    @property
    def groups(self) -> tuple[NodeGroup, ...]:
        """The nodes by what is in the way, the nearest first."""
        by_code: dict[error_codes.Code | None, list[NodeExplanation]] = collections.defaultdict(list)
        for node in self.nodes:
            by_code[node.code].append(node)
        return tuple(NodeGroup(code, some[0].phrase, len(some), some[0].node) for code, some in by_code.items())


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
        gates = tuple(str(gate.get("name", "")) for gate in pod.gates)
        of_pod = tuple(causes.of_pod(self._core, pod))
        if isinstance(pod, pending.UnreadablePod):
            return Explanation(rejection, gates, (), of_pod)
        obstacles = await self._obstacles(pod, names)
        nodes = await self._explain_nodes(pod, obstacles)
        return Explanation(rejection, gates, nodes, node_causes.joined(self._core, pod, of_pod, obstacles))

    async def causes(self, pod: pending.AnyPod) -> tuple[Cause, ...]:
        """Return only the causes, the true one first."""
        of_pod = tuple(causes.of_pod(self._core, pod))
        if isinstance(pod, pending.UnreadablePod):
            return of_pod
        obstacles = await self._obstacles(pod, sorted(self._ledger.node_names()))
        return node_causes.joined(self._core, pod, of_pod, obstacles)

    async def _obstacles(self, pod: PendingPod, names: Sequence[identifiers.NodeName]) -> list[Obstacle]:
        pause, obstacles = pauses.Pause(), []
        for name in names:
            await pause()
            obstacles.append(node_obstacles.obstacle_on(self._core, pod, name))
        return obstacles

    async def _explain_nodes(self, pod: PendingPod, obstacles: Sequence[Obstacle]) -> tuple[NodeExplanation, ...]:
        """Return every node with what would change it there, the nearest first."""
        pause, explained = pauses.Pause(), []
        curable = []
        for obstacle in obstacles:
            await pause()
            if _may_help(obstacle):
                curable.append((-_most_free_mib(self._ledger.allocated_on(obstacle.node)), obstacle.node))
        examined = await self._examine(pod, [name for _, name in sorted(curable)])
        for obstacle in obstacles:
            await pause()
            waits_for, evictable = examined.get(obstacle.node, (None, None))
            node = NodeExplanation(
                node=obstacle.node,
                message=obstacle.message,
                phrase=_phrase(obstacle),
                code=obstacle.code,
                curable=_may_help(obstacle),
                advice=_advice(pod, obstacle),
                waits_for=self._keys(waits_for),
                evictable=self._keys(evictable),
                examined=not _may_help(obstacle) or obstacle.node in examined,
            )
            explained.append((_distance(obstacle, node), node))
        return tuple(node for _, node in sorted(explained, key=lambda pair: pair[0]))

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
            for whose, evicted in worker.each(questions):
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


def _may_help(obstacle: Obstacle) -> bool:
    """Whether the departure of other pods could make a node fit."""
    return obstacle.stage is Stage.GPUS and obstacle.rejection is not None and obstacle.rejection.info.curable


def _phrase(obstacle: Obstacle) -> str:
    """What a node has in common with others of its code."""
    if obstacle.rejection is not None:
        return obstacle.rejection.info.phrase
    return _PHRASES[obstacle.stage]


def _advice(pod: PendingPod, obstacle: Obstacle) -> str:
    if obstacle.code is None or obstacle.code == error_codes.NODE_NOT_REGISTERED:
        return ""  # A node without GPUs is no fault that anybody should correct.
    if obstacle.rejection is not None and obstacle.stage in (Stage.GPUS, Stage.NEVER):
        advice = causes.advice_for(pod.request, obstacle.rejection)
        never = obstacle.stage is Stage.NEVER and advice == error_codes.REGISTRY[obstacle.code].advice
        return error_codes.REGISTRY[error_codes.NEVER_FITS].advice if never else advice
    return error_codes.REGISTRY[obstacle.code].advice


def _distance(obstacle: Obstacle, node: NodeExplanation) -> tuple[int, int, int, str]:
    """The order of nodes: by stage, then by how many pods must end there, then by the missing memory."""
    known = len(node.waits_for) if node.waits_for else _FAR
    return -obstacle.stage, 0 if obstacle.code is None else known, obstacle.short_mib, node.node
