"""The device plugin between a kubelet that does everything wrong and an API server that says too much or too little."""

import json
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from gpu_sharing.core import records
from lab import hami_core, kinds, kubelet
from protos.deviceplugin.v1beta1 import api_pb2
from tests import inputs
from tests.component import gpu_node
from tests.contracts import kubelet as contract

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared() -> Iterator[gpu_node.GpuNode]:
    with gpu_node.running() as found:
        yield found


@pytest.fixture
def node(shared: gpu_node.GpuNode) -> Iterator[gpu_node.GpuNode]:
    """The same node for all tests of this file, without pods."""
    yield shared
    for pod in shared.server.request("GET", "/api/v1/namespaces/default/pods")["items"]:
        shared.delete(pod)


def annotate(node: gpu_node.GpuNode, name: str, **annotations: str | None) -> None:
    body = {"metadata": {"annotations": annotations}}
    node.server.request("PATCH", f"/api/v1/namespaces/default/pods/{name}", body, "application/merge-patch+json")


def refused(node: gpu_node.GpuNode, pod: dict[str, Any], code: str, name: str = "c0") -> None:
    with pytest.raises(kubelet.NotStarted, match=f"{code}: .+"):
        node.start(pod, name)


def test_a_container_gets_its_own_record(node: gpu_node.GpuNode) -> None:
    """Environment and mounts by its record, the phase in its pod, the event in its words."""
    pod = node.create("one", "1:4000:30", annotations={records.DECISION: "d1"})

    started = node.run(pod)

    assert started.environment["NVIDIA_VISIBLE_DEVICES"] == node.uuid(1)
    assert started.environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "4000m"
    assert started.environment["CUDA_DEVICE_SM_LIMIT"] == "30"
    assert {name: value for name, value in started.environment.items() if name.startswith("HAMI_SLICE_")} == {
        "HAMI_SLICE_MEMORY_MIB": "4000", "HAMI_SLICE_CORES_PERCENT": "30", "HAMI_SLICE_ISOLATION": "hami-core",
        "HAMI_SLICE_NODE": "node-01", "HAMI_SLICE_NAMESPACE": "default", "HAMI_SLICE_POD": "one",
        "HAMI_SLICE_CONTAINER": "c0", "HAMI_SLICE_DECISION_ID": "d1",
    }  # fmt: skip
    assert started.mounts[f"{node.plugin.hook_path}/vgpu"].endswith(f"containers/{pod['metadata']['uid']}_c0")
    node.wait(
        "the phase is written", lambda: node.pod("one")["metadata"]["annotations"][records.BIND_PHASE] == "success"
    )
    expected = (
        f"Allocated GPU-1 on node-01\n    {node.uuid(1)}: 4000MB, cores 30%\n    container c0, isolation hami-core"
    )
    node.wait("it is told", lambda: expected in node.notes("DeviceAllocated"))
    line = next(line for line in node.plugin.log_lines() if line.get("pod") == "default/one")
    assert (line["event"], line["decision_id"]) == ("allocated", "d1")


def test_what_allocate_answers_gives_no_gpu_to_a_runtime_that_ignores_cdi(node: gpu_node.GpuNode) -> None:
    """The plain environment says void; only the specification overrides it."""
    pod = node.create("plain", "0:1000:0")
    node.admit(pod)

    (given,) = node.kubelet.given.values()

    assert dict(given.answer.envs) == {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert given.answer.cdi_devices[0].name.startswith("hami.io/vgpu=")


def test_several_gpus_in_the_order_of_the_record(node: gpu_node.GpuNode) -> None:
    started = node.run(node.create("two", "1:4000:30+0:2000:10"))

    assert started.environment["NVIDIA_VISIBLE_DEVICES"] == f"{node.uuid(1)},{node.uuid(0)}"
    # Limits go by the PCI bus, where GPU 0 comes first.
    assert started.environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "2000m"
    assert started.environment["CUDA_DEVICE_MEMORY_LIMIT_1"] == "4000m"
    assert started.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_an_init_container_and_the_app_that_reuses_its_ids_get_each_its_own(node: gpu_node.GpuNode) -> None:
    pod = node.create("init", "1:300:0", "0:400:0", init=["0:200:0"])
    node.admit(pod)

    limits = [node.start(pod, name).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] for name in ("init0", "c0", "c1")]

    assert limits == ["200m", "300m", "400m"]


