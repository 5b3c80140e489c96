"""The client of the extender's read API, by its URL or by kubectl's port-forward into its pod."""

import contextlib
import pathlib
import re
import select
import shutil
import ssl
import subprocess
import urllib.error
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from gpu_sharing.adapters import decoding, http_get, read_api_types
from gpu_sharing.core import json_text, requests
from hamictl import failures

_TIMEOUT_SECONDS = 15.0
_FORWARD_SECONDS = 20.0
_PORT, _HEALTH_PORT = 9446, 8080
_Answer = TypeVar("_Answer")
_KLOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d")
"""The start of a line of kubectl's own log."""
_BROKEN = (OSError, ValueError, KeyError, TypeError)
"""The errors of an answer that is missing or not from the extender."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """How to reach the extender."""

    url: str = ""
    """Empty: by kubectl's port-forward."""
    token_file: pathlib.Path | None = None
    ca_file: pathlib.Path | None = None
    kubeconfig: str = ""
    context: str = ""
    system_namespace: str = "hami-system"
    reachable: bool = True
    """Whether there is a kubeconfig, or the service account of a pod, for kubectl."""
    health_url: str = ""
    """The health endpoint; empty: by kubectl's port-forward too, unless `url` is set."""


class Reader:
    """Reads from the read API of one extender."""

    def __init__(
        self,
        url: str,
        token: str = "",
        ca_file: pathlib.Path | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = tls(ca_file) if ca_file else None  # None: by the system's authorities.

    def nodes(self) -> list[read_api_types.Node]:
        """Return every node. Errors as `_get`."""
        return self._get(read_api_types.Nodes, "nodes").nodes

    def cluster(self) -> read_api_types.Cluster:
        """Return the totals of the cluster, and the settings that readers need. Errors as `_get`."""
        return self._get(read_api_types.Cluster, "cluster")

    def resource_names(self) -> requests.ResourceNames | None:
        """Return the names of the GPU resources; None where the extender does not report them."""
        try:
            return self.cluster().resource_names
        except failures.CommandFailed:
            return None

    def remediation(self) -> read_api_types.Remediation:
        """Return what is done about faulty GPUs; nothing where the extender does not report it."""
        try:
            return self._get(read_api_types.Remediation, "remediation")
        except failures.CommandFailed:
            return read_api_types.Remediation()

    def pods(self) -> list[read_api_types.Pod]:
        """Return every pod with GPUs that the caller may see. Errors as `_get`."""
        return self._get(read_api_types.Pods, "pods").pods

    def profile(self, seconds: int) -> read_api_types.Profile:
        """Return what the extender does for so many seconds. Errors as `_get`."""
        return self._get(read_api_types.Profile, "profile", str(seconds))

    def explain(self, namespace: str, name: str, most_nodes: int | None = None) -> read_api_types.Explanation:
        """Return why a pod is pending, with so many of the nodes (None: all). Errors as `_get`."""
        query = "" if most_nodes is None else f"?nodes={most_nodes}"
        return self._get(read_api_types.Explanation, "explain", namespace, name, query=query)

    def _get(self, kind: type[_Answer], *parts: str, query: str = "") -> _Answer:
        """Return the answer at `/api/v1/<parts>`, with a query such as `?nodes=5`.

        Raises:
            CommandFailed: There is no answer, or it is not of that kind.
        """
        path = "/".join(urllib.parse.quote(part, safe="") for part in parts) + query
        try:
            body = http_get.read(f"{self._url}/api/v1/{path}", self._timeout_seconds, self._headers, self._tls)
            return decoding.json_as(kind, body)
        except urllib.error.HTTPError as refused:
            raise _refused(refused.code, http_get.body_of(refused)) from refused
        except (OSError, ValueError) as broken:  # msgspec's errors are ValueErrors.
            cause = broken.reason if isinstance(broken, urllib.error.URLError) else broken
            hint = "is --extender the read API (port 9446), and does the extender run?"
            raise failures.CommandFailed(f"no answer from {self._url}: {cause}", hint) from broken


def tls(ca_file: pathlib.Path) -> ssl.SSLContext:
    """Return how to verify a server by an authority in a file.

    Raises:
        CommandFailed: The file cannot be read, or has no certificate.
    """
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as cause:  # SSLError too, where the file has no certificate.
        raise failures.CommandFailed(f"--ca-file {ca_file}: {cause}") from cause


def _refused(status: int, body: bytes) -> failures.CommandFailed:
    try:
        body_fields = json_text.value(body)
        sentence = f"{body_fields['error_code']}: {body_fields['message']}"
    except (ValueError, KeyError, TypeError):
        sentence = f"status {status}: {body[:200].decode(errors='replace')}"
    hints = {
        401: "set --token-file to a file with a token of the cluster, for example from kubectl create token",
        403: (
            "for the read API: kubectl create clusterrolebinding NAME --clusterrole=hami-reader --user=USER; "
            "for the pods of a namespace: a role with list on pods there"
        ),
        503: "the extender has just started: try again",
    }
    negative = failures.NEGATIVE if status == 404 else failures.FAILED
    return failures.CommandFailed(sentence, hints.get(status, ""), negative)


def token_of(where: Address) -> str:
    """Return the bearer token in the file; empty where none is given.

    Raises:
        CommandFailed: The file cannot be read.
    """
    if where.token_file is None:
        return ""
    try:
        return where.token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as cause:
        raise failures.CommandFailed(f"--token-file {where.token_file}: {cause}") from cause


@contextlib.contextmanager
def reaching(where: Address, timeout_seconds: float = _TIMEOUT_SECONDS) -> Iterator[Reader]:
    """Yield a reader, each of whose reads may take that long; the connection ends with the context.

    Raises:
        CommandFailed: The extender cannot be reached.
    """
    if where.url:
        yield Reader(where.url, token_of(where), where.ca_file, timeout_seconds)
        return
    with forwarded(where, _PORT) as url:
        yield Reader(url, timeout_seconds=timeout_seconds)


def components(where: Address) -> dict[str, Any] | None:
    """Return the state of every component of the extender by name; None if its health endpoint is not reached.

    That the extender itself is down is reported by the calls of the read API.

    Raises:
        CommandFailed: `health_url` does not answer.
    """
    if where.health_url:
        try:
            return _components(where.health_url)
        except _BROKEN as cause:
            hint = "is --health the health endpoint (port 8080), and does the extender run?"
            raise failures.CommandFailed(f"no answer from {where.health_url}: {cause}", hint) from cause
    if where.url:
        return None
    try:
        with forwarded(where, _HEALTH_PORT) as url:
            return _components(url)
    except (failures.CommandFailed, *_BROKEN):
        return None


def _components(url: str) -> dict[str, Any]:
    """Return the components; status 503 means that one of them is not healthy, and has a body too."""
    try:
        body = http_get.read(f"{url.rstrip('/')}/healthz", _TIMEOUT_SECONDS)
    except urllib.error.HTTPError as refused:
        body = http_get.body_of(refused)
    by_name: dict[str, Any] = json_text.value(body)["components"]
    return by_name


@contextlib.contextmanager
def forwarded(where: Address, port: int, deployment: str = "hami-scheduler", name: str = "extender") -> Iterator[str]:
    """Yield the URL of a port of a Deployment's pod; the forwarding ends with the context."""
    if not where.reachable:
        raise failures.no_kubeconfig()
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise failures.CommandFailed(
            f"kubectl, which reaches the {name}, is not installed", f"install it, or set --{name} URL"
        )
    command = [kubectl, *(["--kubeconfig", where.kubeconfig] if where.kubeconfig else [])]
    command += ["--context", where.context] if where.context else []
    command += ["-n", where.system_namespace, "port-forward", f"deployment/{deployment}", f":{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{_forwarded_port(process, where, name)}"
    finally:
        process.terminate()
        process.wait(timeout=10)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _forwarded_port(process: "subprocess.Popen[str]", where: Address, name: str) -> int:
    assert process.stdout is not None
    assert process.stderr is not None
    # Its log comes first on the other pipe, and its sentence last: wait for the address, or for the end of the program.
    ready, _, _ = select.select([process.stdout], [], [], _FORWARD_SECONDS)
    line = process.stdout.readline() if ready else ""
    match = re.search(r"127\.0\.0\.1:(\d+)", line)
    if match is None:
        process.kill()
        raise _not_forwarded(process.stderr.read(), where.system_namespace, name)
    return int(match[1])


def _not_forwarded(printed: str, namespace: str, name: str) -> failures.CommandFailed:
    """Return the failure by what kubectl printed: its last sentence that is no line of a log, and a hint."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    sentences = [line for line in lines if not _KLOG.match(line)] or lines
    message = sentences[-1] if sentences else f"no answer within {_FORWARD_SECONDS:g} s"
    if "orbidden" in message:
        hint = f"it needs get on deployments, list on pods and create on pods/portforward in {namespace}"
    elif "NotFound" in message or "not found" in message:
        hint = f"does the {name} run in namespace {namespace}? Set --system-namespace, or --{name} URL"
    else:
        hint = f"does kubectl get nodes work, with the same --kubeconfig and --context? Or set --{name} URL"
    return failures.CommandFailed(f"kubectl port-forward: {message}", hint)
