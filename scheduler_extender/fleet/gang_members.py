"""Who belongs to which gang: those that wait, hold GPUs or are done, kept as pods come and go."""

from dataclasses import dataclass, field

from gpu_sharing.core import gangs, identifiers, rejections
from gpu_sharing.core.rejections import Reason

Key = tuple[str, str]
"""Namespace and name of a gang."""


@dataclass(slots=True)
class Members:
    """The members of one gang, with what each of them says of it."""

    waiting: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    bound: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    done: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    """Those that have succeeded and are still there to be seen."""
    reserved_until: dict[identifiers.PodUid, float] = field(default_factory=dict)
    """Monotonic seconds until which a place is kept for a waiting member."""
    group_sizes: dict[str, int] = field(default_factory=dict)
    """How many members its pod group wants at least, by the pod group's API group."""

    @property
    def live(self) -> int:
        """How many members wait or hold GPUs."""
        return len(self.waiting.keys() | self.bound.keys())

    @property
    def present(self) -> int:
        """How many members there are, those included that are done."""
        return self.live + self._done_in_this_run

    @property
    def placed(self) -> int:
        """How many members have their place for good: those that hold GPUs or are done."""
        return len(self.bound) + self._done_in_this_run

    @property
    def size(self) -> int:
        """How many members there must be; 0 while nothing says so."""
        return max(self.sizes, default=0)

    @property
    def sizes(self) -> set[int]:
        """The sizes that members say, or their pod group for them; more than one is a contradiction."""
        return {self.size_for(one) for one in (*self.waiting.values(), *self.bound.values())}

    def size_for(self, member: gangs.Gang) -> int:
        """The size by what one member says; 0 if it leaves that to a pod group that is not there."""
        return member.size or self.group_sizes.get(member.group, 0)

    def trouble(self, name: str) -> str:
        """Why the gang cannot start, however much is free; or an empty string."""
        sizes = self.sizes
        if 0 in sizes:
            return f"{name}: there is no PodGroup of that name to say its size, and {gangs.SIZE} is not set"
        if len(sizes) > 1:
            said = " and ".join(map(str, sorted(sizes)))
            return f"{name}: the members disagree about its size, {said}"
        if self.live > self.size and any(one.size for one in (*self.waiting.values(), *self.bound.values())):
            return f"{name}: {self.live} members are there, and its size is {self.size}"
        return ""

    @property
    def _done_in_this_run(self) -> int:
        """Those of the same controllers as the others: an earlier run had its own."""
        owners = {one.owner for one in (*self.waiting.values(), *self.bound.values()) if one.owner}
        return sum(one.owner in owners for one in self.done.values())


class Gangs:
    """The gangs of a cluster."""

    def __init__(self) -> None:
        self._rolls: dict[Key, Members] = {}
        self._waiting: dict[identifiers.PodUid, Key] = {}
        self._bound: dict[identifiers.PodUid, Key] = {}
        self._done: dict[identifiers.PodUid, Key] = {}

    def keys(self) -> list[Key]:
        """All gangs that somebody waits for."""
        return sorted({*self._waiting.values()})

    def roll(self, key: Key) -> Members:
        """The members of a gang; nobody for one that is not known."""
        return self._rolls.get(key) or Members()

    def set_group(self, api_group: str, namespace: str, name: str, size: int | None) -> None:
        """A pod group wants that many members at least; with None it is gone."""
        key = namespace, name
        if size is not None:
            self._rolls.setdefault(key, Members()).group_sizes[api_group] = size
        elif key in self._rolls:
            self._rolls[key].group_sizes.pop(api_group, None)
            self._tidy(key)

    def groups(self, api_group: str) -> list[Key]:
        """All pod groups of one API."""
        return [key for key, roll in self._rolls.items() if api_group in roll.group_sizes]

    def waits(
        self,
        uid: identifiers.PodUid,
        namespace: str,
        gang: gangs.Gang | None,
        reserved_until: float = float("-inf"),
    ) -> None:
        """A pod waits, with a place kept for it until then (monotonic seconds) or none."""
        if uid in self._waiting:
            self.waits_no_more(uid)
        if gang is not None:
            roll = self._rolls.setdefault((namespace, gang.name), Members())
            self._waiting[uid] = (namespace, gang.name)
            roll.waiting[uid] = gang
            if reserved_until > float("-inf"):
                roll.reserved_until[uid] = reserved_until

    def waits_no_more(self, uid: identifiers.PodUid) -> None:
        """A pod is bound or gone."""
        key = self._waiting.pop(uid, None)
        if key is not None:
            roll = self._rolls[key]
            del roll.waiting[uid]
            roll.reserved_until.pop(uid, None)
            self._tidy(key)

    def holds(self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang | None) -> None:
        """A pod is bound, or about to be."""
        if gang is not None:
            self._bound[uid] = (namespace, gang.name)
            self._rolls.setdefault((namespace, gang.name), Members()).bound[uid] = gang

    def holds_no_more(self, uid: identifiers.PodUid) -> None:
        """A bound pod is gone, or was not bound after all."""
        key = self._bound.pop(uid, None)
        if key is not None:
            del self._rolls[key].bound[uid]
            self._tidy(key)

    def is_done(self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang | None) -> None:
        """A pod has succeeded: it holds nothing, and its gang has not lost it."""
        if gang is not None and gang.owner:
            self._done[uid] = (namespace, gang.name)
            self._rolls.setdefault((namespace, gang.name), Members()).done[uid] = gang

    def is_gone(self, uid: identifiers.PodUid) -> None:
        """A pod that was done is deleted."""
        key = self._done.pop(uid, None)
        if key is not None:
            del self._rolls[key].done[uid]
            self._tidy(key)

    def done(self) -> list[identifiers.PodUid]:
        """All pods that are done and were not seen to go."""
        return list(self._done)

    def gang_rejection(
        self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang, now: float
    ) -> rejections.Rejection | None:
        """Why a member must not start now, or None if it and as many as must start with it have a place kept for them.

        Args:
            uid: The member.
            namespace: Its namespace.
            gang: Its gang.
            now: Monotonic seconds.
        """
        roll = self.roll((namespace, gang.name))
        trouble = roll.trouble(gang.name)
        if trouble:
            return rejections.Rejection(Reason.GANG, detail=trouble)
        size, present = roll.size_for(gang), roll.present
        if present < size or not size:
            return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: {present} of {size} members are there")
        kept = {one for one, until in roll.reserved_until.items() if until > now and one not in roll.bound}
        whole = roll.placed + len(kept) >= size
        if whole and uid in kept:
            return None
        if whole:
            return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: no room yet for one more member")
        return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: no room yet for all {size} members at once")

    def joins(self, namespace: str, gang: gangs.Gang) -> str:
        """Why one more member cannot join, or an empty string."""
        roll = self.roll((namespace, gang.name))
        size = roll.size_for(gang)
        others = roll.sizes - {size, 0}
        if size and others:
            said = ", ".join(map(str, sorted(others)))
            return f"the other members of gang {gang.name} say that it has {said} members, this one says {size}"
        if gang.size and roll.live >= gang.size:
            return f"gang {gang.name} has its {gang.size} members already"
        return ""

    def _tidy(self, key: Key) -> None:
        roll = self._rolls[key]
        if not (roll.waiting or roll.bound or roll.done or roll.group_sizes):
            del self._rolls[key]
