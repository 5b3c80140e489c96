"""Which pods to evict from a node so that a pod fits: `core.preemption` applied to the ledger.

Also used for `/preempt`, which kube-scheduler calls when its own plugins need victims (device ids, CPU, memory, pods);
it evicts the pods of the answer without checking them again.

What is read from the ledger becomes a question, an immutable value. Its answer may take long, so it is computed beside
the event loop (`worker`).
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gpu_sharing.core import identifiers, placement, policies, preemption, requests
from scheduler_extender.cluster.pending import PendingPod
from scheduler_extender.decide.placer import Placer
from scheduler_extender.fleet import facts
from scheduler_extender.fleet.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Question:
    """Which pods to evict from one node for a pod."""

    node: identifiers.NodeName
    request: requests.PodRequest
    state: placement.NodeState
    """The node as the pod must see it, without the pods that are being deleted."""
    others: tuple[preemption.Victim, ...]
    """The pods that may be evicted."""
    policy: policies.GpuPolicy

    def choose(self) -> tuple[preemption.Victim, ...] | None:
        """Return the best set of pods to evict, empty if those that end anyway are enough, None if no set helps."""
        return preemption.choose(self.request, self.state, self.others, self.policy)


@dataclass(frozen=True, slots=True)
class Correction:
    """How to change the victims that kube-scheduler chose on one node."""

    question: Question
    chosen: tuple[identifiers.PodUid, ...]
    here: Mapping[identifiers.PodUid, facts.BoundPod]
    """The pods that hold GPUs on the node."""

    def solve(self) -> list[identifiers.PodUid] | None:
        """Return the victims, such that the pod's GPUs fit; None if no eviction helps.

        Pods without GPUs among them were chosen for their CPU or memory, so they stay. Those with GPUs are replaced by
        the set that serves the GPUs best, if that frees as much CPU and memory; else they stay too, and what is needed
        beyond them is added.
        """
        plain = [uid for uid in self.chosen if uid not in self.here]
        holding = [self.here[uid] for uid in self.chosen if uid in self.here]
        best = self.question.choose()
        if best is None:
            return None
        if (best or plain) and _frees_as_much([self.here[one.uid] for one in best], holding):
            return [*plain, *(one.uid for one in best)]
        kept = [_victim(held) for held in holding]
        more = dataclasses.replace(
            self.question,
            state=preemption.without(self.question.state, kept),
            others=tuple(one for one in self.question.others if one.uid not in self.chosen),
        ).choose()
        if more is None:
            return None
        return [*plain, *(held.uid for held in holding), *(one.uid for one in more)]


class Victims:
    """Reads questions from the ledger, one pod and one node at a time."""

    def __init__(self, ledger: Ledger, placer: Placer) -> None:
        self._ledger = ledger
        self._placer = placer

    def question(
        self,
        pod: PendingPod,
        name: identifiers.NodeName,
        spared: Collection[identifiers.PodUid] = (),
        *,
        any_priority: bool = False,
    ) -> Question:
        """Return the question which pods to evict from a node.

        Args:
            pod: The pod that does not fit.
            name: The node.
            spared: Pods that must not be evicted.
            any_priority: Whether pods of every priority count: for saying whose end the pod waits for.
        """
        others = tuple(one for one in self._others(pod, name, any_priority=any_priority) if one.uid not in spared)
        return Question(name, pod.request, self._state(pod, name), others, self._placer.gpu_policy(pod.request))

    def gpus_for(
        self, pod: PendingPod, name: identifiers.NodeName, gone: Iterable[preemption.Victim]
    ) -> frozenset[identifiers.GpuUuid]:
        """Return the GPUs that the pod gets once those pods are gone; none if it still does not fit."""
        answer = self._placer.place(pod, preemption.without(self._state(pod, name), gone))
        if not isinstance(answer, placement.Placement):
            return frozenset()
        return frozenset(share.uuid for container in answer.shares for share in container)

    def correction(
        self, pod: PendingPod, name: identifiers.NodeName, chosen: Iterable[identifiers.PodUid]
    ) -> Correction:
        """Return how to change the victims that kube-scheduler chose on a node."""
        here = {held.uid: held for held in self._ledger.pods_on(name)}
        return Correction(self.question(pod, name), tuple(chosen), here)

    def _state(self, pod: PendingPod, name: identifiers.NodeName) -> placement.NodeState:
        """The node as the pod must see it, without the pods that are being deleted."""
        state = self._ledger.view_for(name, pod.uid, pod.priority, nominations=False)
        ending = [_victim(held) for held in self._ledger.pods_on(name) if held.traits.ending]
        return preemption.without(state, ending) if ending else state

    def _others(
        self, pod: PendingPod, name: identifiers.NodeName, *, any_priority: bool = False
    ) -> list[preemption.Victim]:
        """The pods that may be evicted: of a lower priority, not being deleted, and with a record that can be read."""
        return [
            _victim(held)
            for held in self._ledger.pods_on(name)
            if (any_priority or held.traits.priority < pod.priority)
            and not held.traits.ending
            and not held.corrupt
            and not self._ledger.is_assumed(held.uid)
        ]


def _victim(held: facts.BoundPod) -> preemption.Victim:
    return preemption.Victim(held.uid, held.traits.priority, held.allocated, held.foreign_slots)


def _frees_as_much(some: Iterable[facts.BoundPod], others: Iterable[facts.BoundPod]) -> bool:
    """Whether some pods free at least the CPU and the memory that others would."""
    mine, theirs = [one.traits for one in some], [one.traits for one in others]
    return sum(one.cpu_thousandths for one in mine) >= sum(one.cpu_thousandths for one in theirs) and sum(
        one.memory_thousandths for one in mine
    ) >= sum(one.memory_thousandths for one in theirs)
