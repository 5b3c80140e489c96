"""What the monitor makes of processes, cgroups, records and the files that HAMi-core libraries count in."""

import os
import pathlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_plugin.driver import gpu_source
from device_plugin.monitor import cgroups, collector, settings, share_usage, shared_region
from device_plugin.node import api_objects
from gpu_sharing.adapters import objects
from gpu_sharing.core import errors, gpus, identifiers, requests
from tests import shared_regions

UID = "0b8a6f0e-5a3c-4a52-9a0a-7c1f6c1f2d3e"
ID = "ab" * 32
GPU, OTHER = identifiers.GpuUuid("GPU-a"), identifiers.GpuUuid("GPU-b")
GIB = 1 << 30
NAMES = requests.ResourceNames()


@pytest.mark.parametrize(
    "line",
    [
        f"0::/kubepods/burstable/pod{UID}/{ID}",
        f"0::/lab/kubepods/besteffort/pod{UID}/{ID}/inner/deeper",
        f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope",
        f"0::/../..//kubepods.slice/kubepods-besteffort-pod{UID.replace('-', '_')}.slice/crio-{ID}.scope",
        f"12:devices:/kubepods/pod{UID}/{ID}\n11:cpu:/",
        # A tenant may name groups below its own as it likes.
        f"0::/kubepods/pod{UID}/{ID}/pod{UID.replace('0', '1')}/{'cd' * 32}",
    ],
)
def test_a_cgroup_of_every_runtime_says_whose_process_it_is(line: str) -> None:
    """By UID and container id, the outermost."""
    assert cgroups.parse(f"{line}\n") == cgroups.ContainerOfProcess(identifiers.PodUid(UID), ID)


@pytest.mark.parametrize("line", ["0::/", "0::/system.slice/sshd.service", f"0::/kubepods/pod{UID}", f"0::/{ID}", ""])
def test_a_process_of_the_host_is_nobodys(line: str) -> None:
    """Nor one of a pod, outside its containers."""
    assert cgroups.parse(line) is None


@given(st.text())
def test_no_text_breaks_the_reading_of_cgroups(text: str) -> None:
    """A process chooses the names of its groups."""
    cgroups.parse(text)


def test_a_process_that_has_ended_is_nobodys(tmp_path: pathlib.Path) -> None:
    """Between two questions it may go."""
    assert cgroups.container_of(tmp_path, 7) is None


def test_what_the_library_counts_is_summed_over_its_processes(tmp_path: pathlib.Path) -> None:
    """Layout of version 1.2, and of 1.1, whose libraries came with HAMi v2.5 to v2.8.0."""
    path = shared_regions.write(tmp_path / "r", used=(3 * GIB, GIB), percent=30)
    older = shared_regions.write(tmp_path / "older", used=(GIB,), minor=1, cut=32)

    assert shared_region.read(path, {GPU: 8 * GIB}) == {GPU: shared_region.Counted(4 * GIB, 60.0)}
    assert shared_region.read(older, {GPU: 8 * GIB}) == {GPU: shared_region.Counted(GIB, 0.0)}
    assert shared_region.read(shared_regions.write(tmp_path / "new", magic=0), {GPU: 8 * GIB}) == {}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"magic": 7}, "corrupt"),
        ({"minor": 3}, "version"),
        ({"minor": 0}, "version"),
        ({"processes": 1025}, "corrupt"),
        ({"processes": -1}, "corrupt"),
        ({"gpus": 17}, "corrupt"),
        ({"uuids": (GPU, GPU)}, "corrupt"),
        ({"used": (9 * GIB,)}, "corrupt"),
        ({"used": (2**64 - 1, 2**64 - 1)}, "corrupt"),
        ({"used": (1,), "uuids": ("GPU-of-another-node",)}, "corrupt"),
    ],
)
def test_a_region_that_lies_is_reported_and_not_believed(
    tmp_path: pathlib.Path, fields: dict[str, Any], kind: str
) -> None:
    """A tenant can write it."""
    with pytest.raises(shared_region.InvalidRegion) as caught:
        shared_region.read(shared_regions.write(tmp_path / "r", **fields), {GPU: 8 * GIB})
    assert caught.value.kind == kind


