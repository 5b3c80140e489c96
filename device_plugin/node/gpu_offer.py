"""Decides which GPUs the node offers, from what the driver, the host and the administrator say."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from device_plugin.driver import gpu_source
from device_plugin.driver.health_watch import HealthWatch
from device_plugin.node import inventory
from device_plugin.node.delivery_check import DeliveryCheck
from device_plugin.node.isolation_check import IsolationCheck
from device_plugin.node.local_node import LocalNode
from device_plugin.node.release import Releases
from gpu_sharing.core import health, identifiers


@dataclasses.dataclass(frozen=True, slots=True)
class Checks:
    """What can keep a GPU from being offered although the hardware is healthy."""

    delivery: DeliveryCheck
    isolation: IsolationCheck
    releases: Releases


class GpuOffer:
    """Brings what is known of the GPUs into `LocalNode`, from which every other part reads it.

    Args:
        node: This node.
        health: Has the GPUs and their health.
        checks: Keep GPUs from being offered.
        report: Called with the GPUs to report their problems.
        changed: Called after each refresh with whether the offer is another one.

    Attributes:
        has_offered: Whether a GPU was ever offered.
    """

    def __init__(
        self,
        *,
        node: LocalNode,
        health: HealthWatch,
        checks: Checks,
        report: Callable[[Sequence[gpu_source.Device]], None],
        changed: Callable[[bool], None],
    ) -> None:
        self._node = node
        self._health = health
        self._checks = checks
        self._report = report
        self._changed = changed
        self.has_offered = False

    def refresh(self) -> None:
        """Decide again which GPUs are offered, by what is known now. Does nothing before the GPUs were first read."""
        node = self._node
        if not self._health.read_at:
            return
        before = (node.inventory, node.withdrawn)
        devices = inventory.with_memory(self._health.devices, node.sharing)
        undeliverable = self._checks.delivery.check(self._health.devices)
        not_isolated = self._checks.isolation.check(devices)
        released = self._checks.releases.reasons
        node.withdrawn = {**undeliverable, **not_isolated, **released}
        self._set_states()
        modes = self._checks.isolation.modes
        offered = inventory.offered_gpus(devices, node.states, modes, node.sharing, backends=node.backends)
        node.inventory = {gpu.uuid: gpu for gpu in offered}
        node.devices = {device.uuid: device for device in devices if device.uuid in node.inventory}
        self._report(devices)
        self.has_offered = self.has_offered or bool(node.inventory)
        self._changed((node.inventory, node.withdrawn) != before)

    def set_health(self, uuid: identifiers.GpuUuid, after: health.Health) -> bool:
        """Set the health of one GPU between two refreshes. Returns whether the offer is another one."""
        self._set_states()
        gpu = self._node.inventory.get(uuid)
        healthy = after.available and uuid not in self._node.withdrawn
        if gpu is None or gpu.healthy == healthy:
            return False
        self._node.inventory = {**self._node.inventory, uuid: dataclasses.replace(gpu, healthy=healthy)}
        return True

    def _set_states(self) -> None:
        released = self._checks.releases.reasons
        self._node.states = health_with_withdrawn(self._health.states, self._node.withdrawn, released)


def health_with_withdrawn(
    measured: Mapping[identifiers.GpuUuid, health.Health],
    withdrawn: Mapping[identifiers.GpuUuid, str],
    released: Mapping[identifiers.GpuUuid, str],
) -> dict[identifiers.GpuUuid, health.Health]:
    """Return the health of each GPU; one that is withdrawn is unhealthy, which is not remembered as a fault.

    `hamictl gpu release` waits for the reason of a release, so that reason comes first, whatever else is wrong.
    """
    states = dict(measured)
    for uuid, reason in {**withdrawn, **released}.items():
        state = states.get(uuid, health.Health())
        if state.available:
            states[uuid] = health.Health(health.State.UNHEALTHY, reason)
        elif uuid in released:
            states[uuid] = dataclasses.replace(state, cause=f"{reason}; {state.cause}")
    return states
