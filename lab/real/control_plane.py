"""A real etcd and kube-apiserver on loopback: for scheduling tests and benchmarks, and for a real node (`node`).

Ready in about 4 s. Nodes without kubelet are made by the API (`add_nodes`). Everything lies in one folder and dies
with this process.

Source: kube-apiserver and etcd `--help`, 1.36.
"""

import concurrent.futures
import contextlib
import pathlib
import secrets
import ssl
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from lab.real import build, client, components, kube_scheduler

_PARALLEL = 8
_POD_GROUPS = "GenericWorkload=true,GangScheduling=true"
POD_GROUP_API = {36: "scheduling.k8s.io/v1alpha2"}
"""The API of Kubernetes' own PodGroup by minor version. Older ones have none; 1.37's kube-scheduler places a group in a
cycle of its own, in which members were not bound."""

EXTENDER_RULES = (
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["nodes", "resourcequotas"], "verbs": ["list", "watch"]},
    {"apiGroups": ["resource.k8s.io"], "resources": ["resourceslices", "deviceclasses"], "verbs": ["list", "watch"]},
    {"apiGroups": ["scheduling.k8s.io", "scheduling.x-k8s.io"], "resources": ["podgroups"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/binding"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "list"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
)
"""The rights of the extender; the tests run it with exactly these."""

REMEDIATION_RULES = (
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
)
"""What `--remediation on` needs beside the rights of the extender."""

PLUGIN_RULES = (
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "patch"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": ["node.k8s.io"], "resources": ["runtimeclasses"], "verbs": ["get"]},
)
"""The rights of the device plugin."""

WEBUI_RULES = (
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]},
    {"apiGroups": ["hami.io"], "resources": ["gpus"], "verbs": ["get"]},
    {"apiGroups": ["hami.io"], "resources": ["pods"], "verbs": ["list"]},
)
"""The rights of the WebUI with sign-in and `--monitor-service`, and for the extender's read API."""
_ROLES = ("admin", "scheduler", "extender", "plugin", "webui", "node")

NODE_NAME = "localhost"
"""The only name by which the API server reaches a kubelet on loopback."""


def add_nodes(api: client.Api, nodes: Iterable[dict[str, Any]]) -> None:
    """Create nodes and remove the taint of a new node without kubelet."""
    nodes = list(nodes)
    api.many(("POST", "/api/v1/nodes", node) for node in nodes)

    def untaint(name: str) -> None:
        api("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, "application/merge-patch+json")

    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(untaint, [node["metadata"]["name"] for node in nodes]))


