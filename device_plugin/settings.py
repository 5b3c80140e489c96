"""Every setting of the device plugin: one frozen class, read from flags, environment variables and a node file.

A new setting is a field of `Settings` with a docstring, a line in `HELP`, and a line in `parse`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from device_plugin import node_flags
from device_plugin.delivery import methods
from device_plugin.isolation import table
from device_plugin.node_flags import NodeFlags
from gpu_sharing.adapters import flags, health_endpoint
from gpu_sharing.core import errors, health, json_text, nvidia, requests, xids

IDENTITIES = ("auto", "cdi", "match")
MIG_DESTROYS = ("own", "all")
RUNTIME_CLASS_CHECKS = ("warn", "refuse", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What of a GPU is offered, and how it is shared: a node file can change it while the plugin runs."""

    split_count: int = 10
    """How many containers may share one GPU."""
    memory_scaling: float = 1.0
    """Memory that may be allocated, as a multiple of the GPU's. Nothing swaps: programs that use more fail."""
    cores_scaling: float = 1.0
    """Compute that may be allocated, as a multiple of the GPU's."""
    memory_headroom_mib: int = 0
    """MiB of each GPU that are not allocated, for the driver and contexts."""
    isolation: str = table.AUTO
    """Isolation of containers on one GPU."""
    configured_memory_mib: tuple[tuple[str, int], ...] = ()
    """Memory of GPUs whose driver reports none: a part of the model's name (empty for every model), and MiB. The
    longest name that matches counts."""
    hidden_uuids: frozenset[str] = frozenset()
    """GPUs that are not offered."""
    hidden_indices: frozenset[int] = frozenset()
    """Positions of GPUs that are not offered, in the driver's order."""

    def hides(self, uuid: str, index: int) -> bool:
        """Return whether a GPU is not offered, by its UUID or its position."""
        return uuid in self.hidden_uuids or index in self.hidden_indices

    def configured_memory(self, model: str) -> int | None:
        """Return the MiB that are configured for a model; None where none are."""
        fitting = [(len(part), mib) for part, mib in self.configured_memory_mib if part.lower() in model.lower()]
        return max(fitting)[1] if fitting else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the device plugin."""

    node_name: str = ""
    """Name of this node."""
    kubeconfig: pathlib.Path | None = None
    """Kubeconfig file; None is the in-cluster service account."""
    kubelet_dir: pathlib.Path = pathlib.Path("/var/lib/kubelet")
    """The kubelet's directory: its sockets and its device checkpoint."""
    cdi_dir: pathlib.Path = pathlib.Path("/var/run/cdi")
    """Directory for the plugin's CDI specifications, which the container runtime reads."""
    host_cdi_dirs: tuple[pathlib.Path, ...] = (pathlib.Path("/etc/cdi"),)
    """Directories with the host's own CDI specifications, beside `cdi_dir`."""
    hook_path: pathlib.Path = pathlib.Path("/usr/local")
    """Folder of the HAMi-core library, `<hook_path>/vgpu/libvgpu.so`."""
    sharing: Sharing = field(default_factory=Sharing)
    """What is offered where the node file has no entry for the node."""
    config_file: pathlib.Path | None = None
    """JSON with `nodeconfig` per node, as HAMi's; read again when it changes."""
    identity: str = "auto"
    """How the container of an Allocate is found: `cdi` answers a name and binds it later, `match` answers the likeliest
    container's record and verifies it before the start."""
    delivery: str = "auto"
    """How device nodes and driver libraries reach a container."""
    runtime_class_check: str = "warn"
    """Pods without `runtimeClassName` where NVIDIA's runtime has to bring the GPU: `warn` or `refuse`; `off` where that
    runtime is the node's default."""
    host_root: pathlib.Path | None = None
    """Where the host's root is mounted, to check the paths in its CDI specifications; None: they are not checked."""
    resource_names: requests.ResourceNames = field(default_factory=requests.ResourceNames)
    """Resource names under which containers request GPUs."""
    driver_root: pathlib.Path | None = None
    """Where the host's driver is mounted; None where the container runtime brings its library."""
    health_bind: flags.Address = flags.Address("", 8081)  # probes and Prometheus are outside the pod
    """Address of health, readiness and metrics."""
    health_rules: health.Rules = field(default_factory=health.Rules)
    """When a GPU becomes unhealthy, and when it recovers."""
    health_interval_seconds: float = 5.0
    """Seconds between two readings of each GPU."""
    nvml_timeout_seconds: float = 5.0
    """Deadline of one call to the driver, in seconds."""
    forget_seconds: float = 120.0
    """Seconds after which specifications and folders are deleted whose allocation the kubelet deleted."""
    proc_dir: pathlib.Path = pathlib.Path("/proc")
    """The host's /proc, to check running containers."""
    boot_id_file: pathlib.Path = pathlib.Path("/proc/sys/kernel/random/boot_id")
    """File with the kernel's id of this boot."""
    mps_root: pathlib.Path = pathlib.Path(nvidia.MPS_ROOT)
    """Folder of the MPS daemon's pipes and logs."""
    mps_multi_user: bool = False
    """Whether the driver lets clients of several users share one MPS server."""
    disable_core_limit: bool = False
    """Whether HAMi-core leaves compute unlimited."""
    mig_destroy: str = "own"
    """Which MIG instances that no record names are destroyed: `own`, those that the plugin made, or `all`."""
    topology_score: bool = False
    """Whether scores of the links between GPUs are published, for topology-aware placement."""
    health: health_endpoint.ProbeSettings = field(default_factory=health_endpoint.ProbeSettings)
    """Settings of probes."""
    verbosity: int = 3
    """0 to 6: errors, warnings, changes, decisions, nodes, GPUs, everything; SIGUSR1 and SIGUSR2 change it."""
    log_format: str = "json"
    """`json`, `text` or `console`."""
    unknown_xids: tuple[str, ...] = ()
    """Words in DP_DISABLE_HEALTHCHECKS or DP_ENABLE_HEALTHCHECKS that are no XIDs."""


