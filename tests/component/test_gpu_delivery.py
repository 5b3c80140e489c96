"""How GPUs come into containers, beside runtimes without CDI and what other programs leave on the host."""

import asyncio
import json
import pathlib
from typing import Any

import pytest

from gpu_sharing.core import records
from lab import faults, kubelet
from tests.component import gpu_node

pytestmark = pytest.mark.slow

ID = "ab" * 32
DELIVERED = ("--delivery", "auto")


def write_spec(node: gpu_node.GpuNode, *gpus: int, name: str = "nvidia.json", **minors: int) -> None:
    """A specification as nvidia-ctk makes them, for some GPUs; `gpu0=7` gives GPU 0 another device node."""
    node.host_cdi_dir.mkdir(exist_ok=True)
    devices = [
        {
            "name": node.uuid(gpu),
            "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{minors.get(f'gpu{gpu}', gpu)}"}]},
        }
        for gpu in gpus
    ]
    common = {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": "/dev/nvidiactl"}],
        "mounts": [
            {"hostPath": f"/lib/{one}", "containerPath": f"/lib/{one}", "options": ["ro", "nosuid", "nodev", "rbind"]}
            for one in ("libcuda.so.570.86.15", "libnvidia-ml.so.570.86.15")
        ],
        "hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook"}],
    }
    spec = {"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": common}
    (node.host_cdi_dir / "part").write_text(json.dumps(spec))
    (node.host_cdi_dir / "part").rename(node.host_cdi_dir / name)


def problems(node: gpu_node.GpuNode) -> dict[str, str]:
    return records.decode_problems(node.node()["metadata"]["annotations"].get(records.PROBLEMS, ""))


def healthy(node: gpu_node.GpuNode) -> list[bool]:
    inventory = node.node()["metadata"]["annotations"].get(records.INVENTORY, "[]")
    return [one.healthy for one in records.decode_inventory(inventory)]


def carries(started: kubelet.Started, node: gpu_node.GpuNode, gpu: int) -> None:
    """A container has the device nodes and libraries of one GPU, and NVIDIA's runtime adds none."""
    assert sorted(started.devices) == [f"/dev/nvidia{gpu}", "/dev/nvidiactl"]
    assert started.environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert started.environment["HAMI_GPUS"] == node.uuid(gpu)
    assert started.mounts["/lib/libcuda.so.570.86.15"] == "/lib/libcuda.so.570.86.15"


@pytest.mark.parametrize("runtime", ["containerd://2.4.2", kubelet.CRI_O])
def test_a_runtime_that_reads_cdi_gets_the_hosts_edits_and_refuses_what_it_does_not_know(runtime: str) -> None:
    """And `void` stays, so that NVIDIA's runtime injects nothing beside them."""
    with gpu_node.running(2, *DELIVERED, runtime=runtime, prepare=lambda node: write_spec(node, 0, 1)) as node:
        pod = node.create("one", "1:4000:30")
        started = node.run(pod)

        carries(started, node, 1)
        assert [path for path in started.mounts if path.startswith("/run/hami.io/")]
        for path in node.cdi_dir.glob("hami-vgpu_*"):
            path.unlink()
        (given,) = node.kubelet.given.values()
        with pytest.raises(kubelet.NotStarted, match=r"injection failed: unresolvable CDI devices hami\.io/"):
            node.kubelet._resolve(given.answer.cdi_devices[0].name)


def test_with_cdi_off_the_container_has_its_device_nodes() -> None:
    """Containerd 1.7 drops CDI names in silence: the answer itself carries device nodes and libraries."""
    with gpu_node.running(
        2, *DELIVERED, runtime=kubelet.CONTAINERD_1, prepare=lambda node: write_spec(node, 0, 1)
    ) as node:
        started = node.run(node.create("one", "1:4000:30"))

        carries(started, node, 1)
        assert started.mounts["/lib/libcuda.so.1"] == "/lib/libcuda.so.570.86.15"
        assert "CUDA_DEVICE_MEMORY_LIMIT_0" in started.environment
        node.wait("it is told", lambda: "PLUGIN_DELIVERY_WITHOUT_HOOKS" in problems(node))


def test_containers_of_equal_limits_on_different_gpus_are_not_mixed_up_without_cdi() -> None:
    """`void` tells no GPU, so our own variable has to: the answer for another GPU does not start."""
    with gpu_node.running(
        2, *DELIVERED, runtime=kubelet.CONTAINERD_1, prepare=lambda node: write_spec(node, 0, 1)
    ) as node:
        late, early = node.create("late", "0:700:0", bound_at=103), node.create("early", "1:700:0", bound_at=102)
        node.admit(late)  # Out of order: it is answered the record of the other.

        with pytest.raises(kubelet.NotStarted, match=r"ALLOC_WRONG_MATCH: .+HAMI_GPUS"):
            node.start(late)
        assert early["metadata"]["name"] == "early"


