"""How a GPU is brought into a container: by what the host offers, and what the runtime reads."""

import pathlib
from typing import Any

import pytest

from device_plugin.delivery import edits, host_cdi, methods
from device_plugin.driver import gpu_source
from gpu_sharing.core import error_codes, identifiers

GPU = identifiers.GpuUuid("GPU-a")
LIBRARY = "/usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15"
COMMON: dict[str, Any] = {
    "env": ["NVIDIA_VISIBLE_DEVICES=void", "OTHER=a=b"],
    "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": "/driver/dev/nvidiactl", "permissions": "rw"}],
    "mounts": [{"hostPath": LIBRARY, "containerPath": LIBRARY, "options": ["ro", "nosuid", "nodev", "rbind"]}],
    "hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-ctk"}],
}


def device(**changes: Any) -> gpu_source.Device:
    return gpu_source.Device(GPU, 0, "T", 1, 3, **changes)


def host(*names: str, folder: int = 0, own: dict[str, Any] | None = None, **fields: Any) -> methods.Host:
    own = {"deviceNodes": [{"path": "/dev/nvidia3"}]} if own is None else own
    specs = (
        (host_cdi.Spec(pathlib.Path("/s.yaml"), folder, "0.6.0", COMMON, dict.fromkeys(names, own)),) if names else ()
    )
    return methods.Host(host_cdi.HostSpecs(specs), **fields)


@pytest.mark.parametrize(
    ("setting", "names", "has_class", "by_cdi", "way"),
    [
        ("auto", [GPU], False, True, "cdi"), ("auto", ["0"], True, True, "cdi"), ("auto", [], True, True, "envvar"),
        ("auto", [], False, True, ""), ("cdi", [], True, True, ""), ("cdi", [GPU], True, True, "cdi"),
        ("auto", [GPU], False, False, "copied"), ("auto", [GPU], True, False, "envvar"),
        ("cdi", [GPU], True, False, "copied"), ("auto", [], True, False, "envvar"),
        ("device-nodes", [GPU], False, True, "device-nodes"), ("envvar", [GPU], False, False, "envvar"),
    ],
)  # fmt: skip
def test_delivery_takes_what_the_host_offers_and_never_names_cdi_to_a_runtime_that_does_not_read_it(
    setting: str, names: list[str], has_class: bool, by_cdi: bool, way: str
) -> None:
    found = methods.choose(
        setting, device(), host(*names, has_runtime_class=has_class), by_cdi=by_cdi, has_class=has_class
    )

    assert found.name == way
    assert bool(found.refusal) is (way == "")


def test_a_stale_specification_and_a_conflict_refuse_the_gpu_with_a_code() -> None:
    """Although the cluster has a RuntimeClass: the host is not as its administrator believes."""
    stale = host(GPU, own={"deviceNodes": [{"path": "/dev/nvidia2"}]}, has_runtime_class=True)
    twice = methods.Host(host_cdi.HostSpecs(host(GPU).specs.specs + host(GPU).specs.specs), has_runtime_class=True)

    found = [methods.choose("auto", device(), one, by_cdi=True) for one in (stale, twice)]

    assert [one.code for one in found] == [error_codes.PLUGIN_CDI_STALE, error_codes.PLUGIN_CDI_CONFLICT]
    assert [one.name for one in found] == ["", ""]
    assert "/s.yaml: it has /dev/nvidia2" in found[0].refusal


def deliver(
    found: methods.Host, *, by_cdi: bool = True, setting: str = "auto", name: str = GPU, **changes: Any
) -> edits.Edits:
    one = device(**changes)
    return methods.edits_for([(one, name, methods.choose(setting, one, found, by_cdi=by_cdi))], found)