COMPONENTS = frozenset({"gpus", "delivery", "kubelet", "pods", "inventory", "socket"})
"""Parts whose state `/healthz` shows."""

HELP = {
    **node_flags.NODE_HELP,
    "kubeconfig": "FILE: how to reach the API server (default: the in-cluster service account)",
    "kubelet-dir": "DIR of the kubelet (default /var/lib/kubelet)",
    "cdi-dir": "DIR of the container runtime's device specifications (default /var/run/cdi)",
    "host-cdi-dirs": "DIRs, separated by commas, with the host's own specifications (default /etc/cdi)",
    "hook-path": "DIR that holds vgpu/libvgpu.so (default /usr/local)",
    "device-split-count": "containers that may share one GPU (default 10)",
    "device-memory-scaling": "memory that may be allocated, as a multiple of the GPU's (default 1)",
    "device-cores-scaling": "compute that may be allocated, as a multiple of the GPU's (default 1)",
    "memory-headroom": "MiB of each GPU that are not allocated (default 0)",
    "preconfigured-device-memory": "MiB, or MODEL=MiB,…: memory of GPUs whose driver reports none (default 0)",
    "config-file": "FILE: JSON with nodeconfig per node, read again when it changes (default: none)",
    "isolation": f"{', '.join(table.CHOICES)} (default auto: mig for a GPU in that mode, else hami-core, else none)",
    "identity": "auto, cdi or match (default auto: cdi where the container runtime has it switched on)",
    "delivery": "auto, cdi, envvar, volume-mounts or device-nodes (default auto: cdi, else envvar)",
    "runtime-class-check": "warn, refuse or off: pods without runtimeClassName whose GPU NVIDIA's runtime brings",
    "host-root": "DIR where the host's root is mounted, to check the paths in its CDI specifications (default: none)",
    **flags.RESOURCE_HELP,
    "driver-root": "DIR with the host's driver, where no container runtime brings its library (default: none)",
    "health-bind": "HOST:PORT of health, readiness and metrics (default :8081)",
    "health-interval": "seconds between two readings of a GPU (default 5)",
    "health-hold": "seconds that a GPU must stay healthy before it is used again (default 60)",
    "nvml-timeout": "deadline of one call to the driver, in seconds (default 5)",
    "forget-after": "seconds after which files of ended containers are deleted (default 120)",
    "proc-dir": "DIR of the host's processes (default /proc)",
    "boot-id-file": "FILE with the kernel's id of this boot (default /proc/sys/kernel/random/boot_id)",
    "mps-root": "DIR of the MPS daemon's pipes and logs (default /run/nvidia/mps)",
    "mps-multi-user": "the driver lets several users share one MPS server (default false)",
    "disable-core-limit": "do not limit compute with HAMi-core (default false)",
    "mig-destroy": "own or all: which MIG instances that no record names are destroyed (default own: those it made)",
    "topology-score": "publish scores of the links between GPUs (default false; also ENABLE_TOPOLOGY_SCORE)",
    **health_endpoint.HELP,
    **flags.LOG_HELP,
}
"""Every flag, in the order of `--help`."""

