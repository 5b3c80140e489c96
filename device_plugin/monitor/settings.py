"""Every setting of the monitor: one frozen class, filled from flags and environment variables."""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from device_plugin import node_flags
from gpu_sharing.adapters import flags, health_endpoint
from gpu_sharing.core import errors, requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the monitor."""

    node_name: str = ""
    """Name of this node."""
    kubeconfig: pathlib.Path | None = None
    """Kubeconfig file; None is the in-cluster service account."""
    kubelet_dir: pathlib.Path = pathlib.Path("/var/lib/kubelet")
    """The kubelet's directory: its podresources socket lists the containers with GPUs, with or without a record."""
    hook_path: pathlib.Path = pathlib.Path("/usr/local")
    """Folder of the HAMi-core library; its usage files are in `<hook_path>/vgpu/containers`."""
    proc_dir: pathlib.Path = pathlib.Path("/proc")
    """The host's /proc, to find the container of each process."""
    driver_root: pathlib.Path | None = None
    """Where the host's driver is mounted; None where the container runtime brings its library."""
    bind: flags.Address = flags.Address("", 41991)  # Prometheus and probes are outside the pod
    """Address of metrics, health and readiness."""
    interval_seconds: float = 5.0
    """Seconds between two samples of the GPUs; a scrape shows the latest sample."""
    nvml_timeout_seconds: float = 5.0
    """Deadline of one call to the driver, in seconds."""
    stale_seconds: float = 30.0
    """Age of a sample in seconds from which on its values are left out and the GPU is marked stale."""
    compatible: bool = True
    """Whether the series that HAMi's published dashboard queries are exported too."""
    resource_names: requests.ResourceNames = field(default_factory=requests.ResourceNames)
    """Resource names under which containers request GPUs."""
    health: health_endpoint.ProbeSettings = field(default_factory=health_endpoint.ProbeSettings)
    """Settings of probes."""
    verbosity: int = 3
    """0 to 6: errors, warnings, changes, decisions, nodes, GPUs, everything; SIGUSR1 and SIGUSR2 change it."""
    log_format: str = "json"
    """`json`, `text` or `console`."""


COMPONENTS = frozenset({"gpus", "pods", "kubelet", "processes", "scrape"})
"""Parts whose state `/healthz` shows."""

HELP = {
    **node_flags.NODE_HELP,
    "kubeconfig": "FILE: how to reach the API server (default: the in-cluster service account)",
    "kubelet-dir": "DIR of the kubelet (default /var/lib/kubelet)",
    "hook-path": "DIR that holds vgpu/containers (default /usr/local)",
    "proc-dir": "DIR of the host's processes (default /proc)",
    "driver-root": "DIR with the host's driver, where no container runtime brings its library (default: none)",
    "bind": "HOST:PORT of metrics, health and readiness (default :41991)",
    "interval": "seconds between two samples of the GPUs (default 5)",
    "nvml-timeout": "deadline of one call to the driver, in seconds (default 5)",
    "stale-after": "age in seconds from which on values of a GPU that does not answer are left out (default 30)",
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
        environment=environment,
    )
    settings = Settings(
        **given.service_settings(),
        bind=given.address("bind", Settings().bind),
        interval_seconds=given.number("interval", 5, 0.1, 3600),
        stale_seconds=given.number("stale-after", 30, 0.2, 86_400),
        compatible=flags.truth("--compatibility-metrics", given.text("compatibility-metrics") or "true"),
        health=health_endpoint.read(given.text, COMPONENTS, canary="scrape"),
    )
    if settings.stale_seconds < settings.interval_seconds:
        raise errors.SettingsError(
            f"--stale-after {settings.stale_seconds:g} s is shorter than --interval {settings.interval_seconds:g} s: "
            "every sample would be too old before the next one; raise --stale-after"
        )
    return settings