def test_one_gpu_that_cannot_be_delivered_takes_itself_off_and_not_its_node() -> None:
    """Its neighbour serves on; once it is described, it is back by itself."""
    with gpu_node.running(2, *DELIVERED, prepare=lambda node: write_spec(node, 0), offered=1) as node:
        carries(node.run(node.create("well", "0:100:0")), node, 0)
        node.wait("the scheduler knows", lambda: healthy(node) == [True, False])
        assert node.uuid(1) in problems(node)["PLUGIN_DELIVERY"]
        unlucky = node.create("unlucky", "1:100:0")
        node.admit(unlucky)
        with pytest.raises(kubelet.NotStarted, match=r"ALLOC_GPU_UNHEALTHY: .+PLUGIN_DELIVERY"):
            node.start(unlucky)
        assert json.loads(node.plugin.get("health", "/healthz")[1])["components"]["delivery"]["healthy"] is False
        assert node.plugin.get("health", "/readyz")[0] == 200

        write_spec(node, 0, 1)

        node.wait("it is back", lambda: healthy(node) == [True, True])
        node.wait("no problem is left", lambda: problems(node) == {})
        carries(node.start(unlucky), node, 1)


def test_a_specification_that_became_wrong_refuses_its_gpu_until_it_is_written_anew() -> None:
    """After a change of the driver or the order of cards it would start a container on another tenant's GPU."""
    with gpu_node.running(2, *DELIVERED, prepare=lambda node: write_spec(node, 0, 1)) as node:
        write_spec(node, 0, 1, gpu1=0)
        node.wait("it is refused", lambda: healthy(node) == [True, False])
        assert "it has /dev/nvidia0, and the GPU is /dev/nvidia1" in problems(node)["PLUGIN_CDI_STALE"]

        version = node.proc_dir / "driver" / "nvidia" / "version"
        version.parent.mkdir(parents=True)
        version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1  Thu\n")
        node.wait("both are of an old driver", lambda: healthy(node) == [False, False])
        assert "libraries of driver 570.86.15, and 580.1 is loaded" in problems(node)["PLUGIN_CDI_STALE"]

        version.unlink()
        write_spec(node, 0, 1)
        node.wait("both are back", lambda: healthy(node) == [True, True])
        assert node.kubelet.devices


def test_two_specifications_are_told_and_never_merged() -> None:
    """In two folders the later one counts, in one folder none."""
    with gpu_node.running(1, *DELIVERED, prepare=lambda node: write_spec(node, 0)) as node:
        text = (node.host_cdi_dir / "nvidia.json").read_text()
        node.cdi_dir.mkdir(exist_ok=True)
        (node.cdi_dir / "nvidia.json").write_text(text.replace("570.86.15", "570.99"))
        node.wait("it is told", lambda: "host-cdi/nvidia.json does not" in problems(node).get("PLUGIN_CDI_TWICE", ""))
        started = node.run(node.create("one", "0:100:0"))
        assert "/lib/libcuda.so.570.99" in started.mounts
        assert "/lib/libcuda.so.570.86.15" not in started.mounts

        (node.cdi_dir / "other.json").write_text(text)

        node.wait("neither counts", lambda: healthy(node) == [False])
        assert "cdi/other.json define it in one folder" in problems(node)["PLUGIN_CDI_CONFLICT"]


def test_anothers_malformed_specification_takes_nothing_off() -> None:
    """Any vendor's tool writes there."""

    def prepare(node: gpu_node.GpuNode) -> None:
        write_spec(node, 0)
        (node.host_cdi_dir / "a.json").write_text('{"kind":"nvidia.com/gpu","devices":7}')
        (node.host_cdi_dir / "b.yaml").write_text("a: &a [*a")

    with gpu_node.running(1, *DELIVERED, prepare=prepare) as node:
        carries(node.run(node.create("one", "0:100:0")), node, 0)
        left_out = [one for one in node.plugin.log_lines() if "is left out" in str(one.get("event"))]
        assert len(left_out) == 2


