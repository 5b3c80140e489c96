"""Everything that runs was rendered by the chart: images, flags, roles and probes, on a real kubelet and containerd."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from lab.real import control_plane
from tests.chart import rendering
from tests.e2e import gpu_node, installed_chart
from tests.e2e import site as sites

NAMESPACE = installed_chart.NAMESPACE
CORE_POD = "hami-core-0"


@pytest.fixture(scope="module")
def world(programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[installed_chart.World]:
    """Installed by helm and running."""
    with installed_chart.installed(programs, tmp_path_factory.mktemp("node")) as found:
        found.start("hami-scheduler-0", found.workload("deployments", "hami-scheduler"))
        found.start(CORE_POD, found.workload("daemonsets", "hami-core"))
        found.start("hami-device-plugin-0", found.workload("daemonsets", "hami-device-plugin"))
        found.wait_ready("hami-scheduler-0")
        found.aliases[found.pod("hami-scheduler-0")["status"]["podIP"]] = [f"hami-scheduler.{NAMESPACE}.svc"]
        found.start("hami-webui-0", found.workload("deployments", "hami-webui"))
        for name in (CORE_POD, "hami-device-plugin-0", "hami-webui-0"):
            found.wait_ready(name)
        yield found


def test_the_health_check_of_the_documentation_works(world: installed_chart.World) -> None:
    """Word by word, but for the names that a controller would give."""
    listed = world.kubectl("get", "pods", "-n", NAMESPACE)
    assert listed.count("Running") == 4
    where = ("-n", NAMESPACE, "deploy/hami-scheduler")
    health = world.kubectl("exec", *where, "--", "wget", "-qO-", "localhost:8080/healthz")
    assert json.loads(health)["components"]["nodes"]["healthy"] is True
    nodes = world.kubectl("get", "nodes", "-l", "accelerator=nvidia", "-o", "name")
    assert nodes.split() == [f"node/{control_plane.NODE_NAME}"]
    assert "nvidia.com/gpu" in world.kubectl("describe", "node", control_plane.NODE_NAME)


def test_the_script_for_the_health_check_passes_as_it_stands(world: installed_chart.World) -> None:
    """And prints what the node allocates."""
    script = pathlib.Path(__file__).parents[2] / "examples" / "hami-health-check.sh"
    environment = {
        **os.environ,
        "PATH": f"{world.plane.parts.binaries}:{os.environ['PATH']}",
        "KUBECONFIG": str(world.plane.kubeconfig("admin")),
    }
    done = subprocess.run([script], capture_output=True, text=True, timeout=120, env=environment)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert f"{control_plane.NODE_NAME}  nvidia.com/gpu allocatable " in done.stdout
    assert "All checks passed." in done.stdout


def test_a_pod_gets_its_slice(world: installed_chart.World) -> None:
    """Through kube-scheduler, extender, kubelet, device plugin and containerd; the webhook has its certificate."""
    hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hami-webhook"
    sites.wait_for(lambda: world.plane.api("GET", hooks)["webhooks"][0]["clientConfig"].get("caBundle"), 60)
    body = gpu_node.pod("mine", gpu_node.container("main", 4000, 30))
    world.plane.api("POST", gpu_node.PODS, body)

    def runs() -> bool:
        return bool(world.plane.api("GET", f"{gpu_node.PODS}/mine")["status"]["phase"] == "Running")

    sites.wait_for(runs, 60, lambda: json.dumps(world.plane.api("GET", f"{gpu_node.PODS}/mine")["status"]))
    shown = world.kubectl("exec", "mine", "--", "env")
    assert "CUDA_DEVICE_MEMORY_LIMIT_0=4000m" in shown


def doctor(world: installed_chart.World) -> tuple[int, list[dict[str, str]]]:
    """The exit status and the findings of `hamictl doctor`."""
    command = [
        sys.executable,
        "-m",
        "hamictl",
        "doctor",
        "--kubeconfig",
        str(world.plane.kubeconfig("admin")),
        "-o",
        "json",
    ]
    environment = {**os.environ, "PATH": f"{world.plane.parts.binaries}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, json.loads(done.stdout)["findings"]


def test_doctor_finds_what_is_not_as_it_should_be_and_no_more(world: installed_chart.World) -> None:
    """The last step of that health check, by one command."""
    assert doctor(world) == (0, [])


_MARK = "import os; print(open('/tmp/mark').read() if os.path.exists('/tmp/mark') else 'no mark')"


def run_limited(world: installed_chart.World, name: str, program: str = _MARK) -> tuple[str, str]:
    """Run a dynamically linked program with a slice, as no root. Returns what it wrote, and the event."""
    container = gpu_node.container("main", 4000, 30) | {
        "image": "ghcr.io/hami-py/hami-node:0.1.0",
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", program],
    }
    body = gpu_node.pod(name, container)
    body["spec"] |= {"restartPolicy": "Never", "securityContext": {"runAsUser": 1000}}
    world.plane.api("POST", gpu_node.PODS, body)

    def ended() -> bool:
        return bool(world.plane.api("GET", f"{gpu_node.PODS}/{name}")["status"]["phase"] == "Succeeded")

    sites.wait_for(ended, 60, lambda: json.dumps(world.plane.api("GET", f"{gpu_node.PODS}/{name}")["status"]))
    told = world.plane.api("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    notes = [one["note"] for one in told if one["regarding"]["name"] == name and one["reason"] == "DeviceAllocated"]
    return world.node.log(world.plane.api("GET", f"{gpu_node.PODS}/{name}"), "main"), "".join(notes)


def test_the_library_that_the_chart_brings_is_preloaded_with_the_limits_of_the_pod(
    world: installed_chart.World,
) -> None:
    """From an image, by the pod of the chart, at the path that ld.so.preload names, in a program that never asked."""
    mark, note = run_limited(world, "limited")
    assert mark == "memory 4000m cores 30 region writable"
    assert note.endswith("isolation hami-core")


def test_what_a_tenant_leaves_is_deleted_with_the_rights_that_the_chart_gives(world: installed_chart.World) -> None:
    """Root without capabilities may not enter a folder of another user: it would fill the node's disk for ever."""
    program = (
        "import os, pathlib, time; deep = pathlib.Path('/tmp/vgpulock/deep'); deep.mkdir(0o700); "
        "(deep / 'big').write_bytes(b'x' * 100_000); deadline = time.monotonic() + 60\n"
        "while deep.exists() and time.monotonic() < deadline: time.sleep(0.2)\n"
        "print('there' if deep.exists() else 'cleared')\n"
        "try: pathlib.Path(os.environ['CUDA_DEVICE_MEMORY_SHARED_CACHE']).with_name('more').touch()\n"
        "except PermissionError: print('and no more')"
    )
    assert run_limited(world, "writes", program)[0].split("\n") == ["cleared", "and no more"]


