"""Registered nodes, and the device plugins and monitors that run there, for people who ask whether all are there.

It knows what the extender reads anyway: nodes that were published, and the containers of pods with the chart's labels.
Agents under other labels, or outside of pods, are not found; whether a monitor answers Prometheus is not known here.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_sharing.adapters import objects
from gpu_sharing.core import identifiers
from gpu_sharing.core.rejections import Reason
from scheduler_extender.fleet import facts

LABELS = {"app.kubernetes.io/name": "hami", "app.kubernetes.io/component": "device-plugin"}
"""The labels of the pods of the nodes' agents."""
PLUGIN, MONITOR = "nvidia", "monitor"
"""The names of their containers."""
MOST_NAMES = 20
"""The limit of names that are listed of each kind; their number is always shown."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One container of a node's agents."""

    container: str
    pod: identifiers.PodKey
    node: identifiers.NodeName
    ready: bool
    started_at: float
    """Unix seconds; 0 while it does not run."""


class Agents:
    """The registered nodes and their agents, as the mirror sees them."""

    def __init__(
        self, namespace: str, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Start with none.

        Args:
            namespace: Where our pods run, so that labels on a tenant's pod have no effect; empty for every namespace.
            clock: Monotonic seconds.
            wall_clock: Unix seconds.
        """
        self._namespace = namespace
        self._clock = clock
        self._wall_clock = wall_clock
        self._registered_at: dict[identifiers.NodeName, float] = {}
        self._of_pods: dict[identifiers.PodUid, tuple[Agent, ...]] = {}

    def see_node(self, node: facts.Node) -> None:
        """Note whether a node is registered; its age counts from when this process saw it so first."""
        if node.standing is Reason.NONE and node.inventory:
            self._registered_at.setdefault(node.name, self._clock())
        else:
            self.forget_node(node.name)

    def forget_node(self, name: identifiers.NodeName) -> None:
        """Forget a node that was deleted."""
        self._registered_at.pop(name, None)

    def see_pod(self, pod: objects.Pod) -> None:
        """Note the state of a pod of the agents; every other pod is ignored."""
        labels = pod.metadata.labels
        if labels is None or not LABELS.items() <= labels.items():
            return
        uid = identifiers.PodUid(pod.metadata.uid)
        if pod.has_ended or not pod.spec.node_name or self._namespace not in ("", pod.metadata.namespace):
            self._of_pods.pop(uid, None)
        else:
            self._of_pods[uid] = tuple(_agents(pod))

    def forget_pod(self, uid: identifiers.PodUid) -> None:
        """Forget a pod that was deleted."""
        self._of_pods.pop(uid, None)

    def keep_pods(self, uids: Collection[identifiers.PodUid]) -> None:
        """Forget every pod that a whole list lacks."""
        for uid in [uid for uid in self._of_pods if uid not in uids]:
            del self._of_pods[uid]

    def summary(self) -> dict[str, Any]:
        """Return counts, and at most `MOST_NAMES` names of each kind with their ages, what is not ready first."""
        now = self._clock()
        nodes = [
            {"name": name, "ageSeconds": round(now - at, 1)}
            for name, at in sorted(self._registered_at.items())[:MOST_NAMES]
        ]
        agents = [agent for of_pod in self._of_pods.values() for agent in of_pod]
        return {
            "registeredNodes": {"count": len(self._registered_at), "names": nodes},
            "plugins": self._shown([agent for agent in agents if agent.container == PLUGIN]),
            "monitors": self._shown([agent for agent in agents if agent.container == MONITOR]),
        }

    def _shown(self, agents: Sequence[Agent]) -> dict[str, Any]:
        now = self._wall_clock()
        listed = sorted(agents, key=lambda agent: (agent.ready, agent.node))[:MOST_NAMES]
        return {
            "count": len(agents),
            "ready": sum(agent.ready for agent in agents),
            "names": [
                {
                    "node": agent.node,
                    "pod": agent.pod,
                    "ready": agent.ready,
                    "ageSeconds": round(max(now - agent.started_at, 0.0), 1) if agent.started_at else None,
                }
                for agent in listed
            ],
        }


def _agents(pod: objects.Pod) -> Iterable[Agent]:
    """Return the containers of a pod of the agents; one without a status yet is not ready."""
    statuses = {one.name: one for one in (pod.status.container_statuses if pod.status else None) or ()}
    for container in pod.containers:
        if container.name not in (PLUGIN, MONITOR):
            continue
        status = statuses.get(container.name, objects.ContainerStatus())
        running = status.state.running if status.state else None
        yield Agent(
            container.name,
            identifiers.PodKey(pod.key),
            identifiers.NodeName(pod.spec.node_name),
            bool(status.ready),
            objects.unix_seconds(running.started_at) if running else 0.0,
        )