def test_the_stand_in_kubelet_keeps_its_books_like_the_real_one(node: gpu_node.GpuNode) -> None:
    """The same expectations are run on a real kubelet."""
    pod = node.create("books", "1:300:0", "0:400:0", init=["0:200:0"], init_name="prepare")
    node.admit(pod)

    contract.check_books(node.folder / "kubelet", pod)


def test_a_request_of_an_init_container_alone(node: gpu_node.GpuNode) -> None:
    """It appears nowhere in podresources."""
    pod = node.create("init-only", "0:1:0", init=["1:200:0"])
    pod["spec"]["containers"][0]["resources"] = {}
    keep = node.server.app.store
    key = ("default", "init-only")
    record = f"{node.uuid(1)},NVIDIA,200,0:;;"
    found = node.pod("init-only")
    changed = {**found, "spec": pod["spec"]}
    changed["metadata"]["annotations"][records.ALLOCATED] = record
    node.server.call(lambda: keep.replace(kinds.PODS, key, keep.get(kinds.PODS, *key), changed))
    node.admit(changed)

    assert node.start(changed, "init0").environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "200m"


def test_a_sidecar_keeps_its_own_ids(node: gpu_node.GpuNode) -> None:
    pod = node.create("sidecar", "1:300:0", init=["0:200:0"], sidecar=True)
    node.admit(pod)

    assert len({token for given in node.kubelet.given.values() for token in given.tokens}) == 2
    assert node.start(pod, "init0").environment["NVIDIA_VISIBLE_DEVICES"] == node.uuid(0)
    assert node.start(pod, "c0").environment["NVIDIA_VISIBLE_DEVICES"] == node.uuid(1)


def test_a_container_that_restarts_gets_the_same_again(node: gpu_node.GpuNode) -> None:
    pod = node.create("again", "0:500:0")

    assert node.run(pod) == node.start(pod)


def test_a_wall_clock_that_was_set_back_delays_no_start(node: gpu_node.GpuNode) -> None:
    """What was written before lies in the future then: waiting for its age would outlast the kubelet's patience."""
    pod = node.create("clock", "0:1000:10")
    first = node.run(pod)
    later = time.time() + 3600
    for path in node.cdi_dir.iterdir():
        os.utime(path, (later, later))

    assert node.start(pod) == first


def test_a_pod_of_somebody_else_is_not_started_until_it_has_a_record(node: gpu_node.GpuNode) -> None:
    """It fails closed, says what to do, and the kubelet's next try succeeds once that is done."""
    pod = node.create("foreign", "0:500:0", record="")
    node.admit(pod)

    refused(node, pod, "ALLOC_NO_RECORD")
    node.wait(
        "it is told", lambda: any("schedulerName: hami-scheduler" in one for one in node.notes("AllocationFailed"))
    )
    annotate(node, "foreign", **{records.ALLOCATED: f"{node.uuid(0)},NVIDIA,700,0:;"})
    node.wait("the watch has it", lambda: _starts(node, pod))


def _starts(node: gpu_node.GpuNode, pod: dict[str, Any]) -> bool:
    try:
        return bool(node.start(pod).environment)
    except kubelet.NotStarted:
        return False


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ("GPU-elsewhere,NVIDIA,1,1:;", "ALLOC_WRONG_NODE"),
        ("garbage", "ALLOC_CORRUPT_RECORD"),
        ("GPU-a,NVIDIA,1,1:GPU-b,NVIDIA,1,1:;", "ALLOC_CORRUPT_RECORD"),
        ("hami.io/v9;;;", "ALLOC_CORRUPT_RECORD"),
    ],
)
def test_a_record_that_is_forged_or_of_another_version_starts_nothing(
    node: gpu_node.GpuNode, record: str, code: str
) -> None:
    pod = node.create("forged", "0:500:0", record=record)
    node.admit(pod)

    refused(node, pod, code)
    node.wait(
        "the phase is written", lambda: node.pod("forged")["metadata"]["annotations"][records.BIND_PHASE] == "failed"
    )


def test_the_record_of_another_node_starts_nothing(node: gpu_node.GpuNode) -> None:
    pod = node.create("lost", "0:500:0", annotations={records.NODE: "node-02"})
    node.admit(pod)

    refused(node, pod, "ALLOC_WRONG_NODE")


