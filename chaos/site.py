"""A real control plane with everything between its parts that a scenario can break."""

import contextlib
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from chaos import scenario
from lab import clock_ahead, extender_process, gpus, http_proxy, tcp_proxy
from lab.real import build, client, control_plane, kube_scheduler
from tests.e2e import gpu_node, installed_chart
from tests.support import accounting

LEASE = "kube-system/hami-scheduler"
LEASE_PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/hami-scheduler"
_LEASE_RULES = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update", "list"]}
]
_MARK_RULES = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["patch"]}]
"""The extender of a replica that ends; the chart limits it to the Lease's name."""
_PODS = "/api/v1/namespaces/default/pods"
_RESTART_SECONDS = 1.0
"""As long as the kubelet takes to start a container again that has ended for the first time."""
_MEMORY_MIB, _CORES = 4000, 10


class Replica:
    """One replica: an extender with the kube-scheduler beside it, and their networks.

    Attributes:
        name: Its host's name, by which the Lease's holder begins.
        extender: Its extender.
        scheduler: Its kube-scheduler.
        links: Its networks by name: `extender-api`, `scheduler-api`, `scheduler-extender`.
        clock: The extender's wall clock.
    """

    def __init__(self, plane: control_plane.ControlPlane, name: str, api_url: str, *, is_elected: bool) -> None:
        self._plane = plane
        self._folder = plane.parts.folder
        self._api_url = api_url
        self._is_elected = is_elected
        self._stack = contextlib.ExitStack()
        self.name = name
        self.links: dict[str, tcp_proxy.TcpProxy] = {}
        self.clock = clock_ahead.Clock(self._made(self._folder / f"clock-{name}"))

    @staticmethod
    def _made(folder: pathlib.Path) -> pathlib.Path:
        folder.mkdir()
        return folder

    def start(self) -> None:
        """Start both processes and their networks."""
        scheme, _, address = self._api_url.partition("://")
        self.links["extender-api"] = self._link(address)
        self.links["scheduler-api"] = self._link(self._plane.server.partition("://")[2])
        kubeconfig = self._plane.kubeconfig(
            "extender", f"{scheme}://{self.links['extender-api'].address}", f"extender-{self.name}"
        )
        elected = ["--leader-lease", LEASE, "--identity", self.name] if self._is_elected else []
        self.extender = extender_process.ExtenderProcess(
            kubeconfig,
            self._folder / f"extender-{self.name}.log",
            "--start-delay-seconds",
            "2",
            *elected,
            environment=self.clock.environment(),
        )
        self.extender.start()
        self.extender.wait_ready()
        self.links["scheduler-extender"] = self._link(self.extender.verbs)
        self.scheduler = kube_scheduler.KubeScheduler(self._plane.parts, f"kube-scheduler-{self.name}")
        self.start_scheduler()

    def _link(self, target: str) -> tcp_proxy.TcpProxy:
        return self._stack.enter_context(tcp_proxy.running(target))

    def start_scheduler(self) -> None:
        """Start the kube-scheduler."""
        kubeconfig = self._plane.kubeconfig(
            "scheduler", f"https://{self.links['scheduler-api'].address}", f"scheduler-{self.name}"
        )
        self.scheduler.start(
            kubeconfig,
            f"http://{self.links['scheduler-extender'].address}",
            "application/vnd.kubernetes.protobuf",
            lease=LEASE if self._is_elected else "",
            # The holder of the Lease is named by the host.
            within=("unshare", "--uts", "sh", "-ec", f'hostname {self.name}; exec "$@"', "sh"),
        )

    def restart_extender(self) -> None:
        """Start the extender again after it has ended."""
        time.sleep(_RESTART_SECONDS)
        self.extender.start()

    def signal(self, number: signal.Signals, *, extender: bool = True, scheduler: bool = True) -> None:
        """Send a signal to its processes."""
        pids = [self.extender.pid] if extender else []
        pids += [self._plane.parts.pid(self.scheduler.name)] if scheduler else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill both, as when their machine is gone."""
        self._plane.parts.end(self.scheduler.name, signal.SIGKILL)
        self.extender.kill()

    def end(self) -> None:
        """End both as Kubernetes does with a pod: SIGTERM for all its containers at once."""
        ending = threading.Thread(target=self.extender.stop)
        ending.start()
        self.scheduler.stop()
        ending.join()

    def stop(self) -> None:
        """End everything of it."""
        self.signal(signal.SIGCONT) if self._runs() else None
        self.scheduler.stop()
        self.extender.stop()
        self._stack.close()

    def _runs(self) -> bool:
        with contextlib.suppress(AssertionError, KeyError):
            return bool(self.extender.pid and self._plane.parts.pid(self.scheduler.name))
        return False


class Site(Protocol):
    """What scenarios run on."""

    plane: control_plane.ControlPlane

    def body(self, number: int) -> dict[str, Any]:
        """Return the pod of this number."""

    def is_served(self, pod: Mapping[str, Any]) -> bool:
        """Whether a pod has what it requested."""

    def violations(self) -> list[str]:
        """Return what the API objects and the containers show that must never be."""


class SchedulingSite:
    """Nodes without kubelet, with one to three replicas.

    Attributes:
        plane: The control plane.
        http: What fails calls of the extenders, where the scenario has it.
        replicas: The replicas.
    """

    def __init__(self, plane: control_plane.ControlPlane, http: http_proxy.HttpProxy | None) -> None:
        self.plane = plane
        self.http = http
        self.replicas: list[Replica] = []

    def body(self, number: int) -> dict[str, Any]:
        """See `Site`."""
        limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(_MEMORY_MIB), "nvidia.com/gpucores": str(_CORES)}
        return {
            "metadata": {"name": f"p{number:05d}"},
            "spec": {
                "schedulerName": "hami-scheduler",
                "containers": [{"name": "c", "image": "train:1", "resources": {"limits": limits}}],
            },
        }

    def is_served(self, pod: Mapping[str, Any]) -> bool:
        """See `Site`: it is bound."""
        return bool(pod["spec"].get("nodeName"))

    def violations(self) -> list[str]:
        """See `Site`."""
        return accounting.violations(self.plane.api.pages("/api/v1/nodes"), self.plane.api.pages(_PODS))

    def leader(self) -> Replica:
        """Return the replica that holds the Lease, or the only one."""
        if len(self.replicas) == 1:
            return self.replicas[0]
        holder = ""
        with contextlib.suppress(OSError, client.Refused):
            holder = self.plane.api("GET", LEASE_PATH)["spec"].get("holderIdentity") or ""
        return next((one for one in self.replicas if holder.startswith(f"{one.name}_")), self.replicas[0])


class NodeSite:
    """One real node with fake GPUs.

    Attributes:
        node: It, with all its processes.
    """

    def __init__(self, node: gpu_node.GpuNode) -> None:
        self.node = node
        self.plane = node.plane

    def body(self, number: int) -> dict[str, Any]:
        """See `Site`; its container writes down what it got."""
        return gpu_node.pod(f"p{number:05d}", gpu_node.container("c", 1000 + number, cores=1))

    def is_served(self, pod: Mapping[str, Any]) -> bool:
        """See `Site`: its container has started."""
        return any(one.get("started") for one in pod["status"].get("containerStatuses", ()))

    def violations(self) -> list[str]:
        """See `Site`: also each container that has not what its record names."""
        pods = [pod for pod in self.node.pods() if self.is_served(pod)]
        found = accounting.violations([self.node.node_object()], self.node.pods())
        names = {pod["metadata"]["name"] for pod in pods}
        return found + [one for one in self.node.mismatches() if one.partition("/")[0] in names]


class ChartSite(SchedulingSite):
    """Nodes without kubelet, and one real node where what the chart defines runs: images, Deployment, roles.

    Attributes:
        chart: The installed chart.
    """

    def __init__(self, chart: installed_chart.World) -> None:
        super().__init__(chart.plane, None)
        self.chart = chart

    def pods_of_scheduler(self) -> set[str]:
        """Return the names of the pods that run the scheduler now."""
        pods = self.plane.api("GET", installed_chart.PODS)["items"]
        return {one["metadata"]["name"] for one in pods if not one["metadata"].get("deletionTimestamp")}


@contextlib.contextmanager
def _chart_running(folder: pathlib.Path, wanted: scenario.Scenario) -> Iterator[ChartSite]:
    # A Service has no address here: kube-apiserver would wait for the webhook at every pod.
    absent = ("devicePlugin", "monitor", "webui", "scheduler.admissionWebhook")
    values = ",".join([f"scheduler.replicas={wanted.replicas}", *(f"{one}.enabled=false" for one in absent)])
    with installed_chart.installed(build.binaries(), folder, values, by_controllers=True) as chart:
        _add_nodes(chart.plane, wanted)
        chart.kubectl("rollout", "status", "-n", installed_chart.NAMESPACE, "deploy/hami-scheduler", "--timeout=50s")
        yield ChartSite(chart)


def _add_nodes(plane: control_plane.ControlPlane, wanted: scenario.Scenario) -> None:
    names = [f"node-{number:03d}" for number in range(wanted.nodes)]
    control_plane.add_nodes(plane.api, [gpus.gpu_node(name, gpus.A100, 8) for name in names])


@contextlib.contextmanager
def running(folder: pathlib.Path, wanted: scenario.Scenario) -> Iterator[SchedulingSite | NodeSite]:
    """Run the site of a scenario until the context ends."""
    if wanted.node_gpus:
        with gpu_node.running(folder, wanted.node_gpus, "--health-hold", "3") as node:
            yield NodeSite(node)
        return
    if wanted.chart:
        with _chart_running(folder, wanted) as chart_site:
            yield chart_site
        return
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(control_plane.running(folder, audited=True))
        http = stack.enter_context(http_proxy.running(plane.server)) if wanted.http_faults else None
        site = SchedulingSite(plane, http)
        _add_nodes(plane, wanted)
        if wanted.replicas > 1:
            plane.grant("system:kube-scheduler", _LEASE_RULES)
            plane.grant("hami-scheduler-extender", _MARK_RULES)
        for number in range(wanted.replicas):
            url = http.url if http else plane.server
            replica = Replica(plane, f"replica-{'abc'[number]}", url, is_elected=wanted.replicas > 1)
            site.replicas.append(replica)
            stack.callback(replica.stop)
            replica.start()
        yield site


def restarted(replicas: Sequence[Replica]) -> None:
    """Start replicas again whose processes have ended, several at a time."""
    threads = [threading.Thread(target=one.extender.start) for one in replicas]
    for thread in threads:
        thread.start()
    for thread, one in zip(threads, replicas, strict=True):
        thread.join()
        one.start_scheduler()
