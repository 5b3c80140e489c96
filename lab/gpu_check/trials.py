"""The trials besides the single calls: our reading of the driver, a CUDA program, MPS limits, a container's start.

Each trial returns lines for the report; a line that begins with `FAILED` is a finding.
"""

import asyncio
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from device_plugin.driver import gpu_source
from gpu_sharing.core import allocations, identifiers, records
from lab import api_server, gpu_nodes, gpus, kinds, kubelet, plugin_process

_NODE = "gpu-check"
_LOAD_MIB, _MPS_LIMIT_MIB = 512, 1024
_SLOTS = 2


def adapter(driver: gpu_source.GpuSource) -> Iterator[str]:
    """Report what the plugin and the monitor read."""
    for device in driver.devices():
        yield f"- {device}"
        reading = driver.reading(device.uuid)
        yield f"  - {reading}"
        if not reading.answered:
            yield f"FAILED: GPU {device.index} has no reading: {reading.problem}"
        try:
            yield f"  - {driver.usage(device.uuid)}"
        except gpu_source.GpuSourceError as refused:
            yield f"FAILED: GPU {device.index} has no usage: {refused}"
    faults = driver.next_faults(0.1)
    yield f"- XIDs while waiting 0.1 s: {[fault.xid for fault in faults] or 'none'}"
    yield f"- {driver.gaps()}"


@contextlib.contextmanager
def _load(mib: int, environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Run a CUDA program: yield its process id and the first line that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.gpu_check.load", str(mib)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def processes(driver: gpu_source.GpuSource, seconds: float = 10.0) -> Iterator[str]:
    """Run a CUDA program on each GPU, and report how the driver lists it to this process."""
    for device in driver.devices():
        if device.mig_enabled:
            yield f"- GPU {device.index} is in MIG mode: not tried"
            continue
        with _load(_LOAD_MIB, {"CUDA_VISIBLE_DEVICES": device.uuid}) as (pid, said):
            if said != "ready":
                yield f"- GPU {device.index}: no CUDA program runs here ({said or 'it printed nothing'}): not tried"
                continue
            yield from _listed(driver, device, pid, time.monotonic() + seconds)


def _listed(driver: gpu_source.GpuSource, device: gpu_source.Device, pid: int, deadline: float) -> Iterator[str]:
    while True:
        usage = driver.usage(device.uuid)
        mine = [one for one in usage.processes if one.pid == pid]
        if mine or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    yield f"- GPU {device.index}: {usage}"
    if not mine:
        yield (
            f"FAILED: GPU {device.index}: process {pid} holds {_LOAD_MIB} MiB and is not among the "
            f"{len(usage.processes)} listed; outside the host's PID namespace that is how drivers answer"
        )
    elif (mine[0].memory_bytes or 0) < _LOAD_MIB << 20:
        yield f"FAILED: GPU {device.index}: process {pid} holds {_LOAD_MIB} MiB and is listed with {mine[0]}"


def mps(device: gpu_source.Device | None) -> Iterator[str]:
    """Report whether the MPS daemon limits the memory of a client."""
    program = shutil.which("nvidia-cuda-mps-control")
    if program is None or device is None or device.mig_enabled:
        yield "- nvidia-cuda-mps-control is not there, or no whole GPU: not tried"
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe",
            "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log",
            "CUDA_VISIBLE_DEVICES": device.uuid,
        }
        pathlib.Path(folder, "pipe").mkdir()
        pathlib.Path(folder, "log").mkdir()
        every = {**os.environ, **environment}
        subprocess.run([program, "-d"], env=every, check=False, timeout=30)
        try:
            limit = f"set_default_device_pinned_mem_limit 0 {_MPS_LIMIT_MIB}M\n"
            set_limit = subprocess.run([program], input=limit, env=every, capture_output=True, text=True, timeout=30)
            yield f"- the limit of {_MPS_LIMIT_MIB} MiB: status {set_limit.returncode} {set_limit.stdout.strip()}"
            for mib, fits in ((_LOAD_MIB, True), (2 * _MPS_LIMIT_MIB, False)):
                with _load(mib, environment) as (_, said):
                    yield f"- a client of {mib} MiB: {said}"
                    if (said == "ready") is not fits:
                        yield f"FAILED: a client of {mib} MiB under a limit of {_MPS_LIMIT_MIB} MiB says {said!r}"
        finally:
            subprocess.run([program], input="quit\n", env=every, capture_output=True, text=True, timeout=60)


