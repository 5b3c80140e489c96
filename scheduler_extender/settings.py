"""Every setting of the extender: one frozen class, filled from flags and environment variables."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from gpu_sharing.adapters import flags, health_endpoint
from gpu_sharing.core import error_codes, errors, json_text, policies, remediation_rules, requests
from gpu_sharing.core.remediation_rules import RuleSet

_MOST_RULE_BYTES = 64 * 1024
_MOST_PROBLEMS = 20
_DEFAULT_RULES = remediation_rules.default()
_Policy = TypeVar("_Policy", policies.NodePolicy, policies.GpuPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the extender runs."""

    kubeconfig: pathlib.Path | None = None
    """How to reach the API server; None is the in-cluster service account."""
    http_bind: flags.Address = flags.Address("127.0.0.1", 9444)
    """Where kube-scheduler's verbs are served. Not authenticated, so loopback unless a network policy guards it."""
    api_bind: flags.Address = flags.Address("127.0.0.1", 9446)
    """Where the read API is served; off loopback it demands TLS and a bearer token."""
    secure_api_bind: flags.Address | None = None
    """Where it is served a second time, with TLS and a bearer token; None: nowhere. Others come there, while
    `kubectl port-forward` leads to the one on loopback."""
    webhook_bind: flags.Address = flags.Address("", 9443)  # the API server comes from outside the pod
    """Where the admission webhook is served, with TLS; not at all without a certificate."""
    health_bind: flags.Address = flags.Address("", 8080)  # probes and Prometheus come from outside the pod
    """Health, readiness and metrics."""
    tls_cert: pathlib.Path | None = None
    """Certificate of the read API and the webhook, PEM; read again when the file changes."""
    tls_key: pathlib.Path | None = None
    """Key of that certificate, PEM."""
    tls_secret: str = ""
    """`namespace/name` of the Secret where that certificate is kept and renewed; empty where cert-manager makes it."""
    tls_names: tuple[str, ...] = ()
    """The DNS names of the kept certificate."""
    webhook_configuration: str = ""
    """The MutatingWebhookConfiguration into which the kept certificate's authority is written; empty for none."""
    request_mix: str = ""
    """Namespace and name of the ConfigMap that keeps the mix of requests; empty for none."""
    leader_lease: str = ""
    """`namespace/name` of kube-scheduler's Lease; empty: this is the only scheduler."""
    identity: str = ""
    """What the holder of that Lease starts with when it is the kube-scheduler beside us; the hostname by default."""
    scheduler_name: str = "hami-scheduler"
    """`schedulerName` of the pods that are ours to explain and to wake."""
    node_policy: policies.NodePolicy = policies.FULLEST_NODE
    """The node policy of pods that name none."""
    gpu_policy: policies.GpuPolicy = policies.BINPACK
    """The GPU policy of pods that name none."""
    force_overwrite: bool = True
    """Whether the webhook makes pods with GPUs ours that name no scheduler."""
    runtime_class_name: str = ""
    """`runtimeClassName` that the webhook sets for pods with GPUs that have none; empty for none."""
    hide_gpus: bool = False
    """Whether the webhook hides the GPUs from containers that request none, whatever their image sets."""
    refuse_own_variables: bool = False
    """Whether the webhook refuses a pod whose containers set the device plugin's variables; else it warns."""
    allow_privileged: bool = False
    """Whether a privileged container, which sees all GPUs of its node, may request one."""
    preempts: bool = True
    """Whether pods of lower priority are evicted for one whose GPUs fit nowhere."""
    prometheus_url: str = ""
    """The Prometheus that is queried for measured utilization; empty for none."""
    usage_weight: float = 0.0
    """How much measured use counts when nodes are compared, from 0 to 1; the policy over nodes has the rest."""
    gang_deadline_seconds: float = 60.0
    """How long all members of a gang may take to be bound once GPUs are reserved for all."""
    gang_evicts: bool = True
    """Whether members that are bound by then are evicted if others are not; else they stay and hold their GPUs."""
    remediation: str = "off"
    """`off`; `dry-run`: report what would be done about faulty GPUs; `on`: do it."""
    remediation_rules: RuleSet = field(default_factory=lambda: _DEFAULT_RULES)
    """What follows which fault, and how often."""
    allow_hami_nodes: bool = False
    """Whether nodes of HAMi's own device plugin may be chosen, one starting pod at a time."""
    resource_names: requests.ResourceNames = field(default_factory=requests.ResourceNames)
    """The resource names by which containers request GPUs."""
    start_delay_seconds: float = 2.0
    """How long after its start the process lists the cluster first: a Binding that a killed predecessor had sent
    (timeout 2 s) is done by then, so the list cannot miss it."""
    nomination_seconds: float = 5.0
    """How long a place is kept for a pod between prioritize and bind."""
    most_queued_calls: int = 64
    """From how many queued calls of kube-scheduler on a new one is answered `busy`, if they will take long too."""
    longest_queue_seconds: float = 2.0
    """From which predicted wait on that is; kube-scheduler gives a call up after 5 s."""
    stop: str = "finish"
    """At SIGTERM: `finish` the binds that are under way, or `leave` at once; their outcome shows when the pods are
    seen next."""
    stop_seconds: float = 20.0
    """How long finishing may take; less than the pod's grace period."""
    event_rate: float = 200.0
    """Events written per second at most while kube-scheduler makes no calls; fewer while it does."""
    health: health_endpoint.ProbeSettings = field(default_factory=health_endpoint.ProbeSettings)
    """How probes are answered."""
    verbosity: int = 3
    """0 to 6: errors, warnings, changes, decisions, nodes, GPUs, everything; SIGUSR1 and SIGUSR2 change it."""
    log_format: str = "json"
    """`json`, `text` or `console`."""


