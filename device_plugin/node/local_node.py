"""What the plugin knows of its node now: one value that the parts share and `app` keeps current."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from device_plugin.delivery import methods
from device_plugin.driver import gpu_source
from device_plugin.isolation.backend import Backend
from gpu_sharing.core import gpus, health, identifiers


@dataclass(slots=True)
class LocalNode:
    """One node."""

    name: str
    devices: Mapping[identifiers.GpuUuid, gpu_source.Device] = field(default_factory=dict)
    inventory: Mapping[identifiers.GpuUuid, gpus.Gpu] = field(default_factory=dict)
    states: Mapping[identifiers.GpuUuid, health.Health] = field(default_factory=dict)
    """The health of each GPU; one that cannot be delivered is unhealthy."""
    host: methods.Host = field(default_factory=methods.Host)
    delivery_setting: str = methods.AUTO
    """The setting by which the way of each GPU is chosen."""
    refuses_without_class: bool = False
    """Whether a pod without RuntimeClass is refused where NVIDIA's runtime has to bring the GPU."""
    late: bool = True
    """Whether new containers are bound late, by CDI."""
    identity_known: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once `late` is by a setting, or by a node that was read."""
    backends: Mapping[str, Backend] = field(default_factory=dict)
    """Isolation by name."""

    def way(self, device: gpu_source.Device, *, late: bool, has_class: bool = False) -> methods.Method:
        """Return how a GPU is delivered to a container that is bound late, or that is matched."""
        return methods.choose(self.delivery_setting, device, self.host, late=late, has_class=has_class)
