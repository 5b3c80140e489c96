"""A real etcd, kube-apiserver and kube-scheduler on loopback, without kubelets: for scheduling tests and benchmarks.

Ready in about 4 s. Nodes are made by the API (`add_nodes`). Everything lies in one folder and dies with this process.

Source: kube-apiserver, kube-scheduler and etcd `--help`, 1.36.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import http.client
import pathlib
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib import parse

import orjson
import yaml

from lab.real import build

SCHEDULER_CONFIG = pathlib.Path(__file__).parents[2] / "charts/hami/files/kube-scheduler-config.yaml"
_START_SECONDS = 90.0
_PARALLEL = 8
_PR_SET_PDEATHSIG = 1

EXTENDER_RULES = (
    {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/binding"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
)
"""What the extender may do, and nothing more: the tests run it with just these rights."""


class NotReady(Exception):
    """A component did not come up; the text holds the end of its log."""


class Refused(Exception):
    """The API server answered with an error.

    Attributes:
        status: The HTTP status.
        body: The decoded `Status`.
    """

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body.get('message', body) if isinstance(body, dict) else body}")
        self.status = status
        self.body = body


class Api:
    """A client of one API server: JSON in, JSON out, over a pool of connections. For several threads."""

    def __init__(self, server: str, token: str, context: ssl.SSLContext | None = None) -> None:
        self._server = parse.urlsplit(server)
        self._token = token
        self._context = context
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque()

    def __call__(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Call it.

        Raises:
            Refused: The answer is an error.
        """
        headers = {"Content-Type": content_type}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        encoded = None if body is None else orjson.dumps(body)
        for attempt in (1, 2):
            connection = self._connection()
            try:
                connection.request(method, path, encoded, headers)
                answer = connection.getresponse()
                content = answer.read()
                self._idle.append(connection)
                break
            except (http.client.HTTPException, OSError):
                connection.close()
                if attempt == 2:
                    raise
        is_json = (answer.getheader("Content-Type") or "").startswith("application/json")
        decoded = orjson.loads(content) if is_json else content.decode()
        if answer.status >= 300:
            raise Refused(answer.status, decoded)
        return decoded

    def close(self) -> None:
        """Close every connection."""
        while self._idle:
            self._idle.pop().close()

    def many(self, calls: Iterable[tuple[str, str, Any]]) -> None:
        """Make many calls, several at a time."""
        with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
            for done in [pool.submit(self, *call) for call in calls]:
                done.result()

    def pages(self, path: str) -> list[Any]:
        """All items of a list, page by page."""
        items: list[Any] = []
        token = ""
        while True:
            joint = "&" if "?" in path else "?"
            page = self("GET", f"{path}{joint}limit=1000{'&continue=' + parse.quote(token) if token else ''}")
            items += page["items"] or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items

    def _connection(self) -> http.client.HTTPConnection:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        host, port = self._server.hostname or "", self._server.port
        if self._server.scheme == "https":
            return http.client.HTTPSConnection(host, port, context=self._context, timeout=60)
        return http.client.HTTPConnection(host, port, timeout=60)


def add_nodes(api: Api, nodes: Iterable[dict[str, Any]]) -> None:
    """Create nodes and take the taint off that a new node without kubelet carries."""
    nodes = list(nodes)
    api.many(("POST", "/api/v1/nodes", node) for node in nodes)

    def untaint(name: str) -> None:
        api("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, "application/merge-patch+json")

    with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(untaint, [node["metadata"]["name"] for node in nodes]))


