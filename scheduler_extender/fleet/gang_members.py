"""The members of each gang: which are pending, bound or done, as the ledger learns of pods."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gpu_sharing.core import gangs, identifiers, rejections
from gpu_sharing.core.rejections import Reason

Key = tuple[str, str]
"""Namespace and name of a gang."""
NEVER = float("-inf")
"""The end of a reservation that a pod does not have."""


@dataclass(slots=True)
class Members:
    """The members of one gang, each with what it says of the gang."""

    pending: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    bound: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    done: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    """Those that have succeeded and are not deleted yet."""
    reserved_until: dict[identifiers.PodUid, float] = field(default_factory=dict)
    """Monotonic seconds until which GPUs are reserved for a pending member."""
    group_sizes: dict[str, int] = field(default_factory=dict)
    """The least number of members by the gang's pod group, by the pod group's API group."""

    @property
    def live(self) -> int:
        """How many members are pending or bound."""
        return len(self.pending.keys() | self.bound.keys())

    @property
    def present(self) -> int:
        """How many members exist, those included that are done."""
        return self.live + self._done_in_this_run

    @property
    def placed(self) -> int:
        """How many members are bound or done."""
        return len(self.bound) + self._done_in_this_run

    @property
    def size(self) -> int:
        """How many members there must be; 0 while no member and no pod group says so."""
        return max(self.sizes, default=0)

    @property
    def sizes(self) -> set[int]:
        """The sizes that members say, or their pod group for them; more than one is a contradiction."""
        return {self.size_for(member) for member in self._live_members()}

    def size_for(self, member: gangs.Gang) -> int:
        """Return the size by what one member says; 0 if it leaves that to a pod group that does not exist."""
        return member.size or self.group_sizes.get(member.group, 0)

    def defect(self, name: str) -> str:
        """Return why the gang cannot start, however much is free; or an empty string."""
        sizes = self.sizes
        if 0 in sizes:
            return f"{name}: there is no PodGroup of that name to say its size, and {gangs.SIZE} is not set"
        if len(sizes) > 1:
            both = " and ".join(map(str, sorted(sizes)))
            return f"{name}: the members disagree about its size, {both}"
        if self.live > self.size and any(member.size for member in self._live_members()):
            return f"{name}: {self.live} members are there, and its size is {self.size}"
        return ""

    def _live_members(self) -> Iterable[gangs.Gang]:
        return (*self.pending.values(), *self.bound.values())

    @property
    def _done_in_this_run(self) -> int:
        """Those of the same controllers as the others: an earlier run had its own."""
        owners = {member.owner for member in self._live_members() if member.owner}
        return sum(member.owner in owners for member in self.done.values())


class Gangs:
    """The gangs of a cluster. Only the ledger changes it."""

    def __init__(self) -> None:
        self._gangs: dict[Key, Members] = {}
        self._pending: dict[identifiers.PodUid, Key] = {}
        self._bound: dict[identifiers.PodUid, Key] = {}
        self._done: dict[identifiers.PodUid, Key] = {}

    def pending(self) -> list[Key]:
        """Return the gangs that have pending members, by namespace and name."""
        return sorted({*self._pending.values()})

    def members(self, key: Key) -> Members:
        """Return the members of a gang; none for an unknown gang."""
        return self._gangs.get(key) or Members()

    def set_group(self, api_group: str, namespace: str, name: str, size: int | None) -> None:
        """Set the least number of members that a pod group demands, or with None remove the pod group."""
        key = namespace, name
        if size is not None:
            self._gangs.setdefault(key, Members()).group_sizes[api_group] = size
        elif key in self._gangs:
            self._gangs[key].group_sizes.pop(api_group, None)
            self._drop_if_empty(key)

    def groups(self, api_group: str) -> list[Key]:
        """Return all pod groups of one API."""
        return [key for key, members in self._gangs.items() if api_group in members.group_sizes]

    def add_pending(
        self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang | None, reserved_until: float = NEVER
    ) -> None:
        """Add a pending pod, for which GPUs are reserved until then (monotonic seconds), or replace it."""
        self.remove_pending(uid)
        if gang is not None:
            members = self._gangs.setdefault((namespace, gang.name), Members())
            self._pending[uid] = (namespace, gang.name)
            members.pending[uid] = gang
            if reserved_until > NEVER:
                members.reserved_until[uid] = reserved_until

    def remove_pending(self, uid: identifiers.PodUid) -> None:
        """Remove a pod that is bound or gone."""
        key = self._pending.pop(uid, None)
        if key is not None:
            members = self._gangs[key]
            del members.pending[uid]
            members.reserved_until.pop(uid, None)
            self._drop_if_empty(key)

    def add_bound(self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang | None) -> None:
        """Add a pod that is bound, or whose bind is being written."""
        if gang is not None:
            self._bound[uid] = (namespace, gang.name)
            self._gangs.setdefault((namespace, gang.name), Members()).bound[uid] = gang

    def remove_bound(self, uid: identifiers.PodUid) -> None:
        """Remove a bound pod that is gone, or was not bound after all."""
        key = self._bound.pop(uid, None)
        if key is not None:
            del self._gangs[key].bound[uid]
            self._drop_if_empty(key)

    def add_done(self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang | None) -> None:
        """Add a pod that has succeeded: it holds nothing and still counts for its gang."""
        if gang is not None and gang.owner:
            self._done[uid] = (namespace, gang.name)
            self._gangs.setdefault((namespace, gang.name), Members()).done[uid] = gang

    def remove_done(self, uid: identifiers.PodUid) -> None:
        """Remove a pod that was done and is deleted."""
        key = self._done.pop(uid, None)
        if key is not None:
            del self._gangs[key].done[uid]
            self._drop_if_empty(key)

    def done(self) -> list[identifiers.PodUid]:
        """Return all pods that are done and not deleted."""
        return list(self._done)

    def rejection(
        self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang, now: float
    ) -> rejections.Rejection | None:
        """Return why a member must not start now.

        None if GPUs are reserved for it and for as many others as must start with it.

        Args:
            uid: The member.
            namespace: Its namespace.
            gang: Its gang.
            now: Monotonic seconds.
        """
        incomplete = self.incomplete(namespace, gang)
        if incomplete:
            return incomplete
        members = self.members((namespace, gang.name))
        size = members.size_for(gang)
        reserved = {
            other for other, until in members.reserved_until.items() if until > now and other not in members.bound
        }
        whole = members.placed + len(reserved) >= size
        if whole and uid in reserved:
            return None
        if whole:
            return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: not enough free for one more member")
        return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: not enough free for all {size} members at once")

    def incomplete(self, namespace: str, gang: gangs.Gang) -> rejections.Rejection | None:
        """Return why no member of a gang can start whatever is free: members are missing, or they contradict."""
        members = self.members((namespace, gang.name))
        defect = members.defect(gang.name)
        if defect:
            return rejections.Rejection(Reason.GANG, detail=defect)
        size, present = members.size_for(gang), members.present
        if present < size or not size:
            return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: {present} of {size} members are there")
        return None

    def join_refusal(self, namespace: str, gang: gangs.Gang) -> str:
        """Return why one more member cannot join, or an empty string."""
        members = self.members((namespace, gang.name))
        size = members.size_for(gang)
        others = members.sizes - {size, 0}
        if size and others:
            listed = ", ".join(map(str, sorted(others)))
            return f"the other members of gang {gang.name} say that it has {listed} members, this one says {size}"
        if gang.size and members.live >= gang.size:
            return f"gang {gang.name} has its {gang.size} members already"
        return ""

    def _drop_if_empty(self, key: Key) -> None:
        members = self._gangs[key]
        if not (members.pending or members.bound or members.done or members.group_sizes):
            del self._gangs[key]
