"""Why a pod waits, node by node, and what would change that: for the read API, and so for `hamictl` and the WebUI.

The sentences and codes are those of the pod's events; what is added here takes longer and is worked out only when
somebody asks: for whom it waits, whom preemption could evict, and what to write instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_sharing.core import error_codes, identifiers, placement, preemption, rejections, requests
from gpu_sharing.core.rejections import Reason
from scheduler_extender import facts, mirror, node_conditions, placing, settings, telling, victims

_MOST_NODES_WORKED_OUT = 50


@dataclass(frozen=True, slots=True)
class Verdict:
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
    """The pods that preemption would evict for it; nobody where it may not, or where that does not help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Why a pod waits."""

    summary: str
    """The note of its event."""
    remedy: str
    """What to do about the reason that most nodes give."""
    gates: tuple[str, ...]
    """The scheduling gates that keep kube-scheduler from it."""
    verdicts: tuple[Verdict, ...]
    nearest: identifiers.NodeName | None
    """The node where the fewest other pods are in the way."""


class Explainer:
    """Explains one pod at a time."""

    def __init__(
        self, cluster: mirror.Mirror, placer: placing.Placer, teller: telling.Teller, options: settings.Settings
    ) -> None:
        self._books = cluster.ledger
        self._placer = placer
        self._teller = teller
        self._options = options
        self._victims = victims.Victims(cluster.ledger, placer)

    def reason_of(self, uid: identifiers.PodUid) -> error_codes.Code | None:
        """Why a waiting pod was refused last; None where it was not."""
        return self._teller.reason_of(uid)

    def explain(self, pod: facts.Waiting) -> Answer:
        """Everything there is to say."""
        names = sorted(self._books.node_names())
        told = self._teller.explain(pod, names)
        if isinstance(pod.request, requests.InvalidRequest):
            invalid = pod.request
            verdicts = [Verdict(name, invalid.sentence, invalid.code) for name in names]
        else:
            verdicts = self._verdicts(pod, pod.request, names)
        near = [one for one in verdicts if one.code is None or one.waits_for]
        nearest = min(near, key=lambda one: (len(one.waits_for), one.node), default=None)
        return Answer(
            told.note,
            error_codes.REGISTRY[told.code].remedy,
            tuple(str(gate.get("name", "")) for gate in pod.gates),
            tuple(verdicts),
            nearest.node if nearest else None,
        )

    def _verdicts(
        self, pod: facts.Waiting, request: requests.PodRequest, names: Sequence[identifiers.NodeName]
    ) -> list[Verdict]:
        verdicts, worked_out = [], 0
        conditions = node_conditions.conditions(self._books)
        for name in names:
            answer = self._placer.place_on(pod, name, nominations=False)
            if isinstance(answer, placement.Placement) and name in conditions:
                answer = rejections.Rejection(
                    Reason.NOT_OFFERED, detail=f"its GPUs fit, but the node {_is(conditions[name])}"
                )
            if isinstance(answer, placement.Placement):
                verdicts.append(Verdict(name, "its GPUs fit"))
                continue
            curable = answer.explanation.curable
            waits_for: tuple[str, ...] = ()
            evictable: tuple[str, ...] = ()
            if curable and worked_out < _MOST_NODES_WORKED_OUT:
                worked_out += 1
                waits_for = self._keys(self._victims.choose(pod, name, anybody=True))
                if pod.preempts and self._options.preempts and not pod.gang:
                    evictable = self._keys(self._victims.choose(pod, name))
            advice = _advice(request, answer)
            verdicts.append(Verdict(name, str(answer), answer.code, curable, advice, waits_for, evictable))
        return verdicts

    def _keys(self, chosen: Sequence[preemption.Victim] | None) -> tuple[str, ...]:
        held = (self._books.pod(victim.uid) for victim in chosen or ())
        return tuple(sorted(one.key for one in held if one is not None))


def _is(condition: str) -> str:
    return condition if condition.startswith("has") else f"is {condition}"


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