def test_what_is_no_region_neither_hangs_nor_leads_elsewhere(tmp_path: pathlib.Path) -> None:
    """A pipe, a link, a directory, a short and an endless file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(shared_regions.write(tmp_path / "good"))
    (tmp_path / "short").write_bytes(b"x")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "folder").mkdir()

    for name, expected in {
        "pipe": shared_region.InvalidRegion, "link": OSError, "short": shared_region.InvalidRegion,
        "large": shared_region.InvalidRegion, "folder": shared_region.InvalidRegion,
    }.items():  # fmt: skip
        with pytest.raises(expected):
            shared_region.read(tmp_path / name, {GPU: 8 * GIB})


@given(st.binary(max_size=3000), st.integers(0, 1856))
def test_no_content_breaks_the_reading_of_a_region(tmp_path_factory: Any, noise: bytes, offset: int) -> None:
    """It is believed, or it is not."""
    path = shared_regions.write(tmp_path_factory.getbasetemp() / "fuzzed", used=(GIB,))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(noise)
    try:
        for counted in shared_region.read(path, {GPU: 8 * GIB}).values():
            assert 0 <= counted.memory_bytes <= 8 * GIB
            assert 0 <= counted.utilization_percent <= 100
    except shared_region.InvalidRegion:
        pass


def a_pod(
    name: str = "train", record: str = "GPU-a,NVIDIA,4096,30:;", containers: int = 1, instances: str = ""
) -> api_objects.Pod:
    """A pod with GPUs, whose first container runs."""
    limits = {"nvidia.com/gpu": "1"}
    return msgspec.convert(
        {
            "metadata": {
                "name": name, "namespace": "team", "uid": UID,
                "annotations": {"hami.io/vgpu-devices-allocated": record, "hami.io/vgpu-mig-allocations": instances},
            },
            "spec": {"containers": [{"name": f"c{i}", "resources": {"limits": limits}} for i in range(containers)]},
            "status": {"containerStatuses": [{"name": "c0", "containerID": f"containerd://{ID}"}]},
        },
        api_objects.Pod,
    )  # fmt: skip


def sample(
    *processes: gpu_source.Process,
    owned: bool = True,
    migs: dict[str, int] | None = None,
    used: int | None = None,
    lists: bool = True,
) -> share_usage.Sample:
    """A look at a GPU whose processes are all of the one container, or of none; what is used is theirs unless given."""
    listed = sum(one.memory_bytes or 0 for one in processes)
    usage = gpu_source.Usage(
        80 * GIB, listed if used is None else used, 50.0, 40, 100.0, processes, migs or {}, lists_processes=lists
    )
    owner = cgroups.ContainerOfProcess(identifiers.PodUid(UID), ID)
    return share_usage.Sample(usage, 100.0, {one.pid: owner for one in processes if owned})


def joined(
    pod: api_objects.Pod,
    found: share_usage.Sample | None,
    counted: shared_region.Counted | None = None,
    *,
    sees_processes: bool = True,
) -> tuple[share_usage.NodeUsage, share_usage.ShareUsage]:
    """What comes of one pod and one GPU."""
    result = share_usage.usage_of_shares(
        [pod], NAMES, {GPU: found} if found else {}, {(GPU, 4): "MIG-4"},
        region_of=lambda *_: {GPU: counted} if counted else {},
        sees_processes=sees_processes,
    )  # fmt: skip
    return result, result.shares[0]


def test_a_container_uses_what_its_processes_use() -> None:
    """Of those in its cgroup, on the GPU of its record."""
    result, mine = joined(a_pod(), sample(gpu_source.Process(1, GIB, 20.0), gpu_source.Process(2, GIB, 90.0)))

    assert (mine.pod, mine.container, mine.memory_bytes, mine.cores_percent) == ("train", "c0", 4096 << 20, 30)
    assert (mine.used_bytes, mine.utilization_percent) == (2 * GIB, 100.0)
    assert result.unattributed_bytes == {GPU: 0}


def test_a_slice_is_at_zero_until_it_is_used_and_unknown_while_its_gpu_is() -> None:
    """What strangers use is counted apart."""
    result, idle = joined(a_pod(), sample(gpu_source.Process(1, GIB, 20.0), owned=False))
    _, unknown = joined(a_pod(), None)

    assert (idle.used_bytes, idle.utilization_percent) == (0, 0.0)
    assert result.unattributed_bytes == {GPU: GIB}
    assert (unknown.used_bytes, unknown.utilization_percent) == (None, None)


def test_the_library_counts_only_where_the_driver_does_not() -> None:
    """Its file is the tenant's."""
    counted = shared_region.Counted(7 * GIB, 70.0)

    _, known = joined(a_pod(), sample(gpu_source.Process(1, GIB, 20.0)), counted)
    _, counted_only = joined(a_pod(), sample(gpu_source.Process(1, None, None)), counted)
    _, nobody = joined(a_pod(), sample(gpu_source.Process(1, None, None)))

    assert (known.used_bytes, known.utilization_percent) == (GIB, 20.0)
    assert (counted_only.used_bytes, counted_only.utilization_percent) == (7 * GIB, 70.0)
    assert (nobody.used_bytes, nobody.utilization_percent) == (None, None)