def container(devices: Sequence[gpu_source.Device], seconds: float = 60.0) -> Iterator[str]:
    """Start one container with our plugin in a separate process and a fake kubelet."""
    with contextlib.ExitStack() as stack:
        # Not a long path: that of a unix socket has at most 107 characters.
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-check-")))
        server = stack.enter_context(api_server.running())
        node = gpu_nodes.unserved(gpus.gpu_node(_NODE, gpus.A100, 1))
        server.call(lambda: server.app.store.create(kinds.NODES, "", node))
        stand_in = kubelet.Kubelet(folder / "kubelet", folder / "cdi")
        plugin = plugin_process.PluginProcess(
            folder, None,
            ["--kubeconfig", str(server.write_kubeconfig(folder / "kubeconfig")), "--node-name", _NODE,
             "--kubelet-dir", str(folder / "kubelet"), "--cdi-dir", str(folder / "cdi"), "--delivery", "envvar",
             "--host-cdi-dirs", str(folder / "none"), "--isolation", "none",
             "--device-split-count", str(_SLOTS)],
        )  # fmt: skip

        def do(work: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(work, server.loop).result(seconds)

        do(stand_in.start())
        stack.callback(lambda: do(stand_in.stop()))
        stack.callback(plugin.stop)
        plugin.start()
        yield from _started(server, stand_in, devices, do, time.monotonic() + seconds)


def _started(
    server: api_server.Running,
    stand_in: kubelet.Kubelet,
    devices: Sequence[gpu_source.Device],
    do: Any,
    deadline: float,
) -> Iterator[str]:
    while not any(stand_in.devices.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    offered = records.decode_inventory(
        server.request("GET", f"/api/v1/nodes/{_NODE}")["metadata"]["annotations"].get(records.INVENTORY, "[]")
    )
    yield f"- {sum(stand_in.devices.values())} device ids are offered; the inventory is {list(offered)}"
    missing = {device.uuid for device in devices} - {gpu.uuid for gpu in offered}
    if missing:
        yield f"FAILED: not offered: {', '.join(sorted(missing))}"
    usable = [gpu for gpu in offered if gpu.healthy and gpu.mode != "mig"]
    if not usable:
        yield "- no whole GPU is offered and healthy: no container is started"
        return
    share = allocations.Share(identifiers.GpuUuid(usable[0].uuid), min(1024, usable[0].memory_mib), 10)
    pod = server.request("POST", "/api/v1/namespaces/default/pods", _pod(share))
    do(stand_in.admit(pod))
    try:
        started = do(stand_in.start_container(pod, pod["spec"]["containers"][0]))
    except (kubelet.NotStarted, kubelet.Rejected) as refused:
        yield f"FAILED: the container is not started: {refused}"
        return
    yield f"- a container is started with {started}"
    if usable[0].uuid not in started.environment.get("NVIDIA_VISIBLE_DEVICES", ""):
        yield f"FAILED: the container does not see {usable[0].uuid}"


def _pod(share: allocations.Share) -> dict[str, Any]:
    annotations = records.pod_annotations(
        ((share,),), identifiers.NodeName(_NODE), int(time.time()), identifiers.DecisionId("gpu-check")
    )
    limits = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(share.memory_mib)}
    return {
        "metadata": {"name": "gpu-check", "annotations": annotations},
        "spec": {"nodeName": _NODE, "containers": [{"name": "c0", "image": "x", "resources": {"limits": limits}}]},
        "status": {"phase": "Pending"},
    }
