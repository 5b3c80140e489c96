"""Which evicted pods run again elsewhere: their owner makes a new pod, which is bound to other GPUs.

For people and metrics only: a restart forgets the migrations under way, and nothing depends on them.
"""

import collections
from collections.abc import Iterable
from dataclasses import dataclass

from gpu_sharing.core import identifiers
from scheduler_extender.cluster.pending import Pending
from scheduler_extender.fleet import facts
from scheduler_extender.fleet.ledger import Ledger

_MOST_UNDER_WAY = 1_000
_LONGEST_SECONDS = 3_600.0
_NO_SUCCESSOR = "its owner has not started another pod"


@dataclass(frozen=True, slots=True)
class Migration:
    """One evicted pod whose successor does not run yet."""

    pod: identifiers.PodKey
    owner: str
    gpus: frozenset[identifiers.GpuUuid]
    """GPUs of the evicted pod."""
    since: float
    """Monotonic seconds of the eviction."""
    reason: str = _NO_SUCCESSOR


@dataclass(frozen=True, slots=True)
class Ended:
    """A migration that ended."""

    pod: identifiers.PodKey
    successor: identifiers.PodKey | None
    """None where no pod of the owner was bound within an hour."""
    node: identifiers.NodeName | None = None


class Migrations:
    """The migrations under way, by the UID of the evicted pod."""

    def __init__(self, ledger: Ledger, pending: Pending) -> None:
        self._ledger = ledger
        self._pending = pending
        self._under_way: dict[identifiers.PodUid, Migration] = {}
        self._known: dict[str, frozenset[identifiers.PodUid]] = {}
        """The pods of each owner at its first eviction; they replace no evicted pod."""

    def begin(self, pod: facts.BoundPod, now: float) -> None:
        """Follow an evicted pod; beyond a number of them the oldest is forgotten."""
        owner = pod.traits.owner
        if not owner or pod.uid in self._under_way:
            return
        if owner not in self._known:
            self._known[owner] = frozenset(one.uid for one in self._ledger.pods() if one.traits.owner == owner)
        self._under_way[pod.uid] = Migration(pod.key, owner, frozenset(pod.allocated), now)
        if len(self._under_way) > _MOST_UNDER_WAY:
            del self._under_way[next(iter(self._under_way))]

    def under_way(self) -> list[Migration]:
        """Return the migrations that have not ended, oldest first."""
        return list(self._under_way.values())

    def step(self, now: float) -> list[Ended]:
        """Return the migrations that ended since the last step, each with another successor."""
        if not self._under_way:
            return []
        bound, pending = self._successors()
        ended = []
        for uid, migration in list(self._under_way.items()):
            successor = _place_elsewhere(bound[migration.owner], migration)
            if successor is not None:
                bound[migration.owner].remove(successor)
                self._known[migration.owner] |= {successor.uid}
                ended.append(Ended(migration.pod, successor.key, successor.node))
            elif now - migration.since > _LONGEST_SECONDS:
                ended.append(Ended(migration.pod, None))
            else:
                reason = pending.get(migration.owner, _NO_SUCCESSOR)
                self._under_way[uid] = Migration(
                    migration.pod, migration.owner, migration.gpus, migration.since, reason
                )
                continue
            del self._under_way[uid]
        owners = {migration.owner for migration in self._under_way.values()}
        self._known = {owner: known for owner, known in self._known.items() if owner in owners}
        return ended

    def _successors(self) -> tuple[dict[str, list[facts.BoundPod]], dict[str, str]]:
        """Return the new pods of each owner that are bound, and why those that are not bound are pending."""
        bound: dict[str, list[facts.BoundPod]] = collections.defaultdict(list)
        for pod in self._ledger.pods():
            owner = pod.traits.owner
            if owner in self._known and pod.uid not in self._known[owner] and not pod.traits.ending:
                bound[owner].append(pod)
        pending: dict[str, str] = {}
        for entry in self._pending.entries():
            owner = entry.pod.traits.owner
            if owner in self._known:
                code = f": {entry.rejection.code}" if entry.rejection else ""
                pending[owner] = f"{entry.pod.key} is pending{code}"
        return bound, pending


def _place_elsewhere(pods: Iterable[facts.BoundPod], migration: Migration) -> facts.BoundPod | None:
    return next((pod for pod in pods if not migration.gpus & pod.allocated.keys()), None)