def hamictl(world: installed_chart.World, *arguments: str) -> str:
    command = [sys.executable, "-m", "hamictl", *arguments, "--kubeconfig", str(world.plane.kubeconfig("admin"))]
    environment = {**os.environ, "PATH": f"{world.plane.parts.binaries}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_library_everything_says_that_memory_is_not_limited(world: installed_chart.World) -> None:
    """The node, its event, doctor, the commands, the pages, the metric; and all is well once it is back."""
    world.kubectl("delete", "pod", "-n", NAMESPACE, CORE_POD, "--wait")
    for path in (world.folder / "vgpu").glob("libvgpu.so*"):
        path.unlink()

    def codes() -> set[str]:
        return {one["code"] for one in doctor(world)[1]}

    lost = {"PLUGIN_MEMORY_NOT_LIMITED", "PLUGIN_ISOLATION_LOST"}
    sites.wait_for(lambda: codes() == lost, 60, lambda: str(codes()))
    mark, note = run_limited(world, "free")
    assert (mark, note.endswith("isolation none")) == ("no mark", True)
    assert "none" in hamictl(world, "nodes")
    assert "PLUGIN_MEMORY_NOT_LIMITED" in hamictl(world, "nodes", "-o", "wide")
    assert "none" in hamictl(world, "top", "-o", "wide")
    (seen,) = json.loads(hamictl(world, "nodes", "-o", "json"))
    assert (seen["problems"].keys(), {gpu["mode"] for gpu in seen["gpus"]}) == (lost, {"none"})
    with forwarded(world, "hami-monitor", 8081) as url, urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        assert 'isolation="none"' in answer.read().decode()

    def page_says() -> bool:
        with (
            forwarded(world, "hami-webui", 80) as url,
            urllib.request.urlopen(f"{url}/nodes/{control_plane.NODE_NAME}", timeout=10) as answer,
        ):
            return "the memory of containers is not limited" in answer.read().decode()

    sites.wait_for(page_says, 60)

    world.start(CORE_POD, world.workload("daemonsets", "hami-core"))
    sites.wait_for(lambda: codes() == set(), 60, lambda: str(codes()))
    assert run_limited(world, "limited-again")[0].startswith("memory 4000m")


def test_port_forward_leads_to_pages_and_metrics(world: installed_chart.World) -> None:
    """The pages listen on the pod's loopback alone, and say what the monitors measure where they find them."""
    for service, port, path, wanted in (
        ("hami-webui", 80, "/", "GPUs in use"),
        ("hami-monitor", 41991, "/metrics", "hami_gpu_memory_total_bytes"),
        ("hami-monitor", 8081, "/metrics", "hami_device_plugin_device_count"),
    ):
        with forwarded(world, service, port) as url:

            def shows(url: str = url, path: str = path, wanted: str = wanted) -> bool:
                with urllib.request.urlopen(f"{url}{path}", timeout=10) as answer:
                    return wanted in answer.read().decode()

            sites.wait_for(shows, 60)


ELSEWHERE: dict[str, dict[tuple[str, str], str]] = {
    "hami-scheduler": {
        ("pods", "get"): "a pod that the watch has not shown yet, a Binding whose answer was lost",
        ("pods", "patch"): "GPUs held for a pod that others leave for, gates of gangs",
        ("pods/eviction", "create"): "preemption",
        ("pods/status", "patch"): "nominations",
        ("podgroups", "list"): "where the cluster has them",
        ("podgroups", "watch"): "where the cluster has them",
        ("events", "list"): "the page of a pod",
        ("events", "patch"): "an event that is repeated",
    },
    "hami-device-plugin": {("events", "patch"): "an event that is repeated"},
    "hami-webui": {},
}
"""Rights that a healthy node with one pod does not need, and what needs them; other tests do."""


def test_no_call_was_denied_and_no_right_is_for_nothing(world: installed_chart.World) -> None:
    """By the API server's audit log: each account may do what it does, and does what it may."""
    accounts = {
        f"system:serviceaccount:{NAMESPACE}:{name}" for name in ("hami-scheduler", "hami-device-plugin", "hami-webui")
    }
    denied, done = set(), set()
    for event in world.plane.audit():
        if event["user"]["username"] not in accounts:
            continue
        asked = event.get("objectRef", {})
        resource = "/".join(filter(None, (asked.get("resource", ""), asked.get("subresource", ""))))
        agent = event.get("userAgent", "").partition("/")[0]
        code = event.get("responseStatus", {}).get("code", 0)
        # Of kube-scheduler, which has a role of Kubernetes' own, only what it was denied counts.
        if code in (401, 403):
            denied.add((event["user"]["username"], agent, resource, event["verb"], event["requestURI"]))
        elif agent != "kube-scheduler":
            done.add((event["user"]["username"].rpartition(":")[2], resource, event["verb"]))
    assert denied == set()
    for account, kind, role in (
        ("hami-scheduler", "ClusterRole", "hami-scheduler-extender"),
        ("hami-device-plugin", "ClusterRole", "hami-device-plugin"),
        ("hami-webui", "Role", "hami-webui"),
    ):
        rules = rendering.one(rendering.objects(4), kind, role)["rules"]
        granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
        used = {(resource, verb) for who, resource, verb in done if who == account}
        assert granted - used - ELSEWHERE[account].keys() == set(), account


@contextlib.contextmanager
def forwarded(world: installed_chart.World, service: str, port: int) -> Iterator[str]:
    """A port of a Service by kubectl, for as long as the context lasts."""
    kubectl = [str(world.plane.parts.binaries / "kubectl"), "--kubeconfig", str(world.plane.kubeconfig("admin"))]
    process = subprocess.Popen(
        [*kubectl, "port-forward", "-n", NAMESPACE, f"service/{service}", f":{port}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().split()[2]}"
    finally:
        process.terminate()
        process.communicate()
