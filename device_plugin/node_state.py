"""What the plugin knows of its node now: one value that the parts share and `app` keeps current."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from device_plugin import delivery, gpu_source, isolation
from gpu_sharing.core import gpus, health, identifiers


@dataclass(slots=True)
class NodeState:
    """One node."""

    name: str
    devices: Mapping[identifiers.GpuUuid, gpu_source.Device] = field(default_factory=dict)
    inventory: Mapping[identifiers.GpuUuid, gpus.Gpu] = field(default_factory=dict)
    states: Mapping[identifiers.GpuUuid, health.Health] = field(default_factory=dict)
    """The health of each GPU; one that cannot be delivered is unhealthy."""
    host: delivery.Host = field(default_factory=delivery.Host)
    delivery_setting: str = delivery.AUTO
    """The setting by which the way of each GPU is chosen."""
    refuses_without_class: bool = False
    """Whether a pod without RuntimeClass is refused where NVIDIA's runtime has to bring the GPU."""
    late: bool = True
    """Whether new containers are bound late, by CDI."""
    identity_known: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once `late` is by a setting, or by a node that was read."""
    backends: Mapping[str, isolation.Backend] = field(default_factory=dict)
    """Isolation by name."""

    def way(self, device: gpu_source.Device, *, late: bool, has_class: bool = False) -> delivery.Way:
        """Return how a GPU is delivered to a container that is bound late, or that is matched."""
        return delivery.choose(self.delivery_setting, device, self.host, late=late, has_class=has_class)
