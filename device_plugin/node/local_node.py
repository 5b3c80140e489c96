"""What the plugin knows of its node now: one value that the parts share, each field written by one of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from device_plugin.delivery import methods
from device_plugin.driver import gpu_source
from device_plugin.isolation.backend import Backend
from device_plugin.settings import Sharing
from gpu_sharing.core import gpus, health, identifiers


@dataclass(slots=True)
class LocalNode:
    """The node of this process."""

    name: str
    sharing: Sharing = field(default_factory=Sharing)
    """What of a GPU is offered, by the flags and the node file."""
    backends: Mapping[str, Backend] = field(default_factory=dict)
    """Isolation backends by name, made for `sharing`."""
    devices: Mapping[identifiers.GpuUuid, gpu_source.Device] = field(default_factory=dict)
    """The GPUs that are offered, as the driver describes them."""
    inventory: Mapping[identifiers.GpuUuid, gpus.Gpu] = field(default_factory=dict)
    """The GPUs that are offered, as the node's annotation has them."""
    states: Mapping[identifiers.GpuUuid, health.Health] = field(default_factory=dict)
    """The health of each GPU; one that is withdrawn is unhealthy."""
    withdrawn: Mapping[identifiers.GpuUuid, str] = field(default_factory=dict)
    """GPUs that are not offered for a reason that is no fault of the hardware, with the reason."""
    host: methods.Host = field(default_factory=methods.Host)
    delivery_setting: str = methods.AUTO
    """The setting by which the delivery method of each GPU is chosen."""
    refuses_without_class: bool = False
    """Whether a pod without RuntimeClass is refused where NVIDIA's runtime has to bring the GPU."""
    runtime: str = ""
    """The container runtime, such as `containerd://2.0.1`; empty until the node was read."""
    by_cdi: bool = True
    """Whether new containers name their allocation by CDI; else Allocate matches the container by the records."""
    identity_known: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once `by_cdi` is decided by a setting, or by a node that was read."""

    @property
    def identity(self) -> str:
        """`cdi` or `match`, as the setting `--identity` names it."""
        return "cdi" if self.by_cdi else "match"

    def delivery_method(self, device: gpu_source.Device, *, by_cdi: bool, has_class: bool = False) -> methods.Method:
        """Return how a GPU is delivered to a container."""
        return methods.choose(self.delivery_setting, device, self.host, by_cdi=by_cdi, has_class=has_class)
