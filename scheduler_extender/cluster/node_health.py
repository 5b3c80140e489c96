"""Faults of GPUs and nodes, as the device plugins report them, and what remediation last planned about them."""

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers, remediation
from scheduler_extender import set_aside
from scheduler_extender.cluster import from_objects
from scheduler_extender.metrics import Metrics


class NodeHealth:
    """The nodes with GPUs, as remediation reads them.

    Attributes:
        latest: The last plan of this process; None where remediation is off, or another replica leads.
        migrations: The evicted pods whose owner has no pod elsewhere yet, each with the reason.
    """

    def __init__(self, is_used: bool, metrics: Metrics) -> None:
        self._is_used = is_used
        self._metrics = metrics
        self._nodes: dict[identifiers.NodeName, remediation.NodeFacts] = {}
        self.latest: remediation.Plan | None = None
        self.migrations: tuple[tuple[identifiers.PodKey, str], ...] = ()

    def see_node(self, node: objects.Node) -> None:
        """A node was added or modified."""
        if not self._is_used:
            return
        name = identifiers.NodeName(node.metadata.name)
        facts = None
        with set_aside.guard("Node", name, self._metrics):
            facts = from_objects.node_health(node)
        if facts is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = facts

    def forget_node(self, name: identifiers.NodeName) -> None:
        """A node is gone, and its history with it."""
        self._nodes.pop(name, None)

    def node(self, name: identifiers.NodeName) -> remediation.NodeFacts | None:
        """Return what is known of a node."""
        return self._nodes.get(name)

    def nodes(self) -> list[remediation.NodeFacts]:
        """Return the nodes by name."""
        return [self._nodes[name] for name in sorted(self._nodes)]
