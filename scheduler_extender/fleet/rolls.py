"""Who belongs to which gang: those that wait, hold GPUs or are done, kept as pods come and go."""

from dataclasses import dataclass, field

from gpu_sharing.core import gangs, identifiers, rejections
from gpu_sharing.core.rejections import Reason

Key = tuple[str, str]
"""Namespace and name of a gang."""


@dataclass(slots=True)
class Roll:
    """The members of one gang, with what each of them says of it."""

    waiting: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    bound: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    done: dict[identifiers.PodUid, gangs.Gang] = field(default_factory=dict)
    """Those that have succeeded and are still there to be seen."""
    reserved_until: dict[identifiers.PodUid, int] = field(default_factory=dict)
    """Unix seconds until which a place is kept for a waiting member."""

    @property
    def live(self) -> int:
        """How many members wait or hold GPUs."""
        return len(self.waiting.keys() | self.bound.keys())

    @property
    def present(self) -> int:
        """How many members there are, those included that are done: in the same run, so of the same controllers."""
        owners = {one.owner for one in (*self.waiting.values(), *self.bound.values()) if one.owner}
        return self.live + sum(one.owner in owners for one in self.done.values())

    @property
    def sizes(self) -> set[int]:
        """The sizes that members say; more than one is a contradiction."""
        return {one.size for one in (*self.waiting.values(), *self.bound.values())}

    def trouble(self, name: str) -> str:
        """Why the gang can never start, or an empty string."""
        sizes = self.sizes
        if len(sizes) > 1:
            said = " and ".join(map(str, sorted(sizes)))
            return f"{name}: the members disagree about its size, {said}"
        size = next(iter(sizes), 0)
        if self.live > size:
            return f"{name}: {self.live} members are there, and its size is {size}"
        return ""


class Rolls:
    """The gangs of a cluster."""

    def __init__(self) -> None:
        self._rolls: dict[Key, Roll] = {}
        self._waiting: dict[identifiers.PodUid, Key] = {}
        self._bound: dict[identifiers.PodUid, Key] = {}
        self._done: dict[identifiers.PodUid, Key] = {}

    def keys(self) -> list[Key]:
        """All gangs that somebody waits for."""
        return sorted({*self._waiting.values()})

    def roll(self, key: Key) -> Roll:
        """The members of a gang; nobody for one that is not known."""
        return self._rolls.get(key) or Roll()

    def waits(self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang | None, reserved_until: int = 0) -> None:
        """A pod waits, with a place kept for it until then or none."""
        if uid in self._waiting:
            self.waits_no_more(uid)
        if gang is not None:
            roll = self._rolls.setdefault((namespace, gang.name), Roll())
            self._waiting[uid] = (namespace, gang.name)
            roll.waiting[uid] = gang
            if reserved_until:
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
            self._rolls.setdefault((namespace, gang.name), Roll()).bound[uid] = gang

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
            self._rolls.setdefault((namespace, gang.name), Roll()).done[uid] = gang

    def is_gone(self, uid: identifiers.PodUid) -> None:
        """A pod that was done is deleted."""
        key = self._done.pop(uid, None)
        if key is not None:
            del self._rolls[key].done[uid]
            self._tidy(key)

    def done(self) -> list[identifiers.PodUid]:
        """All pods that are done and were not seen to go."""
        return list(self._done)

    def excuse(
        self, uid: identifiers.PodUid, namespace: str, gang: gangs.Gang, now: float
    ) -> rejections.Rejection | None:
        """Why a member must not start now, or None if every member that does not run yet has a place kept for it.

        Args:
            uid: The member.
            namespace: Its namespace.
            gang: Its gang.
            now: Unix seconds.
        """
        roll = self.roll((namespace, gang.name))
        trouble = roll.trouble(gang.name)
        if trouble:
            return rejections.Rejection(Reason.GANG, detail=trouble)
        present = roll.present
        if present < gang.size:
            return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: {present} of {gang.size} members are there")
        unbound = [one for one in roll.waiting if one not in roll.bound]
        if uid in unbound and all(roll.reserved_until.get(one, 0) > now for one in unbound):
            return None
        return rejections.Rejection(Reason.GANG, detail=f"{gang.name}: no room yet for all {gang.size} members at once")

    def joins(self, namespace: str, gang: gangs.Gang) -> str:
        """Why one more member cannot join, or an empty string."""
        roll = self.roll((namespace, gang.name))
        if roll.sizes - {gang.size}:
            said = ", ".join(map(str, sorted(roll.sizes)))
            return f"the other members of gang {gang.name} say that it has {said} members, this one says {gang.size}"
        if roll.live >= gang.size:
            return f"gang {gang.name} has its {gang.size} members already"
        return ""

    def _tidy(self, key: Key) -> None:
        roll = self._rolls[key]
        if not roll.waiting and not roll.bound and not roll.done:
            del self._rolls[key]
