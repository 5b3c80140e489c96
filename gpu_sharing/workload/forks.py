"""Locks and threads in the child of a fork: only the forking thread lives there, and locks are as they were then."""

import os
import weakref
from typing import Protocol


class HasLocks(Protocol):
    """An object with locks or a thread."""

    def renew_locks(self) -> None:
        """Replace the locks by free ones, and forget the thread."""


_owners: "weakref.WeakSet[HasLocks]" = weakref.WeakSet()


def watch(owner: HasLocks) -> None:
    """Call `renew_locks` of an object in each child of a fork, as long as the object lives."""
    _owners.add(owner)


def _in_child() -> None:
    for owner in list(_owners):
        owner.renew_locks()


os.register_at_fork(after_in_child=_in_child)
