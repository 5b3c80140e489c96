"""Every setting of the monitor: one frozen class, filled from flags and environment variables."""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from device_plugin import node_flags
from gpu_sharing.adapters import flags, health_endpoint
from gpu_sharing.core import errors, requests


@dataclass(frozen=True, slots=True)
class Settings:
    """How the monitor runs."""

    node_name: str = ""
    """The node it looks at."""
    kubeconfig: pathlib.Path | None = None
    """How to reach the API server; None is the in-cluster service account."""
    kubelet_dir: pathlib.Path = pathlib.Path("/var/lib/kubelet")
    """The kubelet's directory: its podresources socket says which containers hold GPUs, with or without a record."""
    hook_path: pathlib.Path = pathlib.Path("/usr/local")
    """Folder of the HAMi-core library; `<hook_path>/vgpu/containers` holds what it counts."""
    proc_dir: pathlib.Path = pathlib.Path("/proc")
    """The host's /proc, which says which container a process belongs to, and whether the driver lists any to us."""
    driver_root: pathlib.Path | None = None
    """Where the host's driver is mounted, where no container runtime brings its library."""
    bind: flags.Address = flags.Address("", 41991)  # Prometheus and probes are outside the pod
    """Metrics, health and readiness."""
    interval_seconds: float = 5.0
    """How often the GPUs are looked at; a scrape shows the last look."""
    nvml_timeout_seconds: float = 5.0
    """How long the driver may take for one call."""
    stale_seconds: float = 30.0
    """How old a look at a GPU may be before its numbers are left out and it is marked stale."""
    compatible: bool = True
    """Whether the series that HAMi's published dashboard queries are exported too."""
    resource_names: requests.ResourceNames = field(default_factory=requests.ResourceNames)
    """Under which names containers ask."""
    health: health_endpoint.Options = field(default_factory=health_endpoint.Options)
    """How probes are answered."""
    verbosity: int = 3
    """0 to 6: errors, warnings, changes, decisions, nodes, GPUs, everything; SIGUSR1 and SIGUSR2 change it."""
    log_format: str = "json"
    """`json`, `text` or `console`."""


COMPONENTS = frozenset({"gpus", "pods", "kubelet", "processes"})
"""What `/healthz` shows the state of."""

HELP = {
    **node_flags.NODE_HELP,
    "kubeconfig": "FILE: how to reach the API server (default: the in-cluster service account)",
    "kubelet-dir": "DIR of the kubelet (default /var/lib/kubelet)",
    "hook-path": "DIR that holds vgpu/containers (default /usr/local)",
    "proc-dir": "DIR of the host's processes (default /proc)",
    "driver-root": "DIR with the host's driver, where no container runtime brings its library (default: none)",
    "bind": "HOST:PORT of metrics, health and readiness (default :41991)",
    "interval": "seconds between two looks at the GPUs (default 5)",
    "nvml-timeout": "seconds that the driver may take for one call (default 5)",
    "stale-after": "seconds after which the numbers of a GPU that does not answer are left out (default 30)",
    "compatibility-metrics": "true or false: also the series of HAMi's published dashboard (default true)",
    **flags.RESOURCE_HELP,
    **health_endpoint.HELP,
    **flags.LOG_HELP,
}
"""Every flag, in the order of `--help`."""


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: The process cannot start with a value.
    """
    given = node_flags.read(
        "python -m device_plugin.monitor",
        "GPU sharing's monitor: the use of the node's GPUs, in total and by container, for Prometheus.",
        HELP,
        arguments,
        environment,
    )
    settings = Settings(
        **given.service_settings(),
        bind=given.address("bind", Settings().bind),
        interval_seconds=given.number("interval", 5, 0.1, 3600),
        stale_seconds=given.number("stale-after", 30, 0.2, 86_400),
        compatible=flags.truth("--compatibility-metrics", given.text("compatibility-metrics") or "true"),
        health=health_endpoint.read(given.text, COMPONENTS, canary=False),
    )
    if settings.stale_seconds < settings.interval_seconds:
        raise errors.SettingsError(
            f"--stale-after {settings.stale_seconds:g} s is shorter than --interval {settings.interval_seconds:g} s: "
            "every sample would be too old before the next one; raise --stale-after"
        )
    return settings
