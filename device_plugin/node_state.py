"""What the plugin knows of its node now: one value that the parts share and `app` keeps current."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_plugin import cdi, gpu_source, isolation
from gpu_sharing.core import gpus, health, identifiers


@dataclass(slots=True)
class NodeState:
    """One node."""

    name: str
    devices: Mapping[identifiers.GpuUuid, gpu_source.Device] = field(default_factory=dict)
    inventory: Mapping[identifiers.GpuUuid, gpus.Gpu] = field(default_factory=dict)
    states: Mapping[identifiers.GpuUuid, health.Health] = field(default_factory=dict)
    host: cdi.HostSpecs = field(default_factory=lambda: cdi.HostSpecs("0.5.0", {}, ()))
    way: str = "envvar"
    """How GPUs are delivered."""
    late: bool = True
    """Whether containers are bound late, by CDI."""
    backends: Mapping[str, isolation.Backend] = field(default_factory=dict)
    """Isolation by name."""