COMPONENTS = frozenset({"nodes", "pods", "quotas", "events", "ledger", "verbs"})
"""What `/healthz` shows the state of."""

HELP = {
    "kubeconfig": "FILE: how to reach the API server (default: the in-cluster service account)",
    "http-bind": "HOST:PORT of kube-scheduler's verbs (default 127.0.0.1:9444)",
    "api-bind": "HOST:PORT of the read API (default 127.0.0.1:9446); off loopback it needs TLS and a bearer token",
    "secure-api-bind": "HOST:PORT of the read API for others, with TLS and a bearer token (default: none)",
    "webhook-bind": "HOST:PORT of the admission webhook (default :9443); served where there is a certificate",
    "health-bind": "HOST:PORT of health, readiness and metrics (default :8080)",
    "tls-cert": "FILE: certificate of the read API and the webhook, PEM; read again when it changes",
    "tls-key": "FILE: its key, PEM",
    "tls-secret": "NAMESPACE/NAME of a Secret: keep the certificate there, renewed (default: none)",
    "tls-names": "DNS names of the kept certificate, with commas",
    "webhook-configuration": "MutatingWebhookConfiguration that gets the certificate's authority (default: none)",
    "request-mix": "NAMESPACE/NAME of a ConfigMap that keeps across restarts what fragmentation-aware has learned "
    "(default: none)",
    "leader-lease": "NAMESPACE/NAME of kube-scheduler's Lease (default: none, this is the only scheduler)",
    "identity": "what the Lease's holder starts with when it stands beside us (default: the hostname)",
    "scheduler-name": "schedulerName of our pods (default hami-scheduler)",
    "node-scheduler-policy": f"node policy of pods that name none: {' or '.join(policies.NODE_POLICIES)} "
    "(default binpack)",
    "gpu-scheduler-policy": f"GPU policy of pods that name none: {', '.join(policies.GPU_POLICY_NAMES)}, or several "
    "with commas (default binpack)",
    "force-overwrite-default-scheduler": "true or false: the webhook takes default-scheduler's GPU pods (default true)",
    "runtime-class-name": "runtimeClassName that the webhook sets for pods with GPUs that have none (default: none)",
    "hide-gpus": "the webhook hides the GPUs from containers that request none (default false)",
    "own-variables": "warn or refuse: pods that set the device plugin's variables in their env (default warn)",
    "allow-privileged": "let privileged containers request GPUs (default false)",
    "preempt": "true or false: evict pods of lower priority for a pod whose GPUs fit nowhere (default true)",
    "prometheus-url": "URL of a Prometheus that scrapes the monitors, for --usage-weight (default: none)",
    "usage-weight": "0 to 1: how much measured use of GPUs counts when nodes are compared (default 0, not at all)",
    "gang-deadline-seconds": "seconds in which all members of a gang must be bound once reserved (default 60)",
    "gang-evict": "true or false: evict the bound members of a gang that was not bound in time (default true)",
    "remediation": "off, dry-run or on: act on faulty GPUs as the rules say (default off)",
    "remediation-rules": "FILE: JSON with the rules of remediation (default: those of docs/howto/remediation.md)",
    **flags.RESOURCE_HELP,
    "default-gpu-num": "GPUs that the webhook writes where only memory or cores are requested (default 1)",
    "default-memory": "MiB of a GPU where a container requests no memory (default 0, all of it)",
    "default-cores": "percent of a GPU's cores where a container requests none (default 0, no limit)",
    "start-delay-seconds": "seconds from process start to the first list of the cluster (default 2)",
    "nomination-seconds": "seconds that a place is kept between prioritize and bind (default 5)",
    "most-queued-calls": "queued calls of kube-scheduler from which new ones are refused as busy (default 64), if also",
    "longest-queue-seconds": "the queued calls will take this long (default 2)",
    "stop": "finish or leave: whether SIGTERM waits for the binds under way (default finish)",
    "stop-seconds": "seconds that it waits at most (default 20)",
    "event-rate": "pod events per second at most, while idle (default 200)",
    **health_endpoint.HELP,
    **flags.LOG_HELP,
    "allow-hami-nodes": "also choose nodes of HAMi's own device plugin, one starting pod at a time (default false)",
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
    return _settings(
        flags.read(
            "python -m scheduler_extender",
            "GPU sharing's scheduler extender: filter, prioritize, bind and preempt for kube-scheduler.",
            HELP,
            arguments,
            environment,
            switches=("allow-hami-nodes", "hide-gpus", "allow-privileged"),
        )
    )


def _settings(value: Callable[[str], str | None]) -> Settings:
    default = Settings()
    secure = value("secure-api-bind")
    settings = Settings(
        kubeconfig=flags.path(value("kubeconfig")),
        http_bind=flags.address("--http-bind", value("http-bind"), default.http_bind),
        api_bind=flags.address("--api-bind", value("api-bind"), default.api_bind),
        secure_api_bind=flags.address("--secure-api-bind", secure, default.api_bind) if secure else None,
        webhook_bind=flags.address("--webhook-bind", value("webhook-bind"), default.webhook_bind),
        health_bind=flags.address("--health-bind", value("health-bind"), default.health_bind),
        tls_cert=flags.path(value("tls-cert")),
        tls_key=flags.path(value("tls-key")),
        tls_secret=_namespaced("--tls-secret", value("tls-secret") or ""),
        tls_names=tuple(filter(None, (value("tls-names") or "").split(","))),
        webhook_configuration=value("webhook-configuration") or "",
        request_mix=_namespaced("--request-mix", value("request-mix") or ""),
        leader_lease=_namespaced("--leader-lease", value("leader-lease") or ""),
        identity=value("identity") or "",
        scheduler_name=value("scheduler-name") or default.scheduler_name,
        node_policy=_policy("--node-scheduler-policy", value("node-scheduler-policy"), policies.node_policy)
        or default.node_policy,
        gpu_policy=_policy("--gpu-scheduler-policy", value("gpu-scheduler-policy"), policies.gpu_policy)
        or default.gpu_policy,
        force_overwrite=flags.truth(
            "--force-overwrite-default-scheduler", value("force-overwrite-default-scheduler") or "true"
        ),
        runtime_class_name=value("runtime-class-name") or "",
        hide_gpus=flags.truth("--hide-gpus", value("hide-gpus")),
        refuse_own_variables=flags.one_of("--own-variables", value("own-variables"), ("warn", "refuse"), "warn")
        == "refuse",
        allow_privileged=flags.truth("--allow-privileged", value("allow-privileged")),
        preempts=flags.truth("--preempt", value("preempt") or "true"),
        prometheus_url=_url(value("prometheus-url") or ""),
        usage_weight=flags.number("--usage-weight", value("usage-weight"), 0.0, 0, 1),
        gang_deadline_seconds=flags.number("--gang-deadline-seconds", value("gang-deadline-seconds"), 60.0, 1, 86_400),
        gang_evicts=flags.truth("--gang-evict", value("gang-evict") or "true"),
        remediation=flags.one_of("--remediation", value("remediation"), ("off", "dry-run", "on"), "off"),
        remediation_rules=_rules(flags.path(value("remediation-rules"))),
        allow_hami_nodes=flags.truth("--allow-hami-nodes", value("allow-hami-nodes")),
        resource_names=replace(
            flags.resource_names(value),
            defaults=requests.Defaults(
                int(flags.number("--default-gpu-num", value("default-gpu-num"), 1, 1, 64)),
                int(flags.number("--default-memory", value("default-memory"), 0, 0, 2**31 - 1)),
                int(flags.number("--default-cores", value("default-cores"), 0, 0, 100)),
            ),
        ),
        start_delay_seconds=flags.number("--start-delay-seconds", value("start-delay-seconds"), 2.0, 0, 600),
        nomination_seconds=flags.number("--nomination-seconds", value("nomination-seconds"), 5.0, 0.1, 60),
        most_queued_calls=int(flags.number("--most-queued-calls", value("most-queued-calls"), 64, 1, 256)),
        longest_queue_seconds=flags.number("--longest-queue-seconds", value("longest-queue-seconds"), 2.0, 0.01, 60),
        stop=flags.one_of("--stop", value("stop"), ("finish", "leave"), "finish"),
        stop_seconds=flags.number("--stop-seconds", value("stop-seconds"), 20.0, 0, 600),
        event_rate=flags.number("--event-rate", value("event-rate"), 200.0, 0.1, 10_000),
        health=health_endpoint.read(value, COMPONENTS, canary="verbs"),
        verbosity=flags.verbosity(value("v")),
        log_format=flags.log_format(value("log-format")),
    )
    if not settings.api_bind.is_loopback and not (settings.tls_cert and settings.tls_key):
        raise errors.SettingsError(
            f"--api-bind {settings.api_bind} is not loopback, so it needs --tls-cert and --tls-key"
        )
    if settings.secure_api_bind and not settings.tls_cert:
        raise errors.SettingsError("--secure-api-bind needs --tls-cert and --tls-key")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise errors.SettingsError("--tls-cert and --tls-key belong together: give both or neither")
    if settings.tls_secret and not (settings.tls_cert and settings.tls_names):
        raise errors.SettingsError("--tls-secret needs --tls-cert and --tls-key, files to write, and --tls-names")
    if settings.usage_weight and not settings.prometheus_url:
        raise errors.SettingsError("--usage-weight needs --prometheus-url: the measured use comes from there")
    return settings


def _rules(path: pathlib.Path | None) -> RuleSet:
    if path is None:
        return _DEFAULT_RULES
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_RULE_BYTES + 1)
        if len(content) > _MOST_RULE_BYTES:
            raise ValueError(f"it is larger than {_MOST_RULE_BYTES} bytes")
        read = remediation_rules.read(json_text.value(content))
    except (OSError, ValueError) as cause:
        text = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise errors.SettingsError(f"--remediation-rules {path}: {error_codes.REMEDIATION_RULES}: {text}") from cause
    if isinstance(read, RuleSet):
        return read
    shown = "; ".join(f"{problem.code}: {problem.sentence}" for problem in read[:_MOST_PROBLEMS])
    more = f"; and {len(read) - _MOST_PROBLEMS} more" if len(read) > _MOST_PROBLEMS else ""
    raise errors.SettingsError(f"--remediation-rules {path}: {shown}{more}")


def _url(text: str) -> str:
    if text and not re.fullmatch(r"https?://[^\s?#]+", text):
        raise errors.SettingsError(
            f"--prometheus-url {text!r} is no URL, for example http://prometheus.monitoring:9090"
        )
    return text


def _namespaced(flag: str, text: str) -> str:
    if text and not re.fullmatch(r"[a-z0-9.-]+/[a-z0-9.-]+", text):
        raise errors.SettingsError(f"{flag} {text!r} is not NAMESPACE/NAME, for example hami-system/hami-scheduler")
    return text


def _policy(flag: str, text: str | None, parse: Callable[[str, str], _Policy]) -> _Policy | None:
    try:
        return parse(text, flag) if text else None
    except errors.BadQuantity as cause:
        raise errors.SettingsError(cause.sentence) from cause