class ControlPlane:
    """A running control plane.

    Attributes:
        parts: Its programs; callers may start more there.
        server: URL of the API server.
        api: A client with all rights.
    """

    def __init__(self, parts: components.Components, *, pod_groups: bool = False, audited: bool = False) -> None:
        self.parts = parts
        self._pod_groups = pod_groups
        self._audited = audited
        self._tokens = {role: secrets.token_hex(16) for role in _ROLES}
        self._etcd_port, self._peer_port, self._api_port = (components.free_port() for _ in range(3))
        self.server = f"https://127.0.0.1:{self._api_port}"
        self.api = client.Api(self.server, self._tokens["admin"], ssl._create_unverified_context())

    def start(self) -> None:
        """Start etcd and the API server, and wait until they answer.

        Raises:
            NotReady: They do not answer in time.
        """
        self._write_credentials()
        self.start_etcd()
        self.start_api_server()
        self.grant("hami-scheduler-extender", EXTENDER_RULES)
        self.grant("hami-device-plugin", PLUGIN_RULES)
        self.grant("hami-webui", WEBUI_RULES)

    def start_etcd(self) -> None:
        """Start etcd, with what it held before."""
        folder = self.parts.folder
        etcd, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self.parts.start(
            "etcd", "--data-dir", folder / "etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--unsafe-no-fsync", "--log-level", "warn",
        )  # fmt: skip

    def start_api_server(self) -> None:
        """Start the API server, and wait until it answers.

        Raises:
            NotReady: It does not answer in time.
        """
        folder, etcd = self.parts.folder, f"http://127.0.0.1:{self._etcd_port}"
        self.parts.start(
            "kube-apiserver", "--etcd-servers", etcd, "--secure-port", str(self._api_port), "--bind-address",
            "127.0.0.1", "--cert-dir", folder / "certs", "--service-account-issuer", "https://lab",
            "--service-account-key-file", folder / "sa.pub", "--service-account-signing-key-file", folder / "sa.key",
            "--token-auth-file", folder / "tokens.csv", "--authorization-mode", "Node,RBAC",
            "--disable-admission-plugins", "ServiceAccount", "--service-cluster-ip-range", "10.0.0.0/16",
            "--allow-privileged", "--kubelet-preferred-address-types", "Hostname",
            "--max-requests-inflight", "3000", "--max-mutating-requests-inflight", "1000",
            *(("--audit-policy-file", self._write_audit_policy(), "--audit-log-path", folder / "audit.log")
              if self._audited else ()),
            *(("--feature-gates", _POD_GROUPS, "--runtime-config", f"{POD_GROUP_API[build.MINOR]}=true")
              if self._pod_groups else ()),
        )  # fmt: skip
        self.parts.wait("kube-apiserver", lambda: self.api("GET", "/readyz") == "ok")

    def kubeconfig(self, role: str, server: str = "", name: str = "") -> pathlib.Path:
        """Return the kubeconfig of `admin`, `scheduler`, `extender`, `plugin`, `webui` or `node`.

        Args:
            role: Whose token it has.
            server: The URL by which the API server is reached; its own if empty.
            name: Of the file, where it is not the role.
        """
        path = self.parts.folder / f"{name or role}.kubeconfig"
        path.touch(mode=0o600)
        server = server or self.server
        path.write_bytes(
            orjson.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "lab",
                "clusters": [{"name": "lab", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
                "users": [{"name": "lab", "user": {"token": self._tokens[role]}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            })
        )  # fmt: skip
        return path

    def token(self, role: str) -> str:
        """Return the bearer token of a role."""
        return self._tokens[role]

    def scheduler(
        self, extender_url: str | None, without: Sequence[str] = ()
    ) -> contextlib.AbstractContextManager[kube_scheduler.KubeScheduler]:
        """Run a kube-scheduler of this control plane; see `kube_scheduler.running`."""
        gates = _POD_GROUPS if self._pod_groups else ""
        return kube_scheduler.running(
            self.parts, self.kubeconfig("scheduler"), extender_url, without=without, feature_gates=gates
        )

    def audit(self) -> list[dict[str, Any]]:
        """Every call so far, of a control plane that is audited, as audit.k8s.io/v1 events."""
        return [orjson.loads(line) for line in (self.parts.folder / "audit.log").read_bytes().splitlines()]

    def _write_audit_policy(self) -> pathlib.Path:
        path = self.parts.folder / "audit-policy.json"
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
        path.write_bytes(orjson.dumps({**policy, "rules": [{"level": "Metadata"}]}))
        return path

    def stop(self) -> None:
        """Stop every component of the control plane."""
        self.api.close()
        for name in ("kube-apiserver", "etcd"):
            self.parts.end(name)

    def _write_credentials(self) -> None:
        folder = self.parts.folder
        tokens = folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(
            f'{self._tokens["admin"]},admin,admin,"system:masters"\n'
            f"{self._tokens['scheduler']},system:kube-scheduler,scheduler\n"
            f"{self._tokens['extender']},hami-scheduler-extender,extender\n"
            f"{self._tokens['plugin']},hami-device-plugin,plugin\n"
            f"{self._tokens['webui']},hami-webui,webui\n"
            f'{self._tokens["node"]},system:node:{NODE_NAME},node,"system:nodes"\n'
        )
        for arguments in (["genrsa", "-out", "sa.key", "2048"], ["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"]):
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    def grant(self, user: str, rules: Sequence[Mapping[str, Any]]) -> None:
        """Give a user more rights."""
        rbac, group = "/apis/rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
        # The user's own name is that of a role of the chart.
        metadata = {"name": f"lab-{user}-{secrets.token_hex(3)}"}
        self.api("POST", f"{rbac}/clusterroles", {"metadata": metadata, "rules": list(rules)})
        subject = {"kind": "User", "name": user, "apiGroup": group}
        role = {"kind": "ClusterRole", "name": metadata["name"], "apiGroup": group}
        self.api("POST", f"{rbac}/clusterrolebindings", {"metadata": metadata, "subjects": [subject], "roleRef": role})


@contextlib.contextmanager
def running(
    folder: pathlib.Path | None = None, *, pod_groups: bool = False, audited: bool = False
) -> Iterator[ControlPlane]:
    """Run etcd and kube-apiserver until the context ends; start the scheduler when its extender runs.

    Args:
        folder: The folder of all files; a temporary one if None.
        pod_groups: Whether API server and scheduler have the alpha PodGroup of `scheduling.k8s.io`.
        audited: Whether every call is logged, for `audit`.

    Raises:
        BuildFailed: The programs cannot be built here.
        NotReady: They do not start in time.
    """
    programs = build.binaries()
    with contextlib.ExitStack() as stack:
        folder = folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-sharing-real-")))
        plane = ControlPlane(components.Components(folder, programs), pod_groups=pod_groups, audited=audited)
        stack.callback(plane.stop)
        plane.start()
        yield plane