SWITCHES = ("mps-multi-user", "disable-core-limit", "topology-score")


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: The process cannot start with a value.
    """
    given = node_flags.read(
        "python -m device_plugin",
        "GPU sharing's device plugin: allocates shares of GPUs to containers, and reports the health of GPUs.",
        HELP,
        arguments,
        environment=environment,
        switches=SWITCHES,
    )
    default = Settings()
    overrides, unknown_xids = _xid_overrides(given.environment)
    return Settings(
        **given.service_settings(),
        cdi_dir=given.path("cdi-dir", default.cdi_dir),
        host_cdi_dirs=given.paths("host-cdi-dirs", default.host_cdi_dirs),
        sharing=_sharing(given),
        config_file=given.optional_path("config-file"),
        identity=given.one_of("identity", IDENTITIES, "auto"),
        delivery=given.one_of("delivery", methods.SETTINGS, "auto"),
        runtime_class_check=given.one_of("runtime-class-check", RUNTIME_CLASS_CHECKS, "warn"),
        host_root=given.optional_path("host-root"),
        health_bind=given.address("health-bind", default.health_bind),
        health_rules=health.Rules(given.number("health-hold", 60, 0, 86_400), overrides),
        health_interval_seconds=given.number("health-interval", 5, 0.1, 3600),
        forget_seconds=given.number("forget-after", 120, 1, 86_400),
        boot_id_file=given.path("boot-id-file", default.boot_id_file),
        mps_root=given.path("mps-root", default.mps_root),
        mps_multi_user=given.switch("mps-multi-user"),
        disable_core_limit=given.switch("disable-core-limit"),
        mig_destroy=given.one_of("mig-destroy", MIG_DESTROYS, "own"),
        topology_score=given.switch("topology-score", variable="ENABLE_TOPOLOGY_SCORE"),
        health=health_endpoint.read(given.text, COMPONENTS, canary="socket"),
        unknown_xids=unknown_xids,
    )


def _xid_overrides(environment: Mapping[str, str]) -> tuple[xids.Overrides, tuple[str, ...]]:
    return xids.read_overrides(
        environment.get("DP_DISABLE_HEALTHCHECKS", ""), environment.get("DP_ENABLE_HEALTHCHECKS", "")
    )


def _sharing(given: NodeFlags) -> Sharing:
    memory = "preconfigured-device-memory"
    return Sharing(
        split_count=given.count("device-split-count", 10, 1, 60_000),
        memory_scaling=given.number("device-memory-scaling", 1.0, 0.01, 100),
        cores_scaling=given.number("device-cores-scaling", 1.0, 0.01, 100),
        memory_headroom_mib=given.count("memory-headroom", 0, 0, 1_000_000),
        isolation=given.one_of("isolation", table.CHOICES, table.AUTO),
        configured_memory_mib=_configured_memory(f"--{memory}", given.text(memory) or ""),
    )


def for_node(sharing: Sharing, text: str, node_name: str) -> Sharing:
    """Return the sharing of a node by the file of all nodes.

    Args:
        sharing: By the flags.
        text: JSON as HAMi's: `{"nodeconfig": [{"name": …, "devicesplitcount": …, "devicememoryscaling": …,
            "operatingmode": …, "preconfigureddevicememory": …, "filterdevices": {"uuid": […], "index": […]}}]}`.
        node_name: Its entry counts.

    Raises:
        SettingsError: The file does not have that form; the text names the entry.
    """
    try:
        entries = json_text.value(text).get("nodeconfig") or []
        mine = [entry for entry in entries if entry.get("name") == node_name]
    except (ValueError, AttributeError, TypeError) as cause:
        raise errors.SettingsError(f"the node file is not JSON with a list nodeconfig: {cause}") from cause
    for entry in mine:
        sharing = _changed(sharing, entry)
    return sharing


def _changed(sharing: Sharing, entry: Mapping[str, Any]) -> Sharing:
    name = entry.get("name")

    def number(key: str, default: float, lowest: float, highest: float) -> float:
        text = None if entry.get(key) is None else str(entry[key])
        return flags.number(f"nodeconfig of {name}: {key}", text, default, lowest, highest)

    hidden = entry.get("filterdevices") or {}
    mode = entry.get("operatingmode")
    if not isinstance(hidden, dict) or not (mode is None or isinstance(mode, str)):
        raise errors.SettingsError(f"nodeconfig of {name}: filterdevices is an object and operatingmode a word")
    try:
        indices = frozenset(int(index) for index in hidden.get("index") or ())
        uuids = frozenset(str(uuid) for uuid in hidden.get("uuid") or ())
    except (TypeError, ValueError, OverflowError) as cause:  # An index may be 1e999.
        raise errors.SettingsError(f"nodeconfig of {name}: filterdevices has no lists uuid and index") from cause
    return replace(
        sharing,
        split_count=int(number("devicesplitcount", sharing.split_count, 1, 60_000)),
        memory_scaling=number("devicememoryscaling", sharing.memory_scaling, 0.01, 100),
        cores_scaling=number("devicecorescaling", sharing.cores_scaling, 0.01, 100),
        isolation=flags.one_of(f"nodeconfig of {name}: operatingmode", mode, table.CHOICES, sharing.isolation),
        configured_memory_mib=_entry_memory(name, entry.get("preconfigureddevicememory"), sharing),
        hidden_uuids=uuids,
        hidden_indices=indices,
    )


def _entry_memory(name: object, value: object, sharing: Sharing) -> tuple[tuple[str, int], ...]:
    """Return the memory of a node's entry: MiB as in HAMi's file, 0 for none, or an object of models and MiB."""
    where = f"nodeconfig of {name}: preconfigureddevicememory"
    match value:
        case None | 0:
            return sharing.configured_memory_mib
        case dict():
            return _configured_memory(where, ",".join(f"{model}={mib}" for model, mib in value.items()))
        case _:
            return _configured_memory(where, str(value))


def _configured_memory(where: str, text: str) -> tuple[tuple[str, int], ...]:
    """Return the amounts of a list `MODEL=MiB,…`; an amount without a model is for every model.

    Raises:
        SettingsError: An amount is no number of MiB.
    """
    amounts = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        model, _, amount = word.rpartition("=")
        mib = int(flags.number(where, amount, 0, 0, 100_000_000))
        if mib:
            amounts.append((model.strip(), mib))
    return tuple(amounts)
