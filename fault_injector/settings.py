"""Every setting of the fault injection service: one frozen class, filled from flags and environment variables."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gpu_sharing.adapters import flags, health_endpoint
from gpu_sharing.core import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the service runs."""

    kubeconfig: pathlib.Path | None = None
    """How to reach the API server; None is the in-cluster service account."""
    namespace: str = "hami-system"
    """Where the ConfigMaps of the record and of the results are, and the chart's pods."""
    record_name: str = "hami-faults"
    """The ConfigMap of the record; that of the agents' results has `-results` at its end."""
    node_name: str = ""
    """The node whose agent this process is; empty for the controller, which has the API."""
    api_bind: flags.Address = flags.Address("127.0.0.1", 9447)
    """Where the API is served; off loopback it demands TLS and a bearer token."""
    secure_api_bind: flags.Address | None = None
    """Where it is served a second time, with TLS and a bearer token; None: nowhere."""
    health_bind: flags.Address = flags.Address("", 8082)  # probes and Prometheus come from outside the pod
    """Health, readiness and metrics."""
    tls_cert: pathlib.Path | None = None
    """Certificate of the API, PEM; read again when the file changes."""
    tls_key: pathlib.Path | None = None
    """Key of that certificate, PEM."""
    recovers_at_exit: bool = True
    """Whether every fault is recovered when the process ends."""
    kmsg: pathlib.Path = pathlib.Path("/dev/kmsg")
    """The kernel's log, for the agent."""
    dcgmi: str = "dcgmi"
    """DCGM's program, for the agent; without it, kinds that need it fail on this node."""
    health: health_endpoint.ProbeSettings = field(default_factory=health_endpoint.ProbeSettings)
    """How probes are answered."""
    verbosity: int = 3
    """0 to 6: errors, warnings, changes, decisions, nodes, GPUs, everything."""
    log_format: str = "json"
    """`json`, `text` or `console`."""


COMPONENTS = frozenset({"record", "api"})
"""What `/healthz` shows the state of."""

HELP = {
    "kubeconfig": "FILE: how to reach the API server (default: the in-cluster service account)",
    "namespace": "where the record of faults is, and the chart's pods (default hami-system)",
    "record-name": "ConfigMap of the record (default hami-faults)",
    "node-name": "the node whose agent this is (default: none, this is the controller)",
    "api-bind": "HOST:PORT of the API (default 127.0.0.1:9447); off loopback it needs TLS and a bearer token",
    "secure-api-bind": "HOST:PORT of the API for others, with TLS and a bearer token (default: none)",
    "health-bind": "HOST:PORT of health, readiness and metrics (default :8082)",
    "tls-cert": "FILE: certificate of the API, PEM; read again when it changes",
    "tls-key": "FILE: its key, PEM",
    "recover-at-exit": "true or false: recover every fault when the process ends (default true)",
    "kmsg": "FILE: the kernel's log, of the agent (default /dev/kmsg)",
    "dcgmi": "DCGM's program, of the agent (default dcgmi)",
    **health_endpoint.HELP,
    **flags.LOG_HELP,
}
"""Every flag, in the order of `--help`."""


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        arguments: Without the program's name.
        environment: Read for what no flag sets, as `HAMI_` and the flag's name in capitals.

    Raises:
        SettingsError: A value that the process cannot start with.
    """
    description = "GPU sharing's fault injection service: breaks parts of a cluster on purpose, and recovers them."
    return _settings(flags.read("python -m fault_injector", description, HELP, arguments, environment))


def _settings(value: Callable[[str], str | None]) -> Settings:
    default = Settings()
    secure = value("secure-api-bind")
    settings = Settings(
        kubeconfig=flags.path(value("kubeconfig")),
        namespace=_name("--namespace", value("namespace"), default.namespace),
        record_name=_name("--record-name", value("record-name"), default.record_name),
        node_name=_name("--node-name", value("node-name"), ""),
        api_bind=flags.address("--api-bind", value("api-bind"), default.api_bind),
        secure_api_bind=flags.address("--secure-api-bind", secure, default.api_bind) if secure else None,
        health_bind=flags.address("--health-bind", value("health-bind"), default.health_bind),
        tls_cert=flags.path(value("tls-cert")),
        tls_key=flags.path(value("tls-key")),
        recovers_at_exit=flags.truth("--recover-at-exit", value("recover-at-exit") or "true"),
        kmsg=flags.path(value("kmsg")) or default.kmsg,
        dcgmi=value("dcgmi") or default.dcgmi,
        health=health_endpoint.read(value, COMPONENTS, canary="api"),
        verbosity=flags.verbosity(value("v")),
        log_format=flags.log_format(value("log-format")),
    )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise errors.SettingsError("--tls-cert and --tls-key belong together: give both or neither")
    if not settings.tls_cert and (secure or not settings.api_bind.is_loopback):
        flag = "--secure-api-bind" if secure else f"--api-bind {settings.api_bind} is not loopback, so it"
        raise errors.SettingsError(f"{flag} needs --tls-cert and --tls-key")
    return settings


def _name(flag: str, text: str | None, default: str) -> str:
    if text and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", text):
        raise errors.SettingsError(f"{flag} {text!r} is not a name in Kubernetes, for example hami-system")
    return text or default
