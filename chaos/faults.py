"""The kinds of faults: each a context that injects it and recovers from it. One table, which scenario files name."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chaos import site as sites
from lab import fake_driver, http_proxy, tcp_proxy
from lab.real import client, control_plane
from lab.real import node as real_node

Options = Mapping[str, Any]
_PODS = "/api/v1/namespaces/default/pods"


class CannotInject(Exception):
    """The fault does not fit the site of its scenario."""


def _scheduling(site: sites.SchedulingSite | sites.NodeSite) -> sites.SchedulingSite:
    if not isinstance(site, sites.SchedulingSite):
        raise CannotInject("this fault needs replicas, and the scenario has a real node")
    return site


def _node(site: sites.SchedulingSite | sites.NodeSite) -> sites.NodeSite:
    if not isinstance(site, sites.NodeSite):
        raise CannotInject("this fault needs a real node: node_gpus")
    return site


def _http(site: sites.SchedulingSite | sites.NodeSite) -> http_proxy.HttpProxy:
    http = _scheduling(site).http
    if http is None:
        raise CannotInject("this fault needs http_faults = true")
    return http


@contextlib.contextmanager
def _again_and_again(every_seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Act now, and again every so many seconds, until the context ends; a failure of an act is raised at its end."""
    stop = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1)

    def loop() -> None:
        while not stop.is_set():
            act()
            stop.wait(every_seconds)

    running = pool.submit(loop)
    try:
        yield
    finally:
        stop.set()
        running.result(120)
        pool.shutdown()


# Control plane


