"""How to reach an API server: by a kubeconfig as kubectl reads it, or by the service account of a pod.

The official client reads kubeconfigs: it merges a list of files, runs exec plugins and renews tokens. Its import takes
longer than a small command, so that only the functions that need it import it.
"""

import contextlib
import logging
import os
import pathlib
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_sharing.adapters import decoding
from gpu_sharing.core import errors

SERVICE_ACCOUNT = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_KUBECONFIG = "~/.kube/config"
VARIABLE = "KUBECONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach an API server."""

    host: str
    """Its URL."""
    tls: ssl.SSLContext | bool
    """How to verify it; False where it speaks plain HTTP."""
    authorization: Callable[[], str]
    """Called for each request, so that a token that was renewed on disk is used."""
    server_name: str | None = None
    """The name in its certificate, where that is not the host of the URL."""
    proxy: str | None = None
    """The URL of an HTTP proxy to it."""
    impersonation: tuple[tuple[str, str], ...] = ()
    """Headers of each request, by which its user acts as another one."""


def in_cluster() -> Access:
    """Return the access by the service account that the kubelet mounts, without the official client and its 19 MiB.

    Source: kubernetes.io/docs/tasks/run-application/access-api-from-pod

    Raises:
        SettingsError: There is none.
    """
    if not is_pod(os.environ):
        raise errors.SettingsError("this is not a pod of a cluster: set --kubeconfig FILE")
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    token = SERVICE_ACCOUNT / "token"
    try:
        token.read_text()
        tls = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
    except OSError as cause:
        raise errors.SettingsError(f"the service account cannot be read (or set --kubeconfig): {cause}") from cause
    name = f"[{host}]" if ":" in host else host
    return Access(host=f"https://{name}:{port}", tls=tls, authorization=lambda: f"Bearer {token.read_text().strip()}")


def is_pod(environment: Mapping[str, str]) -> bool:
    """Return whether this runs in a pod of a cluster, by the variables that the kubelet sets."""
    return bool(environment.get("KUBERNETES_SERVICE_HOST") and environment.get("KUBERNETES_SERVICE_PORT"))