@pytest.mark.parametrize(
    ("found", "sees_processes"),
    [
        (sample(), False),
        (sample(gpu_source.Process(1, GIB, 20.0)), False),
        (sample(lists=False), True),
        (sample(used=3 * GIB), True),
        (sample(gpu_source.Process(1, GIB, 20.0), owned=False, used=4 * GIB), True),
    ],
    ids=["foreign namespace", "a stranger's list", "no list", "all hidden", "some hidden"],
)
def test_a_container_without_a_listed_process_is_unknown_where_processes_are_hidden(
    found: share_usage.Sample, sees_processes: bool
) -> None:
    """Every driver since 2023 hides the processes of other PID namespaces: 0 there would be a lie."""
    counted = shared_region.Counted(7 * GIB, 70.0)

    _, by_library = joined(a_pod(), found, counted, sees_processes=sees_processes)
    result, unknown = joined(a_pod(), found, sees_processes=sees_processes)

    assert (by_library.used_bytes, by_library.utilization_percent) == (7 * GIB, 70.0)
    assert (unknown.used_bytes, unknown.utilization_percent) == (None, None)
    if not sees_processes:
        assert result.unattributed_bytes == {}


@pytest.mark.parametrize("used", [0, GIB, 3 * GIB // 2])
def test_what_the_driver_keeps_for_itself_hides_no_process(used: int) -> None:
    """An idle GPU uses some hundred MiB: its idle containers use 0, and that is known."""
    _, idle = joined(a_pod(), sample(used=used))

    assert (idle.used_bytes, idle.utilization_percent) == (0, 0.0)


def test_a_process_of_unknown_size_explains_what_is_used() -> None:
    """As on WSL, where the driver lists processes without their memory: the list itself is whole."""
    _, idle = joined(a_pod(), sample(gpu_source.Process(1, None, None), owned=False, used=9 * GIB))

    assert idle.used_bytes == 0


def test_a_mig_instance_is_measured_as_a_whole() -> None:
    """Its memory by the driver; its utilisation cannot be measured, and is not zero."""
    record = (
        '[{"containerIndex":0,"deviceIndex":0,"gpuUUID":"GPU-a","profile":"1g.10gb","placement":{"start":4,"size":1}}]'
    )
    pod = a_pod(instances=record)

    _, mine = joined(pod, sample(migs={"MIG-4": 3 * GIB, "MIG-0": GIB}))

    assert (mine.used_bytes, mine.utilization_percent) == (3 * GIB, None)


def test_a_record_that_does_not_decode_gives_no_slices() -> None:
    """The device plugin refuses its containers, too."""
    assert (
        share_usage.usage_of_shares(
            [a_pod(record="garbage")], NAMES, {GPU: sample()}, {}, region_of=lambda *_: {}
        ).shares
        == ()
    )


def rendered(view: collector.MonitorView, *, compatible: bool = True) -> dict[str, dict[tuple[str, ...], float]]:
    """Every series, by name and values of its labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in collector.Gauges(lambda: view, compatible=compatible, clock=lambda: 103.0).collect():
        for one in family.samples:
            key = tuple(one.labels.values())
            assert key not in found.setdefault(one.name, {}), f"twice: {one.name}{one.labels}"
            found[one.name][key] = one.value
    return found


def a_view(pod: api_objects.Pod, stale: bool = False) -> collector.MonitorView:
    """A node with one GPU that is scaled by two."""
    device = gpu_source.Device(GPU, 0, "NVIDIA A100", 80 * 1024, 0)
    found = sample(gpu_source.Process(1, GIB, 20.0), used=10 * GIB)
    result = share_usage.usage_of_shares([pod], NAMES, {} if stale else {GPU: found}, {}, region_of=lambda *_: {})
    offered = {GPU: gpus.Gpu(GPU, 0, 160 * 1024, 100, 10, "NVIDIA A100")}
    return collector.MonitorView(
        "n", [device], offered, {GPU: found}, frozenset([GPU] if stale else []), result, {"ok": 1}, 2, 0.0
    )


def test_the_series_of_a_gpu_and_a_slice() -> None:
    """Bytes, percent, and HAMi's scale in HAMi's names."""
    found = rendered(a_view(a_pod()))

    gpu, mine = ("n", GPU), ("train", "team", GPU, "c0")
    theirs, their_slice = ("n", GPU, "0", "NVIDIA A100"), ("team", "train", "c0", "0", GPU)
    assert {name: values[gpu] for name, values in found.items() if gpu in values} == {
        "hami_gpu_memory_total_bytes": 80 * GIB, "hami_gpu_memory_used_bytes": 10 * GIB,
        "hami_gpu_utilization_percent": 50.0, "hami_gpu_temperature_celsius": 40, "hami_gpu_power_watts": 100.0,
        "hami_gpu_allocatable_memory_bytes": 160 * GIB, "hami_gpu_allocated_memory_bytes": 4 * GIB,
        "hami_gpu_allocated_cores_percent": 30, "hami_gpu_containers": 1, "hami_monitor_gpu_stale": 0,
        "hami_monitor_sample_age_seconds": 3.0, "hami_monitor_unattributed_bytes": 0,
    }  # fmt: skip
    assert {name: values[mine] for name, values in found.items() if mine in values} == {
        "hami_vgpu_memory_usage_bytes": GIB, "hami_vgpu_utilization_percent": 20.0,
        "hami_vgpu_allocated_memory_bytes": 4 * GIB, "hami_vgpu_allocated_cores_percent": 30,
    }  # fmt: skip
    assert found["hami_vgpu_info"] == {(*mine, GPU): 1}
    assert {name: values[theirs] for name, values in found.items() if theirs in values} == {
        "hami_gpu_memory_limit_bytes": 160 * GIB, "hami_gpu_shared_count": 1, "hami_gpu_core_allocated_ratio": 30,
        "hami_node_gpu_memory_allocated_ratio": 4 / 160, "hami_host_gpu_memory_used_bytes": 10 * GIB,
        "hami_host_gpu_utilization_ratio": 50.0,
    }  # fmt: skip
    assert found["hami_gpu_memory_allocated_bytes"] == {(*theirs, "30"): 4 * GIB}
    assert {name: values[their_slice] for name, values in found.items() if their_slice in values} == {
        "hami_vgpu_memory_used_bytes": GIB, "hami_vgpu_memory_limit_bytes": 4 * GIB,
        "hami_container_device_utilization_ratio": 20.0,
    }  # fmt: skip
    assert set(rendered(a_view(a_pod()), compatible=False)) == set(found) - set(collector.COMPATIBLE)


def test_an_init_container_and_its_app_count_once_in_what_is_promised_of_a_gpu() -> None:
    """They never run together: the sum would show more promised than the GPU has, and fire alerts."""
    pod = a_pod(record="GPU-a,NVIDIA,16384,10:;GPU-a,NVIDIA,1024,10:;")
    pod.spec.init_containers = [api_objects.Container("first", objects.Resources({"nvidia.com/gpu": "1"}))]

    found = rendered(a_view(pod))

    assert found["hami_gpu_allocated_memory_bytes"] == {("n", GPU): 16 * GIB}
    assert found["hami_gpu_allocated_cores_percent"] == {("n", GPU): 10}
    assert found["hami_gpu_containers"] == {("n", GPU): 1}
    assert found["hami_gpu_shared_count"] == {("n", GPU, "0", "NVIDIA A100"): 1}


def test_what_a_stale_gpu_measured_is_left_out_and_what_was_promised_stays() -> None:
    """An old number would be a lie, and zero another."""
    found = rendered(a_view(a_pod(), stale=True))

    assert found["hami_monitor_gpu_stale"] == {("n", GPU): 1}
    assert found["hami_gpu_memory_total_bytes"] == {("n", GPU): 80 * GIB}
    assert found["hami_vgpu_allocated_memory_bytes"] == {("train", "team", GPU, "c0"): 4 * GIB}
    for name in ("hami_gpu_memory_used_bytes", "hami_gpu_temperature_celsius", "hami_vgpu_memory_usage_bytes"):
        assert name not in found


def test_two_instances_of_one_gpu_are_one_series_of_their_container() -> None:
    """Its labels name the GPU."""
    record = "GPU-a,NVIDIA,1024,10:GPU-a,NVIDIA,1024,10:;"
    found = rendered(a_view(a_pod(record=record)))

    assert found["hami_vgpu_allocated_memory_bytes"] == {("train", "team", GPU, "c0"): 2 * GIB}
    assert len(found["hami_vgpu_memory_limit_bytes"]) == 2


def test_settings_that_contradict_each_other_are_refused() -> None:
    """Before anything is started."""
    given_node = {"NODE_NAME": "n"}
    assert settings.parse(["--bind", ":9"], given_node).bind.port == 9
    for arguments, environment in ([], {}), (["--interval", "9", "--stale-after", "3"], given_node):
        with pytest.raises(errors.SettingsError):
            settings.parse(arguments, environment)
