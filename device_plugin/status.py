"""What probes, `/healthz` and Prometheus see of the plugin."""

import time
from collections.abc import Mapping

from device_plugin.kubelet_side import KubeletSide
from device_plugin.metrics import Metrics
from device_plugin.node_side import NodeSide
from gpu_sharing.adapters.health_endpoint import Canary, Component
from gpu_sharing.core import health


class Status:
    """The state of the plugin's parts."""

    def __init__(self, node_side: NodeSide, kubelet_side: KubeletSide, metrics: Metrics, canary: Canary) -> None:
        self._node_side = node_side
        self._kubelet_side = kubelet_side
        self._metrics = metrics
        self._canary = canary
        self._started_at = time.monotonic()

    def components(self) -> Mapping[str, Component]:
        """Return the state of each part, for probes."""
        side, now = self._node_side, time.monotonic()
        offered, watch, read_at = len(side.node.inventory), side.pod_watch, side.health.read_at
        undelivered = "; ".join(f"{uuid}: {reason}" for uuid, reason in side.delivery.refusals.items())
        methods = ", ".join(sorted(set(side.delivery.methods.values())))
        return {
            "gpus": Component(
                bool(offered), f"{offered} offered" if offered else "no driver, or no GPU",
                now - (read_at or self._started_at),
                required=not read_at,  # Not ready before the first reading; without a GPU thereafter.
            ),
            "delivery": Component(
                not undelivered, undelivered or methods or "no GPU",
                required=bool(offered) and not side.delivery.can_deliver,
            ),
            "kubelet": self._kubelet_side.registration.component(required=bool(offered)),
            "pods": Component(
                watch.synced, watch.problem or ("watching" if watch.synced else "not listed yet"),
                now - (watch.last_heard or self._started_at),
            ),
            "inventory": side.publisher.component(),
            "socket": self._canary.component(),
        }  # fmt: skip

    def facts(self) -> Mapping[str, object]:
        """Return what `/healthz` shows beside the components."""
        node = self._node_side.node
        return {
            "node": node.name,
            "identity": node.identity,
            "delivery": dict(self._node_side.delivery.methods),
            "gpus": {
                uuid: {"mode": gpu.mode, **health.to_facts(node.states.get(uuid, health.Health()))}
                for uuid, gpu in node.inventory.items()
            },
            "device_ids": dict(sorted(self._kubelet_side.held.gpus().items())),
        }

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the series as text, and its content type."""
        self._set_gpus()
        self._set_kubelet()
        return self._metrics.exposition(accept)

    def _set_gpus(self) -> None:
        metrics, side = self._metrics, self._node_side
        name, inventory = side.node.name, side.node.inventory
        metrics.device_count.labels(node=name).set(len(inventory))
        metrics.isolation.clear()
        for uuid, gpu in inventory.items():
            metrics.healthy_status.labels(node=name, device=uuid).set(gpu.healthy)
            metrics.isolation.labels(node=name, device=uuid, isolation=gpu.mode).set(1)
        metrics.xids_received.clear()
        for uuid, is_received in side.xids_received().items():
            metrics.xids_received.labels(node=name, device=uuid).set(is_received)
        metrics.problems.clear()
        for code, subject in side.problems.current:
            metrics.problems.labels(node=name, error_code=code, device=subject).set(1)

    def _set_kubelet(self) -> None:
        metrics, registration = self._metrics, self._kubelet_side.registration
        listed = self._kubelet_side.ids.listing.current
        for word, is_healthy in (("healthy", True), ("unhealthy", False)):
            metrics.device_ids.labels(health=word).set(sum(one.healthy is is_healthy for one in listed))
        metrics.registered.set(registration.registered)
        metrics.registrations.set(registration.registrations)