def own_namespace() -> str:
    """Return the namespace of the pod in which this runs; empty outside a pod."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return ""


def files(flag: str, environment: Mapping[str, str]) -> tuple[pathlib.Path, ...]:
    """Return the kubeconfigs that kubectl would read: the flag's file, those of KUBECONFIG, or the home directory's.

    Of KUBECONFIG and of the home directory only files that exist are returned. As with kubectl, a KUBECONFIG without an
    existing file hides that of the home directory.

    Source: kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig
    """
    if flag:
        return (pathlib.Path(flag).expanduser(),)
    listed = environment.get(VARIABLE, "").split(os.pathsep)
    named = [text for text in listed if text] or [DEFAULT_KUBECONFIG]
    return tuple(path for path in dict.fromkeys(pathlib.Path(text).expanduser() for text in named) if path.exists())


def current_context(kubeconfigs: Sequence[pathlib.Path]) -> str:
    """Return the name of the current context: that of the first file that sets one; empty if none does.

    The official client returns that of the last file, unlike kubectl.
    """
    return next((str(one["current-context"]) for one in _contents(kubeconfigs) if one.get("current-context")), "")


def namespace(kubeconfigs: Sequence[pathlib.Path], context: str) -> str:
    """Return the namespace of a context, or of the current one; empty if it has none or cannot be read."""
    try:
        return str(_entry(kubeconfigs, "context", context or current_context(kubeconfigs)).get("namespace") or "")
    except errors.SettingsError:
        return ""


def _impersonation(kubeconfigs: Sequence[pathlib.Path], context: str) -> tuple[tuple[str, str], ...]:
    """Return the headers by which the user of a context acts as another one, which the official client does not read.

    Source: kubernetes.io/docs/reference/access-authn-authz/authentication, "User impersonation"
    """
    user = _entry(kubeconfigs, "user", str(_entry(kubeconfigs, "context", context).get("user", "")))
    headers = [("Impersonate-User", user.get("as")), ("Impersonate-Uid", user.get("as-uid"))]
    headers += [("Impersonate-Group", group) for group in _items(user.get("as-groups"))]
    extra = user.get("as-user-extra")
    for key, values in extra.items() if isinstance(extra, Mapping) else ():
        headers += [(f"Impersonate-Extra-{urllib.parse.quote(str(key), safe='')}", value) for value in _items(values)]
    return tuple((name, str(text)) for name, text in headers if text)


def _entry(kubeconfigs: Sequence[pathlib.Path], kind: str, name: str) -> Mapping[str, Any]:
    """Return the context or user of a name in the first file that has it; empty if none does, or it is malformed."""
    for content in _contents(kubeconfigs):
        for entry in _items(content.get(f"{kind}s")):
            if isinstance(entry, Mapping) and entry.get("name") == name:
                body = entry.get(kind)
                return body if isinstance(body, Mapping) else {}
    return {}


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _contents(kubeconfigs: Sequence[pathlib.Path]) -> Iterator[Mapping[str, Any]]:
    for path in kubeconfigs:
        try:
            contents = decoding.yaml_documents(path.read_text())
        except (OSError, ValueError) as cause:
            raise errors.SettingsError(f"the kubeconfig {path} cannot be read: {_one_line(cause)}") from cause
        yield from (content for content in contents[:1] if isinstance(content, Mapping))


def by_kubeconfig(kubeconfigs: Sequence[pathlib.Path], context: str) -> Access:
    """Return the access by kubeconfigs, and by one of their contexts or the current one.

    Raises:
        SettingsError: They cannot be read, lack something, or an exec plugin gives no credentials.
    """
    try:
        import kubernetes.client
        import kubernetes.config
    except ImportError as cause:
        raise errors.SettingsError("--kubeconfig needs pip install hami-py[kubeconfig]") from cause
    name = os.pathsep.join(str(path) for path in kubeconfigs)
    configuration = kubernetes.client.Configuration()
    wanted = context or current_context(kubeconfigs)
    with _logged_errors() as messages:
        try:
            kubernetes.config.load_kube_config(  # type: ignore[no-untyped-call]
                name, context=wanted or None, client_configuration=configuration
            )
            tls = _tls(configuration)
        except Exception as cause:
            raise errors.SettingsError(f"cannot reach a cluster by --kubeconfig {name}: {_one_line(cause)}") from cause
    if messages:  # The official client logs the failure of an exec plugin, and goes on without credentials.
        raise errors.SettingsError(f"no credentials by --kubeconfig {name}: {'; '.join(messages)}")

    def authorization() -> str:
        token: str | None = configuration.get_api_key_with_prefix("authorization", alias="BearerToken")
        return token or (configuration.get_basic_auth_token() if configuration.username else "") or ""

    return Access(
        host=configuration.host, tls=tls, authorization=authorization,
        server_name=configuration.tls_server_name or None, proxy=_proxy(configuration),
        impersonation=_impersonation(kubeconfigs, wanted),
    )  # fmt: skip


def _tls(configuration: Any) -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https"):
        return False
    tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if not configuration.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        tls.load_cert_chain(configuration.cert_file, configuration.key_file)
    return tls


def _proxy(configuration: Any) -> str | None:
    """Return the proxy by `proxy-url`, or else by HTTPS_PROXY unless NO_PROXY has the host.

    Raises:
        SettingsError: It is not an HTTP proxy.
    """
    proxy: str | None = configuration.proxy or None
    address = urllib.parse.urlsplit(configuration.host)
    from_environment = proxy is not None and proxy in urllib.request.getproxies().values()
    if proxy is None or (from_environment and urllib.request.proxy_bypass(address.hostname or "")):
        return None
    if urllib.parse.urlsplit(proxy).scheme not in ("http", "https"):
        raise errors.SettingsError(f"the proxy {proxy} is not supported: only http:// and https:// are")
    return proxy


@contextlib.contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Yield a list that receives what other code logs as an error on the root logger in the meantime."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(_one_line(record.getMessage()))

    collector, root = Collector(logging.ERROR), logging.getLogger()
    before = root.handlers
    root.handlers = [collector]
    try:
        yield messages
    finally:
        root.handlers = before


def _one_line(cause: object) -> str:
    return " ".join(str(cause).split())