def test_a_container_that_hamis_plugin_allocated_goes_on_if_its_limits_are_right(node: gpu_node.GpuNode) -> None:
    """After an upgrade its running containers restart here, with what that plugin answered."""
    pod, other = node.create("adopted", "1:4000:30"), node.create("wrong", "1:5000:30")
    hamis = {
        "NVIDIA_VISIBLE_DEVICES": node.uuid(1), "CUDA_DEVICE_MEMORY_LIMIT_0": "4000m", "CUDA_DEVICE_SM_LIMIT": "30",
        "CUDA_DEVICE_MEMORY_SHARED_CACHE": "/usr/local/vgpu/5f1e.cache",
    }  # fmt: skip
    for one, token in ((pod, "slot-0001"), (other, "slot-0002")):
        node.kubelet.given[(one["metadata"]["uid"], "c0")] = kubelet.Given(
            pod_uid=one["metadata"]["uid"],
            namespace="default",
            pod=one["metadata"]["name"],
            container="c0",
            init=False,
            tokens=frozenset([token]),
            answer=api_pb2.ContainerAllocateResponse(envs=hamis),
        )
    node.server.call(node.kubelet.write_checkpoint)

    assert node.start(pod).environment == hamis
    refused(node, other, "ALLOC_WRONG_MATCH")


def test_two_pods_of_one_name_are_two(node: gpu_node.GpuNode) -> None:
    """The second gets its own, although everything but the UID is the same."""
    first = node.create("same", "0:500:0")
    before = node.run(first)
    node.delete(first)
    second = node.create("same", "1:600:0")

    after = node.run(second)

    assert (before.environment["CUDA_DEVICE_MEMORY_LIMIT_0"], after.environment["CUDA_DEVICE_MEMORY_LIMIT_0"]) == (
        "500m",
        "600m",
    )


def test_the_newest_of_records_that_promise_too_much_is_not_started(node: gpu_node.GpuNode) -> None:
    """The last guard, should two schedulers ever have bound at one time."""
    older, newer = node.create("older", "0:50000:0"), node.create("newer", "0:50000:0", bound_at=101)

    node.run(older)
    node.admit(newer)

    refused(node, newer, "ALLOC_OVERSUBSCRIBED")


def test_a_mode_that_the_node_does_not_offer_starts_nothing(node: gpu_node.GpuNode) -> None:
    pod = node.create("wants-mps", "0:500:0", annotations={"nvidia.com/vgpu-mode": "mps"})
    node.admit(pod)

    refused(node, pod, "ALLOC_ISOLATION")


def test_ids_that_nobody_listed_and_none_at_all_are_refused(node: gpu_node.GpuNode) -> None:
    async def call(method: str, ids: list[str]) -> str:
        stub = node.stub()
        request: Any = api_pb2.PreStartContainerRequest(devices_ids=ids)
        if method == "Allocate":
            request = api_pb2.AllocateRequest(container_requests=[api_pb2.ContainerAllocateRequest(devices_ids=ids)])
        try:
            await getattr(stub, method)(request)
        except grpc.aio.AioRpcError as error:
            return str(error.details())
        return ""

    for method in ("Allocate", "PreStartContainer"):
        assert "device id 'GPU-7::3' is unknown" in node.do(call(method, ["GPU-7::3"]))
        assert "sends no device ids" in node.do(call(method, []))
        assert "is unknown" in node.do(call(method, ["slot-0001", "x" * 5000]))


def test_an_allocate_that_is_repeated_never_gets_the_same_name(node: gpu_node.GpuNode) -> None:
    async def names() -> set[str]:
        stub = node.stub()
        request = api_pb2.AllocateRequest(
            container_requests=[api_pb2.ContainerAllocateRequest(devices_ids=["slot-0001"])]
        )
        answers = [await stub.Allocate(request) for _ in range(20)]
        return {answer.container_responses[0].cdi_devices[0].name for answer in answers}

    assert len(node.do(names())) == 20


