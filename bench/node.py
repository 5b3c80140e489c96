"""The cost of a container start on the node: Allocate and PreStartContainer, compared with an empty call.

The plugin runs as in a cluster (service account, no kubeconfig) against a real kube-apiserver, with 8 GPUs and 80 pods;
the kubelet is the lab's fake. Needs root, for the path of the service account.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bench import report
from device_plugin.delivery import cdi_store
from gpu_sharing.core import records
from lab import fake_driver, gpus, kubelet, plugin_process
from lab.real import control_plane, images
from protos.deviceplugin.v1beta1 import api_pb2, api_pb2_grpc

NODE = "bench-node"
GPUS, SLOTS = 8, 10
TARGET_RATIO = 5.0
TARGET_MIB = 60
_WARM = 5
_ACCOUNT = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
_WITH_ACCOUNT = f'mkdir -p {_ACCOUNT}; mount --bind "$1" {_ACCOUNT}; shift; exec "$@"'


def run(quick: bool) -> report.Report:
    calls, faults = (20, 5) if quick else (200, 20)
    with tempfile.TemporaryDirectory(prefix="bench-") as text, control_plane.running() as plane:
        folder = pathlib.Path(text)
        driver = fake_driver.make(folder, NODE, GPUS)
        pods = _populate(plane, driver)
        with contextlib.ExitStack() as stack:
            plugin = stack.enter_context(_plugin(plane, folder, driver))
            found = asyncio.run(_measure(folder, plugin, driver, pods, calls, faults))
    empty, start = found["empty"], found["start"]
    ratio = statistics.median(start) / statistics.median(empty)
    cpu_ratio = (found["cpu"]["allocate"] + found["cpu"]["confirm"]) / found["cpu"]["empty"]
    median = statistics.median(empty)
    rows = [
        [what, *_milliseconds(found[key]), cpu, statistics.median(found[key]) / median, cpu / found["cpu"]["empty"]]
        for what, key, cpu in (
            ("an empty call", "empty", found["cpu"]["empty"]),
            ("Allocate", "allocate", found["cpu"]["allocate"]),
            ("PreStartContainer", "confirm", found["cpu"]["confirm"]),
            ("both", "start", found["cpu"]["allocate"] + found["cpu"]["confirm"]),
        )
    ]
    rows.append(["in between: the specification", "", "", found["cpu"]["early"], "", ""])
    rows.append(["XID to the kubelet's receipt", *_milliseconds(found["faults"]), "", "", ""])
    missed = [
        f"{what} of both is {value:.1f} x the empty call's, wanted at most {TARGET_RATIO:g} x"
        for what, value in (("p50", ratio), ("CPU time", cpu_ratio))
        if value > TARGET_RATIO
    ]
    if found["resident_mib"] > TARGET_MIB:
        missed.append(f"{found['resident_mib']:.0f} MiB resident, wanted at most {TARGET_MIB} MiB")
    return report.Report(
        "a container's start on the node",
        ["what", "p50, ms", "p99, ms", "CPU of the plugin, ms", "p50 beside empty", "CPU beside empty"],
        rows,
        {
            "calls": calls, "GPUs": GPUS, "pods": len(pods), "plugin resident, MiB": round(found["resident_mib"], 1),
            "driver": "a stand-in that is asked every 20 ms for XIDs",
        },
        missed,
    )  # fmt: skip


def _milliseconds(seconds: list[float]) -> list[float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return [1000 * cuts[49], 1000 * cuts[98]]


def _populate(plane: control_plane.ControlPlane, driver: fake_driver.FakeDriver) -> list[dict[str, Any]]:
    """Return as many pods as fit on the node, each with a tenth of a GPU."""
    control_plane.add_nodes(plane.api, [gpus.gpu_node(NODE, gpus.A100, 0)])
    names = [f"pod-{number}" for number in range(GPUS * SLOTS)]
    for number, name in enumerate(names):
        share = f"{driver.gpus[number % GPUS].uuid},NVIDIA,{1000 + number},10:;"
        annotations = {records.ALLOCATED: share, records.NODE: NODE, records.TIME: "1", records.BIND_PHASE: "success"}
        limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(1000 + number), "nvidia.com/gpucores": "10"}
        container = {"name": "c", "image": images.PAUSE, "resources": {"limits": limits}}
        body = {
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": NODE, "containers": [container]},
        }
        plane.api("POST", "/api/v1/namespaces/default/pods", body)
    return [plane.api("GET", f"/api/v1/namespaces/default/pods/{name}") for name in names]


@contextlib.contextmanager
def _plugin(
    plane: control_plane.ControlPlane, folder: pathlib.Path, driver: fake_driver.FakeDriver
) -> Iterator[plugin_process.PluginProcess]:
    account = folder / "account"
    account.mkdir()
    (account / "token").write_text(plane.token("plugin"))
    shutil.copy(plane.parts.folder / "certs" / "apiserver.crt", account / "ca.crt")
    (folder / "kubelet" / "device-plugins").mkdir(parents=True)
    host, _, port = plane.server.removeprefix("https://").partition(":")
    plugin = plugin_process.PluginProcess(
        folder,
        driver,
        [
            "--node-name",
            NODE,
            "--kubelet-dir",
            str(folder / "kubelet"),
            "--cdi-dir",
            str(folder / "cdi"),
            "--host-cdi-dirs",
            str(folder / "none"),
            "--delivery",
            "envvar",
            "--identity",
            "cdi",
            "--health-hold",
            "0",
        ],
        {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port, **_compiled(folder)},
        within=["unshare", "--mount", "sh", "-e", "-c", _WITH_ACCOUNT, "sh", str(account)],
    )
    plugin.start()
    try:
        yield plugin
    finally:
        plugin.stop()


def _compiled(folder: pathlib.Path) -> dict[str, str]:
    """Return variables with which the plugin runs optimized bytecode, as in its image: compiling would use memory."""
    variables = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONOPTIMIZE": "2", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    load = "import sys; sys.modules['rich'] = None; import device_plugin.__main__, device_plugin.driver.nvml"
    subprocess.run([sys.executable, "-c", load], check=True, env={**os.environ, **variables})
    return variables


async def _measure(
    folder: pathlib.Path,
    plugin: plugin_process.PluginProcess,
    driver: fake_driver.FakeDriver,
    pods: list[dict[str, Any]],
    calls: int,
    faults: int,
) -> dict[str, Any]:
    node = kubelet.Kubelet(folder / "kubelet", folder / "cdi")
    await node.start()
    while sum(node.devices.values()) < GPUS * SLOTS:
        await asyncio.sleep(0.05)
    for pod in pods:
        await node.admit(pod)
        await node.start_container(pod, pod["spec"]["containers"][0])
    found: dict[str, Any] = {"empty": [], "allocate": [], "confirm": [], "start": [], "faults": []}
    cpu = dict.fromkeys(("empty", "allocate", "early", "confirm"), 0.0)
    stub = api_pb2_grpc.DevicePluginStub(node.channel())
    pod = pods[0]
    for number in range(calls + _WARM):
        spent = [_cpu_seconds(plugin.pid)]
        began = time.perf_counter()
        await stub.GetDevicePluginOptions(api_pb2.Empty())
        empty = time.perf_counter() - began
        spent.append(_cpu_seconds(plugin.pid))
        key = (pod["metadata"]["uid"], "c")
        given = node.given[key]
        asked = api_pb2.ContainerAllocateRequest(devices_ids=list(given.tokens))
        began = time.perf_counter()
        answer = await stub.Allocate(api_pb2.AllocateRequest(container_requests=[asked]))
        allocate = time.perf_counter() - began
        spent.append(_cpu_seconds(plugin.pid))
        node.given[key] = dataclasses.replace(given, answer=answer.container_responses[0])
        node.write_checkpoint()
        await _written(folder, node.given[key])
        spent.append(_cpu_seconds(plugin.pid))
        began = time.perf_counter()
        await stub.PreStartContainer(api_pb2.PreStartContainerRequest(devices_ids=list(given.tokens)))
        confirm = time.perf_counter() - began
        spent.append(_cpu_seconds(plugin.pid))
        if number >= _WARM:
            found["empty"].append(empty)
            found["allocate"].append(allocate)
            found["confirm"].append(confirm)
            found["start"].append(allocate + confirm)
            for name, (earlier, later) in zip(cpu, itertools.pairwise(spent), strict=True):
                cpu[name] += 1000 * (later - earlier) / calls
    found["cpu"] = cpu
    found["resident_mib"] = _resident_mib(plugin.pid)
    for _ in range(faults):
        found["faults"].append(await _fault(node, driver))
    await node.stop()
    return found


async def _written(folder: pathlib.Path, given: kubelet.Given) -> None:
    """Wait until the specification exists, and is old enough for a runtime to read it."""
    device = given.answer.cdi_devices[0].name.removeprefix(f"{cdi_store.KIND}=")
    path = folder / "cdi" / f"hami-vgpu_{device}_{given.pod_uid}.json"
    while not path.exists():
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.11)


async def _fault(node: kubelet.Kubelet, driver: fake_driver.FakeDriver) -> float:
    """Return the seconds from an XID of a GPU to the kubelet's receipt; the GPU is then repaired."""
    told = asyncio.Event()
    node.listed = told.set
    driver.gpus[1].recovery_action = 1
    began = time.perf_counter()
    driver.report_xid(1, 95)
    await asyncio.wait_for(told.wait(), 30)
    seconds = time.perf_counter() - began
    driver.gpus[1].recovery_action = 0
    driver.write()
    while not all(node.devices.values()):
        await asyncio.sleep(0.05)
    return seconds


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, in nanoseconds."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _resident_mib(pid: int) -> float:
    page = os.sysconf("SC_PAGE_SIZE")
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * page / 2**20