def free_port() -> int:
    """A loopback port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ControlPlane:
    """A running control plane.

    Attributes:
        folder: Where its files and logs are.
        server: URL of the API server.
        api: A client with all rights.
        binaries: Where the programs are, kubectl among them.
    """

    def __init__(self, folder: pathlib.Path, programs: pathlib.Path) -> None:
        self.folder = folder
        self.binaries = programs
        self._tokens = {role: secrets.token_hex(16) for role in ("admin", "scheduler", "extender")}
        self._etcd_port, self._peer_port, self._api_port = free_port(), free_port(), free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.server = f"https://127.0.0.1:{self._api_port}"
        self._context = ssl._create_unverified_context()
        self.api = Api(self.server, self._tokens["admin"], self._context)
        self._scheduler_api: Api | None = None

    def start(self) -> None:
        """Start etcd and the API server, and wait until they answer.

        Raises:
            NotReady: They do not.
        """
        self._write_credentials()
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._spawn(
            "etcd", "--data-dir", self.folder / "etcd", "--listen-client-urls", client, "--advertise-client-urls",
            client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster",
            f"default={peer}", "--unsafe-no-fsync", "--log-level", "warn",
        )  # fmt: skip
        self._spawn(
            "kube-apiserver", "--etcd-servers", client, "--secure-port", str(self._api_port), "--bind-address",
            "127.0.0.1", "--cert-dir", self.folder / "certs", "--service-account-issuer", "https://lab",
            "--service-account-key-file", self.folder / "sa.pub", "--service-account-signing-key-file",
            self.folder / "sa.key", "--token-auth-file", self.folder / "tokens.csv", "--authorization-mode", "RBAC",
            "--disable-admission-plugins", "ServiceAccount", "--service-cluster-ip-range", "10.0.0.0/16",
            "--max-requests-inflight", "3000", "--max-mutating-requests-inflight", "1000",
        )  # fmt: skip
        self._wait("kube-apiserver", lambda: self.api("GET", "/readyz") == "ok")
        self._grant_extender()

    def kubeconfig(self, role: str) -> pathlib.Path:
        """The way in for `admin`, `scheduler` or `extender`."""
        path = self.folder / f"{role}.kubeconfig"
        path.touch(mode=0o600)
        path.write_bytes(
            orjson.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "lab",
                "clusters": [{"name": "lab", "cluster": {"server": self.server, "insecure-skip-tls-verify": True}}],
                "users": [{"name": "lab", "user": {"token": self._tokens[role]}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            })
        )  # fmt: skip
        return path

    def start_scheduler(self, extender_url: str | None) -> None:
        """Start kube-scheduler with the configuration that the chart ships.

        Args:
            extender_url: Where the extender is; None runs kube-scheduler without any.

        Raises:
            NotReady: It does not come up.
        """
        config = yaml.safe_load(SCHEDULER_CONFIG.read_text())
        config["clientConnection"]["kubeconfig"] = str(self.kubeconfig("scheduler"))
        config["leaderElection"] = {"leaderElect": False}
        if extender_url is None:
            del config["extenders"]
        else:
            config["extenders"][0]["urlPrefix"] = extender_url
        path = self.folder / "kube-scheduler.yaml"
        path.write_text(yaml.safe_dump(config))
        port = free_port()
        self._spawn(
            "kube-scheduler", "--config", path, "--secure-port", str(port), "--bind-address", "127.0.0.1",
            "--cert-dir", self.folder / "certs-scheduler", "--authorization-always-allow-paths",
            "/healthz,/readyz,/metrics",
        )  # fmt: skip
        metrics = self._scheduler_api = Api(f"https://127.0.0.1:{port}", "", self._context)
        self._wait("kube-scheduler", lambda: metrics("GET", "/readyz") == "ok")

    def scheduler_metrics(self) -> str:
        """kube-scheduler's own metrics, as text."""
        assert self._scheduler_api is not None
        text: str = self._scheduler_api("GET", "/metrics")
        return text

    def stop_scheduler(self) -> None:
        """Stop kube-scheduler."""
        if self._scheduler_api is not None:
            self._scheduler_api.close()
        self._end("kube-scheduler")

    def stop(self) -> None:
        """Stop everything."""
        self.api.close()
        self.stop_scheduler()
        for name in ("kube-apiserver", "etcd"):
            self._end(name)

    def _write_credentials(self) -> None:
        tokens = self.folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(
            f'{self._tokens["admin"]},admin,admin,"system:masters"\n'
            f"{self._tokens['scheduler']},system:kube-scheduler,scheduler\n"
            f"{self._tokens['extender']},hami-scheduler-extender,extender\n"
        )
        for arguments in (["genrsa", "-out", "sa.key", "2048"], ["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"]):
            subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def _grant_extender(self) -> None:
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        metadata = {"name": "hami-scheduler-extender"}
        self.api("POST", f"{rbac}/clusterroles", {"metadata": metadata, "rules": list(EXTENDER_RULES)})
        user = {"kind": "User", "name": "hami-scheduler-extender", "apiGroup": "rbac.authorization.k8s.io"}
        role = {"kind": "ClusterRole", "name": metadata["name"], "apiGroup": "rbac.authorization.k8s.io"}
        self.api("POST", f"{rbac}/clusterrolebindings", {"metadata": metadata, "subjects": [user], "roleRef": role})

    def _spawn(self, name: str, *arguments: str | pathlib.Path) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self.binaries / name), *map(str, arguments)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=_die_with_parent,
            )  # fmt: skip

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self, name: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._processes[name].poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException, Refused):
                if condition():
                    return
            time.sleep(0.05)
        tail = (self.folder / f"{name}.log").read_bytes()[-3000:].decode(errors="replace")
        raise NotReady(f"{name} is not ready; its log ends:\n{tail}")


@contextlib.contextmanager
def running(folder: pathlib.Path | None = None) -> Iterator[ControlPlane]:
    """Etcd and kube-apiserver for as long as the context lasts; start the scheduler when its extender is there.

    Raises:
        BuildFailed: The programs cannot be built here.
        NotReady: They do not come up.
    """
    programs = build.binaries()
    with contextlib.ExitStack() as stack:
        folder = folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-sharing-real-")))
        plane = ControlPlane(folder, programs)
        stack.callback(plane.stop)
        plane.start()
        yield plane
