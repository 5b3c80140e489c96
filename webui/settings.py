"""Every setting of the WebUI: one frozen class, filled from flags and environment variables."""

import ipaddress
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpu_sharing.adapters import flags, health_endpoint
from gpu_sharing.core import errors
from webui import meters

AUTHS = ("none", "proxy", "kubernetes")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of the WebUI's process."""

    bind: flags.Address = flags.Address("127.0.0.1", 8088)
    """Where the pages are served. They show the whole cluster, so only on loopback unless users are identified."""
    health_bind: flags.Address = flags.Address("", 8081)  # probes come from outside the pod
    """Probes and metrics."""
    extender: str = "http://127.0.0.1:9446"
    """The extender's read API."""
    extender_ca: pathlib.Path | None = None
    """Who signed its certificate."""
    extender_token_file: pathlib.Path | None = None
    """A bearer token for it, read anew for each call."""
    prometheus: str = ""
    """Prometheus that has what is and was used; empty: the monitors are read, if they are known."""
    monitor_service: meters.Service | None = None
    """The Service of the monitors, which measure what is used."""
    kubeconfig: pathlib.Path | None = None
    """How to reach the API server, where that is needed; None for the pod's service account."""
    auth: str = "none"
    """Who may view the pages: with `none` every request, with `proxy` users that a proxy names, with `kubernetes`
    bearers of a token of the cluster, who see the pods that they may list."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks of the trusted proxy; requests from elsewhere are refused then."""
    user_header: str = "X-Forwarded-User"
    """The header in which the proxy sends the user name."""
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "[::1]"})
    """Host names of the pages: another site could resolve a name of its own to this address."""
    threads: int = 32
    """Pages made at one time."""
    health: health_endpoint.ProbeSettings = field(default_factory=health_endpoint.ProbeSettings)
    """Settings of probes."""
    verbosity: int = 3
    """0 to 6: errors, warnings, changes, decisions, nodes, GPUs, everything; SIGUSR1 and SIGUSR2 change it."""
    log_format: str = "json"
    """`json`, `text` or `console`."""


COMPONENTS = frozenset({"extender", "pages"})
"""Parts whose state `/healthz` shows."""

HELP = {
    "bind": "HOST:PORT of the pages (default 127.0.0.1:8088); off loopback it needs --auth kubernetes or proxy",
    "health-bind": "HOST:PORT of probes and metrics (default :8081)",
    "extender": "URL of the extender's read API (default http://127.0.0.1:9446)",
    "extender-ca": "FILE: who signed its certificate, PEM (default: the system's authorities)",
    "extender-token-file": "FILE: a bearer token for it (default: none)",
    "prometheus": "URL of a Prometheus that scrapes the monitors, for what is and was really used (default: none)",
    "monitor-service": "NAMESPACE/NAME:PORT of the monitors, which measure what is used (default: none)",
    "kubeconfig": "FILE: how to reach the API server, for --auth kubernetes and --monitor-service (default: as a pod)",
    "auth": (
        "none: every request may view; kubernetes: bearers of a token of the cluster; "
        "proxy: users that a trusted proxy names (default none)"
    ),
    "trusted-proxy": "CIDRs, with commas, whose user names --auth proxy trusts",
    "user-header": "header in which the proxy sends the user name (default X-Forwarded-User)",
    "hosts": "host names, with commas, beside localhost (default: none)",
    "threads": "pages made at one time (default 32)",
    **health_endpoint.HELP,
    **flags.LOG_HELP,
}
"""Every flag, in the order of `--help`."""


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: A value that the process cannot start with.
    """
    default = Settings()
    value = flags.read("python -m webui", "GPU sharing's pages.", HELP, arguments, environment)
    settings = Settings(
        bind=flags.address("--bind", value("bind"), default.bind),
        health_bind=flags.address("--health-bind", value("health-bind"), default.health_bind),
        extender=_url("--extender", value("extender") or default.extender),
        prometheus=_url("--prometheus", value("prometheus") or "", optional=True),
        monitor_service=_service(value("monitor-service") or ""),
        kubeconfig=flags.path(value("kubeconfig")),
        extender_ca=flags.path(value("extender-ca")),
        extender_token_file=flags.path(value("extender-token-file")),
        auth=flags.one_of("--auth", value("auth"), AUTHS, default.auth),
        trusted_proxies=_networks(value("trusted-proxy") or ""),
        user_header=value("user-header") or default.user_header,
        hosts=default.hosts | set(filter(None, (value("hosts") or "").lower().split(","))),
        threads=int(flags.number("--threads", value("threads"), default.threads, 1, 512)),
        health=health_endpoint.read(value, COMPONENTS, canary="pages"),
        verbosity=flags.verbosity(value("v")),
        log_format=flags.log_format(value("log-format")),
    )
    if settings.auth == "none" and not settings.bind.is_loopback:
        raise errors.SettingsError(
            f"--bind {settings.bind} is not loopback, and --auth none admits every request: bind 127.0.0.1 and use "
            "kubectl port-forward, or --auth kubernetes or proxy"
        )
    if settings.auth == "proxy" and not settings.trusted_proxies:
        raise errors.SettingsError("--auth proxy needs --trusted-proxy: else every client could claim any user name")
    return settings


def _url(flag: str, text: str, *, optional: bool = False) -> str:
    if not (optional and not text) and not re.fullmatch(r"https?://[^\s?#]+", text):
        raise errors.SettingsError(f"{flag} {text!r} is no URL, for example https://hami-scheduler:9446")
    return text


def _service(text: str) -> meters.Service | None:
    if not text:
        return None
    match = re.fullmatch(r"([a-z0-9-]{1,63})/([a-z0-9-]{1,63}):(\d{1,5})", text)
    if match is None:
        example = "hami-system/hami-monitor:41991"
        raise errors.SettingsError(f"--monitor-service {text!r} is not NAMESPACE/NAME:PORT, for example {example}")
    return meters.Service(match[1], match[2], int(match[3]))


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip())
    except ValueError as cause:
        raise errors.SettingsError(f"--trusted-proxy {text!r} is no list of CIDRs: {cause}") from cause