@contextlib.contextmanager
def api_gone(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The API server is killed, and starts at the end."""
    site.plane.parts.end("kube-apiserver", signal.SIGKILL)
    try:
        yield
    finally:
        site.plane.start_api_server()


@contextlib.contextmanager
def api_stopped(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The API server is stopped: connections stay open, nothing is answered."""
    pid = site.plane.parts.pid("kube-apiserver")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def etcd_gone(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The etcd is killed, and starts at the end with what it held."""
    site.plane.parts.end("etcd", signal.SIGKILL)
    try:
        yield
    finally:
        site.plane.start_etcd()


@contextlib.contextmanager
def lease_deleted(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The Lease is deleted, again and again; the candidates create it anew."""

    def delete() -> None:
        with contextlib.suppress(client.Refused, OSError):
            site.plane.api("DELETE", sites.LEASE_PATH)

    with _again_and_again(float(options.get("every_seconds", 5)), delete):
        yield


# Calls of the API server


@contextlib.contextmanager
def _calls(
    site: sites.SchedulingSite | sites.NodeSite, fault: http_proxy.HttpFault, *, drops_watches: bool = False
) -> Iterator[None]:
    """Something happens to calls of the extenders."""
    http = _http(site)
    http.become(fault, drops_watches=drops_watches)
    try:
        yield
    finally:
        http.become()


def _always(fault: http_proxy.HttpFault) -> "Inject":
    """Return the kind that has no options."""
    return lambda site, options: _calls(site, fault)


def api_fails(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> contextlib.AbstractContextManager[None]:
    """A share of the extenders' calls is refused, each with one of these statuses."""
    fault = http_proxy.HttpFault(
        share=float(options.get("share", 0.3)),
        statuses=tuple(options.get("statuses", (500,))),
        path=str(options.get("path", "")),
    )
    return _calls(site, fault, drops_watches=bool(options.get("drops_watches", False)))


def api_slow(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> contextlib.AbstractContextManager[None]:
    """Each call of the extenders takes longer."""
    return _calls(site, http_proxy.HttpFault(delay_seconds=float(options.get("delay_seconds", 1))))


@contextlib.contextmanager
def watches_dropped(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The extenders' watches are closed, again and again, and a new one is answered 410 with some probability."""
    http = _http(site)
    gone = http_proxy.HttpFault(path="watch=", statuses=(410,), share=float(options.get("gone_share", 0.0)))
    again = _again_and_again(float(options.get("every_seconds", 2)), lambda: http.become(gone, drops_watches=True))
    with _calls(site, gone), again:
        yield


# Networks


@contextlib.contextmanager
def link_cut(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Networks of the leader, or of all replicas, are cut."""
    own = _scheduling(site)
    replicas = own.replicas if options.get("of") == "all" else [own.leader()]
    names = list(options.get("links", ("extender-api",)))
    network = tcp_proxy.Network(str(options.get("network", "silent")))
    delay = float(options.get("delay_seconds", 0))
    links = [replica.links[name] for replica in replicas for name in names]
    for link in links:
        link.become(network, delay)
    try:
        yield
    finally:
        for link in links:
            link.become(tcp_proxy.Network.OPEN)


# Processes


@contextlib.contextmanager
def extender_killed(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The leader's extender is killed, again and again; as a container it starts again each time."""
    own = _scheduling(site)

    def kill() -> None:
        replica = own.leader()
        replica.extender.kill()
        replica.restart_extender()

    with _again_and_again(float(options.get("every_seconds", 2)), kill):
        yield


@contextlib.contextmanager
def replica_killed(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The leader's machine is gone: both processes are killed, and start at the end."""
    own = _scheduling(site)
    killed: list[sites.Replica] = []
    for number in range(int(options.get("count", 1))):
        if number:
            time.sleep(float(options.get("every_seconds", 20)))
        replica = own.leader()
        if replica not in killed:
            replica.kill()
            killed.append(replica)
    try:
        yield
    finally:
        sites.restarted(killed)


@contextlib.contextmanager
def stopped(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Processes of the leader are stopped (SIGSTOP), and wake at the end."""
    replica = _scheduling(site).leader()
    which = options.get("processes", ("extender", "scheduler"))
    chosen = {"extender": "extender" in which, "scheduler": "scheduler" in which}
    replica.signal(signal.SIGSTOP, **chosen)
    try:
        yield
    finally:
        replica.signal(signal.SIGCONT, **chosen)


@contextlib.contextmanager
def slow(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The leader's extender gets a part of the time only: it is stopped and woken, several times a second."""
    replica = _scheduling(site).leader()
    share = float(options.get("share", 0.2))

    def pulse() -> None:
        replica.signal(signal.SIGSTOP, scheduler=False)
        time.sleep(0.2 * (1 - share))
        replica.signal(signal.SIGCONT, scheduler=False)

    with _again_and_again(0.2 * share, pulse):
        yield


@contextlib.contextmanager
def rolled(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Each replica is replaced in turn, as a Deployment does it: a new one is ready before the next is ended."""
    own = _scheduling(site)

    def roll() -> None:
        for replica in own.replicas:
            replica.end()
            sites.restarted([replica])
            replica.extender.wait_ready()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        rolling = pool.submit(roll)
        try:
            yield
        finally:
            rolling.result(180)


@contextlib.contextmanager
def upgraded(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Helm upgrades the chart with a changed value, and Kubernetes' controllers replace its pods."""
    if not isinstance(site, sites.ChartSite):
        raise CannotInject("this fault needs chart = true")
    before = site.pods_of_scheduler()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        upgrading = pool.submit(site.chart.upgrade, "scheduler.verbosity=4")
        try:
            yield
        finally:
            upgrading.result(180)
    if kept := before & site.pods_of_scheduler():
        raise CannotInject(f"the upgrade has not replaced {', '.join(sorted(kept))}")


@contextlib.contextmanager
def clock_jumps(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The wall clock of the extenders jumps, and jumps back at the end."""
    replicas = _scheduling(site).replicas
    for replica in replicas:
        replica.clock.jump(int(options.get("ahead_seconds", 3600)))
    try:
        yield
    finally:
        for replica in replicas:
            replica.clock.jump(0)


# Callers


@contextlib.contextmanager
def slow_scrapers(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Many clients read the extender's metrics a byte at a time."""
    replica = _scheduling(site).replicas[0]
    host, _, port = replica.extender.health.rpartition(":")
    stop = threading.Event()

    def scrape() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            while not stop.wait(0.5) and connection.recv(1):
                pass

    threads = [threading.Thread(target=scrape, daemon=True) for _ in range(int(options.get("count", 60)))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


@contextlib.contextmanager
def duplicates(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """For a pod that is just created, each verb is called a hundred times at once, as by a scheduler that repeats."""
    own = _scheduling(site)
    count = int(options.get("count", 100))
    made = 0
    nodes = [node["metadata"]["name"] for node in own.plane.api.pages("/api/v1/nodes")]
    pool = concurrent.futures.ThreadPoolExecutor(32)

    def call(verb: str, body: bytes) -> None:
        request = urllib.request.Request(f"http://{own.replicas[0].extender.verbs}/{verb}", body, method="POST")
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    def repeat() -> None:
        nonlocal made
        made += 1
        body = own.body(90_000 + made)
        body["spec"]["schedulerName"] = "repeating-scheduler"  # No kube-scheduler here has that name.
        body["metadata"]["name"] = f"repeated-{made:03d}"
        with contextlib.suppress(client.Refused):
            pod = own.plane.api("POST", _PODS, body)
            args = json.dumps({"Pod": pod, "NodeNames": nodes}).encode()
            bind = {"PodName": pod["metadata"]["name"], "PodNamespace": "default", "PodUID": pod["metadata"]["uid"]}
            calls = [("filter", args)] * count + [("prioritize", args)] * count
            calls += [("bind", json.dumps({**bind, "Node": nodes[made % len(nodes)]}).encode())] * count
            random.Random(made).shuffle(calls)
            for done in [pool.submit(call, *one) for one in calls]:
                done.result()

    try:
        with _again_and_again(float(options.get("every_seconds", 1)), repeat):
            yield
    finally:
        pool.shutdown()


# A real node


@contextlib.contextmanager
def node_parts_killed(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Processes of the node are killed in an order, and started again in the same order."""
    node = _node(site).node
    order: Sequence[str] = options.get("order", ("kubelet", "containerd", "plugin"))
    kill = {"kubelet": node.node.kill_kubelet, "containerd": node.node.kill_containerd, "plugin": node.plugin.kill}
    start = {"kubelet": node.node.start_kubelet, "containerd": node.node.start_containerd, "plugin": node.plugin.start}

    def cycle() -> None:
        for name in order:
            kill[name]()
            time.sleep(0.3)
        # A kubelet does not become ready without its runtime.
        for name in sorted(order, key=lambda name: (name == "kubelet", order.index(name))):
            start[name]()

    with _again_and_again(float(options.get("every_seconds", 10)), cycle):
        yield


@contextlib.contextmanager
def disk_full(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The disk of the CDI specifications is full."""
    node = _node(site).node
    folder: pathlib.Path = node.node.cdi_dir
    within = node.node.within()
    size = sum(path.stat().st_size for path in folder.iterdir()) // 1024 + 64
    keep = folder.with_name("cdi-kept")
    # A small disk with what is there, in our mount namespace and in the node's.
    keep.mkdir()
    subprocess.run(["cp", "-a", f"{folder}/.", str(keep)], check=True)
    for prefix in ([], within):
        subprocess.run([*prefix, "mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], check=True)
        subprocess.run([*prefix, "cp", "-a", f"{keep}/.", str(folder)], check=True)
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        filler.unlink()
        subprocess.run(["cp", "-a", "-n", f"{folder}/.", str(keep)], check=True)
        for prefix in ([], within):
            subprocess.run([*prefix, "umount", str(folder)], check=True)
        subprocess.run(["cp", "-a", "-n", f"{keep}/.", str(folder)], check=True)


@contextlib.contextmanager
def xid_storm(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Some GPUs report one XID after another; at the end they are reset."""
    driver = _node(site).node.driver
    gpus = [int(one) for one in options.get("gpus", (0, 1, 2, 3))]
    xids = [int(one) for one in options.get("xids", (48, 63, 95, 119))]
    for gpu in gpus:
        driver.gpus[gpu].recovery_action = 1
    driver.write()
    count = 0

    def report() -> None:
        nonlocal count
        count += 1
        driver.report_xid(gpus[count % len(gpus)], xids[count % len(xids)])

    with _again_and_again(float(options.get("every_seconds", 0.2)), report):
        yield
    for gpu in gpus:
        driver.reset(gpu, despite_clients=True)


@contextlib.contextmanager
def driver_hangs(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """Calls of the driver about some GPUs do not return."""
    driver: fake_driver.FakeDriver = _node(site).node.driver
    driver.rules = [f"hang * {gpu}" for gpu in options.get("gpus", (0, 1))]
    driver.write()
    try:
        yield
    finally:
        driver.rules = []
        driver.write()


@contextlib.contextmanager
def workers_cut(site: sites.SchedulingSite | sites.NodeSite, options: Options) -> Iterator[None]:
    """The pods of the node do not reach each other; the kubelet and containerd still reach them."""
    plane, rule = _node(site).plane, ("pref", "100", "from", real_node.PODS, "to", real_node.PODS, "prohibit")
    first, second = _two_that_run(plane)
    if not _reaches(plane, first, second):
        raise CannotInject("two pods do not reach each other, and nothing is cut yet")
    subprocess.run(("ip", "rule", "add", *rule), check=True, capture_output=True)
    try:
        if _reaches(plane, first, second):
            raise CannotInject("two pods still reach each other")
        yield
    finally:
        subprocess.run(("ip", "rule", "del", *rule), check=True, capture_output=True)
    if not _reaches(plane, first, second):
        raise CannotInject("two pods do not reach each other, and nothing is cut any more")


def _two_that_run(plane: control_plane.ControlPlane) -> tuple[Any, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        running = [pod for pod in plane.api.pages(_PODS) if pod["status"]["phase"] == "Running"]
        if len(running) > 1:
            return running[0], running[1]
        time.sleep(0.5)
    raise CannotInject("there are no two running pods")


def _reaches(plane: control_plane.ControlPlane, pod: Any, other: Any) -> bool:
    kubectl = (
        plane.parts.binaries / "kubectl",
        "--kubeconfig",
        plane.kubeconfig("admin"),
        "exec",
        pod["metadata"]["name"],
    )
    ping = ("--", "ping", "-c", "1", "-W", "2", other["status"]["podIP"])
    return subprocess.run((*kubectl, *ping), capture_output=True, timeout=60).returncode == 0


Inject = Callable[[sites.SchedulingSite | sites.NodeSite, Options], contextlib.AbstractContextManager[None]]

KINDS: dict[str, tuple[Inject, Sequence[str]]] = {
    "api-gone": (api_gone, ()),
    "api-stopped": (api_stopped, ()),
    "etcd-gone": (etcd_gone, ()),
    "lease-deleted": (lease_deleted, ("every_seconds",)),
    "api-fails": (api_fails, ("share", "statuses", "path", "drops_watches")),
    "api-slow": (api_slow, ("delay_seconds",)),
    "api-loses-answers": (
        _always(http_proxy.HttpFault(method="POST", path="/binding", share=0.3, loses_answer=True)),
        (),
    ),
    "api-stale": (_always(http_proxy.HttpFault(path="/pods", is_stale=True)), ()),
    "watches-dropped": (watches_dropped, ("every_seconds", "gone_share")),
    "watches-silent": (_always(http_proxy.HttpFault(path="watch=", is_silent=True)), ()),
    "link-cut": (link_cut, ("of", "links", "network", "delay_seconds")),
    "extender-killed": (extender_killed, ("every_seconds",)),
    "replica-killed": (replica_killed, ("count", "every_seconds")),
    "stopped": (stopped, ("processes",)),
    "slow": (slow, ("share",)),
    "rolled": (rolled, ()),
    "upgraded": (upgraded, ()),
    "clock-jumps": (clock_jumps, ("ahead_seconds",)),
    "slow-scrapers": (slow_scrapers, ("count",)),
    "duplicates": (duplicates, ("count", "every_seconds")),
    "node-parts-killed": (node_parts_killed, ("order", "every_seconds")),
    "disk-full": (disk_full, ()),
    "workers-cut": (workers_cut, ()),
    "xid-storm": (xid_storm, ("gpus", "xids", "every_seconds")),
    "driver-hangs": (driver_hangs, ("gpus",)),
}
"""How each kind is injected, and the options that it knows."""
OPTIONS = {kind: options for kind, (_, options) in KINDS.items()}