def test_a_kubelet_that_dies_between_allocate_and_start_finds_everything_again(node: gpu_node.GpuNode) -> None:
    pod = node.create("interrupted", "1:800:0")
    node.admit(pod)

    node.do(node.kubelet.restart())
    node.wait("the plugin has registered again", lambda: node.allocatable() == 20)

    assert node.start(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "800m"


def test_a_kubelet_that_hangs_up_is_registered_with_again(node: gpu_node.GpuNode) -> None:
    """It counts no GPU from then on, so the node would take no pod any more, and nothing would say why."""
    offset = node.plugin.log_file.stat().st_size

    node.do(node.kubelet.disconnect())

    node.wait("it is noticed", lambda: node.plugin.logged("registering again", offset))
    node.wait("the plugin has registered again", lambda: node.plugin.logged("registered", offset))
    node.wait("its slots are offered", lambda: node.kubelet.devices and all(node.kubelet.devices.values()))
    node.wait("the node has them", lambda: node.allocatable() == 20)


def test_a_plugin_that_dies_between_allocate_and_start_finds_everything_again(node: gpu_node.GpuNode) -> None:
    pod = node.create("orphaned", "1:900:0")
    node.admit(pod)

    node.plugin.kill()
    with pytest.raises(kubelet.NotStarted):
        node.start(pod)
    node.plugin.start()
    node.plugin.wait_ready()
    node.wait("it serves", lambda: node.allocatable() == 20)

    assert node.start(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "900m"


def test_after_a_reboot_specifications_are_back_before_the_kubelet_knows_us(node: gpu_node.GpuNode) -> None:
    """The runtime's directory is empty then, and the kubelet may start containers without asking."""
    pod = node.create("rebooted", "0:950:0")
    node.run(pod)
    for _ in range(5):
        node.plugin.kill()
        shutil.rmtree(node.cdi_dir)
        offset = node.plugin.log_file.stat().st_size
        node.plugin.start()
        node.plugin.wait_ready()
        # It waits for the pods for 20 s, which a very busy machine may exceed.
        if not node.plugin.logged("the node's pods are not read in time; registering without them", offset):
            break

    node.wait("it registers", lambda: "registered" in [line.get("event") for line in node.plugin.log_lines(offset)])
    events = [line.get("event") for line in node.plugin.log_lines(offset)]
    assert events.index("device specifications are in place") < events.index("registered")
    assert any("950m" in path.read_text() for path in node.cdi_dir.iterdir())
    node.wait("it serves", lambda: node.allocatable() == 20)


def test_our_own_socket_is_made_again(node: gpu_node.GpuNode) -> None:
    sockets = list((node.folder / "kubelet" / "device-plugins").glob("hami-*.sock"))
    offset = node.plugin.log_file.stat().st_size
    sockets[0].unlink()

    node.wait("it is there again", lambda: sockets[0].exists())
    # Only then is what the kubelet knows of the new one.
    node.wait("it registers", lambda: "registered" in [line.get("event") for line in node.plugin.log_lines(offset)])
    node.wait("it serves", lambda: node.allocatable() == 20)


def test_a_folder_that_takes_no_specification_is_a_coded_error_until_it_does(node: gpu_node.GpuNode) -> None:
    pod = node.create("stuck", "0:100:0")
    shutil.rmtree(node.cdi_dir, ignore_errors=True)
    node.cdi_dir.touch()
    node.admit(pod)

    refused(node, pod, "ALLOC_SPEC_NOT_WRITTEN")
    node.cdi_dir.unlink()

    assert node.start(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "100m"


def test_a_checkpoint_that_cannot_be_read_starts_nothing(node: gpu_node.GpuNode) -> None:
    pod = node.create("blind", "0:100:0")
    node.admit(pod)
    path = node.folder / "kubelet" / "device-plugins" / "kubelet_internal_checkpoint"
    path.write_text('{"Data": 7}')

    refused(node, pod, "PLUGIN_CHECKPOINT_UNREADABLE")  # Within `GpuNode.do`'s time: the kubelet waits no longer.
    node.server.call(node.kubelet.write_checkpoint)

    assert node.start(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "100m"


def test_podresources_of_another_owner_starts_nothing(node: gpu_node.GpuNode) -> None:
    pod, other = node.create("mine", "0:100:0"), node.create("theirs", "1:100:0")
    node.admit(pod)
    (given,) = node.kubelet.given.values()
    stolen = kubelet.Given(
        pod_uid="x",
        namespace="default",
        pod="theirs",
        container="c9",
        init=False,
        tokens=given.tokens,
        answer=given.answer,
    )

    node.kubelet.given[("x", "c9")] = stolen

    refused(node, pod, "ALLOC_OWNER_CONFLICT")
    del node.kubelet.given[("x", "c9")]
    assert other["metadata"]["name"] == "theirs"


def test_a_sick_gpu_starts_nothing_and_its_pods_learn_why(node: gpu_node.GpuNode) -> None:
    """Placed just before the fault: the container does not start on it."""
    pod = node.create("unlucky", "1:100:0")
    node.admit(pod)
    node.driver.gpus[1].recovery_action = 2
    node.driver.write()
    node.wait("it is withdrawn", lambda: node.allocatable() == 11)

    refused(node, pod, "ALLOC_GPU_UNHEALTHY")
    assert [one.healthy for one in records.decode_inventory(_inventory(node))] == [True, False]
    node.wait("it is told", lambda: len(node.notes("DeviceUnhealthy")) == 2)
    assert node.plugin.get("health", "/readyz")[0] == 200

    node.driver.gpus[1].recovery_action = 0
    node.driver.write()
    node.plugin.kill()
    node.plugin.reboot("next")
    node.plugin.start()
    node.plugin.wait_ready()
    node.wait("it is back", lambda: node.allocatable() == 20)


def _inventory(node: gpu_node.GpuNode) -> str:
    text: str = node.node()["metadata"]["annotations"][records.INVENTORY]
    return text


def test_health_and_metrics(node: gpu_node.GpuNode) -> None:
    """The names that dashboards know."""
    node.run(node.create("counted", "0:100:0"))

    facts = json.loads(node.plugin.get("health", "/healthz")[1])
    text = node.plugin.get("health", "/metrics")[1].decode()

    assert facts["status"] == "ok"
    assert node.uuid(0) in facts["device_ids"].values()
    assert f'hami_device_plugin_device_count{{node="{gpu_node.NODE}"}} 2.0' in text
    assert f'hami_device_plugin_healthy_status{{device="{node.uuid(0)}",node="{gpu_node.NODE}"}} 1.0' in text
    assert "hami_device_plugin_allocate_duration_seconds_count" in text


def test_a_heartbeat_does_not_wake_the_cluster(node: gpu_node.GpuNode) -> None:
    """The node object changes when its GPUs do, and not otherwise."""
    before = node.node()["metadata"]["resourceVersion"]
    time.sleep(1.0)

    assert node.node()["metadata"]["resourceVersion"] == before


@pytest.mark.parametrize("runtime", ["containerd://1.7.20", "docker://24.0", ""])
def test_without_cdi_containers_are_matched_and_verified(runtime: str) -> None:
    """The oldest pod that waits is answered; a container that was answered another's slice does not start."""
    with gpu_node.running(runtime=runtime) as node:
        first, second = node.create("first", "0:500:0"), node.create("second", "1:600:0", bound_at=101)
        node.admit(first)
        node.admit(second)

        assert node.start(first).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "500m"
        assert node.start(second).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "600m"
        assert not node.cdi_dir.exists()

        late, early = node.create("late", "0:700:0", bound_at=103), node.create("early", "1:800:0", bound_at=102)
        node.admit(late)  # Out of order: it is answered the record of the other.
        refused(node, late, "ALLOC_WRONG_MATCH")
        node.delete(late)
        again = node.create("late", "0:700:0", bound_at=104)
        node.admit(early)
        node.admit(again)
        assert node.start(again).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "700m"


def test_mig_instances_are_made_for_a_pod_and_taken_away_after_it() -> None:
    """On a node that is set to mig: by the record's profile and place; the next pod may have the place."""
    with gpu_node.running(1, "--isolation", "mig", "--forget-after", "1", mig=True) as node:
        pods = [
            node.create(f"mig-{start}", "0:9728:0", annotations={MIGS: mig_record(node.uuid(0), "1g.10gb", start, 1)})
            for start in (0, 3)
        ]

        visible = [node.run(pod).environment["NVIDIA_VISIBLE_DEVICES"] for pod in pods]

        assert visible == ["MIG-made-0-1", "MIG-made-0-2"]
        node.delete(pods[0])
        node.wait("the first is taken away", lambda: node.plugin.logged("MIG instance destroyed"))
        assert node.plugin.metric('hami_device_plugin_leftovers_deleted_total{kind="mig"}') == 1
        node.wait(
            "its specification, too",
            lambda: node.plugin.metric('hami_device_plugin_leftovers_deleted_total{kind="cdi"}') == 1,
        )
        whole = node.create("mig-next", "0:9728:0", annotations={MIGS: mig_record(node.uuid(0), "2g.20gb", 0, 2)})
        assert node.run(whole).environment["NVIDIA_VISIBLE_DEVICES"] == "MIG-made-0-3"
        crowded = node.create("mig-late", "0:9728:0", annotations={MIGS: mig_record(node.uuid(0), "1g.10gb", 3, 1)})
        node.admit(crowded)
        refused(node, crowded, "ALLOC_OVERSUBSCRIBED")


def test_instances_that_the_plugin_did_not_make_stay_and_what_it_left_by_halves_is_freed() -> None:
    """A crash between instance and compute instance holds memory slices that no device handle shows."""

    def prepare(node: gpu_node.GpuNode) -> None:
        node.driver.migs = [f"mig 0 MIG-admin {10 << 30} 11 6 1 19", f"mig 0 MIG-half {10 << 30} 12 5 1 19 bare"]
        node.driver.rules = [f"fail {call} 4 0" for call in HALVES]
        node.driver.write()

    with gpu_node.running(1, "--isolation", "mig", "--forget-after", "1", mig=True, prepare=prepare) as node:
        pod = node.create("mig", "0:9728:0", annotations={MIGS: mig_record(node.uuid(0), "1g.10gb", 0, 1)})
        node.admit(pod)
        refused(node, pod, "ALLOC_ISOLATION")
        node.wait("it is recorded", lambda: "1g.10gb" in annotation(node, records.MIG_MADE))

        node.plugin.kill()
        node.driver.rules = []
        node.driver.write()
        node.plugin.start()
        node.plugin.wait_ready()
        node.wait("it serves", lambda: node.allocatable() == 7)

        assert node.start(pod).environment["HAMI_GPUS"] == "MIG-made-0-13"
        node.delete(pod)
        node.wait("its own is taken away", lambda: annotation(node, records.MIG_MADE) == "[]")
        assert not node.plugin.logged("a GPU instance stays")
        found = node.wait("the other is told", lambda: annotation(node, records.PROBLEMS).count("GPU instance 12"))
        assert found == 1
        admins = node.create("admin", "0:9728:0", annotations={MIGS: mig_record(node.uuid(0), "1g.10gb", 6, 1)})
        assert node.run(admins).environment["HAMI_GPUS"] == "MIG-admin"


HALVES = ("nvmlGpuInstanceCreateComputeInstance", "nvmlGpuInstanceDestroy")


def annotation(node: gpu_node.GpuNode, name: str) -> str:
    return str(node.node()["metadata"]["annotations"].get(name, ""))


MIGS = "hami.io/vgpu-mig-allocations"


def mig_record(gpu: str, profile: str, start: int, size: int) -> str:
    return json.dumps([{"gpuUUID": gpu, "profile": profile, "placement": {"start": start, "size": size}}])


def test_settings_of_the_node_are_read_again_when_they_change(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    with gpu_node.running(2, "--config-file", str(config)) as node:
        config.write_text('{"nodeconfig":[{"name":"node-01","devicesplitcount":3,"devicememoryscaling":2}]}')
        node.wait("the kubelet knows", lambda: node.allocatable() == 6)
        node.wait("the scheduler knows", lambda: records.decode_inventory(_inventory(node))[0].memory_mib == 2 * 81_920)

        for wrong in ("{ broken", '{"nodeconfig":[{"name":"node-01","devicesplitcount":50000}]}'):
            told = _count(node, "node file not used")
            config.write_text(wrong)
            node.wait("it is told", lambda before=told: _count(node, "node file not used") > before)  # type: ignore[misc]
            assert node.allocatable() == 6


def _problems(node: gpu_node.GpuNode) -> dict[str, str]:
    return records.decode_problems(node.node()["metadata"]["annotations"].get(records.PROBLEMS, ""))


def _modes(node: gpu_node.GpuNode) -> set[str]:
    return {gpu.mode for gpu in records.decode_inventory(_inventory(node))}


def test_a_node_whose_library_goes_away_says_that_nothing_is_limited_and_why() -> None:
    """Also after a restart of the plugin: what was limited yesterday and is not today is no silence."""
    with gpu_node.running(2) as node:
        assert _modes(node) == {"hami-core"}
        (library,) = (node.plugin.hook_path / "vgpu").glob("libvgpu.so*")
        library.unlink()
        lost = {"PLUGIN_MEMORY_NOT_LIMITED", "PLUGIN_ISOLATION_LOST"}

        node.wait("it is said", lambda: _problems(node).keys() >= lost)
        assert _modes(node) == {"none"}
        assert "has no libvgpu.so that can be loaded" in _problems(node)["PLUGIN_ISOLATION_LOST"]
        text = node.plugin.get("health", "/metrics")[1].decode()
        assert (
            f'hami_device_plugin_gpu_isolation{{device="{node.uuid(0)}",isolation="none",node="node-01"}} 1.0' in text
        )
        assert 'hami_device_plugin_problem{device="",error_code="PLUGIN_ISOLATION_LOST",node="node-01"} 1.0' in text
        unlimited = node.create("unlimited", "0:1000:0")
        node.run(unlimited)
        node.wait("its event says so", lambda: any("isolation none" in one for one in node.notes("DeviceAllocated")))

        node.plugin.stop()
        node.plugin.start()
        node.plugin.wait_ready()
        node.wait("it is still said", lambda: node.plugin.get("health", "/metrics")[1].count(b"PLUGIN_ISOLATION_LOST"))

        hami_core.place(node.plugin.hook_path)
        node.wait("it is over", lambda: not _problems(node).keys() & lost and _modes(node) == {"hami-core"})


def test_a_node_that_must_be_limited_starts_nothing_while_it_cannot_be() -> None:
    """`--isolation hami-core` is a demand; `auto` is a wish."""
    with gpu_node.running(2, "--isolation", "hami-core") as node:
        (library,) = (node.plugin.hook_path / "vgpu").glob("libvgpu.so*")
        early = node.create("early", "0:1000:0")
        node.admit(early)
        library.unlink()

        node.wait("it is said", lambda: "PLUGIN_HAMI_CORE" in _problems(node))
        # One is listed as healthy in place of the one that the pod holds, so that none is free.
        node.wait("no slot is free", lambda: node.allocatable() == 1)
        assert not any(gpu.healthy for gpu in records.decode_inventory(_inventory(node)))
        assert "no libvgpu.so" in node.node()["metadata"]["annotations"][records.HEALTH]
        refused(node, early, "ALLOC_GPU_UNHEALTHY: GPU-[-0-9a-f]+: PLUGIN_HAMI_CORE")

        hami_core.place(node.plugin.hook_path)
        node.wait("all are usable", lambda: node.allocatable() == 20)
        node.start(early)


def test_a_plugin_that_finds_no_driver_says_so_on_its_node_and_takes_back_what_was_offered() -> None:
    """The commonest failure of an installation; and a restart while the driver is being replaced."""
    with gpu_node.running(2) as node:
        pod = node.create("early", "0:1000:0")
        node.admit(pod)
        node.plugin.stop()
        node.driver.rules = ["fail nvmlInit_v2 9 -1", "fail nvmlInitWithFlags 9 -1"]
        node.driver.write()
        node.plugin.start()

        node.wait("it is said", lambda: "PLUGIN_NO_DRIVER" in _problems(node))
        offered = records.decode_inventory(_inventory(node))
        assert [gpu.healthy for gpu in offered] == [False, False]
        assert "accelerator" in node.node()["metadata"]["labels"]

        node.driver.rules = []
        node.driver.write()
        node.wait("it is over", lambda: "PLUGIN_NO_DRIVER" not in _problems(node))
        node.wait("GPUs are back", lambda: all(gpu.healthy for gpu in records.decode_inventory(_inventory(node))))


def test_a_node_without_any_gpu_has_the_reason_and_no_record() -> None:
    """Else the scheduler would count it as a GPU node, and people would find it by the label."""
    with gpu_node.running(2, start=False) as node:
        node.driver.rules = ["fail nvmlInit_v2 9 -1", "fail nvmlInitWithFlags 9 -1"]
        node.driver.write()
        node.plugin.start()

        node.wait("it is said", lambda: "PLUGIN_NO_DRIVER" in _problems(node))
        metadata = node.node()["metadata"]
        assert records.INVENTORY not in metadata["annotations"]
        assert "accelerator" not in metadata.get("labels", {})
        assert "nvidia.com/gpumem" not in node.node()["status"].get("capacity", {})


def _count(node: gpu_node.GpuNode, event: str) -> int:
    return sum(line.get("event") == event for line in node.plugin.log_lines())


def test_a_gpu_that_is_hidden_from_the_scheduler_starts_nothing_more(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    with gpu_node.running(2, "--config-file", str(config)) as node:
        pod = node.create("late", "1:100:0")
        node.admit(pod)
        config.write_text('{"nodeconfig":[{"name":"node-01","filterdevices":{"index":[1]}}]}')
        # Ten slots of the other GPU are free, and one more token is held whichever it is.
        node.wait("it is hidden", lambda: node.allocatable() == 11)

        refused(node, pod, "ALLOC_WRONG_NODE")


def test_while_the_api_server_is_away_what_was_written_for_a_container_holds() -> None:
    """A restarted plugin cannot read records then; containers that ran may run again, others wait."""
    with gpu_node.running() as node:
        pod, fresh = node.create("kept", "0:500:0"), node.create("fresh", "1:600:0")
        node.run(pod)
        node.plugin.kill()
        text = node.kubeconfig.read_text()
        node.kubeconfig.write_text(text.replace(node.server.url, "http://127.0.0.1:1"))
        node.plugin.start()
        node.wait("it serves", lambda: node.allocatable() == 20)

        assert node.start(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "500m"
        node.admit(fresh)
        refused(node, fresh, "ALLOC_OWNER_UNKNOWN")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--device-split-count", "40000"], 2), (["--isolation", "x"], 2)], ids=["slots", "word"]
)
def test_a_setting_that_cannot_be_ends_the_start_with_its_name(arguments: list[str], code: int) -> None:
    with gpu_node.running() as node:
        node.plugin.stop()
        command = [*node.plugin.command(), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=node.plugin.environment())

        assert done.returncode == code
        assert arguments[0] in done.stderr


def test_the_canary_finds_the_socket_answering(node: gpu_node.GpuNode) -> None:
    """As the kubelet dials it."""

    def answers() -> bool:
        found = json.loads(node.plugin.get("health", "/healthz")[1])["components"]["socket"]
        return bool(found["healthy"])

    node.wait("it answers", answers)


@pytest.mark.parametrize("name", ["NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_MEMORY_LIMIT_0", "CUDA_DEVICE_MEMORY_LIMIT_7"])
def test_without_cdi_a_pod_cannot_replace_its_limits_by_its_own_variables(name: str) -> None:
    """The kubelet puts the pod's env behind the plugin's, so that the pod's would win."""
    with gpu_node.running(1, "--identity", "match", "--delivery", "envvar") as node:
        body = node.body("greedy", "0:500:0")
        body["spec"]["containers"][0]["env"] = [{"name": name, "value": "all"}]
        pod = node.server.request("POST", "/api/v1/namespaces/default/pods", body)
        node.admit(pod)

        refused(node, pod, "ALLOC_OWN_VARIABLES")

        body = node.body("modest", "0:500:0")
        body["spec"]["containers"][0]["env"] = [{"name": "PATH", "value": "/bin"}]
        modest = node.server.request("POST", "/api/v1/namespaces/default/pods", body)
        assert node.run(modest).environment["NVIDIA_VISIBLE_DEVICES"] == node.uuid(0)


def test_with_cdi_a_pods_own_variables_change_nothing(node: gpu_node.GpuNode) -> None:
    """The specification is applied last."""
    body = node.body("greedy", "0:500:0")
    body["spec"]["containers"][0]["env"] = [{"name": "CUDA_DEVICE_MEMORY_LIMIT_0", "value": "99999m"}]
    pod = node.server.request("POST", "/api/v1/namespaces/default/pods", body)

    assert node.run(pod).environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "500m"


def test_the_sharing_mode_is_read_as_the_scheduler_reads_it(node: gpu_node.GpuNode) -> None:
    """`HAMi-Core` was bound, and refused here for ever."""
    mode = inputs.pod("03-mode-case.yaml")["metadata"]["annotations"]

    started = node.run(node.create("mode-case", "0:1000:0", annotations=mode))

    assert started.environment["CUDA_DEVICE_MEMORY_LIMIT_0"] == "1000m"


@pytest.mark.parametrize("there", [None, "nvidia-tesla-v100"])
def test_a_value_of_the_label_accelerator_that_is_there_stays(there: str | None) -> None:
    """Pods with a nodeSelector for it would become Pending by the installation."""
    labels = {"accelerator": there} if there else {}
    with gpu_node.running(1, labels=labels) as node:
        node.wait("the node is annotated", lambda: records.INVENTORY in node.node()["metadata"]["annotations"])

        assert node.node()["metadata"]["labels"]["accelerator"] == (there or "nvidia")
