"""Why a pod waits, node by node, and what would change that: for the read API, and so for `hamictl` and the WebUI.

The sentences and codes are those of the pod's events. What is added here takes longer and is computed only on request:
for whose end the pod waits, which pods preemption could evict, and what to write instead. That is done beside the event
loop and within a budget; a node that the budget did not reach says so.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_sharing.adapters import pauses
from gpu_sharing.core import error_codes, identifiers, placement, preemption, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender import worker
from scheduler_extender.cluster import from_objects
from scheduler_extender.cluster.mirror import Mirror
from scheduler_extender.decide import victims
from scheduler_extender.decide.placer import Placer
from scheduler_extender.report.decision_events import DecisionEvents
from scheduler_extender.settings import Settings

_MOST_NODES_LOOKED_INTO = 50
_LOOKED_INTO_SECONDS = 1.0
"""After that no further node is looked into: the caller waits for the answer."""

_Chosen = tuple[preemption.Victim, ...] | None


@dataclass(frozen=True, slots=True)
class NodeExplanation:
    """What one node says of a pod."""

    node: identifiers.NodeName
    sentence: str
    code: error_codes.Code | None = None
    """None where the GPUs fit."""
    curable: bool = False
    """Whether the departure of other pods could make room."""
    advice: str = ""
    """What its owner, or an administrator, could change."""
    waits_for: tuple[str, ...] = ()
    """The fewest pods whose end makes it fit, whoever they are."""
    evictable: tuple[str, ...] = ()
    """The pods that preemption would evict for it; none where it may not, or where that does not help."""
    looked_into: bool = True
    """Whether `waits_for` and `evictable` were computed; False where the budget did not reach this node."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a pod waits."""

    summary: str
    """The note of its event."""
    remedy: str
    """What to do about the reason that most nodes give."""
    gates: tuple[str, ...]
    """The scheduling gates that keep kube-scheduler from it."""
    verdicts: tuple[NodeExplanation, ...]
    nearest: identifiers.NodeName | None
    """The node where the fewest other pods are in the way."""


class Explainer:
    """Explains one pod at a time."""

    def __init__(
        self,
        mirror: Mirror,
        placer: Placer,
        decision_events: DecisionEvents,
        settings: Settings,
        beside: worker.Worker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = beside or worker.Worker()
        self._clock = clock
        self._ledger = mirror.ledger
        self._placer = placer
        self._decision_events = decision_events
        self._settings = settings
        self._victims = victims.Victims(mirror.ledger, placer)

    def reason_of(self, uid: identifiers.PodUid) -> error_codes.Code | None:
        """Why a waiting pod was refused last; None where it was not."""
        return self._decision_events.reason_of(uid)

    async def explain(self, pod: from_objects.PendingPod) -> Explanation:
        """Everything there is to say.

        Raises:
            Busy: Too many explanations are being computed.
        """
        names = sorted(self._ledger.node_names())
        told = self._decision_events.explain(pod, names)
        if isinstance(pod.request, requests.InvalidRequest):
            invalid = pod.request
            verdicts = [NodeExplanation(name, invalid.sentence, invalid.code) for name in names]
        else:
            verdicts = await self._verdicts(pod, pod.request, names)
        near = [one for one in verdicts if one.code is None or one.waits_for]
        nearest = min(near, key=lambda one: (len(one.waits_for), one.node), default=None)
        return Explanation(
            told.note,
            error_codes.REGISTRY[told.code].remedy,
            tuple(str(gate.get("name", "")) for gate in pod.gates),
            tuple(verdicts),
            nearest.node if nearest else None,
        )

    async def _verdicts(
        self, pod: from_objects.PendingPod, request: requests.PodRequest, names: Sequence[identifiers.NodeName]
    ) -> list[NodeExplanation]:
        verdicts: dict[identifiers.NodeName, NodeExplanation] = {}
        curable: list[tuple[int, identifiers.NodeName]] = []
        pause = pauses.Pause()
        for name in names:
            await pause()
            answer = self._placer.unavailable(name) or self._placer.place_on(pod, name, nominations=False)
            if isinstance(answer, placement.Placement):
                verdicts[name] = NodeExplanation(name, "its GPUs fit")
                continue
            may_help = answer.explanation.curable
            if may_help:
                curable.append((-_most_free_mib(self._ledger.held(name)), name))
            advice = _advice(request, answer)
            verdicts[name] = NodeExplanation(name, str(answer), answer.code, may_help, advice, looked_into=not may_help)
        for name, (waits_for, evictable) in (await self._look_into(pod, [name for _, name in sorted(curable)])).items():
            verdicts[name] = dataclasses.replace(
                verdicts[name], waits_for=self._keys(waits_for), evictable=self._keys(evictable), looked_into=True
            )
        return list(verdicts.values())

    async def _look_into(
        self, pod: from_objects.PendingPod, names: Sequence[identifiers.NodeName]
    ) -> dict[identifiers.NodeName, tuple[_Chosen, _Chosen]]:
        """Return whose end the pod waits for and which pods would be evicted, on as many nodes as the budget allows."""
        may_evict = pod.preempts and self._settings.preempts and not pod.gang
        questions, pause = [], pauses.Pause()
        for name in names[:_MOST_NODES_LOOKED_INTO]:
            await pause()
            whose = self._victims.question(pod, name, anybody=True)
            questions.append((whose, self._victims.question(pod, name) if may_evict else None))

        def compute() -> dict[identifiers.NodeName, tuple[_Chosen, _Chosen]]:
            until = self._clock() + _LOOKED_INTO_SECONDS
            found = {}
            for whose, evicted in questions:
                if self._clock() >= until:
                    break
                found[whose.node] = whose.choose(), evicted.choose() if evicted else None
            return found

        return await self._worker.run(compute)

    def _keys(self, chosen: _Chosen) -> tuple[str, ...]:
        held = (self._ledger.pod(victim.uid) for victim in chosen or ())
        return tuple(sorted(one.key for one in held if one is not None))


def _most_free_mib(node: placement.NodeState) -> int:
    """The largest free memory of one GPU: where most is free, the fewest pods are in the way."""
    return max((state.free_memory_mib for state in node.states), default=0)


def _advice(request: requests.PodRequest, refused: rejections.Rejection) -> str:
    """What would have to be written for this node, where that can be said; else what the code's remedy says."""
    match refused.reason:
        case Reason.MEMORY if refused.available not in ("0MB", "0%"):
            return f"ask for at most {refused.available} of each GPU's memory"
        case Reason.CORES if refused.available != "0%":
            return f"ask for at most {refused.available} of each GPU's cores"
        case Reason.TOO_FEW_GPUS:
            return f"ask for at most {refused.available} GPUs in one container"
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
