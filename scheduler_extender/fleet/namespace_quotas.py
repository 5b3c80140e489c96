"""What each namespace holds and may hold, updated as pods and quotas come and go."""

import collections
from collections.abc import Mapping

from gpu_sharing.core import quotas, rejections


class NamespaceQuotas:
    """The quotas of all namespaces, and what counts against them."""

    def __init__(self) -> None:
        self._quotas: dict[str, dict[str, quotas.Quota]] = {}
        self._held: dict[str, quotas.Amounts] = {}
        self._relieved: set[str] = set()
        self._changes: collections.Counter[str] = collections.Counter()
        """How often what is held by each namespace has changed."""

    def is_limited(self, namespace: str) -> bool:
        """Whether any quota limits the namespace; most have none."""
        return namespace in self._quotas

    def held(self, namespace: str) -> quotas.Amounts:
        """What the namespace's pods hold."""
        return self._held.get(namespace, quotas.NOTHING)

    def excess(self, namespace: str, more: quotas.Amounts) -> rejections.Rejection | None:
        """Why the namespace may not hold `more` beside what it holds, or None if it may."""
        limiting = self._quotas.get(namespace)
        return quotas.excess(namespace, limiting.values(), self.held(namespace), more) if limiting else None

    def set_quota(self, namespace: str, name: str, quota: quotas.Quota | None) -> bool:
        """Learn a quota, or with None that it is gone or does not limit GPUs. Returns whether that changes anything."""
        own = self._quotas.get(namespace, {})
        if own.get(name) == quota:
            return False
        if quota is not None:
            self._quotas.setdefault(namespace, {})[name] = quota
        else:
            del own[name]
            if not own:
                del self._quotas[namespace]
        self._relieved.add(namespace)
        return True

    def names(self) -> list[tuple[str, str]]:
        """Every quota that is known: its namespace and its name."""
        return [(namespace, name) for namespace, own in self._quotas.items() for name in own]

    def limited(self) -> list[tuple[str, quotas.Amounts, tuple[int | None, ...]]]:
        """Each namespace with a quota: what it holds, and the least that its quotas allow of each amount."""
        exceeded = []
        for namespace, own in self._quotas.items():
            readable = [one.limits for one in own.values() if not one.unreadable]
            least = tuple(
                min((limit for limit in limits if limit is not None), default=None)
                for limits in zip(*readable, strict=True)
            )
            if least:
                exceeded.append((namespace, self.held(namespace), least))
        return exceeded

    def add(self, namespace: str, more: quotas.Amounts) -> None:
        """Count what a pod of the namespace holds."""
        self._changes[namespace] += 1
        self._held[namespace] = self.held(namespace).plus(more)

    def subtract(self, namespace: str, less: quotas.Amounts) -> None:
        """Count no longer what a pod of the namespace held."""
        self._changes[namespace] += 1
        left = self.held(namespace).minus(less)
        if left == quotas.NOTHING:
            self._held.pop(namespace, None)
        else:
            self._held[namespace] = left
        if namespace in self._quotas:
            self._relieved.add(namespace)

    def changes(self) -> dict[str, int]:
        """Return how often what is held by each namespace has changed, for `correct`."""
        return dict(self._changes)

    def correct(self, sums: Mapping[str, quotas.Amounts], seen: Mapping[str, int]) -> list[str]:
        """Set what differs from sums that were counted anew.

        Args:
            sums: What the pods of each namespace hold; a namespace that is missing holds nothing.
            seen: The changes before the count began; a namespace that has changed since is left out.

        Returns:
            The namespaces that were corrected.
        """
        differ = [
            namespace
            for namespace in sorted({*sums, *self._held})
            if self._changes[namespace] == seen.get(namespace, 0)
            and sums.get(namespace, quotas.NOTHING) != self.held(namespace)
        ]
        for namespace in differ:
            self._held[namespace] = sums.get(namespace, quotas.NOTHING)
            if self._held[namespace] == quotas.NOTHING:
                del self._held[namespace]
            self._relieved.add(namespace)
        return differ

    def take_relieved(self) -> frozenset[str]:
        """Return the namespaces that may hold more than at the last call."""
        relieved = frozenset(self._relieved)
        self._relieved.clear()
        return relieved