def test_a_pod_without_runtime_class_is_warned_of_or_refused_where_nvidias_runtime_brings_the_gpu() -> None:
    """Where that runtime is not the default one, its container would start green and empty."""
    with gpu_node.running(1, "--runtime-class-check", "warn") as node:
        node.run(node.create("bare", "0:100:0"))
        node.wait("its owner is told", lambda: node.notes("DeliveryUncertain"))
        assert "PLUGIN_RUNTIME_CLASS: default/bare has no runtimeClassName" in node.notes("DeliveryUncertain")[0]
        node.wait("the node says it", lambda: "PLUGIN_RUNTIME_CLASS" in problems(node))

    for runtime in ("containerd://2.4.2", kubelet.CONTAINERD_1):
        with gpu_node.running(1, "--runtime-class-check", "refuse", runtime=runtime) as node:
            bare = node.create("bare", "0:100:0")
            node.admit(bare)
            with pytest.raises(kubelet.NotStarted, match="ALLOC_RUNTIME_CLASS: default/bare"):
                node.start(bare)
            node.delete(bare)
            body = node.body("classy", "0:100:0")
            body["spec"]["runtimeClassName"] = "nvidia"
            classy = node.server.request("POST", "/api/v1/namespaces/default/pods", body)
            assert node.run(classy).environment["NVIDIA_VISIBLE_DEVICES"] == node.uuid(0)


def run_in_proc(node: gpu_node.GpuNode, pod: dict[str, Any], mounts: str) -> None:
    """Let a container run with these mounts, as the host's `/proc` and the API server show it."""
    (node.proc_dir / "71").mkdir()
    (node.proc_dir / "71" / "cgroup").write_text(f"0::/kubepods/pod{pod['metadata']['uid']}/{ID}\n")
    (node.proc_dir / "71" / "mountinfo").write_text(mounts)
    (node.proc_dir / "71" / "environ").mkdir()  # Not to be read, as without the right to trace.
    statuses = [{"name": "c0", "containerID": f"containerd://{ID}", "state": {"running": {}}}]
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}/status"
    status = {"status": {"phase": "Running", "containerStatuses": statuses}}
    node.server.request("PATCH", path, status, "application/merge-patch+json")


def test_a_runtime_whose_cdi_is_off_is_found_out_without_any_right_and_the_next_container_is_served() -> None:
    """Containerd 2 with enable_cdi = false: one container is found to run without a GPU, and no other after it."""
    with gpu_node.running(2, *DELIVERED, prepare=lambda node: write_spec(node, 0, 1)) as node:
        node.kubelet.reads_cdi = False
        first = node.create("first", "0:500:0")
        assert node.run(first).environment["NVIDIA_VISIBLE_DEVICES"] == "void"
        run_in_proc(node, first, "22 1 0:21 / /proc rw - proc proc rw\n")

        node.wait("it is found out", lambda: any("ALLOC_CDI_IGNORED" in one for one in node.notes("AllocationFailed")))
        node.wait("the node says it", lambda: "containerd://2.4.2: " in problems(node).get("PLUGIN_CDI_IGNORED", ""))
        carries(node.run(node.create("second", "1:600:0")), node, 1)

        node.plugin.kill()
        node.plugin.start()
        node.plugin.wait_ready()
        node.wait("it serves", lambda: node.allocatable() == 20)
        third = node.create("third", "1:700:0")
        carries(node.run(third), node, 1)
        assert not node.kubelet.given[third["metadata"]["uid"], "c0"].answer.cdi_devices


def test_identity_is_decided_from_a_node_that_was_read_and_never_by_a_time_out() -> None:
    """An API server that is slow at the start of a node: a CDI name in the answer would be dropped by this runtime."""

    def prepare(node: gpu_node.GpuNode) -> None:
        write_spec(node, 0)
        node.server.call(lambda: node.server.app.faults.arm(faults.Fault("GET", "nodes/node-01$", 10**6, 500)))

    with gpu_node.running(1, *DELIVERED, runtime=kubelet.CONTAINERD_1, prepare=prepare) as node:
        pod = node.create("one", "0:100:0")
        admission = asyncio.run_coroutine_threadsafe(node.kubelet.admit(pod), node.server.loop)
        node.server.call(node.server.app.faults.disarm)

        admission.result(60)

        carries(node.start(pod), node, 0)
        node.wait("it is published", lambda: healthy(node) == [True])
        node.wait("nothing is wrong any more", lambda: "PLUGIN_NODE_UNREAD" not in problems(node))


def test_a_gpu_that_is_hidden_on_purpose_is_no_problem_of_delivery(tmp_path: pathlib.Path) -> None:
    """Its administrator leaves it out of the specification, too."""
    config = tmp_path / "config.json"
    config.write_text('{"nodeconfig":[{"name":"node-01","filterdevices":{"index":[1]}}]}')
    arguments = (*DELIVERED, "--config-file", str(config))
    with gpu_node.running(2, *arguments, prepare=lambda node: write_spec(node, 0), offered=1) as node:
        node.wait("it is published", lambda: healthy(node) == [True])

        assert problems(node) == {}
