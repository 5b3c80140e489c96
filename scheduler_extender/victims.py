"""Whose eviction makes room for a pod on a node: `core.preemption` on the books as they are.

Also what `/preempt` answers. kube-scheduler asks there when its own plugins need victims (device ids, CPU, memory,
pods), and takes the pods that it is given without looking at them again.
"""

from collections.abc import Collection, Iterable

from gpu_sharing.core import identifiers, placement, preemption, requests
from scheduler_extender import facts, placing
from scheduler_extender.fleet import ledger


class Victims:
    """Answers about one pod and one node at a time."""

    def __init__(self, books: ledger.Ledger, placer: placing.Placer) -> None:
        self._books = books
        self._placer = placer

    def choose(
        self,
        pod: facts.Waiting,
        name: identifiers.NodeName,
        spared: Collection[identifiers.PodUid] = (),
        *,
        anybody: bool = False,
    ) -> tuple[preemption.Victim, ...] | None:
        """The best set of pods to evict, nobody if those that end anyway are enough, None if no set helps.

        Args:
            pod: Who needs the room.
            name: Where.
            spared: Pods that must not be evicted.
            anybody: Whether every pod counts, whatever its priority: for saying whose end the pod waits for.
        """
        state, others = self._state(pod, name), self._others(pod, name, anybody=anybody)
        return self._choose(pod, state, [one for one in others if one.uid not in spared])

    def gpus_for(
        self, pod: facts.Waiting, name: identifiers.NodeName, gone: Iterable[preemption.Victim]
    ) -> frozenset[identifiers.GpuUuid]:
        """The GPUs that the pod gets once those pods have gone."""
        answer = self._placer.place(pod, preemption.without(self._state(pod, name), gone))
        if not isinstance(answer, placement.Placement):
            return frozenset()
        return frozenset(share.uuid for container in answer.shares for share in container)

    def corrected(
        self, pod: facts.Waiting, name: identifiers.NodeName, chosen: Collection[identifiers.PodUid]
    ) -> list[identifiers.PodUid] | None:
        """The victims that kube-scheduler chose, made such that the pod's GPUs fit; None if no eviction helps.

        Pods without GPUs among them were chosen for their CPU or memory, so they stay. Those with GPUs are replaced by
        the set that serves the GPUs best, if that frees as much CPU and memory; else they stay too, and whoever is
        needed beyond them is added.
        """
        here = {held.uid: held for held in self._books.pods_on(name)}
        plain = [uid for uid in chosen if uid not in here]
        holding = [here[uid] for uid in chosen if uid in here]
        state, others = self._state(pod, name), self._others(pod, name)
        best = self._choose(pod, state, others)
        if best is None:
            return None
        if (best or plain) and _frees_as_much([here[one.uid] for one in best], holding):
            return [*plain, *(one.uid for one in best)]
        kept = [_victim(held) for held in holding]
        more = self._choose(pod, preemption.without(state, kept), [one for one in others if one.uid not in set(chosen)])
        if more is None:
            return None
        return [*plain, *(held.uid for held in holding), *(one.uid for one in more)]

    def _choose(
        self, pod: facts.Waiting, state: placement.NodeState, others: Iterable[preemption.Victim]
    ) -> tuple[preemption.Victim, ...] | None:
        assert isinstance(pod.request, requests.PodRequest)
        return preemption.choose(pod.request, state, others, self._placer.gpu_policy(pod.request))

    def _state(self, pod: facts.Waiting, name: identifiers.NodeName) -> placement.NodeState:
        """The node as the pod must see it, without the pods that are ending already."""
        state = self._books.view_for(name, pod.uid, pod.priority, nominations=False)
        ending = [_victim(held) for held in self._books.pods_on(name) if held.plain.ending]
        return preemption.without(state, ending) if ending else state

    def _others(
        self, pod: facts.Waiting, name: identifiers.NodeName, *, anybody: bool = False
    ) -> list[preemption.Victim]:
        """Who may be evicted for the pod: whoever has a lower priority, is not ending and whose share is known."""
        return [
            _victim(held)
            for held in self._books.pods_on(name)
            if (anybody or held.plain.priority < pod.priority)
            and not held.plain.ending
            and not held.corrupt
            and not self._books.is_assumed(held.uid)
        ]


def _victim(held: ledger.PodFacts) -> preemption.Victim:
    return preemption.Victim(held.uid, held.plain.priority, held.bookings, held.foreign_slots)


def _frees_as_much(some: Iterable[ledger.PodFacts], others: Iterable[ledger.PodFacts]) -> bool:
    """Whether some pods free at least the CPU and the memory that others would."""
    mine, theirs = [one.plain for one in some], [one.plain for one in others]
    return sum(one.cpu_thousandths for one in mine) >= sum(one.cpu_thousandths for one in theirs) and sum(
        one.memory_thousandths for one in mine
    ) >= sum(one.memory_thousandths for one in theirs)