def test_the_hosts_own_edits_are_copied_and_void_stays() -> None:
    """Else NVIDIA's runtime, where it is the default one, would inject a second time."""
    whole = edits.container_edits(deliver(host(GPU)))

    assert whole == {
        "env": ["OTHER=a=b", f"HAMI_GPUS={GPU}", "NVIDIA_VISIBLE_DEVICES=void"],
        "hooks": COMMON["hooks"],
        "mounts": COMMON["mounts"],
        "deviceNodes": [*COMMON["deviceNodes"], {"path": "/dev/nvidia3"}],
    }


def test_without_cdi_the_answer_carries_device_nodes_and_libraries_itself() -> None:
    """Under the names by which programs open them, because the kubelet's answer has no hooks to make those."""
    found = deliver(host(GPU), by_cdi=False)

    assert found.environment == {"NVIDIA_VISIBLE_DEVICES": "void", "OTHER": "a=b", "HAMI_GPUS": GPU}
    assert found.device_nodes == (
        edits.DeviceNode("/driver/dev/nvidiactl", "/dev/nvidiactl"), edits.device_node("/dev/nvidia3"),
    )  # fmt: skip
    short = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
    assert found.mounts == (edits.Mount(LIBRARY, LIBRARY), edits.Mount(LIBRARY, short))
    assert found.copied == ()


@pytest.mark.parametrize("by_cdi", [True, False])
def test_a_mig_instance_gets_its_capabilities_although_no_specification_has_it(by_cdi: bool) -> None:
    """Instances that were made after the specification are in none, and two device nodes give access to each."""
    instance = gpu_source.MigInstance("MIG-1", "1g.10gb", 1, instance_id=7, compute_id=0)
    numbers = {"gpu3/gi7/access": 66, "gpu3/gi7/ci0/access": 67}

    found = deliver(
        host("0:0", capabilities=numbers), by_cdi=by_cdi, name="MIG-1", mig_enabled=True, migs=(instance,)
    )  # fmt: skip

    nodes = edits.container_edits(found)["deviceNodes"]
    assert [(one["hostPath"], one["path"]) for one in nodes] == [
        ("/driver/dev/nvidiactl", "/dev/nvidiactl"), ("/driver/dev/nvidia3", "/dev/nvidia3"),
        ("/driver/dev/nvidia-caps/nvidia-cap66", "/dev/nvidia-caps/nvidia-cap66"),
        ("/driver/dev/nvidia-caps/nvidia-cap67", "/dev/nvidia-caps/nvidia-cap67"),
    ]  # fmt: skip
    assert found.environment["HAMI_GPUS"] == "MIG-1"
    with pytest.raises(methods.Undeliverable, match="gpu3/gi7/access"):
        deliver(host("0:0"), by_cdi=by_cdi, name="MIG-1", mig_enabled=True, migs=(instance,))


def test_gpus_of_one_container_may_come_in_different_ways() -> None:
    """One that the specification does not describe does not take the described one's way from it."""
    other = gpu_source.Device(identifiers.GpuUuid("GPU-b"), 1, "T", 1, 4)
    offered = host(GPU, has_runtime_class=True)
    ways = [(one, one.uuid, methods.choose("auto", one, offered, by_cdi=True)) for one in (device(), other)]

    found = methods.edits_for(ways, offered)

    assert found.environment == {"NVIDIA_VISIBLE_DEVICES": "GPU-b", "HAMI_GPUS": "GPU-a,GPU-b"}
    assert len(found.copied) == 2


def test_other_ways_of_delivery() -> None:
    """By NVIDIA's runtime, which reads a variable or mounts, and by device nodes alone."""
    mounts, nodes, by_variable = (
        deliver(host(), setting=setting) for setting in ("volume-mounts", "device-nodes", "envvar")
    )

    assert mounts.environment["NVIDIA_VISIBLE_DEVICES"] == "/var/run/nvidia-container-devices"
    assert mounts.mounts == (edits.Mount("/dev/null", "/var/run/nvidia-container-devices/GPU-a"),)
    assert nodes.device_nodes[0] == edits.device_node("/dev/nvidia3")
    assert by_variable.environment == {"NVIDIA_VISIBLE_DEVICES": GPU, "HAMI_GPUS": GPU}
